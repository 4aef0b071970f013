"""``bisenet dataset import``, ``export`` and ``example``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from training.command_errors import exit_on_training_errors


class Format(StrEnum):
    """Formats that can be imported."""

    COCO = "coco"
    COCO_PANOPTIC = "coco-panoptic"
    CVAT = "cvat"
    LABEL_STUDIO = "label-studio"
    LABELME = "labelme"
    MASKS = "masks"
    SUPERVISELY = "supervisely"
    VOC = "voc"


class ExportFormat(StrEnum):
    """Formats that can be exported."""

    COCO_PANOPTIC = "coco-panoptic"
    PALETTE = "palette"


class Pictures(StrEnum):
    """How pictures get into the new folder."""

    COPY = "copy"
    LINK = "link"


def run_import(
    format_: Annotated[Format, typer.Argument(metavar="FORMAT", help="What SOURCE is.")],
    source: Annotated[Path, typer.Argument(help="Folder or ZIP file of the export.")],
    dest: Annotated[Path, typer.Argument(help="New folder of the data set.")],
    *,
    images: Annotated[
        Path | None, typer.Option(help="Folder or ZIP file with the pictures, where SOURCE lacks them.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Class list: names (and colours) in the order of the ids, in place of SOURCE's."),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS", help="Pixels of this class are neither learned nor scored; repeatable."
        ),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS|ignore",
            help="Class of pixels that no shape covers. Default: background, added as id 0 where missing;"
            " coco-panoptic: ignore.",
        ),
    ] = None,
    keep_empty: Annotated[
        bool, typer.Option("--keep-empty", help="Take pictures without a shape, as background.")
    ] = False,
    color_tolerance: Annotated[
        int,
        typer.Option(
            min=0, max=255, help="Read a colour of no class as the nearest one within this distance."
        ),
    ] = 0,
    val_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share to validate on, where SOURCE names no such pictures.")
    ] = 0.1,
    pictures: Annotated[
        Pictures, typer.Option(help="Copy the pictures, or link them (one file under two names).")
    ] = Pictures.COPY,
    workers: Annotated[int, typer.Option(min=1, help="Threads that draw and write.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Write a JSON object.")] = False,
) -> None:
    """Make a data set of an annotation program's export: pictures, id masks, classes, lists, data-set file.

    coco            instances: polygons and run lengths; smaller objects lie above larger ones

    coco-panoptic   segments in PNG files; unlabelled pixels are ignored

    cvat            'CVAT for images 1.1' (higher z_order lies above) and 'Segmentation mask 1.1'

    label-studio    JSON export; brush labels to PNG, with the JSON export beside them

    labelme         JSON files; later shapes lie above

    masks           pictures and masks in the colours of --classes or of classes.txt, class_dict.csv in SOURCE

    supervisely     a project; later objects lie above

    voc             SegmentationClass, JPEGImages, ImageSets

    Splits of the source are kept. Else the names of the pictures decide: the same source is always divided in
    the same way. Records that are not taken are reported by kind and count, also in DEST/import.txt.

    Examples:
      bisenet dataset import cvat task_12.zip data/street

      bisenet dataset import coco annotations/ data/street --images photos/ --background ignore

      bisenet dataset import masks camvid/ data/camvid --classes class_dict.csv --ignore Void
    """
    from model.datasets.palettes import read_palette  # noqa: PLC0415 - --help does not wait
    from training.interchange.foreign import ReadOptions  # noqa: PLC0415
    from training.interchange.importing import ImportOptions, import_dataset  # noqa: PLC0415

    with exit_on_training_errors():
        palette = read_palette(classes) if classes else None
        options = ImportOptions(
            ReadOptions(palette, keep_empty, color_tolerance),
            images=images,
            ignore=ignore or (),
            background=background,
            val_fraction=val_fraction,
            pictures=pictures.value,
            workers=workers,
        )
        report = import_dataset(format_.value, source, dest, options, _counter("imported"))
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
        return
    typer.echo("\n".join(report.lines()))
    typer.echo(f"next: bisenet dataset check {report.dataset_file}")


def run_export(
    format_: Annotated[ExportFormat, typer.Argument(metavar="FORMAT", help="What DEST is for.")],
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A data-set file, or a preset with --root.")
    ],
    dest: Annotated[Path, typer.Argument(help="New folder.")],
    *,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the data set; replaces the root of the file.")
    ] = None,
) -> None:
    """Write a data set for other programs, pictures included.

    coco-panoptic   a JSON file for each split, and PNG files of segments, one for each class of a picture

    palette         8-bit palette PNG files whose pixels are class ids, class list, lists, data-set file

    Examples:
      bisenet dataset export coco-panoptic mine.toml exported/

      bisenet dataset export palette camvid exported/ --root /data/camvid
    """
    from model.datasets.dataset import DatasetSpec  # noqa: PLC0415 - --help does not wait
    from training.interchange.exporting import export_dataset  # noqa: PLC0415

    with exit_on_training_errors():
        spec = DatasetSpec.load(source, root=root)
        counts = export_dataset(spec, dest, format_.value, _counter("exported"))
    typer.echo(f"{dest}: {', '.join(f'{split} {count}' for split, count in counts.items())} pictures")


def run_example(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")],
    *,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same pictures.")] = 0,
) -> None:
    """Make a small synthetic data set with a film, for tutorials: made-up streets, five classes.

    200 pictures to train on and 40 to validate on, with masks, a data-set file, a film of 10 seconds and a
    README with the next commands.

    Examples:
      bisenet dataset example streets
    """
    from training.interchange.example import write_example  # noqa: PLC0415 - --help does not wait

    with exit_on_training_errors():
        report = write_example(folder, seed=seed, progress=_counter("drawn"))
    counts = ", ".join(f"{split} {count}" for split, count in report.splits.items())
    typer.echo(f"{report.dataset_file}: {counts} pictures")
    typer.echo(f"film: {report.film or 'none: install bisenet-service[client], which writes films'}")
    typer.echo(f"next: read {report.readme}, or: {report.commands[0]}")


def _counter(word: str) -> Callable[[int, int], None]:
    """Return a function that counts pictures on a terminal, and prints nothing elsewhere."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{word}: {done}/{total}{chr(10) if done == total else ''}")
            sys.stderr.flush()

    return show
