"""``bisenet evaluate``: scores of a model on labelled pictures."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from model.datasets.dataset import DatasetSpec, LabeledImages
from model.errors import ProtocolError
from model.evaluation.comparison import Comparison
from model.evaluation.evaluation import EvaluationReport
from model.evaluation.protocols import PROTOCOLS, Protocol, as_published, find_protocol
from model.evaluation.report import ShownImage, render_html
from model.progress import ProgressDisplay
from service.cli.local import EXIT_FAILED, exit_on_errors, local_settings
from service.cli.scoring import evaluate_split, open_evaluated_model, show_worst
from service.settings import Settings

_WORST = 6
_NAMED = 8
_COMPARED = ("model", "engine", "device", "precision")
Choices = dict[str, str | None]


@dataclass(frozen=True, eq=False)
class _Evaluation:
    report: EvaluationReport
    worst: tuple[ShownImage, ...]
    seconds: float


def evaluate(
    *,
    dataset: Annotated[str, typer.Option(metavar="D", help="A data-set TOML, or a preset with --root.")],
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the data set.")] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "val",
    protocol: Annotated[str, typer.Option(metavar="P", help=f"One of {', '.join(PROTOCOLS)}.")] = "ss",
    crop: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the chips of ssc, mscf and slide. Default: 1024; with the presets ade20k and"
            " cocostuff 640 for BiSeNetV2 and 512 for BiSeNetV1.",
        ),
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=0,
            help="Resize the short side of each picture first; 0 = do not. Default: 0; with the preset"
            " ade20k 640 for BiSeNetV2 and 512 for BiSeNetV1, as the original code does.",
        ),
    ] = None,
    count_absent_as_zero: Annotated[
        bool,
        typer.Option(
            "--count-absent-as-zero",
            help="Average over all classes, as the original BiSeNet code does: IoU = TP / (TP+FP+FN+1).",
        ),
    ] = False,
    model: Annotated[str | None, typer.Option(help="NAME, NAME:ALIAS or NAME@VERSION.")] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="M2", help="Another model, or other options: engine=torch,precision=f32"),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="auto, openvino, tensorrt or torch.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, f32, bf16, f16 or int8.")] = None,
    registry: Annotated[str | None, typer.Option(metavar="URL", help="Registry of the models.")] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave broken pairs out and count them.")
    ] = False,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the report as a page, DIR/index.html.")
    ] = None,
) -> None:
    """Score a model on labelled pictures: mIoU and IoU of each class, with 95 % intervals over pictures.

    Protocols. Scores of different protocols cannot be compared:
        ss: the whole picture, once. What most papers report.
        ssc: square chips that overlap by a third, once.
        msf: the whole picture at 0.5 to 1.75 times its size, as it is and mirrored: 12 runs.
        mscf: the same with chips. The slowest, and often the highest score.
        slide: chips as mmsegmentation cuts and averages them.
        ss-old, ssc-old, msf-old, mscf-old: the arithmetic of the oldest BiSeNet code. ss-old is also what
        training reports and the service computes: pictures are padded to multiples of 32, not resized.

    "mIoU over 14 of 19 classes" says that 5 classes occur neither in the labels nor in the predictions of
    this split. They have no IoU, and the mean leaves them out. The original BiSeNet code counts each of them
    as 0 and adds 1 to every union, which makes its mIoU lower: --count-absent-as-zero does the same.

    Examples:
        bisenet evaluate --dataset camvid --root /data/camvid
        bisenet evaluate --dataset ade20k --root /data/ade20k --model ade --count-absent-as-zero
        bisenet evaluate --model city@3 --dataset city.toml --protocol mscf --report scores --json scores.json
        bisenet evaluate --dataset camvid --root /data/camvid --precision bf16 --compare precision=f32
        bisenet evaluate --model city@3 --dataset city.toml --compare city@4
    """
    how = _ProtocolChoice(dataset, protocol, crop, short_side, absent_as_zero=count_absent_as_zero)
    first: Choices = {"model": model, "engine": engine, "device": device, "precision": precision}
    second = None if compare is None else first | parse_compared(compare)
    with exit_on_errors():
        pictures = LabeledImages(DatasetSpec.load(dataset, root=root), split)
        show = _WORST if report else 0
        done = _evaluate(_settings(first, registry), pictures, how, skip_broken=skip_broken, show=show)
        comparison = None
        if second is not None:
            other = _evaluate(_settings(second, registry), pictures, how, skip_broken=skip_broken)
            comparison = Comparison(done.report, other.report)
        page = render_html(done.report, done.worst, comparison) if report else ""
    document = comparison.to_json() if comparison else done.report.to_json()
    timing = {"seconds": round(done.seconds, 3), "pictures_per_s": round(len(pictures) / done.seconds, 2)}
    _write(as_json, json.dumps({**document, "timing": timing}, indent=2) + "\n")
    _write(report and report / "index.html", page)
    typer.echo(_summary(done.report, comparison))


def parse_compared(text: str) -> Choices:
    """Read ``--compare``: a model, or ``key=value`` pairs of model, engine, device and precision.

    Raises:
        typer.BadParameter: a key is unknown, or has no value.
    """
    if "=" not in text:
        return {"model": text}
    choices: Choices = {}
    for pair in text.split(","):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in _COMPARED or not value:
            raise typer.BadParameter(f"{pair!r} is no KEY=VALUE of {', '.join(_COMPARED)}")
        choices[key] = value
    return choices


class _ProtocolChoice:
    """The protocol as the options describe it.

    Raises:
        typer.BadParameter: there is no such protocol, or it cannot have such chips.
    """

    def __init__(
        self, dataset: str, name: str, crop: int | None, short_side: int | None, *, absent_as_zero: bool
    ) -> None:
        self.absent_as_zero = absent_as_zero
        self._dataset = dataset
        self._crop = crop
        self._short_side = short_side
        try:
            self._plain = find_protocol(name)
            self.of("")
        except ProtocolError as error:
            raise typer.BadParameter(str(error)) from error

    def of(self, architecture: str) -> Protocol:
        """Return the protocol for models of an architecture."""
        protocol = as_published(self._plain, dataset=self._dataset, architecture=architecture)
        if self._crop is not None:
            protocol = protocol.with_crop(self._crop)
        if self._short_side is not None:
            protocol = protocol.with_short_side(self._short_side or None)
        return protocol


def _settings(choices: Choices, registry: str | None) -> Settings:
    model, *rest = (choices[key] for key in _COMPARED)
    models: dict[str, Any] = dict(zip(_COMPARED[1:], rest, strict=True))
    return local_settings({"models": {"serve": model and [model], **models}, "registry": {"url": registry}})


def _evaluate(
    settings: Settings, pictures: LabeledImages, how: _ProtocolChoice, *, skip_broken: bool, show: int = 0
) -> _Evaluation:
    with open_evaluated_model(settings) as candidate:
        protocol = how.of(candidate.manifest.architecture)
        began_s = time.perf_counter()
        with ProgressDisplay().task(f"evaluating {candidate.version}", len(pictures)) as task:
            report = evaluate_split(
                candidate,
                pictures,
                protocol,
                command=shlex.join(["bisenet", *sys.argv[1:]]),
                absent_as_zero=how.absent_as_zero,
                skip_broken=skip_broken,
                advance=task.advance,
            )
        seconds = time.perf_counter() - began_s
        return _Evaluation(report, show_worst(candidate, pictures, protocol, report, count=show), seconds)


def _write(path: Path | None, text: str) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        typer.echo(f"error: {path} cannot be written: {error.strerror}", err=True)
        raise typer.Exit(EXIT_FAILED) from error


def _summary(report: EvaluationReport, comparison: Comparison | None) -> str:
    context, matrix = report.context, report.matrix
    runner = f"{context.engine} {context.precision} on {context.device}"
    means = (
        f"mIoU over {matrix.classes_averaged} of {matrix.num_classes} classes; pixel accuracy"
        f" {_percent(matrix.pixel_accuracy)}, mean recall {_percent(matrix.mean_recall)}, mean F1"
        f" {_percent(matrix.mean_f1)}, frequency-weighted IoU {_percent(matrix.frequency_weighted_iou)}"
    )
    lines = [
        f"{context.model} ({runner}), {context.dataset} {context.split}, protocol {context.protocol}",
        f"{len(report.images)} pictures, {len(report.skipped)} broken ones left out",
        *(_difference_lines(comparison) if comparison else _class_lines(report)),
        means,
        *_absent_line(report),
    ]
    return "\n".join(lines)


def _absent_line(report: EvaluationReport) -> Iterator[str]:
    names = [report.palette.names[k] for k in report.matrix.absent]
    if not names:
        return
    told = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    counted = "counted as 0" if report.context.absent_as_zero else "left out of the mean"
    yield f"neither in the labels nor in the predictions, {counted}: {told}"


def _class_lines(report: EvaluationReport) -> Iterator[str]:
    row = "{:<20}{:>10}   {}"
    yield row.format("", "IoU %", "95 %")
    names = ("mIoU", *report.palette.names)
    scores = (report.matrix.miou, *report.matrix.iou)
    intervals = (report.intervals.miou, *report.intervals.iou)
    for name, iou, interval in zip(names, scores, intervals, strict=True):
        between = "" if interval is None else f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
        yield row.format(name, _percent(iou), between)


def _difference_lines(comparison: Comparison) -> Iterator[str]:
    row = "{:<20}{:>10}{:>10}{:>10}   {}"
    first, second = comparison.first.context, comparison.second.context
    yield f"compared with {second.model} ({second.engine} {second.precision} on {second.device})"
    yield row.format("IoU %", first.precision, second.precision, "change", "95 %")
    for one in (comparison.miou, *comparison.classes):
        between = (
            "" if one.interval is None else f"{100 * one.interval.low:+.2f} to {100 * one.interval.high:+.2f}"
        )
        change = "" if one.change is None else f"{100 * one.change:+.2f}"
        yield row.format(one.name, _percent(one.first), _percent(one.second), change, between)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.2f}"
