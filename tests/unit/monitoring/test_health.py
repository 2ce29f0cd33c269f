"""A worker's health: alive is about the process alone, ready about its work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from http.client import HTTPConnection
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from svc_infra.db.readiness import why_not_ready
from svc_infra.db.session import make_engine
from svc_infra.exceptions import InvalidSettings
from svc_infra.monitoring.health import Health
from svc_infra.monitoring.server import MonitoringServer


def ready_if(reason: str | None = None) -> Callable[[], Awaitable[str | None]]:
    async def check() -> str | None:
        return reason

    return check


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


async def test_a_worker_that_was_told_to_stop_is_alive_and_not_ready() -> None:
    stop, health = asyncio.Event(), Health(ready_if())
    assert await asyncio.to_thread(health.why_not_ready) == "starting"
    ticking = asyncio.create_task(health.run(stop))
    await asyncio.sleep(0)
    assert await asyncio.to_thread(health.why_not_ready) is None
    stop.set()
    await ticking
    assert "draining" in str(await asyncio.to_thread(health.why_not_ready))
    assert health.why_not_alive() is None


async def test_a_database_that_is_away_is_not_ready_and_alive() -> None:
    stop, health = asyncio.Event(), Health(ready_if("the database does not answer"))
    ticking = asyncio.create_task(health.run(stop))
    await asyncio.sleep(0)
    assert await asyncio.to_thread(health.why_not_ready) == "the database does not answer"
    assert health.why_not_alive() is None
    stop.set()
    await ticking


def test_a_loop_that_stands_still_and_a_heartbeat_that_ended_are_not_alive() -> None:
    now = 100.0
    beating = True
    health = Health(ready_if(), keeps_leases=lambda: beating, stuck_seconds=60, monotonic=lambda: now)
    now = 160.0
    assert health.why_not_alive() is None
    now = 160.1
    assert "has not turned" in str(health.why_not_alive())
    now, beating = 101.0, False
    assert "heartbeat" in str(health.why_not_alive())


async def test_the_port_answers_probes_and_metrics_and_nothing_else() -> None:
    registry = CollectorRegistry()
    Counter("shop_orders", "Orders.", registry=registry).inc(3)
    stop, health = asyncio.Event(), Health(ready_if())
    ticking = asyncio.create_task(health.run(stop))
    with MonitoringServer(health, host="127.0.0.1", port=0, registry=registry) as server:
        assert await asyncio.to_thread(ask, server.port, "/livez") == (200, '{"status": "ok"}')
        assert (await asyncio.to_thread(ask, server.port, "/readyz"))[0] == 200
        status, metrics = await asyncio.to_thread(ask, server.port, "/metrics?x=1")
        assert status == 200
        assert "shop_orders_total 3.0" in metrics
        assert (await asyncio.to_thread(ask, server.port, "/"))[0] == 404
        assert await asyncio.to_thread(ask, server.port, "/livez", "HEAD") == (200, "")
        assert (await asyncio.to_thread(ask, server.port, "/livez", "POST"))[0] == 501
        stop.set()
        status, body = await asyncio.to_thread(ask, server.port, "/readyz")
        assert (status, json.loads(body)["status"]) == (503, "unavailable")
        with pytest.raises(InvalidSettings, match=r"monitoring\.port: .*cannot be bound"):
            MonitoringServer(health, host="127.0.0.1", port=server.port)
    await ticking


async def test_readiness_names_the_schema_and_no_secret(tmp_path: Path) -> None:
    empty = make_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    assert "worker.py migrate" in str(await why_not_ready(empty))
    await empty.dispose()
    away = make_engine("postgresql://user:canary@127.0.0.1:1/x")
    assert await why_not_ready(away) == "the database does not answer"
    await away.dispose()
