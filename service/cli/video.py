"""A film in, a film or a folder of masks out, without a server."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

from model.labels import UInt8Array
from model.pictures.preprocess import size_of
from service.client.cameras import CameraFrame, FilmWriter, source_frames
from service.client.errors import SourceError
from service.core.models.loaded_model import LoadedModel
from service.core.pictures import codec
from service.core.pictures.picture import RawPicture
from service.core.pictures.segmenter import Segmentation, Segmenter

_IN_FLIGHT = 3
"""While one picture is in the engine, others are prepared and written."""

_PATIENCE_S = 3600.0


async def predict_film(
    segmenter: Segmenter,
    model: LoadedModel,
    source: Path,
    out: Path,
    output: Literal["labels", "color", "overlay"],
    *,
    advance: Callable[[], None],
    as_film: bool,
) -> dict[str, Any]:
    """Segment every picture of a film, in order.

    Args:
        segmenter: answers pictures.
        model: labels them.
        source: the film.
        out: where to.
        output: what is written.
        advance: called after each picture.
        as_film: ``out`` is a film; else a folder, that gets ``<stem>-<number>.png``, from 1.

    Returns:
        The report: plain JSON values.

    Raises:
        SourceError: the film cannot be read, or written.
        ServiceError: a picture cannot be answered.
    """
    writer = FilmWriter(out) if as_film else None
    if writer is None:
        await asyncio.to_thread(out.mkdir, parents=True, exist_ok=True)
    count = 0
    with closing(writer) if writer is not None else nullcontext():
        async for shot, encoded in _answers(segmenter, model, source, output, as_pixels=writer is not None):
            count += 1
            if writer is not None:
                await asyncio.to_thread(writer.write, encoded, shot.position_s)
            else:
                path = out / f"{source.stem}-{count:06}.png"
                await asyncio.to_thread(path.write_bytes, encoded)
            advance()
    if not count:
        raise SourceError(f"{source}: there is no picture in it")
    return {"input": str(source), "output": str(out), "frames": count}


async def _answers(
    segmenter: Segmenter, model: LoadedModel, source: Path, output: str, *, as_pixels: bool
) -> AsyncIterator[tuple[CameraFrame, Any]]:
    """Yield each picture with what becomes of it, in order, a few of them under way at the same time."""
    film = source_frames(str(source))
    under_way: deque[tuple[CameraFrame, asyncio.Task[Any]]] = deque()
    try:
        while (shot := await asyncio.to_thread(next, film, None)) is not None:
            task = asyncio.create_task(_answer(segmenter, model, shot, output, as_pixels=as_pixels))
            under_way.append((shot, task))
            if len(under_way) >= _IN_FLIGHT:
                oldest, answering = under_way.popleft()
                yield oldest, await answering
        while under_way:
            oldest, answering = under_way.popleft()
            yield oldest, await answering
    finally:
        for _, answering in under_way:
            answering.cancel()


async def _answer(
    segmenter: Segmenter, model: LoadedModel, shot: CameraFrame, output: str, *, as_pixels: bool
) -> Any:
    deadline_s = time.monotonic() + _PATIENCE_S
    picture = RawPicture(shot.image_HW3.tobytes(), size_of(shot.image_HW3))
    encode = partial(_painted if as_pixels else _png, output=output)
    async with segmenter.segment(model, picture, encode, deadline_s=deadline_s) as encoded:
        return encoded


def _painted(answer: Segmentation, output: str) -> UInt8Array:
    if output == "overlay":
        return codec.overlay(answer.image_HW3, answer.label_map).pixels()
    return codec.colorize(answer.label_map).pixels()


def _png(answer: Segmentation, output: str) -> bytes:
    if output == "overlay":
        return codec.encode_rgb_png(codec.overlay(answer.image_HW3, answer.label_map))
    return codec.encode_palette_png(answer.label_map)
