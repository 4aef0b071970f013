"""The end of a run: its best average becomes an artifact and a report; and the pictures drawn on the way."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelManifest
from model.evaluation.evaluation import EvaluationContext, EvaluationReport, Evaluator, ScoredImage
from model.labels import UInt8Array
from model.networks.segmentation_network import ARCHITECTURES, SegmentationNetwork
from training.errors import CheckpointError
from training.run.progress import LOG_FILE
from training.run.publish import RunProvenance, build_manifest, publish
from training.run.report import Summary, read_events, versions
from training.run.sample_grid import SAMPLE_COUNT, sample_grid, sample_indices, write_picture
from training.run.trainer import Trainer
from training.run.validation import Scores

ARTIFACT_FOLDER = "artifact"
REPORT_FOLDER = "report"
SAMPLE_FOLDER = "samples"


def finish(trainer: Trainer, origin: RunProvenance, out: Path) -> None:
    """Publish what was best as ``OUT/artifact`` and tell of it in ``OUT/report``.

    Every process of the run calls this; the first one writes.

    Args:
        trainer: after its last step.
        origin: what the run was made with.
        out: folder of the run.

    Raises:
        CheckpointError: the best state cannot be read, or the report cannot be written.
        model.errors.ArtifactError: a file of the artifact does not reproduce the network.
    """
    step = _take_up_the_best(trainer)
    network = trainer.calibrated()
    scores = trainer.scores(network)
    images = _all_images(trainer, scores)
    if trainer.ranks.is_first:
        manifest = build_manifest(
            trainer.config, trainer.data, origin=origin, steps=step, matrix=scores.matrix
        )
        artifact = _published(trainer, network, manifest, out / ARTIFACT_FOLDER)
        report = _evaluated(trainer, artifact.manifest, images, name=out.name, command=origin.command)
        try:
            _summarise(trainer, network, artifact, report, out)
        except OSError as error:
            raise CheckpointError(f"cannot write {out / REPORT_FOLDER}: {error}") from error
    trainer.ranks.wait_for_all()


def draw_samples(trainer: Trainer, out: Path, step: int, network: SegmentationNetwork) -> None:
    """Draw what the network makes of the fixed validation pictures, as a PNG and on the board.

    A picture that cannot be written is told of, and missing.
    """
    if not trainer.ranks.is_first:
        return
    grid_HW3 = _grid(trainer, network, sample_indices(len(trainer.data.val.names)))
    path = out / SAMPLE_FOLDER / f"step-{step:08d}.png"
    try:
        write_picture(path, grid_HW3)
    except OSError as error:
        trainer.log.say(f"cannot write {path}: {error}")
    if trainer.log.board is not None:
        trainer.log.board.add_picture("samples", grid_HW3, step)


def _take_up_the_best(trainer: Trainer) -> int:
    """Let the average be the one to publish; return after how many steps it was made."""
    if trainer.config.data.validates_on_training_pictures:
        return trainer.position.step
    best = trainer.checkpoints.load("best") if trainer.ranks.is_first else None
    if best is None:
        return trainer.position.best_step
    trainer.learner.average.network.load_state_dict(best["average"])
    return int(best["position"]["step"])


def _all_images(trainer: Trainer, scores: Scores) -> list[ScoredImage]:
    said = json.dumps([image.to_json() for image in scores.images])
    heard = trainer.ranks.texts(said, trainer.data.device)
    return [ScoredImage.from_json(one) for text in heard for one in json.loads(text)]


def _published(
    trainer: Trainer, network: SegmentationNetwork, manifest: ModelManifest, folder: Path
) -> Artifact:
    artifact = publish(folder, network, manifest)
    if artifact.manifest.precision != manifest.precision:
        trainer.log.say(
            f"weights are kept in f32: rounded to {manifest.precision} they compute something else"
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
        processor=platform.processor() or platform.machine(),
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
    page = Summary(
        name=out.name,
        evaluation=report,
        provenance=artifact.manifest.provenance,
        events=read_events(out / LOG_FILE),
        grids={title: _grid(trainer, network, indices) for title, indices in chosen.items() if indices},
    ).write(out / REPORT_FOLDER)
    trainer.log.say(f"report: {page}")


def _grid(trainer: Trainer, network: SegmentationNetwork, indices: Sequence[int]) -> UInt8Array:
    return sample_grid(
        network,
        trainer.data.val,
        indices,
        architecture=ARCHITECTURES[trainer.config.network.architecture],
        palette=trainer.data.spec.palette,
        compute=trainer.config.compute,
    )
