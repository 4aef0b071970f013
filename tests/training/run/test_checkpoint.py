from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import pytest
import torch

from training.errors import CheckpointError
from training.run.checkpoint import CheckpointFolder


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints")


def test_what_was_saved_comes_back(folder: CheckpointFolder) -> None:
    assert folder.is_empty
    folder.save("last", 7, {"step": 7, "weights": torch.arange(3)})
    state = folder.load("last")
    assert state is not None
    assert state["step"] == 7
    assert state["weights"].tolist() == [0, 1, 2]
    assert not folder.is_empty


def test_there_may_be_none_of_a_kind(folder: CheckpointFolder) -> None:
    folder.save("last", 1, {})
    assert folder.load("best") is None


def test_a_newer_one_replaces_the_older_of_its_kind_only(folder: CheckpointFolder) -> None:
    folder.save("best", 1, {"step": 1})
    folder.save("last", 99, {"step": 99})
    folder.save("last", 100, {"step": 100})
    names = sorted(path.name for path in folder.folder.iterdir())
    assert names == [
        "best-00000001.pt",
        "best-00000001.pt.sha256",
        "last-00000100.pt",
        "last-00000100.pt.sha256",
    ]


def test_saving_a_step_again_keeps_it(folder: CheckpointFolder) -> None:
    folder.save("last", 5, {"value": 1})
    folder.save("last", 5, {"value": 2})
    assert folder.load("last") == {"value": 2}


@pytest.mark.parametrize(("killed_at", "value"), [(1, 1), (2, 2)])
def test_a_run_killed_while_it_saved_a_step_again_loads_either(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch, killed_at: int, value: int
) -> None:
    folder.save("last", 5, {"value": 1})
    synced = []

    def sync(path: Path) -> None:
        synced.extend([path] * (path == folder.folder))
        if len(synced) == killed_at:  # after the digest, or after the file
            raise KeyboardInterrupt

    monkeypatch.setattr("training.run.checkpoint.sync", sync)
    with pytest.raises(KeyboardInterrupt):
        folder.save("last", 5, {"value": 2})
    assert folder.load("last") == {"value": value}


def test_those_that_are_kept_stay(folder: CheckpointFolder) -> None:
    for step in (5, 10):
        folder.save("kept", step, {"step": step})
        folder.save("last", step, {"step": step})
    assert sorted(path.stem for path in folder.folder.glob("*.pt")) == [
        "kept-00000005",
        "kept-00000010",
        "last-00000010",
    ]


def test_the_digest_is_one_that_sha256sum_reads(folder: CheckpointFolder) -> None:
    path = folder.save("last", 5, {})
    digest, name = path.with_name(path.name + ".sha256").read_text().split()
    assert len(digest) == 64
    assert name == path.name


def test_a_run_killed_while_writing_loads_the_one_before(folder: CheckpointFolder) -> None:
    folder.save("last", 5, {"step": 5})
    (folder.folder / "last-00000006.pt.part").write_bytes(b"half")
    (folder.folder / "last-00000006.pt.sha256").write_text("0" * 64 + "  last-00000006.pt\n")
    assert folder.load("last") == {"step": 5}


def test_a_run_killed_before_it_removed_the_older_loads_the_newer(folder: CheckpointFolder) -> None:
    path = folder.save("last", 5, {"step": 5})
    kept = {p: p.read_bytes() for p in (path, path.with_name(path.name + ".sha256"))}
    folder.save("last", 6, {"step": 6})
    for old, data in kept.items():
        old.write_bytes(data)
    assert folder.load("last") == {"step": 6}


def test_what_a_killed_run_did_not_finish_goes_with_the_next_checkpoint(folder: CheckpointFolder) -> None:
    (folder.folder / "last-00000003.pt.part").write_bytes(b"half")
    folder.save("last", 4, {"step": 4})
    assert sorted(path.name for path in folder.folder.iterdir()) == [
        "last-00000004.pt",
        "last-00000004.pt.sha256",
    ]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot make .*file"):
        CheckpointFolder(tmp_path / "file")


def test_the_digest_is_that_of_the_newest(folder: CheckpointFolder) -> None:
    assert folder.digest("last") == ""
    path = folder.save("last", 1, {"step": 1})
    assert folder.digest("last") == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_damaged_checkpoint_is_refused(folder: CheckpointFolder) -> None:
    path = folder.save("last", 5, {"weights": torch.zeros(100)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        folder.load("last")


def test_a_checkpoint_without_its_digest_is_refused(folder: CheckpointFolder) -> None:
    path = folder.save("last", 5, {})
    path.with_name(path.name + ".sha256").unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        folder.load("last")


def test_a_full_disk_leaves_the_older_checkpoint_intact(folder: CheckpointFolder) -> None:
    folder.save("last", 5, {"step": 5})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot write"):
            folder.save("last", 6, {"step": 6, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folder.load("last") == {"step": 5}
    assert not list(folder.folder.glob("*.part"))
