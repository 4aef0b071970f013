"""``bisenet models import``: weights of the published BiSeNets become a version of a registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from model.artifacts.manifest import ModelVersion, check_name
from model.artifacts.registry import ModelRegistry
from model.checkpoints.download import check_digest, download
from model.checkpoints.limits import DEFAULT_MIN_AGREEMENT
from model.datasets.palettes import Preset, PresetName, load_preset, read_palette
from model.errors import DatasetError, PaletteError
from model.labels import ClassPalette
from model.pictures.preprocess import Rgb
from model.progress import ProgressDisplay
from service.cli.local import EXIT_FAILED, exit_on_errors, local_settings
from service.registry import open_registry

_CHANNELS = 3


def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|URL", help="A file that torch.save wrote, or .safetensors; or its https:// address."
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
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="Refuse a file that has another SHA-256.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="PICTURE,LABELS",
            help="Refuse a network that labels this picture otherwise. LABELS is a PNG of class ids: what the"
            " program of the weights answers, or the truth.",
        ),
    ] = None,
    check_min: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0, max=1, help="Share of the pixels that --check wants alike."),
    ] = DEFAULT_MIN_AGREEMENT,
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

    Keys do not tell either whether a variant computes something else with the same weights, for example
    without the ReLU after the detail branch: --check compares one picture with a known answer.

    A file at an address may have 512 MiB, comes over https alone, and its SHA-256 is printed.

    Examples:
        bisenet models import model_final_v2_city.pth --name city --preset cityscapes
        bisenet models import https://github.com/CoinCheung/BiSeNet/releases/download/0.0.0/model_final_v2_city.pth
        --name city --preset cityscapes --sha256 HEX
        bisenet models import v2_city.pth --name city --preset cityscapes --check street.png,street_ids.png
        bisenet models import 79999_iter.pth --name face --preset face
        bisenet models import mine.pth --name mine --mean .4,.4,.4 --std .2,.2,.2 --classes mine.txt
    """
    pair = None if check is None else _pair(check)
    with exit_on_errors(), TemporaryDirectory(prefix="bisenet-import-") as folder:
        check_name(name)
        told = _told(preset, mean, std, classes)
        target = open_registry(local_settings({"registry": {"url": registry}}))
        _require_torch()
        file, origin = _file(source, sha256, Path(folder))
        conversion = _converted(file, told, origin)
        agreement = None if pair is None else _agreement(conversion, *pair, check_min)
        version = _published(conversion, target, name, Path(folder, "artifact"))
    report = {"name": version.name, "version": version.number} | _report(conversion, agreement)
    typer.echo(json.dumps(report, indent=2) if as_json else sentences(report))


def _pair(text: str) -> tuple[Path, Path]:
    picture, comma, labels = text.rpartition(",")
    if not comma or not picture or not labels:
        raise typer.BadParameter(f"--check must be PICTURE,LABELS, not {text!r}")
    return Path(picture), Path(labels)


def _file(source: str, sha256: str | None, folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the file, fetched where it is an address, and where it comes from.

    Raises:
        DownloadError: it cannot be fetched, or has another digest.
    """
    if "://" in source:
        with ProgressDisplay().task("downloading (MiB)", 0) as task:
            done = download(
                source,
                folder,
                sha256=sha256,
                on_bytes=lambda size, total: task.move_to(size >> 20, (total or size) >> 20),
            )
        typer.echo(f"{done.url}: {done.size} bytes, SHA-256 {done.sha256}", err=True)
        return done.path, {"url": done.url}
    file = Path(source)
    if not file.is_file():
        raise typer.BadParameter(f"{source}: there is no such file")
    if sha256 is not None:
        with file.open("rb") as opened:
            check_digest(source, hashlib.file_digest(opened, "sha256").hexdigest(), sha256)
    return file, {}


def _agreement(conversion: Any, picture: Path, labels: Path, minimum: float) -> float:
    answer = import_module("model.checkpoints.known_answer").KnownAnswer.read(
        picture, labels, conversion.manifest
    )
    agreement: float = answer.check(conversion.network, conversion.manifest, minimum)
    return agreement


def _told(preset: PresetName | None, mean: str | None, std: str | None, classes: Path | None) -> Preset:
    """Return the classes and the normalisation of the options, which keys do not tell."""
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


def _require_torch() -> None:
    if find_spec("torch") is None:
        typer.echo("error: importing needs torch: install bisenet-service[torch]", err=True)
        raise typer.Exit(EXIT_FAILED)


def _converted(file: Path, told: Preset, origin: Mapping[str, str]) -> Any:
    conversion = import_module("model.checkpoints.conversion")
    return conversion.convert_file(file, palette=told.palette, mean=told.mean, std=told.std, origin=origin)


def _published(conversion: Any, registry: ModelRegistry, name: str, folder: Path) -> ModelVersion:
    import_module("model.export.export").write_artifact(folder, conversion.network, conversion.manifest)
    return registry.publish(folder, name)


def _report(conversion: Any, agreement: float | None) -> dict[str, Any]:
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
        "untrained": list(conversion.untrained),
        "sha256": manifest.provenance["imported_from"]["sha256"],
        "agreement": agreement,
    }


def sentences(report: Mapping[str, Any]) -> str:
    """Return the report in words, for people."""
    dropped = ", ".join(report["dropped"]) or "none"
    agreement, untrained = report["agreement"], report["untrained"]
    checked = [] if agreement is None else [f"{100 * agreement:.2f} % of the pixels of --check agree"]
    suspicious = [] if not untrained or agreement is not None else [_warning(untrained)]
    return "\n".join(
        [
            f"found {report['generation']}: {report['title']}",
            f"by {report['recognised_by']}",
            f"auxiliary heads left behind: {dropped}",
            f"{report['classes']} classes, mean {report['mean']}, std {report['std']}",
            f"SHA-256 of the file {report['sha256']}",
            *checked,
            *suspicious,
            f"published {report['name']}@{report['version']}",
        ]
    )


def _warning(untrained: Sequence[str]) -> str:
    return (
        f"warning: {len(untrained)} tensors are those of a new network, such as {untrained[0]}: were the"
        " weights of another network completed? --check PICTURE,LABELS tells"
    )
