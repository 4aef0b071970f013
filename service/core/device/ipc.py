"""What the service and a worker process say to each other: fixed binary frames, one to a packet.

A frame is a header (what it is, and whether it is one of ours) and fields of fixed sizes; text is UTF-8 at
its end. Nothing is unpickled, and whatever is not exactly such a frame is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast, get_args

import model.errors as model_errors
from model.pictures.preprocess import ImageSize
from service.core.device.batch_job import BatchReport, Outcome
from service.core.device.engine import DEFAULT_TUNING, EngineTuning, EngineUnavailableError, PrecisionChoice

PROTOCOL = 1
MAX_FRAME_BYTES = 65_536

_HEADER = struct.Struct("<4sB")
_MAGIC = b"bsnW"
_MAX_SIDE = 1 << 20

PixelName = Literal["uint8", "float32"]
_PIXELS: tuple[PixelName, ...] = ("uint8", "float32")


class IpcError(Exception):
    """These bytes are no frame of ours."""


@dataclass(frozen=True)
class PictureEntry:
    """One picture of a job: where it lies, and how large everything about it is.

    Attributes:
        slot: number of the shared memory with the pixels; its labels go behind them.
        deadline_s: when nobody waits for it any more, on the clock of ``time.monotonic``.
        padded: what the network sees.
        content: the part of it that is picture.
        original: of the labels.
    """

    layout: ClassVar[struct.Struct] = struct.Struct("<Qd6I")

    slot: int
    deadline_s: float
    padded: ImageSize
    content: ImageSize
    original: ImageSize

    def pack(self) -> bytes:
        """Return the bytes of this entry."""
        sizes = (self.padded, self.content, self.original)
        return self.layout.pack(self.slot, self.deadline_s, *(side for size in sizes for side in size.shape))

    @classmethod
    def unpack(cls, data: bytes) -> PictureEntry:
        """Read what ``pack`` wrote."""
        slot, deadline_s, *sides = cls.layout.unpack(data)
        padded, content, original = (_size(*sides[i : i + 2]) for i in (0, 2, 4))
        if content.height > padded.height or content.width > padded.width:
            raise IpcError(f"content {content} does not fit into {padded}")
        return cls(slot, deadline_s, padded, content, original)


@dataclass(frozen=True)
class LabelMessage:
    """To the worker: label pictures.

    Attributes:
        token: comes back with the answer.
        version: number that ``LoadMessage`` gave.
        pictures: at least one, of one padded size.
    """

    layout: ClassVar[struct.Struct] = struct.Struct("<QI")

    token: int
    version: int
    pictures: tuple[PictureEntry, ...]

    def pack(self) -> bytes:
        """Return the bytes behind the header."""
        return self.layout.pack(self.token, self.version) + b"".join(p.pack() for p in self.pictures)

    @classmethod
    def unpack(cls, data: bytes) -> LabelMessage:
        """Read what ``pack`` wrote."""
        entries = data[cls.layout.size :]
        if not entries or len(entries) % PictureEntry.layout.size:
            raise IpcError(f"{len(entries)} bytes are no pictures")
        step = PictureEntry.layout.size
        pictures = [PictureEntry.unpack(entries[i : i + step]) for i in range(0, len(entries), step)]
        token, version = cls.layout.unpack(data[: cls.layout.size])
        return cls(token, version, tuple(pictures))


@dataclass(frozen=True)
class ScoreMessage:
    """To the worker: return the raw scores of a batch.

    Attributes:
        token: comes back with the answer.
        version: number that ``LoadMessage`` gave.
        slot: number of the shared memory with the batch; its scores go behind it.
        deadline_s: when nobody waits for them any more.
        pixels: type of the batch.
        batch: N, H, W of it.
        raw: N, K, h, w of the scores.
    """

    layout: ClassVar[struct.Struct] = struct.Struct("<QIQdB3I4I")

    token: int
    version: int
    slot: int
    deadline_s: float
    pixels: PixelName
    batch: tuple[int, int, int]
    raw: tuple[int, int, int, int]

    def pack(self) -> bytes:
        """Return the bytes behind the header."""
        head = (self.token, self.version, self.slot, self.deadline_s, _PIXELS.index(self.pixels))
        return self.layout.pack(*head, *self.batch, *self.raw)

    @classmethod
    def unpack(cls, data: bytes) -> ScoreMessage:
        """Read what ``pack`` wrote."""
        token, version, slot, deadline_s, pixels, *sides = cls.layout.unpack(data)
        if pixels >= len(_PIXELS):
            raise IpcError(f"there are no pixels of type {pixels}")
        count, height, width, *raw = (_side(side) for side in sides)
        batch = count, height, width
        return cls(token, version, slot, deadline_s, _PIXELS[pixels], batch, (raw[0], raw[1], raw[2], raw[3]))


@dataclass(frozen=True)
class LoadMessage:
    """To the worker: build an engine.

    Attributes:
        request: comes back with the reply.
        version: number by which jobs name it from now on.
        name: of the version, as people write it.
        folder: of the artifact.
        sizes: padded sizes at which it is run once.
        tuning: how the engine is built, without the measurements.
    """

    layout: ClassVar[struct.Struct] = struct.Struct("<QI")

    request: int
    version: int
    name: str
    folder: str
    sizes: tuple[ImageSize, ...] = ()
    tuning: EngineTuning = DEFAULT_TUNING

    def pack(self) -> bytes:
        """Return the bytes behind the header."""
        tuning = [self.tuning.precision, self.tuning.streams, self.tuning.threads]
        sizes = [size.shape for size in self.sizes]
        text = {"name": self.name, "folder": self.folder, "sizes": sizes, "tuning": tuning}
        return self.layout.pack(self.request, self.version) + _packed_text(text)

    @classmethod
    def unpack(cls, data: bytes) -> LoadMessage:
        """Read what ``pack`` wrote."""
        keys = {"name": str, "folder": str, "sizes": list, "tuning": list}
        text = _text(data[cls.layout.size :], keys)
        sizes = tuple(_size(*sides) for sides in text["sizes"])
        request, version = cls.layout.unpack(data[: cls.layout.size])
        return cls(request, version, text["name"], text["folder"], sizes, _tuning(*text["tuning"]))


@dataclass(frozen=True)
class UnloadMessage:
    """To the worker: free an engine, after the jobs that came before.

    Attributes:
        request: comes back with the reply.
        version: number that ``LoadMessage`` gave.
    """

    layout: ClassVar[struct.Struct] = struct.Struct("<QI")

    request: int
    version: int

    def pack(self) -> bytes:
        """Return the bytes behind the header."""
        return self.layout.pack(self.request, self.version)

    @classmethod
    def unpack(cls, data: bytes) -> UnloadMessage:
        """Read what ``pack`` wrote."""
        return cls(*cls.layout.unpack(data))


@dataclass(frozen=True)
class ForgetMessage:
    """To the worker: shared memory that will not be used again.

    Attributes:
        slots: numbers.
    """

    layout: ClassVar[struct.Struct] = struct.Struct("<Q")

    slots: tuple[int, ...]

    def pack(self) -> bytes:
        """Return the bytes behind the header."""
        return b"".join(map(self.layout.pack, self.slots))

    @classmethod
    def unpack(cls, data: bytes) -> ForgetMessage:
        """Read what ``pack`` wrote."""
        return cls(tuple(slot for (slot,) in cls.layout.iter_unpack(data)))


@dataclass(frozen=True)
class HelloMessage:
    """From the worker: it is there.

    Attributes:
        protocol: of these frames.
    """

    layout: ClassVar[struct.Struct] = struct.Struct("<I")

    protocol: int = PROTOCOL

    def pack(self) -> bytes:
        """Return the bytes behind the header."""
        return self.layout.pack(self.protocol)

    @classmethod
    def unpack(cls, data: bytes) -> HelloMessage:
        """Read what ``pack`` wrote."""
        return cls(*cls.layout.unpack(data))


@dataclass(frozen=True)
class DoneMessage:
    """From the worker: what became of a job.

    Attributes:
        token: of the job.
        report: the labels or scores lie in the shared memory.
    """

    layout: ClassVar[struct.Struct] = struct.Struct("<Qddd")

    token: int
    report: BatchReport

    def pack(self) -> bytes:
        """Return the bytes behind the header."""
        report = self.report
        head = self.layout.pack(self.token, report.begun_s, report.infer_s, report.post_s)
        return head + bytes(report.outcomes)

    @classmethod
    def unpack(cls, data: bytes) -> DoneMessage:
        """Read what ``pack`` wrote."""
        token, begun_s, infer_s, post_s = cls.layout.unpack(data[: cls.layout.size])
        outcomes = tuple(Outcome(code) for code in data[cls.layout.size :])
        return cls(token, BatchReport(begun_s, infer_s, post_s, outcomes))


@dataclass(frozen=True)
class ReplyMessage:
    """From the worker: what became of a ``LoadMessage`` or an ``UnloadMessage``.

    Attributes:
        request: of that frame.
        error: name of the class; empty = it succeeded.
        values: what the engine turned out to be; or ``message``, why there is none.
    """

    layout: ClassVar[struct.Struct] = struct.Struct("<Q")

    request: int
    error: str = ""
    values: Mapping[str, str] = field(default_factory=dict)

    def pack(self) -> bytes:
        """Return the bytes behind the header."""
        return self.layout.pack(self.request) + _packed_text(
            {"error": self.error, "values": dict(self.values)}
        )

    @classmethod
    def unpack(cls, data: bytes) -> ReplyMessage:
        """Read what ``pack`` wrote."""
        text = _text(data[cls.layout.size :], {"error": str, "values": dict})
        if not all(isinstance(value, str) for value in text["values"].values()):
            raise IpcError("a value is no text")
        (request,) = cls.layout.unpack(data[: cls.layout.size])
        return cls(request, text["error"], text["values"])


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
"""What a worker may say of an engine that cannot be built; anything else counts as unavailable."""


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
_KINDS: Mapping[int, type[IpcMessage]] = MappingProxyType(
    {
        1: LabelMessage,
        2: ScoreMessage,
        3: LoadMessage,
        4: UnloadMessage,
        5: ForgetMessage,
        16: HelloMessage,
        17: DoneMessage,
        18: ReplyMessage,
    }
)
_KIND_OF: Mapping[type[IpcMessage], int] = MappingProxyType({frame: kind for kind, frame in _KINDS.items()})


def packed(frame: IpcMessage) -> bytes:
    """Return the bytes of a frame, at most ``MAX_FRAME_BYTES``."""
    data = _HEADER.pack(_MAGIC, _KIND_OF[type(frame)]) + frame.pack()
    assert len(data) <= MAX_FRAME_BYTES
    return data


def unpacked(data: bytes) -> IpcMessage:
    """Read a frame.

    Raises:
        FrameError: it is none.
    """
    try:
        magic, kind = _HEADER.unpack(data[: _HEADER.size])
        if magic != _MAGIC or kind not in _KINDS:
            raise IpcError(f"no frame begins with {data[: _HEADER.size].hex()}")
        return _KINDS[kind].unpack(data[_HEADER.size :])
    except (struct.error, ValueError, TypeError) as error:
        raise IpcError(f"{len(data)} bytes are no frame: {error}") from error


def _side(value: object) -> int:
    if not isinstance(value, int) or not 1 <= value <= _MAX_SIDE:
        raise IpcError(f"no picture has a side of {value!r}")
    return value


def _size(height: object, width: object) -> ImageSize:
    return ImageSize(_side(height), _side(width))


def _tuning(precision: object, streams: object, threads: object) -> EngineTuning:
    if precision not in get_args(PrecisionChoice):
        raise IpcError(f"no engine computes in {precision!r}")
    for count in (streams, threads):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise IpcError(f"{count!r} is no number of streams or threads")
    return EngineTuning(
        cast("PrecisionChoice", precision), cast("int | None", streams), cast("int | None", threads)
    )


def _packed_text(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode()


def _text(data: bytes, keys: Mapping[str, type]) -> dict[str, Any]:
    """Read a JSON object that must have just these keys, of these types."""
    values = json.loads(data)
    if not isinstance(values, dict) or values.keys() != keys.keys():
        raise IpcError("the text of a frame has other keys")
    for key, kind in keys.items():
        if not isinstance(values[key], kind):
            raise IpcError(f"{key} is no {kind.__name__}")
    return values
