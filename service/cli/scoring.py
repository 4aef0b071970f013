"""One model, one split, one protocol: pictures are read, run and counted side by side, in three threads.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

from model import execution
from model.dataset import LabeledImages
from model.errors import DatasetError, EvaluationError
from model.evaluation import EvaluationContext, EvaluationReport, Evaluator, ScoredImage, SkippedImage
from model.execution import PlanScores, label, score
from model.labels import UInt8Array
from model.manifest import ModelManifest, ModelVersion
from model.preprocess import size_of
from model.protocols import Protocol, make_plan
from model.report import ShownImage
from service.assembly import engine_options
from service.cli.local import open_artifact
from service.core.cores import usable_cores
from service.core.engine import InferenceEngine, private_folder
from service.engines import engine_builder
from service.machine import this_machine
from service.settings import Settings

_READ_AHEAD = 2
"""Pictures that are read while one is in the network."""

_Pair = tuple[UInt8Array, UInt8Array]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model on an engine, ready to be scored.

    Attributes:
        version: of the model.
        manifest: of the model.
        engine: that runs it.
        rows: threads that share the rows of what is done beside the engine.
    """

    version: ModelVersion
    manifest: ModelManifest
    engine: InferenceEngine
    rows: Executor

    def scores(self, image_HW3: UInt8Array, protocol: Protocol) -> PlanScores:
        """Run the network on a picture as the protocol says."""
        plan = make_plan(protocol, size_of(image_HW3))
        return score(image_HW3, plan, self.engine.infer, self.manifest, executor=self.rows)

    def labels(self, scores: PlanScores) -> UInt8Array:
        """Return labels_HW of a picture."""
        return label(scores, self.manifest, executor=self.rows)


@contextmanager
def open_candidate(settings: Settings) -> Iterator[Candidate]:
    """Build the engine of the first model of the settings.

    Raises:
        ModelError: the model is not there, or must not be used.
        EngineUnavailableError: this machine cannot run the engine.
    """
    version, artifact = open_artifact(settings)
    options = engine_options(settings)
    execution.warm_up(private_folder(options.cache_folder / "numba"))
    engine = engine_builder(settings.models.engine, options.device)(artifact, options)
    with closing(engine), ThreadPoolExecutor(usable_cores(), thread_name_prefix="rows") as rows:
        yield Candidate(version, artifact.manifest, engine, rows)


def evaluate_split(
    candidate: Candidate,
    pictures: LabeledImages,
    protocol: Protocol,
    *,
    command: str,
    skip_broken: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> EvaluationReport:
    """Score a model on every picture of a split.

    While the network runs on one picture, the next ones are read and the last one is counted.

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
    candidate: Candidate,
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
        guess_HW = candidate.labels(candidate.scores(image_HW3, protocol))
        miou = one.matrix(report.palette.num_classes).miou
        shown.append(ShownImage(one.name, miou or 0.0, image_HW3, truth_HW, guess_HW))
    return tuple(shown)


def _outcomes(
    candidate: Candidate, pictures: LabeledImages, protocol: Protocol, *, skip_broken: bool
) -> Iterator[ScoredImage | SkippedImage]:
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "count") as counter:
        counting: deque[Future[ScoredImage]] = deque()
        for index, reading in enumerate(_read_ahead(pictures, reader)):
            try:
                image_HW3, truth_HW = reading.result()
            except DatasetError as error:
                if not skip_broken:
                    raise
                yield SkippedImage(index, pictures.name(index), str(error))
                continue
            scores = candidate.scores(image_HW3, protocol)
            counting.append(counter.submit(_count, candidate, pictures, index, scores, truth_HW))
            if len(counting) > 1:
                yield counting.popleft().result()
        yield from (future.result() for future in counting)


def _read_ahead(pictures: LabeledImages, reader: Executor) -> Iterator[Future[_Pair]]:
    reading: deque[Future[_Pair]] = deque()
    for index in range(len(pictures)):
        reading.append(reader.submit(pictures.__getitem__, index))
        if len(reading) > _READ_AHEAD:
            yield reading.popleft()
    yield from reading


def _count(
    candidate: Candidate, pictures: LabeledImages, index: int, scores: PlanScores, truth_HW: UInt8Array
) -> ScoredImage:
    guess_HW = candidate.labels(scores)
    return ScoredImage.of(index, pictures.name(index), truth_HW, guess_HW, pictures.spec.palette)


def _check_classes(candidate: Candidate, pictures: LabeledImages) -> None:
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
    candidate: Candidate,
    pictures: LabeledImages,
    protocol: Protocol,
    fingerprint: str | None,
    command: str,
) -> EvaluationContext:
    engine, machine = candidate.engine.info, this_machine()
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
