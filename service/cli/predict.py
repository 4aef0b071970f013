"""``bisenet predict``: pictures in, masks out, without a server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from click import format_filename
from rich.console import Console
from rich.progress import Progress

from model.errors import ProtocolError
from model.evaluation import protocols
from model.pictures.image import ImageLimits
from model.pictures.local_image import LocalImage
from model.pictures.preprocess import size_of
from service.cli.extras import import_cameras
from service.cli.labelers import Labeler, open_labeler
from service.cli.local import EXIT_FAILED, exit_on_errors, local_settings
from service.cli.notes import LEAST_BITS, picture_notes
from service.cli.picture_files import PredictPlan, PredictTask, is_film, plan
from service.client.errors import SourceError
from service.core.errors import InvalidArgumentError, ServiceError
from service.core.pictures import codec
from service.core.pictures.local_files import FULL_BITS, not_taken_line, read_picture
from service.core.pictures.mask_rendering import Output, mask_png
from service.core.pictures.passes import tile_protocol
from service.core.pictures.picture_labeler import LabelledPicture

Entry = dict[str, Any]
"""The report on one input: plain JSON values. ``error`` is there when there is no mask."""

_IN_FLIGHT = 2
"""While one picture is in the engine, the next one is read."""


@dataclass(frozen=True)
class _Reading:
    """How pictures are read: see ``decode_local_image``."""

    limits: ImageLimits
    bits: int


def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            exists=True,
            help="Pictures, folders (pictures at any depth are taken), or one film.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="A .png file for one picture, a film for a film, else a folder with the structure of INPUT.",
        ),
    ],
    *,
    output: Annotated[Output, typer.Option(help="What the masks show.")] = "color",
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=32,
            help="Label pictures at full detail, in tiles of NxN pixels. Default: large ones are reduced. "
            "With 1024 the masks are those of detail=full over HTTP.",
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            metavar="F",
            min=0,
            max=0.9,
            help="Share of a tile that its neighbour covers, too. Default: a third.",
        ),
    ] = None,
    bits: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=LEAST_BITS,
            max=FULL_BITS,
            help="Bits in use in 16-bit pictures, for example 12: stretches dark pictures.",
        ),
    ] = FULL_BITS,
    model: Annotated[str | None, typer.Option(help="NAME, NAME:ALIAS or NAME@VERSION.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, openvino, tensorrt or torch.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, f32, bf16, f16 or int8.")] = None,
    registry: Annotated[str | None, typer.Option(metavar="URL", help="Where published models are.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")] = False,
) -> None:
    """Segment pictures: each mask is a PNG file of its picture's own size.

    Reads JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000, PPM and, with the extra "heic", HEIC. In the masks
    "labels" and "color" a pixel is a class id, and the palette of the file holds the colours.

    Examples:
        bisenet predict photo.jpg --out mask.png
        bisenet predict photos/ more/*.jpg --out masks --output overlay
        bisenet predict aerial.tif --out mask.png --tile 1024
        bisenet predict photo.jpg --out mask.png --model city@3 --json
        bisenet predict clip.mp4 --out overlay.mp4 --output overlay
    """
    film = film_of(inputs, out, output)
    planned = plan(inputs, out) if film is None else PredictPlan((), Counter())
    tiles = _tiles(tile, overlap)
    models = {"serve": model and [model], "engine": engine, "device": device, "precision": precision}
    with exit_on_errors():
        settings = local_settings({"models": models, "registry": {"url": registry}})
        reading = _Reading(ImageLimits(settings.limits.max_pixels, settings.limits.max_side), bits)
        with (
            open_labeler(settings, tiles) as labeler,
            _progress(len(planned.tasks) if film is None else None) as advance,
        ):
            if film is None:
                entries = asyncio.run(_predict_all(labeler, planned.tasks, output, reading, advance))
            else:
                entries = [_predict_film(labeler, film, out, output, advance)]
    if as_json:
        typer.echo(json.dumps(_document(labeler, entries, planned.not_taken), indent=2))
    else:
        _print_report(labeler, entries, planned.not_taken)
    if any("error" in entry for entry in entries):
        raise typer.Exit(EXIT_FAILED)


def _tiles(tile: int | None, overlap: float | None) -> protocols.Protocol | None:
    if tile is None:
        if overlap is not None:
            raise typer.BadParameter("--overlap is for tiles: name their size with --tile")
        return None
    try:
        return tile_protocol(tile, overlap)
    except ProtocolError as error:
        raise typer.BadParameter(f"--tile: {error}") from error


def film_of(inputs: Sequence[Path], out: Path, output: Output) -> Path | None:
    """Return the film among the inputs; None when there are only pictures and folders.

    Raises:
        typer.BadParameter: the film is not the only input, or its masks cannot be written to ``out``.
    """
    film = next((path for path in inputs if is_film(path)), None)
    if film is None:
        return None
    film_name, out_name = format_filename(film), format_filename(out)
    if len(inputs) > 1:
        raise typer.BadParameter(f"a film must be the only input: run the command for {film_name} alone")
    if is_film(out) and output == "labels":
        raise typer.BadParameter(f"a film cannot hold exact labels: name a folder instead of {out_name}")
    if out.resolve() == film.resolve():
        raise typer.BadParameter(f"the output would replace the film: name another --out than {out_name}")
    if out.suffix and not is_film(out) and not out.is_dir():
        raise typer.BadParameter(f"a film becomes a film or a folder of PNG files, not {out_name}")
    return film


def _predict_film(
    labeler: Labeler, film: Path, out: Path, output: Output, advance: Callable[[], None]
) -> Entry:
    import_cameras()
    from service.cli.video import predict_film  # noqa: PLC0415 - PyAV is an extra

    try:
        return asyncio.run(predict_film(labeler, film, out, output, advance, as_film=is_film(out)))
    except SourceError as error:
        return {"input": str(film), "error": {"code": "undecodable_image", "message": str(error)}}


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    with Progress(console=console, disable=total == 1 or not console.is_terminal) as progress:
        bar = progress.add_task("pictures", total=total)
        yield lambda: progress.advance(bar)


async def _predict_all(
    labeler: Labeler,
    tasks: Sequence[PredictTask],
    output: Output,
    reading: _Reading,
    advance: Callable[[], None],
) -> list[Entry]:
    entries: dict[int, Entry] = {}
    remaining = iter(enumerate(tasks))

    async def work() -> None:
        for index, task in remaining:
            entries[index] = await _predict(labeler, task, output, reading)
            advance()

    await asyncio.gather(*(work() for _ in range(_IN_FLIGHT)))
    return [entries[index] for index in range(len(tasks))]


async def _predict(labeler: Labeler, task: PredictTask, output: Output, reading: _Reading) -> Entry:
    try:
        started_s = time.monotonic()
        picture = await asyncio.to_thread(_read, task.source, reading)
        decode_ms = round(1e3 * (time.monotonic() - started_s), 3)
        labelled = await labeler.label(picture.image_HW3)
        await asyncio.to_thread(_write, task.target, picture, labelled, output)
    except ServiceError as error:
        return {"input": str(task.source), "error": {"code": error.code, "message": str(error)}}
    size = size_of(picture.image_HW3)
    entry = {
        "input": str(task.source),
        "output": str(task.target),
        "width": size.width,
        "height": size.height,
        "classes": codec.class_statistics(labelled.label_map),
        "timings_ms": {**labelled.timings_ms, "decode": decode_ms},
    }
    notes = picture_notes(picture, reading.bits, labelled.inference_size)
    return {**entry, "notes": notes} if notes else entry


def _read(path: Path, reading: _Reading) -> LocalImage:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot be read: {error.strerror}") from error
    return read_picture(data, reading.limits, bits=reading.bits)


def _write(target: Path, picture: LocalImage, labelled: LabelledPicture, output: Output) -> None:
    encoded = mask_png(picture.image_HW3, labelled.label_map, output)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded)
    except OSError as error:
        raise InvalidArgumentError(
            f"the mask cannot be written to {format_filename(target)}: {error.strerror}"
        ) from error


def _document(labeler: Labeler, entries: Sequence[Entry], not_taken: Counter[str]) -> dict[str, Any]:
    document = {"model": str(labeler.version), **dataclasses.asdict(labeler.engine), "images": entries}
    return {**document, "not_taken": dict(not_taken)} if not_taken else document


def _print_report(labeler: Labeler, entries: Sequence[Entry], not_taken: Counter[str]) -> None:
    failures = [entry for entry in entries if "error" in entry]
    for entry in failures:
        typer.echo(f"error: {format_filename(entry['input'])}: {entry['error']['message']}", err=True)
    noted: dict[str, list[str]] = {}
    for entry in entries:
        for note in entry.get("notes", ()):
            noted.setdefault(note, []).append(format_filename(entry["input"]))
    for note, names in noted.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        typer.echo(f"note: {names[0]}{others}: {note}", err=True)
    if line := not_taken_line(not_taken):
        typer.echo(line, err=True)
    engine = f"{labeler.engine.engine} {labeler.engine.precision} on {labeler.engine.device}"
    done = f"{len(entries) - len(failures)} of {len(entries)} pictures"
    if not failures and "frames" in entries[0]:
        done = f"{entries[0]['frames']} pictures of a film"
    typer.echo(f"{done} by {labeler.version} ({engine})")
