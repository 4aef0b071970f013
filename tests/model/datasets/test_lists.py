"""Lists of pairs are read as any CSV reader reads them, or refused with the way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.datasets.lists import ListRules, moved_start, parse_list
from model.errors import DatasetError

ROOT = Path("/data")
LIST = ROOT / "train.csv"


def parsed(
    data: bytes | str, rules: ListRules | None = None, root: Path = ROOT
) -> list[tuple[str, str, str]]:
    data = data.encode() if isinstance(data, str) else data
    pairs = parse_list(data, LIST, root, rules or ListRules())
    return [
        (str(pair.image.relative_to(root)), str(pair.label and pair.label.relative_to(root)), pair.origin)
        for pair in pairs
    ]


@pytest.mark.parametrize(
    "line",
    [
        "a/1.jpg,b/1.png",
        '"a/1.jpg","b/1.png"',
        "a/1.jpg, b/1.png ",
        '"a/1.jpg", "b/1.png"',
        "a/1.jpg,b/1.png,,",
        "./a/1.jpg,b//1.png",
    ],
)
@pytest.mark.parametrize("mark", ["", "\N{ZERO WIDTH NO-BREAK SPACE}"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_quotes_spaces_and_either_line_end_are_read(line: str, mark: str, end: str) -> None:
    assert parsed(f"{mark}{line}{end}{end}{line}{end}") == [
        ("a/1.jpg", "b/1.png", "/data/train.csv:1"),
        ("a/1.jpg", "b/1.png", "/data/train.csv:3"),
    ]


def test_quoted_names_may_contain_commas_and_quotes() -> None:
    assert parsed('"a,1.jpg","b ""x"".png"') == [("a,1.jpg", 'b "x".png', "/data/train.csv:1")]


@pytest.mark.parametrize("header", ["image,label", "Image,Mask", '"image path","label path"', "x,y"])
def test_a_header_line_is_no_pair(header: str) -> None:
    assert parsed(f"{header}\n1.jpg,1.png\n") == [("1.jpg", "1.png", "/data/train.csv:2")]


def test_names_without_suffixes_are_no_header() -> None:
    assert [pair[:2] for pair in parsed("1,1_ids\n2,2_ids\n")] == [("1", "1_ids"), ("2", "2_ids")]


@pytest.mark.parametrize("data", ["", "\n\n", "image,label\n"])
def test_a_list_without_a_pair_is_refused(data: str) -> None:
    with pytest.raises(DatasetError, match=r"train\.csv: no image,label pair"):
        parsed(data)


@pytest.mark.parametrize("line", ["1.jpg", "1.jpg,", ",1.png", "1.jpg,1.png,2.png", "a b c"])
def test_a_line_that_is_no_pair_is_named(line: str) -> None:
    with pytest.raises(DatasetError, match=r"train\.csv:2: not an image,label pair"):
        parsed(f"1.jpg,1.png\n{line}\n")


@pytest.mark.parametrize(
    ("separator", "message"),
    [
        ("\t", r"a tab in place of the comma; .*: sed -i 's/\\t/,/' '/data/train\.csv'"),
        (" ", r"a space in place of the comma; .*: sed -i 's/  \*/,/' "),
        (";", "a semicolon in place of the comma"),
    ],
)
def test_another_separator_is_named_with_the_command_that_changes_it(separator: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        parsed(f"a/1.jpg{separator}b/1.png\n")


def test_a_line_with_one_name_is_told_what_a_line_is() -> None:
    with pytest.raises(DatasetError, match=r"'1.jpg'; a line names a picture and its labels"):
        parsed("1.jpg\n")
    with pytest.raises(DatasetError, match=r"'2007_000032'; .* bisenet dataset import voc"):
        parsed("2007_000032\n2007_000039\n")


def test_labels_may_be_left_empty_where_a_missing_label_means_a_class() -> None:
    rules = ListRules(may_lack_labels=True)
    (pair,) = parse_list(b"1.jpg,\n", LIST, ROOT, rules)
    assert (pair.image, pair.label) == (ROOT / "1.jpg", None)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_utf_16_file_is_named_with_the_command_that_converts_it(encoding: str) -> None:
    with pytest.raises(DatasetError, match=r"train\.csv: .* UTF-16, .*iconv -f UTF-16 -t UTF-8"):
        parsed("1.jpg,1.png\n".encode(encoding))


def test_names_in_another_encoding_name_their_files() -> None:
    (pair,) = parse_list("schön.jpg,schön.png\n".encode("latin-1"), LIST, ROOT, ListRules())
    assert os.fsencode(pair.image.name) == b"sch\xf6n.jpg"


@pytest.mark.parametrize("line", ["images\\1.jpg,labels\\1.png", "images/1.jpg,labels\\1.png"])
def test_backslashes_are_named_with_the_line_that_reads_them(line: str) -> None:
    with pytest.raises(DatasetError) as error:
        parsed(line)
    assert "a Windows path with backslashes" in str(error.value)
    assert "\n    [path_map]\n    '\\' = \"/\"" in str(error.value)
    assert parsed(line, ListRules({"\\": "/"}))[0][:2] == ("images/1.jpg", "labels/1.png")


@pytest.mark.parametrize("start", ["C:\\photos\\street", "C:/photos/street"])
def test_a_drive_is_replaced_by_the_start_that_leads_to_files(tmp_path: Path, start: str) -> None:
    for name in ("images/1.jpg", "labels/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    slash = start[2]
    line = f"{start}{slash}images{slash}1.jpg,{start}{slash}labels{slash}1.png"
    with pytest.raises(DatasetError, match=r"a Windows path with") as error:
        parsed(line, root=tmp_path)
    assert f"'{start}{slash}' = \"\"" in str(error.value)
    for key, value in ((f"{start}{slash}", ""), (start, "."), (start.swapcase()[:1] + start[1:], ".")):
        if key[0] == "C":
            assert parsed(line, ListRules({key: value}), tmp_path)[0][:2] == ("images/1.jpg", "labels/1.png")


def test_a_drive_whose_files_are_nowhere_is_named() -> None:
    with pytest.raises(DatasetError, match=r"'D:\\x\\' = \"/folder/on/this/machine/\""):
        parsed("D:\\x\\1.jpg,D:\\x\\1.png")


def test_the_first_start_of_the_path_map_that_fits_is_taken() -> None:
    rules = ListRules({"/home/ann/": "a/", "/home/": "b/", "": "c/"})
    lines = "/home/ann/1.jpg,/home/bob/1.png\nx.jpg,x.png\n"
    assert [pair[:2] for pair in parsed(lines, rules)] == [("a/1.jpg", "b/bob/1.png"), ("c/x.jpg", "c/x.png")]


def test_the_start_of_a_moved_path_is_the_longest_that_keeps_the_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(b"")
    assert moved_start("/old/place/images/1.jpg", tmp_path) == ("/old/place/", "")
    assert moved_start("/old/place/images/2.jpg", tmp_path) is None


@given(st.binary() | st.text("a.jpg,\n\t \"'\0/\\ä").map(str.encode))
def test_any_bytes_are_pairs_or_refused_by_name(data: bytes) -> None:
    message = ""
    try:
        assert parse_list(data, LIST, ROOT, ListRules())
    except DatasetError as error:
        message = str(error)
    assert not message or message.startswith("/data/train.csv")
    assert message.encode().decode() == message
