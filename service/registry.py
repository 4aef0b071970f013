"""The registry of a configuration: what the service and the commands open."""

from __future__ import annotations

from model.registry import SHIPPED_MODELS, ModelRegistry
from service.settings import Settings


def open_registry(settings: Settings) -> ModelRegistry:
    """Return the registry that the settings name, over the models that came with the program.

    Raises:
        RegistryUrlError: the URL names no store.
    """
    cache_folder = settings.models.cache_folder / "models"
    return ModelRegistry(settings.registry.url, shipped=SHIPPED_MODELS, cache_folder=cache_folder)
