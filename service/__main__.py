"""``python -m service``: the same as ``bisenet serve``."""

from __future__ import annotations

import typer

from service.cli.serve import serve

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(serve)
    app()
