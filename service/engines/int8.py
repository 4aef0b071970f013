"""Of a model and its int8 version: which of the two this machine should run."""

from __future__ import annotations

from pathlib import Path

from model.artifacts.manifest import ModelManifest
from service.core.device.engine import EngineUnavailableError, PrecisionChoice

_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})
"""Instructions that add products of 8 bits into 32. Without them int8 is no faster than f32, and on some
processors less exact: their older instructions saturate at 16 bits."""


def prefers_int8(engine: str, device: str, precision: PrecisionChoice) -> bool:
    """Return whether a model that exists as an int8 version, too, should run as that.

    Args:
        engine: name of an engine, or ``auto``.
        device: ``cpu`` or ``cuda:N``.
        precision: what was asked for.
    """
    if precision != "auto":
        return precision == "int8"
    return device == "cpu" and engine in ("auto", "openvino") and has_dot_products(cpuinfo())


def refuse_int8(manifest: ModelManifest, engine: str) -> None:
    """Refuse an int8 version for an engine that would compute its rounded weights in floating point.

    Raises:
        EngineUnavailableError: it is one.
    """
    if manifest.precision == "int8":
        raise EngineUnavailableError(f"{engine} does not run int8 versions; {manifest.derived_from} is none")


def has_dot_products(info: dict[str, str]) -> bool:
    """Return whether a processor has instructions for int8.

    Args:
        info: what ``cpuinfo`` returns: x86 calls the line ``flags``, ARM ``Features``.
    """
    words = f"{info.get('flags', '')} {info.get('Features', '')}"
    return not _DOT_PRODUCTS.isdisjoint(words.split())


def cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first core; nothing elsewhere."""
    try:
        first_core = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").partition("\n\n")[0]
    except FileNotFoundError:
        return {}
    pairs = (line.partition(":") for line in first_core.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
