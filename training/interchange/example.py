"""Writes a small synthetic data set with a film, for tutorials and tests: ``bisenet dataset example``."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from model.labels import UInt8Array
from training.interchange.dataset_folder import new_folder, write_dataset_file, write_mask
from training.interchange.example_scenes import LENGTH_M, PALETTE, SIZE, Scene

DATASET_FILE = "example.toml"
FILM_FILE = "film.mp4"
README_FILE = "README.txt"

_SPLITS = {"train": 200, "val": 40}
_JPEG_QUALITY = 92
_FRAMES_PER_S = 15
_FILM_S = 10
_SPEED_M_PER_S = 9.0

_QUICK = (
    "--set network.architecture=bisenetv1-lite --set 'network.parameters={}' --finetune-from camvid "
    "--set 'augment.crop=[192,256]' --set schedule.batch_size=8 --set schedule.steps=60"
)
"""Settings for small pictures and few cores: the network of the shipped model, from its weights."""

_README = """\
A small synthetic data set: {pictures} pictures of {size} pixels, made-up streets. Each pixel is
{classes}. Seed {seed}: the same seed makes the same pictures.

  {dataset:16}the data-set file: classes and splits
  train, val      pictures to learn from and to validate on; the values of the labels are class ids
{film}
What to do with it:

{commands}
"""


@dataclass(frozen=True)
class ExampleReport:
    """The files of the example.

    Attributes:
        dataset_file: path of the data-set file.
        splits: split name -> pictures.
        film: path of the film; None where PyAV is not installed.
    """

    dataset_file: Path
    splits: dict[str, int]
    film: Path | None

    @property
    def readme(self) -> Path:
        """Path of the README."""
        return self.dataset_file.with_name(README_FILE)

    @property
    def commands(self) -> Sequence[str]:
        """Commands that use the data set, in this order."""
        file = shlex.quote(str(self.dataset_file))
        commands = [
            f"bisenet dataset check {file}",
            f"bisenet train custom --set data.dataset={file} {_QUICK} --out runs/example",
            "bisenet models publish runs/example/artifact --name example",
            f"bisenet evaluate --model example --dataset {file} --protocol ss",
        ]
        if self.film:
            film = shlex.quote(str(self.film))
            commands.append(f"bisenet predict {film} --model example --out example-film.mp4 --output overlay")
        commands.append("bisenet serve --model example")
        return commands


def write_example(
    target: Path,
    *,
    seed: int = 0,
    splits: dict[str, int] | None = None,
    film_s: float = _FILM_S,
    progress: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005 - a program need not watch
) -> ExampleReport:
    """Write pictures, masks, lists, a data-set file, a film and a README.

    Args:
        target: folder of the result; must not exist, or be empty.
        seed: the same seed makes the same pictures.
        splits: split name -> pictures; None = 200 to train on and 40 to validate on.
        film_s: length of the film, in seconds; 0 = none.
        progress: called with the pictures that are done and all.

    Raises:
        InterchangeError: the folder holds something already, or cannot be written.
    """
    counts = splits or _SPLITS
    total = sum(counts.values())
    with new_folder(target) as folder:
        order = [(split, index) for split, count in counts.items() for index in range(count)]
        for done, (split, index) in enumerate(order, 1):
            _write_pair(
                folder / split, f"{index:03}", Scene((seed, done)).picture(LENGTH_M * (index % 7) / 7)
            )
            progress(done, total)
        patterns = '{{ images = "{0}/images/*.jpg", labels = "{0}/labels/*.png" }}'
        said = {split: patterns.format(split) for split in counts}
        write_dataset_file(folder / DATASET_FILE, "example", PALETTE, said)
        has_film = film_s > 0 and _write_film(folder / FILM_FILE, seed, round(film_s * _FRAMES_PER_S))
        report = ExampleReport(target / DATASET_FILE, dict(counts), target / FILM_FILE if has_film else None)
        (folder / README_FILE).write_text(_readme(report, seed), "utf-8")
    return report


def _readme(report: ExampleReport, seed: int) -> str:
    *names, last = PALETTE.names
    return _README.format(
        pictures=sum(report.splits.values()),
        size=SIZE,
        classes=f"{', '.join(names)} or {last}",
        seed=seed,
        dataset=DATASET_FILE,
        film=f"  {FILM_FILE}        a drive along one more street\n" if report.film else "",
        commands="\n".join(f"  {command}" for command in report.commands),
    )


def _write_pair(folder: Path, stem: str, pair: tuple[UInt8Array, UInt8Array]) -> None:
    image_HW3, label_HW = pair
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_HW3).save(folder / "images" / f"{stem}.jpg", quality=_JPEG_QUALITY)
    write_mask(folder / "labels" / f"{stem}.png", label_HW, PALETTE)


def _write_film(path: Path, seed: int, frames: int) -> bool:
    """Drive along one more street; return False where PyAV is not installed."""
    try:
        import av  # noqa: PLC0415 - of the extra `client`
    except ModuleNotFoundError:
        return False
    scene = Scene((seed, 0))
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=_FRAMES_PER_S, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = SIZE.width, SIZE.height, "yuv420p"
        for number in range(frames):
            image_HW3, _ = scene.picture(_SPEED_M_PER_S * number / _FRAMES_PER_S, frame=number)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_HW3, format="rgb24")))
        container.mux(stream.encode())
    return True
