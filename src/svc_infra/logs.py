"""Log lines: JSON for machines, readable on a terminal, always on standard error."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any, TextIO, cast

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


def is_written(level: int) -> bool:
    """Whether lines of ``level`` are written: somebody configured logging, and for no higher level.

    It is for lines of which there are many: to make one and have it dropped costs 50 times as much as to ask.
    """
    return structlog.is_configured() and _is_enabled(structlog.get_config()["wrapper_class"], level)


@lru_cache(maxsize=16)
def _is_enabled(wrapper_class: type[Any], level: int) -> bool:
    is_enabled_for = getattr(wrapper_class(None, [], {}), "is_enabled_for", None)
    return is_enabled_for is None or bool(is_enabled_for(level))


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
