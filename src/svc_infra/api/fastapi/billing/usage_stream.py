"""A stream of usage, one JSON event a line: read, checked and recorded a thousand lines at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from svc_infra.api.fastapi.billing.usage_intake import (
    Intake,
    Transactions,
    UsageIn,
    UsageResult,
    count,
    record_read,
)
from svc_infra.api.fastapi.middleware.errors.kinds import TOO_LARGE
from svc_infra.api.fastapi.middleware.errors.problem import Refusal
from svc_infra.api.fastapi.strict_json import parse_body
from svc_infra.billing.first_use import ready
from svc_infra.billing.usage import RecordedUsage
from svc_infra.billing.usage_limits import UsageLimits
from svc_infra.clock import Clock

CHUNK = 1_000
_MAX_LINE_BYTES = 512 * 1024
_MOST_ERRORS = 100
_LINES_AT_A_STRETCH = 100
_BEFORE_COLON = (b" :", b"\t:", b"\r:")
_PLAIN = frozenset((str, bool, int, type(None)))


class UsageStream:
    """Records one stream; a chunk is read and checked while the one before is being committed."""

    def __init__(self, tenant_id: str, sessions: Transactions, clock: Clock, limits: UsageLimits) -> None:
        self._tenant_id = tenant_id
        self._sessions = sessions
        self._clock = clock
        self._limits = limits
        self._counts: Counter[str] = Counter()
        self._errors: list[UsageResult] = []

    async def record(self, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
        """Record all lines; return how many became what, and the first 100 that were not recorded.

        Raises:
            Refusal: 413, a line is too long. What came before it is recorded.
        """
        first = 0
        committing: asyncio.Task[None] | None = None
        try:
            async for lines in _chunks(pieces):
                intake = await self._read(lines, first)
                if committing is not None:
                    await committing
                committing = asyncio.create_task(self._commit(intake))
                first += len(lines)
        finally:
            if committing is not None:
                await committing
        outcomes = ("inserted", "duplicate", "conflict", "invalid")
        return {"lines": first, "errors": self._errors, **{name: self._counts[name] for name in outcomes}}

    async def _read(self, lines: list[bytes], first: int) -> Intake:
        intake, now = Intake(), self._clock.now()
        for place, line in enumerate(lines, first):
            if not place % _LINES_AT_A_STRETCH:
                await asyncio.sleep(0)  # the commit under way goes on, and other requests
            intake.add(place, partial(_parse, line), self._tenant_id, now)
        return intake

    async def _commit(self, intake: Intake) -> None:
        def write(session: Session) -> list[RecordedUsage]:
            ready(session)
            return record_read(session, intake.read, now=self._clock.now(), limits=self._limits)

        async with self._sessions.begin() as session:
            recorded = await session.run_sync(write)
        intake.refuse(recorded)
        self._counts.update(count(intake, recorded))
        self._errors += intake.refused[: _MOST_ERRORS - len(self._errors)]


def _parse(line: bytes) -> UsageIn:
    """Read one event, as strictly as a body of its own.

    Raises:
        ValidationError: it is none.
    """
    quickly = read_quickly(line)
    if quickly is not None:
        return quickly
    try:
        value = parse_body(line)
    except ValueError:
        value = None  # which is no event either
    return UsageIn.model_validate(value)


def read_quickly(line: bytes) -> UsageIn | None:
    """Read an event by pydantic's own parser, in half the time; None where it may read it otherwise.

    It takes the last of names that stand twice, and numbers as the nearest double. So the names that it found
    are counted against the quotes before a colon: each name has one, and any further only makes them more.
    """
    try:
        usage = UsageIn.model_validate_json(line)
    except ValidationError:
        return None
    metadata = usage.metadata or {}
    if line.count(b'":') != len(usage.model_fields_set) + len(metadata):
        return None
    if any(space in line for space in _BEFORE_COLON) or not _PLAIN.issuperset(map(type, metadata.values())):
        return None
    return usage


async def _chunks(pieces: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Yield the stream's lines that are not blank, a thousand at a time."""
    pending, chunk = b"", list[bytes]()
    async for piece in pieces:
        *complete, pending = (pending + piece).split(b"\n")
        if len(pending) > _MAX_LINE_BYTES:
            raise Refusal(TOO_LARGE, f"A line has at most {_MAX_LINE_BYTES:,} bytes.")
        for line in complete:
            if line.strip():
                chunk.append(line)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    if pending.strip():
        chunk.append(pending)
    if chunk:
        yield chunk
