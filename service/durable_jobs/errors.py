"""What keeps the jobs from being opened."""

from __future__ import annotations


class JobsUnavailableError(Exception):
    """The jobs database cannot be used, or belongs to another process; the message says which and why."""
