"""Mutate pictures and decode them: ``python tests/fuzz_image.py 1000000``, or ``make fuzz N=1000000``.

A mutant is a function of its number alone, so that whatever is found can be looked at again:

    python tests/fuzz_image.py 1 --first 123456

Each process marks the number of its present mutant in a file; when it dies, or needs more than ``CPU_S``
for one mutant, the number is printed. Small pictures of every kind are made here; where BISENET_DATA_ROOT is
set, the small files of its hostile corpus are mutated as well.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from model.errors import ImageError
from model.pictures.image import ImageLimits, decode_image, peek_header
from model.pictures.preprocess import ImageSize

LIMITS = ImageLimits(max_pixels=1 << 18)
"""Few pixels, many mutants: what a decoder does wrong it does with small pictures too."""

CPU_S = 10
MAX_GROWTH_BYTES = 96 << 20
MAX_SEED_BYTES = 3000
NUM_MADE = 20
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class WrongAnswerError(Exception):
    """The decoder answered something that it must never answer."""


# --- the mutated pictures --------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Return small pictures, always in the same order: those made here first, then those of the corpus."""
    made = list(_made())
    assert len(made) == NUM_MADE
    return [*made, *_found()]


def _made() -> Iterator[bytes]:
    random_HW3 = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)
    rgb = Image.fromarray(random_HW3).resize((48, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield _file(
            Image.fromarray(np.arange(1536, dtype=np.uint16).reshape(32, 48))
            if mode == "I;16"
            else rgb.convert(mode),
            "PNG",
        )
    yield _file(rgb, "PNG", exif=exif)
    yield _file(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)])
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            yield _file(rgb.convert(mode), "JPEG", quality=60, progressive=progressive, exif=exif)
    yield _file(rgb, "MPO", save_all=True, append_images=[rgb])
    for options in (
        {"lossless": True},
        {"quality": 50},
        {"exif": exif},
        {"save_all": True, "append_images": [rgb.rotate(180)]},
    ):
        yield _file(rgb.convert("RGBA"), "WEBP", **options)


def _file(picture: Image.Image, image_format: str, **options: object) -> bytes:
    stream = BytesIO()
    picture.save(stream, image_format, **options)
    return stream.getvalue()


def _found() -> list[bytes]:
    root = os.environ.get("BISENET_DATA_ROOT")
    paths = sorted(Path(root, "hostile_images").rglob("*")) if root else []
    files = (path.read_bytes() for path in paths if path.is_file() and path.suffix not in (".tsv", ".md"))
    return [data for data in files if len(data) <= MAX_SEED_BYTES]


# --- how it is mutated ------------------------------------------------------------------------------------


def mutant(number: int, pictures: list[bytes]) -> tuple[int, bytes]:
    """Return which picture was mutated, and into what."""
    rng = random.Random(number)
    index = rng.randrange(len(pictures) if rng.random() < 0.5 else NUM_MADE)
    data = bytearray(pictures[index])
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        rng.choice(MUTATIONS)(rng, data, pictures)
    if data.startswith(PNG_MAGIC) and rng.random() < 0.75:
        _repair_checksums(data)  # most of a PNG's parser lies behind them
    return index, bytes(data)


def _flip(rng: random.Random, data: bytearray, _pictures: list[bytes]) -> None:
    if data:
        data[_somewhere(rng, data)] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray, _pictures: list[bytes]) -> None:
    if data:
        data[_somewhere(rng, data)] = rng.randrange(256)


def _put_number(rng: random.Random, data: bytearray, _pictures: list[bytes]) -> None:
    width = rng.choice((2, 4))
    start = _somewhere(rng, data)
    number = rng.choice(INTERESTING) & (256**width - 1)
    data[start : start + width] = number.to_bytes(width, rng.choice(("big", "little")))


def _cut(rng: random.Random, data: bytearray, _pictures: list[bytes]) -> None:
    del data[_somewhere(rng, data) :]


def _remove(rng: random.Random, data: bytearray, _pictures: list[bytes]) -> None:
    start = _somewhere(rng, data)
    del data[start : start + rng.randrange(1, 64)]


def _repeat(rng: random.Random, data: bytearray, _pictures: list[bytes]) -> None:
    start = _somewhere(rng, data)
    piece = data[start : start + rng.randrange(1, 64)]
    data[start:start] = piece * rng.choice((1, 1, 2, 16))


