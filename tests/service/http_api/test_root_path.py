"""Behind a path prefix, whether the proxy takes it off or leaves it on."""

from __future__ import annotations

from urllib.parse import urljoin

import numpy as np
import pytest
from http_site import encoded, open_site

from service.http_api.app import HttpOptions

PREFIXED = HttpOptions(root_path="/segmentation")


@pytest.mark.parametrize("prefix", ["", "/segmentation"])
async def test_every_path_is_answered_with_and_without_the_prefix(prefix: str) -> None:
    picture = encoded(np.zeros((16, 16, 3), np.uint8))
    async with open_site(options=PREFIXED) as site:
        assert (await site.client.get(f"{prefix}/readyz")).status_code == 200
        assert (await site.client.get(f"{prefix}/v1/models")).status_code == 200
        assert (await site.client.post(f"{prefix}/v1/segment", content=picture)).status_code == 200
        assert (await site.client.get(f"{prefix}/segmentation")).status_code == 404
        assert (await site.client.get("/segmentations/readyz")).status_code == 404


async def test_the_documents_lead_to_urls_with_the_prefix() -> None:
    async with open_site(options=PREFIXED) as site:
        page = (await site.client.get("/segmentation/docs")).text
        document = (await site.client.get("/segmentation/openapi.json")).json()
    assert 'href="openapi.json"' in page
    assert urljoin("http://proxy/segmentation/docs", "openapi.json").endswith("/segmentation/openapi.json")
    assert document["servers"] == [{"url": "/segmentation"}]


async def test_without_a_prefix_the_document_names_no_server() -> None:
    async with open_site() as site:
        assert "servers" not in (await site.client.get("/openapi.json")).json()
