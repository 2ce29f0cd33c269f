"""The relay: turns pending outbox messages into one delivery for each endpoint that wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import Any, TypeAlias, cast

from sqlalchemy import (
    Insert,
    Integer,
    Row,
    Select,
    String,
    Table,
    Update,
    bindparam,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from svc_infra import failpoints
from svc_infra.clock import Clock, SystemClock
from svc_infra.db.base import TENANT_ID_LENGTH, IdText, UtcDateTime, new_id
from svc_infra.db.outbox import MESSAGES_CHANNEL, OutboxMessageRow, OutboxState
from svc_infra.db.rowset import Rowset
from svc_infra.db.session import finds_any
from svc_infra.jobs.loop import run_loop
from svc_infra.jobs.waking import WakeUp
from svc_infra.webhooks.deliverer import Deliverer
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.models import DeliveryRow, EndpointRow
from svc_infra.webhooks.ordering import HELD_FOR_ORDER, HELD_WHILE_DISABLED, lock_endpoints, promote
from svc_infra.webhooks.payload_filter import data_of, fits
from svc_infra.webhooks.topic_patterns import is_wanted

BATCH_SIZE = 500
# A larger batch is rather committed soon than claimed from: its first deliveries are under way meanwhile.
_SENT_AT_ONCE = 50
_ROWS_PER_INSERT = 10_000

_MESSAGES = cast(Table, OutboxMessageRow.__table__)
_ENDPOINTS = cast(Table, EndpointRow.__table__)
_DELIVERIES = cast(Table, DeliveryRow.__table__)
_TENANTS = Rowset("tenants", tenant_id=String(TENANT_ID_LENGTH))
_RELAYED = Rowset("relayed", id=IdText)
_FAN_OUT = Rowset(
    "fan_out",
    id=IdText,
    message_id=IdText,
    endpoint_id=IdText,
    tenant_id=String(TENANT_ID_LENGTH),
    state=String(16),
    hold_reason=String(20),
    lane_key=String(255),
)
FanOutRow: TypeAlias = tuple[str, str, str, str | None, str, str | None, str | None]


class Relay:
    """Fans out what was published, in batches of one transaction each, beside any number of other relays."""

    def __init__(
        self,
        session_factory: async_sessionmaker[AsyncSession],
        clock: Clock | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        poll_seconds: float = 1.0,
        deliverer: Deliverer | None = None,
        is_listening: bool = True,
    ) -> None:
        """Make a relay; a ``deliverer`` of the same process sends at once what it relays.

        ``is_listening`` is False behind a transaction pooler: what other processes publish then waits for the
        next poll.
        """
        self._session_factory = session_factory
        self._clock = clock or SystemClock()
        self._batch_size = batch_size
        self._poll_seconds = poll_seconds
        self._deliverer = deliverer
        self._is_listening = is_listening
        self._has_news = False
        self._wake = asyncio.Event()

    async def run_once(self) -> int:
        """Relay one batch and return how many messages it had; 0 means that none is pending."""
        now = self._clock.now()
        has_news, self._has_news = self._has_news, False
        if not has_news and not await finds_any(self._session_factory, any_pending()):
            return 0
        if self._deliverer is None:
            async with self._session_factory.begin() as session:
                return await session.run_sync(relay_pending, now=now, limit=self._batch_size)
        handover = self._deliverer.claimer.handover(now)
        async with handover as lease, self._session_factory.begin() as session:
            count = await session.run_sync(relay_pending, now=now, limit=self._batch_size)
            is_leased = 0 < count <= _SENT_AT_ONCE and await lease(session)
        if count and not is_leased:
            self._deliverer.wake()
        self._has_news = self._has_news or count == self._batch_size
        return count

    async def drain(self) -> int:
        """Relay until nothing is pending and return how many messages there were."""
        total = 0
        while count := await self.run_once():
            total += count
        return total

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until ``stop`` is set: soon after a publish, after ``wake``, and every ``poll_seconds``."""

        async def step() -> bool:
            return await self.run_once() == self._batch_size

        url = self._session_factory().sync_session.get_bind().engine.url
        wake_up = WakeUp(url, self.wake, channel=MESSAGES_CHANNEL)
        async with asyncio.TaskGroup() as parts:
            parts.create_task(wake_up.run(stop, is_listening=self._is_listening))
            parts.create_task(
                run_loop("webhooks.relay", step, stop=stop, wake=self._wake, poll_seconds=self._poll_seconds)
            )

    def wake(self) -> None:
        """Say that something was published and committed."""
        self._has_news = True
        self._wake.set()


