"""Finishes from many jobs at once, written together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from svc_infra.db.transient import is_transient
from svc_infra.jobs.queue import Finish

_MOST = 500


class Completions:
    """Writes the finishes of jobs whose handlers had no transaction, as many as there are at a time.

    A finish alone is written at once. Those that come while a commit is under way wait for the next one, so
    that a commit carries more the busier the worker is. ``write`` returns the ids of the jobs that were still
    held; one of its errors that is not the database's passing trouble is met by writing each finish alone.
    """

    def __init__(self, write: Callable[[Sequence[Finish]], Awaitable[set[str]]]) -> None:
        self._write = write
        self._waiting: list[tuple[Finish, asyncio.Future[bool]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def finish(self, finish: Finish) -> bool:
        """Write ``finish`` and return, after the commit, whether the job was still held.

        A caller that is cancelled meanwhile does not take it back: the write goes on.

        Raises:
            Exception: it could not be written.
        """
        is_written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((finish, is_written))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_waiting())
        return await is_written

    async def settle(self) -> None:
        """Wait until nothing is being written any more."""
        while self._writer is not None:
            await asyncio.wait({self._writer})

    async def _write_waiting(self) -> None:
        try:
            while self._waiting:
                some, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                await self._write_some(some)
        finally:
            self._writer = None
            for _, is_written in self._waiting:
                is_written.cancel()

    async def _write_some(self, some: Sequence[tuple[Finish, asyncio.Future[bool]]]) -> None:
        (written,) = await asyncio.gather(self._write([finish for finish, _ in some]), return_exceptions=True)
        if isinstance(written, BaseException):
            if len(some) > 1 and not is_transient(written):
                for each in some:
                    await self._write_some([each])
                return
            for _, is_written in some:
                if not is_written.done():
                    is_written.set_exception(written)
            return
        for finish, is_written in some:
            if not is_written.done():
                is_written.set_result(finish.job.id in written)
