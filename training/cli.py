"""``bisenet train`` and ``bisenet dataset``: the command line of this package."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from model.progress import ProgressDisplay

app = typer.Typer(no_args_is_help=True)
dataset = typer.Typer(no_args_is_help=True, help="Look at a data set before anything is learned from it.")
app.add_typer(dataset, name="dataset")

_FAILED = 1
_USAGE_ERROR = 2


@app.callback()
def _group() -> None:
    """Make segmentation models."""


@dataset.callback()
def _dataset_group() -> None:
    """Look at a data set before anything is learned from it."""


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A recipe (camvid-v2) or the path of a TOML file.")],
    *,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a value; repeatable.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the run: checkpoints, log, samples, artifact, report.")
    ] = Path("runs/train"),
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0.5, help="Fit the number of steps into this time; chosen once, after a minute."),
    ] = None,
    finetune_from: Annotated[
        str,
        typer.Option(metavar="MODEL_OR_FILE", help="Begin with these weights; says which fitted."),
    ] = "",
    registry: Annotated[
        str, typer.Option(envvar="BISENET_REGISTRY", help="Where models are looked for: a folder or a URL.")
    ] = "",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on where the run in OUT stands: repeat the same command with this."
        ),
    ] = False,
) -> None:
    """Train a model; the result is the artifact in OUT/artifact and the report in OUT/report.

    Stopped by SIGTERM or Ctrl-C, the run saves its state; the same command with --resume goes on from there,
    exactly. On several GPUs or machines: torchrun ... -m training train ... --resume, which every process may
    run as it is; all of them must see the folder OUT.

    Examples:
      bisenet train camvid-v2 --set data.root=/data/camvid --out runs/camvid

      bisenet train camvid-v2 --set data.root=/data/camvid --out runs/camvid --resume

      bisenet train camvid-v2 --set data.root=/data/camvid --out runs/short --max-minutes 50

      bisenet train custom --set data.dataset=mine.toml --finetune-from bisenetv2-camvid --out runs/mine

      torchrun --standalone --nproc-per-node=8 --max-restarts=3 -m training train cityscapes-v2
      --set data.root=/data/cityscapes --out runs/city --resume
    """
    started_s = time.monotonic()
    # Only a run needs torch, and importing it takes seconds: --help does not wait.
    with _exit_without_torch(), ProgressDisplay().task("loading torch"):
        from training.config import load_config  # noqa: PLC0415
        from training.run.run import RunOptions  # noqa: PLC0415
        from training.run.run import train as run  # noqa: PLC0415

    options = RunOptions(
        out,
        resume=resume,
        max_minutes=max_minutes,
        finetune_from=finetune_from,
        registry=registry or str(_user_folder(".local", "share", "bisenet", "registry") or ""),
        cache_folder=_user_folder(".cache", "bisenet"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started_s=started_s,
    )
    with _exit_on_errors(root_option="--set data.root=DIR"):
        finished = run(load_config(config, set_ or []), options)
    if not finished:
        typer.echo(f"stopped; the state is in {out}: repeat the same command with --resume", err=True)


@dataset.command()
def check(
    reference: Annotated[str, typer.Argument(metavar="D", help="A data-set file, or a preset with --root.")],
    *,
    root: Annotated[
        Path | None, typer.Option(help="Where the data set lies; replaces the root of the file.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Look at this split only; repeatable.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Read every pair: sizes, ids, missing and broken files, masks that are colours, and what to train with.

    Ends with 1 when anything would stop a run.

    Examples:
      bisenet dataset check camvid --root /data/camvid

      bisenet dataset check mine.toml --split train --json
    """
    from model.datasets.dataset import DatasetSpec, LabeledImages  # noqa: PLC0415
    from training.data.inspection import inspect_split, report  # noqa: PLC0415

    with _exit_on_errors():
        spec = DatasetSpec.load(reference, root=root)
        splits = [LabeledImages(spec, name) for name in split or spec.splits]
        facts = [
            inspect_split(one, workers=workers, progress=_counter(f"{spec.name} {one.split}", len(one)))
            for one in splits
        ]
    found = report(facts, spec.palette)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))
    if found["problems"]:
        raise typer.Exit(_FAILED)


@contextmanager
def _exit_without_torch() -> Iterator[None]:
    """Turn a package that is not installed into one line on stderr and an exit code."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or "torch"
        typer.echo(f"error: training needs {missing}: install bisenet-service[torch]", err=True)
        raise typer.Exit(_FAILED) from error


@contextmanager
def _exit_on_errors(*, root_option: str = "--root DIR") -> Iterator[None]:
    """Turn what users can cause into one line on stderr and an exit code; defects keep their traceback.

    Args:
        root_option: how a user says where a preset's data set lies.
    """
    from model.errors import MissingRootError, ModelError  # noqa: PLC0415 - as in ``train``
    from training.errors import ConfigError, TrainingError  # noqa: PLC0415

    try:
        yield
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_USAGE_ERROR) from error
    except MissingRootError as error:
        typer.echo(f"error: {error}: {root_option}", err=True)
        raise typer.Exit(_FAILED) from error
    except (TrainingError, ModelError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_FAILED) from error


def _user_folder(*parts: str) -> Path | None:
    try:
        return Path.home().joinpath(*parts)
    except RuntimeError:  # nobody's home: a container with an odd user
        return None


def _counter(name: str, total: int) -> Any:
    """Return what counts pairs on a terminal, and says nothing elsewhere."""

    def show(done: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            sys.stderr.write(f"\r{name}: {done}/{total}{end}")
            sys.stderr.flush()

    return show


def _lines(found: dict[str, Any]) -> Iterator[str]:
    for split in found["splits"]:
        sizes = ", ".join(f"{size}: {count}" for size, count in split["sizes"].items())
        yield f"{split['name']}: {split['pictures']} pictures ({sizes})"
        yield f"  fingerprint {split['fingerprint'] or 'unknown: files are missing'}"
        if split["unseen"]:
            yield f"  classes without a pixel: {', '.join(split['unseen'])}"
        yield from (f"  {problem}" for problem in split["problems"])
    yield f"{'id':>4}  {'class':24} {'share':>8}  weight"
    for one in found["classes"]:
        yield f"{one['id']:>4}  {one['name']:24} {100 * one['share']:7.3f}%  {one['weight']:.3f}"
    yield f"mean {found['mean']}, std {found['std']} (RGB, of values 0..1)"
    yield f"problems: {found['problems']}"