def relay_pending(session: Session, *, now: datetime, limit: int) -> int:
    """Make the deliveries of up to ``limit`` pending messages, due ``now``; return how many messages.

    Messages are found by their state and never by "id greater than the last one": ids are made before a
    commit makes them visible, so a cursor would pass by what commits late. A message that no endpoint
    wants is kept, relayed without a delivery. A disabled endpoint gets its deliveries held.
    """
    dialect = session.get_bind().dialect.name
    messages = session.execute(_pending(), {"limit": limit}).all()
    if not messages:
        return 0
    tenants = {message.tenant_id for message in messages if message.tenant_id is not None}
    endpoints = session.execute(
        _endpoints(dialect), _TENANTS.parameters(dialect, [(tenant_id,) for tenant_id in sorted(tenants)])
    ).all()
    rows = list(_fan_out(session, dialect, messages, endpoints))
    lanes = _lanes(messages, endpoints)
    insert_deliveries(session, rows, now=now, lanes=lanes)
    session.execute(
        _mark_relayed(dialect), _RELAYED.parameters(dialect, [(message.id,) for message in messages])
    )
    promote(session, lanes, now=now)
    failpoints.reached("before_relay_commit")
    return len(messages)


def insert_deliveries(
    session: Session, rows: Sequence[FanOutRow], *, now: datetime, lanes: Iterable[tuple[str, str]] = ()
) -> None:
    """Insert deliveries due ``now``, those that exist excepted, with the endpoints of ``lanes`` locked."""
    dialect = session.get_bind().dialect.name
    if endpoint_ids := {endpoint_id for endpoint_id, _ in lanes}:
        lock_endpoints(session, endpoint_ids)
    for start in range(0, len(rows), _ROWS_PER_INSERT):
        chunk = _FAN_OUT.parameters(dialect, rows[start : start + _ROWS_PER_INSERT])
        session.execute(_insert_deliveries(dialect), {**chunk, "now": now})


def _lanes(messages: Sequence[Row[Any]], endpoints: Sequence[Row[Any]]) -> set[tuple[str, str]]:
    """Return every ordered lane that these messages could be in.

    Also of endpoints that do not want them: a later message may have waited for them to be relayed.
    """
    ordered = [endpoint for endpoint in endpoints if endpoint.ordering == "key"]
    keyed = {(message.tenant_id, message.key) for message in messages if message.key is not None}
    return {
        (endpoint.id, key)
        for endpoint in ordered
        for tenant_id, key in keyed
        if endpoint.tenant_id in (None, tenant_id)
    }


def delivery_of(message: Row[Any], endpoint: Row[Any]) -> FanOutRow:
    """Return the delivery of a message to an endpoint; held if it is disabled or something goes before."""
    lane_key = message.key if endpoint.ordering == "key" else None
    reason = HELD_FOR_ORDER if lane_key is not None else None
    if not endpoint.is_enabled:
        reason = HELD_WHILE_DISABLED
    state = (DeliveryState.PENDING if reason is None else DeliveryState.HELD).value
    return new_id(), message.id, endpoint.id, message.tenant_id, state, reason, lane_key


