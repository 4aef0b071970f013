"""The registry of a configuration: what the service and the commands open."""

from __future__ import annotations

from model.registry import SHIPPED_MODELS, ModelRegistry
from service.engines import resolve_device
from service.engines.int8 import prefers_int8
from service.settings import Settings


def open_registry(settings: Settings) -> ModelRegistry:
    """Return the registry that the settings name, over the models that came with the program.

    Raises:
        RegistryUrlError: the URL names no store.
    """
    cache_folder = settings.models.cache_folder / "models"
    return ModelRegistry(settings.registry.url, shipped=SHIPPED_MODELS, cache_folder=cache_folder)


def wants_int8(settings: Settings) -> bool:
    """Return whether a model that is named without a version should run as its int8 version, if any."""
    models = settings.models
    return prefers_int8(models.engine, resolve_device(models.device, models.engine), models.precision)
