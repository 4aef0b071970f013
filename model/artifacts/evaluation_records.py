"""Reports of evaluations beside the versions of a registry; written once.

Layout below the registry's URL::

    models/<name>/evaluations/<job>.json    the report and its time
    models/<name>/evaluations/<job>.html    the same for people; written first
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model.artifacts.layout import model_folder
from model.artifacts.manifest import ModelVersion, check_name
from model.artifacts.storage import Storage
from model.errors import EvaluationError, InvalidReferenceError, StorageError

_PATH = re.compile(r"models/[^/]+/evaluations/(?P<job>[^./][^/]*)\.json")


@dataclass(frozen=True)
class StoredEvaluation:
    """The summary of one evaluation.

    Attributes:
        job: id of the job.
        version: the evaluated version.
        dataset: name of the data set.
        split: name of the split.
        protocol: name of the protocol.
        precision: precision of the engine.
        miou: 0..1; None when no class occurred.
        images: number of scored pictures.
        digest: SHA-256 of the report.
        finished_at: UTC, ISO 8601.
        skipped: number of pictures that were left out because their files are broken.
    """

    job: str
    version: ModelVersion
    dataset: str
    split: str
    protocol: str
    precision: str
    miou: float | None
    images: int
    digest: str
    finished_at: str
    skipped: int = 0


class EvaluationStore:
    """The evaluations in a registry.

    Args:
        storage: of the registry.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def add(self, name: str, job: str, document: Mapping[str, Any], page: str) -> None:
        """Store a report; an older one of the job stays.

        Args:
            name: name of the model.
            job: id of the job.
            document: JSON values of the report, with those of ``StoredEvaluation``.
            page: the report as HTML.

        Raises:
            StorageError: the store failed.
        """
        self._storage.create(_path(name, job, "html"), page.encode())
        self._storage.create(_path(name, job, "json"), json.dumps(document).encode())

    def page(self, name: str, job: str) -> bytes | None:
        """Return a report as HTML; None when there is none.

        Raises:
            StorageError: the store failed.
        """
        return self._storage.read(_path(name, job, "html"))

    def document(self, name: str, job: str) -> bytes | None:
        """Return a report as JSON, or None when there is none.

        Raises:
            StorageError: the store failed.
        """
        return self._storage.read(_path(name, job, "json"))

    def of_model(self, name: str) -> list[StoredEvaluation]:
        """Return the evaluations of all versions of a model, the oldest first.

        Raises:
            StorageError: the store failed, or a report is damaged.
        """
        paths = [item.path for item in self._storage.objects(f"{model_folder(name)}/evaluations")]
        found = [self._read(path, match["job"]) for path in paths if (match := _PATH.fullmatch(path))]
        return sorted((one for one in found if one is not None), key=lambda one: (one.finished_at, one.job))

    def _read(self, path: str, job: str) -> StoredEvaluation | None:
        data = self._storage.read(path)
        if data is None:  # deleted meanwhile
            return None
        try:
            plain = json.loads(data)
            return StoredEvaluation(
                job=job,
                version=ModelVersion.parse(str(plain["model"])),
                dataset=plain["dataset"],
                split=plain["split"],
                protocol=plain["protocol_name"],
                precision=plain["precision"],
                miou=plain["scores"]["miou"],
                images=plain["images"],
                digest=plain["digest"],
                finished_at=plain["finished_at"],
                skipped=len(plain.get("skipped", ())),
            )
        except (InvalidReferenceError, KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{path} is no evaluation report: {error!r}") from error


REQUIREMENT = "dataset=NAME,protocol=NAME,min=0..1[,split=NAME][,precision=NAME][,skipped=N]"
"""Syntax of a requirement."""


@dataclass(frozen=True)
class Requirement:
    """A score that a version must have before it is promoted.

    Attributes:
        dataset: name of the data set.
        protocol: name of the protocol.
        minimum: lowest mIoU, 0..1.
        split: name of the split.
        precision: precision of the engine; None = any.
        skipped: largest number of pictures that were left out because their files are broken.
    """

    dataset: str
    protocol: str
    minimum: float
    split: str = "val"
    precision: str | None = None
    skipped: int = 0

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read a requirement of the syntax ``REQUIREMENT``.

        Raises:
            EvaluationError: the text has another syntax.
        """
        given = dict(part.partition("=")[::2] for part in text.split(","))
        try:
            requirement = cls(
                given.pop("dataset"),
                given.pop("protocol"),
                float(given.pop("min")),
                given.pop("split", "val"),
                given.pop("precision", None),
                int(given.pop("skipped", 0)),
            )
        except (KeyError, ValueError):
            given = {"": ""}
        if given or not 0 <= requirement.minimum <= 1 or requirement.skipped < 0:
            raise EvaluationError(f"not {REQUIREMENT}: {text!r}")
        return requirement

    def check(self, version: ModelVersion, evaluations: Iterable[StoredEvaluation]) -> StoredEvaluation:
        """Return the newest evaluation that fits, if it meets the requirement.

        Args:
            version: the version to promote.
            evaluations: evaluations of its model, the oldest first.

        Raises:
            EvaluationError: no evaluation fits, or the newest one has too low a score or left too many out.
        """
        fitting = [one for one in evaluations if one.version == version and self._fits(one)]
        what = f"{version} on {self.dataset} {self.split} by {self.protocol}"
        what += f" in {self.precision}" if self.precision else ""
        if not fitting:
            raise EvaluationError(f"{what} was not evaluated")
        newest = fitting[-1]
        if newest.skipped > self.skipped:
            raise EvaluationError(
                f"{what} was scored without {newest.skipped} broken pictures, and {self.skipped} may lack"
            )
        if newest.miou is None or newest.miou < self.minimum:
            raise EvaluationError(f"{what} has mIoU {newest.miou}, and {self.minimum} is required")
        return newest

    def _fits(self, one: StoredEvaluation) -> bool:
        is_fitting_precision = self.precision in (None, one.precision)
        place = (one.dataset, one.split, one.protocol)
        return is_fitting_precision and place == (self.dataset, self.split, self.protocol)


def _path(name: str, job: str, suffix: str) -> str:
    return f"{model_folder(name)}/evaluations/{check_name(job)}.{suffix}"
