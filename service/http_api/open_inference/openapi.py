"""The OpenAPI description of the infer routes, which are answered before the framework."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from service.http_api.open_inference.message import HEADER_LENGTH
from service.http_api.open_inference.metadata import PLAIN_ERROR_RESPONSE
from service.http_api.segment.routes import INFER_ROUTES

_OPERATIONS = ("infer_by_model", "infer_by_version")
_SUMMARIES = ("Infer with a model by name.", "Infer with one version of a model.")
_FILE = {"schema": {"type": "string", "format": "binary"}}


def _list(items: Mapping[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


def _object(*required: str, **properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_NAME = {"type": "string"}
_PARAMETERS = {"type": "object", "additionalProperties": True}
_TENSOR = _object(
    *("name", "shape", "datatype"),
    name=_NAME,
    shape=_list({"type": "integer"}),
    datatype=_NAME,
    parameters=_PARAMETERS,
    data=_list({}),
)
_REQUEST = _object(
    "inputs",
    id=_NAME,
    parameters=_PARAMETERS,
    inputs=_list(_TENSOR, minItems=1, maxItems=1),
    outputs=_list(_object("name", name=_NAME, parameters=_PARAMETERS)),
)
_RESPONSE = _object(
    *("model_name", "model_version", "outputs"),
    model_name=_NAME,
    model_version=_NAME,
    id=_NAME,
    outputs=_list(_TENSOR),
)


def describe_infer_routes(app: FastAPI) -> None:
    """Add the infer routes to the OpenAPI document of an application."""
    describe_others = app.openapi
    operations = {
        route: {"post": _operation(route, name, summary)}
        for route, name, summary in zip(INFER_ROUTES, _OPERATIONS, _SUMMARIES, strict=True)
    }

    def describe() -> dict[str, Any]:
        document = describe_others()
        return {**document, "paths": {**document["paths"], **operations}}

    app.openapi = describe  # type: ignore[method-assign] # FastAPI's documented way to extend it


def _operation(route: str, name: str, summary: str) -> dict[str, Any]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": _NAME}
        for name in re.findall(r"{(\w+)}", route)
    ]
    header = {
        "name": HEADER_LENGTH,
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "Bytes of JSON before binary tensors; 0: the body is one file.",
    }
    return {
        "tags": ["open inference protocol"],
        "operationId": name,
        "summary": summary,
        "description": "Input `image`: BYTES [N] (JPEG, PNG, WebP; base64 in JSON) or UINT8 [N, H, W, 3]. "
        "Outputs: `GET /v2/models/{model}` names them. Parameters: `timeout` in microseconds, `priority` (1: "
        "most urgent), `binary_data_output`.",
        "parameters": [*in_path, header],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _REQUEST}, "application/octet-stream": _FILE},
        },
        "responses": {
            "200": {
                "description": "The outputs; binary ones follow the JSON.",
                "content": {"application/json": {"schema": _RESPONSE}, "application/octet-stream": _FILE},
            },
            **PLAIN_ERROR_RESPONSE,
        },
    }
