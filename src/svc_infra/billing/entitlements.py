"""What a tenant's plans allow it: features, and quotas that are reserved in one atomic step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from sqlalchemy import delete
from sqlalchemy.orm import Session

from svc_infra.billing import quota_statements as statements
from svc_infra.billing.catalog_entitlement import ALWAYS, FeatureValue
from svc_infra.billing.first_use import ready
from svc_infra.billing.periods import Period
from svc_infra.billing.quota_alerts import Publisher, crossed, publish_crossed
from svc_infra.billing.quota_models import QuotaReservation
from svc_infra.billing.quota_state import WINDOWS, Quota, Window, count_recorded, quota_of, window_of
from svc_infra.billing.quota_statements import given
from svc_infra.billing.quota_taking import Wanted, give_back, take, take_alone
from svc_infra.billing.usage_event import storable_quantity
from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidUsage, NotFound, ReservationEnded

__all__ = [
    "RESERVATION_SECONDS",
    "WINDOWS",
    "Quota",
    "Reservation",
    "Use",
    "Window",
    "commit",
    "feature_of",
    "has_feature",
    "prune_reservations",
    "quota_of",
    "release",
    "reserve",
    "take_back",
    "use",
    "use_alone",
]
RESERVATION_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """A quantity that is held until it is committed, released or expires; ``quota`` is the state with it."""

    id: str
    tenant_id: str
    amount: Decimal
    expires_at: datetime
    quota: Quota


@dataclass(frozen=True, slots=True)
class Use:
    """A quantity that was used up; ``quota`` is the state with it."""

    wanted: Wanted
    quota: Quota


def best_of(values: Iterable[FeatureValue]) -> FeatureValue | None:
    """The value that counts of several plans': true before false, more before less; None of none."""
    # Values of one key are of one kind in any sensible catalog; of others the kind's name decides.
    return max(values, key=lambda value: (type(value).__name__, value), default=None)


def feature_of(session: Session, tenant_id: str, key: str, *, now: datetime) -> FeatureValue | None:
    """The value of a feature (an entitlement with a ``value``) for a tenant; None if no plan has it.

    Of several active plans the greatest value counts: true before false, more before less.
    """
    ready(session)
    asked = given(tenant_id=tenant_id, key=key, window=ALWAYS, now=now)
    return best_of(row.value for row in session.connection().execute(statements.entitlements(), asked))


def has_feature(session: Session, tenant_id: str, key: str, *, now: datetime) -> bool:
    """Whether a tenant's plans have a feature: an unknown one, False, 0 and an empty text are none."""
    return bool(feature_of(session, tenant_id, key, now=now))


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
    reservation = new_id(), now + timedelta(seconds=lives_seconds)
    wanted = Wanted(tenant_id, key, window, _positive(amount), soft, now, reservation)
    quota = _take_and_tell(session, wanted, webhooks)
    return Reservation(reservation[0], tenant_id, wanted.amount, reservation[1], quota)


def use(
    session: Session,
    tenant_id: str,
    key: str,
    amount: int | str | Decimal = 1,
    *,
    now: datetime,
    window: Window = "day",
    soft: bool = False,
    webhooks: Publisher | None = None,
) -> Use:
    """Use up ``amount`` of a quota at once and for good, as a reservation that is committed with it.

    Raises:
        QuotaExceeded: as ``reserve``.
        InvalidUsage: the amount is no exact positive quantity.
    """
    ready(session)
    wanted = Wanted(tenant_id, key, window, _positive(amount), soft, now)
    return Use(wanted, _take_and_tell(session, wanted, webhooks))


def use_alone(
    session: Session,
    tenant_id: str,
    key: str,
    amount: int | str | Decimal = 1,
    *,
    now: datetime,
    window: Window = "day",
    soft: bool = False,
) -> Use | None:
    """Do as ``use`` does, by one statement that may be committed by itself; None, and nothing, if it cannot.

    Raises:
        InvalidUsage: the amount is no exact positive quantity.
    """
    ready(session)
    wanted = Wanted(tenant_id, key, window, _positive(amount), soft, now)
    quota = take_alone(session, wanted)
    return None if quota is None else Use(wanted, quota)


def take_back(session: Session, use: Use) -> None:
    """Take back a use, of something that was not done after all. Only once: nothing remembers that."""
    ready(session)
    give_back(session, use.wanted, use.quota)


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


def prune_reservations(session: Session, *, before: datetime) -> int:
    """Delete the reservations that ran out before this instant and hold nothing any more; return how many."""
    ended = delete(QuotaReservation).where(
        QuotaReservation.expires_at < before, QuotaReservation.state != "open"
    )
    return session.connection().execute(ended).rowcount


def _positive(amount: int | str | Decimal) -> Decimal:
    wanted = storable_quantity(amount)
    if wanted <= 0:
        raise InvalidUsage(f"a reservation of {wanted} takes nothing; ask for more than 0")
    return wanted


def _take_and_tell(session: Session, wanted: Wanted, webhooks: Publisher | None) -> Quota:
    entitled, quota, alerted_percent = take(session, wanted)
    percents = crossed(entitled.alert_percents, alerted_percent, quota.limit, quota.used)
    if percents:
        named = window_of(wanted.tenant_id, wanted.key, wanted.window, quota.period)
        publish_crossed(session, webhooks, percents, named, quota.limit, quota.used, now=wanted.now)
    return quota


def _end(session: Session, tenant_id: str, reservation_id: str, state: str, kept: Decimal | None) -> None:
    """End a reservation in ``state`` with ``kept`` (None: all of its amount) left in the window."""
    ready(session)
    connection = session.connection()
    this = given(tenant_id=tenant_id, id=reservation_id)
    if kept is None and connection.execute(statements.commit_open(), this).one_or_none() is not None:
        return  # what it holds of the window stays, so nothing but its state is written
    row = connection.execute(statements.reservation(), this).one_or_none()
    if row is None:
        raise NotFound(f"tenant {tenant_id!r} has no reservation {reservation_id!r}")
    named = window_of(tenant_id, row.key, row.window, Period(row.window_start, row.window_end))
    # In the order in which reserving locks them: first the window, then its reservations.
    connection.execute(statements.lock_window(connection.dialect.name), named)
    before = connection.execute(statements.reservation(), this).one().state
    if before == state or (before == "expired" and state == "released"):
        return
    if before in ("released", "committed"):
        raise ReservationEnded(f"reservation {reservation_id!r} was {before} before; reserve anew")
    connection.execute(statements.end_reservation(), this | given(state=state))
    # What was recorded instead is in the window before the reservation leaves it.
    connection.execute(statements.note_recorded(), named | given(recorded=count_recorded(session, named)))
    change = (row.amount if kept is None else kept) - (row.amount if before == "open" else 0)
    if change:
        connection.execute(statements.give(), named | given(amount=change))
