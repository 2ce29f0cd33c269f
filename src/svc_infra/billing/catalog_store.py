"""Writing a parsed catalog into the tables of plans, entitlements and prices."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, TypeVar

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from svc_infra.billing.catalog import Catalog, PlanSpec
from svc_infra.billing.catalog_entitlement import ALWAYS
from svc_infra.billing.catalog_prices import PriceChange, apply_prices, price_terms, version_start
from svc_infra.billing.first_use import ready
from svc_infra.billing.models import Plan, PlanEntitlement
from svc_infra.billing.usage_meters import list_meters, register_meter
from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidCatalog, InvalidMeter

__all__ = ["CatalogChanges", "apply_catalog", "default_plan", "price_terms"]

# Any number that no other advisory lock of this package uses.
_APPLY_LOCK = 7_301_245_001

_Row = TypeVar("_Row", Plan, PlanEntitlement)


@dataclass(slots=True)
class CatalogChanges:
    """What applying a catalog did, by the names of plans, entitlements and prices."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    prices: list[PriceChange] = field(default_factory=list)


def apply_catalog(
    session: Session,
    catalog: Catalog,
    *,
    now: datetime,
    effective_on: date | None = None,
    is_retroactive: bool = False,
) -> CatalogChanges:
    """Bring meters, plans, entitlements and prices (by plan, key and currency) to what the catalog says.

    A price that differs from the stored one becomes a new version of it, for what begins on ``effective_on``
    or later: by default the first day of the next month. Safe to run again and by several processes at once.
    What the file does not mention stays as it is, except that only one plan is the default. Invoices keep the
    terms they were rated with, whatever is applied.

    Raises:
        InvalidCatalog: ``effective_on`` has begun somewhere and ``is_retroactive`` is not set, or with the
            prices that stay a metric would be billed twice, or a meter is fixed; nothing is written.
    """
    ready(session)
    _lock_catalog(session)
    changes = CatalogChanges()
    _apply_meters(session, catalog, changes, now)
    plans = _apply_plans(session, catalog, changes, now)
    for spec in catalog.plans:
        _apply_entitlements(session, spec, plans[spec.key], changes, now)
    since = version_start(now, effective_on, is_retroactive=is_retroactive)
    changes.prices = apply_prices(session, catalog, plans, since, now=now, is_retroactive=is_retroactive)
    for change in changes.prices:
        names = changes.created if change.before is None else changes.updated
        (names if change.is_change else changes.unchanged).append(change.name)
    session.flush()
    return changes


def default_plan(session: Session) -> Plan | None:
    """The plan that new tenants are subscribed to; None before a catalog was applied."""
    return session.scalars(select(Plan).where(Plan.is_default)).one_or_none()


def _lock_catalog(session: Session) -> None:
    """One apply at a time: the second one compares with what the first has committed."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_APPLY_LOCK)))


def _apply_meters(session: Session, catalog: Catalog, changes: CatalogChanges, now: datetime) -> None:
    """Meters that are as the file says are left alone: registering one holds up the recording of usage."""
    known = {metering.metric: metering for metering in list_meters(session)} if catalog.meters else {}
    for spec in catalog.meters:
        name, before = f"meter of {spec.metering.metric}", known.get(spec.metering.metric)
        if before == spec.metering:
            changes.unchanged.append(name)
            continue
        try:
            register_meter(session, spec.metering, now=now)
        except InvalidMeter as error:
            raise InvalidCatalog(f"{spec.place}: {error}") from error
        (changes.created if before is None else changes.updated).append(name)


def _apply_plans(
    session: Session, catalog: Catalog, changes: CatalogChanges, now: datetime
) -> dict[str, Plan]:
    if catalog.default_plan is not None:
        # Before the new default is written: at no time may two plans be it (uq_plans_is_default).
        others = update(Plan).where(Plan.is_default, Plan.key != catalog.default_plan.key)
        session.execute(others.values(is_default=False).execution_options(synchronize_session="fetch"))
    known = {plan.key: plan for plan in session.scalars(_fresh(select(Plan)))}
    for spec in catalog.plans:
        wanted = {"name": spec.name, "description": spec.description, "is_default": spec.is_default}
        new = Plan(id=new_id(), key=spec.key, created_at=now)
        known[spec.key] = _put(session, known.get(spec.key), new, wanted, f"plan {spec.key}", changes)
    session.flush()
    return known


def _apply_entitlements(
    session: Session, spec: PlanSpec, plan: Plan, changes: CatalogChanges, now: datetime
) -> None:
    stored = session.scalars(_fresh(select(PlanEntitlement).where(PlanEntitlement.plan_id == plan.id)))
    known = {(row.key, row.window): row for row in stored}
    for item in spec.entitlements:
        new = PlanEntitlement(id=new_id(), plan_id=plan.id, key=item.key, window=item.window, created_at=now)
        name = f"entitlement {item.key} per {item.window} of plan {spec.key}"
        if item.window == ALWAYS:
            name = f"entitlement {item.key} of plan {spec.key}"
        wanted = {
            "limit_per_window": item.limit,
            "is_soft": item.is_soft,
            "alert_percents": list(item.alert_percents),
            "value": item.value,
        }
        _put(session, known.get((item.key, item.window)), new, wanted, name, changes)


def _put(
    session: Session,
    row: _Row | None,
    new: _Row,
    wanted: dict[str, Any],
    name: str,
    changes: CatalogChanges,
) -> _Row:
    """Give ``row``, or else ``new``, the wanted values, and note under ``name`` what that changed."""
    if row is not None and all(getattr(row, key) == value for key, value in wanted.items()):
        changes.unchanged.append(name)
        return row
    (changes.created if row is None else changes.updated).append(name)
    row = row or new
    for key, value in wanted.items():
        setattr(row, key, value)
    session.add(row)
    return row


def _fresh(statement: Select[_Row]) -> Select[_Row]:
    """Read over what the session remembers: it may be older than the lock."""
    return statement.execution_options(populate_existing=True)
