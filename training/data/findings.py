"""The facts of a data set in words: problems that stop a run, notes, the report of ``dataset check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from model.datasets.dataset import DatasetSpec, LabeledImages
from model.datasets.mask_advice import advise_ids
from model.datasets.orientation import describe_orientation
from model.errors import DatasetError
from model.labels import ClassPalette
from training.data.split_facts import BrokenPair, SplitFacts, class_shares, color_statistics

_DIGITS = 4
_WEIGHT_BASE = 1.1
_SHOWN_PROBLEMS = 10
_SHOWN_NAMES = 10


def describe_problems(facts: SplitFacts, spec: DatasetSpec) -> list[str]:
    """Return one sentence for each kind of fault in a split; pairs with the same fault are counted.

    Args:
        facts: of the split.
        spec: of its data set.
    """
    alike: dict[str, list[BrokenPair]] = {}
    for pair in facts.broken.values():
        alike.setdefault("" if pair.values else pair.reason, []).append(pair)
    strange = alike.pop("", [])
    sentences = [f"{_places(pairs)}: {reason}" for reason, pairs in alike.items()]
    if strange:
        values = {value for pair in strange for value in pair.values}
        sentences.append(f"{_places(strange)}: {advise_ids(values, spec.palette, spec.label_map)}")
    return sentences + facts.flaws


def describe_notes(facts: SplitFacts, split: LabeledImages) -> list[str]:
    """Return one sentence for each decision that reading a split took and that a user may want to know.

    Args:
        facts: of the split.
        split: the pairs.
    """
    return [*_turned(facts, split), *_unlabelled(facts, split), *_nearest(facts)]


def refuse_problems(facts: Sequence[SplitFacts], spec: DatasetSpec) -> None:
    """Do nothing when all pairs can be learned from.

    Args:
        facts: of the splits of a run.
        spec: of their data set.

    Raises:
        DatasetError: the first ten problems, and the number of all.
    """
    found = [problem for each in facts for problem in describe_problems(each, spec)]
    if found:
        shown = "\n  ".join(found[:_SHOWN_PROBLEMS])
        hint = f"\n{skip_hint(facts)}" if skip_hint(facts) else ""
        raise DatasetError(f"{spec.name}: problems in the data set: {len(found)}\n  {shown}{hint}")


def skip_hint(facts: Sequence[SplitFacts]) -> str:
    """Return how a run leaves broken pairs out; empty where that does not help."""
    broken = sum(len(each.broken) for each in facts)
    if not broken or any(each.flaws or len(each.broken) == each.pictures for each in facts):
        return ""
    pairs = "1 broken pair" if broken == 1 else f"{broken} broken pairs"
    return f"{pairs} can be left out: bisenet train ... --set data.skip_broken=true"


def report_dataset(facts: Sequence[SplitFacts], splits: Sequence[LabeledImages]) -> dict[str, Any]:
    """Return the facts of splits as JSON values.

    Args:
        facts: of each split.
        splits: of one data set, at least one.

    Returns:
        splits, classes, mean, std and the number of problems. ``None`` stands for the mean of no picture, and
        for the share and the weight of a class without a pixel.
    """
    spec = splits[0].spec
    described = [_split_report(each, split) for each, split in zip(facts, splits, strict=True)]
    mean, std = color_statistics(facts) if any(each.pixels for each in facts) else (None, None)
    return {
        "splits": described,
        "classes": list(_class_reports(facts, spec.palette)),
        "mean": mean,
        "std": std,
        "problems": sum(len(one["problems"]) for one in described),
    }


def _split_report(facts: SplitFacts, split: LabeledImages) -> dict[str, Any]:
    palette = split.spec.palette
    return {
        "name": facts.split,
        "pictures": facts.pictures,
        "broken": len(facts.broken),
        "fingerprint": facts.fingerprint,
        "sizes": facts.sizes,
        "ignored_pixels": facts.ids.get(palette.ignore_id, 0),
        "pixels": {name: facts.ids.get(class_id, 0) for class_id, name in enumerate(palette.names)},
        "unseen": [name for class_id, name in enumerate(palette.names) if class_id not in facts.ids],
        "problems": describe_problems(facts, split.spec),
        "notes": describe_notes(facts, split),
    }


def _class_reports(facts: Sequence[SplitFacts], palette: ClassPalette) -> Iterator[dict[str, Any]]:
    for class_id, share in enumerate(class_shares(facts, palette.num_classes)):
        weight = round(float(1 / np.log(_WEIGHT_BASE + share)), _DIGITS)
        seen = {"share": share, "weight": weight} if share else {"share": None, "weight": None}
        yield {"id": class_id, "name": palette.names[class_id], **seen}


def _places(pairs: Sequence[BrokenPair]) -> str:
    return _listed([pair.place for pair in pairs])


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _turned(facts: SplitFacts, split: LabeledImages) -> Iterator[str]:
    for turn in sorted(set(facts.turned.values())):
        names = [split.name(index) for index, one in facts.turned.items() if one == turn]
        pixels = "stored pixels, and are turned, too" if turn.with_labels else "upright pixels"
        orientation = describe_orientation(turn.orientation)
        yield f"{orientation} of {_listed(names)}: the labels were drawn on the {pixels}"


def _unlabelled(facts: SplitFacts, split: LabeledImages) -> Iterator[str]:
    missing = split.spec.rules.missing_label
    if facts.unlabelled and missing is not None:
        names = [split.name(index) for index in facts.unlabelled]
        name = split.spec.palette.names[missing]
        yield f"no labels, so that all is {name}, on {len(names)} of {facts.pictures}: {_listed(names)}"


def _nearest(facts: SplitFacts) -> Iterator[str]:
    if facts.nearest_pixels:
        share = 100 * facts.nearest_pixels / max(1, sum(facts.ids.values()))
        yield f"{share:.2g} % of the pixels have no colour of a class and are given the nearest one"
