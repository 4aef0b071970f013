"""Time of ``service.core.pictures.codec``'s palette PNG against Pillow's at compression level 1, in turns.

Both write the same 8-bit indexed picture.
Target: at most a quarter of Pillow's time on real label maps.

    python benchmarks/codec.py --labels FOLDER     # a folder of label PNGs, such as CamVid's trainannot
    python benchmarks/codec.py                     # synthetic label maps only
"""

from __future__ import annotations

import colorsys
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.command_line import make_parser, parse_if_idle
from model.labels import ClassPalette, LabelMap, UInt8Array
from service.core.pictures.codec import encode_palette_png
from service.machine import this_machine

NUM_CLASSES = 19
MAX_FILES = 50


def main() -> None:
    """Print one line for each set of label maps."""
    parser = make_parser(__doc__)
    parser.add_argument("--labels", type=Path, help="folder of label maps as PNG, one id a pixel")
    parser.add_argument("--rounds", type=int, default=9, help="how often each map is encoded by each side")
    options = parse_if_idle(parser)
    versions = ", ".join(f"{name} {version(name)}" for name in ("isal", "pillow", "numpy"))
    print(f"{this_machine().processor}, 1 thread; {versions}")
    print(f"{'label maps':28} {'ours ms':>9} {'Pillow ms':>9} {'ratio':>7} {'ours KB':>9} {'Pillow KB':>9}")
    if options.labels:
        for size in (None, (512, 1024)):
            name = f"{options.labels.name} {'as it is' if size is None else '{}x{}'.format(*size)}"
            report(name, real_maps(options.labels, size), options.rounds)
    for height, width in ((360, 480), (512, 1024), (1024, 2048)):
        report(f"smooth {height}x{width}", [smooth_map(height, width)], options.rounds)
    report("noise 1024x2048", [noise_map(1024, 2048)], options.rounds)


def report(name: str, label_maps: Sequence[LabelMap], rounds: int) -> None:
    """Print medians over all maps and rounds, and the median of their ratios."""
    ours_ms, pillow_ms = [], []
    for label_map in label_maps:
        check(label_map)
    for _ in range(rounds):
        for label_map in label_maps:
            ours_ms.append(elapsed_ms(encode_palette_png, label_map))
            pillow_ms.append(elapsed_ms(encode_by_pillow, label_map))
    ratio = statistics.median(ours / peer for ours, peer in zip(ours_ms, pillow_ms, strict=True))
    ours_kb = statistics.mean(len(encode_palette_png(label_map)) for label_map in label_maps) / 1000
    pillow_kb = statistics.mean(len(encode_by_pillow(label_map)) for label_map in label_maps) / 1000
    times = f"{statistics.median(ours_ms):9.2f} {statistics.median(pillow_ms):9.2f} {ratio:7.3f}"
    print(f"{name:28} {times} {ours_kb:9.1f} {pillow_kb:9.1f}")


def elapsed_ms(encode: Callable[[LabelMap], bytes], label_map: LabelMap) -> float:
    """Time one call."""
    started_s = time.perf_counter()
    encode(label_map)
    return 1e3 * (time.perf_counter() - started_s)


def check(label_map: LabelMap) -> None:
    """Refuse to compare encoders that write different pictures."""
    for encode in (encode_palette_png, encode_by_pillow):
        decoded = np.asarray(Image.open(io.BytesIO(encode(label_map))))
        assert np.array_equal(decoded, label_map.ids_HW), encode


def encode_by_pillow(label_map: LabelMap) -> bytes:
    """Write the same PNG with Pillow."""
    height, width = label_map.ids_HW.shape
    picture = Image.frombuffer("P", (width, height), label_map.ids_HW, "raw", "P", 0, 1)
    picture.putpalette(label_map.palette.rgb_table.tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1, bits=8)
    return stream.getvalue()


def real_maps(folder: Path, size: tuple[int, int] | None) -> list[LabelMap]:
    """Read the first label maps of a folder, resized to a height and width by the nearest pixel."""
    files = sorted(folder.glob("*.png"))[:MAX_FILES]
    if not files:
        sys.exit(f"no PNG in {folder}")
    pictures = [Image.open(file) for file in files]
    if size:
        pictures = [picture.resize(size[::-1], Image.Resampling.NEAREST) for picture in pictures]
    arrays = [np.array(picture) for picture in pictures]
    num_classes = max(int(ids_HW[ids_HW < 255].max(initial=0)) for ids_HW in arrays) + 1
    return [LabelMap(ids_HW, rainbow(num_classes)) for ids_HW in arrays]


def smooth_map(height: int, width: int) -> LabelMap:
    """Return regions like those of a network: the arg max of smooth scores."""
    noise = np.random.default_rng(0).normal(size=(NUM_CLASSES, 12, 24)).astype(np.float32)
    scores = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
        for plane in noise
    ]
    return LabelMap(np.argmax(scores, axis=0).astype(np.uint8), rainbow(NUM_CLASSES))


def noise_map(height: int, width: int) -> LabelMap:
    """Return the worst case: neighbours rarely have the same class."""
    ids_HW: UInt8Array = np.random.default_rng(0).integers(0, NUM_CLASSES, (height, width), dtype=np.uint8)
    return LabelMap(ids_HW, rainbow(NUM_CLASSES))


def rainbow(num_classes: int) -> ClassPalette:
    """Return a palette of any number of classes."""
    hues = [colorsys.hsv_to_rgb(class_id / num_classes, 1, 1) for class_id in range(num_classes)]
    colors = tuple((round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in hues)
    return ClassPalette(tuple(f"class {class_id}" for class_id in range(num_classes)), colors)


if __name__ == "__main__":
    main()
