from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fakes import write_pooling_artifact

from model.artifacts.manifest import ModelVersion
from model.artifacts.registry import ModelRegistry
from model.errors import RegistryUrlError, StorageError
from service import registry
from service.registry import find_models, open_registry
from service.settings import ModelsSettings, Settings, SettingsError, load_settings


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
    ("url", "reference", "message"),
    [
        ("registry", "none", "models.serve: no model 'none'"),
        ("registry", "city@2", "models.serve: no version city@2"),
        ("registry", "city:staging", "models.serve: no alias city:staging"),
        ("ftp://host/models", "city", "registry.url: "),
    ],
)
def test_a_model_that_was_never_published_is_a_wrong_setting(
    tmp_path: Path, url: str, reference: str, message: str
) -> None:
    folder = write_pooling_artifact(tmp_path / "artifact").folder
    ModelRegistry(tmp_path / "registry").publish(folder, "city")
    settings = configured(str(tmp_path / url) if url == "registry" else url, tmp_path)
    with pytest.raises(SettingsError) as caught:
        find_models(settings.model_copy(update={"models": ModelsSettings(serve=("city", reference))}))
    assert str(caught.value).startswith(message)


def test_a_store_that_fails_is_no_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "registry").write_text("no folder")
    with pytest.raises(StorageError):
        find_models(configured(str(tmp_path / "registry"), tmp_path))
