"""``bisenet predict --tile`` labels as the service does with ``detail=full``."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from fakes import FakeEngine
from http_site import encoded, open_site, picture_of
from PIL import Image

from service.cli.labelers import TileLabeler
from service.core.device.engine import DeviceMemoryError, Float32Array, ImageBatch
from service.core.errors import BusyError
from service.core.pictures.passes import tile_protocol
from service.core.pictures.picture_labeler import PictureLabeler
from service.core.pictures.segmenter import Segmenter

IDS_HW = np.random.default_rng(5).integers(0, 4, (140, 9), np.uint8).repeat(8, 0).repeat(24, 1)
IMAGE_HW3 = picture_of(IDS_HW)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def test_tiles_of_1024_give_the_mask_of_the_service_bit_for_bit(pool: ThreadPoolExecutor) -> None:
    async with open_site() as site:
        labeler = PictureLabeler(Segmenter(pool), site.host.find(), tiles=tile_protocol(1024, None))
        labelled = await labeler.label(IMAGE_HW3)
        response = await site.client.post("/v1/segment?output=labels&detail=full", content=encoded(IMAGE_HW3))
        served_HW = np.asarray(Image.open(BytesIO(response.content)))
        assert np.array_equal(labelled.label_map.ids_HW, served_HW)
        assert labelled.inference_size.shape == IDS_HW.shape
        assert set(labelled.timings_ms) == {"decode", "preprocess", "queue", "infer", "post"}


async def test_a_tile_that_does_not_fit_into_memory_is_told_with_the_way_out(
    pool: ThreadPoolExecutor,
) -> None:
    def too_large(_: ImageBatch) -> Float32Array:
        raise DeviceMemoryError("out of memory")

    async with open_site(FakeEngine(answer=too_large)) as site:
        labeler = TileLabeler(
            PictureLabeler(Segmenter(pool), site.host.find(), tiles=tile_protocol(64, None))
        )
        with pytest.raises(BusyError, match="choose a smaller --tile"):
            await labeler.label(IMAGE_HW3)
