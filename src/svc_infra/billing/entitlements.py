"""What a tenant's plans allow it: features, and quotas that are reserved in one atomic step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from sqlalchemy import delete
from sqlalchemy.orm import Session

from svc_infra.billing import quota_statements as statements
from svc_infra.billing.catalog_entitlement import ALWAYS, FeatureValue
from svc_infra.billing.first_use import ready
from svc_infra.billing.metrics import QUOTA_REFUSALS
from svc_infra.billing.periods import Period, day_bounds, local_day, month_bounds, zone
from svc_infra.billing.quota_alerts import Publisher, crossed, publish_crossed
from svc_infra.billing.quota_models import QuotaReservation
from svc_infra.billing.quota_statements import given
from svc_infra.billing.usage_event import storable_quantity
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidUsage, NotFound, QuotaExceeded, ReservationEnded

Window = Literal["day", "month"]
WINDOWS: tuple[Window, ...] = ("day", "month")
RESERVATION_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Quota:
    """The state of one entitlement: quantities used and allowed in the window that ``now`` falls in.

    ``used`` is what was recorded as usage plus what reservations hold or have committed. A ``limit`` of None
    is no limit.
    """

    key: str
    window: Window
    period: Period
    limit: int | None
    used: Decimal
    is_soft: bool = False

    @property
    def is_used_up(self) -> bool:
        return self.limit is not None and self.used >= self.limit

    @property
    def is_exceeded(self) -> bool:
        return self.limit is not None and self.used > self.limit

    def __str__(self) -> str:
        limit = "unlimited" if self.limit is None else self.limit
        return f"{canonical_decimal(self.used)} of {limit} {self.key} used in this {self.window}"


@dataclass(frozen=True, slots=True)
class Reservation:
    """A quantity that is held until it is committed, released or expires; ``quota`` is the state with it."""

    id: str
    tenant_id: str
    amount: Decimal
    expires_at: datetime
    quota: Quota


class _Entitled(NamedTuple):
    """What the active plans say together."""

    period: Period
    limit: int | None
    is_soft: bool
    alert_percents: tuple[int, ...]


def feature_of(session: Session, tenant_id: str, key: str, *, now: datetime) -> FeatureValue | None:
    """The value of a feature (an entitlement with a ``value``) for a tenant; None if no plan has it.

    Of several active plans the greatest value counts: true before false, more before less.
    """
    ready(session)
    asked = given(tenant_id=tenant_id, key=key, window=ALWAYS, now=now)
    values = [row.value for row in session.connection().execute(statements.entitlements(), asked)]
    # Values of one key are of one kind in any sensible catalog; of others the kind's name decides.
    return max(values, key=lambda value: (type(value).__name__, value), default=None)


def has_feature(session: Session, tenant_id: str, key: str, *, now: datetime) -> bool:
    """Whether a tenant's plans have a feature: an unknown one, False, 0 and an empty text are none."""
    return bool(feature_of(session, tenant_id, key, now=now))


def quota_of(session: Session, tenant_id: str, key: str, window: Window, *, now: datetime) -> Quota | None:
    """The quota of a key in the tenant's current day or month; None if no active plan has an entitlement.

    The entitlements of several active plans add up. It is a reading: to use up what it says is free, reserve.
    """
    ready(session)
    entitled = _entitled(session, tenant_id, key, window, now)
    if entitled is None:
        return None
    asked = _named(tenant_id, key, window, entitled.period)
    connection = session.connection()
    used = _count_recorded(session, asked)
    row = connection.execute(statements.taken(), asked | given(now=now)).one_or_none()
    if row is not None:
        used += row[0] - (row[2] or Decimal(0))
    return Quota(key, window, entitled.period, entitled.limit, used, entitled.is_soft)


