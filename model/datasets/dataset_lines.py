"""Keys of a data-set file, and lines of TOML that a message proposes for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from model.errors import DatasetError

FILE_KEYS = frozenset(
    {
        *("name", "root", "ignore_id", "splits", "label_map", "classes"),
        *("masks", "color_tolerance", "exif", "missing_label", "path_map", "max_pixels"),
    }
)
"""Keys that a data-set file may have outside its tables."""

TOP = "at the top of the data-set file"
END = "at the end of the data-set file"


def check_keys(raw: Mapping[str, object], known: Collection[str], origin: str, table: str = "") -> None:
    """Refuse unknown keys.

    Args:
        raw: a table of a data-set file.
        known: its keys.
        origin: name of the file in messages.
        table: name of the table in messages; empty = the file itself.

    Raises:
        DatasetError: a key is unknown.
    """
    if unknown := sorted(raw.keys() - known):
        where = f" in {table}" if table else ""
        raise DatasetError(f"{origin}: unknown keys{where}: {', '.join(unknown)}{belongs_on_top(unknown)}")


def belongs_on_top(keys: Collection[str]) -> str:
    """Return a hint for keys of the file that stand in a table: a line at the end belongs to the last one."""
    misplaced = sorted(FILE_KEYS.intersection(keys))
    if not misplaced:
        return ""
    return f"; {', '.join(misplaced)} belongs at the top of the file, above the first [table]"


@dataclass(frozen=True)
class Addition:
    """Lines for a data-set file.

    Attributes:
        place: where in the file they belong.
        lines: TOML.
    """

    place: str
    lines: tuple[str, ...]


def with_additions(sentence: str, *additions: Addition) -> str:
    """Return a sentence and, below it, the lines that the data-set file needs."""
    blocks = ["\n".join([f"add {one.place}:", *(f"    {line}" for line in one.lines)]) for one in additions]
    return "; ".join([sentence, "\n  and ".join(blocks)]) if blocks else sentence


def label_map_addition(label_map: Mapping[int, int] | Mapping[str, int], *, has_table: bool) -> Addition:
    """Return the lines of a whole ``[label_map]``.

    Args:
        label_map: id or ``red,green,blue`` in the masks -> class id or ignore id.
        has_table: the file has a ``[label_map]`` already.
    """
    entries = label_map_entries(label_map)
    if has_table:
        return Addition("in [label_map], in place of its lines", entries)
    return Addition(END, ("[label_map]", *entries))


def label_map_entries(label_map: Mapping[int, int] | Mapping[str, int]) -> tuple[str, ...]:
    """Return one line for each entry of a ``[label_map]``."""
    return tuple(
        f"{value} = {target}" if isinstance(value, int) else f'"{value}" = {target}'
        for value, target in label_map.items()
    )


def path_map_addition(old: str, new: str, *, has_table: bool) -> Addition:
    """Return the line that replaces the start of paths in lists.

    Args:
        old: start of the paths.
        new: text in its place.
        has_table: the file has a ``[path_map]`` already.
    """
    quote = '"' if "'" in old else "'"
    line = f'{quote}{old}{quote} = "{new}"'
    return Addition("in [path_map]", (line,)) if has_table else Addition(END, ("[path_map]", line))
