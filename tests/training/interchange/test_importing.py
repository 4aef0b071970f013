from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interchange_site import HEIGHT, WIDTH, encoded, imported, left_in, picture_bytes, write
from PIL import Image, ImageOps

from model.datasets.dataset import LabeledImages
from model.labels import UInt8Array
from model.pictures.preprocess import ImageSize
from training.errors import InterchangeError
from training.interchange import importing
from training.interchange.foreign import ClassIds, ForeignClass, ForeignDataset, ForeignPicture, Shapes
from training.interchange.importing import ImportOptions, import_dataset
from training.interchange.tally import Tally
from training.interchange.trainable_pictures import ASSUMED_UPRIGHT, CONVERTED, TURNED


def labelme(path: str, *, size: tuple[int, int] = (HEIGHT, WIDTH), label: str = "road") -> str:
    shape = {"label": label, "points": [[0, 0], [30, 0], [30, 39], [0, 39]], "shape_type": "polygon"}
    return json.dumps({"shapes": [shape], "imagePath": path, "imageHeight": size[0], "imageWidth": size[1]})


def labelled(folder: Path, names: list[str], **pictures: bytes) -> Path:
    """Write pictures with a JSON file of labelme for each."""
    files: dict[str, str | bytes] = {}
    for seed, name in enumerate(names):
        files[name] = pictures.get(Path(name).stem, picture_bytes(seed))
        files[f"{Path(name).with_suffix('')}.json"] = labelme(Path(name).name)
    return write(folder, files)


def test_a_source_without_splits_is_always_divided_alike(tmp_path: Path) -> None:
    names = [f"{k}.jpg" for k in range(20)]
    source = labelled(tmp_path / "source", names)
    first = imported("labelme", source, tmp_path / "a", ImportOptions(val_fraction=0.2))
    second = imported("labelme", source, tmp_path / "b", ImportOptions(val_fraction=0.2, workers=1))
    assert {split: len(ones) for split, ones in first.splits.items()} == {"train": 16, "val": 4}
    assert first.splits == second.splits
    assert first.report.divided


def test_a_source_that_only_names_its_test_pictures_is_divided_but_for_them(tmp_path: Path) -> None:
    source = labelled(tmp_path / "source", ["a/1.jpg", "a/2.jpg", "a/3.jpg", "test/4.jpg"])
    result = imported("labelme", source, tmp_path / "data")
    assert result.splits["test"] == ["4"]
    assert [len(result.splits[split]) for split in ("train", "val")] == [2, 1]


def test_pictures_are_copied_as_they_are_under_plain_names(tmp_path: Path) -> None:
    names = ["Straße 1/ä, b.jpg", "Straße 1/ä; b.jpg", "x/weird\n.jpg", "x/A.jpg", "y/a.jpg"]
    source = labelled(tmp_path / "source", names)
    imported("labelme", source, tmp_path / "data")
    listed = [
        line.split(",")[0]
        for split in ("train", "val")
        for line in (tmp_path / f"data/{split}.csv").read_text().splitlines()
    ]
    assert sorted(listed) == [
        "images/Straße_1/ä_b-2.jpg",
        "images/Straße_1/ä_b.jpg",
        "images/x/A.jpg",
        "images/x/weird_.jpg",
        "images/y/a.jpg",
    ]
    assert (tmp_path / "data/images/x/A.jpg").read_bytes() == picture_bytes(3)


def test_pictures_of_one_name_and_several_suffixes_keep_a_mask_each(tmp_path: Path) -> None:
    files = {"a.jpg": picture_bytes(0), "a.png": picture_bytes(1, kind="PNG")}
    source = write(
        tmp_path / "s", files | {"1.json": labelme("a.jpg"), "2.json": labelme("a.png", label="car")}
    )
    result = imported("labelme", source, tmp_path / "data")
    assert sorted(result.ids) == ["a", "a-2"]
    assert left_in(tmp_path / "data/masks") == ["a-2.png", "a.png"]


def test_links_share_the_file_and_zip_files_are_copied(tmp_path: Path) -> None:
    source = labelled(tmp_path / "source", ["a.jpg", "b.jpg"])
    imported("labelme", source, tmp_path / "data", ImportOptions(pictures="link"))
    assert (tmp_path / "data/images/a.jpg").samefile(source / "a.jpg")


