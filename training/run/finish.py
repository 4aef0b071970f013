"""The end of a run: the best average becomes an artifact and a report; samples are drawn on the way."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelManifest
from model.evaluation.evaluation import EvaluationContext, EvaluationReport, Evaluator, ScoredImage
from model.evaluation.metrics import ConfusionMatrix
from model.evaluation.report import ShownImage
from model.networks.segmentation_network import ARCHITECTURES, SegmentationNetwork
from training.errors import CheckpointError
from training.optimisation.bn_calibration import calibration_sample
from training.run.hardware import processor_name
from training.run.publish import RunProvenance, build_manifest, publish, rehearse
from training.run.record import SAMPLE_FOLDER, RunRecord
from training.run.report import REPORT_FOLDER, FinishedRun, write_interim
from training.run.sample_grid import (
    SAMPLE_COUNT,
    draw_grid,
    label_samples,
    sample_indices,
    write_crops,
    write_picture,
    write_samples,
)
from training.run.time_budget import Costs
from training.run.trainer import Trainer, Validated
from training.run.validation import Scores

ARTIFACT_FOLDER = "artifact"


def finish(trainer: Trainer, origin: RunProvenance, out: Path) -> None:
    """Write the best network as ``OUT/artifact``, and its report as ``OUT/report``.

    Every process of the run calls this; the first one writes.

    Args:
        trainer: after its last step.
        origin: command, code version and first weights of the run.
        out: folder of the run.

    Raises:
        CheckpointError: the best state cannot be read, or the report cannot be written.
        model.errors.ArtifactError: a file of the artifact does not reproduce the network.
    """
    best = _best(trainer)
    images = _all_images(trainer, best.scores)
    if trainer.ranks.is_first:
        task = trainer.log.display.task
        manifest = build_manifest(
            trainer.config, trainer.data, origin=origin, steps=best.step, matrix=best.scores.matrix
        )
        with task("writing the artifact"):
            artifact = _published(trainer, best.network, manifest, out / ARTIFACT_FOLDER)
        report = _evaluated(trainer, artifact.manifest, images, name=out.name, command=origin.command)
        try:
            with task("writing the report"):
                _summarise(trainer, best.network, artifact, report, out)
        except OSError as error:
            raise CheckpointError(f"cannot write {out / REPORT_FOLDER}: {error}") from error
    trainer.ranks.wait_for_all()


def measure_costs(trainer: Trainer, origin: RunProvenance) -> Costs:
    """Measure the duration of a validation on a few pictures, and of an export by making one.

    Args:
        trainer: before its first step.
        origin: command, code version and first weights of the run.

    Raises:
        model.errors.ArtifactError: the artifact does not reproduce the network, or cannot be written.
    """
    if not trainer.ranks.is_first:
        return Costs()
    train, val = trainer.data.train.names, trainer.data.val.names
    with trainer.log.display.task("measuring how long the end of the run takes"):
        sample = range(min(len(train), 2 * trainer.config.schedule.batch_size))
        began_s = time.monotonic()
        network = trainer.calibrated_on(sample)
        calibrated_s = time.monotonic()
        indices = sample_indices(len(val))
        draw_grid(_labelled(trainer, network, indices), trainer.data.spec.palette)
        drawn_s = time.monotonic()
        matrix = ConfusionMatrix.zeros(trainer.data.spec.palette.num_classes)
        rehearse(network, build_manifest(trainer.config, trainer.data, origin=origin, steps=0, matrix=matrix))
        exported_s = time.monotonic() - drawn_s
    picture_s = (drawn_s - calibrated_s) / len(indices)
    share = len(calibration_sample(len(train))) / len(sample)
    own = len(trainer.ranks.share(len(val)))
    return Costs(
        validation_s=share * (calibrated_s - began_s) + (own + len(indices)) * picture_s,
        export_s=exported_s + 3 * SAMPLE_COUNT * picture_s,
    )


def draw_crops(trainer: Trainer, out: Path) -> None:
    """Write the first crops of the first step, as the network sees them, once a run.

    Args:
        trainer: of the run.
        out: folder of the run.
    """
    if not trainer.ranks.is_first or RunRecord.read(out).crops:
        return
    images_NHW3, labels_NHW, _ = trainer.crops.cut(0, trainer.crops.parts()[0])
    names = trainer.crops.names(0)[: len(images_NHW3)]
    try:
        told = write_crops(out / SAMPLE_FOLDER, names, images_NHW3, labels_NHW, trainer.data.spec.palette)
    except OSError as error:
        trainer.log.say(f"cannot write the crops of the report: {error}")
        return
    trainer.log.record("crops", step=0, pictures=told)


def draw_samples(trainer: Trainer, out: Path, step: int, network: SegmentationNetwork) -> None:
    """Draw the labels of the fixed validation pictures, as files and on the board.

    Args:
        trainer: of the run.
        out: folder of the run.
        step: finished steps, in the names of the files.
        network: that labels the pictures.
    """
    if not trainer.ranks.is_first:
        return
    palette = trainer.data.spec.palette
    shown = _labelled(trainer, network, sample_indices(len(trainer.data.val.names)))
    grid_HW3 = draw_grid(shown, palette)
    path = out / SAMPLE_FOLDER / f"step-{step:08d}.png"
    try:
        write_picture(path, grid_HW3)
        trainer.log.record("samples", step=step, pictures=write_samples(path.parent, shown, palette, step))
    except OSError as error:
        trainer.log.say(f"cannot write {path}: {error}")
    if trainer.log.board is not None:
        trainer.log.board.add_picture("samples", grid_HW3, step)


def write_interim_report(trainer: Trainer, out: Path) -> None:
    """Write the report of a run that was stopped, with all that it knows so far.

    Args:
        trainer: of the run.
        out: folder of the run.
    """
    try:
        page = write_interim(out)
    except OSError as error:
        trainer.log.say(f"cannot write {out / REPORT_FOLDER}: {error}")
        return
    trainer.log.say(f"report: {page}")


def _best(trainer: Trainer) -> Validated:
    """Return the network to publish, with its scores."""
    is_last = trainer.config.data.validates_on_training_pictures
    kept = trainer.last_validated if is_last else trainer.best_validated
    if kept is not None:
        return kept
    step = trainer.position.step if is_last else trainer.position.best_step
    best = trainer.checkpoints.load("best") if trainer.ranks.is_first and not is_last else None
    if best is not None:
        trainer.learner.average.network.load_state_dict(best["average"])
        step = int(best["position"]["step"])
    network = trainer.calibrated()
    return Validated(step, network, trainer.scores(network))


def _all_images(trainer: Trainer, scores: Scores) -> list[ScoredImage]:
    own = json.dumps([image.to_json() for image in scores.images])
    texts = trainer.ranks.texts(own, trainer.data.device)
    return [ScoredImage.from_json(one) for text in texts for one in json.loads(text)]


def _published(
    trainer: Trainer, network: SegmentationNetwork, manifest: ModelManifest, folder: Path
) -> Artifact:
    artifact = publish(folder, network, manifest)
    if artifact.manifest.precision != manifest.precision:
        trainer.log.say(
            f"the artifact has f32 weights: rounded to {manifest.precision} they compute something else"
        )
    trainer.log.write("artifact", f"artifact: {folder}", folder=str(folder))
    return artifact


def _evaluated(
    trainer: Trainer, manifest: ModelManifest, images: Sequence[ScoredImage], *, name: str, command: str
) -> EvaluationReport:
    data = trainer.data
    evaluator = Evaluator(data.spec.palette, total=len(data.val.names))
    for image in images:
        evaluator.add(image)
    context = EvaluationContext(
        model=name,
        weights=manifest.digest,
        engine="torch",
        device=str(data.device),
        precision=trainer.config.compute.precision,
        processor=processor_name(),
        protocol="ss",
        dataset=data.spec.name,
        split=trainer.config.data.val_split,
        data_fingerprint=data.val.fingerprint,
        versions=versions(),
        command=command,
    )
    return evaluator.report(context)


def _summarise(
    trainer: Trainer, network: SegmentationNetwork, artifact: Artifact, report: EvaluationReport, out: Path
) -> None:
    ranking = [image.index for image in report.worst(len(report.images))]
    chosen = {
        "Worst pictures": ranking[:SAMPLE_COUNT],
        "Best pictures": ranking[: -SAMPLE_COUNT - 1 : -1],
        "Samples": sample_indices(len(trainer.data.val.names)),
    }
    page = FinishedRun(
        evaluation=report,
        provenance=artifact.manifest.provenance,
        pictures={
            title: _labelled(trainer, network, indices) for title, indices in chosen.items() if indices
        },
    ).write(RunRecord.read(out), out)
    trainer.log.say(f"report: {page}")


def versions() -> dict[str, str]:
    """Return the versions of Python, torch and NumPy."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def _labelled(trainer: Trainer, network: SegmentationNetwork, indices: Sequence[int]) -> list[ShownImage]:
    return label_samples(
        network,
        trainer.data.val,
        indices,
        architecture=ARCHITECTURES[trainer.config.network.architecture],
        palette=trainer.data.spec.palette,
        compute=trainer.config.compute,
    )
