"""The statements of quotas."""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from typing import Any, cast

from sqlalchemy import (
    Executable,
    Integer,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy import (
    cast as cast_as,
)
from sqlalchemy.dialects import postgresql, sqlite

from svc_infra.billing.models import (
    MetricText,
    PlanEntitlement,
    Subscription,
    Tenant,
    TenantText,
    UsageAggregate,
    UsageDirtyDay,
    UsageEvent,
)
from svc_infra.billing.quota_models import QuotaReservation, QuotaWindow, WindowText
from svc_infra.billing.usage_dimensions import is_counted
from svc_infra.db.base import IdText, Quantity, UtcDateTime
from svc_infra.db.exact import exact_sum
from svc_infra.db.exact_arithmetic import exact_add, exact_at_most, exact_greater
from svc_infra.db.rowset import Rowset

_ENTITLEMENT, _SUBSCRIPTION, _TENANT, _EVENT, _MARK, _AGGREGATE, WINDOW, RESERVATION = (
    cast("Table", model.__table__)
    for model in (
        PlanEntitlement,
        Subscription,
        Tenant,
        UsageEvent,
        UsageDirtyDay,
        UsageAggregate,
        QuotaWindow,
        QuotaReservation,
    )
)

TENANT_ID: Any = bindparam("of_tenant_id", type_=TenantText)
_key: Any = bindparam("of_key", type_=MetricText)
_window: Any = bindparam("of_window", type_=WindowText)
_start: Any = bindparam("of_window_start", type_=UtcDateTime)
_end: Any = bindparam("of_window_end", type_=UtcDateTime)
NOW: Any = bindparam("of_now", type_=UtcDateTime)
AMOUNT: Any = bindparam("of_amount", type_=Quantity(50))

_this_window = and_(
    WINDOW.c.tenant_id == TENANT_ID,
    WINDOW.c.key == _key,
    WINDOW.c.window == _window,
    WINDOW.c.window_start == _start,
)

# A day whose total does not count all of its events yet.
IS_MARKED = exists().where(
    _MARK.c.tenant_id == _AGGREGATE.c.tenant_id,
    _MARK.c.metric == _AGGREGATE.c.metric,
    _MARK.c.day_start == _AGGREGATE.c.period_start,
)


@cache
def entitlements() -> Select[Any]:
    """What the plans that a tenant is on at ``now`` say of a key and window, with the tenant's zone."""
    held, said = _SUBSCRIPTION.c, _ENTITLEMENT.c
    return (
        select(
            said.limit_per_window,
            said.is_soft,
            said.alert_percents,
            said.value,
            func.coalesce(_TENANT.c.timezone, "UTC").label("timezone"),
        )
        .select_from(
            _SUBSCRIPTION.join(_ENTITLEMENT, said.plan_id == held.plan_id).outerjoin(
                _TENANT, _TENANT.c.tenant_id == held.tenant_id
            )
        )
        .where(
            held.tenant_id == TENANT_ID,
            held.effective_at <= NOW,
            or_(held.ended_at.is_(None), held.ended_at > NOW),
            said.key == _key,
            said.window == _window,
        )
    )


USED = Rowset("used_keys", position=Integer, tenant_id=TenantText, metric=MetricText)


@cache
def alerting(dialect: str) -> Select[Any]:
    """(position, window) of the ``USED`` tenants' metrics for which a plan of theirs wants alerts."""
    used, held, said = USED.table(dialect), _SUBSCRIPTION.c, _ENTITLEMENT.c
    return (
        select(used.c.position, said.window)
        .select_from(used)
        .join(_SUBSCRIPTION, held.tenant_id == used.c.tenant_id)
        .join(_ENTITLEMENT, and_(said.plan_id == held.plan_id, said.key == used.c.metric))
        .where(cast_as(said.alert_percents, Text) != "[]")
        .distinct()
        .order_by(used.c.position, said.window)
    )


@cache
def lock_window(dialect: str) -> Any:
    """Make the window's row, or lock it as it is, until the end of the transaction."""
    # An update that its WHERE keeps from being done still locks the row (PostgreSQL, "ON CONFLICT Clause").
    nothing: Any = literal(Decimal(0), Quantity(50))
    return upsert_window(dialect, select(*new_window(nothing, nothing)), WINDOW.c.taken, false())


@cache
def take_new() -> Any:
    """Add ``amount`` to the window if with what is recorded it stays within ``allowed`` (NULL: no limit).

    For SQLite; on PostgreSQL ``quota_taking`` does it and more. One row, (taken, alerted_percent, recorded),
    or none. Who waits for the row's lock here may have an older view of the events than the one before had;
    the row's own ``recorded`` is never older.
    """
    now = func.coalesce(recorded().scalar_subquery(), literal(Decimal(0), Quantity(50)))
    counted = select(type_coerce(now, Quantity(50)).label("recorded")).cte("counted")
    of_counted = select(counted.c.recorded).scalar_subquery()
    first = select(*new_window(AMOUNT, counted.c.recorded))
    after = exact_add(WINDOW.c.taken, AMOUNT)
    return upsert_window(
        "sqlite",
        first.where(is_within(AMOUNT, counted.c.recorded)),
        after,
        is_within(after, exact_greater(WINDOW.c.recorded, of_counted)),
    ).returning(WINDOW.c.taken, WINDOW.c.alerted_percent, WINDOW.c.recorded)


@cache
def insert_reservation() -> Executable:
    """Store a reservation that is open."""
    return insert(RESERVATION).values(new_reservation())


@cache
def recorded() -> Select[Any]:
    """The exact quantity that was recorded in a window.

    Day totals where they are up to date, the events themselves of the days that are marked as changed. It
    only reads, so it waits for nobody and nobody waits for it.
    """
    day, mark, event = _AGGREGATE.c, _MARK.c, _EVENT.c
    totals = select(day.total.label("amount")).where(
        day.tenant_id == TENANT_ID,
        day.metric == _key,
        day.granularity == "day",
        day.period_start >= _start,
        day.period_start < _end,
        ~IS_MARKED,
    )
    changed = (
        select(mark.day_start, mark.day_end)
        .where(
            mark.tenant_id == TENANT_ID,
            mark.metric == _key,
            mark.day_start >= _start,
            mark.day_start < _end,
        )
        .distinct()
        .subquery("changed")
    )
    events = select(event.amount).where(
        event.tenant_id == TENANT_ID,
        event.metric == _key,
        event.at_ts >= changed.c.day_start,
        event.at_ts < changed.c.day_end,
        is_counted(event),
    )
    both = union_all(totals, events).subquery("used")
    return select(exact_sum(both.c.amount))


@cache
def take() -> Executable:
    """Add ``amount`` to the locked window, whose usage is ``recorded``, if it stays within ``allowed``."""
    counted: Any = bindparam("of_recorded", type_=Quantity(50))
    after = exact_add(WINDOW.c.taken, AMOUNT)
    return (
        update(WINDOW)
        .where(_this_window, is_within(after, counted))
        .values(taken=after, recorded=counted)
        .returning(WINDOW.c.taken, WINDOW.c.alerted_percent, WINDOW.c.recorded)
    )


@cache
def note_recorded() -> Executable:
    """Write what was counted under the lock of the window."""
    counted: Any = bindparam("of_recorded", type_=Quantity(50))
    return update(WINDOW).where(_this_window).values(recorded=counted)


@cache
def give() -> Executable:
    """Add ``amount``, which may be negative, to the window whatever its limit is."""
    return update(WINDOW).where(_this_window).values(taken=exact_add(WINDOW.c.taken, AMOUNT))


@cache
def note_alert() -> Executable:
    """Remember ``percent`` as announced, unless as much was; no row if it was."""
    percent: Any = bindparam("of_percent")
    return (
        update(WINDOW)
        .where(_this_window, WINDOW.c.alerted_percent < percent)
        .values(alerted_percent=percent)
        .returning(WINDOW.c.alerted_percent)
    )


@cache
def taken() -> Select[Any]:
    """The window's ``taken`` and ``alerted_percent``, and what expired reservations still hold of it."""
    held = RESERVATION.c
    expired = select(exact_sum(held.amount)).where(*_open_reservations(), held.expires_at <= NOW)
    return select(WINDOW.c.taken, WINDOW.c.alerted_percent, expired.scalar_subquery()).where(_this_window)


@cache
def expire() -> Executable:
    """End the window's reservations that ran out, and return what each held."""
    # One that is locked is being committed at this moment, and whoever does that may want this window next.
    due = select(RESERVATION.c.id).where(*_open_reservations(), RESERVATION.c.expires_at <= NOW)
    return (
        update(RESERVATION)
        .where(RESERVATION.c.tenant_id == TENANT_ID)
        .where(RESERVATION.c.id.in_(due.with_for_update(skip_locked=True)))
        .values(state="expired")
        .returning(RESERVATION.c.amount)
    )


@cache
def reservation() -> Select[Any]:
    """One reservation of a tenant."""
    held = RESERVATION.c
    columns = (held.key, held.window, held.window_start, held.window_end, held.amount, held.state)
    return select(*columns).where(held.tenant_id == TENANT_ID, held.id == bindparam("of_id"))


@cache
def commit_open() -> Executable:
    """Commit a reservation that is open with all of its amount; no row if it is not open."""
    held = RESERVATION.c
    open_one = (held.tenant_id == TENANT_ID, held.id == bindparam("of_id"), held.state == "open")
    return update(RESERVATION).where(*open_one).values(state="committed").returning(held.id)


@cache
def end_reservation() -> Executable:
    """Give a reservation its last ``state``."""
    held = RESERVATION.c
    ended = update(RESERVATION).where(held.tenant_id == TENANT_ID, held.id == bindparam("of_id"))
    return ended.values(state=bindparam("of_state"))


def upsert_window(dialect: str, rows: Any, taken: Any, where: Any) -> Any:
    """Insert the window's row of ``rows``, or give the one that is there its ``taken``."""
    columns = [column.name for column in WINDOW.columns]
    upsert: Any = postgresql.insert(WINDOW) if dialect == "postgresql" else sqlite.insert(WINDOW)
    # SQLite's grammar needs a WHERE to tell ON CONFLICT from a join's ON.
    return upsert.from_select(columns, rows.where(true())).on_conflict_do_update(
        index_elements=["tenant_id", "key", "window", "window_start"], set_={"taken": taken}, where=where
    )


def new_window(taken: Any, counted: Any) -> list[Any]:
    """The columns of a window's first row."""
    values = {
        "tenant_id": TENANT_ID,
        "key": _key,
        "window": _window,
        "window_start": _start,
        "window_end": _end,
        "taken": taken,
        "recorded": counted,
        "alerted_percent": literal(0),
    }
    return [values[column.name] for column in WINDOW.columns]


def new_reservation() -> dict[str, Any]:
    """The columns of an open reservation."""
    return {
        "id": bindparam("of_id", type_=IdText),
        "tenant_id": TENANT_ID,
        "key": _key,
        "window": _window,
        "window_start": _start,
        "window_end": _end,
        "amount": AMOUNT,
        "state": literal("open"),
        "expires_at": bindparam("of_expires_at", type_=UtcDateTime),
    }


def is_within(taken: Any, counted: Any, allowed: Any = None) -> Any:
    """Whether what is taken and what is counted stay within ``allowed``, where NULL is no limit."""
    allowed = bindparam("of_allowed", type_=Quantity(50)) if allowed is None else allowed
    return or_(allowed.is_(None), exact_at_most(exact_add(taken, counted), allowed))


def given(**values: Any) -> dict[str, Any]:
    """The parameters of a statement here: their names may not be those of columns."""
    return {f"of_{name}": value for name, value in values.items()}


def _open_reservations() -> tuple[Any, ...]:
    held = RESERVATION.c
    return (
        held.tenant_id == TENANT_ID,
        held.key == _key,
        held.window == _window,
        held.window_start == _start,
        held.state == "open",
    )
