"""Files that lie beside the pictures and labels of a data set and belong to no split."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from model.datasets.dataset import DatasetSpec, LabeledImages
from model.datasets.dataset_lines import Addition, with_additions
from model.datasets.folder_contents import UntakenFiles, untaken_files
from model.datasets.patterns import PatternSplit
from model.datasets.text import printable
from model.errors import DatasetError

_READABLE = (".jpg", ".jpeg", ".png", ".webp")


def files_not_taken(spec: DatasetSpec) -> list[UntakenFiles]:
    """Return the files that no split takes, for each folder with pictures or labels.

    A split that cannot be opened takes no files. TOML files at the root do not count.

    Args:
        spec: the data set.
    """
    taken = set(spec.root.glob("*.toml"))
    folders: dict[Path, None] = {}
    for name, source in spec.splits.items():
        with suppress(DatasetError):
            for pair in LabeledImages(spec, name).pairs:
                taken.update({pair.image, pair.label or pair.image})
                if not isinstance(source, PatternSplit):
                    folders |= dict.fromkeys((pair.image.parent, (pair.label or pair.image).parent))
        if isinstance(source, PatternSplit):
            folders |= dict.fromkeys(source.folders(spec.root))
        else:
            taken.add(spec.root / source)
    outer = [one for one in folders if not any(other in one.parents for other in folders)]
    return [found for one in outer if (found := untaken_files(one, taken)).total]


def describe_untaken(found: UntakenFiles, spec: DatasetSpec) -> str:
    """Return one sentence on files that no split takes, with the lines that take pictures among them.

    Args:
        found: files of one folder.
        spec: the data set.
    """
    folder = found.folder.relative_to(spec.root) if found.folder.is_relative_to(spec.root) else found.folder
    sentence = f"{printable(folder)}: no split takes {found}"
    for name, source in spec.splits.items():
        if isinstance(source, PatternSplit) and found.folder in source.image_folders(spec.root):
            line = _wider_split(name, source, found)
            return with_additions(
                sentence, *([Addition("in [splits] to take the pictures", (line,))] if line else [])
            )
    return sentence


def _wider_split(name: str, source: PatternSplit, found: UntakenFiles) -> str | None:
    """Return the split with patterns that also match readable pictures in the same folder or below."""
    pictures = {kind: names for kind, names in found.names.items() if kind in _READABLE}
    if len(source.images) > 1 or not pictures:
        return None
    images, labels = source.images[0], source.labels[0]
    stem, _, suffix = images.rpartition(".")
    if not stem.endswith("/*") and stem != "*":
        return None
    suffixes = [*suffix.strip("{}").split(","), *(kind.removeprefix(".") for kind in pictures)]
    suffixes = list(dict.fromkeys("jpg" if one == "jpeg" else one for one in suffixes))
    if "**" not in images and any("/" in one for names in pictures.values() for one in names):
        stem, labels = f"{stem[:-1]}**/*", _in_any_folder(labels)
    wider = suffixes[0] if len(suffixes) == 1 else "{" + ",".join(suffixes) + "}"
    return f'{name} = {{ images = "{stem}.{wider}", labels = "{labels}" }}'


def _in_any_folder(pattern: str) -> str:
    folder, slash, name = pattern.rpartition("/")
    return f"{folder}{slash}**/{name}"
