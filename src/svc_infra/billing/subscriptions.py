"""Which tenant is on which plan, and from when to when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Date, Executable, Select, String, Table, bindparam, insert, select, tuple_
from sqlalchemy.orm import Session

from svc_infra.billing.catalog_prices import price_terms
from svc_infra.billing.columns import CALENDAR_CYCLE, CYCLE_LENGTH
from svc_infra.billing.cycles import anniversary
from svc_infra.billing.first_use import ready
from svc_infra.billing.models import Plan, Price, Subscription, TenantText
from svc_infra.billing.money import MAX_MINOR
from svc_infra.billing.periods import day_bounds, is_local_midnight
from svc_infra.billing.proration import trial_end
from svc_infra.billing.tenant_lock import lock_tenants
from svc_infra.db.base import Base, IdText, UtcDateTime, new_id
from svc_infra.db.rowset import Rowset
from svc_infra.exceptions import InvalidSubscription, NotFound

_FAR_FUTURE = datetime.max.replace(tzinfo=UTC)
_TENANTS = Rowset("subscribing", tenant_id=TenantText)
_NEW = Rowset(
    "new_subscriptions",
    id=IdText,
    tenant_id=TenantText,
    plan_id=IdText,
    effective_at=UtcDateTime,
    ended_at=UtcDateTime,
    quantity=BigInteger,
    trial_ends_at=UtcDateTime,
    cycle=String(CYCLE_LENGTH),
    anchor_on=Date,
)
_subscriptions: Table = Base.metadata.tables[Subscription.__tablename__]


@dataclass(frozen=True, slots=True)
class NewSubscription:
    """A subscription to be stored: half-open ``[effective_at, ended_at)``, without an end for ever.

    ``quantity`` multiplies the plan's fixed prices. In the first ``trial_days`` local days those cost
    nothing, while usage is billed. With ``anchor_on`` its periods are months (or with ``interval`` years)
    that begin on the anchor's day; without, they are calendar months.
    """

    tenant_id: str
    plan_key: str
    effective_at: datetime
    ended_at: datetime | None = None
    quantity: int = 1
    trial_days: int = 0
    anchor_on: date | None = None
    interval: str = "month"


class ListedSubscription(NamedTuple):
    """A stored subscription with the key of its plan."""

    id: str
    tenant_id: str
    plan_key: str
    effective_at: datetime
    ended_at: datetime | None
    quantity: int
    trial_ends_at: datetime | None
    cycle: str
    created_at: datetime
    replaces_id: str | None


class _Held(NamedTuple):
    plan_id: str
    effective_at: datetime
    ended_at: datetime | None


def subscribe(
    session: Session,
    *,
    tenant_id: str,
    plan_key: str,
    effective_at: datetime,
    ended_at: datetime | None = None,
    quantity: int = 1,
    trial_days: int = 0,
    anchor_on: date | None = None,
    interval: str = "month",
    now: datetime,
) -> str:
    """Put a tenant on a plan and return the subscription's id.

    The arguments are those of ``NewSubscription``; see ``subscribe_many`` for what is refused.
    """
    wanted = NewSubscription(
        tenant_id, plan_key, effective_at, ended_at, quantity, trial_days, anchor_on, interval
    )
    return subscribe_many(session, [wanted], now=now)[0]


def subscribe_many(session: Session, wanted: Sequence[NewSubscription], *, now: datetime) -> list[str]:
    """Store subscriptions in a few statements and return their ids in the same order; all of them or none.

    Raises:
        NotFound: no plan has this key.
        InvalidSubscription: a bound is not one of the tenant's local midnights, the quantity is not a whole
            number of 1 or more, or the tenant has, at the same time, this plan or another one that prices the
            same metric in the same currency: its usage would be billed twice.
        InvalidPeriod: a trial of negative length, or an interval that is no month or year.
    """
    if not wanted:
        return []
    ready(session)
    session.flush()  # what the caller has added and not written yet counts, too
    settings = lock_tenants(session, (item.tenant_id for item in wanted), now=now)
    plans = _plans(session, {item.plan_key for item in wanted})
    held = _held(session, sorted({item.tenant_id for item in wanted}))
    metrics = _priced_metrics(session)
    rows = []
    for item in wanted:
        zone = settings[item.tenant_id].zone
        _check_bounds(item, zone)
        new = _Held(plans[item.plan_key], item.effective_at, item.ended_at)
        for other in held[item.tenant_id]:
            _refuse_overlap(item, new, other, metrics)
        held[item.tenant_id].append(new)
        trial_ends_at = trial_end(item.effective_at, item.trial_days, zone) if item.trial_days else None
        cycle = CALENDAR_CYCLE if item.anchor_on is None else anniversary(item.anchor_on, item.interval).name
        rows.append((new_id(), item.tenant_id, *new, item.quantity, trial_ends_at, cycle, item.anchor_on))
    dialect = session.get_bind().dialect.name
    session.execute(_insert(dialect), {**_NEW.parameters(dialect, rows), "created_at": now})
    return [str(row[0]) for row in rows]


def list_subscriptions(
    session: Session,
    *,
    tenant_id: str | None = None,
    after: tuple[str, str] | None = None,
    limit: int = 100,
) -> list[ListedSubscription]:
    """Subscriptions in the order of (tenant, id); ``after`` is that pair of the row to continue behind."""
    statement = _listed().order_by(Subscription.tenant_id, Subscription.id).limit(limit)
    if tenant_id is not None:
        statement = statement.where(Subscription.tenant_id == tenant_id)
    if after is not None:
        statement = statement.where(tuple_(Subscription.tenant_id, Subscription.id) > tuple_(*after))
    return [ListedSubscription(*row) for row in session.execute(statement)]


def get_subscription(session: Session, tenant_id: str, subscription_id: str) -> ListedSubscription:
    """A tenant's subscription; NotFound if it has none of this id."""
    row = session.execute(
        _listed().where(Subscription.tenant_id == tenant_id, Subscription.id == subscription_id)
    ).one_or_none()
    if row is None:
        raise NotFound(f"tenant {tenant_id!r} has no subscription {subscription_id!r}")
    return ListedSubscription(*row)


