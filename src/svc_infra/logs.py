"""Log lines: JSON for machines, readable on a terminal, always on standard error."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog

from svc_infra.exceptions import InvalidSettings

_LEVELS = ("debug", "info", "warning", "error")


class _StandardError:
    """Standard error for log lines: whole lines, and never an error of its own.

    Whoever reads the log may be gone; then the lines are lost, and the worker goes on, and stops when told.
    """

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def configure_logging(level: str = "info") -> None:
    """Configure structlog for this process. Libraries that log through ``logging`` are left alone.

    Raises:
        InvalidSettings: ``level`` is not debug, info, warning or error.
    """
    if level not in _LEVELS:
        raise InvalidSettings(f"log.level {level!r} is unknown; use one of {', '.join(_LEVELS)}")
    on_terminal = sys.stderr.isatty()
    renderer = (
        structlog.dev.ConsoleRenderer()
        if on_terminal
        else structlog.processors.JSONRenderer(separators=(",", ":"))
    )
    exceptions = [] if on_terminal else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _StandardError())),
        cache_logger_on_first_use=False,
    )
