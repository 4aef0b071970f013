"""A client of the admin frontend, for the commands."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 30.0
_ERRORS = 400


class AdminError(Exception):
    """The service refused a request or does not answer; the message is for people.

    Args:
        message: what went wrong.
        code: error code of the service's answer; None without one.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class AdminClient:
    """Sends requests to the admin frontend of a service and reads its JSON answers.

    Args:
        url: of the frontend.
        token_file: holds the admin token.

    Raises:
        AdminError: the URL is malformed, or the file cannot be read.
    """

    def __init__(self, url: str, token_file: Path) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise AdminError(f"not http://HOST:PORT or https://HOST:PORT: {url!r}")
        self._url = url
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._netloc = parts.netloc
        try:
            self._token = token_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise AdminError(f"token file {token_file} cannot be read: {error}") from error

    def call(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Send a request and return the document of the answer.

        Args:
            method: of HTTP.
            path: of the resource.
            body: sent as JSON; None = no body.
            headers: beside ``Authorization``.

        Raises:
            AdminError: the service answers with an error, or not at all.
        """
        connection = self._kind(self._netloc, timeout=_TIMEOUT_S)
        try:
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                {"Authorization": f"Bearer {self._token}", **(headers or {})},
            )
            response = connection.getresponse()
            status, content = response.status, response.read()
        except (OSError, HTTPException, ValueError) as error:
            raise AdminError(f"{self._url} does not answer: {error}") from error
        finally:
            connection.close()
        return self._document(status, content)

    def _document(self, status: int, content: bytes) -> dict[str, Any]:
        try:
            document = json.loads(content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise AdminError(f"{self._url} answers {status} without a JSON object: it is no BiSeNet service")
        if status >= _ERRORS:
            code = document.get("code")
            raise AdminError(f"{code}: {document.get('detail')}", code)
        return document
