"""``worker.py api`` as a process: it serves with keys, and stops without losing what it accepted."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from svc_infra.api.keys import create_key
from svc_infra.billing import UsageEvent
from svc_infra.clock import SystemClock
from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine, make_session_factory

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


async def listening(server: asyncio.subprocess.Process) -> None:
    """Wait until the server says that it listens."""
    assert server.stderr is not None
    while b'"api.listening"' not in (line := await server.stderr.readline()):
        assert line, "the server ended before it listened"


async def test_sigterm_under_load_loses_no_accepted_request(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)
    await migrate(engine)
    sessions = make_session_factory(engine)
    async with sessions.begin() as session:
        _, key = await session.run_sync(
            lambda sync: create_key(
                sync,
                name="load",
                tenant_id="t1",
                scopes=["billing.write"],
                actor="test",
                now=SystemClock().now(),
            )
        )
    port = free_port()
    command = [str(ROOT / "worker.py"), "api", "--port", str(port), "--database-url", empty_database_url]
    server = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.PIPE)
    accepted: list[str] = []
    enough = asyncio.Event()
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        asyncio.timeout(100),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as client,
    ):
        await listening(server)

        async def post(number: int) -> None:
            index = 0
            while True:
                usage = {"metric": "m", "amount": 1, "idempotency_key": f"{number}-{index}"}
                try:
                    answer = await client.post("/_billing/usage", json=usage)
                except httpx.TransportError:
                    return
                if answer.status_code == 202:
                    accepted.append(json.loads(answer.content)["id"])
                if len(accepted) >= 40:
                    enough.set()
                index += 1

        posting = [asyncio.create_task(post(number)) for number in range(8)]
        await enough.wait()
        server.send_signal(signal.SIGTERM)
        await asyncio.gather(*posting)
        assert await server.wait() == 0
    async with sessions() as session:
        recorded = set(await session.scalars(select(UsageEvent.id)))
    await engine.dispose()
    assert len(accepted) >= 40
    assert set(accepted) <= recorded


@pytest.mark.sqlite_only
async def test_it_refuses_to_start_on_a_schema_that_is_not_its_own(empty_database_url: str) -> None:
    command = [str(ROOT / "worker.py"), "api", "--database-url", empty_database_url]
    server = await asyncio.create_subprocess_exec(
        sys.executable, *command, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    _, errors = await server.communicate()
    assert server.returncode == 1
    assert b"worker.py migrate" in errors
    assert b"Traceback" not in errors