def test_a_link_that_cannot_be_made_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(
        InterchangeError, match=r"cannot be linked .* Invalid cross-device link; use --pictures copy"
    ):
        imported(
            "labelme", labelled(tmp_path / "s", ["a.jpg"]), tmp_path / "data", ImportOptions(pictures="link")
        )


def test_nothing_is_written_into_a_folder_that_holds_something(tmp_path: Path) -> None:
    source = labelled(tmp_path / "source", ["a.jpg", "b.jpg"])
    write(tmp_path / "data", {"mine.txt": "x"})
    with pytest.raises(InterchangeError, match="data exists and is not empty: name a new folder"):
        import_dataset("labelme", source, tmp_path / "data", ImportOptions())
    assert left_in(tmp_path / "data") == ["mine.txt"]
    assert left_in(tmp_path) == ["data", "source"]
    (tmp_path / "empty").mkdir()
    assert imported("labelme", source, tmp_path / "empty").splits


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError(28, "No space left on device")])
def test_nothing_remains_of_an_import_that_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException]
) -> None:
    source = labelled(tmp_path / "source", ["a.jpg", "b.jpg"])

    def stop(*_: object) -> None:
        assert any(name.startswith(".data.") for name in left_in(tmp_path))
        raise error

    monkeypatch.setattr(importing, "write_dataset", stop)
    expected = InterchangeError if isinstance(error, OSError) else error
    with pytest.raises(expected):  # type: ignore[arg-type]
        import_dataset("labelme", source, tmp_path / "data", ImportOptions())
    assert left_in(tmp_path) == ["source"]


def test_pictures_that_cannot_be_read_are_left_out_by_name(tmp_path: Path) -> None:
    source = labelled(
        tmp_path / "source", ["a.jpg", "b.jpg", "c.jpg"], b=b"no picture", c=picture_bytes()[:30]
    )
    result = imported("labelme", source, tmp_path / "data")
    assert list(result.ids) == ["a"]
    assert result.report.left_out.counts == {"pictures that cannot be read": 2}
    assert left_in(tmp_path / "data/images") == ["a.jpg"]


def test_a_picture_that_is_labelled_twice_is_refused(tmp_path: Path) -> None:
    source = write(
        tmp_path / "s", {"1.json": labelme("a.jpg"), "2.json": labelme("a.jpg"), "a.jpg": picture_bytes()}
    )
    with pytest.raises(InterchangeError, match=r"a\.jpg is labelled twice: 1\.json; 2\.json"):
        import_dataset("labelme", source, tmp_path / "data", ImportOptions())


def test_the_report_counts_what_was_written(tmp_path: Path) -> None:
    source = labelled(tmp_path / "source", ["a.jpg", "b.jpg"])
    seen: list[tuple[int, int]] = []
    report = import_dataset(
        "labelme", source, tmp_path / "data", ImportOptions(), lambda *ones: seen.append(ones)
    )
    assert seen == [(1, 2), (2, 2)]
    painted = 31 * HEIGHT * 2
    assert report.to_json() == {
        "dataset": str(tmp_path / "data/dataset.toml"),
        "splits": {"train": 1, "val": 1},
        "divided": True,
        "pixels": {"background": 2 * HEIGHT * WIDTH - painted, "road": painted},
        "ignored_pixels": 0,
        "drawing_order": "later shapes of a file lie above earlier ones",
        "background": "background",
        "left_out": {},
        "notes": {},
    }
    text = (tmp_path / "data/import.txt").read_text()
    assert "pictures: train 1, val 1 (divided here)" in text
    assert "   1  road                      51.667% of the pixels" in text


def test_many_pictures_in_many_threads_keep_their_own_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Numbered:
        def __init__(self, number: int) -> None:
            self.number = number

        def own_size(self) -> None:
            return None

        def ids(self, size: ImageSize, classes: ClassIds) -> UInt8Array:
            del classes
            return np.full(size.shape, self.number, np.uint8)

    def read(*_: Any) -> ForeignDataset:
        classes = [ForeignClass(f"c{k}") for k in range(200)]
        pictures = [ForeignPicture(f"{k:03}.jpg", "", Numbered(k)) for k in range(200)]
        return ForeignDataset(classes, pictures, "")

    write(tmp_path / "source", {f"{k:03}.jpg": picture_bytes(k, height=8, width=8) for k in range(200)})
    monkeypatch.setattr(importing, "READERS", {"numbered": read})
    result = imported("numbered", tmp_path / "source", tmp_path / "data", ImportOptions(workers=8))
    assert all(set(ids_HW.reshape(-1).tolist()) == {int(name)} for name, ids_HW in result.ids.items())
    assert len(result.ids) == 200


