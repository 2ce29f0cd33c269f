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

_ENTITLEMENT, _SUBSCRIPTION, _TENANT, _EVENT, _MARK, _AGGREGATE, _WINDOW, _RESERVATION = (
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

_tenant_id: Any = bindparam("of_tenant_id", type_=TenantText)
_key: Any = bindparam("of_key", type_=MetricText)
_window: Any = bindparam("of_window", type_=WindowText)
_start: Any = bindparam("of_window_start", type_=UtcDateTime)
_end: Any = bindparam("of_window_end", type_=UtcDateTime)
_now: Any = bindparam("of_now", type_=UtcDateTime)
_amount: Any = bindparam("of_amount", type_=Quantity(50))

_this_window = and_(
    _WINDOW.c.tenant_id == _tenant_id,
    _WINDOW.c.key == _key,
    _WINDOW.c.window == _window,
    _WINDOW.c.window_start == _start,
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
            held.tenant_id == _tenant_id,
            held.effective_at <= _now,
            or_(held.ended_at.is_(None), held.ended_at > _now),
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
    return _upsert(dialect, select(*_new_window(nothing, nothing)), _WINDOW.c.taken, false())


@cache
def reserve(dialect: str) -> Any:
    """Add ``amount`` to the window if with what is recorded it stays within ``allowed`` (NULL: no limit).

    One row, (taken, alerted_percent, recorded), or none. Who waits for the row's lock here may have an older
    view of the events than the one before had; the row's own ``recorded`` is never older. On PostgreSQL the
    reservation is made in the same statement.
    """
    now = func.coalesce(recorded().scalar_subquery(), literal(Decimal(0), Quantity(50)))
    counted = select(type_coerce(now, Quantity(50)).label("recorded")).cte("counted")
    of_counted = select(counted.c.recorded).scalar_subquery()
    first = select(*_new_window(_amount, counted.c.recorded)).where(_is_within(_amount, counted.c.recorded))
    after = exact_add(_WINDOW.c.taken, _amount)
    row = _upsert(
        dialect, first, after, _is_within(after, exact_greater(_WINDOW.c.recorded, of_counted))
    ).returning(_WINDOW.c.taken, _WINDOW.c.alerted_percent, _WINDOW.c.recorded)
    if dialect != "postgresql":
        return row
    taken = row.cte("taken")
    columns, values = zip(*_new_reservation().items(), strict=True)
    made = insert(_RESERVATION).from_select(list(columns), select(*values).select_from(taken)).cte("made")
    return select(taken.c.taken, taken.c.alerted_percent, of_counted).add_cte(made)


@cache
def insert_reservation() -> Executable:
    """Store a reservation that is open."""
    return insert(_RESERVATION).values(_new_reservation())


@cache
def recorded() -> Select[Any]:
    """The exact quantity that was recorded in a window.

    Day totals where they are up to date, the events themselves of the days that are marked as changed. It
    only reads, so it waits for nobody and nobody waits for it.
    """
    day, mark, event = _AGGREGATE.c, _MARK.c, _EVENT.c
    marked = exists().where(
        mark.tenant_id == day.tenant_id, mark.metric == day.metric, mark.day_start == day.period_start
    )
    totals = select(day.total.label("amount")).where(
        day.tenant_id == _tenant_id,
        day.metric == _key,
        day.granularity == "day",
        day.period_start >= _start,
        day.period_start < _end,
        ~marked,
    )
    changed = (
        select(mark.day_start, mark.day_end)
        .where(
            mark.tenant_id == _tenant_id,
            mark.metric == _key,
            mark.day_start >= _start,
            mark.day_start < _end,
        )
        .distinct()
        .subquery("changed")
    )
    events = select(event.amount).where(
        event.tenant_id == _tenant_id,
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
    after = exact_add(_WINDOW.c.taken, _amount)
    return (
        update(_WINDOW)
        .where(_this_window, _is_within(after, counted))
        .values(taken=after, recorded=counted)
        .returning(_WINDOW.c.taken, _WINDOW.c.alerted_percent, _WINDOW.c.recorded)
    )


@cache
def note_recorded() -> Executable:
    """Write what was counted under the lock of the window."""
    counted: Any = bindparam("of_recorded", type_=Quantity(50))
    return update(_WINDOW).where(_this_window).values(recorded=counted)


@cache
def give() -> Executable:
    """Add ``amount``, which may be negative, to the window whatever its limit is."""
    return update(_WINDOW).where(_this_window).values(taken=exact_add(_WINDOW.c.taken, _amount))


@cache
def note_alert() -> Executable:
    """Remember ``percent`` as announced, unless as much was; no row if it was."""
    percent: Any = bindparam("of_percent")
    return (
        update(_WINDOW)
        .where(_this_window, _WINDOW.c.alerted_percent < percent)
        .values(alerted_percent=percent)
        .returning(_WINDOW.c.alerted_percent)
    )


@cache
def taken() -> Select[Any]:
    """The window's ``taken`` and ``alerted_percent``, and what expired reservations still hold of it."""
    held = _RESERVATION.c
    expired = select(exact_sum(held.amount)).where(*_open_reservations(), held.expires_at <= _now)
    return select(_WINDOW.c.taken, _WINDOW.c.alerted_percent, expired.scalar_subquery()).where(_this_window)


@cache
def expire() -> Executable:
    """End the window's reservations that ran out, and return what each held."""
    return (
        update(_RESERVATION)
        .where(*_open_reservations(), _RESERVATION.c.expires_at <= _now)
        .values(state="expired")
        .returning(_RESERVATION.c.amount)
    )


@cache
def reservation() -> Select[Any]:
    """One reservation of a tenant."""
    held = _RESERVATION.c
    columns = (held.key, held.window, held.window_start, held.window_end, held.amount, held.state)
    return select(*columns).where(held.tenant_id == _tenant_id, held.id == bindparam("of_id"))


@cache
def end_reservation() -> Executable:
    """Give a reservation its last ``state``."""
    held = _RESERVATION.c
    ended = update(_RESERVATION).where(held.tenant_id == _tenant_id, held.id == bindparam("of_id"))
    return ended.values(state=bindparam("of_state"))


def _upsert(dialect: str, rows: Any, taken: Any, where: Any) -> Any:
    columns = [column.name for column in _WINDOW.columns]
    upsert: Any = postgresql.insert(_WINDOW) if dialect == "postgresql" else sqlite.insert(_WINDOW)
    # SQLite's grammar needs a WHERE to tell ON CONFLICT from a join's ON.
    return upsert.from_select(columns, rows.where(true())).on_conflict_do_update(
        index_elements=["tenant_id", "key", "window", "window_start"], set_={"taken": taken}, where=where
    )


def _new_window(taken: Any, counted: Any) -> list[Any]:
    values = {
        "tenant_id": _tenant_id,
        "key": _key,
        "window": _window,
        "window_start": _start,
        "window_end": _end,
        "taken": taken,
        "recorded": counted,
        "alerted_percent": literal(0),
    }
    return [values[column.name] for column in _WINDOW.columns]


def _new_reservation() -> dict[str, Any]:
    return {
        "id": bindparam("of_id", type_=IdText),
        "tenant_id": _tenant_id,
        "key": _key,
        "window": _window,
        "window_start": _start,
        "window_end": _end,
        "amount": _amount,
        "state": literal("open"),
        "expires_at": bindparam("of_expires_at", type_=UtcDateTime),
    }


def _is_within(taken: Any, counted: Any) -> Any:
    allowed: Any = bindparam("of_allowed", type_=Quantity(50))
    return or_(allowed.is_(None), exact_at_most(exact_add(taken, counted), allowed))


def given(**values: Any) -> dict[str, Any]:
    """The parameters of a statement here: their names may not be those of columns."""
    return {f"of_{name}": value for name, value in values.items()}


def _open_reservations() -> tuple[Any, ...]:
    held = _RESERVATION.c
    return (
        held.tenant_id == _tenant_id,
        held.key == _key,
        held.window == _window,
        held.window_start == _start,
        held.state == "open",
    )
