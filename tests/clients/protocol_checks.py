"""What every client of the Open Inference Protocol must see; run in the client's own environment.

The scripts beside this file are told of a started service by a folder, and end with a line ``ok NUMBER`` that
says how many checks passed. They know nothing of the service's code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MODEL = "pooling"
MANY = 16
TOO_MANY = 65


@dataclass(frozen=True)
class Site:
    """Where a service listens, and what it is asked.

    Attributes:
        http: ``HOST:PORT``.
        grpc: ``HOST:PORT``.
        admin: ``HOST:PORT``.
        token: of the admin port.
        picture: a JPEG file.
        pixels_HW3: of the same picture, as the service reads it.
        labels_HW: that the service's own route answers for the file.
    """

    http: str
    grpc: str
    admin: str
    token: str
    picture: bytes
    pixels_HW3: np.ndarray
    labels_HW: np.ndarray


def described_site() -> Site:
    """Read what the folder ``$CLIENT_SITE`` says; the command line belongs to KServe's package."""
    folder = Path(os.environ["CLIENT_SITE"])
    return Site(
        **json.loads((folder / "site.json").read_text()),
        picture=(folder / "picture.jpg").read_bytes(),
        pixels_HW3=np.load(folder / "pixels.npy"),
        labels_HW=np.load(folder / "labels.npy"),
    )


class Checks:
    """Counts what held."""

    def __init__(self) -> None:
        self.passed = 0

    def equal(self, found: object, expected: object) -> None:
        """Compare two values, arrays included."""
        same = np.array_equal(found, expected) if isinstance(found, np.ndarray) else found == expected
        self.true(same, f"{found!r} is not {expected!r}")

    def true(self, condition: object, message: str = "it does not hold") -> None:
        """Expect a condition."""
        assert condition, message
        self.passed += 1

    def refused(self, call: Callable[[], object], kind: type[BaseException], words: str) -> None:
        """Expect the client's own exception with the service's text."""
        try:
            call()
        except kind as error:
            self.said(error, words)
        else:
            raise AssertionError(f"not refused: {words}")

    def said(self, error: BaseException, words: str) -> None:
        """Expect the service's text in an exception."""
        details = getattr(error, "details", lambda: "")
        text = f"{error} {details() if callable(details) else details}"
        self.true(words in text, f"{text!r} does not say {words!r}")

    def done(self) -> None:
        """Print the result."""
        print(f"ok {self.passed}")


def is_jpeg(data: bytes) -> bool:
    """Return whether bytes begin as a JPEG file."""
    return data[:2] == b"\xff\xd8"
