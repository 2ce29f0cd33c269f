"""What waits to be sent, by why it waits, and since when: for probes, alerts and people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, String, case, func, literal_column, select
from sqlalchemy.orm import Session

from svc_infra.db.leases import in_state
from svc_infra.db.outbox import OutboxMessageRow, OutboxState
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.models import DeliveryRow, EndpointRow
from svc_infra.webhooks.ordering import HELD_FOR_ORDER, HELD_WHILE_DISABLED


class WaitsFor(StrEnum):
    """Why something waits.

    ``relay``: a message without deliveries yet. ``sender``: a delivery that is due now. ``answer``: it is in
    a sender's hands. ``retry``: its next attempt is not due yet. ``pause``: its endpoint fails, or has asked
    for time. ``order``: an earlier message of its key. ``enabling``: its endpoint is disabled.
    """

    RELAY = "relay"
    SENDER = "sender"
    ANSWER = "answer"
    RETRY = "retry"
    PAUSE = "pause"
    ORDER = "order"
    ENABLING = "enabling"


_NOT_DUE = frozenset({WaitsFor.RETRY})
_HELD = {HELD_FOR_ORDER: WaitsFor.ORDER, HELD_WHILE_DISABLED: WaitsFor.ENABLING}


@dataclass(frozen=True, slots=True)
class Waiting:
    """How much waits, and since when the one that has waited longest."""

    count: int = 0
    oldest_at: datetime | None = None

    def age_seconds(self, now: datetime) -> float:
        """Return for how long the oldest has waited at ``now`` (business time); 0 if nothing waits."""
        return 0.0 if self.oldest_at is None else max((now - self.oldest_at).total_seconds(), 0.0)


@dataclass(frozen=True, slots=True)
class Backlog:
    """All that waits. Reasons for which nothing waits are there, too, with zeros."""

    waiting: Mapping[WaitsFor, Waiting] = field(
        default_factory=lambda: {reason: Waiting() for reason in WaitsFor}
    )

    @property
    def oldest_due_at(self) -> datetime | None:
        """Since when the oldest waits that should be there by now.

        That includes what is held or paused: a failing endpoint does not make the backlog look young. Only
        what waits for its next attempt by the retry schedule does not count.
        """
        ages = [one.oldest_at for reason, one in self.waiting.items() if reason not in _NOT_DUE]
        return min((at for at in ages if at is not None), default=None)


def measure_backlog(session: Session, *, now: datetime) -> Backlog:
    """Count what waits at ``now`` (business time).

    It reads what waits and nothing that is done, through partial indexes: as much as there is to do.
    """
    found: dict[WaitsFor, Waiting] = {reason: Waiting() for reason in WaitsFor}
    for query in (_unrelayed(), _sending(), _pending(now), _held()):
        for reason, count, oldest_at in session.execute(query):
            if count:
                found[_HELD.get(reason) or WaitsFor(reason)] = Waiting(count, oldest_at)
    return Backlog(found)


def count_endpoints(session: Session, *, now: datetime) -> dict[str, int]:
    """Return how many endpoints are ``enabled``, ``paused`` (enabled, and failing) and ``disabled``."""
    state = case(
        (~EndpointRow.is_enabled, "disabled"), (EndpointRow.paused_until > now, "paused"), else_="enabled"
    ).label("state")
    query = select(state, func.count()).where(EndpointRow.removed_at.is_(None)).group_by(state)
    return dict.fromkeys(("enabled", "paused", "disabled"), 0) | {
        name: count for name, count in session.execute(query)
    }


def _unrelayed() -> Select[*tuple[Any, ...]]:
    # The oldest by its id, which the partial index gives at once; ids are made in the order of publishing.
    row = OutboxMessageRow
    is_pending = in_state(row.__table__, OutboxState.PENDING.value)
    oldest = select(row.occurred_at).where(is_pending).order_by(row.id).limit(1).scalar_subquery()
    return select(_text(WaitsFor.RELAY), func.count(row.id), oldest).where(is_pending)


def _sending() -> Select[*tuple[Any, ...]]:
    is_sending = in_state(DeliveryRow.__table__, DeliveryState.SENDING.value)
    return select(
        _text(WaitsFor.ANSWER), func.count(DeliveryRow.id), func.min(_waits_since(DeliveryRow.run_at))
    ).where(is_sending)


def _pending(now: datetime) -> Select[*tuple[Any, ...]]:
    is_paused = EndpointRow.paused_until > now
    reason = case(
        (is_paused, WaitsFor.PAUSE.value),
        (DeliveryRow.run_at > now, WaitsFor.RETRY.value),
        else_=WaitsFor.SENDER.value,
    ).label("reason")
    since = _waits_since(case((is_paused, DeliveryRow.created_at), else_=DeliveryRow.run_at)).label("since")
    pending = (
        select(reason, since)
        .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
        .where(in_state(DeliveryRow.__table__, DeliveryState.PENDING.value))
        .subquery()
    )
    return select(pending.c.reason, func.count(), func.min(pending.c.since)).group_by(pending.c.reason)


def _held() -> Select[*tuple[Any, ...]]:
    is_held = in_state(DeliveryRow.__table__, DeliveryState.HELD.value)
    held = select(DeliveryRow.hold_reason, func.count(), func.min(DeliveryRow.created_at)).where(is_held)
    return held.group_by(DeliveryRow.hold_reason)


def _waits_since(otherwise: Any) -> ColumnElement[Any]:
    # A pause puts off run_at, so of what has not been tried yet the making counts. A retry is not
    # late before it is due.
    return case((DeliveryRow.attempt == 0, DeliveryRow.created_at), else_=otherwise)


def _text(reason: WaitsFor) -> ColumnElement[str]:
    return literal_column(f"'{reason.value}'", String)
