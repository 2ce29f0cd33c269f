"""The ``[[plans.entitlements]]`` of a catalog file: limits per window, and features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from svc_infra.billing.money import MAX_MINOR
from svc_infra.billing.toml_table import METRIC_LENGTH, Table

FeatureValue: TypeAlias = bool | int | str

ALWAYS = "always"
UNLIMITED = "unlimited"

_KEYS = ("key", "limit", "window", "soft", "alerts", "value")
_WINDOWS = ("day", "month")
_VALUE_LENGTH = 1000
_MAX_PERCENT = 1000


@dataclass(frozen=True, slots=True)
class EntitlementSpec:
    """How much of ``key`` a plan allows in each window, or the value of a feature.

    A limit of None is unlimited. A feature has the window ``always``, and a ``value``: true or false, a whole
    number or a text. ``alert_percents`` are the shares of the limit at which a webhook is sent.
    """

    key: str
    limit: int | None
    window: str
    is_soft: bool = False
    alert_percents: tuple[int, ...] = ()
    value: FeatureValue | None = None


def read_entitlement(table: Table) -> EntitlementSpec:
    """Read one entitlement; InvalidCatalog names the line of what is wrong with it."""
    table.refuse_unknown_keys(_KEYS)
    key = table.required_text("key", METRIC_LENGTH)
    if "value" in table.values:
        return _feature(table, key)
    window = table.choice("window", _WINDOWS)
    if window is None:
        raise table.error("window is missing; it is 'day' or 'month'")
    limit = table.values.get("limit")
    if limit == UNLIMITED:
        limit = None
    elif type(limit) is not int or not 0 <= limit <= MAX_MINOR:  # a bool is an int, too, but no limit
        raise table.error(
            f'limit must be a whole number of 0 or more, without quotes, or "{UNLIMITED}"', "limit"
        )
    return EntitlementSpec(key, limit, window, table.flag("soft"), _alert_percents(table))


def _feature(table: Table, key: str) -> EntitlementSpec:
    for other in ("limit", "window", "soft", "alerts"):
        if other in table.values:
            raise table.error(f"an entitlement with a value has no {other}", other)
    value = table.values["value"]
    if type(value) not in (bool, int, str) or len(str(value)) > _VALUE_LENGTH:
        raise table.error("value must be true, false, a whole number or a string", "value")
    return EntitlementSpec(key, None, ALWAYS, value=value)


def _alert_percents(table: Table) -> tuple[int, ...]:
    percents = table.values.get("alerts", [])
    if not isinstance(percents, list) or not all(
        type(each) is int and 0 < each <= _MAX_PERCENT for each in percents
    ):
        raise table.error("alerts must be whole percentages of the limit, like [80, 100]", "alerts")
    if percents != sorted(set(percents)):
        raise table.error("alerts must rise", "alerts")
    return tuple(percents)
