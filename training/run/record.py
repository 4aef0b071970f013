"""A run as its log tells it: curves, state, duration, samples. Nothing here needs torch."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from training.errors import RunNotFoundError

LOG_FILE = "log.jsonl"
SAMPLE_FOLDER = "samples"

Event = Mapping[str, Any]

_CURVES = {
    "step": (
        ("loss", "loss"),
        ("learning rate", "lr"),
        ("images per second", "images_per_s"),
        ("data wait", "data_wait"),
    ),
    "validation": (("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy"), ("validation loss", "loss")),
}


@dataclass(frozen=True)
class Curve:
    """A number over the steps of a run.

    Attributes:
        name: of the number.
        points: step and value, steps rising; all finite.
    """

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Sample:
    """A picture that a run has written beside its log.

    Attributes:
        name: name of the picture in the data set.
        miou: mIoU of this picture alone; None where it has none.
        files: what it shows -> name of the file in the folder of the samples.
    """

    name: str
    miou: float | None
    files: Mapping[str, str]


@dataclass(frozen=True)
class Best:
    """The validation with the highest mIoU.

    Attributes:
        step: finished steps at that time.
        miou: 0..1.
        iou: IoU of each class, 0..1; None for a class that does not occur.
    """

    step: int
    miou: float
    iou: Mapping[str, float | None]


@dataclass(frozen=True)
class RunRecord:
    """A run as its log tells it; logs of older versions lack some of it.

    Attributes:
        name: name of the run: of its folder.
        events: the log, oldest first.
    """

    name: str
    events: Sequence[Event]

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read the log of a run.

        Args:
            folder: of the run.

        Raises:
            RunNotFoundError: there is no log in the folder.
        """
        return cls(folder.resolve().name, read_events(folder / LOG_FILE))

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The curves of the run by their names."""
        return {curve.name: curve for curve in curves(self.events)}

    @cached_property
    def class_curves(self) -> list[Curve]:
        """The IoU of each class over the validations, in the order of the classes."""
        return _merged(
            (name, event, value)
            for event in self._all("validation")
            for name, value in event.get("iou", {}).items()
        )

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the last start."""
        return dict(self._last("start").get("config", {}))

    @property
    def command(self) -> str:
        """The command line of the last start."""
        return str(self._last("start").get("command", ""))

    @property
    def code(self) -> str:
        """The version of the code at the last start."""
        return str(self._last("start").get("code", ""))

    @property
    def hardware(self) -> str:
        """The device and its machine in words; empty in logs of older versions."""
        return str(self._last("start").get("hardware", ""))

    @property
    def picture_counts(self) -> dict[str, int]:
        """Number of pictures by their use: training, validation; empty in logs of older versions."""
        return dict(self._last("start").get("pictures", {}))

    @property
    def classes(self) -> dict[str, tuple[int, int, int]]:
        """Name -> colour of each class; empty in logs of older versions."""
        return {name: tuple(color) for name, color in self._last("start").get("classes", {}).items()}

    @property
    def first_weights(self) -> str:
        """The weights that the run began with; empty = random ones."""
        return str(self._last("finetune").get("origin", ""))

    @property
    def started(self) -> dt.datetime | None:
        """The time of the first start; None in an empty log."""
        return _time(self.events[0]) if self.events else None

    @property
    def last_entry(self) -> dt.datetime | None:
        """The time of the last event; None in an empty log."""
        return _time(self.events[-1]) if self.events else None

    @property
    def duration_s(self) -> float:
        """Time of all parts of the run, from each start to its last event, in seconds."""
        total, began_s, last_s = 0.0, None, 0.0
        for event in self.events:
            now_s = float(event.get("time_s", 0.0))
            if event.get("event") == "start":
                total += 0.0 if began_s is None else last_s - began_s
                began_s = now_s
            last_s = now_s
        return total + (0.0 if began_s is None else last_s - began_s)

    @property
    def step(self) -> int:
        """Finished steps, as far as they were reported."""
        return int(self._last_of(("step", "resume", "validation")).get("step", 0))

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None where the log does not say."""
        stop = self._last("early_stop").get("step")
        chosen = self._last("budget").get("total_steps")
        configured = self.config.get("schedule", {}).get("steps")
        found = next((one for one in (stop, chosen, configured) if one is not None), None)
        return None if found is None else int(found)

    @property
    def is_finished(self) -> bool:
        """Whether the last start of the run wrote its artifact."""
        return self._last_of(("start", "artifact")).get("event") == "artifact"

    @property
    def remaining_s(self) -> float | None:
        """Time until the last step at the last measured rate, in seconds; None where it is unknown."""
        rate, total = self._last("step").get("images_per_s"), self.total_steps
        batch_size = self.config.get("schedule", {}).get("batch_size")
        if not rate or not batch_size or total is None:
            return None
        return float(max(0, total - self.step) * batch_size / rate)

    @property
    def best(self) -> Best | None:
        """The validation with the highest mIoU; None before the first one."""
        scored = [event for event in self._all("validation") if event.get("miou") is not None]
        if not scored:
            return None
        found = max(scored, key=lambda event: float(event["miou"]))
        return Best(int(found["step"]), float(found["miou"]), dict(found.get("iou", {})))

    @property
    def samples(self) -> tuple[int, tuple[Sample, ...]]:
        """The step and the pictures of the last samples; 0 and none before the first ones."""
        return self._pictures("samples")

    @property
    def crops(self) -> tuple[Sample, ...]:
        """Crops that the first step learned from."""
        return self._pictures("crops")[1]

    def _pictures(self, event: str) -> tuple[int, tuple[Sample, ...]]:
        found = self._last(event)
        samples = (Sample(one["name"], one.get("miou"), one["files"]) for one in found.get("pictures", []))
        return int(found.get("step", 0)), tuple(samples)

    def _all(self, name: str) -> Iterator[Event]:
        return (event for event in self.events if event.get("event") == name)

    def _last(self, name: str) -> Event:
        return self._last_of((name,))

    def _last_of(self, names: Sequence[str]) -> Event:
        return next((event for event in reversed(self.events) if event.get("event") in names), {})


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the log of a run; an incomplete line of a killed process is left out.

    Raises:
        RunNotFoundError: there is no such file.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise RunNotFoundError(
            f"{path.parent} holds no run: {path.name} cannot be read ({error.strerror});"
            " name the folder that --out of bisenet train named"
        ) from error
    return [event for event in map(_parsed, lines) if event]


def curves(events: Iterable[Event]) -> list[Curve]:
    """Return the curves of a run.

    A resumed run may take some steps again; the later value counts.
    """
    return _merged(
        (name, event, event.get(key))
        for event in events
        for name, key in _CURVES.get(event.get("event", ""), ())
    )


def _merged(values: Iterable[tuple[str, Event, object]]) -> list[Curve]:
    found: dict[str, dict[int, float]] = {}
    for name, event, value in values:
        if isinstance(value, int | float) and math.isfinite(value):
            found.setdefault(name, {})[int(event["step"])] = float(value)
    return [Curve(name, tuple(sorted(points.items()))) for name, points in found.items()]


def _parsed(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return event if isinstance(event, dict) else {}


def _time(event: Event) -> dt.datetime | None:
    time_s = event.get("time_s")
    return None if time_s is None else dt.datetime.fromtimestamp(float(time_s), dt.UTC)
