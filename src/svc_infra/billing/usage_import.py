"""Importing a usage file by chunks: one transaction each, the next one parsed while one is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.billing.usage import RecordedUsage, record_many
from svc_infra.billing.usage_event import NewUsage
from svc_infra.billing.usage_file import UsageLine
from svc_infra.billing.usage_limits import NO_LIMITS, UsageLimits
from svc_infra.clock import Clock, SystemClock
from svc_infra.db.transient import is_contention
from svc_infra.exceptions import InvalidUsage

log = structlog.get_logger(__name__)

# Large, because SQLite writes each index page that a chunk touches once per chunk.
CHUNK_LINES = 20_000
_CHUNK_CHARACTERS = 8 * 1024 * 1024
# So many lines are parsed between two looks at the database, a few milliseconds' worth.
_SLICE_LINES = 250
_ATTEMPTS = 5
_CONFLICT = (
    "the idempotency key was used before with another payload; an event cannot be changed, use a new key"
)


@dataclass(slots=True)
class ImportCounts:
    """How far an import came. ``read`` counts records, so it is the sum of the other three."""

    read: int = 0
    inserted: int = 0
    duplicate: int = 0
    rejected: int = 0


class UsageImport:
    """One import of one file, safe to run again: what is recorded already counts as duplicate.

    Without ``on_rejected`` the first bad line ends it; with it bad lines are handed over, after the commit
    of the chunk they stand in and in the file's order, and the rest goes on. ``counts`` is what is
    committed, and ``on_chunk`` is called after every commit.
    """

    def __init__(
        self,
        session_factory: async_sessionmaker[AsyncSession],
        lines: Iterator[UsageLine],
        *,
        name: str,
        clock: Clock | None = None,
        limits: UsageLimits = NO_LIMITS,
        on_rejected: Callable[[UsageLine], None] | None = None,
        on_chunk: Callable[[ImportCounts], None] | None = None,
        chunk_lines: int = CHUNK_LINES,
    ) -> None:
        self.counts = ImportCounts()
        self._session_factory = session_factory
        self._lines = lines
        self._name = name
        self._clock = clock or SystemClock()
        self._limits = limits
        self._on_rejected = on_rejected
        self._on_chunk = on_chunk
        self._chunk_lines = chunk_lines

    async def run(self) -> ImportCounts:
        """Import everything and return the counts.

        Raises:
            InvalidUsage: a bad line, as ``name:line: reason``. Nothing of its chunk is written, the chunks
                before it are.
        """
        writing: asyncio.Task[None] | None = None
        try:
            while chunk := await self._next_chunk():
                if writing is not None:
                    await writing
                writing = asyncio.create_task(self._write(chunk))
        finally:
            # The chunk before a bad line stays, and what is wrong with it comes first.
            if writing is not None:
                await writing
        return self.counts

    async def _next_chunk(self) -> list[UsageLine]:
        chunk: list[UsageLine] = []
        characters = 0
        for line in self._lines:
            if line.event is None and self._on_rejected is None:
                raise self._bad(line, line.reason)
            chunk.append(line)
            characters += len(line.raw)
            if len(chunk) >= self._chunk_lines or characters >= _CHUNK_CHARACTERS:
                break
            if len(chunk) % _SLICE_LINES == 0:
                await asyncio.sleep(0)
        return chunk

    async def _write(self, chunk: list[UsageLine]) -> None:
        events = [line.event for line in chunk if line.event is not None]
        recorded = iter(await self._record(chunk, events))
        for line in chunk:
            usage = next(recorded) if line.event is not None else None
            if usage is not None and usage.outcome == "inserted":
                self.counts.inserted += 1
            elif usage is not None and usage.outcome == "duplicate":
                self.counts.duplicate += 1
            else:
                self.counts.rejected += 1
                assert self._on_rejected is not None
                self._on_rejected(
                    line if usage is None else line._replace(event=None, reason=usage.reason or _CONFLICT)
                )
        self.counts.read += len(chunk)
        if self._on_chunk is not None:
            self._on_chunk(self.counts)

    async def _record(self, chunk: list[UsageLine], events: list[NewUsage]) -> Sequence[RecordedUsage]:
        """Record a chunk, again if another transaction was in the way."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._session_factory.begin() as session:
                    recorded = await session.run_sync(
                        record_many, events, now=self._clock.now(), limits=self._limits
                    )
                    if self._on_rejected is None:
                        self._refuse_refused(chunk, recorded)
                return recorded
            except DBAPIError as error:
                if attempt == _ATTEMPTS or not is_contention(error):
                    raise
                log.warning("usage_import.repeated", file=self._name, line=chunk[0].number, attempt=attempt)
        raise AssertionError("the last attempt returns or raises")

    def _refuse_refused(self, chunk: list[UsageLine], recorded: Sequence[RecordedUsage]) -> None:
        for line, usage in zip(chunk, recorded, strict=True):
            if usage.outcome in ("conflict", "rejected"):
                raise self._bad(line, usage.reason or _CONFLICT)

    def _bad(self, line: UsageLine, reason: str) -> InvalidUsage:
        return InvalidUsage(f"{self._name}:{line.number}: {reason}")
