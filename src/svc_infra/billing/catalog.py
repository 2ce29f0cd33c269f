"""The catalog file: plans and prices as TOML, checked line by line and turned into frozen specifications.

A pure parser: text in, ``Catalog`` out. Amounts are decimal strings in minor units, because a TOML number
would be a binary float. Every error is an InvalidCatalog that begins with ``file:line:``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from svc_infra.billing.money import MAX_MINOR, normalize_currency
from svc_infra.billing.rating import PriceModel, PriceTerms, Tier, parse_tier_bound, parse_unit_amount
from svc_infra.billing.toml_lines import KeyPath, key_lines, line_of
from svc_infra.exceptions import InvalidCatalog, InvalidCurrency, InvalidPrice

_PLAN_KEYS = ("key", "name", "description", "default", "entitlements")
_ENTITLEMENT_KEYS = ("key", "limit", "window")
_PRICE_KEYS = ("key", "plan", "currency", "unit_amount", "metric", "model", "tiers", "recurring_interval")
_TIER_KEYS = ("up_to", "unit_amount", "flat_amount")
_WINDOWS = ("day", "month")

# The lengths of the columns that these are stored in.
_KEY_LENGTH, _METRIC_LENGTH, _NAME_LENGTH = 100, 200, 200


@dataclass(frozen=True, slots=True)
class EntitlementSpec:
    """How much of ``key`` a plan allows in each window (the tenant's day or month)."""

    key: str
    limit: int
    window: str


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
class PriceSpec:
    """A price as the file states it; without a plan it applies to every tenant."""

    plan: str | None
    terms: PriceTerms
    line: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that a catalog file states, in its order."""

    plans: tuple[PlanSpec, ...]
    prices: tuple[PriceSpec, ...]

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
    root = _Table(document, (), _Origin(source, key_lines(text)))
    root.refuse_unknown_keys(("plans", "prices"))
    plans = tuple(_plan(table) for table in root.tables("plans"))
    prices = tuple(_price(table) for table in root.tables("prices"))
    _check_plans(root, plans)
    _check_prices(root, plans, prices)
    return Catalog(plans, prices)


@dataclass(frozen=True, slots=True)
class _Origin:
    source: str
    lines: dict[KeyPath, int]


class _Table:
    """One table of the file: reads its keys and knows the line to blame."""

    def __init__(self, values: dict[str, Any], path: KeyPath, origin: _Origin) -> None:
        self.values = values
        self._path = path
        self._origin = origin

    def line(self, key: str | None = None) -> int:
        return line_of(self._origin.lines, self._path if key is None else (*self._path, key))

    def error(self, message: str, key: str | None = None) -> InvalidCatalog:
        return InvalidCatalog(f"{self._origin.source}:{self.line(key)}: {message}")

    def refuse_unknown_keys(self, known: Sequence[str]) -> None:
        for key in self.values:
            if key not in known:
                raise self.error(f"unknown key {key!r}; {_nearest(key, known)}", key)

    def tables(self, key: str) -> list[_Table]:
        values = self.values.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.error(f"{key} must be an array of tables; begin each with [[{key}]]", key)
        path = (*self._path, key)
        return [_Table(value, (*path, index), self._origin) for index, value in enumerate(values)]

    def text(self, key: str, max_length: int) -> str | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(f"{key} must be a string, so put it in quotes", key)
        if not value or value != value.strip() or not value.isprintable():
            raise self.error(f"{key} {value!r} is empty or has blanks or control characters around it", key)
        if len(value) > max_length:
            raise self.error(f"{key} has {len(value)} characters; at most {max_length} are stored", key)
        return value

    def required_text(self, key: str, max_length: int) -> str:
        value = self.text(key, max_length)
        if value is None:
            raise self.error(f"{key} is missing")
        return value

    def choice(self, key: str, choices: Sequence[str]) -> str | None:
        value = self.text(key, _NAME_LENGTH)
        if value is not None and value not in choices:
            raise self.error(f"{key} {value!r} is not known; {_nearest(value, choices)}", key)
        return value

    def amount(self, key: str, parse: Callable[[str], Decimal]) -> Decimal | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(f'{key} must be a decimal string; put it in quotes: {key} = "{value}"', key)
        try:
            amount = parse(value)
        except ValueError as error:
            raise self.error(f"{key}: {error}", key) from error
        if amount < 0:
            raise self.error(f"{key} {value!r} must not be negative", key)
        return amount


def _plan(table: _Table) -> PlanSpec:
    table.refuse_unknown_keys(_PLAN_KEYS)
    key = table.required_text("key", _KEY_LENGTH)
    is_default = table.values.get("default", False)
    if not isinstance(is_default, bool):
        raise table.error("default must be true or false, without quotes", "default")
    description = table.values.get("description", "")
    if not isinstance(description, str):
        raise table.error("description must be a string, so put it in quotes", "description")
    return PlanSpec(
        key=key,
        name=table.text("name", _NAME_LENGTH) or key,
        description=description,
        is_default=is_default,
        entitlements=_entitlements(table),
        line=table.line(),
    )


def _entitlements(plan: _Table) -> tuple[EntitlementSpec, ...]:
    seen: dict[tuple[str, str], int] = {}
    found = []
    for table in plan.tables("entitlements"):
        table.refuse_unknown_keys(_ENTITLEMENT_KEYS)
        key = table.required_text("key", _METRIC_LENGTH)
        window = table.choice("window", _WINDOWS)
        if window is None:
            raise table.error("window is missing; it is 'day' or 'month'")
        limit = table.values.get("limit")
        if type(limit) is not int or not 0 <= limit <= MAX_MINOR:  # a bool is an int, too, but no limit
            raise table.error("limit must be a whole number of 0 or more, without quotes", "limit")
        _refuse_repeated(seen, (key, window), table, f"entitlement {key!r} per {window}")
        found.append(EntitlementSpec(key, limit, window))
    return tuple(found)


def _price(table: _Table) -> PriceSpec:
    table.refuse_unknown_keys(_PRICE_KEYS)
    key = table.required_text("key", _KEY_LENGTH)
    currency = table.required_text("currency", _KEY_LENGTH)
    try:
        currency = normalize_currency(currency)
    except InvalidCurrency as error:
        raise table.error(str(error), "currency") from error
    interval = table.text("recurring_interval", _KEY_LENGTH)
    if interval == "year":
        raise table.error("recurring_interval 'year' is not billed yet; use 'month'", "recurring_interval")
    table.choice("recurring_interval", ("month",))
    metric = table.text("metric", _METRIC_LENGTH)
    model = table.choice("model", [known.value for known in PriceModel])
    default_model = PriceModel.FIXED if metric is None else PriceModel.PER_UNIT
    try:
        terms = PriceTerms(
            key=key,
            currency=currency,
            model=PriceModel(model) if model else default_model,
            unit_amount=table.amount("unit_amount", parse_unit_amount),
            tiers=_tiers(table),
            metric=metric,
            recurring_interval=interval,
        )
    except InvalidPrice as error:
        raise table.error(str(error)) from error
    return PriceSpec(table.text("plan", _KEY_LENGTH), terms, table.line())


def _tiers(price: _Table) -> tuple[Tier, ...]:
    tables = price.tables("tiers")
    reached = Decimal(0)
    tiers = []
    for position, table in enumerate(tables, start=1):
        table.refuse_unknown_keys(_TIER_KEYS)
        up_to = table.amount("up_to", parse_tier_bound)
        if up_to is None and position < len(tables):
            raise table.error("up_to is missing; only the last tier has none")
        if up_to is not None and position == len(tables):
            raise table.error("the last tier must have no up_to, so that it prices all the rest", "up_to")
        if up_to is not None and up_to <= reached:
            raise table.error(
                f"up_to {up_to} must be more than {reached}, the end of the tier before", "up_to"
            )
        reached = up_to or reached
        unit_amount = table.amount("unit_amount", parse_unit_amount)
        if unit_amount is None:
            raise table.error('unit_amount is missing; a tier without a unit price says unit_amount = "0"')
        tiers.append(Tier(up_to, unit_amount, table.amount("flat_amount", parse_unit_amount) or Decimal(0)))
    return tuple(tiers)


def _check_plans(root: _Table, plans: tuple[PlanSpec, ...]) -> None:
    seen: dict[str, int] = {}
    for plan, table in zip(plans, root.tables("plans"), strict=True):
        _refuse_repeated(seen, plan.key, table, f"plan {plan.key!r}", "key")
    defaults = [table for table in root.tables("plans") if table.values.get("default")]
    if plans and not defaults:
        raise root.error("no plan is the default; give exactly one plan default = true", "plans")
    if len(defaults) > 1:
        first = defaults[0].values["key"]
        raise defaults[1].error(f"plan {first!r} is the default already; only one plan can be", "default")


def _check_prices(root: _Table, plans: tuple[PlanSpec, ...], prices: tuple[PriceSpec, ...]) -> None:
    plan_keys = [plan.key for plan in plans]
    keys_seen: dict[tuple[str | None, str, str], int] = {}
    metrics_seen: dict[tuple[str, str], dict[str | None, int]] = {}
    for price, table in zip(prices, root.tables("prices"), strict=True):
        terms = price.terms
        if price.plan is not None and price.plan not in plan_keys:
            raise table.error(f"there is no plan {price.plan!r}; {_nearest(price.plan, plan_keys)}", "plan")
        name = f"price {terms.key!r} in {terms.currency} " + _scope(price.plan)
        _refuse_repeated(keys_seen, (price.plan, terms.key, terms.currency), table, name, "key")
        if terms.metric is not None:
            in_plans = metrics_seen.setdefault((terms.metric, terms.currency), {})
            _refuse_second_price(in_plans, price, table)
            in_plans[price.plan] = table.line("metric")


def _refuse_second_price(in_plans: dict[str | None, int], price: PriceSpec, table: _Table) -> None:
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
    seen: dict[Any, int], identity: object, table: _Table, name: str, key: str | None = None
) -> None:
    if identity in seen:
        raise table.error(f"{name} is stated twice; the first is on line {seen[identity]}", key)
    seen[identity] = table.line(key)


def _nearest(word: str, known: Iterable[str]) -> str:
    """What to write instead: the known word that comes nearest, or all of them."""
    words = list(known)
    near = difflib.get_close_matches(word, words, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(words)}" if words else "none is known"
