"""``bisenet train``, ``bisenet report`` and ``bisenet dataset``: the command line of this package."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer

from model.progress import ProgressDisplay
from training.command_errors import FAILED, exit_on_training_errors
from training.dataset_check import check_dataset
from training.interchange.commands import run_example, run_export, run_import

app = typer.Typer(no_args_is_help=True)
dataset = typer.Typer(no_args_is_help=True, help="Check, import, export and make data sets.")
report = typer.Typer(no_args_is_help=True, help="Watch a run, and compare runs.")
app.add_typer(dataset, name="dataset")
app.add_typer(report, name="report")
dataset.command("check")(check_dataset)
dataset.command("import")(run_import)
dataset.command("export")(run_export)
dataset.command("example")(run_example)


@app.callback()
def _group() -> None:
    """Make segmentation models."""


@dataset.callback()
def _dataset_group() -> None:
    """Check, import, export and make data sets."""


@report.callback()
def _report_group() -> None:
    """Watch a run, and compare runs."""


@report.command()
def watch(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 = any free one.")] = 0,
) -> None:
    """Show a run in a browser while it goes on, or a finished one, until Ctrl-C.

    Examples:
      bisenet report watch runs/camvid
    """
    from training.run.record import RunRecord  # noqa: PLC0415 - --help does not wait for its imports
    from training.run.watch import watched  # noqa: PLC0415

    with exit_on_training_errors(), suppress(KeyboardInterrupt):
        RunRecord.read(run)
        with watched(run, port) as url:
            typer.echo(f"the page of the run: {url}", err=True)
            threading.Event().wait()


@report.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of at least two runs.")],
    out: Annotated[Path, typer.Option(help="File of the page.")] = Path("compare.html"),
) -> None:
    """Write a page with the curves, scores and differing settings of several runs.

    Examples:
      bisenet report compare runs/short runs/long --out compare.html
    """
    from training.run.run_comparison import read_runs, render_comparison  # noqa: PLC0415

    with exit_on_training_errors():
        page = render_comparison(read_runs(runs))
    try:
        out.write_text(page, "utf-8")
    except OSError as error:
        typer.echo(f"error: {out} cannot be written: {error.strerror}", err=True)
        raise typer.Exit(FAILED) from error
    typer.echo(f"comparison: {out}")


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
        typer.Option(
            min=0.5,
            help="Choose the number of steps so that the whole run, artifact included, ends in this time. A"
            " run that does not fit is refused at once, with the time it needs.",
        ),
    ] = None,
    finetune_from: Annotated[
        str,
        typer.Option(metavar="MODEL_OR_FILE", help="Begin with these weights; says which of them fit."),
    ] = "",
    registry: Annotated[
        str, typer.Option(envvar="BISENET_REGISTRY", help="Folder or URL of the models.")
    ] = "",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in OUT: repeat its command with this option."),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show the run in a browser, at an address on loopback that is printed."),
    ] = False,
    watch_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --watch; 0 = any free one.")] = 0,
) -> None:
    """Train a model; the results are OUT/artifact and OUT/report.

    On SIGTERM or Ctrl-C the run saves its state; the same command with --resume continues exactly there. On
    several GPUs or machines: torchrun ... -m training train ... --resume, the same for every process; all of
    them must see the folder OUT.

    Examples:
      bisenet train camvid-v2 --set data.root=/data/camvid --out runs/camvid

      bisenet train camvid-v2 --set data.root=/data/camvid --out runs/camvid --resume

      bisenet train camvid-v2 --set data.root=/data/camvid --out runs/short --max-minutes 50 --watch

      bisenet train custom --set data.dataset=mine.toml --finetune-from camvid --out runs/mine

      torchrun --standalone --nproc-per-node=8 --max-restarts=3 -m training train cityscapes-v2
      --set data.root=/data/cityscapes --out runs/city --resume
    """
    started_s = time.monotonic()
    # Only a run needs torch, and importing it takes seconds: --help does not wait.
    with _exit_without_torch(), ProgressDisplay().task("loading torch"):
        from training.config import load_config  # noqa: PLC0415
        from training.distributed import ranks_here  # noqa: PLC0415
        from training.run.run import RunOptions  # noqa: PLC0415
        from training.run.run import train as run  # noqa: PLC0415

    is_first = ranks_here().is_first
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
    with (
        exit_on_training_errors(root_option="--set data.root=DIR"),
        _page_of(out, watch_port) if watch and is_first else nullcontext(),
    ):
        finished = run(load_config(config, set_ or []), options)
    if not finished:
        typer.echo(f"stopped; the state is in {out}: repeat the same command with --resume", err=True)


@contextmanager
def _page_of(out: Path, port: int) -> Iterator[None]:
    """Serve the page of a run, and say where."""
    from training.run.watch import watched  # noqa: PLC0415

    with watched(out, port) as url:
        typer.echo(f"the page of the run: {url}", err=True)
        yield


@contextmanager
def _exit_without_torch() -> Iterator[None]:
    """Turn a package that is not installed into one line on stderr and an exit code."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or "torch"
        typer.echo(f"error: training needs {missing}: install bisenet-service[torch]", err=True)
        raise typer.Exit(FAILED) from error


def _user_folder(*parts: str) -> Path | None:
    try:
        return Path.home().joinpath(*parts)
    except RuntimeError:  # a user without a home folder, as in some containers
        return None
