"""Stripe's way to write an amount of money: its "smallest unit" is not everywhere that of ISO 4217."""

from __future__ import annotations

from svc_infra.billing.money import currency_exponent, format_minor
from svc_infra.exceptions import ProviderRefused

# https://docs.stripe.com/currencies: without decimals where ISO 4217 has two, or written with two where it
# has none.
_DECIMALS = {"mga": 0, "isk": 2, "ugx": 2}


def stripe_amount(minor: int, currency: str) -> int:
    """Return an amount in ISO minor units as the integer that Stripe takes for it.

    Raises:
        ProviderRefused: Stripe cannot take this amount exactly: a fraction of the ariary, or a three-decimal
            currency, whose last digit must be 0.
    """
    code = currency.lower()
    decimals = currency_exponent(code)
    wanted = _DECIMALS.get(code, decimals)
    if decimals > 3:
        raise ProviderRefused(f"Stripe takes no {code.upper()}; bill in another currency")
    scaled: int = minor * 10 ** max(0, wanted - decimals)
    divisor: int = 10 ** max(0, decimals - wanted)
    if scaled % divisor or (decimals == 3 and scaled % 10):
        raise ProviderRefused(
            f"{format_minor(minor, code)} {code.upper()} is finer than Stripe takes; choose prices that "
            "come to none such"
        )
    return scaled // divisor
