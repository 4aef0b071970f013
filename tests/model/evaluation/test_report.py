from __future__ import annotations

import base64
import dataclasses
import hashlib
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
        if tag != "meta":
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
    assert not {"script", "iframe"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))


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
        float(width) for width in re.findall(r'<rect width="([\d.]+)" height="14" y="2" class="fill"', page)
    ]
    assert [width / 360 for width in widths] == pytest.approx(
        [iou for iou in report.matrix.iou if iou], abs=1e-3
    )
    share = int(report.matrix.truth_K[0]) / report.matrix.pixels
    assert f"{100 * share:.2f} %" in page


def confusion_table(report: EvaluationReport) -> ET.Element:
    (drawn,) = re.findall(r'<table class="matrix">.*?</table>', render_html(report), re.DOTALL)
    return ET.fromstring(drawn)


def test_the_confusion_matrix_has_the_share_of_its_class_in_each_cell(report: EvaluationReport) -> None:
    found = confusion_table(report)
    cells = ["".join(cell.itertext()) for cell in found.findall("./tbody/tr/td")]
    shares_KK = report.matrix.counts_KK / np.maximum(report.matrix.truth_K, 1)[:, np.newaxis]
    assert [float(cell) for cell in cells] == pytest.approx((100 * shares_KK).reshape(-1), abs=0.05)
    assert [head.text for head in found.findall("./tbody/tr/th")] == list(PALETTE.names)
    assert ["".join(head.itertext()) for head in found.findall("./thead/tr/th")] == list(PALETTE.names)
    pixels = report.matrix.counts_KK[0, 1]
    wrong = pixels / report.matrix.truth_K[0]
    titles = [cell.get("title") for cell in found.findall("./tbody/tr/td")]
    assert f"sky seen as road & <kerb>: {100 * wrong:.2f} %, {pixels:,} pixels" in titles


def test_a_linked_cell_leads_to_its_pictures_the_worst_first(report: EvaluationReport) -> None:
    links = [link.get("href") for link in confusion_table(report).findall(".//a")]
    truths_and_guesses = [label_maps(index) for index in range(4)]
    counts = [int(((truth == 0) & (guess == 1)).sum()) for truth, guess in truths_and_guesses]
    worst = int(np.argmax(counts))
    truth, guess = truths_and_guesses[worst]
    shown = ShownImage(f"val/{worst}.png", 0.5, np.zeros((20, 30, 3), np.uint8), truth, guess)
    page = render_html(report, [shown])
    assert "#confusion-0-1" in links
    (listed,) = re.findall(r'<ol id="confusion-0-1">(.*?)</ol>', page)
    items = re.findall(r"<li>(.*?)</li>", listed)
    (anchor,) = re.findall(r'<a href="#(picture-\w+)">', items[0])
    assert re.sub(r"<.*?>", "", items[0]) == f"val/{worst}.png: {max(counts)} pixels"
    assert f'id="{anchor}"' in page
    assert len(items) == 4


def test_many_classes_have_a_list_of_their_most_frequent_confusions_instead_of_a_table() -> None:
    names = tuple(f"class {k}" for k in range(150))
    palette = ClassPalette(names, tuple((k, 255 - k, 7) for k in range(150)))
    truth = np.arange(150, dtype=np.uint8).reshape(10, 15)
    guess = truth.copy()
    guess[0, :3] = 9
    evaluator = Evaluator(palette, total=1)
    evaluator.add(ScoredImage.of(0, "one.png", truth, guess, palette))
    page = render_html(evaluator.report(CONTEXT))
    assert '<table class="matrix">' not in page
    assert "class 2 seen as class 9: 100.00 % of class 2, 1 pixel, in 1 picture" in page


def test_nothing_but_the_named_style_can_act_in_the_page(report: EvaluationReport) -> None:
    page = render_html(report)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [told["content"] for _, told in Elements(page).found if "http-equiv" in told]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; script-src 'none'; img-src data:;"
        " connect-src 'none'; base-uri 'none'; form-action 'none'"
    )
    assert " style=" not in page


def test_pictures_are_shown_with_truth_and_prediction(report: EvaluationReport) -> None:
    truth, guess = label_maps(0)
    image_HW3 = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    page = render_html(report, [ShownImage("val/0.png", 0.25, image_HW3, truth, guess)])
    sources = [attributes["src"] or "" for tag, attributes in Elements(page).found if tag == "img"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]
    assert "mIoU 25.00 %" in page
    assert [picture.format for picture in pictures] == ["JPEG", "PNG", "PNG", "PNG"]
    assert np.abs(np.asarray(pictures[0], np.int16).mean() - image_HW3.mean()) < 5
    np.testing.assert_array_equal(np.asarray(pictures[1].convert("RGB")), PALETTE.rgb_table[truth])
    np.testing.assert_array_equal(np.asarray(pictures[2].convert("RGB")), PALETTE.rgb_table[guess])
    difference = np.asarray(pictures[3].convert("RGB"))
    colors = [np.unique(difference[kind], axis=0) for kind in (truth == 255, truth == guess)]
    assert [len(found) for found in colors] == [1, 1]
    wrong = np.unique(difference[(truth != guess) & (truth != 255)], axis=0)
    assert len({tuple(found[0]) for found in (*colors, wrong)}) == 3


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
