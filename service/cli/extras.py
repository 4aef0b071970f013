"""What is installed with an extra only: it is imported when a command needs it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from service.core.errors import InvalidArgumentError


def import_cameras() -> ModuleType:
    """Return ``service.client.cameras``, which needs PyAV.

    Raises:
        InvalidArgumentError: that is not installed.
    """
    try:
        return import_module("service.client.cameras")
    except ImportError as error:
        raise InvalidArgumentError(
            "films and cameras need the extra: pip install 'bisenet-service[client]'"
        ) from error
