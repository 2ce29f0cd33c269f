"""Slots: a free one goes to the key of which the fewest run."""

from __future__ import annotations

import asyncio

from svc_infra.jobs.slots import Slots


class Room:
    """Runs things in slots and notes the order in which they start."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.started: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str, is_first: bool = False) -> None:
        """Let things come; the letter before the number is the key."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._run(name, is_first))
        await self._settle()

    async def go(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await self._settle()

    async def give_up(self, name: str) -> None:
        self._tasks[name].cancel()
        await self._settle()

    async def _run(self, name: str, is_first: bool) -> None:
        await self.slots.acquire(name[0], is_first=is_first)
        try:
            self.started.append(name)
            await self._ends[name].wait()
        finally:
            self.slots.release(name[0])

    async def _settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_key_that_comes_later_is_served_before_the_many_of_another() -> None:
    room = Room(Slots(2))
    await room.come("a1", "a2", "a3", "a4", "b1", "b2")
    await room.go("a1", "a2", "b1", "a3")
    assert room.started == ["a1", "a2", "b1", "a3", "b2", "a4"]


async def test_head_room_is_for_keys_of_which_none_runs() -> None:
    room = Room(Slots(2, head_room=1))
    await room.come("a1", "a2", "a3", "b1", "b2", "c1")
    assert room.started == ["a1", "a2", "b1"]
    await room.go("a1")
    assert room.started[3:] == ["c1"], "a third one of a or a second of b would leave no head room"
    await room.go("a2", "b1")
    assert room.started[4:] == ["a3", "b2"]


async def test_one_key_alone_has_all_slots_in_the_order_of_coming_and_the_first_before() -> None:
    room = Room(Slots(2))
    await room.come("a1", "a2", "a3", "a4")
    await room.come("a9", is_first=True)
    await room.go("a1", "a2", "a9")
    assert room.started == ["a1", "a2", "a9", "a3", "a4"]


async def test_whoever_gives_up_waiting_takes_no_slot() -> None:
    room = Room(Slots(1))
    await room.come("a1", "b1", "b2")
    await room.give_up("b1")
    await room.go("a1")
    assert room.started == ["a1", "b2"]
    await room.go("b2")
    await room.come("c1")
    assert room.started[2:] == ["c1"]
