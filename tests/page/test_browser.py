"""The page in a real browser: ``make browser``."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from browser_visit import ANSWER_MS, JOB_MS, Visit
from fakes import PATIENCE_S
from live_service import Server
from PIL import Image

playwright_api = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "service/page/examples/crossing.jpg"


def picture_size(file: Path) -> tuple[int, int]:
    return Image.open(io.BytesIO(file.read_bytes())).size


def test_a_picture_gets_its_mask_its_shares_and_its_times(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    assert visit.page.locator("#mask").is_visible()
    assert visit.page.locator("#legend li").count() > 0
    assert "infer" in visit.page.locator("#timing-list").inner_text()
    assert visit.complaints == []


def test_an_example_is_one_click_away(visit: Visit) -> None:
    visit.open()
    visit.page.get_by_role("button", name="Example: avenue").click()
    visit.answered()


def test_a_class_is_hidden_and_shown_again_and_a_key_hides_the_mask(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    visit.page.get_by_role("button", name="Show only").first.click()
    assert visit.page.locator("#all-classes").is_visible()
    visit.page.locator("#all-classes").click()
    assert not visit.page.locator("#all-classes").is_visible()
    visit.page.keyboard.down("h")
    assert not visit.page.locator("#mask").is_visible()
    visit.page.keyboard.up("h")
    assert visit.page.locator("#mask").is_visible()


def test_the_curtain_stands_in_the_picture_and_says_what_its_sides_show(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    assert visit.page.locator("#curtain-line").is_visible()
    visit.page.get_by_text("right of it the picture alone").wait_for()
    visit.page.get_by_label("Compare with").select_option(index=1)
    visit.page.get_by_text("right of it the mask of the other model").wait_for()


def test_the_lines_that_repeat_the_request_are_seen_whole(visit: Visit) -> None:
    visit.open()
    lines = visit.page.locator("#snippets pre")
    assert lines.count() == 4
    assert lines.evaluate_all("all => all.every((one) => one.scrollWidth <= one.clientWidth)")


def test_the_lines_that_repeat_the_request_do_so(visit: Visit, server: Server, tmp_path: Path) -> None:
    visit.open()
    curl, python, grpc_python, film = visit.page.locator("#snippets pre").all_inner_texts()
    (tmp_path / "photo.jpg").write_bytes(EXAMPLE.read_bytes())
    run = partial(
        subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=PATIENCE_S
    )
    run(shlex.split(curl))
    assert picture_size(tmp_path / "mask.png") == (640, 360)
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    grpc_here = grpc_python.replace("127.0.0.1:8001", server.grpc_address)
    for program in (python, grpc_here):
        assert run([sys.executable, "-c", program], env=here).stdout.strip() == "(360, 640)"
    assert film == "bisenet stream film.mp4 --server 127.0.0.1:8001 --model tiny --out overlay.mp4"


def test_the_pointer_reads_class_and_confidence_of_a_pixel(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    visit.page.locator("#stage").hover(position={"x": 3, "y": 3})
    told = visit.page.locator("#readout").inner_text()
    confidence = visit.page.request.post(
        f"{visit.url}/v1/segment?confidence=png&mask=none", data=EXAMPLE.read_bytes()
    ).json()["confidence"]["data"]
    level = Image.open(io.BytesIO(base64.b64decode(confidence))).getpixel((1, 1))
    assert re.fullmatch(rf"\d, \d: \w+, {100 * level / 255:.0f} % sure", told)


def test_pixels_of_little_confidence_are_hatched_and_the_setting_stays(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    painted = """() => { const mask = document.querySelector("#mask");
      const pixels = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height).data;
      let count = 0;
      for (let i = 3; i < pixels.length; i += 4) count += pixels[i] > 0;
      return count / (pixels.length / 4); }"""
    assert visit.page.evaluate(painted) == 1
    visit.page.get_by_role("slider", name="Confidence at least").fill("99")
    told = visit.page.locator("#threshold-value").inner_text()
    below = float(re.fullmatch(r"99 %, ([\d.]+) % of the pixels are below", told)[1]) / 100
    assert below > 0
    assert visit.page.evaluate(painted) == pytest.approx(1 - 0.75 * below, abs=0.02)
    visit.page.get_by_role("button", name="Example: avenue").click()
    visit.page.reload()
    assert visit.page.get_by_role("slider", name="Confidence at least").input_value() == "99"


def test_what_is_set_stays_for_the_next_picture(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    visit.page.get_by_role("slider", name="Opacity").fill("25")
    visit.page.get_by_role("button", name="Show only").first.click()
    hidden = visit.page.locator("#legend input:not(:checked)").count()
    visit.page.get_by_role("slider", name="Curtain").fill("80")
    visit.page.get_by_role("button", name="Example: avenue").click()
    visit.page.get_by_text("working on the picture").wait_for(state="hidden", timeout=ANSWER_MS)
    assert visit.page.locator("#mask").evaluate("(mask) => mask.style.opacity") == "0.25"
    assert visit.page.locator("#legend input:not(:checked)").count() == hidden > 0
    assert visit.page.get_by_role("slider", name="Curtain").input_value() == "80"


def test_the_curtain_is_dragged_in_the_picture(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    box = visit.page.locator("#stage").bounding_box()
    assert box is not None
    middle_y = box["y"] + box["height"] / 2
    visit.page.mouse.move(box["x"] + box["width"] / 2, middle_y)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + box["width"] / 4, middle_y)
    visit.page.mouse.up()
    assert visit.page.get_by_role("slider", name="Curtain").input_value() == "25"


def test_the_pointer_on_a_row_of_the_legend_leaves_only_that_class(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    colors = """() => { const mask = document.querySelector("#mask");
      const { data } = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height);
      const pixels = new Uint32Array(data.buffer);
      return new Set(pixels.filter((pixel) => pixel)).size; }"""
    assert visit.page.evaluate(colors) > 1
    visit.page.locator("#legend li").first.hover()
    assert visit.page.evaluate(colors) == 1
    visit.page.mouse.move(0, 0)
    assert visit.page.evaluate(colors) > 1


def test_a_pasted_and_a_dropped_picture_are_answered(visit: Visit) -> None:
    visit.open()
    give = """async ([kind, target]) => {
      const blob = await (await fetch("page/examples/avenue.jpg")).blob();
      const file = new File([blob], "a.jpg", { type: "image/jpeg" });
      const data = new DataTransfer();
      data.items.add(file);
      const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true })
        : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
      document.querySelector(target).dispatchEvent(event); }"""
    for kind, target in (("paste", "body"), ("drop", "#stage")):
        visit.page.evaluate(give, [kind, target])
        visit.answered()
        visit.page.reload()


def test_a_picture_is_taken_with_the_camera(visit: Visit) -> None:
    visit.open()
    visit.page.get_by_role("button", name="Take with the camera").click()
    visit.answered()


@pytest.mark.parametrize("kind", ["Mask", "Overlay", "JSON"])
def test_an_answer_is_downloaded(visit: Visit, kind: str) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name=kind, exact=True).click()
    file = Path(download.value.path())
    if kind == "JSON":
        assert json.loads(file.read_bytes())["mask"]["encoding"] == "coco_rle"
    else:
        assert picture_size(file) == (640, 360)


def test_two_versions_are_compared_by_their_disagreement(visit: Visit) -> None:
    visit.open()
    visit.page.set_input_files("#file", EXAMPLE)
    visit.answered()
    visit.page.get_by_label("Compare with").select_option(index=1)
    visit.page.get_by_text("(0 % of the pixels)").wait_for(timeout=ANSWER_MS)
    visit.page.get_by_label("Show where the two disagree").check()
    assert visit.page.locator("#second").is_visible()


def test_a_picture_of_20_megapixels_is_answered(visit: Visit, tmp_path: Path) -> None:
    picture = Image.open(io.BytesIO(EXAMPLE.read_bytes()))
    picture.resize((5477, 3652)).save(tmp_path / "large.jpg")
    visit.open()
    visit.page.set_input_files("#file", tmp_path / "large.jpg")
    visit.page.get_by_text(re.compile("5477 . 3652, answered by")).wait_for(timeout=JOB_MS)
    assert visit.complaints == []


def test_a_class_whose_name_is_markup_stays_text(visit: Visit) -> None:
    name = "<img src=x onerror=document.title='hit'>"
    model = {
        "name": "m",
        "version": 1,
        "engine": "e",
        "device": "cpu",
        "precision": "f32",
        "refused": "",
        "default": True,
        "architecture": "a",
        "ignore_id": 255,
        "evaluations": [],
        "classes": [{"id": 0, "name": name, "color": [1, 2, 3]}],
    }
    visit.page.route("**/v1/models", lambda route: route.fulfill(json={"models": [model]}))
    visit.open()
    assert name in visit.page.locator("#legend").inner_text()
    visit.open("#models")
    visit.page.locator("#model-cards").get_by_text(name).wait_for()
    assert visit.page.title() == "Segmentation"


@pytest.mark.parametrize("part", ["Try it", "Camera", "Models"])
def test_a_part_is_shown_again_after_a_reload(visit: Visit, part: str) -> None:
    visit.open()
    visit.page.get_by_role("link", name=part).click()
    visit.page.reload()
    visit.page.get_by_role("heading", name=part, level=1).wait_for()
    assert visit.page.locator("main section:visible").count() == 1
    assert visit.complaints == []


def test_the_models_page_says_what_is_served_after_a_reload_too(visit: Visit) -> None:
    visit.open("#models")
    visit.page.get_by_role("heading", name="tiny@1").wait_for()
    visit.page.reload()
    visit.page.get_by_role("heading", name="tiny@1").wait_for()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_nothing_is_wider_than_the_screen(
    browser: playwright_api.Browser, server: Server, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(str(server.client.base_url))
    page.wait_for_load_state("networkidle")
    wide = page.evaluate("document.documentElement.scrollWidth")
    context.close()
    assert wide <= width