def reserve(
    session: Session,
    tenant_id: str,
    key: str,
    amount: int | str | Decimal = 1,
    *,
    now: datetime,
    window: Window = "day",
    soft: bool = False,
    lives_seconds: float = RESERVATION_SECONDS,
    webhooks: Publisher | None = None,
) -> Reservation:
    """Take ``amount`` of a quota in one atomic step, until it is committed, released or expires.

    However many ask at once, what is taken and recorded stays within the limit. A ``soft`` reservation, or
    one of an entitlement that is soft, is made beyond it, too. Crossing a threshold of the entitlement
    publishes ``billing.quota.threshold`` in the same transaction, to ``webhooks`` or into the outbox of
    the database.

    Raises:
        QuotaExceeded: the limit does not allow it, or no active plan has such an entitlement.
        InvalidUsage: the amount is no exact positive quantity.
    """
    ready(session)
    wanted = storable_quantity(amount)
    if wanted <= 0:
        raise InvalidUsage(f"a reservation of {wanted} takes nothing; ask for more than 0")
    entitled = _entitled(session, tenant_id, key, window, now)
    if entitled is None:
        raise QuotaExceeded(
            f"no plan of this tenant includes {key!r} per {window}; subscribe to one that does"
        )
    is_soft = soft or entitled.is_soft
    reservation_id, expires_at = new_id(), now + timedelta(seconds=lives_seconds)
    named = _named(tenant_id, key, window, entitled.period)
    taking = named | given(
        amount=wanted,
        allowed=None if is_soft or entitled.limit is None else Decimal(entitled.limit),
        id=reservation_id,
        expires_at=expires_at,
    )
    row = _take(session, taking, now)
    if row is None:
        raise _exceeded(session, tenant_id, key, window, now, wanted)
    taken, alerted_percent, recorded = row
    quota = Quota(key, window, entitled.period, entitled.limit, taken + recorded, is_soft)
    percents = crossed(entitled.alert_percents, alerted_percent, quota.limit, quota.used)
    publish_crossed(session, webhooks, percents, named, quota.limit, quota.used, now=now)
    return Reservation(reservation_id, tenant_id, wanted, expires_at, quota)


def commit(
    session: Session,
    tenant_id: str,
    reservation_id: str,
    *,
    amount: int | str | Decimal | None = None,
    is_recorded: bool = False,
) -> None:
    """Keep what was reserved, or the ``amount`` that was really used, for the rest of the window.

    ``is_recorded``: what was used stands as a usage event of this key, recorded in this transaction or
    before, and counts as that from now on; the reservation then holds nothing more. A reservation that
    expired meanwhile is kept all the same, for it was used; a repeated commit changes nothing.

    Raises:
        NotFound: the tenant has no such reservation.
        ReservationEnded: it was released; reserve anew.
        InvalidUsage: the amount is no exact quantity of 0 or more.
    """
    kept = Decimal(0) if is_recorded else None if amount is None else storable_quantity(amount)
    if kept is not None and kept < 0:
        raise InvalidUsage(f"{kept} cannot have been used; commit 0 or more")
    _end(session, tenant_id, reservation_id, "committed", kept)


def release(session: Session, tenant_id: str, reservation_id: str) -> None:
    """Give back what was reserved; one that has expired or was released has been given back already.

    Raises:
        NotFound: the tenant has no such reservation.
        ReservationEnded: it was committed.
    """
    _end(session, tenant_id, reservation_id, "released", Decimal(0))


def announce_recorded(
    session: Session,
    days: Iterable[tuple[str, str, datetime]],
    *,
    now: datetime,
    webhooks: Publisher | None = None,
) -> None:
    """Publish the thresholds that recorded usage has crossed in the windows of these days.

    A day is (tenant id, metric, any instant of it). What aggregates usage calls this in its transaction, so
    that a quota nobody reserves from is watched, too; one statement if no plan wants alerts.
    """
    ordered = sorted(set(days))
    if not ordered:
        return
    connection = session.connection()
    dialect = connection.dialect.name
    rows = [(position, tenant_id, metric) for position, (tenant_id, metric, _) in enumerate(ordered)]
    wanted = connection.execute(statements.alerting(dialect), statements.USED.parameters(dialect, rows)).all()
    for position, window in wanted:
        tenant_id, key, at = ordered[position]
        entitled = _entitled(session, tenant_id, key, window, at)
        if entitled is None:
            continue
        named = _named(tenant_id, key, window, entitled.period)
        connection.execute(statements.lock_window(dialect), named)
        taken, alerted_percent, _ = connection.execute(statements.taken(), named | given(now=now)).one()
        used = taken + _count_recorded(session, named)
        percents = crossed(entitled.alert_percents, alerted_percent, entitled.limit, used)
        publish_crossed(session, webhooks, percents, named, entitled.limit, used, now=now)


def prune_reservations(session: Session, *, before: datetime) -> int:
    """Delete the reservations that ran out before this instant and hold nothing any more; return how many."""
    ended = delete(QuotaReservation).where(
        QuotaReservation.expires_at < before, QuotaReservation.state != "open"
    )
    return session.connection().execute(ended).rowcount


