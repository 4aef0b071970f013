"""The OpenAPI description of the segment routes, which are answered before the framework."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI

from service.http_api.documents import SegmentationDocument
from service.http_api.foundation import ERROR_RESPONSE
from service.http_api.segment.form import FILE_FIELD
from service.http_api.segment.negotiation import JPEG, JSON, NPY, PNG, RAW
from service.http_api.segment.parameters import SegmentQuery
from service.http_api.segment.picture_body import JSON_KEY
from service.http_api.segment.routes import ROUTES

_SCHEMAS = "#/components/schemas/"
_SUMMARIES = (
    "Segment a picture with the default model.",
    "Segment a picture with a model by name.",
    "Segment a picture with one version of a model.",
)
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "content": {
        "image/jpeg": _PICTURE,
        "image/png": _PICTURE,
        "image/webp": _PICTURE,
        JSON: {
            "schema": {
                "type": "object",
                "required": [JSON_KEY],
                "properties": {
                    JSON_KEY: {"type": "string", "description": "The file as base64, or a data URL."}
                },
                "additionalProperties": False,
            }
        },
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FILE_FIELD],
                "properties": {FILE_FIELD: _PICTURE["schema"]},
            }
        },
    },
}
_ANSWER = {
    "description": "The mask in the form that Accept asks for; PNG without Accept. "
    "Headers: X-Model-Name, X-Model-Version, Server-Timing; X-Inference-Size (height x width) when the "
    "picture was reduced before the network; X-Image-Width and X-Image-Height for arrays.",
    "content": {
        JSON: {"schema": {"$ref": f"{_SCHEMAS}{SegmentationDocument.__name__}"}},
        PNG: _PICTURE,
        JPEG: _PICTURE,
        NPY: _PICTURE,
        RAW: _PICTURE,
    },
}


def describe_segment_routes(app: FastAPI) -> None:
    """Add the segment routes to the OpenAPI document of an application."""
    describe_others = app.openapi
    operations = {
        route: {"post": _operation(route, summary)} for route, summary in zip(ROUTES, _SUMMARIES, strict=True)
    }
    schemas = _schemas()

    def describe() -> dict[str, Any]:
        document = describe_others()
        others = document.get("components", {}).get("schemas", {})
        return {
            **document,
            "paths": {**operations, **document["paths"]},
            "components": {"schemas": {**schemas, **others}},
        }

    app.openapi = describe  # type: ignore[method-assign] # FastAPI's documented way to extend it


def _operation(route: str, summary: str) -> dict[str, Any]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route)
    ]
    in_query = [
        {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
        for name, schema in SegmentQuery.model_json_schema()["properties"].items()
    ]
    return {
        "tags": ["segmentation"],
        "summary": summary,
        "description": summary,
        "parameters": [*in_path, *in_query],
        "requestBody": _BODY,
        "responses": {"200": _ANSWER, **ERROR_RESPONSE},
    }


def _schemas() -> dict[str, Any]:
    schema = SegmentationDocument.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    return {**schema.pop("$defs", {}), SegmentationDocument.__name__: schema}
