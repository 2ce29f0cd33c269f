"""Units sold by the package."""

from __future__ import annotations

from decimal import Decimal

from svc_infra.billing.money import MONEY_CONTEXT
from svc_infra.billing.rating.charge import TierCharge, charge
from svc_infra.billing.rating.terms import PackageRounding, PriceTerms

_ZERO = Decimal(0)
_ONE = Decimal(1)


def rate_package(terms: PriceTerms, quantity: Decimal) -> tuple[TierCharge, ...]:
    """Whole packages of what is left after the free units, times the price of a package.

    A package that was begun counts unless the price rounds down.
    """
    size, package_amount = terms.package_size, terms.unit_amount
    assert size is not None  # PriceTerms refuses the model without both
    assert package_amount is not None
    charged = MONEY_CONTEXT.subtract(quantity, terms.free_units)
    if charged <= 0:
        return ()
    packages, rest = MONEY_CONTEXT.divmod(charged, size)
    if rest and terms.package_rounding is PackageRounding.UP:
        packages = MONEY_CONTEXT.add(packages, _ONE)
    return (charge(0, packages, package_amount, _ZERO),)
