"""Has the pictures of one request answered one by one: each is queued, counted and refused by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from model.artifacts.manifest import ModelVersion
from model.pictures.preprocess import ImageSize, size_of
from service.core.errors import ServiceError
from service.core.models.loaded_model import LoadedModel
from service.core.pictures.picture import Picture
from service.core.pictures.segmenter import Segmentation, Segmenter
from service.core.scheduling.scheduler import Lane
from service.open_inference.metadata import IMAGE
from service.open_inference.outputs import (
    OneSize,
    OutputTensor,
    WantedOutput,
    memory_of,
    rendered,
)
from service.telemetry import Stage

Keep = Callable[[int], Awaitable[None]]
"""Waits until so many bytes of an answer may be kept until they are sent."""


@dataclass(frozen=True, eq=False)
class InferRequest:
    """What a client asks for, checked.

    Attributes:
        pictures: at least one.
        outputs: what is made of each.
        deadline_s: time after which the answer is no longer needed (``time.monotonic``, seconds).
        lane: how urgent it is.
        source: the client that asks; None = unknown.
    """

    pictures: Sequence[Picture]
    outputs: Sequence[WantedOutput]
    deadline_s: float
    lane: Lane
    source: str | None


@dataclass(frozen=True, eq=False)
class PictureAnswer:
    """The answer for one picture.

    Attributes:
        parts: encoded part of each output.
        size: of the picture.
        stages_s: time that each stage took, in seconds.
        batch_size: pictures that were answered together.
    """

    parts: Sequence[bytes]
    size: ImageSize
    stages_s: Mapping[Stage, float]
    batch_size: int


@dataclass(frozen=True, eq=False)
class InferAnswer:
    """The answer for a request: the version that answered, its tensors, and each picture's numbers."""

    version: ModelVersion
    outputs: Sequence[OutputTensor]
    pictures: Sequence[PictureAnswer]


async def _keep_without_limit(_num_bytes: int) -> None:
    pass


class Inference:
    """Answers requests with the pictures of one request side by side.

    Args:
        segmenter: answers each picture.
        at_once: pictures of one request that are queued at the same time: enough to keep the device busy.
    """

    def __init__(self, segmenter: Segmenter, *, at_once: int) -> None:
        self._segmenter = segmenter
        self._at_once = at_once

    async def answer(
        self, model: LoadedModel, request: InferRequest, keep: Keep = _keep_without_limit
    ) -> InferAnswer:
        """Answer a request: all of its pictures, or the error of the first one that fails.

        Args:
            model: answers; held until this returns.
            request: what is asked for.
            keep: awaited with the bytes of each picture's answer, while the picture's memory is taken.

        Raises:
            ServiceError: what ``Segmenter.segment`` raises; where there are several pictures, the message
                begins with the index of the one that failed. The others are withdrawn.
        """
        one_size = OneSize()
        if len(request.pictures) == 1:
            pictures = [await self._picture(model, request, request.pictures[0], one_size, keep)]
        else:
            pictures = await self._pictures(model, request, one_size, keep)
        num_classes = model.manifest.palette.num_classes
        return InferAnswer(model.version, _tensors(request.outputs, pictures, num_classes), pictures)

    async def _pictures(
        self, model: LoadedModel, request: InferRequest, one_size: OneSize, keep: Keep
    ) -> list[PictureAnswer]:
        answers: dict[int, PictureAnswer] = {}
        rest = iter(enumerate(request.pictures))

        async def answer_some(pictures: Iterator[tuple[int, Picture]]) -> None:
            for index, picture in pictures:
                try:
                    answers[index] = await self._picture(model, request, picture, one_size, keep)
                except ServiceError as error:
                    error.args = (f"{IMAGE}[{index}]: {error}",)
                    raise

        count = min(self._at_once, len(request.pictures))
        tasks = [asyncio.create_task(answer_some(rest)) for _ in range(count)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            del tasks, task  # an error in them would refer to itself through this frame
        try:
            for end in ends:
                if isinstance(end, Exception):
                    raise end
        finally:
            del ends
        return [answers[index] for index in range(len(request.pictures))]

    async def _picture(
        self, model: LoadedModel, request: InferRequest, picture: Picture, one_size: OneSize, keep: Keep
    ) -> PictureAnswer:
        async with self._segmenter.segment(
            model,
            picture,
            lambda segmentation: _answer(segmentation, request.outputs, one_size),
            deadline_s=request.deadline_s,
            render_bytes=memory_of(request.outputs),
            confidence=any(output.kind.needs_confidence for output in request.outputs),
            lane=request.lane,
            source=request.source,
        ) as answer:
            await keep(sum(map(len, answer.parts)))
            return answer


def _answer(segmentation: Segmentation, outputs: Sequence[WantedOutput], one_size: OneSize) -> PictureAnswer:
    started_s = time.monotonic()
    parts = rendered(segmentation, outputs, one_size)
    timings = segmentation.timings
    stages_s: dict[Stage, float] = {
        "decode": timings.decode_s,
        "preprocess": timings.preprocess_s,
        "queue": timings.queue_s,
        "infer": timings.infer_s,
        "post": timings.post_s,
        "encode": time.monotonic() - started_s,
    }
    return PictureAnswer(parts, size_of(segmentation.image_HW3), stages_s, segmentation.batch_size)


def _tensors(
    outputs: Sequence[WantedOutput], pictures: Sequence[PictureAnswer], num_classes: int
) -> list[OutputTensor]:
    size = pictures[0].size
    return [
        OutputTensor(
            output.kind.name,
            output.kind.datatype,
            (len(pictures), *output.kind.axes(size, num_classes)),
            [picture.parts[place] for picture in pictures],
        )
        for place, output in enumerate(outputs)
    ]