def subscription_states(session: Session, tenant_id: str, subscription_id: str) -> list[ListedSubscription]:
    """What a subscription was, is and will be, the oldest first: one for each change, each of its own id.

    Raises:
        NotFound: the tenant has no such subscription.
    """
    rows = session.execute(_listed().where(Subscription.tenant_id == tenant_id))
    found = {row.id: ListedSubscription(*row) for row in rows}
    if subscription_id not in found:
        raise NotFound(f"tenant {tenant_id!r} has no subscription {subscription_id!r}")
    replaced_by = {each.replaces_id: each for each in found.values() if each.replaces_id is not None}
    states = [found[subscription_id]]
    while (before := found.get(states[0].replaces_id or "")) is not None:
        states.insert(0, before)
    while (after := replaced_by.get(states[-1].id)) is not None:
        states.append(after)
    return states


def refuse_overlap(session: Session, new: NewSubscription, *, replaces: str) -> str:
    """The id of the plan that a subscription of a locked tenant is to go on with, instead of ``replaces``.

    Raises:
        NotFound: no plan has this key.
        InvalidSubscription: the tenant has another subscription that bills the same.
    """
    plan_id = _plans(session, {new.plan_key})[new.plan_key]
    wanted = _Held(plan_id, new.effective_at, new.ended_at)
    metrics = _priced_metrics(session)
    others = select(Subscription.plan_id, Subscription.effective_at, Subscription.ended_at).where(
        Subscription.tenant_id == new.tenant_id, Subscription.id != replaces
    )
    for other in session.execute(others):
        _refuse_overlap(new, wanted, _Held(*other), metrics)
    return plan_id


def _listed() -> Select[*tuple[Any, ...]]:
    row = Subscription
    return select(
        row.id,
        row.tenant_id,
        Plan.key,
        row.effective_at,
        row.ended_at,
        row.quantity,
        row.trial_ends_at,
        row.cycle,
        row.created_at,
        row.replaces_id,
    ).join(Plan, Plan.id == row.plan_id)


