"""The public test kit: what an application needs to test its jobs, schedules and billing for real."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from svc_infra.testing.postgres import PostgresServer

if TYPE_CHECKING:
    from svc_infra.testing.clock import TestClock

__all__ = ["PostgresServer", "TestClock"]


def __getattr__(name: str) -> Any:
    # A worker's whole wiring comes with it, which a test that wants a server only should not wait for.
    if name != "TestClock":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from svc_infra.testing.clock import TestClock

    return TestClock
