"""Jobs, queues and schedules over HTTP: what an operator sees and does, and that nobody else does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from svc_infra.api.fastapi.dependencies import Principal
from svc_infra.api.fastapi.jobs.setup import add_job_routes
from svc_infra.clock import FixedClock
from svc_infra.jobs import Discard, Job, process_one
from svc_infra.jobs.cron import CronSchedule
from svc_infra.jobs.scheduler import Schedule
from svc_infra.jobs.sql import SqlJobQueue
from tests.unit.api.asking import client_of

Sessions = async_sessionmaker[AsyncSession]
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
SCOPES = frozenset({"jobs.read", "jobs.write"})
NIGHTLY = Schedule("shop.nightly", CronSchedule("0 3 * * *"), "shop.recount")


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(NOON)


@pytest.fixture
def queue(session_factory: Sessions, clock: FixedClock) -> SqlJobQueue:
    return SqlJobQueue(session_factory, clock=clock)


@pytest.fixture
def app(session_factory: Sessions, clock: FixedClock) -> FastAPI:
    async def caller(request: Request) -> Principal:
        return Principal(request.headers.get("X-Tenant", ""), SCOPES, name="ann")

    app = FastAPI()
    add_job_routes(app, session_factory=session_factory, principal=caller, clock=clock, schedules=[NIGHTLY])
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        client.base_url = httpx.URL("http://app.test/_jobs")
        yield client


async def enqueued(sessions: Sessions, jobs: SqlJobQueue, count: int, **options: Any) -> None:
    async with sessions.begin() as session:
        for n in range(count):
            jobs.bind(session).enqueue("shop.report", {"n": n}, **options)


async def discard_all(queue: SqlJobQueue) -> None:
    async def refuse(job: Job) -> Discard:
        return Discard(f"order {job.payload['n']} is odd" if job.payload["n"] % 2 else "no paper")

    while await process_one(queue, refuse):
        pass


async def acts(client: httpx.AsyncClient, subject: str) -> list[tuple[str, str]]:
    found = (await client.get("/acts", params={"subject": subject})).json()["items"]
    return [(act["actor"], act["act"]) for act in found]


async def test_jobs_are_found_by_what_they_are_page_by_page(
    client: httpx.AsyncClient, session_factory: Sessions, queue: SqlJobQueue
) -> None:
    await enqueued(session_factory, queue, 3, tenant_id="t1", group_id="g")
    await enqueued(session_factory, queue, 1, queue="slow")
    first = (await client.get("/jobs", params={"limit": 2, "queue": "default"})).json()
    rest = (
        await client.get("/jobs", params={"limit": 2, "queue": "default", "cursor": first["next_cursor"]})
    ).json()
    ids = [job["id"] for job in first["items"] + rest["items"]]
    assert (len(ids), sorted(ids), rest["next_cursor"]) == (3, ids, None)
    job = (await client.get(f"/jobs/{ids[1]}")).json()
    assert (job["name"], job["state"], job["tenant_id"]) == ("shop.report", "available", "t1")
    assert (job["payload"], job["run_at"]) == ({"n": 1}, "2025-01-01T12:00:00Z")
    group = (await client.get("/groups/g")).json()
    assert group == {"counts": {"available": 3}, "has_finished": False, "failed": []}
    await discard_all(queue)
    assert len((await client.get("/groups/g")).json()["failed"]) == 3
    for chosen, count in (
        ({"state": "discarded"}, 4),
        ({"state": "available"}, 0),
        ({"tenant_id": "t1"}, 3),
        ({"error_like": "%odd"}, 1),
        ({"name": "shop.other"}, 0),
    ):
        assert len((await client.get("/jobs", params=chosen)).json()["items"]) == count, chosen


async def test_each_act_on_jobs_is_done_and_recorded_with_who_did_it(
    client: httpx.AsyncClient, session_factory: Sessions, queue: SqlJobQueue
) -> None:
    await enqueued(session_factory, queue, 5)
    [first, *_] = [job["id"] for job in (await client.get("/jobs")).json()["items"]]
    assert (await client.post(f"/jobs/{first}/cancel")).json() == {"id": first, "was": "available"}
    late = await client.post(f"/jobs/{first}/cancel")
    assert (late.status_code, late.json()["type"]) == (409, "urn:svc-infra:problem:invalid-act")
    assert (await client.post(f"/jobs/{first}/retry")).json()["state"] == "available"
    assert await acts(client, first) == [("ann", "retry"), ("ann", "cancel")]

    await discard_all(queue)
    groups = (await client.get("/errors")).json()["items"]
    assert [(group["pattern"], group["jobs"]) for group in groups] == [("no paper", 3), ("order # is odd", 2)]
    odd = {"fingerprint": groups[1]["fingerprint"], "name": "shop.report"}
    assert (await client.post("/requeue", json=odd)).json() == {"jobs": 2}
    assert await acts(client, "shop.report") == [("ann", "requeue")]
    assert (await client.post("/requeue", json={"name": "shop.report"})).status_code == 422

    purge = {"states": ["discarded"], "finished_before": "2025-01-01T12:00:01Z", "limit": 2}
    assert (await client.post("/purge", json=purge)).json() == {"jobs": 2}
    assert await acts(client, "discarded") == [("ann", "purge")]
    assert len((await client.get("/jobs")).json()["items"]) == 3
    for path in ("/jobs/none", "/jobs/none/retry", "/jobs/none/cancel"):
        method = "GET" if path.endswith("none") else "POST"
        assert (await client.request(method, path)).status_code == 404


async def test_a_queue_is_paused_and_resumed(
    client: httpx.AsyncClient, session_factory: Sessions, queue: SqlJobQueue
) -> None:
    await enqueued(session_factory, queue, 2)
    assert (await client.post("/queues/default/pause")).json() == {"name": "default", "is_paused": True}
    assert await queue.claim(1, now=NOON) == []
    [listed] = (await client.get("/queues")).json()["items"]
    assert (listed["due"], listed["oldest_due_at"], listed["paused_at"]) == (2, *["2025-01-01T12:00:00Z"] * 2)
    assert (await client.post("/queues/default/resume")).json() == {"name": "default", "is_paused": False}
    assert len(await queue.claim(1, now=NOON)) == 1
    assert await acts(client, "default") == [("ann", "resume_queue"), ("ann", "pause_queue")]


async def test_schedules_are_listed_added_run_paused_and_removed(client: httpx.AsyncClient) -> None:
    weekly = {"job": "shop.recount", "cron": "0 4 * * 1", "payload": {"full": True}}
    answer = await client.put("/schedules/shop.weekly", json=weekly)
    assert (answer.status_code, answer.json()["origin"]) == (200, "added")
    listed = (await client.get("/schedules")).json()["items"]
    assert [(one["name"], one["origin"], one["next_fire_at"]) for one in listed] == [
        ("shop.nightly", "settings", "2025-01-02T03:00:00Z"),
        ("shop.weekly", "added", "2025-01-06T04:00:00Z"),
    ]
    assert (await client.get("/schedules/shop.weekly")).json() == listed[1]
    fires = (await client.get("/schedules/shop.nightly/fires", params={"count": 2})).json()
    assert fires == {"items": ["2025-01-02T03:00:00Z", "2025-01-03T03:00:00Z"]}
    once = {"job": "shop.recount", "at": "2025-01-01T13:00:00Z"}
    assert (await client.put("/schedules/shop.once", json=once)).status_code == 200
    assert (await client.get("/schedules/shop.once/fires")).json() == {"items": ["2025-01-01T13:00:00Z"]}

    job_id = (await client.post("/schedules/shop.weekly/run")).json()["job_id"]
    payload = (await client.get(f"/jobs/{job_id}")).json()["payload"]
    assert payload == {"full": True, "fire_at": "2025-01-01T12:00:00Z"}
    assert (await client.post("/schedules/shop.nightly/run")).json()["job_id"]
    assert (await client.post("/schedules/shop.weekly/pause")).json()["is_paused"] is True
    assert (await client.get("/schedules/shop.weekly")).json()["paused_at"] == "2025-01-01T12:00:00Z"
    assert (await client.post("/schedules/shop.weekly/resume")).json()["is_paused"] is False
    assert (await client.delete("/schedules/shop.weekly")).status_code == 204
    assert (await client.get("/schedules/shop.weekly")).status_code == 404
    assert await acts(client, "shop.weekly") == [
        ("ann", f"{act}_schedule") for act in ("remove", "resume", "pause", "run", "add")
    ]
    for name in ("shop.nightly", "none"):
        assert (await client.delete(f"/schedules/{name}")).status_code == 404
    assert (await client.put("/schedules/shop.nightly", json=weekly)).status_code == 409


WRONG: list[dict[str, Any]] = [
    {"cron": "0 3 * *"},
    {"cron": "0 0 30 2 *"},
    {"cron": "* * * * * *"},
    {"cron": "0 3 * * *", "every_seconds": 5},
    {"cron": "0 3 * * *", "timezone": "America"},
    {"cron": "0 3 * * *", "timezone": "../../etc/passwd"},
    {"every_seconds": 0},
    {"every_seconds": 10**18},
    {"at": "2025-01-01T00:00:00"},
    {"at": 1735689600},
    {"at": "0001-01-01T00:00:00+14:00"},
    {},
    {"cron": "0 3 * * *", "payload": {"note": "\x00"}},
    {"cron": "0 3 * * *", "payload": {"note": "x" * 300_000}},
    {"cron": "0 3 * * *", "job": ""},
    {"cron": "0 3 * * *", "queue": "q" * 101},
    {"cron": "0 3 * * *", "cap": 0},
    {"cron": "0 3 * * *", "jitter_seconds": -1},
]


async def test_a_schedule_that_cannot_fire_is_refused(client: httpx.AsyncClient) -> None:
    let_in = {}
    for wrong in WRONG:
        answer = await client.put("/schedules/s", json={"job": "shop.recount"} | wrong)
        if answer.status_code != 422:
            let_in[str(wrong)[:80]] = answer.status_code
    assert let_in == {}
    assert await acts(client, "s") == []


async def test_a_tenant_s_principal_reaches_no_job_whatever_its_scopes(
    client: httpx.AsyncClient, app: FastAPI, session_factory: Sessions, queue: SqlJobQueue
) -> None:
    await enqueued(session_factory, queue, 1, tenant_id="t1")
    [job] = (await client.get("/jobs")).json()["items"]
    for method, path in (
        ("GET", "/jobs"),
        ("GET", f"/jobs/{job['id']}"),
        ("POST", f"/jobs/{job['id']}/cancel"),
        ("POST", "/queues/default/pause"),
        ("GET", "/acts"),
    ):
        answer = await client.request(method, path, headers={"X-Tenant": "t1"})
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:svc-infra:problem:scope-missing")
    assert (await client.get(f"/jobs/{job['id']}")).json()["state"] == "available"
