from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ProtocolError
from model.evaluation.protocols import PROTOCOLS, Chip, as_published, find_protocol, make_plan
from model.pictures.preprocess import ImageSize

CITYSCAPES = ImageSize(1024, 2048)
SIZES = st.builds(ImageSize, st.integers(1, 700), st.integers(1, 700))


@pytest.mark.parametrize(
    ("name", "chips"),
    [
        ("ss", [1]),
        ("ssc", [3]),
        ("msf", [1, 1, 1, 1, 1, 1]),
        # 0.5: padded; 0.75: 768x1536; 1: 1x3; 1.25: 1280x2560; 1.5: 1536x3072; 1.75: 1792x3584
        ("mscf", [1, 2, 3, 2 * 4, 2 * 4, 3 * 5]),
        # The older advance of 854 instead of 683.
        ("mscf-old", [1, 2, 3, 2 * 3, 2 * 4, 2 * 4]),
        ("slide", [3]),
    ],
)
def test_a_cityscapes_picture_is_seen_in_as_many_chips_as_by_the_published_program(
    name: str, chips: list[int]
) -> None:
    plan = make_plan(find_protocol(name), CITYSCAPES)
    assert [len(one.chips) for one in plan.passes] == chips
    assert plan.runs == sum(chips) * (2 if name.startswith("m") else 1)


def test_the_last_chips_are_shifted_back_inside() -> None:
    (only,) = make_plan(find_protocol("ssc"), CITYSCAPES).passes
    assert [chip.left for chip in only.chips] == [0, 683, 1024]
    assert {chip.size for chip in only.chips} == {ImageSize(1024, 1024)}


def test_a_picture_smaller_than_a_chip_lies_in_the_middle_of_one() -> None:
    (only,) = make_plan(find_protocol("ssc"), ImageSize(361, 480)).passes
    assert (only.scaled, only.canvas) == (ImageSize(361, 480), ImageSize(1024, 1024))
    assert (only.top, only.left) == (331, 272)
    assert only.chips == (Chip(0, 0, ImageSize(1024, 1024)),)


def test_slide_takes_a_smaller_chip_where_there_is_no_room_for_a_whole_one() -> None:
    (only,) = make_plan(find_protocol("slide"), ImageSize(360, 1100)).passes
    assert only.canvas == ImageSize(360, 1100)
    assert only.chips == (Chip(0, 0, ImageSize(360, 1024)), Chip(0, 76, ImageSize(360, 1024)))


@pytest.mark.parametrize(
    ("name", "dataset", "architecture", "told"),
    [
        ("ss", "ade20k", "bisenetv2", "ss (short side 640)"),
        ("mscf", "ade20k", "bisenetv1", "mscf (chips of 512, short side 512)"),
        ("ssc", "cocostuff", "bisenetv2", "ssc (chips of 640)"),
        ("ssc", "cityscapes", "bisenetv2", "ssc (chips of 1024)"),
        ("ss", "ade.toml", "bisenetv2", "ss"),
        ("slide", "ade20k", "bisenetv2", "slide (chips of 1024)"),
    ],
)
def test_presets_have_the_sizes_of_the_published_evaluation(
    name: str, dataset: str, architecture: str, told: str
) -> None:
    protocol = as_published(find_protocol(name), dataset=dataset, architecture=architecture)
    assert str(protocol) == told


@pytest.mark.parametrize(
    ("size", "start"), [((512, 683), (640, 853)), ((683, 512), (853, 640)), ((640, 900), (640, 900))]
)
def test_the_short_side_is_resized_and_the_long_one_follows(
    size: tuple[int, int], start: tuple[int, int]
) -> None:
    plan = make_plan(find_protocol("ss").with_short_side(640), ImageSize(*size))
    assert (plan.size.shape, plan.start.shape) == (size, start)
    assert plan.passes[0].scaled == plan.start.padded()


def test_a_short_side_of_nothing_is_refused() -> None:
    with pytest.raises(ProtocolError, match="at least 1 pixel, not 0"):
        find_protocol("ss").with_short_side(0)


def test_whole_pictures_are_rounded_up_to_32_except_by_the_older_arithmetic() -> None:
    size = ImageSize(361, 480)
    scaled = {
        name: [str(one.scaled) for one in make_plan(find_protocol(name), size).passes] for name in PROTOCOLS
    }
    assert scaled["ss"] == ["384x480"]
    assert scaled["msf"] == ["192x256", "288x384", "384x480", "480x608", "544x736", "640x864"]
    assert scaled["ss-old"] == ["361x480"]
    assert scaled["msf-old"] == ["180x240", "270x360", "361x480", "451x600", "541x720", "631x840"]


def test_exp_is_applied_with_flip_and_by_the_older_arithmetic_always() -> None:
    summands = {name: protocol.summand for name, protocol in PROTOCOLS.items()}
    assert summands.pop("slide") == "score"
    assert {name for name, summand in summands.items() if summand == "exp"} == {"mscf", "ssc-old", "mscf-old"}


@pytest.mark.parametrize("name", PROTOCOLS)
@given(size=SIZES, crop=st.sampled_from([32, 96, 256]))
def test_chips_cover_their_canvas_and_no_more(name: str, size: ImageSize, crop: int) -> None:
    protocol = find_protocol(name)
    plan = make_plan(protocol.with_crop(crop) if protocol.crop else protocol, size)
    for one in plan.passes:
        covered = np.zeros((one.canvas.height, one.canvas.width), np.bool_)
        for chip in one.chips:
            bottom, right = chip.top + chip.size.height, chip.left + chip.size.width
            assert bottom <= one.canvas.height
            assert right <= one.canvas.width
            covered[chip.top : bottom, chip.left : right] = True
        assert covered.all()
        assert len({chip.size for chip in one.chips}) == 1
        assert one.top + one.scaled.height <= one.canvas.height
        assert one.left + one.scaled.width <= one.canvas.width


def test_chips_may_be_of_another_size_where_there_are_chips() -> None:
    assert str(find_protocol("mscf").with_crop(640)) == "mscf (chips of 640)"
    for crop in (0, -32, 500):
        with pytest.raises(ProtocolError, match=f"multiple of 32, not {crop}"):
            find_protocol("ssc").with_crop(crop)
    with pytest.raises(ProtocolError, match="ss cuts no chips"):
        find_protocol("ss").with_crop(512)


def test_a_protocol_that_does_not_exist_is_named() -> None:
    with pytest.raises(ProtocolError, match="'msfc'; there are ss, ssc, msf, mscf"):
        find_protocol("msfc")
