"""Imports libraries of the extras, when a command needs them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from service.core.errors import InvalidArgumentError


def import_cameras() -> ModuleType:
    """Return the module ``service.client.cameras``, which needs PyAV.

    Raises:
        InvalidArgumentError: PyAV is not installed.
    """
    try:
        return import_module("service.client.cameras")
    except ImportError as error:
        raise InvalidArgumentError(
            "films and cameras need an extra: pip install 'bisenet-service[client]'"
        ) from error
