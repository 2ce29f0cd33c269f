"""Writing new jobs: many at once in one statement, and unique ones beside those that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import repeat
from typing import NamedTuple

from sqlalchemy import event, update
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from svc_infra.canonical import compact_json
from svc_infra.db.base import new_id
from svc_infra.db.commit_notice import next_notice, take_notice
from svc_infra.exceptions import SvcInfraError
from svc_infra.jobs.insert_statements import (
    KEYS,
    NEW_FULL_JOBS,
    NEW_JOBS,
    existing_statement,
    insert_full_statement,
    insert_statement,
    new_jobs,
)
from svc_infra.jobs.job import DEFAULT_MAX_ATTEMPTS, Job, JobRequest, JobState, is_plain
from svc_infra.jobs.models import JobRow
from svc_infra.jobs.rows import dialect_of, job_from_row
from svc_infra.jobs.statements import jobs
from svc_infra.jobs.waking import JOBS_CHANNEL, announce

_PENDING = "svc_infra.pending_jobs"
# Each round needs somebody else's job to finish between our insert and our look at it.
_ROUNDS = 20


class Enqueued(NamedTuple):
    """The job that stands for a request: a new one, or the one that was there already."""

    job: Job
    is_new: bool


def insert_jobs(session: Session, requests: Sequence[JobRequest], *, now: datetime) -> list[str]:
    """Insert many jobs in one statement and return their ids in the order of ``requests``.

    A request without ``run_at`` is due at ``now``, which is business time. For a unique one whose job is
    there already, that job's id is returned.
    """
    if not all(is_plain(request) for request in requests):
        return [enqueued.job.id for enqueued in enqueue_all(session, requests, now=now)]
    if not requests:
        return []
    announce(session)
    ids = [new_id() for _ in requests]
    columns = dict(
        zip(
            NEW_JOBS.columns,
            zip(*map(_row, ids, requests, repeat(now)), strict=True),
            strict=True,
        )
    )
    # What is the same in all rows is sent once: a row is half as dear where only its payload is its own.
    same = {
        name: values[0]
        for name, values in columns.items()
        if name != "id" and values.count(values[0]) == len(values)
    }
    varying = tuple(name for name in columns if name not in same)
    rows = zip(*(columns[name] for name in varying), strict=True)
    dialect = dialect_of(session)
    parameters = new_jobs(varying).parameters(dialect, rows)
    session.execute(insert_statement(dialect, varying), {**parameters, **same, "now": now})
    return ids


def enqueue_all(session: Session, requests: Sequence[JobRequest], *, now: datetime) -> list[Enqueued]:
    """Insert jobs, unique and others, and return for each request the job that stands for it."""
    announce(session)
    new = [new_job(request, now=now) for request in requests]
    return _write(session.connection(), list(zip(new, requests, strict=True)), now=now)


def enqueue_committing(session: Session, request: JobRequest, *, now: datetime) -> Enqueued:
    """Insert a job with its notice, in a session of which each statement commits; see ``enqueue_all``."""
    connection, new = session.connection(), [(new_job(request, now=now), request)]
    notice = next_notice(session, JOBS_CHANNEL) if connection.dialect.name == "postgresql" else None
    (enqueued,) = _write(connection, new, now=now, notice=notice)
    return enqueued


def new_job(request: JobRequest, *, now: datetime) -> Job:
    """Return the job that ``request`` asks for, with an id and not stored yet."""
    return Job(
        id=new_id(),
        name=request.name,
        payload=request.payload,
        run_at=request.run_at or now,
        created_at=now,
        queue=request.queue,
        tenant_id=request.tenant_id,
        priority=request.priority,
        max_attempts=request.max_attempts or DEFAULT_MAX_ATTEMPTS,
        payload_version=request.payload_version,
        metadata=request.metadata,
        trace_context=request.trace_context,
        timeout_seconds=request.timeout_seconds,
        group_id=request.group_id,
        waits_for=request.waits_for,
    )


def add_job(session: Session, request: JobRequest, *, now: datetime) -> Job:
    """Add a job to the session's pending objects; it is written at the flush, a unique one if it is new."""
    job = new_job(request, now=now)
    session.add(JobRow(id=job.id))
    session.info.setdefault(_PENDING, {})[job.id] = (job, request)
    announce(session)
    return job


