"""Voiding and amending recorded usage: events stay as they were, a correction says what counts instead.

A correction is a row of its own and is never changed. It marks the day of the event, so the next recompute
leaves the event out; what was billed already is settled like usage that came late.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, cast

from sqlalchemy import Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from svc_infra.billing.first_use import ready
from svc_infra.billing.usage import mark_days, quantity, record_many
from svc_infra.billing.usage_event import NewUsage
from svc_infra.billing.usage_limits import NO_LIMITS, UsageLimits
from svc_infra.billing.usage_models import ArchivedUsage, UsageCorrection, UsageEvent
from svc_infra.exceptions import AlreadyCorrected, IdempotencyConflict, InvalidUsage, NotFound

ACTOR_LENGTH, REASON_LENGTH = 200, 2_000


def void_usage(
    session: Session, tenant_id: str, event_id: str, *, reason: str, actor: str, now: datetime
) -> UsageCorrection:
    """Take an event out of everything that is counted from now on. Does not commit.

    Voiding it again returns the first correction. ``actor`` is who did it.

    Raises:
        NotFound: the tenant has no such event.
        InvalidUsage: reason or actor is missing.
        AlreadyCorrected: the event was amended.
    """
    event = _event_to_correct(session, tenant_id, event_id, reason, actor)
    return _correct(session, event, event_id, None, reason, actor, now)


def amend_usage(
    session: Session,
    tenant_id: str,
    event_id: str,
    *,
    reason: str,
    actor: str,
    now: datetime,
    amount: int | str | Decimal | None = None,
    at: datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
    limits: UsageLimits = NO_LIMITS,
) -> str:
    """Replace an event by one with another amount, instant or metadata; return the replacement's id.

    What is not given stays. The replacement is an event of its own, which can be voided and amended in its
    turn. The same amendment again returns the same id. Does not commit.

    Raises:
        NotFound: the tenant has no such event.
        InvalidUsage: the replacement cannot be recorded, or reason or actor is missing.
        AlreadyCorrected: the event was voided.
        IdempotencyConflict: the event was amended otherwise already; amend its replacement.
    """
    event = _event_to_correct(session, tenant_id, event_id, reason, actor)
    replacement = NewUsage(
        tenant_id,
        event.metric,
        event.amount if amount is None else quantity(amount),
        event.at if at is None else at,
        f"{event_id}:amended",
        event.metadata if metadata is None else metadata,
    )
    if replacement.payload == event.payload:
        raise InvalidUsage(f"the amendment of event {event_id!r} changes nothing; void it to take it back")
    [recorded] = record_many(session, [replacement], now=now, limits=limits)
    if recorded.outcome == "rejected":
        raise InvalidUsage(recorded.reason)
    if recorded.outcome == "conflict":
        raise IdempotencyConflict(
            f"event {event_id!r} was amended otherwise already; amend its replacement {recorded.id!r}"
        )
    _correct(session, event, event_id, recorded.id, reason, actor, now)
    return recorded.id


def correction_of(session: Session, tenant_id: str, event_id: str) -> UsageCorrection | None:
    """The correction of an event, None if it counts as it was recorded."""
    return session.get(UsageCorrection, (tenant_id, event_id), populate_existing=True)


def _event_to_correct(session: Session, tenant_id: str, event_id: str, reason: str, actor: str) -> NewUsage:
    ready(session)
    for name, text, length in (("reason", reason, REASON_LENGTH), ("actor", actor, ACTOR_LENGTH)):
        if not text.strip() or len(text) > length:
            raise InvalidUsage(f"a correction needs a {name} of 1 to {length} characters")
    return recorded_usage(session, tenant_id, event_id)


def recorded_usage(session: Session, tenant_id: str, event_id: str) -> NewUsage:
    """A recorded event as it was given; NotFound if the tenant has none of this id."""
    row = recorded_event(session, tenant_id, event_id)
    metadata = None if row.metadata_json is None else json.loads(row.metadata_json)
    return NewUsage(tenant_id, row.metric, row.amount, row.at_ts, row.idempotency_key, metadata)


def recorded_event(session: Session, tenant_id: str, event_id: str) -> UsageEvent | ArchivedUsage:
    """The row of a recorded event, be it archived or not; NotFound if the tenant has none of this id."""
    # In this order: events move to the archive and never back.
    row = session.get(UsageEvent, (tenant_id, event_id), populate_existing=True) or session.get(
        ArchivedUsage, (tenant_id, event_id)
    )
    if row is None:
        raise NotFound(f"tenant {tenant_id!r} has no usage event {event_id!r}")
    return row


def _correct(
    session: Session,
    event: NewUsage,
    event_id: str,
    replacement_id: str | None,
    reason: str,
    actor: str,
    now: datetime,
) -> UsageCorrection:
    """Write the correction, once: of two at the same time one waits here for the other's commit."""
    dialect = session.get_bind().dialect.name
    values = {
        "tenant_id": event.tenant_id,
        "event_id": event_id,
        "kind": "void" if replacement_id is None else "amend",
        "replacement_id": replacement_id,
        "metric": event.metric,
        "at_ts": event.at,
        "amount": event.amount,
        "reason": reason,
        "actor": actor,
        "created_at": now,
    }
    session.execute(_insert(dialect), values)
    correction = correction_of(session, event.tenant_id, event_id)
    if correction is None or correction.replacement_id != replacement_id:
        raise AlreadyCorrected(
            f"event {event_id!r} was {'voided' if replacement_id else 'amended'} already; "
            "correct what counts in its place"
        )
    mark_days(session, [event])
    return correction


@cache
def _insert(dialect: str) -> Insert:
    table = cast("Table", UsageCorrection.__table__)
    insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement: Insert = insert(table).on_conflict_do_nothing()
    return statement
