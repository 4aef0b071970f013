"""LitServe in front of the same graph, the same decoding and the same PNG as the service.

    python benchmarks/peers/litserve_server.py FOLDER_OF_AN_ARTIFACT PRECISION PORT

As LitServe's documentation has it: one worker process, the picture as a multipart file, everything of a
request in ``decode_request``, ``predict`` and ``encode_response``. The answer is that of the service, byte
for byte.
"""

# No annotations from the future: LitServe looks at the type of ``request``.
import sys
from pathlib import Path
from typing import Any

import litserve
from fastapi import Response, UploadFile

from model.artifacts.artifact import Artifact, read_artifact
from model.decoding.decode import labels
from model.labels import LabelMap, UInt8Array
from model.pictures.image import decode_image
from model.pictures.preprocess import PreparedImage
from service.core.device.engine import EngineOptions, Precision
from service.core.pictures.codec import encode_palette_png
from service.engines.openvino import build


class Segmentation(litserve.LitAPI):
    """One model of one artifact.

    Args:
        folder: of the artifact.
        precision: to compute in.
    """

    def __init__(self, folder: Path, precision: Precision) -> None:
        super().__init__()
        self._folder = folder
        self._precision = precision

    def setup(self, device: str) -> None:  # noqa: ARG002 - the worker's process begins here
        """Load the model."""
        self._artifact: Artifact = read_artifact(self._folder)
        options = EngineOptions("cpu", self._precision, Path.home() / ".cache" / "bisenet")
        self._engine = build(self._artifact, options)

    def decode_request(self, request: UploadFile) -> PreparedImage:
        """Read the picture."""
        return self._artifact.manifest.preprocess.prepare(decode_image(request.file.read()))

    def predict(self, prepared: PreparedImage) -> UInt8Array:
        """Return labels_HW."""
        manifest = self._artifact.manifest
        return labels(
            self._engine.infer(prepared.pixels_HW3[None])[0],
            upsample=manifest.upsample,
            stride=manifest.stride,
            padded=prepared.padded,
            content=prepared.content,
            original=prepared.original,
        )

    def encode_response(self, labels_HW: UInt8Array) -> Any:
        """Return the palette PNG."""
        label_map = LabelMap(labels_HW, self._artifact.manifest.palette)
        return Response(encode_palette_png(label_map), media_type="image/png")


def main() -> None:
    """Serve until the process is ended."""
    folder, precision, port = sys.argv[1:]
    api = Segmentation(Path(folder), precision)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
