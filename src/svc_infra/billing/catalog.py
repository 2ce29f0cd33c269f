"""The catalog file: plans, prices and meters as TOML, checked line by line and turned into specifications.

A pure parser: text in, ``Catalog`` out. Amounts are decimal strings in minor units, because a TOML number
would be a binary float. Every error is an InvalidCatalog that begins with ``file:line:``.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import Any

from svc_infra.billing.catalog_entitlement import ALWAYS, EntitlementSpec, read_entitlement
from svc_infra.billing.catalog_meter import MeterSpec, read_meter, refuse_unknown_dimension
from svc_infra.billing.catalog_price import PriceSpec, read_price
from svc_infra.billing.toml_lines import key_lines
from svc_infra.billing.toml_table import KEY_LENGTH, NAME_LENGTH, Origin, Table, nearest
from svc_infra.exceptions import InvalidCatalog

__all__ = ["Catalog", "EntitlementSpec", "MeterSpec", "PlanSpec", "PriceSpec", "parse_catalog"]

_PLAN_KEYS = ("key", "name", "description", "default", "entitlements")


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """A plan as the file states it."""

    key: str
    name: str
    description: str
    is_default: bool
    entitlements: tuple[EntitlementSpec, ...]
    line: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that a catalog file states, in its order."""

    plans: tuple[PlanSpec, ...]
    prices: tuple[PriceSpec, ...]
    meters: tuple[MeterSpec, ...] = ()

    @property
    def default_plan(self) -> PlanSpec | None:
        """The plan that new tenants are subscribed to; None in a catalog without plans."""
        return next((plan for plan in self.plans if plan.is_default), None)


def parse_catalog(text: str, source: str = "catalog.toml") -> Catalog:
    """Read a catalog; ``source`` is the file name that the InvalidCatalog of an error begins with."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found.group(1)) if found else text.count("\n") + 1
        raise InvalidCatalog(f"{source}:{line}: not valid TOML: {error}") from error
    except RecursionError:
        raise InvalidCatalog(f"{source}:1: it is nested deeper than any catalog") from None
    root = Table(document, (), Origin(source, key_lines(text)))
    root.refuse_unknown_keys(("plans", "prices", "meters"))
    meters = _meters(root)
    plans = tuple(_plan(table) for table in root.tables("plans"))
    prices = tuple(read_price(table) for table in root.tables("prices"))
    _check_plans(root, plans)
    _check_prices(root, plans, prices)
    for price, table in zip(prices, root.tables("prices"), strict=True):
        refuse_unknown_dimension(meters, price.terms, table)
    return Catalog(plans, prices, tuple(meters.values()))


def _meters(root: Table) -> dict[str, MeterSpec]:
    seen: dict[str, int] = {}
    meters = {}
    for table in root.tables("meters"):
        spec = read_meter(table)
        metric = spec.metering.metric
        _refuse_repeated(seen, metric, table, f"the meter of {metric!r}", "metric")
        meters[metric] = spec
    return meters


def _plan(table: Table) -> PlanSpec:
    table.refuse_unknown_keys(_PLAN_KEYS)
    key = table.required_text("key", KEY_LENGTH)
    is_default = table.flag("default")
    description = table.values.get("description", "")
    if not isinstance(description, str):
        raise table.error("description must be a string, so put it in quotes", "description")
    return PlanSpec(
        key=key,
        name=table.text("name", NAME_LENGTH) or key,
        description=description,
        is_default=is_default,
        entitlements=_entitlements(table),
        line=table.line(),
    )


def _entitlements(plan: Table) -> tuple[EntitlementSpec, ...]:
    seen: dict[tuple[str, str], int] = {}
    found = []
    for table in plan.tables("entitlements"):
        item = read_entitlement(table)
        name = f"entitlement {item.key!r}" + ("" if item.window == ALWAYS else f" per {item.window}")
        _refuse_repeated(seen, (item.key, item.window), table, name)
        found.append(item)
    return tuple(found)


def _check_plans(root: Table, plans: tuple[PlanSpec, ...]) -> None:
    seen: dict[str, int] = {}
    for plan, table in zip(plans, root.tables("plans"), strict=True):
        _refuse_repeated(seen, plan.key, table, f"plan {plan.key!r}", "key")
    defaults = [table for table in root.tables("plans") if table.values.get("default")]
    if plans and not defaults:
        raise root.error("no plan is the default; give exactly one plan default = true", "plans")
    if len(defaults) > 1:
        first = defaults[0].values["key"]
        raise defaults[1].error(f"plan {first!r} is the default already; only one plan can be", "default")


def _check_prices(root: Table, plans: tuple[PlanSpec, ...], prices: tuple[PriceSpec, ...]) -> None:
    plan_keys = [plan.key for plan in plans]
    keys_seen: dict[tuple[str | None, str, str], int] = {}
    metrics_seen: dict[tuple[Any, ...], dict[str | None, int]] = {}
    for price, table in zip(prices, root.tables("prices"), strict=True):
        terms = price.terms
        if price.plan is not None and price.plan not in plan_keys:
            raise table.error(f"there is no plan {price.plan!r}; {nearest(price.plan, plan_keys)}", "plan")
        name = f"price {terms.key!r} in {terms.currency} " + _scope(price.plan)
        _refuse_repeated(keys_seen, (price.plan, terms.key, terms.currency), table, name, "key")
        if terms.metric is not None:
            in_plans = metrics_seen.setdefault((terms.metric, terms.currency, terms.filter), {})
            _refuse_second_price(in_plans, price, table)
            in_plans[price.plan] = table.line("metric")


def _refuse_second_price(in_plans: dict[str | None, int], price: PriceSpec, table: Table) -> None:
    """A tenant must never have two prices for one metric at the same instant: it would be billed twice."""
    for plan, line in in_plans.items():
        if plan is None or price.plan is None or plan == price.plan:
            raise table.error(
                f"metric {price.terms.metric!r} has a price {_scope(plan)} already (line {line}); "
                f"another one {_scope(price.plan)} would bill the same usage twice",
                "metric",
            )


def _scope(plan: str | None) -> str:
    return "for every tenant" if plan is None else f"of plan {plan!r}"


def _refuse_repeated(
    seen: dict[Any, int], identity: object, table: Table, name: str, key: str | None = None
) -> None:
    if identity in seen:
        raise table.error(f"{name} is stated twice; the first is on line {seen[identity]}", key)
    seen[identity] = table.line(key)
