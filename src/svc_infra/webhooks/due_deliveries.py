"""Due deliveries: leasing them, the longest due first, and endpoint by endpoint when one has a backlog.

What is longest due is found in one index. A backlog of an endpoint that takes little (a rate, a slow
receiver) stands there before everybody else's deliveries, so that half of a claim then comes from a round of
all endpoints, each a step in an index of its own: however much waits for one, the others' are found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import Integer, Row, Select, String, Table, Update, bindparam, func, literal_column, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from svc_infra.db.base import IdText, UtcDateTime
from svc_infra.db.leases import claim_statement, in_state, is_among
from svc_infra.db.rowset import Rowset
from svc_infra.webhooks.delivery import DeliveryState
from svc_infra.webhooks.models import DeliveryRow

# The rank within an endpoint is taken over so many times the limit of the longest due.
_SCAN_FACTOR = 4
_ENDPOINTS_PER_LOOK = 64

_DELIVERIES = cast(Table, DeliveryRow.__table__)
_ALLOWANCES = Rowset("allowances", endpoint_id=IdText, allowance=Integer)
_CHOSEN = Rowset("chosen", id=IdText)


@dataclass
class Round:
    """Where a claimer is in its round of the endpoints: the next look goes on behind this one."""

    endpoint_id: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether the last look came to the end of the endpoints."""
        return not self.endpoint_id


