"""Limits: how many jobs of one key run at once, exactly, with any number of workers.

A running job of a limited kind holds a numbered slot of its key, and a unique index lets each slot be held
once. Two workers that choose the same slot at the same moment cannot both have it: one of them tries again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Float, Integer, Select, Update, bindparam, func, literal_column, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from svc_infra.db.base import IdText, new_id
from svc_infra.db.leases import in_state, wall_time
from svc_infra.db.rowset import Rowset
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.queue import claim_order
from svc_infra.jobs.rows import claim_filters, dialect_of, job_from_row
from svc_infra.jobs.statements import AT_START, JOB_COLUMNS, ClaimFilters, is_claimable, jobs

_SLOTS = Rowset("slots", id=IdText, slot=Integer)
_TRIES = 3
# A claim of limited jobs looks at no more than this many, for each may be of a key without a free slot.
_MOST = 200


def claim_limited(
    session: Session,
    limit: int,
    *,
    names: Collection[str] | None,
    versions: Mapping[str, int] | None,
    queues: Collection[str] | None,
    now: datetime,
    lease_seconds: float,
    database: str,
) -> list[Job]:
    """Lease up to ``limit`` due jobs of limited kinds, each with a free slot of its key."""
    filters, parameters = claim_filters(names=names, versions=versions, queues=queues)
    parameters |= {"now": now, "limit": min(limit, _MOST)}
    for _ in range(_TRIES):
        due = session.execute(_due(filters), parameters).all()
        if not due:
            return []
        # A rescued job may be what killed its process, and is run alone.
        due = due[:1] if due[0].rescues else [row for row in due if not row.rescues]
        taken = _taken(session, {row.limit_key for row in due})
        chosen = list(assign_slots([(row.id, row.limit_key, row.limit_slots) for row in due], taken))
        dialect = dialect_of(session)
        lease = {"lease_id": new_id(), "lease_seconds": float(lease_seconds)}
        try:
            with session.begin_nested():
                statement = _take(dialect)
                rows = session.execute(statement, {**_SLOTS.parameters(dialect, chosen), **lease}).all()
        except IntegrityError:
            continue  # somebody else has one of these slots by now
        return sorted((job_from_row(row, database) for row in rows), key=claim_order)
    return []


def assign_slots(
    due: Sequence[tuple[str, str, int]], taken: Mapping[str, Collection[int]]
) -> Iterator[tuple[str, int]]:
    """Yield (id, slot) for the jobs (id, key, slots of the key), in order, that get a free slot."""
    given: dict[str, set[int]] = {key: set(slots) for key, slots in taken.items()}
    for job_id, key, slots in due:
        held = given.setdefault(key, set())
        free = next((slot for slot in range(1, slots + 1) if slot not in held), None)
        if free is not None:
            held.add(free)
            yield job_id, free


def _taken(session: Session, keys: Collection[str]) -> dict[str, set[int]]:
    taken: dict[str, set[int]] = {}
    held = select(jobs.c.limit_key, jobs.c.slot).where(jobs.c.slot.is_not(None), jobs.c.limit_key.in_(keys))
    for key, slot in session.execute(held):
        taken.setdefault(key, set()).add(slot)
    return taken


@cache
def _due(filters: ClaimFilters) -> Select[Any]:
    """Waiting jobs, of the keys that have a free slot: the others may be many and all before the rest."""
    running = jobs.alias("running")
    held = (
        select(func.count())
        .select_from(running)
        .where(running.c.limit_key == jobs.c.limit_key, running.c.slot.is_not(None))
        .scalar_subquery()
    )
    return (
        select(jobs.c.id, jobs.c.limit_key, jobs.c.limit_slots, jobs.c.rescues)
        .where(*is_claimable(filters), jobs.c.limit_key.is_not(None), held < jobs.c.limit_slots)
        .order_by(jobs.c.priority, jobs.c.run_at, jobs.c.id)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True, of=jobs)
    )


@cache
def _take(dialect: str) -> Update:
    slots = _SLOTS.table(dialect)
    return (
        update(jobs)
        .where(jobs.c.id == slots.c.id, in_state(jobs, JobState.AVAILABLE.value))
        .values(
            state=literal_column(f"'{JobState.RUNNING.value}'"),
            attempt=jobs.c.attempt + 1,
            lease_id=bindparam("lease_id", type_=IdText),
            lease_until=wall_time(bindparam("lease_seconds", type_=Float)),
            slot=slots.c.slot,
            **AT_START,
        )
        .returning(*JOB_COLUMNS)
    )
