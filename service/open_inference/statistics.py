"""What the protocol's statistics extension counts of each served version, for both transports."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from model.artifacts.manifest import ModelVersion
from service.open_inference.inference import PictureAnswer
from service.telemetry import Stage

Duration = Literal["success", "fail", "queue", "compute_input", "compute_infer", "compute_output"]

_STAGES: dict[Duration, tuple[Stage, ...]] = {
    "queue": ("queue",),
    "compute_input": ("decode", "preprocess"),
    "compute_infer": ("infer",),
    "compute_output": ("post", "encode"),
}
_NANOSECONDS = 1e9
_MILLISECONDS = 1e3
_NEVER = ("cache_hit", "cache_miss")
"""Part of the extension; there is no cache of answers."""


@dataclass
class _Sum:
    count: float = 0.0
    seconds: float = 0.0

    def add(self, seconds: float, *, count: float = 1.0) -> None:
        self.count += count
        self.seconds += seconds

    def document(self) -> dict[str, int]:
        return {"count": round(self.count), "ns": round(_NANOSECONDS * self.seconds)}


@dataclass
class _VersionStatistics:
    last_inference_s: float = 0.0
    pictures: int = 0
    executions: float = 0.0
    requests: defaultdict[Duration, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    batches: defaultdict[int, defaultdict[Duration, _Sum]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(_Sum))
    )


class InferenceStatistics:
    """Counts the requests of this protocol; those of the service's own interfaces are in its metrics.

    Belongs to one event loop. A request with several pictures counts once, with the means of their times.
    """

    def __init__(self) -> None:
        self._versions: defaultdict[ModelVersion, _VersionStatistics] = defaultdict(_VersionStatistics)

    def succeeded(self, version: ModelVersion, pictures: Sequence[PictureAnswer], duration_s: float) -> None:
        """Count an answered request.

        Args:
            version: answered.
            pictures: of the request.
            duration_s: from its head to its answer, in seconds.
        """
        known = self._versions[version]
        known.last_inference_s = time.time()
        known.pictures += len(pictures)
        known.requests["success"].add(duration_s)
        for picture in pictures:
            share = 1 / picture.batch_size  # of one execution
            known.executions += share
            for name in _STAGES:
                seconds = _seconds(picture, name)
                known.requests[name].add(seconds / len(pictures), count=1 / len(pictures))
                if name != "queue":
                    known.batches[picture.batch_size][name].add(share * seconds, count=share)

    def failed(self, version: ModelVersion, duration_s: float) -> None:
        """Count a refused or failed request."""
        self._versions[version].requests["fail"].add(duration_s)

    def document(self, version: ModelVersion) -> dict[str, Any]:
        """Return the statistics of a version with the extension's names; all 0 before its first request."""
        known = self._versions.get(version) or _VersionStatistics()
        names: tuple[Duration, ...] = ("success", "fail", *_STAGES)
        totals = {name: (known.requests.get(name) or _Sum()).document() for name in names}
        return {
            "name": version.name,
            "version": str(version.number),
            "last_inference": round(_MILLISECONDS * known.last_inference_s),
            "inference_count": known.pictures,
            "execution_count": round(known.executions),
            "inference_stats": {**totals, **{name: _Sum().document() for name in _NEVER}},
            "batch_stats": [
                {"batch_size": size, **{name: total.document() for name, total in sorted(sums.items())}}
                for size, sums in sorted(known.batches.items())
            ],
        }


def _seconds(picture: PictureAnswer, name: Duration) -> float:
    return sum(picture.stages_s[stage] for stage in _STAGES[name])
