from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.device.engine import EngineUnavailableError
from service.engines.cache import CompileCache, cache_key

KEY = cache_key(name="x")
PARTS = {"artifact": {"graph": "1"}, "precision": "f32", "threads": 2}


def the_file_of(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_stored_is_loaded(tmp_path: Path) -> None:
    CompileCache(tmp_path / "cache").store(KEY, b"graph")
    assert CompileCache(tmp_path / "cache").load(KEY) == b"graph"


def test_what_was_not_stored_is_missing(tmp_path: Path) -> None:
    CompileCache(tmp_path / "cache").store(KEY, b"graph")
    assert CompileCache(tmp_path / "cache").load(cache_key(name="y")) is None


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_file_that_was_cut_short_or_changed_counts_as_missing(
    tmp_path_factory: pytest.TempPathFactory, blob: bytes, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = CompileCache(folder)
    cache.store(KEY, blob)
    stored = the_file_of(folder).read_bytes()
    place = data.draw(st.integers(0, len(stored) - 1))
    changed = stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :]
    the_file_of(folder).write_bytes(data.draw(st.sampled_from([stored[:place], changed])))
    assert cache.load(KEY) is None


def test_storing_again_replaces_a_corrupt_file(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path / "cache")
    cache.store(KEY, b"graph")
    the_file_of(tmp_path / "cache").write_bytes(b"")
    cache.store(KEY, b"graph")
    assert cache.load(KEY) == b"graph"
    assert the_file_of(tmp_path / "cache").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    cache.store(KEY, b"graph")
    assert cache.load(KEY) is None


def test_the_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    CompileCache(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_could_have_filled_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(EngineUnavailableError, match="by others"):
        CompileCache(tmp_path / "cache")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(EngineUnavailableError, match="File exists"):
        CompileCache(tmp_path / "cache")


@pytest.mark.parametrize(
    "change", [{"artifact": {"graph": "2"}}, {"precision": "bf16"}, {"threads": 1}, {"library": "2"}]
)
def test_every_part_of_a_key_counts(change: dict[str, object]) -> None:
    assert cache_key(**PARTS) == cache_key(**PARTS)
    assert cache_key(**{**PARTS, **change}) != cache_key(**PARTS)
