"""The public names stay: a removed or renamed one needs a new major version and a line in the changelog."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC = {
    "service.client.http_client": "AsyncHttpClient HttpClient",
    "service.client.grpc_client": "AsyncGrpcClient FrameCall GrpcClient",
    "service.client.reconnecting_stream": "FrameFeed ReconnectingStream StreamOptions",
    "service.client.cameras": (
        "CameraFeed CameraFrame CameraOptions FilmWriter VideoSource camera_frames source_frames source_name"
    ),
    "service.client.answers": (
        "ClassInfo Detail DropReason Dropped Failed Frame FramePolicy GoingAway Interrupted Mask MaskForm "
        "Model ModelChanged Opened Result Segmentation StreamEvent"
    ),
    "service.client.errors": "ClientError ProtocolError RefusedError SourceError UnreachableError",
    "model.artifacts.registry": "ModelRegistry",
    "model.artifacts.artifact": "Artifact Golden read_artifact",
    "model.artifacts.manifest": "ModelManifest ModelReference ModelVersion",
    "model.labels": "ClassPalette LabelMap",
    "model.pictures.image": "ImageHeader ImageLimits decode_image peek_header",
    "model.pictures.preprocess": "ImageSize PreparedImage PreprocessSpec",
    "model.datasets.dataset": "DatasetSpec LabeledImages LabeledPicture",
    "model.evaluation.metrics": "ConfusionMatrix confusion_matrix",
    "model.evaluation.intervals": "Interval Intervals bootstrap paired_bootstrap",
    "model.evaluation.protocols": "Protocol find_protocol",
    "model.evaluation.evaluation": "EvaluationContext EvaluationReport Evaluator ScoredImage SkippedImage",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_module_exports_the_stated_names(module: str) -> None:
    exported = importlib.import_module(module)
    assert sorted(exported.__all__) == sorted(PUBLIC[module].split())
    for name in exported.__all__:
        assert hasattr(exported, name)


def test_the_reference_lists_every_public_module() -> None:
    page = (ROOT / "docs/reference/python-api.md").read_text("utf-8")
    listed = [line.strip("# `") for line in page.splitlines() if line.startswith("### ")]
    assert listed == list(PUBLIC)


def test_the_public_modules_need_no_torch_and_no_web_framework() -> None:
    modules = ", ".join(PUBLIC)
    program = f"import sys, {modules}; print({{'torch', 'fastapi', 'uvicorn', 'dbos'}} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "set()"
