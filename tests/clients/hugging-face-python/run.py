"""huggingface_hub's InferenceClient: bytes, path and URL; parameters; errors."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

MODEL = os.environ["CLIENTS_MODEL"]
PICTURE = Path(os.environ["CLIENTS_PICTURE"])
URL = f"{os.environ['CLIENTS_URL']}/hf/{MODEL}"

client = InferenceClient(model=URL, token="unused")


def refusal(image: bytes | Path, url: str = URL, **parameters: Any) -> tuple[int, str]:
    """Return the text of the error that the client raises."""
    try:
        InferenceClient(model=url, token="unused").image_segmentation(image, **parameters)
    except HfHubHTTPError as error:
        return error.response.status_code, str(error)
    raise AssertionError("nothing was refused")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def main() -> None:
    answer = client.image_segmentation(PICTURE.read_bytes())
    assert {one.label for one in answer} >= {"road", "building"}, answer
    assert all(one.mask.mode == "L" and one.mask.size == (640, 360) for one in answer)
    assert all(0 < one.score <= 1 for one in answer)
    pixels = sum(one.mask.histogram()[255] for one in answer)
    assert pixels == 640 * 360, pixels  # each pixel has one class

    scores = [one.score for one in answer]
    assert [one.score for one in client.image_segmentation(str(PICTURE))] == scores
    assert [one.score for one in client.image_segmentation(PICTURE)] == scores
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=PICTURE.parent)) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}/{PICTURE.name}"
        assert [one.score for one in client.image_segmentation(url)] == scores
        site.shutdown()

    sure = client.image_segmentation(PICTURE, threshold=0.9, mask_threshold=0.5, subtask="semantic")
    assert {one.label for one in sure} < {one.label for one in answer}
    assert all(one.score >= 0.9 for one in sure)

    status, text = refusal(b"no picture at all, but a text")
    assert status == 415, text
    assert "JPEG, PNG or WebP" in text or "picture" in text, text
    status, text = refusal(PICTURE, subtask="panoptic")
    assert (status, "semantic: one mask for each class" in text) == (400, True), text
    status, text = refusal(PICTURE, url=URL.replace(MODEL, "none"))
    assert (status, "none" in text) == (404, True), text


main()
