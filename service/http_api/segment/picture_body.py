"""The picture in the body of a request, and advice for bodies that hold no picture."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from model.labels import UInt8Array
from model.pictures.image import ImageHeader, ImageLimits
from service.core.errors import InvalidArgumentError, UndecodableImageError, UnsupportedMediaError
from service.core.pictures.picture import EncodedPicture, Picture

JSON_KEY = "image"

_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
"""Content type of curl for ``-d`` and ``--data-binary`` by default."""

_START_BYTES = 64
_TEXT = re.compile(rb"(?!RIFF)[\t\n\r -~]+")
"""First bytes of a text. Of the picture formats, only WebP begins with letters."""

_FILE_NAME = re.compile(rb"[^\r\n<>{}%=]{1,255}\.[A-Za-z0-9]{3,4}\s*")
_URL_SAFE = str.maketrans("-_", "+/")


def picture_of(content_type: str, body: bytes) -> Picture:
    """Return the picture in a body.

    The bytes decide; ``Content-Type`` matters only if they are no picture.

    Args:
        content_type: of the request, or empty.
        body: the whole body, or the file of a form; not empty.

    Raises:
        UnsupportedMediaError: the body is a text; the message names it and says what to send.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if body[:_START_BYTES].lstrip().startswith(b"{"):
        if media_type == _JSON:
            return JsonPicture(body)
        raise UnsupportedMediaError(
            f'the body is JSON: send {{"{JSON_KEY}": BASE64}} with Content-Type: {_JSON}'
        )
    if _TEXT.fullmatch(body[:_START_BYTES]):
        _refuse_text(media_type, body)
    return FormTypedPicture(body) if media_type == _FORM else EncodedPicture(body)


class JsonPicture:
    """``{"image": base64 or data URL}``; decoded by the thread that reads the picture.

    Args:
        body: the JSON document.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body

    def header(self, limits: ImageLimits) -> ImageHeader:
        """Decode the document and read the header of the file in it.

        Raises:
            InvalidArgumentError: the document has another form; the message says why.
            ServiceError: what ``EncodedPicture`` raises.
        """
        self._file = EncodedPicture(base64_file(_image_text(json_document(self._body)), JSON_KEY))
        return self._file.header(limits)

    def read(self, limits: ImageLimits) -> UInt8Array:
        """Decode the file."""
        return self._file.read(limits)


class FormTypedPicture(EncodedPicture):
    """A file with the content type of a form, as from curl, which may have damaged it."""

    def header(self, limits: ImageLimits) -> ImageHeader:
        """Read the header of the file."""
        with _curl_explained():
            return super().header(limits)

    def read(self, limits: ImageLimits) -> UInt8Array:
        """Decode the file."""
        with _curl_explained():
            return super().read(limits)


@contextmanager
def _curl_explained() -> Iterator[None]:
    try:
        yield
    except (UnsupportedMediaError, UndecodableImageError) as error:
        advice = "curl -d removes the line ends of a file; send it with --data-binary @FILE"
        raise type(error)(f"{error}; {advice}") from error


def _refuse_text(media_type: str, body: bytes) -> None:
    """Name a text that is often sent by mistake; other texts are refused like any file that is no picture."""
    if body.startswith(b"data:image/"):
        raise UnsupportedMediaError(
            f'the body is a data URL: send {{"{JSON_KEY}": URL}} with Content-Type: {_JSON}'
        )
    if media_type == _FORM and b"=" in body:
        raise UnsupportedMediaError(
            "the body is a URL-encoded form: send the file itself (curl --data-binary @FILE), or as field "
            "'file' of a multipart form (curl -F file=@FILE)"
        )
    if _FILE_NAME.fullmatch(body):
        raise UnsupportedMediaError(
            "the body looks like the name of a file: curl sends the file itself if @ stands before its name "
            "(curl --data-binary @FILE, curl -F file=@FILE)"
        )


def base64_file(text: str, key: str) -> bytes:
    """Return the file that a text of a JSON document holds.

    Args:
        text: base64, or a data URL.
        key: of the text, for the message of an error.

    Raises:
        InvalidArgumentError: it is neither, or empty.
    """
    if text.startswith(("http://", "https://")):
        raise InvalidArgumentError(f"{key!r}: URLs are not fetched: send the file as base64")
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InvalidArgumentError(f"{key!r}: a data URL is data:image/TYPE;base64,BASE64")
    digits = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        file = base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgumentError(f"{key!r} is not base64") from None
    if not file:
        raise InvalidArgumentError(f"{key!r} is empty")
    return file


def json_document(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds which begins with a brace.

    Raises:
        InvalidArgumentError: it is not JSON.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidArgumentError("the body is not JSON") from None
    assert isinstance(document, dict)  # it begins with a brace
    return document


def _image_text(document: dict[str, Any]) -> str:
    unknown = [key for key in document if key != JSON_KEY]
    if unknown:
        raise InvalidArgumentError(
            f"unknown key {unknown[0]!r} in the JSON body: it holds {JSON_KEY!r}, options stand in the query"
        )
    text = document.get(JSON_KEY)
    if not isinstance(text, str):
        raise InvalidArgumentError(f"the JSON body needs {JSON_KEY!r}: the file as base64, or a data URL")
    return text
