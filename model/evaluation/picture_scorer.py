"""The evaluation loop: labelled pictures go in, the counts of each come out.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Protocol as Interface

from model.artifacts.manifest import ModelManifest
from model.datasets.dataset import LabeledImages
from model.errors import DatasetError, EvaluationError
from model.evaluation.evaluation import ScoredImage, SkippedImage
from model.evaluation.metrics import ConfusionMatrix
from model.evaluation.network_passes import Infer, label, score
from model.evaluation.protocols import Protocol, make_plan
from model.evaluation.report import ShownImage
from model.labels import ClassPalette, UInt8Array
from model.pictures.preprocess import size_of

Outcome = ScoredImage | SkippedImage


class LabeledPictures(Interface):
    """Pictures with their labels, such as ``model.datasets.dataset.LabeledImages``."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """Return image_HW3 and label_HW: class ids, or the palette's ignore id."""
        ...


class PictureScorer:
    """Scores pictures with one or more engines of one model. Safe to use from several threads.

    Args:
        manifest: of the model.
        protocol: how pictures are evaluated.
        palette: classes and ignore id of the labels.
        infers: run the network, one picture at a time each.
    """

    def __init__(
        self, manifest: ModelManifest, protocol: Protocol, palette: ClassPalette, infers: Sequence[Infer]
    ) -> None:
        self._manifest = manifest
        self._protocol = protocol
        self._palette = palette
        self._workers = len(infers) + 1  # one picture more than engines is read or counted meanwhile
        self._free: SimpleQueue[Infer] = SimpleQueue()
        for infer in infers:
            self._free.put(infer)

    def labels(self, image_HW3: UInt8Array) -> UInt8Array:
        """Return labels_HW, uint8; waits for a free engine, and computes the rest in the calling thread.

        Args:
            image_HW3: uint8 RGB of any size.

        Raises:
            ModelOutputError: the network returns scores that are not finite, or of another shape.
        """
        plan = make_plan(self._protocol, size_of(image_HW3))
        infer = self._free.get()
        try:
            scores = score(image_HW3, plan, infer, self._manifest)
        finally:
            self._free.put(infer)
        return label(scores, self._manifest)

    def score(
        self,
        pictures: LabeledPictures,
        indices: Iterable[int],
        *,
        executor: Executor | None = None,
        name: Callable[[int], str] = str,
        reason: Callable[[DatasetError], str] | None = None,
    ) -> Iterator[Outcome]:
        """Yield the counts of each picture, in the order of ``indices``.

        Args:
            pictures: with labels.
            indices: of the pictures to score.
            executor: its threads score a few pictures ahead; None: the calling thread scores one by one.
            name: of the picture in reports.
            reason: turns the error of a broken pair into the text of the report, and the pair is skipped;
                None: the error is raised.

        Raises:
            DatasetError: a file is broken, and ``reason`` is None.
            ModelOutputError: the network returns scores that are not finite, or of another shape.
        """

        def outcome(index: int) -> Outcome:
            try:
                image_HW3, truth_HW = pictures[index]
            except DatasetError as error:
                if reason is None:
                    raise
                return SkippedImage(index, name(index), reason(error))
            return self._scored(index, name(index), image_HW3, truth_HW)

        if executor is None:
            return map(outcome, indices)
        return _in_order(executor, outcome, indices, ahead=2 * self._workers)

    def total(self, pictures: LabeledPictures, indices: Iterable[int]) -> ConfusionMatrix:
        """Return the counts of all pictures together; the calling thread scores one by one.

        Raises:
            DatasetError: a file is broken.
            ModelOutputError: the network returns scores that are not finite, or of another shape.
        """
        num_classes = self._palette.num_classes
        outcomes = (self._scored(index, str(index), *pictures[index]) for index in indices)
        return sum((one.matrix(num_classes) for one in outcomes), ConfusionMatrix.zeros(num_classes))

    def show(self, pictures: LabeledPictures, index: int, name: str) -> ShownImage:
        """Run a picture once more, for people to look at.

        Args:
            pictures: with labels.
            index: of the picture.
            name: of the picture in the report.
        """
        image_HW3, truth_HW = pictures[index]
        guess_HW = self.labels(image_HW3)
        scored = ScoredImage.of(index, name, truth_HW, guess_HW, self._palette)
        miou = scored.matrix(self._palette.num_classes).miou
        return ShownImage(name, miou or 0.0, image_HW3, truth_HW, guess_HW)

    def _scored(self, index: int, name: str, image_HW3: UInt8Array, truth_HW: UInt8Array) -> ScoredImage:
        return ScoredImage.of(index, name, truth_HW, self.labels(image_HW3), self._palette)


def check_same_classes(model: str, known: ClassPalette, dataset: str, labelled: ClassPalette) -> None:
    """Refuse labels of other classes than the model's.

    Args:
        model: ``name@version``, for the message.
        known: the model's classes.
        dataset: name of the data set, for the message.
        labelled: its classes.

    Raises:
        EvaluationError: they have another number of classes, or a class of another name.
    """
    ours, theirs = known.names, labelled.names
    if len(ours) != len(theirs):
        raise EvaluationError(f"{model} has {len(ours)} classes, {dataset} has {len(theirs)}")
    for k, (our_name, their_name) in enumerate(zip(ours, theirs, strict=True)):
        if our_name != their_name:
            raise EvaluationError(f"class {k} of {model} is {our_name!r}, of {dataset} {their_name!r}")


def fingerprint_of(pictures: LabeledImages, *, skip_broken: bool) -> str | None:
    """Return the fingerprint of a split; None where files are missing and may be.

    Raises:
        DatasetError: a file is missing, and ``skip_broken`` is not set.
    """
    try:
        return pictures.fingerprint
    except DatasetError:
        if not skip_broken:
            raise
        return None


def _in_order(
    executor: Executor, work: Callable[[int], Outcome], indices: Iterable[int], *, ahead: int
) -> Iterator[Outcome]:
    """Yield results in order, with so many calls submitted ahead: an error cancels these, and no more."""
    waiting: deque[Future[Outcome]] = deque()
    try:
        for index in indices:
            waiting.append(executor.submit(work, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
