"""Messages between the service and a worker process: MessagePack, one message per packet.

Nothing is unpickled. Bytes that are not exactly one valid message are refused with ``IpcError``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

import msgspec

import model.errors as model_errors
from model.pictures.preprocess import ImageSize
from service.core.device.batch_job import BatchReport
from service.core.device.engine import DEFAULT_TUNING, EngineInfo, EngineTuning, EngineUnavailableError

PROTOCOL = 3
MAX_MESSAGE_BYTES = 65_536

PixelType = Literal["uint8", "float32"]
_Side = Annotated[int, msgspec.Meta(ge=1)]


class IpcError(Exception):
    """The bytes are no message of this protocol, or the message is out of place."""


class _Message(msgspec.Struct, frozen=True, gc=False, tag=True, array_like=True, forbid_unknown_fields=True):
    """Encoded as an array: the name of its class, then its fields in order."""


class PictureEntry(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """One picture of a ``LabelMessage``.

    Attributes:
        slot: number of the shared memory that holds the pixels; the labels are written behind them.
        deadline_s: time after which the labels are no longer needed (``time.monotonic``, seconds).
        padded: size that the network sees.
        content: the part of ``padded`` that is picture.
        original: size of the labels.
        confidence: whether the confidence of each label is wanted; it is written behind the labels.
    """

    slot: int
    deadline_s: float
    padded: ImageSize
    content: ImageSize
    original: ImageSize
    confidence: bool = False

    def __post_init__(self) -> None:
        """Refuse a content that is larger than the padded picture."""
        if self.content.height > self.padded.height or self.content.width > self.padded.width:
            raise ValueError(f"content {self.content} does not fit into {self.padded}")


class LabelMessage(_Message, frozen=True):
    """To the worker: label pictures.

    Attributes:
        token: number of the batch, repeated in ``DoneMessage``.
        version: number of the engine, given by ``LoadMessage``.
        pictures: of one padded size.
    """

    token: int
    version: int
    pictures: Annotated[tuple[PictureEntry, ...], msgspec.Meta(min_length=1)]


class ScoreMessage(_Message, frozen=True):
    """To the worker: compute the raw scores of a batch.

    Attributes:
        token: number of the batch, repeated in ``DoneMessage``.
        version: number of the engine, given by ``LoadMessage``.
        slot: number of the shared memory that holds the batch; the scores are written behind it.
        deadline_s: time after which the scores are no longer needed (``time.monotonic``, seconds).
        pixels: dtype of the batch.
        batch: its N, H and W.
        raw: N, K, h and w of the scores.
    """

    token: int
    version: int
    slot: int
    deadline_s: float
    pixels: PixelType
    batch: tuple[_Side, _Side, _Side]
    raw: tuple[_Side, _Side, _Side, _Side]


class LoadMessage(_Message, frozen=True):
    """To the worker: build an engine.

    Attributes:
        request: number repeated in ``ReplyMessage``.
        version: number of the engine in later messages.
        name: of the model version, ``NAME@NUMBER``.
        folder: of the artifact.
        sizes: padded sizes at which the engine runs once.
        tuning: how the engine is built.
    """

    request: int
    version: int
    name: str
    folder: str
    sizes: tuple[ImageSize, ...] = ()
    tuning: EngineTuning = DEFAULT_TUNING


class UnloadMessage(_Message, frozen=True):
    """To the worker: free an engine, after the batches that were sent before.

    Attributes:
        request: number repeated in ``ReplyMessage``.
        version: number of the engine, given by ``LoadMessage``.
    """

    request: int
    version: int


class ForgetMessage(_Message, frozen=True):
    """To the worker: unmap shared memory that will not be used again.

    Attributes:
        slots: numbers.
    """

    slots: tuple[int, ...]


class HelloMessage(_Message, frozen=True):
    """From the worker, once: it is running.

    Attributes:
        protocol: version of these messages.
    """

    protocol: int = PROTOCOL


class DoneMessage(_Message, frozen=True):
    """From the worker: a batch has ended; its labels or scores are in shared memory.

    Attributes:
        token: number of the batch.
        report: outcomes and times.
    """

    token: int
    report: BatchReport


class ReplyMessage(_Message, frozen=True):
    """From the worker: the result of a ``LoadMessage`` or an ``UnloadMessage``.

    Attributes:
        request: number of that message.
        engine: the built engine; None after unloading or an error.
        error: name of the error class; empty = success.
        reason: message of the error.
    """

    request: int
    engine: EngineInfo | None = None
    error: str = ""
    reason: str = ""


LOAD_ERRORS: Mapping[str, type[Exception]] = MappingProxyType(
    {
        error.__name__: error
        for error in (
            EngineUnavailableError,
            model_errors.ArtifactError,
            model_errors.DigestMismatchError,
            model_errors.GoldenMismatchError,
            model_errors.ManifestError,
            model_errors.WeightsError,
        )
    }
)
"""Errors of loading that keep their class on the way to the service; others become EngineUnavailableError."""


IpcMessage = (
    LabelMessage
    | ScoreMessage
    | LoadMessage
    | UnloadMessage
    | ForgetMessage
    | HelloMessage
    | DoneMessage
    | ReplyMessage
)
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[IpcMessage] = msgspec.msgpack.Decoder(IpcMessage)


def encode_message(message: IpcMessage) -> bytes:
    """Return the bytes of a message, at most ``MAX_MESSAGE_BYTES``."""
    data = _encoder.encode(message)
    assert len(data) <= MAX_MESSAGE_BYTES
    return data


def decode_message(data: bytes) -> IpcMessage:
    """Return the message of which ``data`` are the bytes.

    Raises:
        IpcError: the bytes are no message.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IpcError(f"{len(data)} bytes are no message: {error}") from error
