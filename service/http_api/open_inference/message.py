"""The body of an infer request: JSON, JSON with binary tensors behind it, or the bytes of one input.

JSON is decoded one level at a time, so that no body takes more than a few times its own size: shapes,
parameters and data stay text until their length is known to be reasonable.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from model.labels import UInt8Array
from model.pictures.image import ImageHeader, ImageLimits
from service.core.errors import InvalidArgumentError
from service.core.pictures.picture import EncodedPicture, Picture
from service.open_inference.images import MAX_PICTURES, ImageTensor
from service.open_inference.metadata import IMAGE
from service.open_inference.outputs import DEFAULT_OUTPUTS, check_unique, output_kind
from service.open_inference.parameters import Parameters, flag, refuse_extensions

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Header with the bytes of JSON before the binary tensors; 0 = the body is the one input."""

MAX_ID_CHARACTERS = 256
MAX_PARAMETER_BYTES = 16 * 1024
MAX_SHAPE_BYTES = 256
MAX_OBJECTS = 256
"""JSON objects in a request: one for itself and two for each tensor are needed."""

_NUMBERS_AT_ONCE = 1 << 16
_MAX_DIGITS = 9
_WHITESPACE = b" \t\r\n"

_NOTHING = msgspec.Raw()
_T = TypeVar("_T")


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: msgspec.Raw
    data: msgspec.Raw = _NOTHING
    parameters: msgspec.Raw = _NOTHING


class _Output(msgspec.Struct):
    name: str
    parameters: msgspec.Raw = _NOTHING


class _Document(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    outputs: list[_Output] | None = None
    parameters: msgspec.Raw = _NOTHING


@dataclass(frozen=True, eq=False)
class InferMessage:
    """What a body says, checked against the protocol; the pictures are not read yet.

    Attributes:
        id: of the request; None = it has none.
        parameters: of the request.
        pictures: of the one input.
        outputs: name of each wanted output, and whether it is sent as binary.
    """

    pictures: Sequence[Picture]
    outputs: Sequence[tuple[str, bool]]
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)