def _check_bounds(item: NewSubscription, zone: tzinfo) -> None:
    for name, instant in (("effective_at", item.effective_at), ("ended_at", item.ended_at)):
        if instant is None:
            continue
        if instant.tzinfo is None:
            raise InvalidSubscription(f"{name} {instant.isoformat()} has no offset; pass an aware datetime")
        if not is_local_midnight(instant, zone):
            day = day_bounds(instant, zone)
            raise InvalidSubscription(
                f"{name} {instant.isoformat()} is not a midnight of tenant {item.tenant_id!r} ({zone}); "
                f"the nearest are {day.start.isoformat()} and {day.end.isoformat()}"
            )
    if type(item.quantity) is not int or not 0 < item.quantity <= MAX_MINOR:
        raise InvalidSubscription(
            f"a quantity of {item.quantity!r} cannot be billed; use a whole number from 1"
        )
    if item.ended_at is not None and item.ended_at <= item.effective_at:
        raise InvalidSubscription(f"the subscription of tenant {item.tenant_id!r} would end before it starts")


def _refuse_overlap(
    item: NewSubscription, new: _Held, other: _Held, metrics: dict[str, set[tuple[str, str, str]]]
) -> None:
    starts_before = new.effective_at < (other.ended_at or _FAR_FUTURE)
    if not (starts_before and other.effective_at < (new.ended_at or _FAR_FUTURE)):
        return
    if other.plan_id == new.plan_id:
        reason = "is on this plan already"
    elif twice := metrics[new.plan_id] & metrics[other.plan_id]:
        metric, currency, _ = min(twice)
        reason = f"is on another plan that prices metric {metric!r} in {currency}"
    else:
        return
    raise InvalidSubscription(
        f"tenant {item.tenant_id!r} cannot be on {item.plan_key!r} from {item.effective_at.isoformat()}: it "
        f"{reason} from {other.effective_at.isoformat()}; end that subscription first"
    )


def _plans(session: Session, keys: set[str]) -> dict[str, str]:
    """The ids of the plans with these keys; the catalog is small enough to be read whole."""
    known = {key: plan_id for key, plan_id in session.execute(select(Plan.key, Plan.id))}
    for key in sorted(keys - known.keys()):
        raise NotFound(f"there is no plan {key!r}; add it to the catalog and run 'worker.py catalog apply'")
    return known


def _priced_metrics(session: Session) -> dict[str, set[tuple[str, str, str]]]:
    """Per plan: the (metric, currency, filter) that it bills."""
    found: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    priced = select(Price).where(Price.plan_id.is_not(None), Price.metric.is_not(None))
    for price in session.scalars(priced):
        terms = price_terms(price)
        found[price.plan_id or ""].add((terms.metric or "", terms.currency, repr(terms.filter.values)))
    return found


def _held(session: Session, tenant_ids: list[str]) -> dict[str, list[_Held]]:
    dialect = session.get_bind().dialect.name
    parameters = _TENANTS.parameters(dialect, [(tenant_id,) for tenant_id in tenant_ids])
    found: dict[str, list[_Held]] = defaultdict(list)
    for tenant_id, *held in session.execute(_select_held(dialect), parameters):
        found[tenant_id].append(_Held(*held))
    return found


@cache
def _select_held(dialect: str) -> Executable:
    wanted = _TENANTS.table(dialect)
    held = _subscriptions.c
    return select(held.tenant_id, held.plan_id, held.effective_at, held.ended_at).join(
        wanted, wanted.c.tenant_id == held.tenant_id
    )


@cache
def _insert(dialect: str) -> Executable:
    new: Any = _NEW.table(dialect)
    columns = [*_NEW.columns, "created_at"]
    given = [new.c[name] for name in _NEW.columns]
    rows = select(*given, bindparam("created_at", type_=UtcDateTime))
    return insert(_subscriptions).from_select(columns, rows)
