"""The one supervised loop: it steps, waits and wakes, and no error of a step ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import structlog

log = structlog.get_logger(__name__)

_FIRST_BACKOFF_SECONDS = 0.25
_LONGEST_BACKOFF_SECONDS = 30.0


async def run_loop(
    name: str,
    step: Callable[[], Awaitable[bool]],
    *,
    stop: asyncio.Event,
    wake: asyncio.Event | None = None,
    poll_seconds: float = 1.0,
    rng: Random | None = None,
) -> None:
    """Call ``step`` until ``stop`` is set.

    After True it is called again at once, after False when ``wake`` is set or about ``poll_seconds`` (with
    jitter, so that many workers do not poll together) have passed. After an error it waits longer each time,
    from a quarter of a second to half a minute, so that a database that is away is neither given up nor
    hammered. A step is never interrupted by ``stop``.
    """
    rng = rng or Random()
    wake = wake or asyncio.Event()
    failures = 0
    while not stop.is_set():
        wake.clear()
        try:
            has_more = await step()
        except Exception as error:
            failures += 1
            delay = min(_FIRST_BACKOFF_SECONDS * 2 ** (failures - 1), _LONGEST_BACKOFF_SECONDS)
            delay *= 0.5 + rng.random()
            log.warning("loop.failed", loop=name, error=repr(error)[:300], retry_in_seconds=round(delay, 2))
            # Not woken early: a loop that others keep waking would hammer a database that is away.
            await wait_any(stop, timeout_seconds=delay)
            continue
        if failures:
            log.info("loop.recovered", loop=name, failures=failures)
            failures = 0
        if has_more:
            await asyncio.sleep(0)
        else:
            await wait_any(stop, wake, timeout_seconds=poll_seconds * (0.75 + rng.random() / 2))


async def wait_any(*events: asyncio.Event, timeout_seconds: float) -> bool:
    """Wait until one of ``events`` is set; False if ``timeout_seconds`` passed first."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()