def _fan_out(
    session: Session, dialect: str, messages: Sequence[Row[Any]], endpoints: Sequence[Row[Any]]
) -> Iterator[FanOutRow]:
    """Yield a delivery for every message and endpoint that belong together."""
    wanted_by: dict[tuple[str, str | None], list[Row[Any]]] = {}
    for message in messages:
        kind = (message.topic, message.tenant_id)
        if kind not in wanted_by:
            wanted_by[kind] = [
                endpoint
                for endpoint in endpoints
                if is_wanted(*kind, patterns=endpoint.topics, endpoint_tenant_id=endpoint.tenant_id)
            ]
    is_filtered = {kind for kind, wanting in wanted_by.items() if any(one.payload_filter for one in wanting)}
    looked_into = [one.id for one in messages if (one.topic, one.tenant_id) in is_filtered]
    bodies = _bodies_of(session, dialect, looked_into)
    for message in messages:
        data = data_of(bodies[message.id]) if message.id in bodies else None
        for endpoint in wanted_by[message.topic, message.tenant_id]:
            if not endpoint.payload_filter or fits(endpoint.payload_filter, data):
                yield delivery_of(message, endpoint)


def _bodies_of(session: Session, dialect: str, message_ids: Sequence[str]) -> dict[str, bytes]:
    if not message_ids:
        return {}
    rows = session.execute(_bodies(dialect), _RELAYED.parameters(dialect, [(id_,) for id_ in message_ids]))
    return {row.id: row.body for row in rows}


@cache
def any_pending() -> Select[Any]:
    """A message that is to be relayed."""
    return select(_MESSAGES.c.id).where(_is_pending()).limit(1)


def _is_pending() -> ColumnElement[bool]:
    return _MESSAGES.c.state == literal(OutboxState.PENDING.value, literal_execute=True)


@cache
def _pending() -> Select[Any]:
    return (
        select(_MESSAGES.c.id, _MESSAGES.c.topic, _MESSAGES.c.tenant_id, _MESSAGES.c.key)
        .where(_is_pending())
        .order_by(_MESSAGES.c.id)
        .limit(bindparam("limit", type_=Integer))
        .with_for_update(skip_locked=True)
    )


@cache
def _endpoints(dialect: str) -> Select[Any]:
    tenants = _TENANTS.table(dialect)
    return select(
        _ENDPOINTS.c.id,
        _ENDPOINTS.c.tenant_id,
        _ENDPOINTS.c.topics,
        _ENDPOINTS.c.is_enabled,
        _ENDPOINTS.c.ordering,
        _ENDPOINTS.c.payload_filter,
    ).where(or_(_ENDPOINTS.c.tenant_id.is_(None), _ENDPOINTS.c.tenant_id.in_(select(tenants.c.tenant_id))))


@cache
def _bodies(dialect: str) -> Select[Any]:
    wanted = _RELAYED.table(dialect)
    return select(_MESSAGES.c.id, _MESSAGES.c.body).join(wanted, wanted.c.id == _MESSAGES.c.id)


@cache
def _insert_deliveries(dialect: str) -> Insert:
    rows = _FAN_OUT.table(dialect)
    now = bindparam("now", type_=UtcDateTime)
    insert = postgresql.insert(_DELIVERIES) if dialect == "postgresql" else sqlite.insert(_DELIVERIES)
    # SQLite needs the WHERE to tell ON CONFLICT from a join's ON.
    fresh = select(*rows.c, now, now, literal(0), literal(0)).where(true())
    names = [*_FAN_OUT.columns, "run_at", "created_at", "attempt", "rescues"]
    return insert.from_select(names, fresh).on_conflict_do_nothing(
        index_elements=["message_id", "endpoint_id"]
    )


@cache
def _mark_relayed(dialect: str) -> Update:
    relayed = _RELAYED.table(dialect)
    return update(_MESSAGES).where(_MESSAGES.c.id == relayed.c.id).values(state=OutboxState.RELAYED.value)
