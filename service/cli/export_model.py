"""``bisenet models export``: a model as a file for other programs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from model.artifacts.artifact import Artifact
from model.artifacts.manifest import ModelVersion
from model.artifacts.openvino_graph import write_graph
from model.errors import ExportError
from model.pictures.preprocess import ImageSize
from model.progress import ProgressDisplay
from service.cli.local import exit_on_errors, local_settings, open_artifact

Format = Literal["onnx", "openvino"]

SUFFIXES: dict[Format, tuple[str, ...]] = {"onnx": (".onnx",), "openvino": (".xml", ".bin")}
"""Suffixes of the files of a format; programs are given the first file."""

_ONNX_PACKAGES = ("torch", "onnxscript", "onnxruntime")
_MAX_SIDE = 16_384


def export_model(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="NAME, NAME:ALIAS or NAME@VERSION. Default: the shipped one."),
    ] = None,
    *,
    form: Annotated[
        Format,
        typer.Option("--format", help="onnx needs the extra onnx; openvino needs no extra."),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="PATH", help="A .onnx or .xml file (with a .bin beside it), or a folder."),
    ],
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="onnx: height and width of the pictures; else any multiples of 32."),
    ] = None,
    layout: Annotated[
        Literal["nhwc", "nchw"] | None, typer.Option(help="onnx: order of the input's axes; else nhwc.")
    ] = None,
    output: Annotated[
        Literal["scores", "labels"] | None,
        typer.Option(help="onnx: scores of the head, or class ids of the picture's size; else scores."),
    ] = None,
    precision: Annotated[
        Literal["f32", "f16"] | None, typer.Option(help="onnx: of weights and computation; else f32.")
    ] = None,
    registry: Annotated[str | None, typer.Option(metavar="URL", help="Registry of the models.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")] = False,
) -> None:
    """Write a model as ONNX or as an OpenVINO graph, proven by its golden sample to compute the same.

    Input images: RGB as float32 of 0..255, any batch; normalised inside.
    Output raw: the head's scores, NCHW, float32; bisenet models show says how they are up-sampled.
    Output labels (--output labels): class ids, NHW, uint8, of the input's size.

    ONNX files are proven by ONNX Runtime on the CPU. A --size that is no multiple of 32 is padded inside, as
    the service pads.

    Examples:
        bisenet models export --format onnx --out model.onnx
        bisenet models export --format onnx --size 512x1024 --layout nchw --output labels --out model.onnx
        bisenet models export city@3 --format openvino --out exported/
    """
    check_out(form, out)
    choices = {"size": _size(size), "layout": layout, "output": output, "precision": precision}
    chosen = {key: value for key, value in choices.items() if value is not None}
    if chosen and form != "onnx":
        raise typer.BadParameter(f"--{next(iter(chosen))} is for --format onnx only")
    with exit_on_errors():
        # In floating point unless an int8 version is named: other programs quantise as their device likes.
        models = {"serve": model and [model], "precision": "f32"}
        version, artifact = open_artifact(local_settings({"models": models, "registry": {"url": registry}}))
        with ProgressDisplay().task(f"writing {form}"):
            files = export(version, artifact, form, out, chosen)
    if as_json:
        identity = {"name": version.name, "version": version.number}
        told = {key: str(value) for key, value in chosen.items()}
        report = {**identity, "format": form, **told, "files": list(map(str, files))}
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(f"{version}: {', '.join(map(str, files))}, proven by the golden sample")


def check_out(form: Format, out: Path) -> None:
    """Refuse a file name with the suffix of another format.

    Raises:
        typer.BadParameter: the suffix is not that of the format.
    """
    if _is_file_name(out) and out.suffix != SUFFIXES[form][0]:
        raise typer.BadParameter(f"--out: {form} is written as {SUFFIXES[form][0]}, not {out.suffix}")


def _size(text: str | None) -> ImageSize | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    sides = [int(side) if side.isdecimal() else 0 for side in (height, width)]
    if not all(1 <= side <= _MAX_SIDE for side in sides):
        raise typer.BadParameter(f"--size must be HEIGHTxWIDTH of 1 to {_MAX_SIDE} pixels, not {text!r}")
    return ImageSize(*sides)


def export(
    version: ModelVersion,
    artifact: Artifact,
    form: Format,
    out: Path,
    choices: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a model's files; they appear once all of them are proven, over older ones of their name.

    Args:
        version: names the files where ``out`` is a folder.
        artifact: of the model.
        form: format of the files.
        out: a file name with the suffix of the format, or a folder.
        choices: arguments of ``model.export.onnx_graph.OnnxForm``, for ``onnx`` only.

    Returns:
        The files, the one that programs are given first.

    Raises:
        ExportError: a file cannot be written, the packages that write the format are not installed, or the
            format does not know int8.
        ModelError: the artifact is damaged, or the written file computes something else.
    """
    if form == "onnx" and artifact.manifest.precision == "int8":
        raise ExportError(f"{version} is int8, which is exported as openvino only")
    write, suffixes = _writer(form, choices or {}), SUFFIXES[form]
    target = out if _is_file_name(out) else out / f"{version.name}-{version.number}{suffixes[0]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
            draft = Path(folder, target.name)
            write(artifact, draft)
            # The weights first: a program that sees the first file finds the others.
            return [draft.with_suffix(s).replace(target.with_suffix(s)) for s in reversed(suffixes)][::-1]
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror}") from error


def _is_file_name(out: Path) -> bool:
    return bool(out.suffix) and not out.is_dir()


def _writer(form: Format, choices: Mapping[str, Any]) -> Callable[[Artifact, Path], None]:
    if form == "openvino":
        return write_graph
    if missing := [name for name in _ONNX_PACKAGES if find_spec(name) is None]:
        raise ExportError(f"ONNX needs {' and '.join(missing)}: pip install 'bisenet-service[onnx]'")
    onnx_graph = import_module("model.export.onnx_graph")
    return partial(onnx_graph.write_onnx, form=onnx_graph.OnnxForm(**choices))