def _write_pending(session: Session, *_: object) -> None:
    """Write pending jobs beside the unit of work, which is slow and would fail where a unique one is there.

    Their rows are pending objects so that the session forgets those of a savepoint that is rolled back.
    """
    requested: dict[str, tuple[Job, JobRequest]] | None = session.info.pop(_PENDING, None)
    if requested is None:
        return
    chosen = []
    for row in [row for row in session.new if isinstance(row, JobRow) and row.id in requested]:
        session.expunge(row)
        chosen.append(requested[row.id])
    if chosen:
        notice = take_notice(session, JOBS_CHANNEL)
        _write(session.connection(), chosen, now=chosen[0][0].created_at, notice=notice)


event.listen(Session, "before_flush", _write_pending)


def _write(
    connection: Connection,
    new: Sequence[tuple[Job, JobRequest]],
    *,
    now: datetime,
    notice: str | None = None,
) -> list[Enqueued]:
    stands_for: dict[str, Enqueued] = {}
    for _ in range(_ROUNDS):
        missing = [(job, request) for job, request in new if job.id not in stands_for]
        if not missing:
            return [stands_for[job.id] for job, _ in new]
        # In the order of their keys, so that two who insert the same ones do not wait for each other.
        missing.sort(key=lambda pair: _digest(pair[1], now) or "")
        stands_for |= _insert_missing(connection, missing, now=now, notice=notice)
    raise SvcInfraError("unique jobs came and went in each of 20 tries; enqueue again")


def _insert_missing(
    connection: Connection,
    missing: Sequence[tuple[Job, JobRequest]],
    *,
    now: datetime,
    notice: str | None,
) -> Mapping[str, Enqueued]:
    dialect = connection.dialect.name
    keys = {job.id: _digest(request, now) for job, request in missing}
    rows = [
        (
            *_row(job.id, request, job.created_at),
            keys[job.id],
            None if request.unique is None else request.unique.state_bits,
            request.payload_version,
            None if request.metadata is None else compact_json(request.metadata),
            request.trace_context,
            request.timeout_seconds,
            *_limits(request),
            request.group_id,
            request.waits_for,
        )
        for job, request in missing
    ]
    parameters = {**NEW_FULL_JOBS.parameters(dialect, rows), "now": now}
    if notice is not None:
        parameters |= {"channel": JOBS_CHANNEL, "notice": notice}
    inserted = set(
        connection.execute(insert_full_statement(dialect, notice is not None), parameters).scalars()
    )
    duplicates = [(job, request) for job, request in missing if job.id not in inserted]
    stands_for = {job.id: Enqueued(job, True) for job, _ in missing if job.id in inserted}
    if duplicates:
        parameters = KEYS.parameters(dialect, [(keys[job.id],) for job, _ in duplicates])
        found = connection.execute(existing_statement(dialect), parameters).all()
        existing = {row[-1]: job_from_row(row[:-1], None) for row in found}
        for job, request in duplicates:
            there = existing.get(keys[job.id])
            if there is not None:
                stands_for[job.id] = Enqueued(_replaced(connection, there, job, request), False)
    return stands_for


def _replaced(connection: Connection, there: Job, job: Job, request: JobRequest) -> Job:
    """Give the duplicate's work to the job that is there, where that is wanted and it has not started."""
    if request.unique is None or not request.unique.is_replacing:
        return there
    row = connection.execute(
        update(jobs)
        .where(jobs.c.id == there.id, jobs.c.state == JobState.AVAILABLE.value)
        .values(payload=job.payload, priority=job.priority, run_at=job.run_at)
        .returning(jobs.c.id)
    ).one_or_none()
    if row is None:
        return there
    return replace(there, payload=job.payload, priority=job.priority, run_at=job.run_at)


def _digest(request: JobRequest, now: datetime) -> str | None:
    if request.unique is None:
        return None
    return request.unique.digest(request.name, request.tenant_id, request.payload, now=now)


def _limits(request: JobRequest) -> tuple[str | None, int | None, int | None, float | None]:
    """Return key, slots, and the starts in so many seconds; limit and rate have one key."""
    limit, rate = request.limit, request.rate
    keyed = limit or rate
    if keyed is None:
        return None, None, None, None
    return (
        keyed.key(request.name, request.payload),
        None if limit is None else limit.slots,
        None if rate is None else rate.starts,
        None if rate is None else rate.per_seconds,
    )


def _row(job_id: str, request: JobRequest, now: datetime) -> tuple[object, ...]:
    return (
        job_id,
        request.name,
        request.queue,
        request.tenant_id,
        request.payload_json,
        request.priority,
        request.max_attempts or DEFAULT_MAX_ATTEMPTS,
        request.run_at or now,
    )
