"""A film in, a film or a folder of masks out, without a server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from service.cli.labelers import Labeler
from service.cli.notes import damage_note
from service.client.cameras import CameraFrame, FilmWriter, VideoSource
from service.client.errors import SourceError
from service.core.pictures.mask_rendering import Output, mask_pixels, mask_png
from service.core.pictures.picture_labeler import LabelledPicture

_IN_FLIGHT = 3
"""While one picture is in the engine, others are prepared and written."""

_LabelledFrames = AsyncIterator[tuple[CameraFrame, LabelledPicture]]


async def predict_film(
    labeler: Labeler,
    source: Path,
    out: Path,
    output: Output,
    advance: Callable[[], None],
    *,
    as_film: bool,
) -> dict[str, Any]:
    """Label every picture of a film in order.

    Args:
        labeler: labels the pictures.
        source: the film.
        out: where the masks go.
        output: content of the masks.
        advance: called after each picture.
        as_film: ``out`` is a film with the time stamps of the source; else it is a folder that gets
            ``<stem>-<number>.png``, numbers from 1.

    Returns:
        The report: plain JSON values.

    Raises:
        SourceError: the film cannot be read, or the output cannot be written.
        ServiceError: a picture cannot be labelled.
    """
    with VideoSource(str(source)) as film:
        frames = _labelled_frames(labeler, film)
        try:
            if as_film:
                count = await _write_film(frames, out, output, advance)
            else:
                count = await _write_masks(frames, out, source.stem, output, advance)
        except OSError as error:
            raise SourceError(f"{out}: cannot be written: {error.strerror}") from error
    report: dict[str, Any] = {"input": str(source), "output": str(out), "frames": count}
    if film.damaged_packets:
        report["damaged_packets"] = film.damaged_packets
        report["notes"] = [damage_note(film.damaged_packets)]
    return report


async def _write_film(frames: _LabelledFrames, out: Path, output: Output, advance: Callable[[], None]) -> int:
    count = 0
    with closing(FilmWriter(out)) as writer:
        async for frame, labelled in frames:
            pixels_HW3 = await asyncio.to_thread(mask_pixels, frame.image_HW3, labelled.label_map, output)
            await asyncio.to_thread(writer.write, pixels_HW3, frame.position_s)
            count += 1
            advance()
    return count


async def _write_masks(
    frames: _LabelledFrames, folder: Path, stem: str, output: Output, advance: Callable[[], None]
) -> int:
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    count = 0
    async for frame, labelled in frames:
        png = await asyncio.to_thread(mask_png, frame.image_HW3, labelled.label_map, output)
        count += 1
        await asyncio.to_thread((folder / f"{stem}-{count:06}.png").write_bytes, png)
        advance()
    return count


async def _labelled_frames(labeler: Labeler, film: VideoSource) -> _LabelledFrames:
    """Yield each picture with its labels in order; a few of them are in work at the same time."""
    frames = film.frames()
    in_work: deque[tuple[CameraFrame, asyncio.Task[LabelledPicture]]] = deque()
    try:
        while (frame := await asyncio.to_thread(next, frames, None)) is not None:
            in_work.append((frame, asyncio.create_task(labeler.label(frame.image_HW3))))
            if len(in_work) >= _IN_FLIGHT:
                oldest, labelling = in_work.popleft()
                yield oldest, await labelling
        while in_work:
            oldest, labelling = in_work.popleft()
            yield oldest, await labelling
    finally:
        for _, labelling in in_work:
            labelling.cancel()
