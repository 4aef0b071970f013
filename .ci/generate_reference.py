#!/usr/bin/env python3
"""Write ``docs/reference``: every setting, error code and metric, read from the code.

.ci/generate_reference.py [ROOT]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from service.core.errors import ServiceError
from service.grpc_api import status
from service.http_api import problems
from service.telemetry import Metrics

ROOT = Path(__file__).parents[1]
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
    return {"settings.md": settings_page(), "errors.md": errors_page(), "metrics.md": metrics_page()}


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
