"""What started of each key with a rate: a row that whoever claims jobs of the key has locked meanwhile."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    Float,
    Integer,
    String,
    Text,
    bindparam,
    cast,
    delete,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from svc_infra.db.base import UtcDateTime
from svc_infra.db.leases import is_among
from svc_infra.db.rowset import Rowset
from svc_infra.jobs.lines import rates
from svc_infra.jobs.rate import Starts, next_start_at, starts_left, with_starts
from svc_infra.jobs.rows import dialect_of

_STARTED = Rowset(
    "started",
    key=String(255),
    started=Text,
    per_seconds=Float,
    blocked_until=UtcDateTime,
    kept_until=UtcDateTime,
)


@dataclass(frozen=True, slots=True)
class KeyRate:
    """What had started of one key at ``now``, the time of the claim that has locked it."""

    started: Starts
    per_seconds: float
    now: datetime

    def left(self, starts: int, per_seconds: float) -> int:
        """Return how many may start now under this rate."""
        return starts_left(self.started, starts, per_seconds, now=self.now)


def lock_rates(session: Session, due: Sequence[Any], *, now: datetime) -> dict[str, KeyRate]:
    """Lock the rows of the keys of those jobs that have a rate; one that another claim holds is left out."""
    keys = {row.limit_key for row in due if row.rate_starts is not None}
    locked = _lock(session, keys, now)
    if len(locked) == len(keys):
        return locked
    # Only what is missing is inserted: an insert would wait for whoever is claiming of the same key.
    there = session.execute(select(rates.c.key).where(rates.c.key.in_(keys))).scalars()
    missing = sorted(keys - set(there))
    if missing:
        insert = sqlite.insert if dialect_of(session) == "sqlite" else postgresql.insert
        rows = [{"key": key, "started": [], "per_seconds": 0.0, "kept_until": now} for key in missing]
        session.execute(insert(rates).values(rows).on_conflict_do_nothing())
        locked |= _lock(session, missing, now)
    return locked


def _lock(session: Session, keys: Collection[str], now: datetime) -> dict[str, KeyRate]:
    if not keys:
        return {}
    chosen = select(rates.c.key, rates.c.started, rates.c.per_seconds).where(rates.c.key.in_(keys))
    rows = session.execute(chosen.with_for_update(skip_locked=True))
    return {key: KeyRate(started, per_seconds, now) for key, started, per_seconds in rows}


def record_starts(
    session: Session,
    due: Sequence[Any],
    locked: Mapping[str, KeyRate],
    claimed: Collection[str],
    *,
    now: datetime,
) -> None:
    """Write what started of the locked keys, and until when those that are used up are passed over."""
    counts: Counter[str] = Counter(row.limit_key for row in due if row.id in claimed)
    rows = []
    for row in {row.limit_key: row for row in due if row.limit_key in locked}.values():
        rate = locked[row.limit_key]
        kept_seconds = max(rate.per_seconds, row.rate_seconds)
        started = with_starts(
            rate.started, counts[row.limit_key], row.rate_seconds, now=now, kept_seconds=kept_seconds
        )
        free_at = next_start_at(started, row.rate_starts, row.rate_seconds, now=now)
        kept_until = now + timedelta(seconds=2 * kept_seconds)
        blocked_until = free_at if free_at > now else None
        rows.append((row.limit_key, json.dumps(started), kept_seconds, blocked_until, kept_until))
    if rows:
        dialect = dialect_of(session)
        session.execute(_write(dialect), _STARTED.parameters(dialect, rows))


def prune_rates(session: Session, *, now: datetime, limit: int) -> int:
    """Delete up to ``limit`` rows that no stretch of time needs any more; return how many."""
    return len(session.execute(_prune(), {"now": now, "limit": limit}).all())


@cache
def _write(dialect: str) -> Any:
    new = _STARTED.table(dialect)
    started = type_coerce(new.c.started, JSON) if dialect == "sqlite" else cast(new.c.started, JSON)
    return (
        update(rates)
        .where(rates.c.key == new.c.key)
        .values(
            started=started,
            per_seconds=new.c.per_seconds,
            blocked_until=new.c.blocked_until,
            kept_until=new.c.kept_until,
        )
    )


@cache
def _prune() -> Any:
    old = (
        select(rates.c.key)
        .where(rates.c.kept_until < bindparam("now", type_=UtcDateTime))
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True)
        .cte("old")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return delete(rates).where(is_among(rates.c.key, select(old.c.key))).returning(rates.c.key)
