"""Taking of a quota in one atomic step: within the limit, or not at all."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Boolean,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    true,
    type_coerce,
)
from sqlalchemy.orm import Session

from svc_infra.billing import quota_statements as statements
from svc_infra.billing.metrics import QUOTA_REFUSALS
from svc_infra.billing.quota_state import (
    Entitlement,
    Quota,
    Window,
    count_recorded,
    entitled_of,
    period_at,
    quota_of,
    together,
    window_of,
)
from svc_infra.billing.quota_statements import given
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.db.base import Quantity
from svc_infra.db.exact_arithmetic import exact_add, exact_greater
from svc_infra.exceptions import QuotaExceeded

# The zone is needed before the plans are read, for the bounds of the window. What is believed of a tenant's
# is checked by the statement that uses it; most are in UTC, and of the others as many are remembered.
_MOST_ZONES = 10_000
_zones: dict[str, str] = {}


class Wanted(NamedTuple):
    """What is to be taken: a positive quantity, beyond the limit if ``soft``.

    With ``reservation``, an id and the instant at which it expires, an open reservation is made of it.
    """

    tenant_id: str
    key: str
    window: Window
    amount: Decimal
    soft: bool
    now: datetime
    reservation: tuple[str, datetime] | None = None


class Taken(NamedTuple):
    """What was taken of: what the plans say, the quota afterwards, and the greatest threshold announced."""

    entitlement: Entitlement
    quota: Quota
    alerted_percent: int


def take(session: Session, wanted: Wanted) -> Taken:
    """Take what is wanted, in the transaction of ``session``, which holds the window's row from then on.

    Raises:
        QuotaExceeded: the limit does not allow it, or no active plan has such an entitlement.
    """
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    # A round trip is what it costs there, and one statement for all of it is one round trip.
    taken = _take_at_once(session, wanted) if is_postgresql else None
    if taken is not None:
        return taken
    entitled = entitled_of(session, wanted.tenant_id, wanted.key, wanted.window, wanted.now)
    if entitled is None:
        raise QuotaExceeded(
            f"no plan of this tenant includes {wanted.key!r} per {wanted.window}; subscribe to one that does"
        )
    if is_postgresql:
        _remember_zone(wanted.tenant_id, entitled.timezone)
    is_soft = wanted.soft or entitled.is_soft
    allowed = None if is_soft or entitled.limit is None else Decimal(entitled.limit)
    row = _take(session, wanted, entitled, allowed)
    if row is None:
        raise _exceeded(session, wanted)
    return _taken(wanted, entitled, row)


def take_alone(session: Session, wanted: Wanted) -> Quota | None:
    """Take by one statement that may be committed by itself; None, and nothing, where that is not enough.

    It is not enough where the limit has no room for it, where somebody may have to be alerted, where a
    reservation is wanted, and on SQLite.
    """
    if wanted.reservation is not None or session.get_bind().dialect.name != "postgresql":
        return None
    taken = _take_at_once(session, wanted, is_alone=True)
    return None if taken is None else taken.quota


def give_back(session: Session, wanted: Wanted, quota: Quota) -> None:
    """Give back what was taken of ``quota`` without a reservation."""
    named = window_of(wanted.tenant_id, wanted.key, wanted.window, quota.period)
    session.connection().execute(statements.give(), named | given(amount=-wanted.amount))


def _take_at_once(session: Session, wanted: Wanted, *, is_alone: bool = False) -> Taken | None:
    period = period_at(wanted.now, wanted.window, _zones.get(wanted.tenant_id, "UTC"))
    named = window_of(wanted.tenant_id, wanted.key, wanted.window, period)
    asked = given(
        now=wanted.now,
        amount=wanted.amount,
        soft=wanted.soft,
        timezone=_zones.get(wanted.tenant_id, "UTC"),
        **_reservation_of(wanted),
    )
    statement = _taking_at_once(wanted.reservation is not None, is_alone)
    rows = session.connection().execute(statement, named | asked).all()
    return _taken(wanted, together(rows, period), rows[0]) if rows else None


def _remember_zone(tenant_id: str, timezone: str) -> None:
    _zones.pop(tenant_id, None)
    if timezone != "UTC":
        if len(_zones) >= _MOST_ZONES:
            del _zones[next(iter(_zones))]
        _zones[tenant_id] = timezone


def _take(session: Session, wanted: Wanted, entitled: Entitlement, allowed: Decimal | None) -> Any:
    """Take what the limit allows; (taken, alerted percent, recorded) or None."""
    connection = session.connection()
    dialect = connection.dialect.name
    taking = window_of(wanted.tenant_id, wanted.key, wanted.window, entitled.period)
    taking |= given(amount=wanted.amount, allowed=allowed, **_reservation_of(wanted))
    row = None if dialect == "postgresql" else connection.execute(statements.take_new(), taking).one_or_none()
    if row is None:
        # Perhaps only because of what has expired or was voided: count again, with the window locked first.
        connection.execute(statements.lock_window(dialect), taking)
        taking |= given(recorded=count_recorded(session, taking))
        _expire(session, taking, wanted.now)
        row = connection.execute(statements.take(), taking).one_or_none()
    if row is not None and wanted.reservation is not None:
        connection.execute(statements.insert_reservation(), taking)
    return row


def _taken(wanted: Wanted, entitled: Entitlement, row: Any) -> Taken:
    is_soft, used = wanted.soft or entitled.is_soft, row.taken + row.recorded
    quota = Quota(wanted.key, wanted.window, entitled.period, entitled.limit, used, is_soft)
    return Taken(entitled, quota, row.alerted_percent)


def _reservation_of(wanted: Wanted) -> dict[str, Any]:
    if wanted.reservation is None:
        return {}
    return {"id": wanted.reservation[0], "expires_at": wanted.reservation[1]}


@cache
def _taking_at_once(makes_reservation: bool, is_alone: bool) -> Select[Any]:
    """Read what the plans say, and take as ``statements.take_new`` does; a row for each plan, or none.

    None also where the tenant is not in the zone that the window's bounds were made for, and, with
    ``is_alone``, where a plan wants alerts: those are published in the transaction that takes.
    """
    said = statements.entitlements().cte("said")
    is_unlimited = or_(
        bindparam("of_soft", type_=Boolean),
        func.bool_or(said.c.is_soft),
        func.bool_or(said.c.limit_per_window.is_(None)),
    )
    fits = [said.c.timezone == bindparam("of_timezone")]
    if is_alone:
        fits.append(func.coalesce(cast(said.c.alert_percents, Text), "[]") == "[]")
    terms = select(
        case((is_unlimited, null()), else_=func.sum(said.c.limit_per_window)).label("allowed"),
        func.bool_and(and_(*fits)).label("fits"),
    ).cte("terms")
    nothing = literal(Decimal(0), Quantity(50))
    recorded = func.coalesce(statements.recorded().scalar_subquery(), nothing)
    counted = select(type_coerce(recorded, Quantity(50)).label("recorded")).cte("counted")
    of_counted = select(counted.c.recorded).scalar_subquery()
    allowed = type_coerce(select(terms.c.allowed).scalar_subquery(), Quantity(50))
    amount = statements.AMOUNT
    first = (
        select(*statements.new_window(amount, counted.c.recorded))
        .select_from(counted.join(terms, terms.c.fits))
        .where(statements.is_within(amount, counted.c.recorded, allowed))
    )
    window = statements.WINDOW.c
    after = exact_add(window.taken, amount)
    within = statements.is_within(after, exact_greater(window.recorded, of_counted), allowed)
    upsert = statements.upsert_window("postgresql", first, after, within)
    taken = upsert.returning(window.taken, window.alerted_percent).cte("taken")
    found = select(
        taken.c.taken,
        taken.c.alerted_percent,
        counted.c.recorded,
        said.c.limit_per_window,
        said.c.is_soft,
        said.c.alert_percents,
        said.c.timezone,
    ).select_from(taken.join(counted, true()).join(said, true()))
    if not makes_reservation:
        return found
    columns, values = zip(*statements.new_reservation().items(), strict=True)
    made = insert(statements.RESERVATION).from_select(list(columns), select(*values).select_from(taken))
    return found.add_cte(made.cte("made"))


def _exceeded(session: Session, wanted: Wanted) -> QuotaExceeded:
    QUOTA_REFUSALS.inc()
    quota = quota_of(session, wanted.tenant_id, wanted.key, wanted.window, now=wanted.now)
    assert quota is not None  # it was there a moment ago, under this transaction's lock
    more = "" if wanted.amount == 1 else f", {canonical_decimal(wanted.amount)} more asked for"
    renewed = canonical_instant(quota.period.end)
    error = QuotaExceeded(f"{quota}{more}; it is renewed at {renewed}, or change the plan")
    error.retry_after_seconds = max(0.0, (quota.period.end - wanted.now).total_seconds())
    error.quota = quota
    return error


def _expire(session: Session, named: dict[str, Any], now: datetime) -> None:
    """Give back what expired reservations hold of the locked window."""
    amounts = session.connection().execute(statements.expire(), named | given(now=now)).scalars().all()
    if amounts:
        session.connection().execute(statements.give(), named | given(amount=-sum(amounts, Decimal(0))))
