"""Replays: send an endpoint again what was published in a span of time, durably and at a rate.

A replay is a row. A worker takes a batch of messages after its cursor, makes their deliveries due one after
the other at the rate, and moves the cursor, all in one transaction: killed at any point, it goes on where it
was. Memory is that of one batch, however much is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from svc_infra.db.base import new_id
from svc_infra.db.outbox import OutboxMessageRow, OutboxState
from svc_infra.exceptions import InvalidEndpoint, NotFound
from svc_infra.webhooks.audit import DEFAULT_ACTOR, note_act
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.endpoints import is_owner, locked_row
from svc_infra.webhooks.models import DeliveryRow, EndpointRow, ReplayRow
from svc_infra.webhooks.operational import ENDPOINT_TEST
from svc_infra.webhooks.payload_filter import data_of, fits
from svc_infra.webhooks.redelivery import REPLAY, requeue
from svc_infra.webhooks.relay import insert_deliveries
from svc_infra.webhooks.retention import Retention
from svc_infra.webhooks.topic_patterns import check_pattern, is_wanted, matches

MISSING = "missing"
DEFAULT_RATE_PER_SECOND = 100.0
BATCH_SIZE = 500
REPLAYABLE = (
    DeliveryState.DELIVERED.value,
    DeliveryState.DEAD.value,
    DeliveryState.HELD.value,
    MISSING,
)
_RUNNING, _COMPLETED, _CANCELLED = "running", "completed", "cancelled"
_KEPT = Retention().delivered
_WAIT_FOR_ENABLING = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay: ``state`` is running, completed or cancelled, ``queued`` is how much was made due so far."""

    id: str
    endpoint_id: str
    state: str
    since: datetime | None
    until: datetime
    states: tuple[str, ...]
    topics: tuple[str, ...]
    rate_per_second: float
    queued: int
    created_at: datetime
    finished_at: datetime | None


def start_replay(
    session: Session,
    endpoint_id: str,
    *,
    now: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
    states: Sequence[str] = REPLAYABLE,
    topics: Sequence[str] = (),
    rate_per_second: float = DEFAULT_RATE_PER_SECOND,
    tenant_id: str | None = None,
    actor: str = DEFAULT_ACTOR,
) -> Replay:
    """Begin to send an endpoint what occurred from ``since`` to ``until`` (included; ``now`` unless given).

    Only what it wants by its topics and filter, and of that what matches ``topics`` and whose delivery is in
    one of ``states``; ``missing`` is a message that never had one, because the endpoint is younger.

    Raises:
        NotFound: there is no such endpoint, or it is another tenant's.
        InvalidEndpoint: a state is none of the four, or the rate is not from 0.1 to 10,000 a second.
        InvalidTopic: one of ``topics`` is neither a topic nor one with a trailing wildcard.
    """
    endpoint = locked_row(session, endpoint_id, tenant_id=tenant_id)
    if not states or not set(states) <= set(REPLAYABLE):
        raise InvalidEndpoint(f"what is replayed is in one of these states: {', '.join(REPLAYABLE)}")
    if not 0.1 <= rate_per_second <= 10_000:
        raise InvalidEndpoint("the rate of a replay is from 0.1 to 10,000 messages a second")
    row = ReplayRow(
        id=new_id(),
        endpoint_id=endpoint.id,
        state=_RUNNING,
        since=since,
        until=until or now,
        states=list(states),
        topics=[check_pattern(topic) for topic in topics],
        rate_per_second=rate_per_second,
        cursor="",
        queued=0,
        next_at=now,
        created_at=now,
    )
    session.add(row)
    asked = {"replay_id": row.id, "states": list(states), "topics": list(topics)}
    note_act(session, endpoint, actor, "replay", asked)
    session.flush()
    return _as_replay(row)


def cancel_replay(
    session: Session,
    replay_id: str,
    *,
    now: datetime,
    tenant_id: str | None = None,
    actor: str = DEFAULT_ACTOR,
) -> Replay:
    """End a replay; what it has made due already is sent.

    Raises:
        NotFound: there is no such replay, or its endpoint is another tenant's.
    """
    row = session.get(ReplayRow, replay_id, with_for_update=True)
    if row is None or not is_owner(session, row.endpoint_id, tenant_id):
        raise NotFound(f"no replay {replay_id!r}; 'worker.py webhooks replays' shows them")
    endpoint = locked_row(session, row.endpoint_id, tenant_id=tenant_id)
    if row.state == _RUNNING:
        row.state, row.finished_at = _CANCELLED, now
        note_act(session, endpoint, actor, "cancel_replay", {"replay_id": row.id})
        session.flush()
    return _as_replay(row)


def get_replay(session: Session, replay_id: str, *, tenant_id: str | None = None) -> Replay:
    """Return one replay.

    Raises:
        NotFound: there is no such replay, or its endpoint is another tenant's.
    """
    row = session.get(ReplayRow, replay_id)
    if row is None or not is_owner(session, row.endpoint_id, tenant_id):
        raise NotFound(f"no replay {replay_id!r}; 'worker.py webhooks replays' shows them")
    return _as_replay(row)


