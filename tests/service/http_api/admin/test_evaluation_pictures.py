"""``/admin/v1/evaluations/{id}/pictures/{index}`` over pictures that a test makes up."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
from fakes import admin_keys
from PIL import Image

from model.evaluation.report import ShownImage
from model.labels import ClassPalette, UInt8Array
from service.core.errors import NotFoundError
from service.core.jobs.evaluated_pictures import EvaluatedPicture, EvaluatedPictures
from service.core.readiness import Readiness
from service.http_api.admin.access import AdminPolicy
from service.http_api.admin.app import create_admin_app
from service.http_api.admin.evaluation_pictures import (
    OTHER_COLOR,
    WRONG_COLOR,
    evaluated_picture_document,
    evaluation_pictures_router,
)
from service.telemetry import Metrics

PALETTE = ClassPalette(("sky", "road", "car"), ((9, 8, 7), (1, 2, 3), (4, 5, 6)), 255)
TRUTH_HW = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)
GUESS_HW = np.array([[0, 1, 1], [2, 2, 0]], np.uint8)
IMAGE_HW3 = np.full((2, 3, 3), 200, np.uint8)
PICTURE = EvaluatedPicture(
    ShownImage("left/1.png", 0.5, IMAGE_HW3, TRUTH_HW, GUESS_HW), PALETTE, "openvino bf16", is_as_counted=True
)
PATH = "/admin/v1/evaluations/a/pictures"


class OnePicture(EvaluatedPictures):
    """A job ``a`` with the picture 1 alone."""

    def __init__(self) -> None:
        """Need neither jobs nor models."""

    def show(self, job_id: str, index: int) -> EvaluatedPicture:
        if (job_id, index) != ("a", 1):
            raise NotFoundError("there is no such picture")
        return PICTURE


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    lifecycle = Readiness()
    with ThreadPoolExecutor(1) as pool:
        app = create_admin_app(
            [evaluation_pictures_router(OnePicture(), pool)],
            policy=AdminPolicy(admin_keys("admin", "scrape"), None),
            lifecycle=lifecycle,
            metrics=Metrics(),
        )
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://admin") as client:
            yield client


def opened(encoded: str, mode: str) -> UInt8Array:
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert image.mode == mode
    return np.asarray(image)


def test_truth_and_answer_are_label_maps_and_the_picture_is_a_photo() -> None:
    document = evaluated_picture_document(1, PICTURE, None)
    assert (opened(document.truth, "P") == TRUTH_HW).all()
    assert (opened(document.answer, "P") == GUESS_HW).all()
    assert (abs(opened(document.picture, "RGB").astype(int) - 200) < 8).all()
    assert (document.name, document.width, document.height) == ("left/1.png", 3, 2)


def test_the_difference_marks_wrong_pixels_and_leaves_out_those_without_truth() -> None:
    document = evaluated_picture_document(1, PICTURE, None)
    marked_HW = (opened(document.difference, "RGB") == WRONG_COLOR).all(axis=2)
    assert marked_HW.tolist() == [[False, True, False], [True, False, False]]
    assert (document.wrong, document.cell_pixels) == (2, None)
    assert (opened(document.difference, "RGB")[0, 0] == 100).all()


def test_of_a_cell_of_the_matrix_other_mistakes_have_another_colour() -> None:
    document = evaluated_picture_document(1, PICTURE, (0, 1))
    pixels_HW3 = opened(document.difference, "RGB")
    assert tuple(pixels_HW3[0, 1]) == WRONG_COLOR
    assert tuple(pixels_HW3[1, 0]) == OTHER_COLOR
    assert document.cell_pixels == 1
    right = evaluated_picture_document(1, PICTURE, (0, 0))
    assert right.cell_pixels == 1


async def test_pictures_need_the_admin_token(client: httpx2.AsyncClient) -> None:
    for token, status in (("", 401), ("other", 401), ("scrape", 403)):
        response = await client.get(f"{PATH}/1", headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == status


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/1", (200, None)),
        ("/1?cell=0,1", (200, None)),
        ("/2", (404, "not_found")),
        ("/..%2f1", (404, "not_found")),
        ("/x", (404, "not_found")),
        ("/-1", (404, "not_found")),
        ("/1?cell=0", (400, "invalid_argument")),
        ("/1?cell=0,1,2", (400, "invalid_argument")),
        ("/1?cell=a,b", (400, "invalid_argument")),
    ],
)
async def test_only_a_number_names_a_picture(
    client: httpx2.AsyncClient, address: str, expected: tuple[int, str | None]
) -> None:
    response = await client.get(f"{PATH}{address}", headers={"Authorization": "Bearer admin"})
    assert (response.status_code, response.json().get("code")) == expected
