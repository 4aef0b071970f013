"""``/docs``: the OpenAPI document as one static page, without scripts and without a network."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Mapping
from textwrap import dedent
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; font-size: 1.1rem } code, pre { font-family: ui-monospace, monospace }
pre { background: #f4f4f2; padding: .8rem; overflow-x: auto } b { color: #0a5 }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .8rem .3rem 0;
vertical-align: top; border-bottom: 1px solid #ddd } td:first-child { white-space: nowrap }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": "; ".join(
        ("default-src 'none'", f"style-src 'sha256-{_STYLE_HASH}'", "frame-ancestors 'none'")
    ),
    "X-Content-Type-Options": "nosniff",
}


def add_docs(app: FastAPI) -> None:
    """Serve the OpenAPI document of an application as a page at ``/docs``."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()), headers=_HEADERS)


def docs_page(openapi: Mapping[str, Any]) -> str:
    """Render an OpenAPI document for people.

    Args:
        openapi: as FastAPI makes it; all of its text is escaped.
    """
    info = openapi["info"]
    operations = [
        line
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
        for line in _operation(method.upper(), path, operation)
    ]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><meta charset="utf-8"><title>{_text(info["title"])}</title>',
            f"<style>{_STYLE}</style>",
            f"<h1>{_text(info['title'])} {_text(info['version'])}</h1>",
            *_paragraphs(info.get("description", "")),
            '<p>For programs: <a href="openapi.json">openapi.json</a></p>',
            *operations,
            "</html>",
        ]
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><b>{method}</b> <code>{_text(path)}</code></h2>"
    yield from _paragraphs(operation.get("description", ""))
    if parameters := operation.get("parameters", []):
        yield from _table("Parameter", "Meaning", [_parameter(p) for p in parameters])
    if body := operation.get("requestBody", {}).get("content", {}):
        yield f"<p>Body: {_codes(body)}</p>"
    answers = [(status, _answer(answer)) for status, answer in operation["responses"].items()]
    yield from _table("Status", "Answer", answers)


def _parameter(parameter: Mapping[str, Any]) -> tuple[str, str]:
    schema = parameter.get("schema", {})
    default = f" Default: {schema['default']}." if schema.get("default") not in (None, []) else ""
    return f"{parameter['name']} ({parameter['in']})", _text(parameter.get("description", "") + default)


def _answer(answer: Mapping[str, Any]) -> str:
    return f"{_text(answer['description'])} {_codes(answer.get('content', {}))}"


def _table(first: str, second: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    yield f"<table><tr><th>{first}<th>{second}"
    for name, meaning in rows:
        yield f"<tr><td><code>{_text(name)}</code><td>{meaning}"
    yield "</table>"


def _paragraphs(text: str) -> list[str]:
    return [_block(block) for block in text.split("\n\n") if block.strip()]


def _block(text: str) -> str:
    is_code = text.lstrip("\n").startswith("    ")
    return f"<pre>{_text(dedent(text))}</pre>" if is_code else f"<p>{_text(text)}</p>"


def _codes(names: Mapping[str, Any]) -> str:
    return ", ".join(f"<code>{_text(name)}</code>" for name in names)


def _text(text: object) -> str:
    return html.escape(str(text))
