"""``/admin/v1/evaluations/{id}/pictures/{index}``: a picture of an evaluation, its truth and its answer.

Axes: H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import asyncio
import base64
import re
from concurrent.futures import Executor
from functools import partial

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from pydantic import BaseModel

from model.labels import LabelMap, UInt8Array
from service.core.deadline import within
from service.core.errors import BusyError, InvalidArgumentError, NotFoundError
from service.core.jobs.evaluated_pictures import EvaluatedPicture, EvaluatedPictures
from service.core.pictures import codec
from service.http_api.admin.evaluations import PREFIX

_PATIENCE_S = 120.0
_INDEX = re.compile(r"[0-9]{1,9}")
_CELL = re.compile(r"[0-9]{1,3},[0-9]{1,3}")

WRONG_COLOR = (255, 0, 200)
"""Of pixels whose answer is not the truth; with ``cell`` only of those that it asks for."""

OTHER_COLOR = (255, 190, 0)
"""Of the other wrong pixels."""

_GREY_RGB = np.array([77, 150, 29], np.uint16)  # ITU-R BT.601 luma in 256ths
_DIMMED = 2


class EvaluatedPictureDocument(BaseModel):
    """A picture of an evaluation, answered once more; pictures are base64.

    `picture` is a JPEG. `truth` and `answer` are PNGs in the colours of the classes, black where the truth
    has no class. `difference` is a PNG: the picture in grey, and colours where the answer is not the truth.
    `wrong` and `cell_pixels` count pixels. `as_counted` tells whether the mIoU is that of the report.
    """

    index: int
    name: str
    engine: str
    as_counted: bool
    miou: float
    width: int
    height: int
    wrong: int
    cell_pixels: int | None
    picture: str
    truth: str
    answer: str
    difference: str


def evaluation_pictures_router(pictures: EvaluatedPictures, pool: Executor) -> APIRouter:
    """Return the route of single pictures.

    Args:
        pictures: shows them; its functions block.
        pool: threads for these; the caller closes it.
    """
    router = APIRouter(prefix=PREFIX, tags=["evaluations"])

    @router.get("/{job_id}/pictures/{index}")
    async def show_picture(request: Request, job_id: str, index: str) -> EvaluatedPictureDocument:
        """Show a picture of an evaluation beside its truth and the model's answer, and where these differ.

        The version must be loaded here. `?cell=TRUTH,ANSWER` (class ids) marks the pixels of one cell of the
        confusion matrix. Nothing is stored.
        """
        if not _INDEX.fullmatch(index):
            raise NotFoundError("the index of a picture is a whole number")
        cell = _cell(request)
        work = partial(_shown, pictures, job_id, int(index), cell)
        async with within(_PATIENCE_S, lambda: BusyError("the picture is not ready in time")):
            return await asyncio.wrap_future(pool.submit(work))

    return router


def _cell(request: Request) -> tuple[int, int] | None:
    text = request.query_params.get("cell")
    if text is None:
        return None
    if not _CELL.fullmatch(text):
        raise InvalidArgumentError("query parameter 'cell' is the ids of two classes: TRUTH,ANSWER")
    truth, answer = map(int, text.split(","))
    return truth, answer


def _shown(
    pictures: EvaluatedPictures, job_id: str, index: int, cell: tuple[int, int] | None
) -> EvaluatedPictureDocument:
    return evaluated_picture_document(index, pictures.show(job_id, index), cell)


def evaluated_picture_document(
    index: int, picture: EvaluatedPicture, cell: tuple[int, int] | None
) -> EvaluatedPictureDocument:
    """Render a picture.

    Args:
        index: of the picture in its split.
        picture: with truth and answer.
        cell: class ids of truth and answer whose pixels are marked; None = all wrong pixels.
    """
    shown, palette = picture.shown, picture.palette
    truth_HW, guess_HW = shown.truth_HW, shown.guess_HW
    is_wrong_HW = (truth_HW != guess_HW) & (truth_HW != palette.ignore_id)
    is_asked_HW = is_wrong_HW if cell is None else (truth_HW == cell[0]) & (guess_HW == cell[1])
    height, width = truth_HW.shape
    return EvaluatedPictureDocument(
        index=index,
        name=shown.name,
        engine=picture.engine,
        as_counted=picture.is_as_counted,
        miou=shown.miou,
        width=width,
        height=height,
        wrong=int(is_wrong_HW.sum()),
        cell_pixels=None if cell is None else int(is_asked_HW.sum()),
        picture=_base64(codec.encode_jpeg(codec.raster_of(shown.image_HW3))),
        truth=_base64(codec.encode_palette_png(LabelMap(truth_HW, palette))),
        answer=_base64(codec.encode_palette_png(LabelMap(guess_HW, palette))),
        difference=_base64(codec.encode_rgb_png(_difference(shown.image_HW3, is_wrong_HW, is_asked_HW))),
    )


def _difference(
    image_HW3: UInt8Array, is_wrong_HW: npt.NDArray[np.bool_], is_asked_HW: npt.NDArray[np.bool_]
) -> codec.Raster:
    def paint(top: int, bottom: int) -> UInt8Array:
        rows = slice(top, bottom)
        grey_HW = (image_HW3[rows] @ _GREY_RGB >> 8) // _DIMMED
        painted_HW3 = np.repeat(grey_HW[..., np.newaxis].astype(np.uint8), 3, axis=2)
        painted_HW3[is_wrong_HW[rows]] = OTHER_COLOR
        painted_HW3[is_asked_HW[rows]] = WRONG_COLOR
        return painted_HW3

    return codec.Raster(image_HW3.shape, paint)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
