"""Errors of opening the jobs database."""

from __future__ import annotations


class JobsUnavailableError(Exception):
    """The jobs database cannot be used, or another process owns it; the message names both."""
