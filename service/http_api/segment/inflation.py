"""A compressed body, inflated piece by piece, so that a small one cannot become a large one at once."""

from __future__ import annotations

from collections.abc import Iterator

from isal import isal_zlib

from service.core.errors import InvalidArgumentError

WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""Values of ``Content-Encoding``, and what they are to zlib (RFC 9110, 8.4.1)."""

PIECE_BYTES = 256 * 1024


class Inflation:
    """Inflates one stream.

    Args:
        encoding: of ``WINDOW_BITS``.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = isal_zlib.decompressobj(WINDOW_BITS[encoding])

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Inflate more bytes; the pieces are at most 256 KiB each and made one at a time.

        Raises:
            InvalidArgumentError: the bytes are damaged, or come after the end of the stream.
        """
        if data and self._stream.eof:
            raise self._followed()
        piece = b""
        while data or len(piece) == PIECE_BYTES:  # a full piece may leave output behind without input
            try:
                piece = self._stream.decompress(data, PIECE_BYTES)
            except isal_zlib.error:  # type: ignore[misc] # the library has no types
                raise self._damaged() from None
            if self._stream.unused_data:
                raise self._followed()
            data = self._stream.unconsumed_tail
            if piece:
                yield piece
            if self._stream.eof:
                return

    def finish(self) -> None:
        """Take note that no more bytes come.

        Raises:
            InvalidArgumentError: the stream has not ended.
        """
        if not self._stream.eof:
            raise self._damaged()

    def _followed(self) -> InvalidArgumentError:
        return InvalidArgumentError(f"bytes follow the end of the {self._encoding} stream in the body")

    def _damaged(self) -> InvalidArgumentError:
        return InvalidArgumentError(f"the body is no whole {self._encoding} stream")
