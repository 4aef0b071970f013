"""The OpenAPI description of the segment routes, which are answered before the framework."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from fastapi import FastAPI

from service.http_api.documents import HuggingFaceSegment, SegmentationDocument
from service.http_api.foundation import ERROR_RESPONSE
from service.http_api.segment.form import FILE_FIELD
from service.http_api.segment.hugging_face import FILE_KEY, PARAMETERS_KEY, MaskParameters
from service.http_api.segment.negotiation import JPEG, JSON, NPY, PNG, RAW
from service.http_api.segment.parameters import SegmentQuery
from service.http_api.segment.picture_body import JSON_KEY
from service.http_api.segment.routes import HUGGING_FACE_ROUTES, NATIVE_ROUTES

_SCHEMAS = "#/components/schemas/"
_SUMMARIES = (
    "Segment a picture with the default model.",
    "Segment a picture with a model by name.",
    "Segment a picture with one version of a model.",
)
_OPERATIONS = ("segment", "segment_by_model", "segment_by_version")
_PROBLEM = ERROR_RESPONSE["default"]["content"]
_ERRORS = {
    "429": {"description": "The queue is full, or the answer would come too late.", "content": _PROBLEM},
    "503": {"description": "The service cannot take the picture now.", "content": _PROBLEM},
    "504": {"description": "The deadline of the request passed.", "content": _PROBLEM},
    **ERROR_RESPONSE,
}
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_FILES = dict.fromkeys(("image/jpeg", "image/png", "image/webp", RAW), _PICTURE)
"""The Content-Type is not looked at: generators that know no pictures offer the last one."""

_BODY = {
    "required": True,
    "content": {
        **_FILES,
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
    native = {
        route: {"post": _operation(route, name, summary)}
        for route, name, summary in zip(NATIVE_ROUTES, _OPERATIONS, _SUMMARIES, strict=True)
    }
    operations = {**native, HUGGING_FACE_ROUTES[0]: {"post": _hugging_face_operation(HUGGING_FACE_ROUTES[0])}}
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


def _path_parameters(route: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route)
    ]


def _query_parameters(names: Collection[str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "description": schema.pop("description"), "schema": schema}
        for name, schema in SegmentQuery.model_json_schema()["properties"].items()
        if name in names
    ]


def _hugging_face_operation(route: str) -> dict[str, Any]:
    summary = "Segment a picture as Hugging Face's image-segmentation task."
    element = {"$ref": f"{_SCHEMAS}{HuggingFaceSegment.__name__}"}
    document = {
        "type": "object",
        "required": [FILE_KEY],
        "properties": {
            FILE_KEY: {"type": "string", "description": "The file as base64, or a data URL."},
            PARAMETERS_KEY: {"$ref": f"{_SCHEMAS}{MaskParameters.__name__}"},
        },
        "additionalProperties": False,
    }
    return {
        "tags": ["segmentation"],
        "operationId": "segment_for_hugging_face",
        "summary": summary,
        "description": summary,
        "parameters": [*_path_parameters(route), *_query_parameters(["timeout_ms"])],
        "requestBody": {"required": True, "content": {**_FILES, JSON: {"schema": document}}},
        "responses": {
            "200": {
                "description": "One mask for each class that occurs.",
                "content": {JSON: {"schema": {"type": "array", "items": element}}},
            },
            **_ERRORS,
        },
    }


def _operation(route: str, name: str, summary: str) -> dict[str, Any]:
    return {
        "tags": ["segmentation"],
        "operationId": name,
        "summary": summary,
        "description": summary,
        "parameters": [*_path_parameters(route), *_query_parameters(SegmentQuery.model_fields)],
        "requestBody": _BODY,
        "responses": {"200": _ANSWER, **_ERRORS},
    }


def _schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    for document in (SegmentationDocument, HuggingFaceSegment, MaskParameters):
        schema = document.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
        schemas |= {**schema.pop("$defs", {}), document.__name__: schema}
    return schemas
