"""JSON files of other programs; the fields that are read are checked."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from training.errors import InterchangeError


class Record(BaseModel):
    """A JSON object of which some keys are read; all others are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


RecordType = TypeVar("RecordType", bound=BaseModel)

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse(kind: type[RecordType], data: bytes, name: str) -> RecordType:
    """Read a JSON file.

    Args:
        kind: type of the content.
        data: the file, UTF-8 with or without a byte-order mark.
        name: of the file, for messages.

    Raises:
        InterchangeError: it is no JSON, or a value that is read is missing or of a wrong type.
    """
    try:
        return kind.model_validate_json(data.removeprefix(_BYTE_ORDER_MARK))
    except ValidationError as error:
        raise InterchangeError(f"{name}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """Return the place and the text of the first error."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    others = error.error_count() - 1
    return f"{f'{place}: ' if place else ''}{first['msg']}{f' (and {others} more)' if others else ''}"
