"""What tests of imports share: pictures, exports as programs write them, and an import that is read back."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from model.datasets.dataset import DatasetSpec, LabeledImages
from model.labels import UInt8Array
from training.interchange.importing import ImportOptions, ImportReport, import_dataset

HEIGHT, WIDTH = 40, 60


def picture_bytes(seed: int = 0, *, height: int = HEIGHT, width: int = WIDTH, kind: str = "JPEG") -> bytes:
    """Return a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """Return the bytes of a picture."""
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Write files by their paths below a folder; return the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@dataclass(frozen=True)
class Imported:
    """An import, read back through its data-set file."""

    report: ImportReport
    spec: DatasetSpec
    ids: dict[str, UInt8Array]
    splits: dict[str, list[str]]


def imported(format_name: str, source: Path, target: Path, options: ImportOptions | None = None) -> Imported:
    """Import a folder or ZIP file and read every pair of the result."""
    report = import_dataset(format_name, source, target, options or ImportOptions())
    spec = DatasetSpec.from_toml(target / "dataset.toml")
    ids: dict[str, UInt8Array] = {}
    splits = {}
    for split in spec.splits:
        pairs = LabeledImages(spec, split)
        splits[split] = [Path(pairs.name(index)).stem for index in range(len(pairs))]
        ids |= {name: pairs[index][1] for index, name in enumerate(splits[split])}
    return Imported(report, spec, ids, splits)


def left_in(folder: Path) -> list[str]:
    """Return all names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())
