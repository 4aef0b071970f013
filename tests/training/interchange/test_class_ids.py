from __future__ import annotations

import pytest

from model.labels import ClassPalette
from training.errors import InterchangeError
from training.interchange.class_ids import class_ids
from training.interchange.foreign import ForeignClass, ForeignDataset, Uncovered


def dataset(*names: str, uncovered: Uncovered = Uncovered.BACKGROUND, ignored: str = "") -> ForeignDataset:
    classes = [ForeignClass(name) for name in names]
    return ForeignDataset(classes, (), "", uncovered, frozenset({ignored} - {""}))


def test_a_background_is_added_in_front_unless_there_is_one() -> None:
    added = class_ids(dataset("car", "road"))
    assert added.palette.names == ("background", "car", "road")
    assert added.background == 0
    present = class_ids(dataset("car", "Background"))
    assert present.palette.names == ("car", "Background")
    assert present.background == 1


def test_the_background_may_be_a_class_of_the_user_or_ignored() -> None:
    assert class_ids(dataset("car", "road"), background="road").background == 1
    named = class_ids(dataset("car"), background="rest")
    assert (named.palette.names, named.background) == (("rest", "car"), 0)
    assert class_ids(dataset("car"), background="ignore").background == 255
    assert class_ids(dataset("car", uncovered=Uncovered.IGNORED)).background == 255


def test_masks_that_say_every_pixel_have_no_background() -> None:
    assert class_ids(dataset("car", uncovered=Uncovered.IMPOSSIBLE)).palette.names == ("car",)
    with pytest.raises(
        InterchangeError, match="--background: the masks of this format say the class of every"
    ):
        class_ids(dataset("car", uncovered=Uncovered.IMPOSSIBLE), background="car")


def test_ignored_classes_have_the_ignore_id_and_no_name() -> None:
    ids = class_ids(dataset("car", "void", "road", ignored="void"), ignore=["road"])
    assert ids.palette.names == ("background", "car")
    assert ids.id_of("void", "") == ids.id_of("road", "") == 255
    with pytest.raises(InterchangeError, match="--ignore 'tram': the source has no such class"):
        class_ids(dataset("car"), ignore=["tram"])
    with pytest.raises(InterchangeError, match=r"a\.json: 'tram' is none of the classes"):
        ids.id_of("tram", "a.json")


def test_a_list_of_the_user_replaces_names_order_and_colours() -> None:
    listed = ClassPalette(("road", "car"), ((1, 1, 1), (2, 2, 2)))
    ids = class_ids(dataset("car", "road"), listed=listed, background="road")
    assert ids.palette.names == ("road", "car")
    assert ids.palette.colors == ((1, 1, 1), (2, 2, 2))


def test_colours_are_kept_where_they_are_one_class_s_alone() -> None:
    classes = [
        ForeignClass("a", (1, 2, 3)),
        ForeignClass("b", (1, 2, 3)),
        ForeignClass("c"),
        ForeignClass("d", (0, 0, 0)),
    ]
    colors = class_ids(ForeignDataset(classes, (), "")).palette.colors
    assert colors[1] == (1, 2, 3)
    assert colors[0] == (0, 0, 0)
    assert len(set(colors)) == 5


def test_names_lose_their_commas_and_double_names_are_one_class() -> None:
    assert class_ids(dataset("hill, green", "car", "car")).palette.names == (
        "background",
        "hill green",
        "car",
    )
    with pytest.raises(InterchangeError, match="the classes of the source: class names must be unique"):
        class_ids(dataset("hill, green", "hill green"))