def lease_due(
    session: Session,
    *,
    now: datetime,
    lease_id: str,
    lease_seconds: float,
    limit: int,
    allowance: int,
    allowances: Mapping[str, int],
    round_: Round | None = None,
) -> list[Row[Any]]:
    """Lease up to ``limit`` deliveries that are due at ``now`` and return their rows.

    Of one endpoint no more than its entry in ``allowances`` are taken, or ``allowance`` where it has none.
    With ``round_``, which moves on, up to half of them are of the next endpoints in turn.
    """
    dialect = session.get_bind().dialect.name
    lease = {"lease_id": lease_id, "lease_seconds": lease_seconds}
    rows: list[Row[Any]] = []
    left = dict(allowances)
    if round_ is not None:
        found = _look(session, dialect, round_, now, allowance, left)[: max(limit // 2, 1)]
        if found:
            chosen = _CHOSEN.parameters(dialect, [(id_,) for id_ in found])
            rows += session.execute(_lease_chosen(dialect), {**chosen, **lease})
        for endpoint_id, count in Counter(row.endpoint_id for row in rows).items():
            left[endpoint_id] = left.get(endpoint_id, allowance) - count
    limit -= len(rows)
    bounds = {"now": now, "limit": limit, "scan": limit * _SCAN_FACTOR, "allowance": allowance}
    named = _ALLOWANCES.parameters(dialect, left.items())
    rows += session.execute(_lease_longest_due(dialect), {**named, **bounds, **lease})
    return rows


@cache
def any_due() -> Select[Any]:
    """A delivery that is due at ``now``."""
    return select(_DELIVERIES.c.id).where(*_is_due(_DELIVERIES)).limit(1)


def _look(
    session: Session,
    dialect: str,
    round_: Round,
    now: datetime,
    allowance: int,
    allowances: Mapping[str, int],
) -> list[str]:
    """Return the ids of the longest due of each of the next endpoints, and move the round on."""
    bounds = {"after": round_.endpoint_id, "endpoints": _ENDPOINTS_PER_LOOK, "heads": allowance, "now": now}
    rows = session.execute(_heads(dialect), bounds).all()
    last = max(rows, key=lambda row: row.place, default=None)
    is_to_go_on = last is not None and last.place == _ENDPOINTS_PER_LOOK
    round_.endpoint_id = last.endpoint_id if last and is_to_go_on else ""
    taken: Counter[str] = Counter()
    found = []
    for row in sorted((row for row in rows if row.id is not None), key=lambda row: (row.run_at, row.id)):
        taken[row.endpoint_id] += 1
        if taken[row.endpoint_id] <= allowances.get(row.endpoint_id, allowance):
            found.append(row.id)
    return found


@cache
def _lease_longest_due(dialect: str) -> Update:
    # The rank is taken without locks, then the rows are locked and looked at again: whoever was quicker has
    # changed their state.
    allowances = _ALLOWANCES.table(dialect)
    oldest = (
        select(_DELIVERIES.c.id, _DELIVERIES.c.run_at, _DELIVERIES.c.endpoint_id)
        .where(*_is_due(_DELIVERIES))
        .order_by(_DELIVERIES.c.run_at, _DELIVERIES.c.id)
        .limit(bindparam("scan", type_=Integer))
        .cte("oldest")
    )
    allowed = func.coalesce(allowances.c.allowance, bindparam("allowance", type_=Integer))
    rank = func.row_number().over(partition_by=oldest.c.endpoint_id, order_by=(oldest.c.run_at, oldest.c.id))
    ranked = (
        select(oldest.c.id, oldest.c.run_at, allowed.label("allowed"), rank.label("rank"))
        .select_from(oldest.outerjoin(allowances, allowances.c.endpoint_id == oldest.c.endpoint_id))
        .cte("ranked")
    )
    chosen = (
        select(ranked.c.id)
        .where(ranked.c.rank <= ranked.c.allowed)
        .order_by(ranked.c.run_at, ranked.c.id)
        .limit(bindparam("limit", type_=Integer))
    )
    return _lease(chosen)


@cache
def _lease_chosen(dialect: str) -> Update:
    chosen = _CHOSEN.table(dialect)
    return _lease(select(chosen.c.id))


def _lease(chosen: Select[Any]) -> Update:
    """Lease those of a few ids that are pending still.

    Each is looked up by its id. That it is pending is said in a way that offers no index: a plan that the
    server made while the table was small would go through all that waits.
    """
    is_pending = _DELIVERIES.c.state.concat("") == DeliveryState.PENDING.value
    candidates = select(_DELIVERIES.c.id).where(is_among(_DELIVERIES.c.id, chosen), is_pending)
    return claim_statement(_DELIVERIES, candidates, running=DeliveryState.SENDING.value)


@cache
def _heads(dialect: str) -> Select[Any]:
    """Go from endpoint to endpoint, each a step in the index, and look up the longest due of each."""
    lines = (
        select(
            _next_endpoint(bindparam("after", type_=String)).label("endpoint_id"),
            literal_column("1", Integer).label("place"),
        )
    ).cte("lines", recursive=True)
    lines = lines.union_all(
        select(_next_endpoint(lines.c.endpoint_id), lines.c.place + 1).where(
            lines.c.place < bindparam("endpoints", type_=Integer), lines.c.endpoint_id.is_not(None)
        )
    )
    due = _DELIVERIES.alias("due")
    # A range and an order that only the index of endpoints has. With an equality PostgreSQL would go through
    # everybody's in the order of time where most of what waits is of one endpoint.
    head = (
        select(due.c.id)
        .where(
            *_is_due(due), due.c.endpoint_id >= lines.c.endpoint_id, due.c.endpoint_id <= lines.c.endpoint_id
        )
        .order_by(due.c.endpoint_id, due.c.run_at, due.c.id)
        .limit(bindparam("heads", type_=Integer))
        .correlate(lines)
    )
    return (
        select(lines.c.endpoint_id, lines.c.place, _DELIVERIES.c.id, _DELIVERIES.c.run_at)
        .select_from(lines.outerjoin(_DELIVERIES, is_among(_DELIVERIES.c.id, head)))
        .where(lines.c.endpoint_id.is_not(None))
    )


def _next_endpoint(after: ColumnElement[Any]) -> ColumnElement[Any]:
    following = _DELIVERIES.alias("following")
    return (
        select(following.c.endpoint_id)
        .where(in_state(following, DeliveryState.PENDING.value), following.c.endpoint_id > after)
        .order_by(following.c.endpoint_id, following.c.run_at)  # which the index with all states has not
        .limit(1)
        .scalar_subquery()
    )


def _is_due(table: Any) -> tuple[ColumnElement[bool], ...]:
    return (
        in_state(table, DeliveryState.PENDING.value),
        table.c.run_at <= bindparam("now", type_=UtcDateTime),
    )
