from __future__ import annotations

from pathlib import Path

import pytest

from model.datasets.palettes import NORMALISATIONS, PresetName, distinct_colors, load_preset, read_palette
from model.errors import DatasetError, PaletteError


@pytest.mark.parametrize(
    ("name", "num_classes", "some"),
    [
        ("cityscapes", 19, {0: "road", 10: "sky", 13: "car", 18: "bicycle"}),
        ("ade20k", 150, {0: "wall", 7: "bed", 80: "bus", 149: "flag"}),
        ("cocostuff", 171, {0: "person", 79: "toothbrush", 80: "banner", 170: "wood"}),
        ("face", 19, {0: "background", 1: "skin", 6: "eye_g", 17: "hair", 18: "hat"}),
    ],
)
def test_presets_have_the_classes_of_their_data_set_in_its_order(
    name: PresetName, num_classes: int, some: dict[int, str]
) -> None:
    preset = load_preset(name)
    assert preset.palette.num_classes == num_classes
    assert {index: preset.palette.names[index] for index in some} == some
    assert (preset.mean, preset.std) == NORMALISATIONS[name]


def test_cityscapes_has_its_own_colors() -> None:
    palette = load_preset("cityscapes").palette
    assert palette.colors[palette.id_of("car")] == (0, 0, 142)
    assert palette.colors[palette.id_of("traffic light")] == (250, 170, 30)


def test_colors_that_are_made_are_distinct_never_black_and_those_of_pascal_voc() -> None:
    colors = distinct_colors(255)
    assert len({*colors, (0, 0, 0)}) == 256
    assert colors[:4] == ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert colors[19] == (0, 64, 128)
    assert colors[254] == (224, 224, 192)


def written(tmp_path: Path, text: str, name: str = "classes.txt") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_list_names_one_class_a_line(tmp_path: Path) -> None:
    palette = read_palette(written(tmp_path, "# two of them\nopen sky\n\n  road \n"))
    assert palette.names == ("open sky", "road")
    assert palette.colors == distinct_colors(2)


def test_a_list_may_name_colors(tmp_path: Path) -> None:
    palette = read_palette(written(tmp_path, "sky, 1, 2, 3\nroad,0,0,0\n"))
    assert palette.names == ("sky", "road")
    assert palette.colors == ((1, 2, 3), (0, 0, 0))


def test_classes_without_a_colour_get_one_that_is_not_taken(tmp_path: Path) -> None:
    palette = read_palette(written(tmp_path, "sky,128,0,0\nroad\n"))
    assert palette.colors == ((128, 0, 0), (0, 128, 0))


@pytest.mark.parametrize("mark", ["", "\N{ZERO WIDTH NO-BREAK SPACE}"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "lines",
    [
        ["# label:color_rgb:parts:actions", "sky:1,2,3::", "open road:4,5,6:left,right:stop"],
        ["name,r,g,b", "sky,1,2,3", "open road,4,5,6"],
        ["name, Red, Green, Blue", '"sky", 1, 2, 3', '"open road",4,5,6'],
        ["sky,1,2,3", "open road,4,5,6"],
    ],
)
def test_class_lists_of_other_programs_are_read(
    tmp_path: Path, lines: list[str], end: str, mark: str
) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes((mark + end.join(lines) + end).encode())
    palette = read_palette(path)
    assert palette.names == ("sky", "open road")
    assert palette.colors == ((1, 2, 3), (4, 5, 6))


def test_the_classes_of_a_data_set_file_are_read(tmp_path: Path) -> None:
    text = 'name = "d"\n[splits]\ntrain = "t.csv"\n[[classes]]\nname = "sky"\ncolor = [1, 2, 3]\n'
    palette = read_palette(written(tmp_path, text, "d.toml"))
    assert (palette.names, palette.colors) == (("sky",), ((1, 2, 3),))
    with pytest.raises(DatasetError):
        read_palette(written(tmp_path, "name = 1", "d.toml"))
    (tmp_path / "sub").mkdir()
    written(tmp_path, "sky:1,2,3::\n", "sub/labelmap.txt")
    listed = written(tmp_path, 'root = "sub"\nclasses = "labelmap.txt"\nignore_id = 7\n', "e.toml")
    assert (read_palette(listed).names, read_palette(listed).ignore_id) == (("sky",), 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1..255 classes, not 0"),
        ("sky\nsky\n", "unique"),
        ("sky,1,2\n", r"classes\.txt:1: not red,green,blue after the name: '1,2'"),
        ("sky,1,2,3\n\nroad,1,2,x\n", r"classes\.txt:3: "),
        ('"sky\n' + "x" * 200_000, "not a line of a class list"),
        ("car, truck\n", "quote a name that contains a comma"),
        ("sky,1,2,256\n", "0..255"),
        ("\n".join(map(str, range(256))), "not 256"),
    ],
)
def test_a_list_that_is_none_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PaletteError, match=message):
        read_palette(written(tmp_path, text))


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"\xfc\n")
    for name in ("latin.txt", "missing.txt"):
        with pytest.raises(PaletteError, match=name):
            read_palette(tmp_path / name)
