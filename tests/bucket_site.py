"""A bucket that speaks the S3 protocol on loopback: as much of it as a registry needs."""

from __future__ import annotations

import hashlib
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

LISTED = (
    "<Contents><Key>{key}</Key><LastModified>{time}</LastModified><ETag>{tag}</ETag>"
    "<Size>{size}</Size></Contents>"
)
TIME = "2020-04-05T12:00:00.000Z"


class Bucket:
    """The objects of one bucket, named ``bucket``.

    Attributes:
        url: where it is served, for ``AWS_ENDPOINT``.
        objects: content by key.
        after_get: called with the key after an object was read, before the reader gets it.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.after_get: Callable[[str], None] = lambda _: None
        self.lock = threading.Lock()
        self.url = ""


def tag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.bucket.lock:
            present = self.bucket.objects.get(self.key)
            if self.refused(present):
                self.answer(412)
                return
            self.bucket.objects[self.key] = data
        self.answer(200, ETag=tag_of(data))

    def refused(self, present: bytes | None) -> bool:
        wanted = self.headers["If-Match"]
        if wanted is not None and (present is None or tag_of(present) != wanted):
            return True
        return self.headers["If-None-Match"] == "*" and present is not None

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self.list_objects(query.get("prefix", [""])[0])
            return
        data = self.bucket.objects.get(self.key)
        self.bucket.after_get(self.key)
        if data is None:
            self.answer(404)
        else:
            self.answer(200, data, **{"ETag": tag_of(data), "Last-Modified": formatdate(0, usegmt=True)})

    def list_objects(self, prefix: str) -> None:
        with self.bucket.lock:
            found = sorted((k, v) for k, v in self.bucket.objects.items() if k.startswith(prefix))
        rows = "".join(LISTED.format(key=escape(k), time=TIME, tag=tag_of(v), size=len(v)) for k, v in found)
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
        self.answer(200, body.encode())

    def do_POST(self) -> None:
        """Delete all keys that the body names."""
        request = ET.fromstring(self.rfile.read(int(self.headers["Content-Length"])))
        keys = [element.text or "" for element in request.iter() if element.tag.endswith("Key")]
        with self.bucket.lock:
            for key in keys:
                self.bucket.objects.pop(key, None)
        rows = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self.answer(200, f"<DeleteResult>{rows}</DeleteResult>".encode())

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket/")

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def open_bucket() -> Iterator[Bucket]:
    """Serve an empty bucket while the context lasts."""
    bucket = Bucket()
    handler = type("BucketHandler", (Handler,), {"bucket": bucket})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        bucket.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield bucket
        server.shutdown()
        thread.join()
