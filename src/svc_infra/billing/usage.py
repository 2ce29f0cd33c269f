"""Recording usage: checked events, kept once per idempotency key, with a mark on every day they change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import DateTime, Insert, Select, String, insert, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from svc_infra.billing.late_policy import late_refusals
from svc_infra.billing.metrics import USAGE_INGESTED
from svc_infra.billing.models import KEY_LENGTH, MetricText, TenantText, UsageDirtyDay, UsageEvent
from svc_infra.billing.periods import Period, day_bounds
from svc_infra.billing.tenants import zones_of
from svc_infra.billing.usage_event import NewUsage, quantity
from svc_infra.billing.usage_insert import EVENT_COLUMNS, insert_usage
from svc_infra.billing.usage_limits import NO_LIMITS, UsageLimits
from svc_infra.billing.usage_meters import meterings_of
from svc_infra.billing.usage_models import RECORDED, ArchivedUsage, TenantErasure
from svc_infra.billing.usage_rejections import keep_rejections
from svc_infra.db.after_commit import call_after_commit
from svc_infra.db.base import IdText, new_id
from svc_infra.db.rowset import Rowset
from svc_infra.db.session import by_statements, commit
from svc_infra.exceptions import InvalidUsage

__all__ = ["NewUsage", "RecordedUsage", "UsageLimits", "quantity", "record_alone", "record_many"]

Outcome: TypeAlias = Literal["inserted", "duplicate", "conflict", "rejected"]
_Identity: TypeAlias = tuple[str, str, str]
_Payload: TypeAlias = tuple[Decimal, datetime, str | None]

_KEYS = Rowset(
    "new_keys", tenant_id=TenantText, metric=MetricText, idempotency_key=String(KEY_LENGTH), id=IdText
)
_MARK_COLUMNS = ("tenant_id", "metric", "day_start", "day_end")
_MARKS = Rowset(
    "marks",
    tenant_id=TenantText,
    metric=MetricText,
    day_start=DateTime(timezone=True),
    day_end=DateTime(timezone=True),
)


_RESULTS = {
    outcome: USAGE_INGESTED.labels(outcome) for outcome in ("inserted", "duplicate", "conflict", "rejected")
}


class RecordedUsage(NamedTuple):
    """What became of an event: ``id`` is that of the event that its key was first used for.

    ``inserted``: it is recorded now. ``duplicate``: it was already. ``conflict``: its key is taken by an
    event with another payload, and this one was not recorded. ``rejected``: it lies outside the limits or
    its amount is negative; ``reason`` says so, and ``id`` is that of the rejection that is kept of it.
    """

    id: str
    outcome: Outcome
    reason: str = ""


def record_many(
    session: Session, events: Sequence[NewUsage], *, now: datetime, limits: UsageLimits = NO_LIMITS
) -> list[RecordedUsage]:
    """Record ``events`` in the session's transaction and say, in their order, what became of each.

    The days that get a new event are marked for aggregation in the same transaction. A conflict writes
    nothing and leaves the session as usable as before. ``now`` becomes ``created_at``.
    """
    reasons = _reasons_to_refuse(session, events, limits, now)
    recorded = _record(session, events, reasons, now, only_whole=False)
    assert recorded is not None
    return recorded


async def record_alone(
    session_factory: Callable[[], AsyncSession],
    events: Sequence[NewUsage],
    *,
    now: datetime,
    limits: UsageLimits = NO_LIMITS,
) -> list[RecordedUsage]:
    """Record ``events`` in a transaction of their own, committed on return; see ``record_many``.

    For usage that goes with no other change: on PostgreSQL it is one statement without a transaction around
    it, which is twice as quick, for tenants in UTC whose events are neither refused nor repeated.
    """

    def record(session: Session) -> list[RecordedUsage] | None:
        if session.get_bind().dialect.name != "postgresql":
            return record_many(session, events, now=now, limits=limits)
        has_refused = bool(_reasons_to_refuse(session, events, limits, now))
        return None if has_refused else _record(session, events, {}, now, only_whole=True)

    recorded = await by_statements(session_factory, record)
    if recorded is None:
        async with session_factory() as session:
            recorded = await session.run_sync(record_many, events, now=now, limits=limits)
            await commit(session)
    return recorded


def _record(
    session: Session,
    events: Sequence[NewUsage],
    reasons: Mapping[int, str],
    now: datetime,
    *,
    only_whole: bool,
) -> list[RecordedUsage] | None:
    """Record the events without a reason against them; None where it had to be ``only_whole`` and is not."""
    refused = {at: RecordedUsage(new_id(), "rejected", reason) for at, reason in reasons.items()}
    if refused:
        keep_rejections(session, [(usage.id, events[at], usage.reason) for at, usage in refused.items()], now)
    first: dict[_Identity, int] = {}
    for index, event in enumerate(events):
        if index not in refused:
            first.setdefault((event.tenant_id, event.metric, event.idempotency_key), index)
    if not first:
        return [refused[index] for index in range(len(events))]
    dialect = session.get_bind().dialect.name
    # In key order, so that two batches with the same keys never wait for each other in a circle.
    # Ids are given in the order of the events: of two at one instant, the later one is the latest.
    made = {identity: new_id() for identity in first}
    ids = {identity: made[identity] for identity in sorted(first)} if len(first) > 1 else made
    new = [(ids[key], events[first[key]]) for key in ids]
    written = insert_usage(session, new, now, only_whole=only_whole)
    if only_whole and written.unmarked:
        return None
    taken = _taken(session, dialect, ids, len(ids) - written.inserted)
    if written.inserted + len(taken) != len(ids):
        raise _erased(session, {tenant_id for tenant_id, _, _ in ids})
    if written.unmarked:
        # Only now are the zones read: whoever changes one holds back the insert until it is committed.
        mark_days(
            session,
            [events[first[key]] for key in ids if key not in taken and key[0] in written.unmarked],
        )
    recorded = [
        refused.get(index) or _judge(event, index, events, first, ids, taken)
        for index, event in enumerate(events)
    ]
    _count(session, recorded)
    return recorded


def _reasons_to_refuse(
    session: Session, events: Sequence[NewUsage], limits: UsageLimits, now: datetime
) -> dict[int, str]:
    """Return why events are refused, by their place."""
    negative = {event.metric for event in events if event.amount < 0}
    late = late_refusals(session, events, now)
    if not negative and not late and limits == NO_LIMITS:
        return {}
    meterings = meterings_of(session, negative)
    return {**late, **limits.refusals(dict(enumerate(events)), meterings, now)}


def _erased(session: Session, tenant_ids: Collection[str]) -> InvalidUsage:
    asked = select(TenantErasure.tenant_id).where(TenantErasure.tenant_id.in_(sorted(tenant_ids)))
    erased = session.scalars(asked.order_by(TenantErasure.tenant_id)).first()
    if erased is None:
        return InvalidUsage("usage was erased while it was being recorded again; repeat the batch")
    return InvalidUsage(f"tenant {erased!r} was erased and is closed; a customer who returns gets a new id")


def _judge(
    event: NewUsage,
    index: int,
    events: Sequence[NewUsage],
    first: Mapping[_Identity, int],
    ids: Mapping[_Identity, str],
    taken: Mapping[_Identity, tuple[str, _Payload]],
) -> RecordedUsage:
    identity = (event.tenant_id, event.metric, event.idempotency_key)
    if identity in taken:
        original_id, payload = taken[identity]
    elif first[identity] == index:
        return RecordedUsage(ids[identity], "inserted")
    else:
        original_id, payload = ids[identity], events[first[identity]].payload
    return RecordedUsage(original_id, "duplicate" if event.payload == payload else "conflict")


def _taken(
    session: Session, dialect: str, ids: Mapping[_Identity, str], count: int
) -> dict[_Identity, tuple[str, _Payload]]:
    """The ``count`` events that hold the keys which were not inserted.

    A statement of its own: under READ COMMITTED the insert that waited for a concurrent winner cannot see
    the winner's row itself, the next statement does. The archive comes last: events move that way only.
    """
    taken: dict[_Identity, tuple[str, _Payload]] = {}
    parameters = [(*identity, event_id) for identity, event_id in ids.items()] if count else []
    for table in RECORDED:
        if len(taken) < count:
            rows = session.connection().execute(
                _select_taken(dialect, table), _KEYS.parameters(dialect, parameters)
            )
            taken |= {
                (tenant_id, metric, key): (event_id, (amount, at, metadata_json))
                for tenant_id, metric, key, event_id, amount, at, metadata_json in rows
            }
    return taken


def mark_days(session: Session, events: Sequence[NewUsage]) -> None:
    """Mark the days of these events as changed, in the session's transaction."""
    if not events:
        return
    dialect = session.get_bind().dialect.name
    zones = zones_of(session, {event.tenant_id for event in events})
    days: set[tuple[str, str, date]] = set()
    for event in events:
        zone = zones[event.tenant_id]
        local = event.at if zone is UTC else event.at.astimezone(zone)
        days.add((event.tenant_id, event.metric, local.date()))
    bounds: dict[tuple[date, tzinfo], Period] = {}
    rows = []
    for tenant_id, metric, day in sorted(days):
        at = day, zones[tenant_id]
        period = bounds.get(at) or bounds.setdefault(at, day_bounds(*at))
        rows.append((tenant_id, metric, period.start, period.end))
    session.connection().execute(_insert_marks(dialect), _MARKS.parameters(dialect, rows))


def _count(session: Session, recorded: Sequence[RecordedUsage]) -> None:
    outcomes = Counter(usage.outcome for usage in recorded)
    # A rolled-back transaction has recorded nothing, and its repetition would count a second time.
    if inserted := outcomes.pop("inserted", 0):
        call_after_commit(session, lambda: _RESULTS["inserted"].inc(inserted))
    for outcome, count in outcomes.items():
        _RESULTS[outcome].inc(count)


@cache
def _select_taken(dialect: str, table: type[UsageEvent | ArchivedUsage]) -> Select[Any]:
    new, event = _KEYS.table(dialect), table.__table__.c
    return select(*[event[name] for name in EVENT_COLUMNS]).where(
        event.tenant_id == new.c.tenant_id,
        event.metric == new.c.metric,
        event.idempotency_key == new.c.idempotency_key,
        event.id != new.c.id,
    )


@cache
def _insert_marks(dialect: str) -> Insert:
    marks = _MARKS.table(dialect)
    return insert(UsageDirtyDay).from_select(_MARK_COLUMNS, select(*[marks.c[n] for n in _MARK_COLUMNS]))
