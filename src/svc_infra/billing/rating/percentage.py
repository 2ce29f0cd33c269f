"""A share of an amount of money, and what each event of it costs beside."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from svc_infra.billing.money import MONEY_CONTEXT, currency_exponent
from svc_infra.billing.rating.charge import TierCharge, charge
from svc_infra.billing.rating.terms import PerEvent, PriceTerms

_ZERO = Decimal(0)
_PLAIN = PerEvent()


def amount_per_major_unit(percent: Decimal, currency: str) -> Decimal:
    """The minor units that a percentage makes of one major unit: 1 % of a dollar is 1 cent."""
    return percent.scaleb(currency_exponent(currency) - 2, MONEY_CONTEXT)


def rate_percentage(terms: PriceTerms, quantity: Decimal) -> tuple[TierCharge, ...]:
    """The percentage of what is left of the quantity (money in major units) after its free part."""
    charged = MONEY_CONTEXT.subtract(quantity, terms.free_units)
    if charged <= 0:
        return ()
    assert terms.percent is not None  # PriceTerms refuses the model without one
    return (charge(0, charged, amount_per_major_unit(terms.percent, terms.currency), _ZERO),)


def rate_percentage_events(terms: PriceTerms, events: Iterable[Decimal]) -> tuple[TierCharge, ...]:
    """What single events (money in major units, in their order) cost together.

    The free part ends with the first limit reached, of events or of money. An event within it costs nothing;
    the one that crosses the money limit pays for the rest of it. An event of a negative amount costs nothing.
    In the charge, the flat amount is what fixed fees and the bounds of an event add to the percentage.
    """
    per_event = terms.per_event or _PLAIN
    assert terms.percent is not None  # PriceTerms refuses the model without one
    unit_amount = amount_per_major_unit(terms.percent, terms.currency)
    quantity = total = _ZERO
    is_charged = False
    for charged in _charged_parts(events, per_event.free_events, terms.free_units):
        quantity = MONEY_CONTEXT.add(quantity, charged)
        total = MONEY_CONTEXT.add(total, _event_amount(charged, unit_amount, per_event))
        is_charged = True
    if not is_charged:
        return ()
    beside = MONEY_CONTEXT.subtract(total, MONEY_CONTEXT.multiply(quantity, unit_amount))
    return (TierCharge(0, quantity, unit_amount, beside, total),)


def _charged_parts(events: Iterable[Decimal], free_events: int, free_amount: Decimal) -> Iterable[Decimal]:
    """Of each event that is not free, the amount that is charged."""
    is_free_open = bool(free_events or free_amount)
    used = _ZERO
    for number, amount in enumerate((event for event in events if event >= 0), start=1):
        if not is_free_open:
            yield amount
            continue
        used = MONEY_CONTEXT.add(used, amount)
        if free_amount and used > free_amount:
            yield MONEY_CONTEXT.subtract(used, free_amount)
        is_free_open = number != free_events and not (free_amount and used >= free_amount)


def _event_amount(charged: Decimal, unit_amount: Decimal, per_event: PerEvent) -> Decimal:
    amount = MONEY_CONTEXT.fma(charged, unit_amount, per_event.fixed_amount)
    if per_event.minimum_amount is not None:
        amount = max(amount, per_event.minimum_amount)
    if per_event.maximum_amount is not None:
        amount = min(amount, per_event.maximum_amount)
    return amount
