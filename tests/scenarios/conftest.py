"""What the scenarios share: a receiver in a process of its own, and worlds that send to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from svc_infra.simulation.receiver import ReceiverProcess
from svc_infra.webhooks.signature import as_standard, new_secret
from tests.scenarios.world import Endpoint, World

MakeWorld = Callable[..., Awaitable[World]]


@pytest.fixture(scope="session")
def endpoint() -> Iterator[Endpoint]:
    """A receiver that verifies; each world counts what it got since its own beginning."""
    secret, path = new_secret(), "/scenarios"
    with ReceiverProcess({path: as_standard(secret)}) as receiver:
        yield Endpoint(receiver, path, secret)


@pytest.fixture
async def make_world(endpoint: Endpoint, tmp_path: Path) -> AsyncIterator[MakeWorld]:
    """Make a world on the database of a URL."""
    made: list[World] = []

    async def make(database_url: str, *, tenants: int = 5, days: int = 4) -> World:
        world = await World.make(database_url, tmp_path, endpoint, tenants=tenants, days=days)
        made.append(world)
        return world

    yield make
    for world in made:
        await world.close()
