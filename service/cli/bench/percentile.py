"""Percentiles of measured values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return a percentile, rounded to three decimals.

    Args:
        values: in any order and unit.
        percent: 0..100.

    Returns:
        None where less than half a value lies above the percentile: so few values do not determine it. The
        median of one value is that value.
    """
    if len(values) * (1 - percent / 100) < 0.5:  # noqa: PLR2004 - half a value
        return None
    return round(float(np.percentile(values, percent)), 3)
