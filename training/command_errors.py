"""Errors that a user can cause, as one line on stderr and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

FAILED = 1
USAGE_ERROR = 2
CANNOT_BIND = 3


@contextmanager
def exit_on_training_errors(*, root_option: str = "--root DIR") -> Iterator[None]:
    """Print errors that a user can mend, and exit; a defect of this program keeps its traceback.

    Args:
        root_option: how the command is told the folder of a preset's data set.
    """
    # The commands start without these packages' dependencies: --help answers at once.
    from model.errors import MissingRootError, ModelError  # noqa: PLC0415
    from training.errors import ConfigError, TrainingError, WatchError  # noqa: PLC0415

    try:
        yield
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE_ERROR) from error
    except WatchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(CANNOT_BIND) from error
    except MissingRootError as error:
        typer.echo(f"error: {error}: {root_option}", err=True)
        raise typer.Exit(FAILED) from error
    except (TrainingError, ModelError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(FAILED) from error
