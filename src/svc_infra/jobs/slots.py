"""Who of those that wait in a worker runs next: tenants in turn, and one of them never holds everything."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

Key = str | None


class Slots:
    """``width`` things run at once, and ``head_room`` more of keys of which none runs.

    A free slot goes to the key of which the fewest run, and among equals to the one that has waited longest;
    within a key in the order of coming, those that are ``is_first`` before the others.
    """

    def __init__(self, width: int, *, head_room: int = 0) -> None:
        self.width = width
        self._head_room = head_room
        self._in_use = 0
        self._running: Counter[Key] = Counter()
        self._waiting: dict[Key, deque[asyncio.Future[None]]] = {}

    async def acquire(self, key: Key, *, is_first: bool = False) -> None:
        """Take a slot, once one is free for ``key``."""
        if self._waiting or not self._is_free(key):
            await self._wait(key, is_first)
        else:
            self._take(key)

    def release(self, key: Key) -> None:
        """Give back a slot that was taken for ``key``, and give it to who waits."""
        self._in_use -= 1
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        self._serve()

    async def _wait(self, key: Key, is_first: bool) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = self._waiting.setdefault(key, deque())
        line.appendleft(turn) if is_first else line.append(turn)
        # A key that comes anew may use the head room although others wait.
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(key)
            elif turn in line:
                line.remove(turn)
                if not line and self._waiting.get(key) is line:
                    del self._waiting[key]
            raise

    def _serve(self) -> None:
        """Give free slots to those that wait."""
        while self._waiting:
            key = min(self._waiting, key=self._running.__getitem__)
            if not self._is_free(key):
                return
            line = self._waiting.pop(key)
            turn = line.popleft()
            if line:
                # Behind the other keys that wait.
                self._waiting[key] = line
            if not turn.done():
                self._take(key)
                turn.set_result(None)

    def _is_free(self, key: Key) -> bool:
        room = self.width if self._running[key] else self.width + self._head_room
        return self._in_use < room

    def _take(self, key: Key) -> None:
        self._in_use += 1
        self._running[key] += 1
