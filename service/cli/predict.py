"""``bisenet predict``: pictures in, masks out, without a server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from model.pictures.preprocess import size_of
from service.cli.extras import import_cameras
from service.cli.local import EXIT_FAILED, exit_on_errors, local_settings, open_segmenter
from service.client.errors import SourceError
from service.core.errors import InvalidArgumentError, ServiceError
from service.core.models.loaded_model import LoadedModel
from service.core.pictures import codec
from service.core.pictures.picture import EncodedPicture
from service.core.pictures.segmenter import Segmentation, Segmenter

Output = Literal["labels", "color", "overlay"]
Entry = dict[str, Any]
"""The report on one picture: plain JSON values; ``error`` is there when there is no mask."""

FILM_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
"""What is taken for a film by its name."""

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""What is taken of a folder; a file that is named is read whatever it is called."""

_PATIENCE_S = 3600.0
"""No picture takes longer, in any queue of our own."""

_IN_FLIGHT = 2
"""While one picture is in the engine, the next one is read."""


@dataclass(frozen=True)
class PredictTask:
    """One picture, and the file that its mask goes to."""

    source: Path
    target: Path


def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT", exists=True, help="Pictures, folders of pictures, or one film."),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="PATH", help="A .png file for one picture, a film for a film, else a folder."),
    ],
    *,
    output: Annotated[Output, typer.Option(help="What the masks show.")] = "color",
    model: Annotated[str | None, typer.Option(help="NAME, NAME:ALIAS or NAME@VERSION.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, openvino, tensorrt or torch.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, f32, bf16, f16 or int8.")] = None,
    registry: Annotated[str | None, typer.Option(metavar="URL", help="Where published models are.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")] = False,
) -> None:
    """Segment pictures: masks are PNG files of each picture's own size.

    Labels and color are one palette PNG: a pixel is a class id, the palette its colour.

    Examples:
        bisenet predict photo.jpg --out mask.png
        bisenet predict photos/ more/*.jpg --out masks --output overlay
        bisenet predict photo.jpg --out mask.png --model city@3 --json
        bisenet predict clip.mp4 --out overlay.mp4 --output overlay
    """
    film = film_of(inputs, out, output)
    jobs = plan(inputs, out) if film is None else []
    models = {"serve": model and [model], "engine": engine, "device": device, "precision": precision}
    with exit_on_errors():
        settings = local_settings({"models": models, "registry": {"url": registry}})
        with (
            open_segmenter(settings) as (segmenter, served),
            _progress(len(jobs) if film is None else None) as advance,
        ):
            if film is None:
                entries = asyncio.run(_predict_all(segmenter, served, jobs, output, advance))
            else:
                entries = [_predict_film(segmenter, served, film, out, output, advance=advance)]
    _report(entries, served, as_json=as_json)
    if any("error" in entry for entry in entries):
        raise typer.Exit(EXIT_FAILED)


def film_of(inputs: Sequence[Path], out: Path, output: Output) -> Path | None:
    """Return the film that is to be read; None when there are pictures only.

    Raises:
        typer.BadParameter: there are other inputs beside it, or its masks cannot be written there.
    """
    film = next((path for path in inputs if _is_film(path)), None)
    if film is None:
        return None
    if len(inputs) > 1:
        raise typer.BadParameter(f"a film is taken alone: {film}")
    if _is_film(out) and output == "labels":
        raise typer.BadParameter(f"a film holds no exact labels: name a folder, not {out}")
    if out.resolve() == film.resolve():
        raise typer.BadParameter(f"the output would take the place of the film: {out}")
    if out.suffix and not _is_film(out) and not out.is_dir():
        raise typer.BadParameter(f"a film becomes a film or a folder of PNG files, not {out}")
    return film


def _is_film(path: Path) -> bool:
    return path.suffix.lower() in FILM_SUFFIXES and not path.is_dir()


def _predict_film(
    segmenter: Segmenter,
    model: LoadedModel,
    film: Path,
    out: Path,
    output: Output,
    *,
    advance: Callable[[], None],
) -> Entry:
    import_cameras()
    from service.cli.video import predict_film  # noqa: PLC0415 - PyAV is an extra

    try:
        return asyncio.run(
            predict_film(segmenter, model, film, out, output, advance=advance, as_film=_is_film(out))
        )
    except SourceError as error:
        return {"input": str(film), "error": {"code": "undecodable_image", "message": str(error)}}


