"""The network in torch as it was trained, behind FastAPI: the most frequent way to deploy one.

    python benchmarks/peers/eager_server.py FOLDER_OF_AN_ARTIFACT PORT

Pillow reads and writes the pictures, torch up-samples the scores to the picture's size; one process, requests
in the threads that FastAPI gives to plain functions.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import safetensors.torch
import torch
import uvicorn
from fastapi import Body, FastAPI, Response
from PIL import Image
from torch.nn import functional

from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.manifest import WEIGHTS_FILE
from model.networks.segmentation_network import from_manifest


def create_app(artifact: Artifact) -> FastAPI:
    """Return the application."""
    app = FastAPI()
    network = from_manifest(artifact.manifest, safetensors.torch.load(artifact.read(WEIGHTS_FILE)))
    palette = [level for color in artifact.manifest.palette.colors for level in color]

    @app.post("/v1/segment")
    def segment(picture: Annotated[bytes, Body(media_type="image/jpeg")]) -> Response:
        image_HW3 = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        with torch.inference_mode():
            scores_NKhw = network(torch.from_numpy(image_HW3.copy())[None])
            scores_NKHW = functional.interpolate(scores_NKhw, size=image_HW3.shape[:2], mode="bilinear")
            labels_HW = scores_NKHW[0].argmax(0).to(torch.uint8).numpy()
        mask = Image.fromarray(labels_HW, "P")
        mask.putpalette(palette)
        stream = io.BytesIO()
        mask.save(stream, "PNG")
        return Response(stream.getvalue(), media_type="image/png")

    return app


def main() -> None:
    """Serve until the process is ended."""
    folder, port = sys.argv[1:]
    uvicorn.run(create_app(read_artifact(Path(folder))), port=int(port), log_level="error")


if __name__ == "__main__":
    main()
