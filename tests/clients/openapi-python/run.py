"""A client that openapi-python-client generates of the service's OpenAPI document."""

import importlib
import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

URL = os.environ["CLIENTS_URL"]
PICTURE = Path(os.environ["CLIENTS_PICTURE"]).read_bytes()
PACKAGE = "generated_client"


def generate() -> None:
    """Write the package into the working folder."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    command = ["openapi-python-client", "generate", "--url", f"{URL}/openapi.json", "--meta", "none"]
    subprocess.run([*command, "--output-path", PACKAGE], check=True, stdout=subprocess.DEVNULL)
    sys.path.insert(0, str(Path.cwd()))


def part(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")


def main() -> None:
    generate()
    client = part("client").Client(base_url=URL, headers={"Accept": "application/json"})
    (model,) = part("api.models.list_models").sync(client=client).models
    assert model.name == os.environ["CLIENTS_MODEL"]
    assert part("api.health.ready").sync(client=client).status == "ready"

    file = part("types").File
    answer = part("api.segmentation.segment").sync(
        client=client,
        body=file(BytesIO(PICTURE)),
        confidence=part("models.segment_confidence").SegmentConfidence.MEAN,
        mask=part("models.segment_mask").SegmentMask.COCO_RLE,
    )
    assert (answer.width, answer.height) == (640, 360), answer
    shares = {share.name: share for share in answer.classes}
    assert shares["road"].pixels > 0
    assert 0 < shares["road"].confidence <= 1

    segments = part("api.segmentation.segment_for_hugging_face").sync(
        os.environ["CLIENTS_MODEL"], client=client, body=file(BytesIO(PICTURE))
    )
    assert "road" in {one.label for one in segments}

    refused = part("api.segmentation.segment_by_model").sync_detailed(
        "none", client=client, body=file(BytesIO(PICTURE))
    )
    assert refused.status_code == 404, refused


main()
