"""A multipart form with one picture in it, parsed while it arrives; nothing is written to a disk."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.core.errors import InvalidArgumentError

FILE_FIELD = "file"
MAX_PARTS = 4
MAX_FIELD_BYTES = 4096
_MAX_BOUNDARY = 70  # RFC 2046, 5.1.1
_MAX_CONTENT_TYPE = 1024


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary of a form, or None when the body is no form.

    Raises:
        InvalidArgumentError: it is a form, but its boundary is missing, or something is too long.
    """
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        return None
    if len(content_type) > _MAX_CONTENT_TYPE:
        raise InvalidArgumentError(f"the content type of a form has at most {_MAX_CONTENT_TYPE} characters")
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= _MAX_BOUNDARY:
        raise InvalidArgumentError(f"a form needs a boundary of 1 to {_MAX_BOUNDARY} characters")
    return boundary


class FormFile:
    """Parses a form and keeps the content of its ``file`` part.

    Other fields are skipped. Names of files are never read.

    Args:
        boundary: from the ``Content-Type``.
    """

    def __init__(self, boundary: bytes) -> None:
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._extend_header_name,
                "on_header_value": self._extend_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._extend_part,
                "on_end": self._end,
            },
        )
        self._parts = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._disposition = b""
        self._content = bytearray()
        self._file: bytearray | None = None
        self._complete = False

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes.

        Raises:
            InvalidArgumentError: the body is no form, has too many or too large fields, or a second ``file``.
        """
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise InvalidArgumentError("the form is malformed") from None

    def finish(self) -> bytes:
        """Return the content of the ``file`` part.

        Raises:
            InvalidArgumentError: the form is cut off, or has no such part.
        """
        if not self._complete:
            raise InvalidArgumentError("the form is cut off")
        if self._file is None:
            raise InvalidArgumentError(f"the form has no field {FILE_FIELD!r}: send the picture as that")
        return bytes(self._file)

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidArgumentError(f"a form has at most {MAX_PARTS} fields")
        self._disposition = b""
        self._content = bytearray()

    def _extend_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _extend_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name", b"")
        if name != FILE_FIELD.encode():
            return
        if self._file is not None:
            raise InvalidArgumentError(f"the form has more than one field {FILE_FIELD!r}")
        self._file = self._content

    def _extend_part(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]
        if self._content is not self._file and len(self._content) > MAX_FIELD_BYTES:
            raise InvalidArgumentError(
                f"a field other than {FILE_FIELD!r} has at most {MAX_FIELD_BYTES} bytes: send the picture as "
                f"field {FILE_FIELD!r}"
            )

    def _end(self) -> None:
        self._complete = True
