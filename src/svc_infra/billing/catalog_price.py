"""A price of the catalog file: which keys it has, and the terms that they make."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from svc_infra.billing.dimensions import DEFAULT, DimensionFilter
from svc_infra.billing.money import normalize_currency
from svc_infra.billing.rating import (
    PackageRounding,
    PerEvent,
    PriceModel,
    PriceTerms,
    Tier,
    ZeroUsagePolicy,
    parse_tier_bound,
    parse_unit_amount,
)
from svc_infra.billing.toml_table import KEY_LENGTH, METRIC_LENGTH, Table
from svc_infra.exceptions import InvalidCurrency, InvalidMeter, InvalidPrice

_PRICE_KEYS = (
    *("key", "plan", "currency", "unit_amount", "metric", "model", "tiers", "recurring_interval", "advance"),
    *("package_size", "package_rounding", "free_units", "percent"),
    *("minimum_amount", "maximum_amount", "zero_usage_policy", "commitment", "per_event"),
    *("filter", "group_by"),
)
_PER_EVENT_KEYS = ("fixed_amount", "free_events", "minimum_amount", "maximum_amount")
_TIER_KEYS = ("up_to", "unit_amount", "percent", "flat_amount")
_INTERVALS = ("month", "year")


@dataclass(frozen=True, slots=True)
class PriceSpec:
    """A price as the file states it; without a plan it applies to every tenant."""

    plan: str | None
    terms: PriceTerms
    line: int = field(compare=False)


def read_price(table: Table) -> PriceSpec:
    """The price of a ``[[prices]]`` table; InvalidCatalog for what cannot be billed."""
    table.refuse_unknown_keys(_PRICE_KEYS)
    key = table.required_text("key", KEY_LENGTH)
    currency = table.required_text("currency", KEY_LENGTH)
    try:
        currency = normalize_currency(currency)
    except InvalidCurrency as error:
        raise table.error(str(error), "currency") from error
    metric = table.text("metric", METRIC_LENGTH)
    model = PriceModel(
        table.choice("model", [known.value for known in PriceModel])
        or (PriceModel.FIXED if metric is None else PriceModel.PER_UNIT)
    )
    policy = table.choice("zero_usage_policy", [known.value for known in ZeroUsagePolicy])
    rounding = table.choice("package_rounding", [known.value for known in PackageRounding])
    try:
        terms = PriceTerms(
            key=key,
            currency=currency,
            model=model,
            unit_amount=table.amount("unit_amount", parse_unit_amount),
            tiers=_tiers(table, is_percentage=model is PriceModel.GRADUATED_PERCENTAGE),
            metric=metric,
            recurring_interval=table.choice("recurring_interval", _INTERVALS),
            zero_usage_policy=ZeroUsagePolicy(policy or ZeroUsagePolicy.BILL_NOTHING),
            package_size=table.amount("package_size", parse_tier_bound),
            package_rounding=PackageRounding(rounding or PackageRounding.UP),
            free_units=table.amount("free_units", parse_tier_bound) or Decimal(0),
            percent=table.amount("percent", parse_unit_amount),
            minimum_amount=table.amount("minimum_amount", parse_unit_amount),
            maximum_amount=table.amount("maximum_amount", parse_unit_amount),
            is_advance=table.flag("advance"),
            is_commitment=table.flag("commitment"),
            per_event=_per_event(table),
            filter=_filter(table),
            group_by=_group_by(table),
        )
    except InvalidPrice as error:
        raise table.error(str(error)) from error
    plan = table.text("plan", KEY_LENGTH)
    if plan is None:
        _refuse_without_subscription(table, terms)
    return PriceSpec(plan, terms, table.line())


def _refuse_without_subscription(table: Table, terms: PriceTerms) -> None:
    """What is counted from a subscription's beginning belongs to a plan; every tenant has the calendar."""
    if terms.recurring_interval == "year":
        raise table.error(
            "a yearly price belongs to a plan; for every tenant use a monthly one", "recurring_interval"
        )
    for key in ("advance", "commitment"):
        if table.values.get(key):
            raise table.error(f"a price for every tenant has no {key}; put it on a plan", key)


def _filter(price: Table) -> DimensionFilter:
    """Which events of the metric it bills: metadata keys, each with a text or several."""
    table = price.table("filter")
    if table is None:
        return DEFAULT
    try:
        return DimensionFilter.of(table.values)
    except (InvalidMeter, TypeError) as error:
        raise price.error(f"filter: {error}", "filter") from error


def _group_by(price: Table) -> tuple[str, ...]:
    keys = price.values.get("group_by", [])
    if not isinstance(keys, list) or not all(isinstance(key, str) and key for key in keys):
        raise price.error('group_by is a list of metadata keys, such as ["region"]', "group_by")
    return tuple(keys)


def _per_event(price: Table) -> PerEvent | None:
    """What a percentage price adds to each event: the table ``per_event``."""
    table = price.table("per_event")
    if table is None:
        return None
    table.refuse_unknown_keys(_PER_EVENT_KEYS)
    free_events = table.values.get("free_events", 0)
    if type(free_events) is not int or free_events < 0:
        raise table.error("free_events must be a whole number of 0 or more, without quotes", "free_events")
    return PerEvent(
        fixed_amount=table.amount("fixed_amount", parse_unit_amount) or Decimal(0),
        free_events=free_events,
        minimum_amount=table.amount("minimum_amount", parse_unit_amount),
        maximum_amount=table.amount("maximum_amount", parse_unit_amount),
    )


def _tiers(price: Table, *, is_percentage: bool) -> tuple[Tier, ...]:
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
        tiers.append(_tier(table, up_to, is_percentage))
    return tuple(tiers)


def _tier(table: Table, up_to: Decimal | None, is_percentage: bool) -> Tier:
    """A tier with the price that its model has: a percentage, or an amount per unit."""
    wanted, other = ("percent", "unit_amount") if is_percentage else ("unit_amount", "percent")
    if other in table.values:
        raise table.error(f"a tier of this model has {wanted} and no {other}", other)
    price = table.amount(wanted, parse_unit_amount)
    if price is None:
        raise table.error(f'{wanted} is missing; a tier that costs nothing says {wanted} = "0"')
    flat_amount = table.amount("flat_amount", parse_unit_amount) or Decimal(0)
    if is_percentage:
        return Tier(up_to, flat_amount=flat_amount, percent=price)
    return Tier(up_to, price, flat_amount)
