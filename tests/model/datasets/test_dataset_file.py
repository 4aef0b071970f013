"""A data-set file means what it says, and a mistake in it is named with its table."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from model.datasets.dataset_file import DatasetFile, parse_dataset_file
from model.datasets.masks import MaskRules
from model.datasets.palettes import distinct_colors
from model.datasets.patterns import PatternSplit
from model.errors import DatasetError
from model.pictures.image import DEFAULT_LIMITS, ImageLimits

TOP = 'name = "tiny"\nignore_id = 255\n'
SPLITS = '[splits]\ntrain = "lists/train.csv"\n'
CLASSES = (
    '[[classes]]\nname = "road"\ncolor = [128, 64, 128]\n[[classes]]\nname = "car"\ncolor = [0, 0, 142]\n'
)
TOML = f"{TOP}{SPLITS}[label_map]\n9 = 255\n{CLASSES}"


def parsed(text: str, root: Path = Path()) -> DatasetFile:
    return parse_dataset_file(tomllib.loads(text), "tiny.toml", root)


def test_a_file_says_what_masks_are_without_saying_more_than_it_must() -> None:
    file = parsed(TOML)
    assert (file.name, dict(file.splits), dict(file.label_map)) == (
        "tiny",
        {"train": "lists/train.csv"},
        {9: 255},
    )
    assert file.palette.colors == ((128, 64, 128), (0, 0, 142))
    assert file.rules.masks == MaskRules(None, {(128, 64, 128): 0, (0, 0, 142): 1}, 0, has_label_map=True)
    assert (file.rules.exif, file.rules.missing_label, file.rules.max_pixels) == (None, None, None)
    assert file.rules.limits is DEFAULT_LIMITS


def test_a_file_may_say_how_its_files_are_read() -> None:
    file = parsed(
        'masks = "colors"\ncolor_tolerance = 9\nexif = "stored"\n'
        'missing_label = "car"\nmax_pixels = 200000000\n'
        f'{TOP}{SPLITS}[label_map]\n"0,0,0" = 255\n[path_map]\n\'C:\\data\\\' = ""\n{CLASSES}'
    )
    assert file.label_map == {}
    assert file.rules.masks.kind == "colors"
    assert file.rules.masks.color_tolerance == 9
    assert file.rules.masks.colors == {(0, 0, 0): 255, (128, 64, 128): 0, (0, 0, 142): 1}
    assert (file.rules.exif, file.rules.missing_label) == ("stored", 1)
    assert file.rules.path_map == {"C:\\data\\": ""}
    assert file.rules.limits == ImageLimits(200_000_000, 200_000_000)


def test_colours_of_the_label_map_replace_the_own_colour_of_a_class() -> None:
    label_map = '[label_map]\n"1,1,1" = 0\n"2, 2, 2" = 0\n"128,64,128" = 255\n'
    assert parsed(f'masks = "colors"\n{TOP}{SPLITS}{label_map}{CLASSES}').rules.masks.colors == {
        (1, 1, 1): 0,
        (2, 2, 2): 0,
        (128, 64, 128): 255,
        (0, 0, 142): 1,
    }


def test_patterns_are_one_or_several() -> None:
    one = '{ images = "a/*.{jpg,png}", labels = "b/*.png" }'
    several = '{ images = ["a/*.jpg", "c/*.jpg"], labels = ["b/*.png", "d/*.png"] }'
    file = parsed(f"{TOP}[splits]\ntrain = {one}\nval = {several}\n{CLASSES}")
    assert file.splits == {
        "train": PatternSplit(("a/*.{jpg,png}",), ("b/*.png",)),
        "val": PatternSplit(("a/*.jpg", "c/*.jpg"), ("b/*.png", "d/*.png")),
    }


@pytest.mark.parametrize(
    "classes", ['classes = ["road", "car"]\n', 'classes = [{name = "road"}, {name = "car"}]\n']
)
def test_classes_without_a_colour_get_distinct_ones(classes: str) -> None:
    file = parsed(f"{classes}{TOP}{SPLITS}")
    assert (file.palette.names, file.palette.colors) == (("road", "car"), distinct_colors(2))
    assert file.rules.masks.colors == {}


def test_given_and_distinct_colours_never_meet() -> None:
    rest = '[[classes]]\nname = "a"\n[[classes]]\nname = "b"\ncolor = [128, 0, 0]\n[[classes]]\nname = "c"\n'
    file = parsed(f"{TOP}{SPLITS}{rest}")
    assert file.palette.colors == ((0, 128, 0), (128, 0, 0), (128, 128, 0))
    assert file.rules.masks.colors == {(128, 0, 0): 1}


def test_classes_may_stand_in_a_class_list_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nroad:128,64,128::\ncar:0,0,142::\n"
    )
    file = parsed(f'classes = "labelmap.txt"\nmasks = "colors"\n{TOP}{SPLITS}', tmp_path)
    assert file.palette.names == ("road", "car")
    assert file.rules.masks.colors == {(128, 64, 128): 0, (0, 0, 142): 1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tiny"', 'title = "tiny"', "unknown keys: title"),
        ('name = "tiny"', "", "name is missing"),
        ('name = "tiny"', "name = 3", "name is missing, empty or of a wrong type"),
        ("ignore_id = 255", "ignore_id = true", "ignore_id must be an integer"),
        ("ignore_id = 255", "ignore_id = 1", "ignore_id 1 must lie in"),
        ('"lists/train.csv"', "3", "split 'train' must name a list file, or patterns"),
        ('"lists/train.csv"', '{ images = "*.png" }', "split 'train' lacks labels"),
        ('"lists/train.csv"', '{ images = "*", labels = 3 }', "split 'train': labels must be a pattern"),
        ('"lists/train.csv"', '{ images = "*", labels = [] }', "labels has 0 patterns"),
        ('"lists/train.csv"', '{ images = "*", labels = "x" }', r"split 'train': labels = 'x' needs a \*"),
        ('"lists/train.csv"', '{ images = "x", labels = "x" }', r"split 'train': images = 'x' needs a \*"),
        ('"lists/train.csv"', '{ images = "*", list = "x" }', "unknown keys in split 'train': list"),
        ('train = "lists/train.csv"', "", "splits is missing, empty"),
        (
            'train = "lists/train.csv"',
            'masks = "colors"',
            "split 'masks'; masks belongs at the top of the file",
        ),
        ("9 = 255", "nine = 1", "label_map: 'nine' is no value: the values of masks are integers"),
        ("9 = 255", '"1,2,3" = 1', "label_map: '1,2,3' is no value: colours need masks = \"colors\""),
        ("9 = 255", '9 = "car"', "label_map must be a table of int values: 9 = 'car'"),
        ("9 = 255", "9 = true", "label_map must be a table of int values: 9 = True"),
        ("9 = 255", 'exif = "stored"', "exif belongs at the top of the file, above the first"),
        (
            "[label_map]\n9 = 255",
            "label_map = 3",
            "split 'label_map'; label_map belongs at the top",
        ),
        ('name = "car"', 'label = "car"', "unknown keys in classes: label"),
        (
            'name = "car"',
            'name = "car"\nmasks = "colors"',
            "unknown keys in classes: masks; masks belongs at the top",
        ),
        ('name = "car"', 'name = "road"', "unique"),
        ("color = [0, 0, 142]", 'color = "blue"', "needs a name, and its color is"),
        ("color = [0, 0, 142]", "color = [0, 0]", "colors are"),
        ("color = [0, 0, 142]", "color = [128, 64, 128]", "two classes share one color"),
    ],
)
def test_a_mistake_is_named_with_its_table(old: str, new: str, message: str) -> None:
    assert old in TOML
    with pytest.raises(DatasetError, match=f"tiny.toml: .*{message}|tiny.toml: {message}"):
        parsed(TOML.replace(old, new))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('masks = "colours"', "masks must be one of ids, colors, not 'colours'"),
        ("masks = []", "masks must be one of"),
        ('exif = "left"', "exif must be one of upright, stored, not 'left'"),
        ("color_tolerance = 256", r"color_tolerance must be an integer 0\.\.255, not 256"),
        ("color_tolerance = 1.5", "color_tolerance must be an integer"),
        ("max_pixels = true", "max_pixels must be an integer"),
        ("max_pixels = 0", "max_pixels must be an integer 1"),
        ('missing_label = "tree"', "missing_label must be a class, not 'tree'"),
        ("missing_label = 255", "missing_label must be a class, not 255"),
        ("path_map = { a = 1 }", "path_map must be a table of str values"),
        ('classes = "nowhere.txt"', r"nowhere\.txt: cannot be read"),
        ("classes = []", "classes is missing, empty or of a wrong type"),
        ("classes = [3]", "a class is a name or a table"),
    ],
)
def test_a_value_that_means_nothing_is_named_with_its_key(line: str, message: str) -> None:
    text = f"{line}\n{TOP}{SPLITS}" + ("" if line.startswith("classes") else CLASSES)
    with pytest.raises(DatasetError, match=message):
        parsed(text)


def test_masks_in_colours_need_a_colour_for_each_class() -> None:
    without = CLASSES.replace("color = [0, 0, 142]\n", "")
    with pytest.raises(DatasetError, match="needs a color for each class; car has none"):
        parsed(f'masks = "colors"\n{TOP}{SPLITS}{without}')
    assert parsed(f'masks = "colors"\n{TOP}{SPLITS}[label_map]\n"1,1,1" = 1\n{without}').rules.masks.colors
    with pytest.raises(DatasetError, match="'9' is no colour"):
        parsed(f'masks = "colors"\n{TOP}{SPLITS}[label_map]\n9 = 1\n{CLASSES}')
