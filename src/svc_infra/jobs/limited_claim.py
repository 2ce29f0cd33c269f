"""Limits: how many jobs of one key run at once and how many start, exactly, with any number of workers.

A running job of a limited kind holds a numbered slot of its key, and a unique index lets each slot be held
once. Two workers that choose the same slot at the same moment cannot both have it: one of them tries again.
What a rate lets start is written on the row of its key, which the claim has locked until its commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

from sqlalchemy import Float, Integer, Update, bindparam, literal_column, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from svc_infra.db.base import IdText
from svc_infra.db.leases import in_state, wall_time
from svc_infra.db.rowset import Rowset
from svc_infra.jobs.job import Job, JobState
from svc_infra.jobs.lines import LIMIT, TENANT, Place, look
from svc_infra.jobs.rate_store import KeyRate, lock_rates, record_starts
from svc_infra.jobs.rows import ClaimTerms, claimed_jobs, dialect_of
from svc_infra.jobs.statements import AT_START, JOB_COLUMNS, jobs

_SLOTS = Rowset("slots", id=IdText, slot=Integer)
_TRIES = 3
# A claim of limited jobs looks at no more than this many of one key.
_MOST = 200


def claim_limited(session: Session, limit: int, terms: ClaimTerms, *, place: Place) -> list[Job]:
    """Lease up to ``limit`` due jobs of limited kinds, as far as slots are free and rates are not used up."""
    return take(session, due_limited(session, limit, terms, place=place), limit, terms)


def due_limited(session: Session, limit: int, terms: ClaimTerms, *, place: Place) -> list[Any]:
    """Look for due jobs of limited kinds that may start, as rows for ``take``, in claim order."""
    found = look(session, LIMIT, terms, place=place, heads=min(limit, _MOST))
    found.sort(key=lambda row: (row.priority, row.run_at, row.id))
    # A rescued job may be what killed its process, and is run alone.
    return found[:1] if found and found[0].rescues else [row for row in found if not row.rescues]


def due_in_turn(
    session: Session, terms: ClaimTerms, *, each: int, passing_over: Collection[str], place: Place
) -> list[Any]:
    """Look for due jobs, up to ``each`` of one tenant, of some tenants in turn, as rows for ``take``."""
    found = look(session, TENANT, terms, place=place, heads=each, passing_over=passing_over)
    rescued = [row for row in found if row.rescues]
    return rescued[:1] or list(taking_turns([(row.tenant_id, row) for row in found], each))


def taking_turns(waiting: Sequence[tuple[str, Any]], each: int) -> Iterator[Any]:
    """Yield the first of every key, then the second of every key, and so on, up to ``each`` of one."""
    lines: dict[str, list[Any]] = {}
    for key, item in waiting:
        lines.setdefault(key, []).append(item)
    for turn in range(each):
        yield from (line[turn] for line in lines.values() if turn < len(line))


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


def are_limited(due: Sequence[Any]) -> bool:
    """Whether one of these jobs has a slot or a rate, so that to take it is more than one statement."""
    return any(row.limit_key is not None for row in due)


def take(session: Session, due: Sequence[Any], limit: int, terms: ClaimTerms) -> list[Job]:
    """Lease the first ``limit`` of these jobs that may start and that nobody else is claiming.

    They may have been found in an earlier transaction: whether they still wait is looked at here.
    """
    if not due:
        return []
    dialect = dialect_of(session)
    rates = lock_rates(session, due, now=terms.now)
    for _ in range(_TRIES):
        chosen = _may_start(due, _taken(session, due), rates)[:limit]
        try:
            # Without a slot nothing can be in the way, and a savepoint is two round trips.
            with session.begin_nested() if any(slot for _, slot in chosen) else nullcontext():
                parameters = {**_SLOTS.parameters(dialect, chosen), **terms.lease()}
                rows = session.execute(_take(dialect), parameters).all()
        except IntegrityError:
            continue  # somebody else has one of these slots by now
        claimed = claimed_jobs(session, rows)
        record_starts(session, due, rates, {job.id for job in claimed}, now=terms.now)
        return claimed
    return []


def _may_start(
    due: Sequence[Any], taken: Mapping[str, Collection[int]], rates: Mapping[str, KeyRate]
) -> list[tuple[str, int | None]]:
    """Return (id, slot or None), in order, of the jobs that have a slot where they need one, and a start."""
    with_slots = [(row.id, row.limit_key, row.limit_slots) for row in due if row.limit_slots is not None]
    slots = dict(assign_slots(with_slots, taken))
    started: Counter[str] = Counter()
    chosen: list[tuple[str, int | None]] = []
    for row in due:
        if row.limit_slots is not None and row.id not in slots:
            continue
        if row.rate_starts is not None:
            rate = rates.get(row.limit_key)
            if rate is None or started[row.limit_key] >= rate.left(row.rate_starts, row.rate_seconds):
                continue
            started[row.limit_key] += 1
        chosen.append((row.id, slots.get(row.id)))
    return chosen


def _taken(session: Session, due: Sequence[Any]) -> dict[str, set[int]]:
    keys = {row.limit_key for row in due if row.limit_slots is not None}
    taken: dict[str, set[int]] = {}
    if keys:
        is_held = jobs.c.slot.is_not(None)
        held = select(jobs.c.limit_key, jobs.c.slot).where(is_held, jobs.c.limit_key.in_(keys))
        for key, slot in session.execute(held):
            taken.setdefault(key, set()).add(slot)
    return taken


@cache
def _take(dialect: str) -> Update:
    """Lease the chosen jobs, each with its slot; those that others are claiming are passed over."""
    slots = _SLOTS.table(dialect)
    due = (
        select(jobs.c.id, slots.c.slot)
        .select_from(jobs.join(slots, jobs.c.id == slots.c.id))
        .where(in_state(jobs, JobState.AVAILABLE.value))
        .with_for_update(skip_locked=True, of=jobs)
        .cte("due")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return (
        update(jobs)
        .where(jobs.c.id == due.c.id)
        .values(
            state=literal_column(f"'{JobState.RUNNING.value}'"),
            attempt=jobs.c.attempt + 1,
            lease_id=bindparam("lease_id", type_=IdText),
            lease_until=wall_time(bindparam("lease_seconds", type_=Float)),
            slot=due.c.slot,
            **AT_START,
        )
        .returning(*JOB_COLUMNS)
    )
