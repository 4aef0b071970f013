"""Time of ``model.decoding.decode.labels`` against torch and plain loops, on real label maps and on noise.

    python benchmarks/decode.py --labels FOLDER_OF_LABEL_PNGS

Scores at stride 8 are made from annotations: the share of each class in each 8x8 block plus a little noise.
Medians of interleaved runs; the baseline is torch's interpolate + argmax in the same run.

Axes: K classes, h w = H/8 W/8, H W = 512 1024.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.command_line import make_parser, parse_if_idle
from model.artifacts.manifest import Upsample
from model.decoding import decode
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize
from service.machine import this_machine

Float32Array = npt.NDArray[np.float32]
Decoder = Callable[[Float32Array], object]

SIZE = ImageSize(512, 1024)
STRIDE = 8
NUM_CLASSES = 19
NOISE = 0.05
MAPS = 12
BANDS = 2


def main() -> None:
    """Print one table for each kind of label map."""
    parser = make_parser(__doc__)
    parser.add_argument("--labels", type=Path, required=True, help="folder of 8-bit label PNGs")
    parser.add_argument("--repeats", type=int, default=20)
    options = parse_if_idle(parser)
    rng = np.random.default_rng(0)
    decode.warm_up()
    torch.set_num_threads(BANDS)
    print(
        f"{NUM_CLASSES} x {SIZE.height // STRIDE}x{SIZE.width // STRIDE} -> {SIZE}; {this_machine().summary}"
    )
    with ThreadPoolExecutor(BANDS) as executor:
        report("real maps", real_maps(options.labels, rng), bilinear_decoders(executor), options.repeats)
        report("noise", [noise(rng, NUM_CLASSES)], bilinear_decoders(executor), options.repeats)
        shuffled = [noise(rng, NUM_CLASSES * STRIDE**2)]
        report("noise, pixel_shuffle", shuffled, shuffle_decoders(executor), options.repeats)


def real_maps(folder: Path, rng: np.random.Generator) -> list[Float32Array]:
    """Make scores from evenly chosen annotations of the folder."""
    files = sorted(folder.glob("*.png"))
    if not files:
        raise SystemExit(f"no PNG files in {folder}")
    return [scores_from(path, rng) for path in files[:: -(-len(files) // MAPS)]]


def scores_from(path: Path, rng: np.random.Generator) -> Float32Array:
    """Blend each 8x8 block's classes into scores 0..1, plus noise."""
    with Image.open(path) as image:
        ids_HW = np.asarray(image.resize((SIZE.width, SIZE.height), Image.Resampling.NEAREST))
    planes_KHW = ids_HW == np.arange(NUM_CLASSES)[:, None, None]
    blocks = planes_KHW.reshape(NUM_CLASSES, SIZE.height // STRIDE, STRIDE, SIZE.width // STRIDE, STRIDE)
    shares_Khw: Float32Array = blocks.mean((2, 4), dtype=np.float32)
    shares_Khw += NOISE * noise(rng, NUM_CLASSES)
    return shares_Khw


def noise(rng: np.random.Generator, channels: int) -> Float32Array:
    """Return scores with different classes at the corners of every cell: the worst case."""
    return rng.standard_normal((channels, SIZE.height // STRIDE, SIZE.width // STRIDE), np.float32)


def bilinear_decoders(executor: Executor) -> dict[str, Decoder]:
    """Return the decoders of a bilinear head by name, the baseline first."""
    return {
        f"torch interpolate + argmax, {BANDS} threads": torch_bilinear,
        "plain loops, 1 thread": plain,
        f"plain loops, {BANDS} threads": lambda raw_Khw: plain(raw_Khw, executor),
        "decode.labels, 1 thread": lambda raw_Khw: ours(raw_Khw, "bilinear", None),
        f"decode.labels, {BANDS} threads": lambda raw_Khw: ours(raw_Khw, "bilinear", executor),
    }


def shuffle_decoders(executor: Executor) -> dict[str, Decoder]:
    """Return the decoders of a pixel-shuffle head by name, the baseline first."""
    return {
        f"torch pixel_shuffle + argmax, {BANDS} threads": torch_shuffle,
        "decode.labels, 1 thread": lambda raw_Khw: ours(raw_Khw, "pixel_shuffle", None),
        f"decode.labels, {BANDS} threads": lambda raw_Khw: ours(raw_Khw, "pixel_shuffle", executor),
    }


def ours(raw_Khw: Float32Array, upsample: Upsample, executor: Executor | None) -> UInt8Array:
    """Decode as the service does."""
    return decode.labels(
        raw_Khw,
        upsample=upsample,
        stride=STRIDE,
        padded=SIZE,
        content=SIZE,
        original=SIZE,
        executor=executor,
    )


def torch_bilinear(raw_Khw: Float32Array) -> torch.Tensor:
    """Decode through K full-size planes."""
    scores = torch.from_numpy(raw_Khw)[None]
    size = (SIZE.height, SIZE.width)
    return torch.nn.functional.interpolate(scores, size, mode="bilinear").argmax(1).to(torch.uint8)


def torch_shuffle(raw_Khw: Float32Array) -> torch.Tensor:
    """Decode through K full-size planes."""
    scores = torch.from_numpy(raw_Khw)[None]
    return torch.nn.functional.pixel_shuffle(scores, STRIDE).argmax(1).to(torch.uint8)


def plain(raw_Khw: Float32Array, executor: Executor | None = None) -> UInt8Array:
    """Decode without planes and without the shortcut."""
    labels_HW = np.empty((SIZE.height, SIZE.width), np.uint8)
    if executor is None:
        plain_rows(raw_Khw, labels_HW, 0, SIZE.height)
        return labels_HW
    cuts = [SIZE.height * band // BANDS for band in range(BANDS + 1)]
    list(executor.map(lambda first, last: plain_rows(raw_Khw, labels_HW, first, last), cuts[:-1], cuts[1:]))
    return labels_HW


@numba.njit(nogil=True)
def plain_rows(raw_Khw: Float32Array, labels_HW: UInt8Array, first: int, last: int) -> None:
    """Blend every class in every pixel of rows [first, last)."""
    num_classes, height, width = raw_Khw.shape
    positions_W = np.maximum((np.arange(labels_HW.shape[1]) + 0.5) / STRIDE - 0.5, 0).astype(np.float32)
    left_W = positions_W.astype(np.int32)
    right_W = np.minimum(left_W + 1, width - 1).astype(np.int32)
    across_W = (positions_W - left_W).astype(np.float32)
    for y in range(first, last):
        position = max((y + 0.5) / STRIDE - 0.5, 0.0)
        upper, down = int(position), np.float32(position - int(position))
        lower = min(upper + 1, height - 1)
        best_W = np.full(labels_HW.shape[1], -np.inf, np.float32)
        ids_W = np.zeros(labels_HW.shape[1], np.uint8)
        for k in range(num_classes):
            row_w = raw_Khw[k, upper] * (np.float32(1) - down) + raw_Khw[k, lower] * down
            for x in range(best_W.size):
                across = across_W[x]
                score = row_w[left_W[x]] * (np.float32(1) - across) + row_w[right_W[x]] * across
                higher = score > best_W[x]
                best_W[x] = score if higher else best_W[x]
                ids_W[x] = np.uint8(k) if higher else ids_W[x]
        labels_HW[y] = ids_W


def report(kind: str, maps: Sequence[Float32Array], decoders: dict[str, Decoder], repeats: int) -> None:
    """Time every decoder on every map in turn and print medians in ms and ratios to the first decoder."""
    times_ms: dict[str, list[float]] = {name: [] for name in decoders}
    for repeat in range(repeats + 1):
        for raw_Khw in maps:
            for name, decoder in decoders.items():
                start = time.perf_counter()
                decoder(raw_Khw)
                if repeat:  # the first round warms up
                    times_ms[name].append((time.perf_counter() - start) * 1e3)
    medians = {name: statistics.median(times) for name, times in times_ms.items()}
    baseline = next(iter(medians.values()))
    print(f"\n{kind}: median of {repeats} runs on each of {len(maps)} maps")
    for name, median in medians.items():
        print(f"  {name:<40} {median:8.2f} ms  {baseline / median:6.1f}x")


if __name__ == "__main__":
    main()