def list_replays(
    session: Session,
    *,
    endpoint_id: str | None = None,
    tenant_id: str | None = None,
    before: str | None = None,
    limit: int = 100,
) -> list[Replay]:
    """Return replays, newest first; given ``tenant_id``, only those to that tenant's endpoints.

    For the next page give the last id as ``before``.
    """
    query = select(ReplayRow).order_by(ReplayRow.id.desc()).limit(limit)
    if tenant_id is not None:
        theirs = select(EndpointRow.id).where(EndpointRow.tenant_id == tenant_id)
        query = query.where(ReplayRow.endpoint_id.in_(theirs))
    if endpoint_id is not None:
        query = query.where(ReplayRow.endpoint_id == endpoint_id)
    if before is not None:
        query = query.where(ReplayRow.id < before)
    return [_as_replay(row) for row in session.scalars(query)]


def advance_replay(
    session: Session, *, now: datetime, batch_size: int = BATCH_SIZE, kept: timedelta = _KEPT
) -> bool:
    """Do the next batch of one replay that is due, beside any number of others; False if none is.

    ``kept`` is for how long finished deliveries are kept: that there is none of an older message does not say
    that there never was one.
    """
    replay = session.scalars(
        select(ReplayRow)
        .where(ReplayRow.state == _RUNNING, ReplayRow.next_at <= now)
        .order_by(ReplayRow.next_at, ReplayRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if replay is None:
        return False
    endpoint = locked_row(session, replay.endpoint_id)
    if not endpoint.is_enabled:
        replay.next_at = now + _WAIT_FOR_ENABLING
        session.flush()
        return True
    messages = _next_messages(session, replay, endpoint, batch_size)
    wanted = [message for message in messages if _is_wanted(message, replay, endpoint)]
    queued = _queue(session, replay, endpoint, wanted, now, known_since=now - kept)
    replay.queued += queued
    replay.next_at = now + timedelta(seconds=queued / replay.rate_per_second)
    if messages:
        replay.cursor = messages[-1].id
    if len(messages) < batch_size:
        replay.state, replay.finished_at = _COMPLETED, now
    session.flush()
    return True


def _next_messages(
    session: Session, replay: ReplayRow, endpoint: EndpointRow, batch_size: int
) -> Sequence[Row[Any]]:
    message = OutboxMessageRow
    columns: list[Any] = [message.id, message.topic, message.tenant_id, message.key, message.occurred_at]
    if endpoint.payload_filter:
        columns.append(message.body)
    query = select(*columns).where(
        message.id > replay.cursor,
        message.state == OutboxState.RELAYED.value,
        message.occurred_at <= replay.until,
    )
    if replay.since is not None:
        query = query.where(message.occurred_at >= replay.since)
    if endpoint.tenant_id is not None:
        query = query.where(message.tenant_id == endpoint.tenant_id)
    rows: Sequence[Row[Any]] = session.execute(query.order_by(message.id).limit(batch_size)).all()
    return rows


def _is_wanted(message: Row[Any], replay: ReplayRow, endpoint: EndpointRow) -> bool:
    is_theirs = is_wanted(
        message.topic,
        message.tenant_id,
        patterns=endpoint.topics,
        endpoint_tenant_id=endpoint.tenant_id,
    )
    if not is_theirs or (replay.topics and not any(matches(one, message.topic) for one in replay.topics)):
        return False
    return not endpoint.payload_filter or fits(endpoint.payload_filter, data_of(message.body))


def _queue(
    session: Session,
    replay: ReplayRow,
    endpoint: EndpointRow,
    wanted: Sequence[Row[Any]],
    now: datetime,
    known_since: datetime,
) -> int:
    """Make the deliveries of ``wanted`` due, one after the other at the replay's rate."""
    if not wanted:
        return 0
    ids = [message.id for message in wanted]
    query = select(DeliveryRow.message_id, DeliveryRow.id, DeliveryRow.state).where(
        DeliveryRow.endpoint_id == endpoint.id, DeliveryRow.message_id.in_(ids)
    )
    existing = {row.message_id: row for row in session.execute(query)}
    chosen, missing = [], []
    for message in wanted:
        found = existing.get(message.id)
        if found is not None and found.state in replay.states:
            chosen.append(found.id)
        elif found is None and MISSING in replay.states and _is_missing(message, endpoint, known_since):
            # Held until all of the batch is made due in its order, by one statement below.
            lane_key = message.key if endpoint.ordering == "key" else None
            held = DeliveryState.HELD.value
            missing.append((new_id(), message.id, endpoint.id, message.tenant_id, held, REPLAY, lane_key))
            chosen.append(missing[-1][0])
    insert_deliveries(session, missing, now=now)
    step = timedelta(seconds=1 / replay.rate_per_second)
    due = [(delivery_id, now + place * step) for place, delivery_id in enumerate(chosen)]
    states = {*replay.states, DeliveryState.HELD.value} if missing else set(replay.states)
    return requeue(session, endpoint, due, states=sorted(states), trigger=REPLAY, now=now)


def _is_missing(message: Row[Any], endpoint: EndpointRow, known_since: datetime) -> bool:
    """Tell whether a message without a delivery never had one; else that it was delivered is forgotten."""
    if message.topic == ENDPOINT_TEST:  # sent to the one endpoint that is tried
        return False
    return bool(message.occurred_at < endpoint.created_at or message.occurred_at >= known_since)


def _as_replay(row: ReplayRow) -> Replay:
    return Replay(
        row.id,
        row.endpoint_id,
        row.state,
        row.since,
        row.until,
        tuple(row.states),
        tuple(row.topics),
        row.rate_per_second,
        row.queued,
        row.created_at,
        row.finished_at,
    )
