"""Writing a parsed catalog into the tables of plans, entitlements and prices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from svc_infra.billing.catalog import Catalog, PlanSpec, PriceSpec
from svc_infra.billing.first_use import ready
from svc_infra.billing.models import Plan, PlanEntitlement, Price
from svc_infra.billing.rating import PriceModel, PriceTerms
from svc_infra.db.base import new_id
from svc_infra.exceptions import InvalidCatalog

# Any number that no other advisory lock of this package uses.
_APPLY_LOCK = 7_301_245_001

_Row = TypeVar("_Row", Plan, PlanEntitlement, Price)


@dataclass(slots=True)
class CatalogChanges:
    """What applying a catalog did, by the names of plans, entitlements and prices."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


def apply_catalog(session: Session, catalog: Catalog, *, now: datetime) -> CatalogChanges:
    """Bring plans (by key), entitlements and prices (by plan, key and currency) to what the catalog says.

    Safe to run again and by several processes at once. What the file does not mention stays as it is, except
    that only one plan is the default. Invoices keep the terms they were rated with.

    Raises:
        InvalidCatalog: with the prices that stay, a metric would be billed twice; nothing is written.
    """
    ready(session)
    _lock_catalog(session)
    changes = CatalogChanges()
    plans = _apply_plans(session, catalog, changes, now)
    for spec in catalog.plans:
        _apply_entitlements(session, spec, plans[spec.key], changes, now)
    _apply_prices(session, catalog, plans, changes, now)
    session.flush()
    return changes


def default_plan(session: Session) -> Plan | None:
    """The plan that new tenants are subscribed to; None before a catalog was applied."""
    return session.scalars(select(Plan).where(Plan.is_default)).one_or_none()


def price_terms(price: Price) -> PriceTerms:
    """The terms of a stored price."""
    if price.terms is not None:
        return PriceTerms.from_snapshot(price.terms)
    return PriceTerms(
        key=price.key,
        currency=price.currency,
        model=PriceModel(price.model),
        unit_amount=price.unit_amount,
        metric=price.metric,
        recurring_interval=price.recurring_interval,
    )


def _lock_catalog(session: Session) -> None:
    """One apply at a time: the second one compares with what the first has committed."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_APPLY_LOCK)))


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
        _put(
            session, known.get((item.key, item.window)), new, {"limit_per_window": item.limit}, name, changes
        )


def _apply_prices(
    session: Session, catalog: Catalog, plans: dict[str, Plan], changes: CatalogChanges, now: datetime
) -> None:
    known = {(row.plan_id, row.key, row.currency): row for row in session.scalars(_fresh(select(Price)))}
    for spec in catalog.prices:
        plan_id = plans[spec.plan].id if spec.plan is not None else None
        terms = spec.terms
        identity = (plan_id, terms.key, terms.currency)
        new = Price(id=new_id(), plan_id=plan_id, key=terms.key, currency=terms.currency, created_at=now)
        wanted = {
            "model": terms.model.value,
            "unit_amount": terms.unit_amount,
            "metric": terms.metric,
            "recurring_interval": terms.recurring_interval,
            "terms": terms.to_snapshot(),
        }
        known[identity] = _put(session, known.get(identity), new, wanted, _price_name(spec), changes)
    _refuse_second_prices(known.values(), {plan.id: plan.key for plan in plans.values()})


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


def _refuse_second_prices(prices: Iterable[Price], plan_keys: dict[str, str]) -> None:
    """The parser has checked the file; a price that the file no longer has may still bill a metric of it."""
    seen: dict[tuple[str, str], dict[str | None, Price]] = {}
    for price in prices:
        if price.metric is None:
            continue
        others = seen.setdefault((price.metric, price.currency), {})
        for plan_id, other in others.items():
            if plan_id is None or price.plan_id is None or plan_id == price.plan_id:
                of_plan = f"plan {plan_keys[plan_id]!r}" if plan_id else "every tenant"
                raise InvalidCatalog(
                    f"the database keeps a price {other.key!r} of {of_plan} for metric {price.metric!r} in "
                    f"{price.currency}; with {price.key!r} the same usage is billed twice, so keep the key"
                )
        others[price.plan_id] = price


def _price_name(spec: PriceSpec) -> str:
    scope = "every tenant" if spec.plan is None else f"plan {spec.plan}"
    return f"price {spec.terms.key} in {spec.terms.currency} of {scope}"


def _fresh(statement: Select[_Row]) -> Select[_Row]:
    """Read over what the session remembers: it may be older than the lock."""
    return statement.execution_options(populate_existing=True)