def _insert(rng: random.Random, data: bytearray, _pictures: list[bytes]) -> None:
    start = _somewhere(rng, data)
    data[start:start] = rng.randbytes(rng.randrange(1, 16))


def _splice(rng: random.Random, data: bytearray, pictures: list[bytes]) -> None:
    other = rng.choice(pictures)
    data[_somewhere(rng, data) :] = other[rng.randrange(len(other)) :] if other else b""


MUTATIONS = (_flip, _overwrite, _put_number, _put_number, _cut, _remove, _repeat, _insert, _splice)


def _somewhere(rng: random.Random, data: bytearray) -> int:
    """Choose a place, the head of the file more often than the rest."""
    if len(data) > 64 and rng.random() < 0.4:
        return rng.randrange(64)
    return rng.randrange(len(data)) if data else 0


def _repair_checksums(png: bytearray) -> None:
    start = len(PNG_MAGIC)
    while start + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, start)
        end = start + 8 + length
        if end + 4 > len(png):
            return
        struct.pack_into(">I", png, end, zlib.crc32(png[start + 4 : end]))
        start = end + 4


# --- what must hold ---------------------------------------------------------------------------------------


def check(data: bytes) -> str:
    """Decode and return what became of it: ``ok``, or the name of the error.

    Raises:
        WrongAnswerError: the pixels are not what the header promised.
    """
    try:
        header = peek_header(data, LIMITS)
    except ImageError:
        header = None
    try:
        image_HW3 = decode_image(data, LIMITS)
    except ImageError as error:
        return type(error).__name__
    if header is None:
        raise WrongAnswerError("decoded although the header was refused")
    if ImageSize(*image_HW3.shape[:2]) != header.size or image_HW3.shape[2:] != (3,):
        raise WrongAnswerError(f"shape {image_HW3.shape}, announced as {header.size}")
    if image_HW3.dtype != np.uint8 or not (image_HW3.flags.c_contiguous and image_HW3.flags.writeable):
        raise WrongAnswerError(f"{image_HW3.dtype}, {image_HW3.flags}")
    return "ok"


def work(first: int, count: int, step: int, marker: Path) -> None:
    """Check mutants one after the other in this process."""
    pictures = seeds()
    outcomes: Counter[str] = Counter()
    check(pictures[0])
    base = _peak_bytes()
    with marker.open("r+b") as file, mmap.mmap(file.fileno(), 8) as mark:
        for number in range(first, first + count, step):
            struct.pack_into("<q", mark, 0, number)
            signal.setitimer(signal.ITIMER_PROF, CPU_S)  # without a handler: the process dies
            outcomes[check(mutant(number, pictures)[1])] += 1
    growth = _peak_bytes() - base
    print(f"  {dict(outcomes.most_common())}, memory grew by {growth >> 20} MiB", flush=True)  # noqa: T201 - a script
    if growth > MAX_GROWTH_BYTES:
        raise WrongAnswerError(f"memory grew by {growth} bytes")


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- the command ------------------------------------------------------------------------------------------


def main() -> int:
    """Share the mutants between processes; return 1 when one of them fell over."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", nargs=2, metavar=("STEP", "MARKER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.first, options.count, int(options.work[0]), Path(options.work[1]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        workers = [_start(options, number, Path(folder, str(number))) for number in range(options.workers)]
        failures = [failure for worker in workers if (failure := _outcome(*worker))]
    print("\n".join(failures) or f"{options.count} mutants, nothing found")  # noqa: T201 - a script
    return 1 if failures else 0


def _start(options: argparse.Namespace, number: int, marker: Path) -> tuple[subprocess.Popen[bytes], Path]:
    marker.write_bytes(struct.pack("<q", -1))
    command = [sys.executable, __file__, str(options.count - number), "--first", str(options.first + number)]
    return subprocess.Popen([*command, "--work", str(options.workers), str(marker)]), marker


def _outcome(process: subprocess.Popen[bytes], marker: Path) -> str:
    code = process.wait()
    if code == 0:
        return ""
    (number,) = struct.unpack("<q", marker.read_bytes())
    index = mutant(number, seeds())[0] if number >= 0 else -1
    return f"mutant {number} (of picture {index}): a process ended with {code}"


if __name__ == "__main__":
    sys.exit(main())
