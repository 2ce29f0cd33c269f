"""One check of ``doctor``: what came out of it."""

from __future__ import annotations

from dataclasses import dataclass

OK, FAILED, SKIPPED, WARNING = "ok", "failed", "skipped", "warning"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what came out, and for a failed one or a warning what to do."""

    name: str
    outcome: str
    detail: str


def first_line(error: BaseException) -> str:
    """Say an error in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
