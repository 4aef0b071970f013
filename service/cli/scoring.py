"""Evaluation on the command line: one model, one split, one protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from model.artifacts.manifest import ModelManifest, ModelVersion
from model.datasets.dataset import LabeledImages
from model.evaluation import network_passes
from model.evaluation.evaluation import EvaluationContext, EvaluationReport, Evaluator
from model.evaluation.picture_scorer import PictureScorer, check_same_classes, fingerprint_of
from model.evaluation.protocols import Protocol
from model.evaluation.report import ShownImage
from model.quotas import usable_cores
from service.assembly import engine_options
from service.cli.local import choose_model
from service.core.device.engine import EngineOptions, EngineTuning, InferenceEngine, private_folder
from service.engines import engine_builder
from service.machine import this_machine
from service.settings import Settings


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A model on its engines, ready to be scored.

    Attributes:
        version: version of the model.
        manifest: its manifest.
        engines: equal engines; each runs one picture at a time.
    """

    version: ModelVersion
    manifest: ModelManifest
    engines: tuple[InferenceEngine, ...]

    def scorer(self, pictures: LabeledImages, protocol: Protocol) -> PictureScorer:
        """Return a scorer of pictures of a data set by a protocol."""
        infers = [engine.infer for engine in self.engines]
        return PictureScorer(self.manifest, protocol, pictures.spec.palette, infers)


@contextmanager
def open_evaluated_model(settings: Settings) -> Iterator[EvaluatedModel]:
    """Build engines for the first model of the settings: on a CPU one engine of one thread for each core.

    Threads that share a picture wait for each other. With an engine a core CamVid has 1.2 times as many
    pictures a second (bf16, two cores).

    Raises:
        ModelError: there is no such model, or it is damaged.
        EngineUnavailableError: this machine cannot run the engine.
    """
    model = choose_model(settings)
    options = engine_options(settings).tuned(EngineTuning(model.tuning.precision))
    network_passes.warm_up(private_folder(options.cache_folder / "numba"))
    build = partial(engine_builder(settings.models.engine, options.device), model.artifact)
    with ExitStack() as stack:
        engines = []
        for one in _side_by_side(options):
            engines.append(build(one))
            stack.callback(engines[-1].close)
        yield EvaluatedModel(model.version, model.artifact.manifest, tuple(engines))


def _side_by_side(options: EngineOptions) -> list[EngineOptions]:
    if options.device != "cpu" or options.threads is not None:
        return [options]
    return [replace(options, threads=1)] * usable_cores()


def evaluate_split(
    candidate: EvaluatedModel,
    pictures: LabeledImages,
    protocol: Protocol,
    *,
    command: str,
    absent_as_zero: bool = False,
    skip_broken: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> EvaluationReport:
    """Score a model on every picture of a split.

    Args:
        candidate: the model and its engines.
        pictures: with labels.
        protocol: how pictures are evaluated.
        command: the command line, for the report.
        absent_as_zero: classes that occur nowhere count in the mean (``ConfusionMatrix``).
        skip_broken: leave pairs out whose files are broken; the report counts them.
        advance: called once a picture.

    Raises:
        DatasetError: a file is broken; the message names it.
        EvaluationError: the model has other classes, or every pair is broken.
        ModelOutputError: the model returns scores that are not finite, or of another shape.
    """
    spec = pictures.spec
    check_same_classes(str(candidate.version), candidate.manifest.palette, spec.name, spec.palette)
    fingerprint = fingerprint_of(pictures, skip_broken=skip_broken)
    evaluator = Evaluator(spec.palette, total=len(pictures))
    with ThreadPoolExecutor(len(candidate.engines) + 1, "score") as threads:
        outcomes = candidate.scorer(pictures, protocol).score(
            pictures,
            range(len(pictures)),
            executor=threads,
            name=pictures.name,
            reason=str if skip_broken else None,
        )
        for outcome in outcomes:
            evaluator.add(outcome)
            advance()
    context = _context(candidate, pictures, protocol, fingerprint, command)
    return evaluator.report(replace(context, absent_as_zero=absent_as_zero))


def show_worst(
    candidate: EvaluatedModel,
    pictures: LabeledImages,
    protocol: Protocol,
    report: EvaluationReport,
    *,
    count: int,
) -> tuple[ShownImage, ...]:
    """Run the worst pictures of a report once more, for people to look at.

    Args:
        candidate: the model of the report.
        pictures: of the report.
        protocol: of the report.
        report: of that model on these pictures.
        count: how many.
    """
    scorer = candidate.scorer(pictures, protocol)
    return tuple(scorer.show(pictures, one.index, one.name) for one in report.worst(count))


def _context(
    candidate: EvaluatedModel,
    pictures: LabeledImages,
    protocol: Protocol,
    fingerprint: str | None,
    command: str,
) -> EvaluationContext:
    engine, machine = candidate.engines[0].info, this_machine()
    return EvaluationContext(
        model=str(candidate.version),
        weights=candidate.manifest.digest,
        engine=engine.engine,
        device=engine.device,
        processor=machine.processor,
        precision=engine.precision,
        protocol=str(protocol),
        dataset=pictures.spec.name,
        split=pictures.split,
        data_fingerprint=fingerprint,
        versions=machine.versions,
        command=command,
    )
