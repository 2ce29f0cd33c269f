"""The prices of one currency, by plan, with the versions that each had. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from svc_infra.billing.rating import PriceTerms


@dataclass(frozen=True)
class PlanPrice:
    """A version of a stored price; without a plan it applies to every tenant.

    It bills what begins on the local day ``effective_on`` or later and before ``ended_on``.
    """

    id: str
    plan_id: str | None
    terms: PriceTerms
    effective_on: date = date.min
    ended_on: date | None = None

    def is_in_force(self, day: date) -> bool:
        """Whether it bills what begins on this day."""
        return self.effective_on <= day and (self.ended_on is None or day < self.ended_on)

    @cached_property
    def snapshot(self) -> dict[str, Any]:
        """The terms as JSON, made once."""
        return self.terms.to_snapshot()


class PriceList:
    """The prices of one currency, by plan."""

    def __init__(self, prices: Iterable[PlanPrice]) -> None:
        self._by_plan: dict[str | None, list[PlanPrice]] = {}
        self._fixed: dict[str | None, dict[str, list[PlanPrice]]] = {}
        self._on: dict[tuple[str | None, date | None], list[PlanPrice]] = {}
        for price in sorted(prices, key=lambda price: (price.effective_on, price.id)):
            self._by_plan.setdefault(price.plan_id, []).append(price)
            if price.terms.metric is None:
                self._fixed.setdefault(price.plan_id, {}).setdefault(price.terms.key, []).append(price)

    def of(self, plan_id: str | None, day: date | None) -> Sequence[PlanPrice]:
        """The prices of a plan, or those without one, for what begins on this day; without a day none."""
        if day is None:
            return ()
        found = self._on.get((plan_id, day))
        if found is None:
            found = [price for price in self._by_plan.get(plan_id, ()) if price.is_in_force(day)]
            self._on[plan_id, day] = found
        return found

    def fixed_keys(self, plan_id: str) -> Iterable[str]:
        """The keys of a plan's fixed prices."""
        return self._fixed.get(plan_id, ())

    def versions(self, plan_id: str, key: str) -> Sequence[PlanPrice]:
        """Every version of one fixed price of a plan, the oldest first."""
        return self._fixed.get(plan_id, {}).get(key, ())

    @cached_property
    def plans_in_advance(self) -> frozenset[str | None]:
        """The plans that have a price charged in advance."""
        return frozenset(
            plan_id
            for plan_id, prices in self._by_plan.items()
            if any(price.terms.is_advance for price in prices)
        )
