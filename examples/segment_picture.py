"""Sends one picture to the service over HTTP and writes its mask.

    python examples/segment_picture.py photo.jpg mask.png [--url http://127.0.0.1:8000]

It needs a running service (``bisenet serve``) and the extra ``client``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from service.client.answers import ClassInfo, Segmentation
from service.client.errors import ClientError
from service.client.http_client import HttpClient


def class_shares(answer: Segmentation, classes: tuple[ClassInfo, ...]) -> Iterator[tuple[str, float]]:
    """Yield the name of each class in a mask and its share of the pixels, 0..1, the largest first."""
    counts = np.bincount(answer.mask.labels_HW().reshape(-1), minlength=256)
    for info in sorted(classes, key=lambda info: -counts[info.id]):
        if counts[info.id]:
            yield info.name, counts[info.id] / counts.sum()


def main() -> None:
    """Segment the picture that the command line names."""
    parser = argparse.ArgumentParser(description="Send one picture to the service and write its mask.")
    parser.add_argument("picture", type=Path, help="a JPEG, PNG or WebP file")
    parser.add_argument("mask", type=Path, help="palette PNG to write: the value of a pixel is its class id")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    parser.add_argument("--key", help="API key, if the service asks for one")
    arguments = parser.parse_args()
    try:
        with HttpClient(arguments.url, key=arguments.key) as client:
            answer = client.segment(arguments.picture.read_bytes())
            classes = next(model.classes for model in client.models() if model.name == answer.model)
    except ClientError as error:
        raise SystemExit(f"error: {error}") from error
    arguments.mask.write_bytes(answer.mask.data)
    print(f"{answer.model}@{answer.version}: {answer.mask.width}x{answer.mask.height} pixels")
    for name, share in class_shares(answer, classes):
        print(f"{name:16} {share:6.1%}")


if __name__ == "__main__":
    main()
