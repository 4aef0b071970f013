"""Pictures are found in folders as people fill them, each with its own labels or with a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model.datasets.patterns import PatternSplit
from model.errors import DatasetError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def found(root: Path, images: str | tuple[str, ...], labels: str | tuple[str, ...]) -> dict[str, str]:
    split = PatternSplit(*((one,) if isinstance(one, str) else one for one in (images, labels)))
    pairs = split.pairs(root)
    assert all(pair.origin == "" and pair.label is not None for pair in pairs)
    return {
        os.path.relpath(pair.image, root): os.path.relpath(pair.label, root) for pair in pairs if pair.label
    }


def test_stars_lead_from_each_picture_to_its_labels_in_the_order_of_paths(tmp_path: Path) -> None:
    names = [f"{kind}/{city}_{kind}.png" for city in ("b/2", "a/1", "a/0") for kind in ("image", "ids")]
    pairs = found(touch(tmp_path, *names), "image/*/*_image.png", "ids/*/*_ids.png")
    assert list(pairs.items()) == [
        ("image/a/0_image.png", "ids/a/0_ids.png"),
        ("image/a/1_image.png", "ids/a/1_ids.png"),
        ("image/b/2_image.png", "ids/b/2_ids.png"),
    ]


@pytest.mark.parametrize("name", ["1.jpg", "1.JPG", "1.jpeg", "1.JPEG", "1.Jpg"])
@pytest.mark.parametrize("label", ["1.png", "1.PNG"])
def test_a_suffix_counts_in_any_case_and_spelling(tmp_path: Path, name: str, label: str) -> None:
    touch(tmp_path, f"images/{name}", f"labels/{label}")
    assert found(tmp_path, "images/*.jpg", "labels/*.png") == {f"images/{name}": f"labels/{label}"}


def test_the_exact_spelling_comes_before_others(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "labels/1.png", "labels/1.PNG")
    assert found(tmp_path, "images/*.jpg", "labels/*.png") == {"images/1.jpg": "labels/1.png"}


@pytest.mark.parametrize("images", ["images/*.{jpg,png}", ("images/*.jpg", "images/*.png")])
def test_several_suffixes_are_braces_or_several_patterns(
    tmp_path: Path, images: str | tuple[str, ...]
) -> None:
    touch(tmp_path, "images/1.jpg", "images/2.PNG", "images/3.webp", "labels/1.png", "labels/2.png")
    assert list(found(tmp_path, images, "labels/*.png")) == ["images/1.jpg", "images/2.PNG"]


def test_each_pattern_of_images_may_have_its_own_pattern_of_labels(tmp_path: Path) -> None:
    touch(tmp_path, "day/1.jpg", "night/1.jpg", "day_ids/1.png", "night_ids/1.png")
    pairs = found(tmp_path, ("day/*.jpg", "night/*.jpg"), ("day_ids/*.png", "night_ids/*.png"))
    assert pairs == {"day/1.jpg": "day_ids/1.png", "night/1.jpg": "night_ids/1.png"}


def test_a_picture_that_two_patterns_match_counts_once(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "labels/1.png")
    assert len(found(tmp_path, ("images/*.jpg", "images/*.jpeg"), "labels/*.png")) == 1


def test_two_stars_stand_for_any_number_of_folders(tmp_path: Path) -> None:
    names = ["1", "a/2", "a/b/3"]
    touch(tmp_path, *(f"images/{name}.jpg" for name in names), *(f"labels/{name}.png" for name in names))
    expected = {f"images/{name}.jpg": f"labels/{name}.png" for name in names}
    assert found(tmp_path, "images/**/*.jpg", "labels/**/*.png") == expected
    assert found(tmp_path, "images/**", "labels/**/*.png") == expected


def test_labels_may_lie_in_one_folder_where_the_pictures_do_not(tmp_path: Path) -> None:
    touch(tmp_path, "images/a/1.jpg", "images/b/2.jpg", "labels/1.png", "labels/2.png")
    pairs = found(tmp_path, "images/**/*.jpg", "labels/*.png")
    assert pairs == {"images/a/1.jpg": "labels/1.png", "images/b/2.jpg": "labels/2.png"}


def test_two_pictures_never_share_labels_in_silence(tmp_path: Path) -> None:
    touch(tmp_path, "images/a/1.jpg", "images/b/1.jpg", "labels/1.png")
    with pytest.raises(DatasetError, match=r"a/1\.jpg and .*b/1\.jpg would have the same labels, .*1\.png"):
        found(tmp_path, "images/**/*.jpg", "labels/*.png")


def test_two_label_files_of_one_picture_are_never_chosen_from_in_silence(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "labels/1.png", "labels/1.bmp")
    with pytest.raises(DatasetError, match=r"several files fit .*: .*1\.png, .*1\.bmp"):
        found(tmp_path, "images/*.jpg", "labels/*.{png,bmp}")


@pytest.mark.parametrize("labels", ["labels/*.png", "labels/*"])
def test_a_star_that_takes_the_suffix_leads_to_labels_by_the_stem(tmp_path: Path, labels: str) -> None:
    touch(tmp_path, "images/1.jpg", "images/2.png", "labels/1.png", "labels/2.png", "labels/1.json")
    pairs = found(tmp_path, "images/*", labels)
    assert pairs == {"images/1.jpg": "labels/1.png", "images/2.png": "labels/2.png"}


def test_labels_may_keep_the_suffix_of_the_picture_in_their_name(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "labels/1.jpg.png", "labels/1.png")
    assert found(tmp_path, "images/*", "labels/*.png") == {"images/1.jpg": "labels/1.jpg.png"}


def test_masks_that_lie_among_the_pictures_are_not_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "1_mask.png", "2.png", "2_mask.png", "3.png")
    assert found(tmp_path, "*.png", "*_mask.png") == {
        "1.png": "1_mask.png",
        "2.png": "2_mask.png",
        "3.png": "3_mask.png",
    }
    with pytest.raises(DatasetError, match=r"1\.png would be its own labels"):
        found(tmp_path, "*.png", "*.png")


@pytest.mark.parametrize(
    "folder", ["images", "my images", "a[0-9]", "[old]", "what?", "braces(1)", "räder", "a+b.c"]
)
def test_folders_have_any_names(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, f"{folder}/1 [a].jpg", f"{folder} ids/1 [a].png", "a5/x.jpg")
    pairs = found(tmp_path, f"./{folder}//*.jpg", f"{folder} ids/./*.png")
    assert pairs == {f"{folder}/1 [a].jpg": f"{folder} ids/1 [a].png"}


def test_patterns_start_at_the_root_the_home_folder_or_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "images/1.jpg", "labels/1.png")
    root = tmp_path / "elsewhere"
    root.mkdir()
    for start in ("~", str(tmp_path), ".."):
        split = PatternSplit((f"{start}/images/*.jpg",), (f"{start}/labels/*.png",))
        (pair,) = split.pairs(root)
        assert pair.image.resolve() == tmp_path / "images/1.jpg"
        assert pair.label is not None
        assert pair.label.resolve() == tmp_path / "labels/1.png"
        assert [folder.resolve() for folder in split.folders(root)] == [
            tmp_path / "images",
            tmp_path / "labels",
        ]


def test_hidden_files_and_folders_are_passed_over_unless_they_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "images/._1.jpg", "images/.cache/2.jpg", ".data/3.jpg")
    assert list(found(tmp_path, "images/**/*.jpg", "labels/**/*.png")) == ["images/1.jpg"]
    assert list(found(tmp_path, ".data/*.jpg", "labels/*.png")) == [".data/3.jpg"]


def test_links_to_folders_are_followed_and_never_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "images/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "images")
    assert list(found(tmp_path, "images/**/*.jpg", "labels/**/*.png")) == [
        "images/1.jpg",
        "images/more/2.jpg",
    ]


def test_folders_are_no_pictures_and_a_link_that_leads_nowhere_is_one_to_report(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "images/2.jpg/x")
    (tmp_path / "images/3.jpg").symlink_to(tmp_path / "nowhere")
    assert list(found(tmp_path, "images/*.jpg", "labels/*.png")) == ["images/1.jpg", "images/3.jpg"]


def test_names_that_are_no_utf_8_are_found(tmp_path: Path) -> None:
    name = os.fsdecode(b"sch\xf6n")
    touch(tmp_path, f"images/{name}.jpg", f"labels/{name}.png")
    assert found(tmp_path, "images/*.jpg", "labels/*.png") == {f"images/{name}.jpg": f"labels/{name}.png"}


def test_labels_that_are_missing_are_expected_where_the_pattern_leads(tmp_path: Path) -> None:
    touch(tmp_path, "images/a/1.jpg")
    assert found(tmp_path, "images/**/*.jpg", "labels/**/*.png") == {"images/a/1.jpg": "labels/a/1.png"}


def test_a_pattern_without_a_picture_says_what_lies_there(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.bmp", "images/2.bmp", "images/sub/3.jpg", "images/.x")
    with pytest.raises(DatasetError) as error:
        found(tmp_path, "images/*.jpg", "labels/*.png")
    assert "no picture matches images/*.jpg: " in str(error.value)
    assert "images holds 2 .bmp (1.bmp, 2.bmp), 1 .jpg (sub/3.jpg), 1 hidden (.x)" in str(error.value)


@pytest.mark.parametrize("images", ["nothing/*.jpg", ("images/*.jpg", "nothing/*.jpg"), "images\\*.jpg"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, images: str | tuple[str, ...]) -> None:
    touch(tmp_path, "images/1.jpg")
    with pytest.raises(
        DatasetError, match=r"no folder .*nothing|images\\\*\.jpg: .*; .* not with backslashes"
    ):
        found(tmp_path, images, "labels/*.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "images/closed/2.jpg")
    (tmp_path / "images/closed").chmod(0)
    with pytest.raises(DatasetError, match="closed: Permission denied"):
        found(tmp_path, "images/**/*.jpg", "labels/**/*.png")
    (tmp_path / "images/closed").chmod(0o700)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ("images", "labels", r"images = 'images' needs a \* .*images/\*\.jpg"),
        ("*.jpg", "labels.png", "labels = 'labels.png' needs a *"),
        ("*.jpg", "*/*.png", "at most as many as images has"),
        (("a/*.jpg", "b/*.jpg", "c/*.jpg"), ("a/*.png", "b/*.png"), "labels has 2 patterns and images 3"),
        ((), ("*",), "images 0"),
    ],
)
def test_patterns_that_lead_to_no_labels_are_refused(
    images: str | tuple[str, ...], labels: str | tuple[str, ...], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        found(Path(), images, labels)
