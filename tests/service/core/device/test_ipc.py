from __future__ import annotations

from contextlib import suppress
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ArtifactError, ModelError
from model.pictures.preprocess import ImageSize
from service.core.device.batch_job import BatchReport, Outcome
from service.core.device.engine import EngineInfo, EngineTuning, EngineUnavailableError, PrecisionChoice
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
    decode_message,
    encode_message,
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
MESSAGES: st.SearchStrategy[IpcMessage] = st.one_of(
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
    st.builds(
        ReplyMessage, NUMBERS, st.none() | st.builds(EngineInfo, TEXT, TEXT, st.just("f32"), TEXT), TEXT, TEXT
    ),
)


@given(MESSAGES)
def test_what_was_encoded_is_decoded(message: IpcMessage) -> None:
    assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=200))
def test_bytes_of_somebody_else_are_no_message(data: bytes) -> None:
    with pytest.raises(IpcError):
        decode_message(data)


@given(MESSAGES, st.data())
def test_a_damaged_message_is_refused_or_is_another_message_and_never_anything_else(
    message: IpcMessage, data: st.DataObject
) -> None:
    content = bytearray(encode_message(message))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    with suppress(IpcError):
        assert isinstance(decode_message(bytes(content[:end])), IpcMessage)


def size(height: int, width: int) -> dict[str, int]:
    return {"height": height, "width": width}


def label_message(content: dict[str, int], *, more: int = 0) -> list[object]:
    return ["LabelMessage", 1, 1, [[1, 0.0, size(32, 32), content, size(9, 9), *[0] * more]]]


def test_fields_are_encoded_in_their_order() -> None:
    entry = PictureEntry(1, 0.0, ImageSize(32, 32), ImageSize(30, 31), ImageSize(9, 9))
    message = LabelMessage(1, 1, (entry,))
    assert decode_message(msgspec.msgpack.encode(label_message(size(30, 31)))) == message


@pytest.mark.parametrize(
    "wrong",
    [
        label_message(size(33, 32)),
        label_message(size(32, 33)),
        label_message(size(0, 32)),
        label_message(size(32, 32), more=1),
        ["LabelMessage", 1, 1, []],
        ["ScoreMessage", 1, 1, 1, 0.0, "float64", [1, 32, 32], [1, 2, 4, 4]],
        ["ScoreMessage", 1, 1, 1, 0.0, "uint8", [1, 0, 32], [1, 2, 4, 4]],
        ["LoadMessage", 1, 2, "city@1", 3, []],
        ["LoadMessage", 1, 2, "city@1", "folder", {}],
        ["LoadMessage", 1, 2, "city@1", "folder", [], 5],
        ["LoadMessage", 1, 2, "city@1", "folder", [], {"precision": "f64"}],
        ["LoadMessage", 1, 2, "city@1", "folder", [], {"threads": "2"}],
        ["LoadMessage", 1, 2, "city@1", "folder", [], {}, 5],
        ["DoneMessage", 1, {"begun_s": 0.0, "infer_s": 0.0, "post_s": 0.0, "outcomes": [9]}],
        ["OtherMessage"],
        [],
        {},
        7,
    ],
)
def test_a_message_with_a_wrong_field_is_refused(wrong: object) -> None:
    with pytest.raises(IpcError):
        decode_message(msgspec.msgpack.encode(wrong))


def test_nothing_may_follow_a_message() -> None:
    with pytest.raises(IpcError):
        decode_message(encode_message(HelloMessage()) + b"\0")


def test_every_error_of_an_artifact_that_is_loaded_keeps_its_name() -> None:
    def tree(error: type[ModelError]) -> set[type[ModelError]]:
        return {error}.union(*map(tree, error.__subclasses__()))

    assert set(LOAD_ERRORS.values()) >= tree(ArtifactError) | {EngineUnavailableError}