def test_shapes_without_any_drawing_are_background() -> None:
    classes = ClassIds(palette=None, ids={}, background=7)  # type: ignore[arg-type]
    assert Shapes(()).ids(ImageSize(2, 3), classes).tolist() == [[7] * 3] * 2


def test_kinds_are_told_by_their_frequency() -> None:
    left_out = Tally()
    for kind in "abb":
        left_out.add(kind, f"of {kind}")
    assert left_out.lines() == ["b: 2 (first: of b)", "a: 1 (first: of a)"]


def turned_jpeg(orientation: int) -> bytes:
    """Return a picture that is stored with 60 rows of 40 pixels and shown with 40 rows of 60."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    Image.new("RGB", (HEIGHT, WIDTH)).save(data, "JPEG", exif=exif)
    return data.getvalue()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_of_a_picture_that_exif_turns_are_turned_where_they_were_drawn_on_its_stored_pixels(
    tmp_path: Path, orientation: int
) -> None:
    source = write(tmp_path / "s", {"a.jpg": turned_jpeg(orientation)})
    write(source, {"a.json": labelme("a.jpg")})  # 40 rows of 60: as it is shown
    shown_HW = imported("labelme", source, tmp_path / "shown").ids["a"]
    assert (shown_HW[:, :31] == 1).all()
    assert not shown_HW[:, 31:].any()
    write(source, {"a.json": labelme("a.jpg", size=(WIDTH, HEIGHT))})  # 60 rows of 40: as it is stored
    result = imported("labelme", source, tmp_path / "stored")
    stored_HW = result.ids["a"]
    assert result.report.notes.counts == {TURNED: 1}
    assert stored_HW.shape == (HEIGHT, WIDTH)
    drawn_HW = np.zeros((WIDTH, HEIGHT), np.uint8)
    drawn_HW[:40, :31] = 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn = Image.fromarray(drawn_HW)
    drawn.info["exif"] = exif.tobytes()
    assert (stored_HW == np.asarray(ImageOps.exif_transpose(drawn))).all()


def test_masks_of_a_picture_that_exif_turns_are_turned_where_they_have_its_stored_size(
    tmp_path: Path,
) -> None:
    mask_HW = np.zeros((WIDTH, HEIGHT), np.uint8)
    mask_HW[:10] = 1
    files = {"labelmap.txt": "a:0,0,0::\nb:255,0,0::\n", "JPEGImages/a.jpg": turned_jpeg(6)}
    source = write(tmp_path / "s", files | {"SegmentationClass/a.png": encoded(Image.fromarray(mask_HW))})
    ids_HW = imported("voc", source, tmp_path / "data").ids["a"]
    assert (ids_HW[:, -10:] == 1).all()
    assert not ids_HW[:, :-10].any()


def test_labels_of_a_picture_that_fits_them_either_way_are_taken_as_upright_and_that_is_said(
    tmp_path: Path,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(data, "JPEG", exif=exif)
    source = write(tmp_path / "s", {"a.jpg": data.getvalue(), "a.json": labelme("a.jpg")})
    result = imported("labelme", source, tmp_path / "data")
    assert (result.ids["a"][:, :31] == 1).all()
    assert result.report.notes.counts == {ASSUMED_UPRIGHT: 1}
    assert f"note: {ASSUMED_UPRIGHT}: 1 (first: a.jpg)" in (tmp_path / "data/import.txt").read_text()


@pytest.mark.parametrize(("suffix", "kind"), [("bmp", "BMP"), ("tif", "TIFF"), ("gif", "GIF")])
def test_pictures_of_other_formats_become_png_and_that_is_said(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    picture = Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 0))
    name = f"a.{suffix}"
    source = write(tmp_path / "s", {name: encoded(picture, kind), "a.json": labelme(name)})
    result = imported("labelme", source, tmp_path / "data", ImportOptions(pictures="link"))
    assert result.report.notes.counts == {CONVERTED: 1}
    image_HW3, label_HW = LabeledImages(result.spec, "train")[0]
    assert (image_HW3 == (200, 100, 0)).all()
    assert (label_HW == result.ids["a"]).all()
