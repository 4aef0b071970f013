from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from model.evaluation.comparison import Comparison
from model.evaluation.evaluation import (
    EvaluationContext,
    EvaluationReport,
    Evaluator,
    ScoredImage,
    SkippedImage,
)
from model.evaluation.report import ShownImage, render_html
from model.labels import ClassPalette, UInt8Array

PALETTE = ClassPalette(("sky", "road & <kerb>", "car"), ((70, 130, 180), (128, 64, 128), (0, 0, 142)))
CONTEXT = EvaluationContext(
    model="city@3",
    weights="ab" * 32,
    engine="openvino",
    device="cpu",
    processor="a processor",
    precision="bf16",
    protocol="mscf (chips of 1024)",
    dataset="city",
    split="val",
    data_fingerprint="cd" * 32,
    versions={"numpy": "2.4"},
    command="bisenet evaluate --dataset '<script>alert(1)</script>'",
)


class Elements(HTMLParser):
    """Collects start tags, and fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def label_maps(seed: int) -> tuple[UInt8Array, UInt8Array]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, (20, 30), np.uint8)
    guess = np.where(random.random(truth.shape) < 0.8, truth, 1 - truth).astype(np.uint8)
    truth[0, :5] = 255
    return truth, guess


@pytest.fixture
def report() -> EvaluationReport:
    evaluator = Evaluator(PALETTE, total=5)
    for index in range(4):
        evaluator.add(ScoredImage.of(index, f"val/{index}.png", *label_maps(index), PALETTE))
    evaluator.add(SkippedImage(4, "val/<4>.png", "labels & all are broken"))
    return evaluator.report(CONTEXT)


def test_the_page_needs_nothing_but_itself(report: EvaluationReport) -> None:
    elements = Elements(render_html(report)).found
    assert not {"script", "link", "iframe"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")


def test_whatever_names_hold_is_text(report: EvaluationReport) -> None:
    page = render_html(report, comparison=Comparison(report, report))
    assert "<script>" not in page
    assert "<kerb>" not in page
    assert "&lt;script&gt;" in page
    assert "labels &amp; all are broken" in page
    assert "val/&lt;4&gt;.png" in page


def test_the_page_says_how_good_and_by_what(report: EvaluationReport) -> None:
    page = render_html(report)
    assert f"{100 * (report.matrix.miou or 0):.2f} %" in page
    assert "mean over 2 of 3 classes, 4 pictures" in page
    for fact in ("city@3", "openvino", "bf16", "mscf (chips of 1024)", "cd" * 32, "numpy 2.4"):
        assert fact in page


def test_each_class_has_its_bar_and_its_share_of_pixels(report: EvaluationReport) -> None:
    page = render_html(report)
    widths = [
        float(width)
        for width in re.findall(r'<rect width="([\d.]+)" height="14" y="2" fill="#(?!edf1f5)', page)
    ]
    assert [width / 360 for width in widths] == pytest.approx(
        [iou for iou in report.matrix.iou if iou], abs=1e-3
    )
    share = int(report.matrix.truth_K[0]) / report.matrix.pixels
    assert f"{100 * share:.2f} %" in page


def test_the_confusion_matrix_is_a_picture_with_a_square_for_all_that_occurs(
    report: EvaluationReport,
) -> None:
    drawn = re.findall(r"<svg viewBox.*?</svg>", render_html(report), re.DOTALL)
    svg = ET.fromstring(drawn[0])
    squares = svg.findall(".//g/rect")
    assert len(squares) == np.count_nonzero(report.matrix.counts_KK)
    titles = [square.findtext("title") for square in squares]
    wrong = report.matrix.counts_KK[0, 1] / report.matrix.truth_K[0]
    assert f"sky seen as road & <kerb>: {100 * wrong:.2f} %" in titles
    assert [text.text for text in svg.findall("text")] == [name for name in PALETTE.names for _ in range(2)]


def test_pictures_are_shown_with_truth_and_prediction(report: EvaluationReport) -> None:
    truth, guess = label_maps(0)
    image_HW3 = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    page = render_html(report, [ShownImage("val/0.png", 0.25, image_HW3, truth, guess)])
    sources = [attributes["src"] or "" for tag, attributes in Elements(page).found if tag == "img"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
    assert "val/0.png: mIoU 25.00 %" in page
    np.testing.assert_array_equal(np.asarray(pictures[0]), image_HW3)
    np.testing.assert_array_equal(np.asarray(pictures[1].convert("RGB")), PALETTE.rgb_table[truth])
    np.testing.assert_array_equal(np.asarray(pictures[2].convert("RGB")), PALETTE.rgb_table[guess])


def test_large_pictures_are_shown_small(report: EvaluationReport) -> None:
    ids_HW = np.zeros((900, 3000), np.uint8)
    shown = ShownImage("val/0.png", 1.0, np.zeros((900, 3000, 3), np.uint8), ids_HW, ids_HW)
    assert len(render_html(report, [shown])) < 60_000


def test_a_comparison_colours_only_what_other_pictures_would_show_too(report: EvaluationReport) -> None:
    images = []
    for index in range(4):
        truth, guess = label_maps(index)
        guess[1:][truth[1:] == 0] = 0
        images.append(ScoredImage.of(index, f"val/{index}.png", truth, guess, PALETTE))
    context = dataclasses.replace(CONTEXT, precision="f32")
    better = EvaluationReport(context, PALETTE, tuple(images), report.skipped)
    page = render_html(report, comparison=Comparison(report, better))
    assert "Compared with city@3 (openvino f32 on cpu)" in page
    assert 'class="number better">+' in page
    same = render_html(report, comparison=Comparison(report, report))
    assert "number better" not in same
    assert "number worse" not in same
