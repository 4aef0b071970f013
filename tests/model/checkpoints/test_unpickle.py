from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from model.checkpoints.unpickle import check_archive, convert, is_archive, state_dict_of
from model.errors import ForeignCheckpointError

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.count": torch.tensor(3)}


def converted(saved: object, folder: Path, **options: Any) -> dict[str, Tensor]:
    torch.save(saved, folder / "saved.pth", **options)
    convert(folder / "saved.pth", folder / "out.safetensors")
    return safetensors.torch.load_file(folder / "out.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "format before 2020"])
def test_both_formats_of_torch_become_safetensors(tmp_path: Path, zipped: bool) -> None:  # noqa: FBT001
    assert same(converted(STATE, tmp_path, _use_new_zipfile_serialization=zipped), STATE)


@pytest.mark.parametrize(
    "saved",
    [
        OrderedDict(STATE),
        {"state_dict": STATE, "epoch": 3},
        {
            "model": STATE,
            "optimizer": {"state": {0: {"momentum": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]},
        },
        {
            "net": {key: nn.Parameter(value.float()) for key, value in STATE.items()},
            "best": torch.tensor(0.5),
        },
    ],
)
def test_the_one_state_dict_is_found_alone_or_beside_other_things(tmp_path: Path, saved: object) -> None:
    assert same(converted(saved, tmp_path), STATE)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"model": STATE, "ema": STATE}, r"several state dicts \('model', 'ema'\)"),
        ({"detail": STATE, "segment": STATE}, "several state dicts"),
        ({}, "no state dict"),
        ([STATE], "no state dict"),
        ({0: torch.ones(1)}, "no state dict"),
        ({"epoch": 3}, "no state dict"),
        ({"checkpoint": {"model": STATE}}, "no state dict"),
        (torch.ones(3), "no state dict"),
    ],
)
def test_what_holds_none_or_several_is_refused(saved: object, message: str) -> None:
    with pytest.raises(ForeignCheckpointError, match=message):
        state_dict_of(saved)


def test_the_published_backbone_comes_in_parts_that_are_joined() -> None:
    parts = {name: {f"{name}_weight": torch.ones(1)} for name in ("detail", "segment", "bga")}
    joined = {f"{name}.{name}_weight" for name in parts}
    assert set(state_dict_of(parts)) == joined


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    rows = torch.arange(8.0).view(2, 4)
    shared = {"first": rows[0], "second": rows[1], "turned": rows[:, :2].T}
    found = converted(shared, tmp_path)
    assert same(found, shared)


def test_a_tensor_that_would_outgrow_its_file_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    with pytest.raises(ForeignCheckpointError, match="claim more bytes than the file has"):
        converted({"w": torch.zeros(1).expand(1 << 50)}, tmp_path)


def archive(path: Path, name: str, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(name, b"\x80\x02}.")
    return path


def test_only_archives_of_plain_members_are_opened(tmp_path: Path) -> None:
    check_archive(archive(tmp_path / "stored", "archive/data.pkl"))
    with pytest.raises(ForeignCheckpointError, match=r"'archive/data\.pkl' in it is compressed"):
        check_archive(archive(tmp_path / "deflated", "archive/data.pkl", compression=zipfile.ZIP_DEFLATED))
    for name in ("../evil", "archive/../../evil", "/evil"):
        with pytest.raises(ForeignCheckpointError, match="points out of the archive"):
            check_archive(archive(tmp_path / "out", name))


@pytest.mark.parametrize("content", [b"", b"PK", b"{}", b"\x93NUMPY"])
def test_what_is_no_archive_and_no_pickle_is_told_by_its_first_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ForeignCheckpointError, match="neither an archive nor a pickle"):
        is_archive(tmp_path / "other")


def test_a_whole_network_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        converted(nn.Linear(2, 2), tmp_path)


def test_the_process_cannot_take_the_machine_with_it() -> None:
    program = """if True:
        import resource
        from model.checkpoints.unpickle import limit_resources
        limit_resources()
        for kind in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            assert resource.getrlimit(kind)[1] <= 512 << 20, kind
        bytearray(1 << 30)
        try:
            bytearray(4 << 30)
        except MemoryError:
            print("refused")
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
