"""What a body may hold besides the bytes of a file, and how the usual mistakes are named."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from http_site import encoded, open_site

from model.pictures.image import DEFAULT_LIMITS
from model.pictures.preprocess import ImageSize
from service.core.errors import InvalidArgumentError, UndecodableImageError, UnsupportedMediaError
from service.core.pictures.picture import EncodedPicture
from service.http_api.segment.picture_body import JsonPicture, picture_of

IMAGE_HW3 = np.arange(24 * 40 * 3, dtype=np.uint8).reshape(24, 40, 3)
PNG = encoded(IMAGE_HW3)
BASE64 = base64.b64encode(PNG).decode()
FORM = "application/x-www-form-urlencoded"


def as_json(value: Any, **others: Any) -> bytes:
    return json.dumps({"image": value, **others}).encode()


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64.rstrip("="),
        BASE64.translate(str.maketrans("+/", "-_")),
        "\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
        f"data:image/png;base64,{BASE64}",
        f"data:;base64,{BASE64}",
    ],
    ids=["plain", "unpadded", "url-safe", "in lines", "data URL", "data URL without a type"],
)
def test_json_carries_the_file_as_base64(text: str) -> None:
    picture = picture_of("application/json; charset=utf-8", as_json(text))
    assert picture.header(DEFAULT_LIMITS).size == ImageSize(24, 40)
    assert np.array_equal(picture.read(DEFAULT_LIMITS), IMAGE_HW3)


def test_json_may_be_written_for_people() -> None:
    body = b"\n " + json.dumps({"image": BASE64}, indent=4).encode()
    assert picture_of("application/json", body).header(DEFAULT_LIMITS).size == ImageSize(24, 40)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{}", "needs 'image'"),
        (as_json(5), "needs 'image'"),
        (as_json(None), "needs 'image'"),
        (as_json(BASE64, output="labels"), "unknown key 'output'"),
        (as_json(""), "'image' is empty"),
        (as_json("Hello!"), "not base64"),
        (as_json("\u00e4"), "not base64"),
        (as_json("https://example.org/a.png"), "URLs are not fetched"),
        (as_json("data:image/png,abc"), "a data URL is"),
        (b'{"image": "abc', "not JSON"),
        (b'{"image":' + b"[" * 100_000, "not JSON"),
        (b'{"image": "\xff"}', "not JSON"),
    ],
)
def test_json_that_carries_no_file_is_told_why(body: bytes, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        picture_of("application/json", body).header(DEFAULT_LIMITS)


def test_json_that_carries_something_else_is_no_picture() -> None:
    with pytest.raises(UnsupportedMediaError):
        JsonPicture(as_json(base64.b64encode(b"GIF89a").decode())).header(DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        ("text/plain", as_json(BASE64), "Content-Type: application/json"),
        (FORM, as_json(BASE64), "Content-Type: application/json"),
        ("", f"data:image/png;base64,{BASE64}".encode(), "is a data URL"),
        (FORM, b"image=%89PNG&output=labels", "URL-encoded form"),
        (FORM, b"photo.jpg", "curl --data-binary @FILE"),
        (FORM, b"./some folder/photo.webp\n", "curl -F file=@FILE"),
        ("multipart/form-data; boundary=x", b"photo.png", "curl -F file=@FILE"),
    ],
)
def test_a_text_that_people_send_by_mistake_is_named(content_type: str, body: bytes, says: str) -> None:
    with pytest.raises(UnsupportedMediaError, match=says):
        picture_of(content_type, body)


@pytest.mark.parametrize("body", [b"<svg/>", b"%PDF-1.7", b"Hello", b"RIFFxxxxWEBPVP8 photo.jpg"])
def test_any_other_text_is_refused_as_no_picture(body: bytes) -> None:
    with pytest.raises((UnsupportedMediaError, UndecodableImageError)) as caught:
        picture_of("", body).header(DEFAULT_LIMITS)
    assert "curl" not in str(caught.value)


@pytest.mark.parametrize("content_type", ["", FORM, "application/json", "text/plain"])
def test_a_file_is_a_file_whatever_its_type_says(content_type: str) -> None:
    picture = picture_of(content_type, PNG)
    assert isinstance(picture, EncodedPicture)
    assert np.array_equal(picture.read(DEFAULT_LIMITS), IMAGE_HW3)


def test_a_png_whose_line_ends_curl_removed_is_told_of_data_binary() -> None:
    with pytest.raises(UnsupportedMediaError, match="--data-binary @FILE"):
        picture_of(FORM, PNG.replace(b"\r", b"").replace(b"\n", b"")).header(DEFAULT_LIMITS)


def test_a_file_from_curl_that_does_not_decode_is_told_of_data_binary() -> None:
    picture = picture_of(FORM, PNG[:-40])
    picture.header(DEFAULT_LIMITS)
    with pytest.raises(UndecodableImageError, match="--data-binary @FILE"):
        picture.read(DEFAULT_LIMITS)


async def test_json_is_answered_like_the_file_in_it() -> None:
    async with open_site() as site:
        plain = await site.client.post("/v1/segment", content=PNG)
        wrapped = await site.client.post("/v1/segment", json={"image": BASE64})
        wrong = await site.client.post("/v1/segment", json={"picture": BASE64})
    assert wrapped.status_code == 200
    assert wrapped.content == plain.content
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_argument")
    assert "'picture'" in wrong.json()["detail"]
