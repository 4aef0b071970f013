"""HTTP/1.1 as uvicorn and httptools speak it, with limits for what no application gets to see."""

from __future__ import annotations

import time
import uuid
from typing import Any

import httptools
import structlog
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.core.errors import InvalidArgumentError
from service.http_api.exchange import Exchange
from service.http_api.problems import HeadTooLargeError, TargetTooLongError, problem

_log = structlog.get_logger()

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line and its header fields; also of what may come between two pieces of a body."""

MAX_TARGET_BYTES = 8 * 1024
"""Of path and query; 64 KiB of parameters would keep the event loop busy for 160 ms."""

MAX_HEADER_FIELDS = 100

MAX_BODY_PIECES = 65_536
"""Chunks, or reads where there are none: 20 MiB in the packets of an Ethernet are 15,000."""


class GuardedProtocol(HttpToolsProtocol):
    """Refuses malformed and oversized heads as every other error is refused, and ignores upgrades.

    A head that is sent for ever would otherwise be kept for ever. Asked to upgrade (Java's HTTP client asks
    for ``h2c`` by default), httptools takes the body for the next request; so the request is parsed once
    more, without its ``Upgrade``.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._unaccounted_bytes = 0  # since the last end of a head, piece of a body, or end of a message
        self._head_bytes = 0
        self._header_fields = 0
        self._body_pieces = 0
        self._in_head = False
        self._is_upgrade = False

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes of the connection."""
        self._unset_keepalive_if_required()
        self._unaccounted_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            refusal = error.__context__
            if not isinstance(refusal, InvalidArgumentError):
                refusal = InvalidArgumentError("this is no HTTP request")
            self._refuse(refusal)
        else:
            if self._unaccounted_bytes > MAX_HEAD_BYTES:
                self._refuse(_head_too_large())

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head = True
        self._is_upgrade = False
        self._head_bytes = self._header_fields = self._body_pieces = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        super().on_url(url)
        self._count_head(len(url))
        if len(self.url) > MAX_TARGET_BYTES:
            raise TargetTooLongError(f"path and query together have at most {MAX_TARGET_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; those after a body are read over."""
        self._header_fields += 1
        self._count_head(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End a head: the request begins."""
        self._in_head = False
        self._unaccounted_bytes = 0
        self._is_upgrade = self.parser.should_upgrade()
        if self._is_upgrade:
            return
        if self.parser.get_http_version() == "1.1" and not any(name == b"host" for name, _ in self.headers):
            raise InvalidArgumentError("the header Host is missing")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._unaccounted_bytes = 0
        self._body_pieces += 1
        if self._body_pieces > MAX_BODY_PIECES:
            raise InvalidArgumentError(f"the body comes in more than {MAX_BODY_PIECES} pieces")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._unaccounted_bytes = 0
        if not self._is_upgrade:
            super().on_message_complete()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as pause:
            rest = data[pause.args[0] :]
            head = self._head_without_upgrade()
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            self._parse(head + rest)

    def _head_without_upgrade(self) -> bytes:
        fields = [(name, value) for name, value in self.headers if name != b"upgrade"]
        if len(fields) == len(self.headers):
            raise httptools.HttpParserError  # CONNECT
        lines = [b"%b: %b\r\n" % field for field in fields]
        return b"%b %b HTTP/1.1\r\n%b\r\n" % (self.parser.get_method(), self.url, b"".join(lines))

    def _count_head(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEAD_BYTES or self._header_fields > MAX_HEADER_FIELDS:
            raise _head_too_large()

    def _refuse(self, refusal: InvalidArgumentError) -> None:
        """Answer an error and close the connection; an answer that is on its way comes first, and alone."""
        if self._is_answering():
            self.cycle.keep_alive = False
            return
        exchange = Exchange(uuid.uuid4().hex, time.monotonic())
        response = problem(refusal, exchange)
        self.transport.write(_as_bytes(response, exchange.request_id))
        self.transport.close()
        _log.info("request", status=response.status_code, code=exchange.code, request_id=exchange.request_id)

    def _is_answering(self) -> bool:
        """Whether a whole request, or an answer that has begun, is on its way."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return cycle.response_started or not cycle.more_body or bool(self.pipeline)


def _head_too_large() -> HeadTooLargeError:
    return HeadTooLargeError(
        f"the head of a request has at most {MAX_HEADER_FIELDS} fields and {MAX_HEAD_BYTES} bytes"
    )


def _as_bytes(response: Response, request_id: str) -> bytes:
    fields = [*response.raw_headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
    head = b"".join(b"%b: %b\r\n" % field for field in fields)
    return b"%b%b\r\n%b" % (STATUS_LINE[response.status_code], head, bytes(response.body))
