from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from model.checkpoints import checkpoint
from model.checkpoints.checkpoint import read_checkpoint
from model.checkpoints.limits import MAX_FILE_BYTES
from model.errors import ForeignCheckpointError, ModelError, WeightsError

needs_data = pytest.mark.skipif("BISENET_DATA_ROOT" not in os.environ, reason="needs BISENET_DATA_ROOT")
STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3)}


def is_state(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[key], STATE[key]) for key in STATE)


def test_a_pickle_is_read_by_way_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "with space and ü.pth"
    torch.save({"state_dict": STATE}, path)
    assert is_state(read_checkpoint(path))


def test_safetensors_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(STATE, path)
    assert is_state(read_checkpoint(path))


class Hostile:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.call


def write_archive(hostile: Hostile, path: Path) -> None:
    torch.save({"a.weight": torch.ones(2), "b": hostile}, path)


def write_old_format(hostile: Hostile, path: Path) -> None:
    torch.save({"a.weight": torch.ones(2), "b": hostile}, path, _use_new_zipfile_serialization=False)


@pytest.mark.guarantee("G20")
@pytest.mark.parametrize(
    ("write", "function", "argument"),
    [
        (write_archive, os.system, "touch {}"),
        (write_old_format, exec, "import pathlib; pathlib.Path({!r}).touch()"),
    ],
)
def test_nothing_that_a_pickle_asks_for_is_executed(
    write: Callable[[Hostile, Path], None], function: Callable[..., Any], argument: str, tmp_path: Path
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "hostile.pth"
    write(Hostile(function, argument.format(str(marker))), path)
    with pytest.raises(ForeignCheckpointError, match=r"hostile\.pth: not a checkpoint .* UnpicklingError"):
        read_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # that nothing happened means something only if this does something
    assert marker.exists()


def hostile_models() -> list[str]:
    folder = Path(os.environ.get("BISENET_DATA_ROOT", "."), "hostile_models")
    return sorted(p.name for p in folder.glob("*") if p.name not in {"manifest.tsv", "ok.safetensors"})


@pytest.mark.guarantee("G20")
@pytest.mark.data
@needs_data
@pytest.mark.parametrize("name", hostile_models())
def test_every_hostile_model_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(Path(os.environ["BISENET_DATA_ROOT"], "hostile_models", name).read_bytes())
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    assert type(caught.value) in {WeightsError, ForeignCheckpointError}
    assert str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.data
@needs_data
def test_the_control_among_the_hostile_model_files_is_read() -> None:
    assert read_checkpoint(Path(os.environ["BISENET_DATA_ROOT"], "hostile_models", "ok.safetensors"))


def test_what_is_no_file_of_a_sensible_size_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "empty.pth").touch()
    with (tmp_path / "huge.pth").open("wb") as huge:
        huge.truncate(MAX_FILE_BYTES + 1)
    for name in (".", "pipe.pth", "empty.pth", "huge.pth", "missing.pth"):
        with pytest.raises(ForeignCheckpointError):
            read_checkpoint(tmp_path / name)


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return what exchanges the reading process for a shell script; it returns a file to read."""

    def exchange(script: str) -> Path:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(program))
        (tmp_path / "w.pth").write_bytes(b"\x80")
        return tmp_path / "w.pth"

    return exchange


def test_what_the_process_says_is_cut_and_printable(process: Callable[[str], Path]) -> None:
    path = process("printf '\\033[2Jone\\ntwo\\377 %0400d' 7 >&2; exit 1")
    with pytest.raises(ForeignCheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith("w.pth: [2Jone two\N{REPLACEMENT CHARACTER} 000")
    assert len(str(caught.value)) < 320
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("script", "code"), [("kill -SEGV $$", -11), ("exit 3", 3), ("exit 1", 1)])
def test_a_process_that_dies_without_a_word_is_an_error(
    process: Callable[[str], Path], script: str, code: int
) -> None:
    path = process(script)
    with pytest.raises(ForeignCheckpointError, match=f"ended with exit code {code}"):
        read_checkpoint(path)


def test_a_process_that_takes_too_long_is_ended(
    process: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = process("exec sleep 60")
    monkeypatch.setattr(checkpoint, "TIME_LIMIT_S", 0.1)
    with pytest.raises(ForeignCheckpointError, match="took more than"):
        read_checkpoint(path)


def test_what_the_process_leaves_is_not_trusted(process: Callable[[str], Path]) -> None:
    path = process('for out; do :; done; echo "not safetensors" > "$out"')
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_checkpoint(path)


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[None]:
    """Let something wait on this process's standard input."""
    (tmp_path / "typed").write_text("typed\n")
    before = os.dup(0)
    with (tmp_path / "typed").open("rb") as lines:
        os.dup2(lines.fileno(), 0)
    yield
    os.dup2(before, 0)
    os.close(before)


@pytest.mark.usefixtures("typed")
def test_the_process_inherits_nothing(
    process: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BISENET_SECRET", "leaked")
    path = process('read line; echo "${BISENET_SECRET:-nothing} ${HOME:-homeless} [$line]" >&2; exit 1')
    with pytest.raises(ForeignCheckpointError, match=r"w\.pth: nothing homeless \[\]"):
        read_checkpoint(path)
