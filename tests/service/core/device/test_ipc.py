from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ArtifactError, ModelError
from model.pictures.preprocess import ImageSize
from service.core.device.batch_job import Outcome, Report
from service.core.device.engine import EngineUnavailableError
from service.core.device.ipc import (
    LOAD_ERRORS,
    DoneFrame,
    ForgetFrame,
    Frame,
    FrameError,
    HelloFrame,
    LabelFrame,
    LoadFrame,
    PictureEntry,
    ReplyFrame,
    ScoreFrame,
    UnloadFrame,
    packed,
    unpacked,
)

NUMBERS = st.integers(0, 2**64 - 1)
KEYS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 1 << 20)
SECONDS = st.floats(allow_nan=False)
SIZES = st.builds(ImageSize, SIDES, SIDES)
ENTRIES = st.builds(
    lambda slot, deadline_s, size: PictureEntry(slot, deadline_s, size, size, size), NUMBERS, SECONDS, SIZES
)
TEXT = st.text(max_size=50)
FRAMES: st.SearchStrategy[Frame] = st.one_of(
    st.builds(LabelFrame, NUMBERS, KEYS, st.lists(ENTRIES, min_size=1, max_size=20).map(tuple)),
    st.builds(
        ScoreFrame,
        NUMBERS,
        KEYS,
        NUMBERS,
        SECONDS,
        st.sampled_from(["uint8", "float32"]),
        st.tuples(SIDES, SIDES, SIDES),
        st.tuples(SIDES, SIDES, SIDES, SIDES),
    ),
    st.builds(LoadFrame, NUMBERS, KEYS, TEXT, TEXT, st.lists(SIZES, max_size=8).map(tuple)),
    st.builds(UnloadFrame, NUMBERS, KEYS),
    st.builds(ForgetFrame, st.lists(NUMBERS, max_size=20).map(tuple)),
    st.builds(HelloFrame, KEYS),
    st.builds(
        DoneFrame,
        NUMBERS,
        st.builds(
            Report, SECONDS, SECONDS, SECONDS, st.lists(st.sampled_from(Outcome), max_size=20).map(tuple)
        ),
    ),
    st.builds(ReplyFrame, NUMBERS, TEXT, st.dictionaries(TEXT, TEXT, max_size=4)),
)


@given(FRAMES)
def test_what_was_packed_is_unpacked(frame: Frame) -> None:
    assert unpacked(packed(frame)) == frame


@given(st.binary(max_size=200))
def test_bytes_of_somebody_else_are_no_frame(data: bytes) -> None:
    with pytest.raises(FrameError):
        unpacked(data)


@given(FRAMES, st.data())
def test_a_damaged_frame_is_refused_or_is_another_frame_and_never_anything_else(
    frame: Frame, data: st.DataObject
) -> None:
    content = bytearray(packed(frame))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    with suppress(FrameError):
        assert isinstance(unpacked(bytes(content[:end])), Frame)


def test_a_picture_is_not_larger_than_what_holds_it() -> None:
    entry = PictureEntry(1, 0.0, ImageSize(32, 32), ImageSize(33, 32), ImageSize(33, 32))
    with pytest.raises(FrameError, match="33x32"):
        unpacked(packed(LabelFrame(1, 1, (entry,))))


def test_text_with_other_keys_is_no_frame() -> None:
    data = packed(LoadFrame(1, 2, "city@1", "folder"))
    for wrong in (
        data.replace(b"folder", b"fodder"),
        data.replace(b"[]", b"{}"),
        data.replace(b"[]", b"[0]"),
    ):
        with pytest.raises(FrameError):
            unpacked(wrong)


def test_every_error_of_an_artifact_that_is_loaded_keeps_its_name() -> None:
    def tree(error: type[ModelError]) -> set[type[ModelError]]:
        return {error}.union(*map(tree, error.__subclasses__()))

    assert set(LOAD_ERRORS.values()) >= tree(ArtifactError) | {EngineUnavailableError}
