"""Claiming due deliveries: lease a batch, and load what sending it takes.

What is claimed of an endpoint that is disabled or paused is given back at once, so a pause that another
process has just begun is kept too. Functions take a ``Session`` whose transaction is the caller's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, cast

from sqlalchemy import Row, Select, Table, Update, null, select, update
from sqlalchemy.orm import Session

from svc_infra.db.base import IdText, new_id
from svc_infra.db.leases import CLAIMS, is_held
from svc_infra.db.outbox import OutboxMessageRow
from svc_infra.db.rowset import Rowset
from svc_infra.exceptions import InvalidSecret
from svc_infra.webhooks.claimed_delivery import ClaimedDelivery
from svc_infra.webhooks.delivery import DeliveryState, EndpointTarget
from svc_infra.webhooks.due_deliveries import Round, lease_due
from svc_infra.webhooks.health import HealthPolicy, put_off, take_probe
from svc_infra.webhooks.message import Message
from svc_infra.webhooks.models import DeliveryRow, EndpointRow
from svc_infra.webhooks.ordering import HELD_WHILE_DISABLED
from svc_infra.webhooks.sealing import KeyRing
from svc_infra.webhooks.stored_options import opened_headers
from svc_infra.webhooks.stored_secrets import opened

_SENDING = DeliveryState.SENDING.value

_DELIVERIES = cast(Table, DeliveryRow.__table__)
_MESSAGES = cast(Table, OutboxMessageRow.__table__)
_ENDPOINTS = cast(Table, EndpointRow.__table__)

_WANTED = Rowset("wanted", id=IdText)


def claim(
    session: Session,
    *,
    now: datetime,
    lease_seconds: float,
    limit: int,
    allowance: int,
    allowances: Mapping[str, int],
    keys: KeyRing | None = None,
    health: HealthPolicy | None = None,
    round_: Round | None = None,
) -> tuple[list[ClaimedDelivery], bool]:
    """Lease up to ``limit`` deliveries that are due at ``now``, the longest due first; return them, and
    whether some were given back at once, behind which others may be due.

    Of one endpoint no more than its entry in ``allowances`` are taken, or ``allowance`` where it has none, so
    that an endpoint which hangs cannot fill the sender; with ``round_`` half come from the endpoints in turn,
    so that a backlog of one cannot hide the others'. What waits for a disabled endpoint becomes held, what
    waits for a paused one is put off; of one whose pause is over a single delivery is sent as a probe.
    """
    dialect = session.get_bind().dialect.name
    lease_id = new_id()
    claimed = lease_due(
        session,
        now=now,
        lease_id=lease_id,
        lease_seconds=lease_seconds,
        limit=limit,
        allowance=allowance,
        allowances=allowances,
        round_=round_,
    )
    if not claimed:
        return [], False
    assert len(claimed) <= limit
    rows = sorted(claimed, key=lambda row: (row.run_at, row.id))
    endpoints = _endpoints_of(session, dialect, rows)
    probes: dict[str, datetime] = {}
    kept = _without_held_back(session, lease_id, rows, endpoints, now, health or HealthPolicy(), probes)
    loaded = _loaded(session, dialect, lease_id, kept, endpoints, keys, probes)
    return loaded, len(kept) < len(rows)


def give_back(session: Session, claims: Sequence[tuple[str, str]], *, is_disabled: bool = False) -> None:
    """Give back claimed deliveries (id, lease id) that were not sent; their attempt does not count."""
    dialect = session.get_bind().dialect.name
    session.execute(_give_back(dialect, is_disabled), CLAIMS.parameters(dialect, claims))


def _endpoints_of(session: Session, dialect: str, rows: Sequence[Row[Any]]) -> dict[str, Row[Any]]:
    ids = sorted({row.endpoint_id for row in rows})
    found = session.execute(_load_endpoints(dialect), _WANTED.parameters(dialect, [(id_,) for id_ in ids]))
    return {row.id: row for row in found}


def _without_held_back(
    session: Session,
    lease_id: str,
    rows: Sequence[Row[Any]],
    endpoints: Mapping[str, Row[Any]],
    now: datetime,
    health: HealthPolicy,
    probes: dict[str, datetime],
) -> list[Row[Any]]:
    """Give back what is not to be sent now; return the rest.

    ``probes`` gets the endpoints that are sent a probe, with the end of the pause that begins with it.
    """
    if all(endpoint.is_enabled and endpoint.paused_until is None for endpoint in endpoints.values()):
        return list(rows)
    by_endpoint: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in rows:
        by_endpoint[row.endpoint_id].append(row)
    kept: list[Row[Any]] = []
    for endpoint_id, mine in by_endpoint.items():
        endpoint = endpoints[endpoint_id]
        if not endpoint.is_enabled:
            give_back(session, [(row.id, lease_id) for row in mine], is_disabled=True)
            continue
        until, sent = _pause_of(session, endpoint, now, health)
        if until is None or sent is None:
            kept += mine
            continue
        if held_back := mine[sent:]:
            give_back(session, [(row.id, lease_id) for row in held_back])
            put_off(session, endpoint_id, until=until)
        if sent:
            probes[endpoint_id] = until
        kept += mine[:sent]
    return kept


def _pause_of(
    session: Session, endpoint: Row[Any], now: datetime, health: HealthPolicy
) -> tuple[datetime | None, int | None]:
    """Return until when an endpoint is paused, and how many deliveries it is sent all the same."""
    if endpoint.paused_until is None:
        return None, None
    if endpoint.paused_until > now:
        return endpoint.paused_until, 0
    if endpoint.failures_in_a_row < health.pause_after:
        return None, None  # it had only asked for time
    until = take_probe(session, endpoint.id, seen=endpoint.paused_until, now=now, policy=health)
    if until is None:
        return now + timedelta(seconds=health.pause_seconds), 0  # another deliverer probes it
    return until, 1


def _loaded(
    session: Session,
    dialect: str,
    lease_id: str,
    rows: Sequence[Row[Any]],
    endpoints: Mapping[str, Row[Any]],
    keys: KeyRing | None,
    probes: Mapping[str, datetime],
) -> list[ClaimedDelivery]:
    if not rows:
        return []
    wall_now = datetime.now(UTC)
    targets = {
        endpoint_id: _target(endpoints[endpoint_id], keys, wall_now)
        for endpoint_id in {row.endpoint_id for row in rows}
    }
    ids = [(id_,) for id_ in sorted({row.message_id for row in rows})]
    messages = {
        row.id: Message(*row)
        for row in session.execute(_load_messages(dialect), _WANTED.parameters(dialect, ids))
    }
    return [
        _as_claimed(
            row,
            lease_id,
            messages[row.message_id],
            targets[row.endpoint_id],
            endpoints[row.endpoint_id],
            probes.get(row.endpoint_id),
        )
        for row in rows
    ]


def _as_claimed(
    row: Row[Any],
    lease_id: str,
    message: Message,
    target: EndpointTarget,
    endpoint: Row[Any],
    probed_until: datetime | None,
) -> ClaimedDelivery:
    return ClaimedDelivery(
        row.id,
        lease_id,
        row.attempt,
        row.endpoint_id,
        message,
        target,
        endpoint.tenant_id,
        row.attempt_base,
        row.trigger,
        row.lane_key,
        bool(endpoint.failures_in_a_row) or endpoint.paused_until is not None,
        probed_until or endpoint.paused_until,
        endpoint.rate_per_second,
        endpoint.in_flight_cap,
    )


def _target(endpoint: Row[Any], keys: KeyRing | None, wall_now: datetime) -> EndpointTarget:
    tenant_id, endpoint_id = endpoint.tenant_id, endpoint.id
    try:
        secrets = opened(
            endpoint.secrets, tenant_id=tenant_id, endpoint_id=endpoint_id, keys=keys, now=wall_now
        )
        headers = opened_headers(endpoint.headers, tenant_id, endpoint_id, keys)
    except InvalidSecret as error:
        # One endpoint that cannot be signed for keeps nobody else waiting: its attempts fail and say why.
        return EndpointTarget(endpoint.url, (), fault=str(error))
    return EndpointTarget(endpoint.url, secrets, headers, endpoint.content_mode)


@cache
def _load_endpoints(dialect: str) -> Select[Any]:
    wanted = _WANTED.table(dialect)
    endpoint = _ENDPOINTS.c
    return select(
        endpoint.id,
        endpoint.tenant_id,
        endpoint.url,
        endpoint.secrets,
        endpoint.headers,
        endpoint.content_mode,
        endpoint.is_enabled,
        endpoint.failures_in_a_row,
        endpoint.paused_until,
        endpoint.rate_per_second,
        endpoint.in_flight_cap,
    ).join(wanted, wanted.c.id == endpoint.id)


@cache
def _load_messages(dialect: str) -> Select[Any]:
    wanted = _WANTED.table(dialect)
    message = _MESSAGES.c
    columns = [getattr(message, field.name) for field in fields(Message)]
    return select(*columns).join(wanted, wanted.c.id == message.id)


@cache
def _give_back(dialect: str, is_disabled: bool) -> Update:
    claims = CLAIMS.table(dialect)
    state = DeliveryState.HELD if is_disabled else DeliveryState.PENDING
    return (
        update(_DELIVERIES)
        .where(is_held(_DELIVERIES, claims, running=_SENDING))
        .values(
            state=state.value,
            hold_reason=HELD_WHILE_DISABLED if is_disabled else null(),
            attempt=_DELIVERIES.c.attempt - 1,
            lease_id=null(),
            lease_until=null(),
        )
    )
