"""What the queue and the scheduler do to a database, one thing each: the cases that faults are put into."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from svc_infra.jobs import Cancel, Job, JobRequest, JobState, Retry
from svc_infra.jobs.administration import cancel_job
from svc_infra.jobs.groups import new_group
from svc_infra.jobs.uniqueness import Unique
from tests.contract.queue_contract import EXPIRED, ended
from tests.faults.shop import LIMITED, NOW, Shop

Prepared = Any


async def _nothing(shop: Shop) -> None:
    return None


@dataclass(frozen=True)
class Case:
    """``act`` is given what ``prepare`` returned; faults happen to ``act`` alone."""

    name: str
    act: Callable[[Shop, Prepared], Awaitable[None]]
    prepare: Callable[[Shop], Awaitable[Prepared]] = _nothing


async def enqueue_one(shop: Shop, _: Prepared) -> None:
    async with shop.sessions() as session:
        job = shop.queue.bind(session).enqueue("single")
        await session.commit()
    shop.accepted.add(job.id)


async def enqueue_bulk(shop: Shop, _: Prepared) -> None:
    async with shop.sessions() as session:
        ids = await shop.queue.enqueue_many(session, [JobRequest("batch") for _ in range(3)])
        shop.together.append(set(ids))
        await session.commit()
    shop.accepted.update(ids)


async def enqueue_unique(shop: Shop, there: list[str]) -> None:
    async with shop.sessions() as session:
        new = await shop.queue.enqueue_unique(session, "single", unique=Unique("new"))
        old = await shop.queue.enqueue_unique(session, "single", unique=Unique("old"))
        assert (new.is_new, old.is_new, old.job.id) == (True, False, there[0])
        await session.commit()
    shop.accepted.add(new.job.id)


async def one_unique(shop: Shop) -> list[str]:
    return await shop.enqueue(JobRequest("single", unique=Unique("old")))


async def due(shop: Shop) -> None:
    await shop.enqueue(JobRequest("single"), JobRequest("batch"), JobRequest("batch"))


async def limited(shop: Shop) -> None:
    await shop.enqueue(LIMITED.request(), LIMITED.request())


async def claim(shop: Shop, _: Prepared) -> None:
    await shop.queue.claim(2, names={"batch"})


async def claim_limited(shop: Shop, _: Prepared) -> None:
    claimed = await shop.queue.claim(9, names={"limited"}, has_limits=True)
    assert len(claimed) == 1


def claimed(name: str, count: int) -> Callable[[Shop], Awaitable[list[Job]]]:
    async def prepare(shop: Shop) -> list[Job]:
        await shop.enqueue(*[JobRequest(name, {"retries": n == 1}) for n in range(count)])
        return await shop.queue.claim(count)

    return prepare


async def run(shop: Shop, jobs: list[Job]) -> None:
    await shop.run(jobs)


async def extend(shop: Shop, jobs: list[Job]) -> None:
    await shop.queue.extend(jobs, lease_seconds=60)


async def release(shop: Shop, jobs: list[Job]) -> None:
    await shop.queue.release(jobs)


async def retry(shop: Shop, jobs: list[Job]) -> None:
    await shop.queue.finish([ended(job, Retry(timedelta(hours=1))) for job in jobs])


async def expired(shop: Shop) -> None:
    await shop.enqueue(JobRequest("single"), JobRequest("single", max_attempts=1))
    await shop.queue.claim(2, lease_seconds=EXPIRED)


async def rescue(shop: Shop, _: Prepared) -> None:
    await shop.queue.rescue()


async def started_schedule(shop: Shop) -> None:
    shop.is_scheduling = True
    await shop.scheduler.tick()
    shop.clock.advance(timedelta(hours=3))


async def tick(shop: Shop, _: Prepared) -> None:
    await shop.scheduler.tick()


async def no_schedule(shop: Shop) -> None:
    shop.is_scheduling = True


async def long_finished(shop: Shop) -> set[str]:
    await shop.enqueue(*[JobRequest("single") for _ in range(3)])
    jobs = await shop.queue.claim(3)
    await shop.run(jobs[:2])
    await shop.queue.release(jobs[2:])
    shop.pruned = {job.id for job in jobs[:2]}
    return shop.pruned


async def prune(shop: Shop, _: Prepared) -> None:
    await shop.queue.prune(finished_before=NOW + timedelta(seconds=1), states=[JobState.COMPLETED])


async def finished_group(shop: Shop) -> None:
    id_ = new_group()
    member = JobRequest("single", group_id=id_)
    await shop.enqueue(JobRequest("waiting", waits_for=id_), member)
    await shop.run(await shop.queue.claim(9))


async def release_group(shop: Shop, _: Prepared) -> None:
    waiting = await shop.queue.claim(9)
    assert [job.name for job in waiting] == ["waiting"]
    await shop.run(waiting)


async def waiting_and_running(shop: Shop) -> tuple[list[str], list[Job]]:
    running_id, waiting_id = await shop.enqueue(JobRequest("single"), JobRequest("single", priority=1))
    return [running_id, waiting_id], await shop.queue.claim(1)


async def cancel(shop: Shop, prepared: tuple[list[str], list[Job]]) -> None:
    ids, running = prepared
    async with shop.sessions() as session:
        for job_id in ids:
            await session.run_sync(
                lambda sync, job_id=job_id: cancel_job(sync, job_id, actor="ann", now=NOW)  # type: ignore[misc]
            )
        await session.commit()
    shop.cancelled.update(ids)
    reasons = await shop.queue.wishes_to_cancel(running)
    await shop.queue.finish([ended(job, Cancel(reasons[job.id])) for job in running])


CASES = [
    Case("enqueue one", enqueue_one),
    Case("enqueue in bulk", enqueue_bulk),
    Case("enqueue unique", enqueue_unique, one_unique),
    Case("claim", claim, due),
    Case("claim limited", claim_limited, limited),
    Case("finish in the transaction", run, claimed("single", 2)),
    Case("finish a batch", run, claimed("batch", 3)),
    Case("finish a plain job", run, claimed("plain", 1)),
    Case("extend", extend, claimed("single", 2)),
    Case("release", release, claimed("single", 2)),
    Case("retry", retry, claimed("single", 2)),
    Case("rescue", rescue, expired),
    Case("tick", tick, started_schedule),
    Case("first tick", tick, no_schedule),
    Case("prune", prune, long_finished),
    Case("release of a group", release_group, finished_group),
    Case("cancel", cancel, waiting_and_running),
]
