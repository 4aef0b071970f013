"""``python -m service``: the same as ``bisenet serve``."""

from __future__ import annotations

import os

import typer

from model.quotas import passive_threads
from service.cli.serve import serve

if __name__ == "__main__":
    os.environ.update(passive_threads(os.environ))
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(serve)
    app()
