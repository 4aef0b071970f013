"""The model registry of a configuration."""

from __future__ import annotations

from model.artifacts.registry import SHIPPED_MODELS, ModelRegistry
from model.errors import ModelNotFoundError, RegistryUrlError, VersionNotFoundError
from service.settings import Settings, SettingsError


def open_registry(settings: Settings) -> ModelRegistry:
    """Return the registry of the settings, laid over the shipped models.

    Raises:
        RegistryUrlError: the URL names no store.
    """
    cache_folder = settings.models.cache_folder / "models"
    return ModelRegistry(settings.registry.url, shipped=SHIPPED_MODELS, cache_folder=cache_folder)


def find_models(settings: Settings) -> None:
    """Check that the models to serve exist, before anything slow begins.

    Raises:
        SettingsError: the URL names no store, or there is no such model, version or alias.
        StorageError: the store failed.
    """
    try:
        registry = open_registry(settings)
        for reference in settings.models.serve:
            registry.resolve(reference)
    except RegistryUrlError as error:
        raise SettingsError(f"registry.url: {error}") from error
    except (ModelNotFoundError, VersionNotFoundError) as error:
        raise SettingsError(f"models.serve: {error}") from error
