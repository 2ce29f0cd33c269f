"""With the settings as they come, the jobs of a killed worker run again within 45 seconds."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from svc_infra.config import Settings
from svc_infra.db.session import make_engine
from svc_infra.jobs import loop
from svc_infra.runtime import Runtime
from svc_infra.testing.webhooks import loopback_sender

PROMISED_SECONDS = 45.0


class _Latest(Random):
    """Jitter at its worst."""

    def random(self) -> float:
        return 1.0


async def test_lease_rescue_and_poll_take_no_longer_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine("sqlite+aiosqlite:///:memory:")
    sender = loopback_sender()
    runtime = Runtime(Settings(), engine, sender)
    worker = runtime.worker
    (lookout,) = runtime._lookouts
    rescue_seconds = await longest_wait(worker._maintenance._rescue_seconds, monkeypatch)
    look_seconds = await longest_wait(lookout._poll_seconds, monkeypatch)
    poll_seconds = await longest_wait(worker._poll_seconds, monkeypatch)
    # The heartbeat may have extended the lease just before the kill, the rescue may have looked just before
    # the lease ran out, and the lookout just before the rescue.
    rescued_seconds = worker._claimer._lease_seconds + rescue_seconds
    assert rescued_seconds + look_seconds <= PROMISED_SECONDS - 5, "and some slack"
    assert rescued_seconds + poll_seconds <= PROMISED_SECONDS, "and without the lookout"
    await sender.aclose()
    await engine.dispose()


async def longest_wait(poll_seconds: float, monkeypatch: pytest.MonkeyPatch) -> float:
    """How long the supervised loop waits at most between two steps that found nothing."""
    stop, waits = asyncio.Event(), []

    async def note(*_events: asyncio.Event, timeout_seconds: float) -> bool:
        waits.append(timeout_seconds)
        stop.set()
        return False

    async def nothing() -> bool:
        return False

    with monkeypatch.context() as patch:
        patch.setattr(loop, "wait_any", note)
        await loop.run_loop("x", nothing, stop=stop, poll_seconds=poll_seconds, rng=_Latest())
    (longest,) = waits
    assert longest >= poll_seconds
    return longest
