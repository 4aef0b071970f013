"""Two evaluations of the same pictures side by side: differences and their confidence intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from model.errors import EvaluationError
from model.evaluation.evaluation import EvaluationReport
from model.evaluation.intervals import Interval, Intervals, paired_bootstrap


@dataclass(frozen=True)
class Difference:
    """The scores of one class in both reports.

    Attributes:
        name: name of the class, or ``mIoU``.
        first: IoU in the first report, 0..1; None where the class does not occur.
        second: IoU in the second report.
        interval: confidence interval of second minus first, over pictures.
    """

    name: str
    first: float | None
    second: float | None
    interval: Interval | None

    @property
    def change(self) -> float | None:
        """Second minus first; None where a score is missing."""
        return None if self.first is None or self.second is None else self.second - self.first


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two reports on the same pictures: of two versions, engines, precisions or protocols.

    Raises:
        EvaluationError: classes, pictures or the counting of absent classes differ.
    """

    first: EvaluationReport
    second: EvaluationReport

    def __post_init__(self) -> None:
        """Refuse reports that cannot be compared."""
        if self.first.palette.names != self.second.palette.names:
            raise EvaluationError("the two reports are of different classes")
        scored = [[image.index for image in report.images] for report in (self.first, self.second)]
        same_data = self.first.context.data_fingerprint == self.second.context.data_fingerprint
        if scored[0] != scored[1] or not same_data:
            raise EvaluationError("the two reports are of different pictures")
        if self.first.context.absent_as_zero != self.second.context.absent_as_zero:
            raise EvaluationError("one of the two reports counts absent classes as zero")

    @cached_property
    def _intervals(self) -> Intervals:
        return paired_bootstrap(
            self.first.tallies_N3K,
            self.second.tallies_N3K,
            absent_as_zero=self.first.context.absent_as_zero,
        )

    @property
    def miou(self) -> Difference:
        """The difference of the means."""
        first, second = self.first.matrix.miou, self.second.matrix.miou
        return Difference("mIoU", first, second, self._intervals.miou)

    @property
    def classes(self) -> tuple[Difference, ...]:
        """The difference of each class."""
        columns = (
            self.first.palette.names,
            self.first.matrix.iou,
            self.second.matrix.iou,
            self._intervals.iou,
        )
        return tuple(Difference(*row) for row in zip(*columns, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return both reports and the differences as plain JSON values."""
        return {
            "first": self.first.to_json(),
            "second": self.second.to_json(),
            "differences": [{**asdict(one), "change": one.change} for one in (self.miou, *self.classes)],
        }
