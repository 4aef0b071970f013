from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import typer
from certificates import make_certificate, needs_openssl
from https_server import Answer, https_server
from PIL import Image
from published_programs import PUBLISHED, Program, narrowed, published_shapes, random_state
from torch.nn import functional
from typer.testing import CliRunner, Result

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from model.datasets.palettes import load_preset
from model.decoding.decode import labels
from model.networks.segmentation_network import SegmentationNetwork, build, deploy_state
from model.pictures.preprocess import ImageSize
from service.cli import import_model
from service.core.device.engine import EngineOptions
from service.engines import engine_builder

needs_lists = pytest.mark.skipif("BISENET_DATA_ROOT" not in os.environ, reason="needs BISENET_DATA_ROOT")
IMAGENET = ("0.485,0.456,0.406", "0.229,0.224,0.225")
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return what runs ``bisenet models import`` on an empty registry of its own."""
    app = typer.Typer()
    app.command("import")(import_model.import_model)
    environment = {
        "BISENET_REGISTRY": str(tmp_path / "registry"),
        "BISENET_MODELS__CACHE_FOLDER": str(tmp_path / "cache"),
    }

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return today's BiSeNetV2 with three classes, as safetensors."""
    random = build("bisenetv2", 3, {"head_channels": 8}, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    safetensors.torch.save_file(deploy_state(random), tmp_path / "v2.safetensors")
    return tmp_path / "v2.safetensors"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n", encoding="utf-8")
    return tmp_path / "classes.txt"


@pytest.mark.data
@needs_lists
@pytest.mark.usefixtures("cache_folder")
def test_an_old_checkpoint_becomes_a_version_that_both_engines_run_as_its_program_did(
    run: Run, classes: Path, tmp_path: Path
) -> None:
    shapes = narrowed(published_shapes(PUBLISHED["v2-g2"].list_name), num_classes=3, width=16)
    state = random_state(shapes)
    saved = {"epoch": 7, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
    torch.save(saved, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    described = (tmp_path / "old.pth", "--name", "old", "--classes", classes, "--preset", "cityscapes")
    result = run(*described, "--json")

    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["name"], report["version"], report["generation"]) == ("old", 1, "v2-g2")
    assert import_model.sentences(report).splitlines() == [
        "found v2-g2: BiSeNetV2 of 12cd095 to 9bb710f",
        "by head.conv_out.0.weight of (192, 16, 1, 1)",
        "auxiliary heads left behind: aux2, aux3, aux4, aux5_4",
        "3 classes, mean [0.3257, 0.369, 0.3223], std [0.2112, 0.2148, 0.2115]",
        f"SHA-256 of the file {hashlib.sha256((tmp_path / 'old.pth').read_bytes()).hexdigest()}",
        "published old@1",
    ]
    assert (report["classes"], report["upsample"]) == (3, "pixel_shuffle")
    assert report["dropped"] == ["aux2", "aux3", "aux4", "aux5_4"]
    artifact = ModelRegistry(tmp_path / "registry").open(ModelVersion("old", 1))
    assert artifact.manifest.palette.names == ("sky", "road", "car")
    assert artifact.manifest.provenance["imported_from"]["file"] == "old.pth"
    pixels_NHW3 = np.random.default_rng(1).integers(0, 256, (1, 64, 96, 3), np.uint8)
    city = load_preset("cityscapes")
    expected_NHW = Program("v2-g2", state).labels(torch.from_numpy(pixels_NHW3), city.mean, city.std)
    size = ImageSize(64, 96)
    for name in ("torch", "openvino"):
        options = EngineOptions("cpu", "f32", tmp_path / "cache", threads=1)
        engine = engine_builder(name, "cpu")(artifact, options)
        found_HW = labels(
            engine.infer(pixels_NHW3)[0],
            upsample=artifact.manifest.upsample,
            stride=8,
            padded=size,
            content=size,
            original=size,
        )
        engine.close()
        assert (found_HW == expected_NHW[0].numpy()).mean() > 0.999


@needs_openssl
def test_an_address_is_fetched_checked_and_remembered(
    run: Run, checkpoint: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = asyncio.run(make_certificate(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.file))
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    described = ("--name", "new", "--classes", classes, "--preset", "face")
    with https_server(certificate) as server:
        server.answers["/v2.safetensors"] = Answer(checkpoint.read_bytes())
        url = f"{server.url}/v2.safetensors"
        refused = run(url, *described, "--sha256", "0" * 64)
        assert refused.exit_code == 1
        assert f"has the SHA-256 {digest}, not {'0' * 64}" in refused.stderr
        result = run(url, *described, "--sha256", digest, "--json")
    assert result.exit_code == 0, result.output
    assert f"{url}: {checkpoint.stat().st_size} bytes, SHA-256 {digest}" in result.stderr
    assert json.loads(result.stdout)["sha256"] == digest
    artifact = ModelRegistry(tmp_path / "registry").open(ModelVersion("new", 1))
    assert artifact.manifest.provenance["imported_from"] == {
        "file": "v2.safetensors",
        "sha256": digest,
        "url": url,
    }


def test_a_local_file_of_another_digest_is_refused(run: Run, checkpoint: Path) -> None:
    result = run(checkpoint, "--name", "new", "--preset", "face", "--sha256", "0" * 64)
    assert result.exit_code == 1
    assert f"not {'0' * 64}: it is another file" in result.stderr


@pytest.mark.parametrize(("source", "code"), [("http://127.0.0.1/v2.pth", 1), ("missing.pth", 2)])
def test_what_cannot_be_fetched_is_named(run: Run, source: str, code: int) -> None:
    result = run(source, "--name", "new", "--preset", "face")
    assert result.exit_code == code
    assert "http" in result.stderr or "there is no such file" in result.stderr


def learned_network() -> SegmentationNetwork:
    """Return a network with statistics of its own, so that no branch drowns in another."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = build("bisenetv2", 3, {"head_channels": 8}, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
        with torch.no_grad():
            for _ in range(30):
                network.train()(torch.rand(4, 64, 96, 3) * 255)
    return network.eval()


def test_a_network_that_answers_otherwise_than_its_program_is_refused(
    run: Run, classes: Path, tmp_path: Path
) -> None:
    network = learned_network()
    safetensors.torch.save_file(deploy_state(network), tmp_path / "v2.safetensors")
    picture_HW3 = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(picture_HW3).save(tmp_path / "picture.png")
    variant = copy.deepcopy(network)  # with the same weights
    variant.architecture.detail.S3[2].relu = torch.nn.Identity()
    for name, one in (("ours", network), ("variant", variant)):
        with torch.inference_mode():
            raw_NKhw = one(torch.from_numpy(picture_HW3)[None])
            scores = functional.interpolate(raw_NKhw, (64, 96), mode="bilinear", align_corners=False)
        Image.fromarray(scores[0].argmax(0).to(torch.uint8).numpy()).save(tmp_path / f"{name}.png")
    described = (tmp_path / "v2.safetensors", "--name", "new", "--classes", classes, "--mean", ".5,.5,.5")
    described = (*described, "--std", ".5,.5,.5", "--check")
    refused = run(*described, f"{tmp_path}/picture.png,{tmp_path}/variant.png")
    assert refused.exit_code == 1
    assert "it computes something else than the program of the weights" in refused.stderr
    assert ModelRegistry(tmp_path / "registry").models() == []
    accepted = run(*described, f"{tmp_path}/picture.png,{tmp_path}/ours.png")
    assert accepted.exit_code == 0, accepted.output
    assert "100.00 % of the pixels of --check agree" in accepted.stdout
    assert "warning" not in accepted.stdout


@pytest.mark.parametrize("check", ["picture.png", ",labels.png", "a.png,"])
def test_a_check_that_names_no_pair_exits_with_2(run: Run, checkpoint: Path, check: str) -> None:
    result = run(checkpoint, "--name", "new", "--preset", "face", "--check", check)
    assert result.exit_code == 2
    assert "PICTURE,LABELS" in result.stderr


def test_tensors_that_were_not_learned_are_named(run: Run, checkpoint: Path, classes: Path) -> None:
    result = run(checkpoint, "--name", "new", "--classes", classes, "--preset", "face")
    assert result.exit_code == 0, result.output
    assert "bga.conv.1.running_var: were the weights of another network completed? --check" in result.stdout


def test_another_number_of_classes_exits_with_1_and_publishes_nothing(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    result = run(checkpoint, "--name", "new", "--preset", "cityscapes")
    assert result.exit_code == 1
    assert result.stderr == "error: v2-g4 with 3 classes, not 19\n"
    assert ModelRegistry(tmp_path / "registry").models() == []


def test_a_file_that_is_no_checkpoint_exits_with_1_and_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("not weights")
    result = run(tmp_path / "notes.pth", "--name", "new", "--preset", "face")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: notes.pth is not a checkpoint")
    assert len(result.stderr.splitlines()) == 1


def test_without_torch_it_says_what_to_install(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_model, "find_spec", lambda _: None)
    result = run(checkpoint, "--name", "new", "--preset", "face")
    assert result.exit_code == 1
    assert "bisenet-service[torch]" in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--mean", IMAGENET[0], "--std", IMAGENET[1]),
        ("--preset", "camvid"),
        ("--preset", "face", "--mean", "0.5,0.5"),
        ("--preset", "face", "--mean", "124,116,104"),
        ("--preset", "face", "--std", "a,b,c"),
        ("--preset", "face", "--classes", "/nowhere.txt"),
        ("--preset", "face", "--name", "Not a name"),
    ],
)
def test_what_does_not_describe_the_weights_exits_with_2(
    run: Run, checkpoint: Path, options: tuple[str, ...]
) -> None:
    assert run(checkpoint, "--name", "new", *options).exit_code == 2


def test_a_list_of_classes_that_is_none_exits_with_2(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    for name, text in (("twice.txt", "sky\nsky\n"), ("empty.toml", "")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        result = run(checkpoint, "--name", "new", "--preset", "face", "--classes", tmp_path / name)
        assert result.exit_code == 2
        assert "--classes" in result.stderr


def test_a_missing_file_exits_with_2(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "missing.pth", "--name", "new", "--preset", "face").exit_code == 2
