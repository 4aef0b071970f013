#!/usr/bin/env python3
"""Write ``docs/reference``: every setting, error code, metric, public name and guarantee, read from the code.

.ci/generate_reference.py [ROOT]
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from service.core.errors import ServiceError
from service.grpc_api import status
from service.http_api import problems
from service.telemetry import Metrics

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
import guarantees  # noqa: E402 - the tests are no package

PUBLIC_MODULES = {
    "Calling a service": (
        "service.client.http_client",
        "service.client.grpc_client",
        "service.client.reconnecting_stream",
        "service.client.cameras",
        "service.client.answers",
        "service.client.errors",
    ),
    "Reading models, pictures and labels": (
        "model.artifacts.registry",
        "model.artifacts.artifact",
        "model.artifacts.manifest",
        "model.labels",
        "model.pictures.image",
        "model.pictures.preprocess",
        "model.datasets.dataset",
    ),
    "Scoring": (
        "model.evaluation.metrics",
        "model.evaluation.intervals",
        "model.evaluation.protocols",
        "model.evaluation.evaluation",
    ),
}
"""Modules whose ``__all__`` is the public interface, by the headings of their page."""

_NOTE = "<!-- Written by .ci/generate_reference.py (make reference); do not edit. -->"


def main() -> None:
    """Write the pages."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    folder = root / "docs/reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, "utf-8")


def pages() -> dict[str, str]:
    """Return the text of each page under its file name."""
    return {
        "settings.md": settings_page(),
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
        "python-api.md": python_api_page(),
        "guarantees.md": guarantees.page(_NOTE),
    }


def settings_page() -> str:
    """Return a table for each section of ``docs/bisenet.toml``, which a test compares with the code."""
    lines = [
        "# Settings",
        "",
        _NOTE,
        "",
        "A configuration file (`bisenet serve --config FILE.toml`) sets `key = value` below `[section]`.",
        "The environment variable `BISENET_<SECTION>__<KEY>` wins over the file, and a flag over both.",
        "An unknown key is an error.",
    ]
    for line in (ROOT / "docs/bisenet.toml").read_text("utf-8").splitlines():
        if section := re.fullmatch(r"\[([\w.]+)\](?: *#.*)?", line):
            lines += ["", f"## {section[1]}", "", "| key | default | meaning |", "| --- | --- | --- |"]
        elif entry := re.fullmatch(r"(#?)(\w+) = (.*?)\s*(?:#\s*(.*))?", line):
            default = "" if entry[1] else f"`{_cell(entry[3])}`"
            lines.append(f"| `{entry[2]}` | {default} | {_cell(entry[4] or '')} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Return a table of error codes with the status of each protocol."""
    lines = [
        "# Error codes",
        "",
        _NOTE,
        "",
        "HTTP answers carry the code in an `application/problem+json` body (`code`, `request_id`).",
        "gRPC statuses carry it as the `reason` of `google.rpc.ErrorInfo`.",
        "",
        "| code | HTTP | gRPC | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for code, error in sorted({error.code: error for error in _concrete(ServiceError)}.items()):
        http = problems.STATUS_OF_CODE[code].value
        grpc_code = status.STATUS_OF_CODE[code].name
        lines.append(f"| `{code}` | {http} | {grpc_code} | {_first_line(error)} |")
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Return a table of all metrics."""
    lines = [
        "# Metrics",
        "",
        _NOTE,
        "",
        "`GET /metrics` on the admin port, with the scrape token, in Prometheus' text format or OpenMetrics.",
        "",
        "| metric | type | labels | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for metric in Metrics().descriptions():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {_cell(metric.meaning)} |")
    return "\n".join(lines) + "\n"


def python_api_page() -> str:
    """Return a table of the public names of each public module."""
    lines = [
        "# Python interface",
        "",
        _NOTE,
        "",
        "These names stay within a major version. The changelog announces a removal a minor version ahead.",
        "Every other name may change with any version. Docstrings state shapes, types, units and errors:",
        "`python -m pydoc service.client.http_client`.",
    ]
    for heading, modules in PUBLIC_MODULES.items():
        lines += ["", f"## {heading}"]
        for module in modules:
            lines += ["", f"### `{module}`", "", "| name | meaning |", "| --- | --- |"]
            public = importlib.import_module(module)
            lines += [f"| `{name}` | {_cell(_meaning(public, name))} |" for name in public.__all__]
    return "\n".join(lines) + "\n"


def _meaning(module: ModuleType, name: str) -> str:
    """Return the first paragraph of the docstring of a class, a function or an alias of a module."""
    thing = getattr(module, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        text = inspect.getdoc(thing) or ""
    else:
        text = _text_below(ast.parse(inspect.getsource(module)).body, name)
    return " ".join(text.partition("\n\n")[0].split())


def _text_below(statements: Sequence[ast.stmt], name: str) -> str:
    """Return the string that stands below the assignment of a name; empty if there is none."""
    for statement, following in itertools.pairwise(statements):
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    return text
    return ""


def _concrete(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for child in kind.__subclasses__():
        if "code" in vars(child):
            yield child
        yield from _concrete(child)


def _first_line(kind: type[ServiceError]) -> str:
    return _cell((kind.__doc__ or "").strip().splitlines()[0])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
