"""Parameters of a request that the protocol reserves: how long it may take, and how urgent it is."""

from __future__ import annotations

from collections.abc import Mapping

from service.core.errors import InvalidArgumentError
from service.core.scheduling.scheduler import Lane

MAX_TIMEOUT_S = 600.0

Parameters = Mapping[str, object]
"""Values are of the types that JSON and the gRPC messages have: text, numbers, booleans."""

_MAX_SHOWN = 60
_MICROSECONDS = 1e6
_LANES = (Lane.INTERACTIVE, Lane.INTERACTIVE, Lane.STREAM, Lane.BULK)
"""By priority: 0 is the default and 1 the highest; all above 3 count as 3."""


def timeout_s(parameters: Parameters, default_s: float) -> float:
    """Return the parameter ``timeout``, in seconds; the default where there is none, or 0.

    Args:
        parameters: of the request; ``timeout`` is in microseconds.
        default_s: time that a request has which does not say so, in seconds.

    Raises:
        InvalidArgumentError: it is no whole number from 0.
    """
    microseconds = _whole_number(parameters, "timeout", "microseconds")
    wanted_s = microseconds / _MICROSECONDS if microseconds else default_s
    return min(wanted_s, MAX_TIMEOUT_S)


def lane_of(parameters: Parameters) -> Lane:
    """Return how urgent a request is: ``priority`` 0 or 1 interactive, 2 stream, 3 and above bulk.

    Raises:
        InvalidArgumentError: it is no whole number from 0.
    """
    priority = _whole_number(parameters, "priority", "levels, 1 = the most urgent")
    return _LANES[min(priority, len(_LANES) - 1)]


def flag(parameters: Parameters, name: str, *, default: bool) -> bool:
    """Return a parameter that is true or false.

    Raises:
        InvalidArgumentError: it is neither.
    """
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"parameter {name!r} is true or false, not {shown(value)}")
    return value


def refuse_extensions(parameters: Parameters, owner: str) -> None:
    """Refuse what would change the meaning of a tensor and is not offered.

    Args:
        parameters: of a tensor.
        owner: what has them, for the message.

    Raises:
        InvalidArgumentError: the tensor is in shared memory, or a classification is asked for.
    """
    if "shared_memory_region" in parameters:
        raise InvalidArgumentError(f"{owner}: shared memory is not offered: send the bytes of the tensor")
    if parameters.get("classification"):
        raise InvalidArgumentError(f"{owner}: there is no classification: ask for class_pixels")


def shown(value: object) -> str:
    """Return a client's value for a message, cut to a few characters."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _whole_number(parameters: Parameters, name: str, unit: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidArgumentError(
            f"parameter {name!r} is a whole number from 0 ({unit}), not {shown(value)}"
        )
    return value
