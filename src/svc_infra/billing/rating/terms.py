"""The terms of a price: what is stored with it, and what an invoice line keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from svc_infra.billing.dimensions import DEFAULT, DimensionFilter
from svc_infra.billing.money import normalize_currency
from svc_infra.billing.rating.checks import check_terms
from svc_infra.billing.rating.snapshot import (
    parse_amounts,
    parse_unit_amount,
    terms_to_snapshot,
    tiers_from_snapshot,
)
from svc_infra.billing.rating.tier import Tier
from svc_infra.exceptions import InvalidPrice

_ZERO = Decimal(0)


class PriceModel(StrEnum):
    """How a quantity turns into money."""

    FIXED = "fixed"
    PER_UNIT = "per_unit"
    GRADUATED = "graduated"
    VOLUME = "volume"
    PACKAGE = "package"
    PERCENTAGE = "percentage"
    GRADUATED_PERCENTAGE = "graduated_percentage"


class ZeroUsagePolicy(StrEnum):
    """Whether zero usage costs the flat amount of the first tier. Vendors disagree; we default to no."""

    BILL_NOTHING = "bill_nothing"
    BILL_FIRST_FLAT = "bill_first_flat"


class PackageRounding(StrEnum):
    """Whether a package that was begun is charged (up) or not (down)."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class PerEvent:
    """What a percentage price adds to each event, beside the rate on its amount.

    ``fixed_amount``, ``minimum_amount`` and ``maximum_amount`` are minor units and may have a fraction; the
    last two bound what one event costs. The first ``free_events`` cost nothing (0: no such rule).
    """

    fixed_amount: Decimal = _ZERO
    free_events: int = 0
    minimum_amount: Decimal | None = None
    maximum_amount: Decimal | None = None


@dataclass(frozen=True, slots=True)
class PriceTerms:
    """The terms that a quantity is rated with, independent of where they are stored.

    A fixed price has a ``recurring_interval`` and no ``metric``; the other models bill a metric.
    ``unit_amount`` is in minor units and may have a fraction; of a package price it is the price of a whole
    package of ``package_size`` units. The quantity of the two percentage models is money in major units of
    the currency. ``free_units`` is how much of the quantity costs nothing. ``minimum_amount`` and
    ``maximum_amount`` bound what a period costs, in minor units. ``is_advance`` says that a fixed price is
    charged for the period that begins instead of the one that ended; ``is_commitment`` that its amount is
    what the other prices of the plan are to reach together, and a line makes up for what is missing.
    ``filter`` says which of the metric's events it bills (``dimensions``), and ``group_by`` by which metadata
    keys each combination is a line of its own.
    InvalidPrice says what does not fit together, InvalidCurrency that the currency is unknown.
    """

    key: str
    currency: str
    model: PriceModel
    unit_amount: Decimal | None = None
    tiers: tuple[Tier, ...] = ()
    metric: str | None = None
    recurring_interval: str | None = None
    zero_usage_policy: ZeroUsagePolicy = ZeroUsagePolicy.BILL_NOTHING
    # Out of the hash, which is taken for every fixed line: the fields above tell prices apart well enough.
    package_size: Decimal | None = field(default=None, hash=False)
    package_rounding: PackageRounding = field(default=PackageRounding.UP, hash=False)
    free_units: Decimal = field(default=_ZERO, hash=False)
    percent: Decimal | None = field(default=None, hash=False)
    per_event: PerEvent | None = field(default=None, hash=False)
    minimum_amount: Decimal | None = field(default=None, hash=False)
    maximum_amount: Decimal | None = field(default=None, hash=False)
    is_advance: bool = field(default=False, hash=False)
    is_commitment: bool = field(default=False, hash=False)
    filter: DimensionFilter = field(default=DEFAULT, hash=False)
    group_by: tuple[str, ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "currency", normalize_currency(self.currency))
        check_terms(self)

    @property
    def bills_zero_usage(self) -> bool:
        """Whether a period without usage costs something, so that it needs a line."""
        has_first_flat = self.zero_usage_policy is ZeroUsagePolicy.BILL_FIRST_FLAT and bool(self.tiers)
        return has_first_flat or bool(self.minimum_amount)

    @property
    def is_monotone(self) -> bool:
        """Whether more usage never costs less; a volume price falls where a cheaper tier begins."""
        return self.model is not PriceModel.VOLUME

    def to_snapshot(self) -> dict[str, Any]:
        """The terms as JSON, decimals as canonical strings; what is absent or the default is left out."""
        return terms_to_snapshot(self)

    @classmethod
    def from_snapshot(cls, snapshot: Mapping[str, Any]) -> PriceTerms:
        """The terms that ``to_snapshot`` wrote; InvalidPrice for anything else."""
        try:
            known = parse_amounts(snapshot)
            known["model"] = PriceModel(known["model"])
            if "tiers" in known:
                known["tiers"] = tiers_from_snapshot(known["tiers"])
            if "zero_usage_policy" in known:
                known["zero_usage_policy"] = ZeroUsagePolicy(known["zero_usage_policy"])
            if "package_rounding" in known:
                known["package_rounding"] = PackageRounding(known["package_rounding"])
            if "filter" in known:
                known["filter"] = DimensionFilter.of(known["filter"])
            if "group_by" in known:
                known["group_by"] = tuple(known["group_by"])
            if "per_event" in known:
                known["per_event"] = _per_event(known["per_event"])
            return cls(**known)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidPrice(f"not a price snapshot: {error}") from error


def _per_event(snapshot: Mapping[str, Any]) -> PerEvent:
    amounts = {name: parse_unit_amount(text) for name, text in snapshot.items() if name != "free_events"}
    return PerEvent(free_events=snapshot.get("free_events", 0), **amounts)
