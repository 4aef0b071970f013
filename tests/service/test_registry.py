from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fakes import write_pooling_artifact

from model.errors import RegistryUrlError
from model.manifest import ModelVersion
from service import registry
from service.registry import open_registry, wants_int8
from service.settings import Settings, load_settings


def configured(url: str, tmp_path: Path) -> Settings:
    flags = {"registry": {"url": url}, "models": {"cache_folder": tmp_path / "cache"}}
    return load_settings(flags=flags, environment={})


def test_shipped_models_are_found_beside_an_empty_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = write_pooling_artifact(tmp_path / "artifact")
    shutil.copytree(artifact.folder, tmp_path / "shipped/city/1")
    monkeypatch.setattr(registry, "SHIPPED_MODELS", tmp_path / "shipped")
    opened = open_registry(configured(str(tmp_path / "empty"), tmp_path))
    assert opened.resolve("city") == ModelVersion("city", 1)


def test_a_url_that_names_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryUrlError, match="ftp://host"):
        open_registry(configured("ftp://host/models", tmp_path))


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"precision": "int8"}, True),
        ({"precision": "bf16"}, False),
        ({"engine": "torch"}, False),
        ({"device": "cuda:0"}, False),
    ],
)
def test_whether_int8_is_wanted_follows_from_the_settings(flags: dict[str, str], *, wanted: bool) -> None:
    assert wants_int8(load_settings(flags={"models": flags}, environment={"HOME": "/"})) is wanted
