from __future__ import annotations

from fakes import FAKE_MANIFEST
from http_site import open_site

from model.artifacts.manifest import ModelVersion
from service.core.device.engine import EngineChoice, EngineInfo
from service.core.models.loaded_model import LoadedModel
from service.http_api.documents import engine_document, model_document


async def test_a_served_version_says_what_was_timed_before_its_engine_was_chosen() -> None:
    choice = (EngineChoice("int8", 2, 4, 128.0), EngineChoice("f32", 1, 4, 227.0))
    engine = EngineInfo("openvino", "cpu", "int8")
    async with open_site() as site:
        dispatcher = site.host.models[0].dispatcher
    served = LoadedModel(ModelVersion("city", 2), FAKE_MANIFEST, engine, dispatcher, choice)
    wanted = [
        {"precision": "int8", "streams": 2, "threads": 4, "latency_ms": 128.0},
        {"precision": "f32", "streams": 1, "threads": 4, "latency_ms": 227.0},
    ]
    assert engine_document(served).model_dump()["choice"] == wanted
    assert model_document(served, default=True, scores=()).model_dump()["choice"] == wanted
