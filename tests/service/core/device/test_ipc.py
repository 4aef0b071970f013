from __future__ import annotations

from contextlib import suppress
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ArtifactError, ModelError
from model.pictures.preprocess import ImageSize
from service.core.device.batch_job import BatchReport, Outcome
from service.core.device.engine import EngineTuning, EngineUnavailableError, PrecisionChoice
from service.core.device.ipc import (
    LOAD_ERRORS,
    DoneMessage,
    ForgetMessage,
    HelloMessage,
    IpcError,
    IpcMessage,
    LabelMessage,
    LoadMessage,
    PictureEntry,
    ReplyMessage,
    ScoreMessage,
    UnloadMessage,
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
COUNTS = st.none() | st.integers(1, 1000)
TUNINGS = st.builds(EngineTuning, st.sampled_from(get_args(PrecisionChoice)), COUNTS, COUNTS)
FRAMES: st.SearchStrategy[IpcMessage] = st.one_of(
    st.builds(LabelMessage, NUMBERS, KEYS, st.lists(ENTRIES, min_size=1, max_size=20).map(tuple)),
    st.builds(
        ScoreMessage,
        NUMBERS,
        KEYS,
        NUMBERS,
        SECONDS,
        st.sampled_from(["uint8", "float32"]),
        st.tuples(SIDES, SIDES, SIDES),
        st.tuples(SIDES, SIDES, SIDES, SIDES),
    ),
    st.builds(LoadMessage, NUMBERS, KEYS, TEXT, TEXT, st.lists(SIZES, max_size=8).map(tuple), TUNINGS),
    st.builds(UnloadMessage, NUMBERS, KEYS),
    st.builds(ForgetMessage, st.lists(NUMBERS, max_size=20).map(tuple)),
    st.builds(HelloMessage, KEYS),
    st.builds(
        DoneMessage,
        NUMBERS,
        st.builds(
            BatchReport, SECONDS, SECONDS, SECONDS, st.lists(st.sampled_from(Outcome), max_size=20).map(tuple)
        ),
    ),
    st.builds(ReplyMessage, NUMBERS, TEXT, st.dictionaries(TEXT, TEXT, max_size=4)),
)


@given(FRAMES)
def test_what_was_packed_is_unpacked(frame: IpcMessage) -> None:
    assert unpacked(packed(frame)) == frame


@given(st.binary(max_size=200))
def test_bytes_of_somebody_else_are_no_frame(data: bytes) -> None:
    with pytest.raises(IpcError):
        unpacked(data)


@given(FRAMES, st.data())
def test_a_damaged_frame_is_refused_or_is_another_frame_and_never_anything_else(
    frame: IpcMessage, data: st.DataObject
) -> None:
    content = bytearray(packed(frame))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    with suppress(IpcError):
        assert isinstance(unpacked(bytes(content[:end])), IpcMessage)


def test_a_picture_is_not_larger_than_what_holds_it() -> None:
    entry = PictureEntry(1, 0.0, ImageSize(32, 32), ImageSize(33, 32), ImageSize(33, 32))
    with pytest.raises(IpcError, match="33x32"):
        unpacked(packed(LabelMessage(1, 1, (entry,))))


def test_text_with_other_keys_is_no_frame() -> None:
    data = packed(LoadMessage(1, 2, "city@1", "folder"))
    for wrong in (
        data.replace(b"folder", b"fodder"),
        data.replace(b"[]", b"{}"),
        data.replace(b"[]", b"[0]"),
    ):
        with pytest.raises(IpcError):
            unpacked(wrong)


@pytest.mark.parametrize(
    "wrong", [b'["f64", null, 2]', b'["bf16", 0, 2]', b'["bf16", null, "2"]', b'["bf16"]']
)
def test_an_engine_of_no_precision_or_no_threads_is_no_frame(wrong: bytes) -> None:
    data = packed(LoadMessage(1, 2, "city@1", "folder", tuning=EngineTuning("bf16", None, 2)))
    assert b'["bf16", null, 2]' in data
    with pytest.raises(IpcError):
        unpacked(data.replace(b'["bf16", null, 2]', wrong))


def test_every_error_of_an_artifact_that_is_loaded_keeps_its_name() -> None:
    def tree(error: type[ModelError]) -> set[type[ModelError]]:
        return {error}.union(*map(tree, error.__subclasses__()))

    assert set(LOAD_ERRORS.values()) >= tree(ArtifactError) | {EngineUnavailableError}
