"""One model, one split, one protocol: as many pictures side by side as there are engines.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

from model.artifacts.manifest import ModelManifest, ModelVersion
from model.datasets.dataset import LabeledImages
from model.errors import DatasetError, EvaluationError
from model.evaluation import network_passes
from model.evaluation.evaluation import (
    EvaluationContext,
    EvaluationReport,
    Evaluator,
    ScoredImage,
    SkippedImage,
)
from model.evaluation.network_passes import label, score
from model.evaluation.protocols import Protocol, make_plan
from model.evaluation.report import ShownImage
from model.labels import UInt8Array
from model.pictures.preprocess import size_of
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
        version: of the model.
        manifest: of the model.
        engines: alike; each runs one picture at a time.
    """

    version: ModelVersion
    manifest: ModelManifest
    engines: tuple[InferenceEngine, ...]

    def labels(self, image_HW3: UInt8Array, protocol: Protocol, engine: InferenceEngine) -> UInt8Array:
        """Return labels_HW of a picture, as the protocol says; all in the calling thread but the engine."""
        plan = make_plan(protocol, size_of(image_HW3))
        return label(score(image_HW3, plan, engine.infer, self.manifest), self.manifest)


@contextmanager
def open_evaluated_model(settings: Settings) -> Iterator[EvaluatedModel]:
    """Build engines for the first model of the settings: on a CPU one of one thread for each core.

    Threads that share a picture wait for each other, and for whoever reads the next one: with an engine a
    core nobody waits. On CamVid that is 1.2 times as many pictures a second (bf16, two cores).

    Raises:
        ModelError: the model is not there, or must not be used.
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
    return [dataclasses.replace(options, threads=1)] * usable_cores()


def evaluate_split(
    candidate: EvaluatedModel,
    pictures: LabeledImages,
    protocol: Protocol,
    *,
    command: str,
    skip_broken: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> EvaluationReport:
    """Score a model on every picture of a split.

    Args:
        candidate: what is scored.
        pictures: with labels.
        protocol: how.
        command: what was typed.
        skip_broken: leave pairs out whose files are broken; the report counts them.
        advance: called once a picture.

    Raises:
        DatasetError: a file is broken; the message names it.
        EvaluationError: the model has other classes, or every pair is broken.
        ModelOutputError: the model produced what are no scores.
    """
    _check_classes(candidate, pictures)
    context = _context(
        candidate, pictures, protocol, _fingerprint(pictures, skip_broken=skip_broken), command
    )
    evaluator = Evaluator(pictures.spec.palette, total=len(pictures))
    for outcome in _outcomes(candidate, pictures, protocol, skip_broken=skip_broken):
        if isinstance(outcome, SkippedImage):
            evaluator.skip(outcome)
        else:
            evaluator.add(outcome)
        advance()
    return evaluator.report(context)


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
        candidate: that the report is about.
        pictures: that it was scored on.
        protocol: how.
        report: about both.
        count: how many.
    """
    shown = []
    for one in report.worst(count):
        image_HW3, truth_HW = pictures[one.index]
        guess_HW = candidate.labels(image_HW3, protocol, candidate.engines[0])
        miou = one.matrix(report.palette.num_classes).miou
        shown.append(ShownImage(one.name, miou or 0.0, image_HW3, truth_HW, guess_HW))
    return tuple(shown)


def _outcomes(
    candidate: EvaluatedModel, pictures: LabeledImages, protocol: Protocol, *, skip_broken: bool
) -> Iterator[ScoredImage | SkippedImage]:
    """Score the pictures, one in each engine and as many waiting; in their order."""
    free: SimpleQueue[InferenceEngine] = SimpleQueue()
    for engine in candidate.engines:
        free.put(engine)

    def scored(index: int) -> ScoredImage:
        image_HW3, truth_HW = pictures[index]
        engine = free.get()
        try:
            guess_HW = candidate.labels(image_HW3, protocol, engine)
        finally:
            free.put(engine)
        return ScoredImage.of(index, pictures.name(index), truth_HW, guess_HW, pictures.spec.palette)

    with ThreadPoolExecutor(len(candidate.engines), "score") as workers:
        for index, future in enumerate(_ahead(workers, scored, len(pictures), 2 * len(candidate.engines))):
            try:
                yield future.result()
            except DatasetError as error:
                if not skip_broken:
                    raise
                yield SkippedImage(index, pictures.name(index), str(error))


def _ahead(
    workers: Executor, work: Callable[[int], ScoredImage], count: int, depth: int
) -> Iterator[Future[ScoredImage]]:
    """Submit a few more pictures than are waited for; not all, for an error ends the evaluation."""
    waiting: deque[Future[ScoredImage]] = deque()
    for index in range(count):
        waiting.append(workers.submit(work, index))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def _check_classes(candidate: EvaluatedModel, pictures: LabeledImages) -> None:
    known, labelled = candidate.manifest.palette.names, pictures.spec.palette.names
    if known == labelled:
        return
    if len(known) != len(labelled):
        raise EvaluationError(f"{candidate.version} has {len(known)} classes, the labels {len(labelled)}")
    k = next(k for k, pair in enumerate(zip(known, labelled, strict=True)) if pair[0] != pair[1])
    raise EvaluationError(f"class {k} of {candidate.version} is {known[k]!r}, of the labels {labelled[k]!r}")


def _fingerprint(pictures: LabeledImages, *, skip_broken: bool) -> str | None:
    try:
        return pictures.fingerprint
    except DatasetError:
        if skip_broken:
            return None
        raise


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
