"""What the page costs a browser: first paint, bytes, script time of a mask, and frames of the camera.

    PYTHONPATH=. python benchmarks/page.py http://127.0.0.1:8000 [--grpc 127.0.0.1:8001] [--rounds 3]

Needs a running service, `pip install -e ".[browser]"` and Debian's Chromium. The browser's camera is a film
of one of the page's pictures that moves sideways; `bisenet stream --policy latest` gets the same film. Prints
medians, and the ratio of both rates in each round.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from benchmarks.command_line import make_parser, parse_if_idle
from service.client.film_writer import FilmWriter

PICTURE = Path(__file__).parents[1] / "service/page/examples/high-street.jpg"
SIZE = (1280, 720)
FPS = 30
FRAMES = 30
STEP_PIXELS = 8
MP4_SECONDS = 15
VISITS = 9

PAINT = """async () => {
  const { responseStart } = performance.getEntriesByType("navigation")[0];
  const paints = () => performance.getEntriesByName("first-contentful-paint");
  while (!paints().length) await new Promise((done) => setTimeout(done, 5));
  const all = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  return { paint_ms: paints()[0].startTime, first_byte_ms: responseStart, requests: all.length,
           bytes: all.reduce((sum, one) => sum + one.transferSize, 0) };
}"""

# A mask of 2048x1024 pixels: blocks of 11 classes and a ramp of confidences.
SCRIPT = """async () => {
  const { Viewer } = await import(new URL("page/viewer.js", document.baseURI).href);
  const [width, height] = [2048, 1024];
  const stage = document.getElementById("stage");
  const part = (id) => document.getElementById(id);
  const viewer = new Viewer({ stage, picture: part("picture"), mask: part("mask"), second: part("second"),
                              line: part("curtain-line") });
  viewer.show(await createImageBitmap(new ImageData(width, height)));
  const labels = Uint8Array.from({ length: width * height }, (_, i) => ((i >> 5) + (i >> 16)) % 11);
  const confidence = Uint8Array.from({ length: width * height }, (_, i) => (i >> 3) & 255);
  const colors = new Map(Array.from({ length: 11 }, (_, id) => [id, [20 * id, 255 - 20 * id, 99]]));
  const answer = { labels, confidence, width, height };
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const times = async (act) => {
    const all = [];
    for (let i = 0; i < 40; i++) {
      await frame();
      const began = performance.now();
      act(i);
      all.push(performance.now() - began);
    }
    return all.slice(10);
  };
  viewer.setAnswers(answer, null, colors);
  const result = { canvas: viewer.size.join("x") };
  result.overlay = await times(() => viewer.draw());
  result.toggle = await times((i) => { viewer.hidden = new Set([i % 11]); viewer.draw(); });
  result.opacity = await times((i) => viewer.setOpacity(i / 40));
  result.threshold = await times((i) => viewer.setThreshold(6 * i));
  return result;
}"""

ANSWERED = "() => document.getElementById('camera-answered').textContent"


def main() -> None:
    """Print all figures."""
    parser = make_parser(__doc__)
    parser.add_argument("url", help="of the service's HTTP port")
    parser.add_argument("--grpc", help="HOST:PORT; without it the camera is left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each round of the camera")
    options = parse_if_idle(parser)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        films = write_films(Path(folder))
        flags = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        flags.append(f"--use-file-for-fake-video-capture={films[0]}")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        print_paint(browser, options.url)
        print_script(browser, options.url)
        for _ in range(options.rounds if options.grpc else 0):
            page = page_rate(browser, options.url, options.seconds)
            stream = stream_rate(films[1], options.grpc, options.seconds)
            print(f"camera: page {page:.2f} masks/s, bisenet stream {stream:.2f}, ratio {page / stream:.2f}")
        browser.close()


def print_paint(browser: Browser, url: str) -> None:
    """Print the first paint of new visitors."""
    visits = list(paints(browser, url))
    for name in ("first_byte_ms", "paint_ms"):
        times = sorted(visit[name] for visit in visits)
        print(f"{name}: median {statistics.median(times):.0f}, {times[0]:.0f} to {times[-1]:.0f}")
    print(f"bytes: {visits[0]['bytes']} in {visits[0]['requests']} requests", flush=True)


def paints(browser: Browser, url: str) -> Iterator[dict[str, float]]:
    """Yield the figures of visits with empty caches."""
    for _ in range(VISITS):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto(url)
        page.wait_for_load_state("networkidle")
        yield page.evaluate(PAINT)
        context.close()


def print_script(browser: Browser, url: str) -> None:
    """Print how long the scripts of the overlay keep the page's thread."""
    page = browser.new_page(viewport={"width": 1920, "height": 1080})
    page.goto(url)
    page.wait_for_load_state("networkidle")
    result: dict[str, Any] = page.evaluate(SCRIPT)
    canvas = result.pop("canvas")
    for name, times in result.items():
        ordered = sorted(times)
        print(
            f"{name} of 2048x1024 on a canvas of {canvas}: median {statistics.median(ordered):.2f} ms, "
            f"95 % within {ordered[int(0.95 * len(ordered))]:.2f} ms",
            flush=True,
        )
    page.close()


def page_rate(browser: Browser, url: str, seconds: float) -> float:
    """Return the masks that the camera page shows in a second."""
    page = browser.new_page()
    page.goto(f"{url.rstrip('/')}/#camera")
    page.get_by_role("button", name="Start the camera").click()
    page.locator("#camera-mask").wait_for(timeout=60_000)
    time.sleep(1)
    first, began_s = answered(page.evaluate(ANSWERED)), time.monotonic()
    time.sleep(seconds)
    last, ended_s = answered(page.evaluate(ANSWERED)), time.monotonic()
    page.close()
    return (last - first) / (ended_s - began_s)


def answered(text: str) -> int:
    """Return the first number of "12 of 20"."""
    return int(text.partition(" ")[0])


def stream_rate(film: Path, grpc_address: str, seconds: float) -> float:
    """Return the masks that the command line gets in a second."""
    command = [sys.executable, "-m", "bisenet", "stream", str(film), "--server", grpc_address]
    command += ["--policy", "latest", "--seconds", str(seconds), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["fps"])


def write_films(folder: Path) -> tuple[Path, Path]:
    """Write the same film as raw YUV for the browser, and as MP4 for the command line."""
    image = Image.open(PICTURE).convert("RGB").resize(SIZE)
    frames = [np.roll(np.asarray(image), STEP_PIXELS * number, axis=1) for number in range(FRAMES)]
    raw, encoded = folder / "film.y4m", folder / "film.mp4"
    with raw.open("wb") as file:
        file.write(f"YUV4MPEG2 W{SIZE[0]} H{SIZE[1]} F{FPS}:1 Ip A1:1 C420jpeg\n".encode())
        for frame_HW3 in frames:
            file.write(b"FRAME\n" + yuv420(frame_HW3))
    writer = FilmWriter(encoded)
    for number in range(FPS * MP4_SECONDS):
        writer.write(frames[number % FRAMES], number / FPS)
    writer.close()
    return raw, encoded


def yuv420(frame_HW3: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return the planes of a frame: brightness, and both colours in half the size."""
    planes = Image.fromarray(frame_HW3).convert("YCbCr").split()
    half = (SIZE[0] // 2, SIZE[1] // 2)
    return b"".join([planes[0].tobytes(), *(plane.resize(half).tobytes() for plane in planes[1:])])


if __name__ == "__main__":
    main()
