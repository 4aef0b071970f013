from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from model.pictures.image import decode_image
from model.pictures.preprocess import ImageSize, size_of
from service.cli.bench import bench
from service.cli.bench.load import RefusedError
from service.cli.bench.load_bench import make_load
from service.cli.bench.pictures import encoded_pictures, parse_image_size

Run = Callable[..., Result]


@pytest.fixture
def run(environment: dict[str, str], shared_cache: Path, tmp_path: Path) -> Run:
    isolated = {
        **environment,
        "HOME": str(tmp_path),
        "BISENET_MODELS__CACHE_FOLDER": str(shared_cache),
        "BISENET_MODELS__PRECISION": "f32",
    }

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(bench.app, [*arguments, "--seconds", "0", "--size", "40x72"], env=isolated)

    return run


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_way_through_this_process_is_measured(run: Run) -> None:
    report = answer(run("pipeline", "--in-flight", "3", "--size", "33x64", "--force", "--json"))
    assert report["model"] == "pooling@1"
    assert (report["engine"], report["device"], report["precision"]) == ("openvino", "cpu", "f32")
    assert report["load"] == "closed loop, 3 in flight"
    assert report["sizes"] == ["33x64", "40x72"]
    assert (report["figures"]["answered"], report["figures"]["refused"]) == (3, {})
    assert report["machine"]["versions"]["openvino"]


def test_a_service_is_started_measured_and_stopped(run: Run) -> None:
    report = answer(run("http", "--model", "pooling@1", "--in-flight", "2", "--force", "--json"))
    assert (report["target"], report["model"]) == ("http on loopback", "pooling@1")
    assert report["figures"]["answered"] == 2


def test_people_read_the_figures_with_their_context(run: Run) -> None:
    lines = run("pipeline", "--force").stdout.splitlines()
    assert lines[0].startswith("pipeline: pooling@1 (openvino f32 on cpu), 40x72, closed loop, 1 in flight")
    assert "openvino 20" in lines[1]
    assert "pictures/s" in lines[2]


def test_flags_of_a_service_do_not_go_with_one_that_runs_already(run: Run) -> None:
    result = run("http", "--url", "http://127.0.0.1:1", "--precision", "int8", "--force")
    assert result.exit_code == 2
    assert "--precision" in result.stderr


def test_a_service_that_is_not_there_is_one_line(run: Run) -> None:
    result = run("http", "--url", "http://127.0.0.1:1", "--force")
    assert result.exit_code == 1
    assert result.stderr == "error: http://127.0.0.1:1 does not answer: ConnectionRefusedError\n"


@pytest.mark.parametrize("flag", ["--key-file", "--token-file"])
def test_the_file_of_an_api_key_has_one_name_everywhere_and_its_old_one(
    run: Run, tmp_path: Path, flag: str
) -> None:
    (tmp_path / "key").write_text("key")
    for command, target in (("http", "--url=http://127.0.0.1:1"), ("grpc", "--address=127.0.0.1:1")):
        result = run(command, target, flag, str(tmp_path / "key"), "--force")
        assert "127.0.0.1:1 does not answer" in result.stderr


@pytest.mark.parametrize("command", ["pipeline", "http"])
def test_a_busy_machine_is_not_measured_unless_it_is_forced(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    refused = run(command)
    assert refused.exit_code == 1
    assert "busy" in refused.stderr


async def test_every_size_is_warmed_up_and_the_open_loop_follows_its_rate() -> None:
    seen: list[int] = []

    async def send(number: int) -> None:
        seen.append(number)
        await asyncio.sleep(0)

    load = make_load(["16x16", "24x16"], None, rate=1000, seconds=0.02)
    figures = await load.run(send)
    assert str(load) == "open loop, 1000 a second (Poisson)"
    assert seen[:3] == [0, 1, 0]
    assert figures.answered == len(seen) - 3


async def test_refusals_while_it_warms_up_end_the_measurement() -> None:
    async def send(_: int) -> None:
        raise RefusedError("unauthenticated")

    with pytest.raises(RefusedError):
        await make_load(["16x16"], None, seconds=0).run(send)


def test_pictures_are_sent_in_each_size_in_turn() -> None:
    sizes = [ImageSize(16, 24), ImageSize(40, 32), ImageSize(8, 8)]
    decoded = [size_of(decode_image(picture)) for picture in encoded_pictures(sizes)]
    assert decoded[:4] == [*sizes, sizes[0]]
    assert len(set(encoded_pictures(sizes))) == len(decoded)


def test_pictures_of_a_folder_are_resized(tmp_path: Path) -> None:
    for level in (0, 200):
        Image.fromarray(np.full((10, 12, 3), level, np.uint8)).save(tmp_path / f"{level}.png")
    dark, bright = (decode_image(picture) for picture in encoded_pictures([ImageSize(20, 24)], tmp_path))
    assert size_of(dark) == ImageSize(20, 24)
    assert (dark.max() < 8, bright.min() > 192) == (True, True)


def test_a_folder_without_pictures_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="no pictures"):
        encoded_pictures([ImageSize(8, 8)], tmp_path)
    (tmp_path / "note.txt").write_text("no picture")
    with pytest.raises(typer.BadParameter, match="no picture: "):
        encoded_pictures([ImageSize(8, 8)], tmp_path)


def test_a_size_of_a_picture_is_not_padded() -> None:
    assert parse_image_size("33x70") == ImageSize(33, 70)
