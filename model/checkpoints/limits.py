"""Limits of weights that are imported; no torch is needed to know them."""

from __future__ import annotations

MAX_FILE_BYTES = 512 << 20
"""The largest known checkpoint has 111 MB of weights; with optimizer and averages it has four times that."""

DEFAULT_MIN_AGREEMENT = 0.9
"""Share of the pixels of a known answer. The labels that the weights' own program computes are met to 0.999;
a network that computes something else meets no more than the share of the largest class."""
