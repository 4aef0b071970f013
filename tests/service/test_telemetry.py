"""Log lines: one each, structured, and silent about what users sent."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from service.telemetry import LogFormat, LogOptions, configure_logging


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_one_json_object_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogOptions())
    structlog.get_logger().info("a phrase", number=1, text="two\nlines")
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["number"], line["text"]) == (
        "a phrase",
        "info",
        1,
        "two\nlines",
    )
    assert line["timestamp"].endswith("Z")


def test_lines_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogOptions(level="warning"))
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_what_libraries_log_becomes_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogOptions())
    logging.getLogger("some.library").warning("it is %s", "odd")
    logging.getLogger("some.library").info("chatter")
    (line,) = lines(capsys)
    assert (line["event"], line["library"], line["level"]) == ("it is odd", "some.library", "warning")


def test_malformed_forms_do_not_fill_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogOptions())
    logging.getLogger("python_multipart.multipart").warning("Did not find CR")
    assert lines(capsys) == []


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_local_variables(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(LogOptions(format=log_format))
    picture = b"pixels".hex()
    try:
        int(f"no number {len(picture)}")
    except ValueError:
        structlog.get_logger().exception("failed")
    text = capsys.readouterr().err
    assert "no number 12" in text
    assert picture not in text
