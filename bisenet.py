"""The ``bisenet`` command: the sub-commands of ``training`` and ``service``, each imported when used."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

import typer

from model.quotas import passive_threads

COMMANDS = {
    "serve": ("service.cli.serve", "serve", "Start the HTTP service."),
    "predict": ("service.cli.predict", "predict", "Segment pictures without a server."),
    "evaluate": ("service.cli.evaluate", "evaluate", "Score a model on labelled pictures."),
    "train": ("training.cli", "train", "Train a model from a recipe or a configuration file."),
    "report": ("training.cli", "report", "Watch a training run in a browser, and compare runs."),
    "dataset": ("training.cli", "dataset", "Look at a data set before anything is learned from it."),
    "worker": ("service.cli.worker", "worker", "Run evaluation jobs without frontends."),
    "jobs": ("service.cli.jobs", "app", "Submit, list, show and cancel evaluation jobs of a service."),
    "keys": ("service.cli.keys", "app", "Create, list and revoke API keys of a service."),
    "models": ("service.cli.models", "app", "List, publish, import, promote, export and delete models."),
    "stream": ("service.cli.stream", "stream", "Send a camera or film to a running service."),
    "bench": ("service.cli.bench.bench", "app", "Measure what this machine does."),
    "doctor": ("service.cli.doctor", "doctor", "Say what this machine can run, and why not the rest."),
}
"""Name -> (module, its function or typer app, line for ``bisenet --help``)."""


def main() -> None:
    """Run the sub-command that the command line names; import no other."""
    os.environ.update(passive_threads(os.environ))
    root = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Train, publish and serve real-time segmentation models.",
    )
    chosen = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    # The first process of a container does not even notice SIGTERM as long as nothing handles it. To stop a
    # service that is about to start is no failure.
    exit_code = 0 if chosen == "serve" else 128 + signal.SIGTERM
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_code))
    for name, (module, attribute, line) in COMMANDS.items():
        command = getattr(import_module(module), attribute) if name == chosen else _not_chosen
        if isinstance(command, typer.Typer):
            root.add_typer(command, name=name)
        else:
            root.command(name, help=line if command is _not_chosen else None)(command)
    root(prog_name="bisenet")


def _not_chosen() -> None:
    """Stand in ``--help`` for a command that was not called."""


if __name__ == "__main__":
    main()