def plan(inputs: Sequence[Path], out: Path) -> list[PredictTask]:
    """Decide which mask goes where, before anything is done.

    Args:
        inputs: files, taken as they are, and folders, of which the pictures directly inside are taken.
        out: the mask's file if there is one input file and ``out`` has a suffix; else a folder.

    Raises:
        typer.BadParameter: no picture; two masks, or a mask and a picture, would share a file; or a mask
            would be no ``.png``.
    """
    sources = list(dict.fromkeys(source for path in inputs for source in _pictures(path)))
    if not sources:
        raise typer.BadParameter(f"no pictures in {', '.join(map(str, inputs))}")
    if len(inputs) == 1 and inputs[0].is_file() and out.suffix and not out.is_dir():
        jobs = [PredictTask(sources[0], out)]
    else:
        jobs = [PredictTask(source, out / f"{source.stem}.png") for source in sources]
    _check_targets(jobs)
    return jobs


def _pictures(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
    return [path]


def _check_targets(jobs: Sequence[PredictTask]) -> None:
    pictures = {job.source.resolve() for job in jobs}
    owners: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target.suffix.lower() != ".png":
            raise typer.BadParameter(f"masks are PNG files: {job.target}")
        if target in pictures:
            raise typer.BadParameter(
                f"the mask of {job.source} would take the place of a picture: {job.target}"
            )
        rival = owners.setdefault(target, job.source)
        if rival != job.source:
            raise typer.BadParameter(f"{rival} and {job.source} would both become {job.target}")


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    with Progress(console=console, disable=total == 1 or not console.is_terminal) as progress:
        bar = progress.add_task("pictures", total=total)
        yield lambda: progress.advance(bar)


async def _predict_all(
    segmenter: Segmenter,
    model: LoadedModel,
    jobs: Sequence[PredictTask],
    output: Output,
    advance: Callable[[], None],
) -> list[Entry]:
    entries: dict[int, Entry] = {}
    remaining = iter(enumerate(jobs))

    async def work() -> None:
        for index, job in remaining:
            entries[index] = await _predict(segmenter, model, job, output)
            advance()

    await asyncio.gather(*(work() for _ in range(_IN_FLIGHT)))
    return [entries[index] for index in range(len(jobs))]


async def _predict(segmenter: Segmenter, model: LoadedModel, job: PredictTask, output: Output) -> Entry:
    try:
        data = await asyncio.to_thread(_read, job.source)
        write = partial(_write, job=job, output=output)
        deadline_s = time.monotonic() + _PATIENCE_S
        async with segmenter.segment(model, EncodedPicture(data), write, deadline_s=deadline_s) as entry:
            return entry
    except ServiceError as error:
        return {"input": str(job.source), "error": {"code": error.code, "message": str(error)}}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot be read: {error.strerror}") from error


def _write(segmentation: Segmentation, job: PredictTask, output: Output) -> Entry:
    label_map = segmentation.label_map
    if output == "overlay":
        encoded = codec.encode_rgb_png(codec.overlay(segmentation.image_HW3, label_map))
    else:
        encoded = codec.encode_palette_png(label_map)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    job.target.write_bytes(encoded)
    size = size_of(segmentation.image_HW3)
    return {
        "input": str(job.source),
        "output": str(job.target),
        "width": size.width,
        "height": size.height,
        "classes": codec.class_statistics(label_map),
        "timings_ms": {
            name.removesuffix("_s"): round(1e3 * seconds, 3)
            for name, seconds in dataclasses.asdict(segmentation.timings).items()
        },
    }


def _report(entries: Sequence[Entry], served: LoadedModel, *, as_json: bool) -> None:
    if as_json:
        model = {"model": str(served.version), **dataclasses.asdict(served.engine)}
        typer.echo(json.dumps({**model, "images": entries}, indent=2))
        return
    failures = [entry for entry in entries if "error" in entry]
    for entry in failures:
        typer.echo(f"error: {entry['input']}: {entry['error']['message']}", err=True)
    engine = f"{served.engine.engine} {served.engine.precision} on {served.engine.device}"
    typer.echo(f"{len(entries) - len(failures)} of {len(entries)} pictures by {served.version} ({engine})")
