"""How the service speaks about itself: structured log lines on stderr."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Literal

import structlog
from structlog.typing import Processor

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LEVELS: dict[LogLevel, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


@dataclass(frozen=True)
class LogOptions:
    """What is logged, and how.

    Args:
        level: lines below it are dropped.
        format: ``auto`` writes JSON unless stderr is a terminal.
    """

    level: LogLevel = "info"
    format: LogFormat = "auto"


def configure_logging(options: LogOptions) -> None:
    """Send every log line, the libraries' too, to stderr: one line of JSON each, or coloured text."""
    as_json = options.format == "json" or (options.format == "auto" and not sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_json_lines() if as_json else _coloured_lines()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[options.level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_Forwarder()], force=True)
    # One line for each malformed form would let a client fill the disk; the request's own line says it.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


# Both would print the local variables of a traceback: pictures and keys.


def _json_lines() -> tuple[Processor, ...]:
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()


def _coloured_lines() -> tuple[Processor, ...]:
    return (structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),)


class _Forwarder(logging.Handler):
    """Turns a library's record into a structured line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record at its own level, under its own name."""
        logger = structlog.get_logger().bind(library=record.name)
        logger.log(record.levelno, record.getMessage(), exc_info=record.exc_info)
