"""``bisenet models import``: weights of the published BiSeNets become a version of a registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from model.artifacts.manifest import ModelVersion, check_name
from model.artifacts.registry import ModelRegistry
from model.datasets.palettes import Preset, PresetName, load_preset, read_palette
from model.errors import DatasetError, PaletteError
from model.labels import ClassPalette
from model.pictures.preprocess import Rgb
from service.cli.local import EXIT_FAILED, exit_on_errors, local_settings
from service.registry import open_registry

_CHANNELS = 3


def import_model(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", exists=True, dir_okay=False, help="What torch.save wrote, or .safetensors."
        ),
    ],
    *,
    name: Annotated[str, typer.Option(help="Name of the model: a-z, 0-9, '.', '_' and '-'.")],
    preset: Annotated[
        PresetName | None, typer.Option(help="Classes, mean and std of a well-known data set.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Mean of values 0..1; over that of the preset.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Deviation of values 0..1; over that of the preset.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="One class a line, 'name' or 'name,red,green,blue', or a data-set .toml; over the preset.",
        ),
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(
            "--registry",
            metavar="URL",
            help="Folder, file://, s3://, gs:// or az://; else $BISENET_REGISTRY.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")] = False,
) -> None:
    """Import weights of CoinCheung/BiSeNet, of its forks, or of face-parsing.PyTorch, and publish them.

    The keys tell which generation of that code the weights belong to, and the network computes what that
    code computed. They do not tell how pictures were normalised, nor what the classes are: that is what
    --preset, or --mean, --std and --classes are for. The oldest BiSeNetV1 (v1-g0, v1-g0d) was published with
    ImageNet's normalisation: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225.

    Examples:
        bisenet models import model_final_v2_city.pth --name city --preset cityscapes
        bisenet models import 79999_iter.pth --name face --preset face
        bisenet models import mine.pth --name mine --mean .4,.4,.4 --std .2,.2,.2 --classes mine.txt
    """
    with exit_on_errors():
        check_name(name)
        told = _told(preset, mean, std, classes)
        target = open_registry(local_settings({"registry": {"url": registry}}))
        conversion = _converted(file, told)
        version = _published(conversion, target, name)
    report = {"name": version.name, "version": version.number} | _report(conversion)
    typer.echo(json.dumps(report, indent=2) if as_json else sentences(report))


def _told(preset: PresetName | None, mean: str | None, std: str | None, classes: Path | None) -> Preset:
    """Return what the options say that the keys cannot."""
    if preset is None and (mean is None or std is None or classes is None):
        raise typer.BadParameter(
            "keys tell neither classes nor normalisation: --preset is needed, or all of "
            "--mean, --std and --classes"
        )
    told: dict[str, Any] = {} if preset is None else {**vars(load_preset(preset))}
    if classes is not None:
        told["palette"] = _palette(classes)
    if mean is not None:
        told["mean"] = _rgb("--mean", mean)
    if std is not None:
        told["std"] = _rgb("--std", std)
    return Preset(**told)


def _palette(path: Path) -> ClassPalette:
    try:
        return read_palette(path)
    except (PaletteError, DatasetError) as error:
        raise typer.BadParameter(f"--classes: {error}") from error


def _rgb(option: str, text: str) -> Rgb:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{option} must be three numbers, not {text!r}") from error
    if len(values) != _CHANNELS or not all(0 <= value <= 1 for value in values):
        raise typer.BadParameter(f"{option} must be three numbers of 0..1, not {text!r}")
    red, green, blue = values
    return red, green, blue


def _converted(file: Path, told: Preset) -> Any:
    if find_spec("torch") is None:
        typer.echo("error: importing needs torch: install bisenet-service[torch]", err=True)
        raise typer.Exit(EXIT_FAILED)
    conversion = import_module("model.checkpoints.conversion")
    return conversion.convert_file(file, palette=told.palette, mean=told.mean, std=told.std)


def _published(conversion: Any, registry: ModelRegistry, name: str) -> ModelVersion:
    with TemporaryDirectory(prefix="bisenet-import-") as folder:
        artifact = Path(folder, "artifact")
        import_module("model.export.export").write_artifact(artifact, conversion.network, conversion.manifest)
        return registry.publish(artifact, name)


def _report(conversion: Any) -> dict[str, Any]:
    manifest, recognition = conversion.manifest, conversion.recognition
    return {
        "generation": recognition.generation,
        "title": recognition.title,
        "recognised_by": recognition.evidence,
        "classes": recognition.num_classes,
        "upsample": manifest.upsample,
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "dropped": list(conversion.dropped),
    }


def sentences(report: Mapping[str, Any]) -> str:
    """Return the report in words, for people."""
    dropped = ", ".join(report["dropped"]) or "none"
    return "\n".join(
        [
            f"found {report['generation']}: {report['title']}",
            f"by {report['recognised_by']}",
            f"auxiliary heads left behind: {dropped}",
            f"{report['classes']} classes, mean {report['mean']}, std {report['std']}",
            f"published {report['name']}@{report['version']}",
        ]
    )