def _entitled(session: Session, tenant_id: str, key: str, window: Window, now: datetime) -> _Entitled | None:
    asked = given(tenant_id=tenant_id, key=key, window=window, now=now)
    rows = session.connection().execute(statements.entitlements(), asked).all()
    if not rows:
        return None
    tenant_zone = zone(rows[0].timezone)
    today = local_day(now, tenant_zone)
    is_day = window == "day"
    period = day_bounds(today, tenant_zone) if is_day else month_bounds(today.year, today.month, tenant_zone)
    limits = [row.limit_per_window for row in rows]
    return _Entitled(
        period,
        None if None in limits else sum(limits),
        any(row.is_soft for row in rows),
        tuple(sorted({percent for row in rows for percent in row.alert_percents or ()})),
    )


def _named(tenant_id: str, key: str, window: str, period: Period) -> dict[str, Any]:
    return given(
        tenant_id=tenant_id, key=key, window=window, window_start=period.start, window_end=period.end
    )


def _exceeded(
    session: Session, tenant_id: str, key: str, window: Window, now: datetime, wanted: Decimal
) -> QuotaExceeded:
    QUOTA_REFUSALS.inc()
    quota = quota_of(session, tenant_id, key, window, now=now)
    assert quota is not None  # it was there a moment ago, under this transaction's lock
    more = "" if wanted == 1 else f", {canonical_decimal(wanted)} more asked for"
    renewed = canonical_instant(quota.period.end)
    error = QuotaExceeded(f"{quota}{more}; it is renewed at {renewed}, or change the plan")
    error.retry_after_seconds = max(0.0, (quota.period.end - now).total_seconds())
    error.quota = quota
    return error


def _take(session: Session, taking: dict[str, Any], now: datetime) -> Any:
    """Take what the limit allows and make the reservation; (taken, alerted percent, recorded) or None."""
    connection = session.connection()
    dialect = connection.dialect.name
    row = connection.execute(statements.reserve(dialect), taking).one_or_none()
    is_made = row is not None and dialect == "postgresql"
    if row is None:
        # Perhaps only because of what has expired or was voided: count again, with the window locked first.
        connection.execute(statements.lock_window(dialect), taking)
        taking |= given(recorded=_count_recorded(session, taking))
        _expire(session, taking, now)
        row = connection.execute(statements.take(), taking).one_or_none()
    if row is not None and not is_made:
        connection.execute(statements.insert_reservation(), taking)
    return row


def _count_recorded(session: Session, named: dict[str, Any]) -> Decimal:
    return session.connection().execute(statements.recorded(), named).scalar() or Decimal(0)


def _expire(session: Session, named: dict[str, Any], now: datetime) -> None:
    """Give back what expired reservations hold of the locked window."""
    amounts = session.connection().execute(statements.expire(), named | given(now=now)).scalars().all()
    if amounts:
        session.connection().execute(statements.give(), named | given(amount=-sum(amounts, Decimal(0))))


def _end(session: Session, tenant_id: str, reservation_id: str, state: str, kept: Decimal | None) -> None:
    """End a reservation in ``state`` with ``kept`` (None: all of its amount) left in the window."""
    ready(session)
    connection = session.connection()
    this = given(tenant_id=tenant_id, id=reservation_id)
    row = connection.execute(statements.reservation(), this).one_or_none()
    if row is None:
        raise NotFound(f"tenant {tenant_id!r} has no reservation {reservation_id!r}")
    named = _named(tenant_id, row.key, row.window, Period(row.window_start, row.window_end))
    # In the order in which reserving locks them: first the window, then its reservations.
    connection.execute(statements.lock_window(connection.dialect.name), named)
    before = connection.execute(statements.reservation(), this).one().state
    if before == state or (before == "expired" and state == "released"):
        return
    if before in ("released", "committed"):
        raise ReservationEnded(f"reservation {reservation_id!r} was {before} before; reserve anew")
    connection.execute(statements.end_reservation(), this | given(state=state))
    # What was recorded instead is in the window before the reservation leaves it.
    connection.execute(statements.note_recorded(), named | given(recorded=_count_recorded(session, named)))
    change = (row.amount if kept is None else kept) - (row.amount if before == "open" else 0)
    if change:
        connection.execute(statements.give(), named | given(amount=change))