def header_length(text: str | None) -> int | None:
    """Return the length of the JSON at the begin of a body; None = all of it.

    Args:
        text: of the header.

    Raises:
        InvalidArgumentError: it is no number.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise InvalidArgumentError(f"header {HEADER_LENGTH} is a whole number of bytes")
    return int(text)


def raw_message(body: bytes) -> InferMessage:
    """Return the message of a body that is one file and nothing else; it wants the default outputs."""
    return InferMessage([EncodedPicture(body)], [(name, True) for name in DEFAULT_OUTPUTS])


def parse_message(body: bytes, json_length: int | None) -> InferMessage:
    """Read a body.

    Args:
        body: inflated.
        json_length: bytes of JSON, not 0; None = all.

    Raises:
        InvalidArgumentError: it is no infer request; the message says what is wrong.
    """
    if json_length is not None and json_length > len(body):
        raise InvalidArgumentError(
            f"header {HEADER_LENGTH} says {json_length} bytes of JSON, the body has {len(body)}"
        )
    json, binary = body[:json_length], memoryview(body)[len(body) if json_length is None else json_length :]
    if json.count(b"{") > MAX_OBJECTS:
        raise InvalidArgumentError(f"the request holds more than {MAX_OBJECTS} JSON objects")
    document = _decoded(json, _Document, "the body is no infer request")
    if document.id is not None and len(document.id) > MAX_ID_CHARACTERS:
        raise InvalidArgumentError(f"'id' has more than {MAX_ID_CHARACTERS} characters")
    if len(document.inputs) != 1:
        raise InvalidArgumentError(f"send one input, {IMAGE!r}, not {len(document.inputs)}")
    parameters = _parameters(document.parameters, "the request")
    return InferMessage(
        _pictures(document.inputs[0], binary), _outputs(document, parameters), document.id, parameters
    )


def _outputs(document: _Document, parameters: Parameters) -> list[tuple[str, bool]]:
    default = flag(parameters, "binary_data_output", default=False)
    if not document.outputs:
        return [(name, default) for name in DEFAULT_OUTPUTS]
    check_unique([output.name for output in document.outputs])
    return [(output_kind(output.name).name, _is_binary(output, default)) for output in document.outputs]


def _is_binary(output: _Output, default: bool) -> bool:  # noqa: FBT001 - of the whole request
    parameters = _parameters(output.parameters, f"output {output.name!r}")
    refuse_extensions(parameters, f"output {output.name!r}")
    return flag(parameters, "binary_data", default=default)


def _pictures(tensor: _Tensor, binary: memoryview) -> Sequence[Picture]:
    if _length(tensor.shape) > MAX_SHAPE_BYTES:
        raise InvalidArgumentError(f"{IMAGE!r}: the shape is too long")
    shape = _decoded(tensor.shape, list[int], f"{IMAGE!r}: the shape is a list of whole numbers")
    image = ImageTensor.parse(tensor.name, tensor.datatype, shape)
    parameters = _parameters(tensor.parameters, f"input {IMAGE!r}")
    refuse_extensions(parameters, f"input {IMAGE!r}")
    size = parameters.get("binary_data_size")
    if size is not None:
        if _length(tensor.data):
            raise InvalidArgumentError(f"{IMAGE!r} has both 'data' and 'binary_data_size'")
        _check_size(size, len(binary))
        return image.pictures(binary)
    _check_size(0, len(binary))
    if not _length(tensor.data):
        raise InvalidArgumentError(f"{IMAGE!r} has neither 'data' nor 'binary_data_size'")
    return _files(image, tensor.data) if image.size is None else image.pictures(_pixels(image, tensor.data))


def _check_size(declared: object, sent: int) -> None:
    if isinstance(declared, bool) or declared != sent:
        raise InvalidArgumentError(
            f"{sent} bytes follow the JSON, but 'binary_data_size' of {IMAGE!r} says {_number(declared)}"
        )


def _number(value: object) -> str:
    return str(value) if isinstance(value, int) and abs(value) < 1 << 64 else "something else"


def _files(image: ImageTensor, data: msgspec.Raw) -> list[Picture]:
    text = bytes(data)
    if text.count(b'"') > 2 * MAX_PICTURES:
        raise InvalidArgumentError(f"{IMAGE!r}: the data has more than {MAX_PICTURES} elements")
    nested = _decoded(text, list[str | list[str]], f"{IMAGE!r}: the data is a list of files as base64")
    elements = [element for entry in nested for element in ([entry] if isinstance(entry, str) else entry)]
    image.check_count(len(elements))
    return [Base64Picture(element) for element in elements]


class Base64Picture:
    """A file as base64, decoded by the thread that reads the picture.

    Args:
        text: base64 without a prefix.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def header(self, limits: ImageLimits) -> ImageHeader:
        """Decode the text and read the header of the file in it.

        Raises:
            InvalidArgumentError: it is no base64.
            ServiceError: what ``EncodedPicture`` raises.
        """
        try:
            self._file = EncodedPicture(base64.b64decode(self._text, validate=True))
        except (binascii.Error, ValueError):
            raise InvalidArgumentError(
                f"{IMAGE!r}: in JSON a file is base64; send it as binary data to save a third of the bytes"
            ) from None
        return self._file.header(limits)

    def read(self, limits: ImageLimits) -> UInt8Array:
        """Decode the file."""
        return self._file.read(limits)


def _pixels(image: ImageTensor, data: msgspec.Raw) -> bytes:
    """Return the values of nested or flat JSON lists: numbers of 0..255, in row-major order."""
    numbers = bytes(data).translate(None, b"[]" + _WHITESPACE)
    if numbers.translate(None, b"0123456789,"):
        raise InvalidArgumentError(f"{IMAGE!r}: the data of UINT8 is whole numbers of 0..255")
    image.check_count(numbers.count(b",") + 1 if numbers else 0)
    return b"".join(_values(numbers))


def _values(numbers: bytes) -> Iterator[bytes]:
    """Decode some numbers at a time: all at once would take eight bytes for each."""
    start = 0
    while start < len(numbers):
        end = numbers.find(b",", start + _NUMBERS_AT_ONCE)
        end = len(numbers) if end < 0 else end
        values = _decoded(b"[" + numbers[start:end] + b"]", list[int], f"{IMAGE!r}: a number is missing")
        try:
            yield bytes(values)
        except ValueError:
            raise InvalidArgumentError(f"{IMAGE!r}: a value is outside of 0..255") from None
        start = end + 1


def _length(text: msgspec.Raw) -> int:
    return memoryview(text).nbytes


def _parameters(text: msgspec.Raw, owner: str) -> Parameters:
    if not _length(text):
        return {}
    if _length(text) > MAX_PARAMETER_BYTES:
        raise InvalidArgumentError(f"{owner}: the parameters take more than {MAX_PARAMETER_BYTES} bytes")
    if bytes(text) == b"null":
        return {}
    return _decoded(text, dict[str, object], f"{owner}: the parameters are no JSON object")


def _decoded(text: bytes | msgspec.Raw, kind: type[_T], complaint: str) -> _T:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidArgumentError(f"{complaint}: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise InvalidArgumentError(f"{complaint}: this is no JSON, or too deeply nested") from None
