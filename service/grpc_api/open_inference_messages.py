"""Between the messages of the Open Inference Protocol and the tensors that all transports share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from service.core.errors import InvalidArgumentError
from service.core.pictures.picture import Picture
from service.open_inference.images import MAX_AXES, ImageTensor
from service.open_inference.inference import InferAnswer
from service.open_inference.metadata import IMAGE, ModelMetadata, TensorMetadata
from service.open_inference.outputs import (
    DEFAULT_OUTPUTS,
    WantedOutput,
    check_unique,
    output_kind,
    raw_encoding,
)
from service.open_inference.parameters import Parameters, refuse_extensions
from service.wire import open_inference_pb2 as wire

MAX_FIELDS = 1024
"""Of a request, those of its parts included: an input with 64 files and all outputs needs about 100."""

_VALUES_AT_ONCE = 1 << 16
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED_64: 8, _FIXED_32: 4}
_MAX_VARINT_BYTES = 10
_VARINT_SHIFT = 7


class _BadMessageError(Exception):
    """The bytes are no message, or one with too many fields."""


def infer_request_of(data: bytes) -> wire.ModelInferRequest | None:
    """Read a request; None = the bytes are none, or hold more than ``MAX_FIELDS`` fields.

    Two bytes can hold an empty input, which takes 100 bytes of memory: so fields are counted first.
    """
    try:
        _count_fields(memoryview(data), wire.ModelInferRequest.DESCRIPTOR, MAX_FIELDS)
        return wire.ModelInferRequest.FromString(data)
    except (_BadMessageError, DecodeError):
        return None


def pictures_of(request: wire.ModelInferRequest) -> list[Picture]:
    """Return the pictures of a request.

    Raises:
        InvalidArgumentError: it has not one input, or one that is not as metadata says.
    """
    if len(request.inputs) != 1:
        raise InvalidArgumentError(f"send one input, {IMAGE!r}, not {len(request.inputs)}")
    tensor, raw = request.inputs[0], request.raw_input_contents
    image = ImageTensor.parse(tensor.name, tensor.datatype, tensor.shape[: MAX_AXES + 1])
    refuse_extensions(parameters_of(tensor.parameters), f"input {IMAGE!r}")
    if raw:
        if len(raw) != 1 or tensor.HasField("contents"):
            raise InvalidArgumentError(
                "raw_input_contents holds the bytes of each input, 'contents' none then"
            )
        return image.pictures(raw[0])
    if image.size is None:
        return image.files(list(tensor.contents.bytes_contents))
    image.check_count(len(tensor.contents.uint_contents))
    return image.pictures(b"".join(_values(tensor.contents)))


def received_bytes(request: wire.ModelInferRequest) -> int:
    """Return about how many bytes a received request takes in memory."""
    size = request.ByteSize()
    return size if request.raw_input_contents else 5 * size  # a value of uint_contents takes 4 bytes, and 1


def outputs_of(request: wire.ModelInferRequest) -> list[WantedOutput]:
    """Return the outputs that a request asks for, in their raw form; none named = the default ones.

    Raises:
        InvalidArgumentError: there is no such output, or one is named twice.
    """
    names = [output.name for output in request.outputs] or list(DEFAULT_OUTPUTS)
    check_unique(names)
    for output in request.outputs:
        refuse_extensions(parameters_of(output.parameters), f"output {output.name!r}")
    kinds = [output_kind(name) for name in names]
    return [WantedOutput(kind, raw_encoding(kind)) for kind in kinds]


def parameters_of(parameters: Mapping[str, wire.InferParameter]) -> Parameters:
    """Return parameters as values of Python; one without a value is None."""
    values = {}
    for name, parameter in parameters.items():
        field = parameter.WhichOneof("parameter_choice")
        values[name] = None if field is None else getattr(parameter, field)
    return values


def infer_response(answer: InferAnswer, request_id: str) -> wire.ModelInferResponse:
    """Return the answer to a request."""
    return wire.ModelInferResponse(
        model_name=answer.version.name,
        model_version=str(answer.version.number),
        id=request_id,
        outputs=[
            wire.ModelInferResponse.InferOutputTensor(
                name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
            )
            for tensor in answer.outputs
        ],
        raw_output_contents=[
            tensor.parts[0] if len(tensor.parts) == 1 else b"".join(tensor.parts) for tensor in answer.outputs
        ],
    )


def metadata_message(metadata: ModelMetadata) -> wire.ModelMetadataResponse:
    """Describe a model."""
    return wire.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=[_tensor(tensor) for tensor in metadata.inputs],
        outputs=[_tensor(tensor) for tensor in metadata.outputs],
    )


def _tensor(tensor: TensorMetadata) -> wire.ModelMetadataResponse.TensorMetadata:
    return wire.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
    )


def _values(contents: wire.InferTensorContents) -> Iterator[bytes]:
    for start in range(0, len(contents.uint_contents), _VALUES_AT_ONCE):
        try:
            yield bytes(contents.uint_contents[start : start + _VALUES_AT_ONCE])
        except ValueError:
            raise InvalidArgumentError(f"{IMAGE!r}: a value is outside of 0..255") from None


def _count_fields(data: memoryview, kind: Descriptor, left: int) -> int:
    """Count the fields of a message and of the messages in it, and return how many more are allowed."""
    start = 0
    while start < len(data):
        left -= 1
        if left < 0:
            raise _BadMessageError
        tag, start = _varint(data, start)
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, start = _varint(data, start)
        elif wire_type == _BYTES:
            length, start = _varint(data, start)
            field = kind.fields_by_number.get(tag >> 3)
            if field is not None and field.message_type is not None:
                left = _count_fields(data[start : start + length], field.message_type, left)
            start += length
        elif wire_type in _FIXED_BYTES:
            start += _FIXED_BYTES[wire_type]
        else:  # a group, which no message of the protocol has
            raise _BadMessageError
    return left


def _varint(data: memoryview, start: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[start : start + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (_VARINT_SHIFT * index)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follow
            return value, start + index + 1
    raise _BadMessageError
