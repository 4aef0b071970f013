"""Programs in other languages get the same masks: Node.js, and ``buf curl`` from the command line."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from grpc_site import GrpcSite, open_grpc_site
from http_site import encoded, picture_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONTRACT = ROOT / "proto" / "segmentation" / "v1" / "segmentation.proto"
BUF = Path(sys.executable).with_name("buf")
PICTURE = encoded(picture_of(np.tile(np.array([[0, 3]], np.uint8), (16, 16))))
INSTALL_S = 120


@pytest.fixture
async def site() -> AsyncIterator[GrpcSite]:
    async with open_grpc_site() as site:
        yield site


async def output_of(*command: str | Path, cwd: Path, timeout_s: float = INSTALL_S) -> tuple[int, bytes, str]:
    """Run a program beside the server, which lives in this event loop."""
    environment = os.environ | {"HOME": str(cwd)}
    program = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, complaints = await asyncio.wait_for(program.communicate(), timeout_s)
    assert program.returncode is not None
    return program.returncode, output, complaints.decode()


async def test_node_gets_the_same_mask_and_a_stream_in_order(site: GrpcSite, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    for name in ("segment.js", "package.json"):
        shutil.copy(HERE / name, tmp_path)
    code, _, complaints = await output_of("npm", "install", "--no-audit", "--no-fund", cwd=tmp_path)
    if code:
        pytest.skip(f"npm cannot install the client's packages: {complaints[-200:]}")
    (tmp_path / "picture.png").write_bytes(PICTURE)
    command = ("node", "segment.js", site.address, CONTRACT, "picture.png")
    code, output, complaints = await output_of(*command, cwd=tmp_path)
    assert code == 0, complaints
    answer = json.loads(output)
    over_http = await site.site.client.post("/v1/segment", content=PICTURE)
    assert base64.b64decode(answer["segment"]["png"]) == over_http.content
    assert (answer["segment"]["model"], answer["segment"]["width"]) == ("fake", 32)
    assert answer["stream"] == ["opened", 1, 2, 3]


@pytest.mark.skipif(not BUF.exists(), reason="buf is not installed")
@pytest.mark.parametrize("schema", ["--reflect", f"--schema={ROOT / 'proto'}"])
async def test_buf_curl_gets_the_same_mask_with_or_without_the_contract_at_hand(
    site: GrpcSite, tmp_path: Path, schema: str
) -> None:
    request = {"image": {"data": base64.b64encode(PICTURE).decode()}, "mask": "PNG"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    code, output, complaints = await output_of(
        BUF,
        "curl",
        schema,
        "--protocol=grpc",
        "--http2-prior-knowledge",
        "--data=@request.json",
        f"http://{site.address}/segmentation.v1.Segmentation/Segment",
        cwd=tmp_path,
    )
    assert code == 0, complaints
    over_http = await site.site.client.post("/v1/segment", content=PICTURE)
    assert base64.b64decode(json.loads(output)["mask"]["data"]) == over_http.content


@pytest.mark.skipif(not BUF.exists(), reason="buf is not installed")
async def test_buf_curl_is_told_what_was_wrong(site: GrpcSite, tmp_path: Path) -> None:
    code, _, complaints = await output_of(
        BUF,
        "curl",
        "--reflect",
        "--protocol=grpc",
        "--http2-prior-knowledge",
        "--data={}",
        f"http://{site.address}/segmentation.v1.Segmentation/Segment",
        cwd=tmp_path,
    )
    assert code != 0
    told = json.loads(complaints)
    assert (told["code"], told["message"]) == ("invalid_argument", "there is no picture")
