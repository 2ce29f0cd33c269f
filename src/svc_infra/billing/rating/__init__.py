"""What a quantity costs under a price: pure, exact, rounded once per line.

A price model is one function in a file of its own: it takes the terms and a positive quantity and returns,
exact and unrounded, what each part of the price contributes. ``rate`` adds that up, applies the proration
ratio in the last multiplication and rounds half away from zero. Neither a unit price nor a quantity is ever
rounded. Tiers are real-valued and inclusive at the top; entering one by any fraction adds its flat amount.
"""

from __future__ import annotations

from svc_infra.billing.rating.bounds import MinimumCommitment, capped, minimum_commitment, true_up
from svc_infra.billing.rating.charge import RatedAmount, TierCharge
from svc_infra.billing.rating.line import rate, rate_events, rate_with_true_up
from svc_infra.billing.rating.parts import rate_grouped, rate_increment, rate_volume_prorated
from svc_infra.billing.rating.snapshot import (
    parse_tier_bound,
    parse_unit_amount,
    tiers_from_snapshot,
    tiers_to_snapshot,
)
from svc_infra.billing.rating.terms import PackageRounding, PerEvent, PriceModel, PriceTerms, ZeroUsagePolicy
from svc_infra.billing.rating.tier import Tier

__all__ = [
    "MinimumCommitment",
    "PackageRounding",
    "PerEvent",
    "PriceModel",
    "PriceTerms",
    "RatedAmount",
    "Tier",
    "TierCharge",
    "ZeroUsagePolicy",
    "capped",
    "minimum_commitment",
    "parse_tier_bound",
    "parse_unit_amount",
    "rate",
    "rate_events",
    "rate_grouped",
    "rate_increment",
    "rate_volume_prorated",
    "rate_with_true_up",
    "tiers_from_snapshot",
    "tiers_to_snapshot",
    "true_up",
]
