"""Money: integer minor units, one rounding rule, currencies of ISO 4217, decimal text read strictly.

An amount of money is an ``int`` of minor units (cents). What leads to it is exact: ``Decimal`` under
``MONEY_CONTEXT`` for sums and products, ``Fraction`` where something is divided. No float.
"""

from __future__ import annotations

import re
from decimal import (
    MAX_EMAX,
    MIN_EMIN,
    ROUND_CEILING,
    ROUND_DOWN,
    ROUND_FLOOR,
    ROUND_HALF_DOWN,
    ROUND_HALF_EVEN,
    ROUND_HALF_UP,
    ROUND_UP,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
)
from enum import StrEnum
from fractions import Fraction

from svc_infra.exceptions import AmountTooLarge, InvalidCurrency

# Quantities have 38 digits and unit prices 38, so a product has 76 and a sum of products a few more.
# Inexact traps: whatever would lose a digit is an error here, and a division belongs to Fraction.
MONEY_CONTEXT = Context(
    prec=120,
    rounding=ROUND_HALF_UP,
    Emin=MIN_EMIN,
    Emax=MAX_EMAX,
    traps=[Inexact, InvalidOperation, DivisionByZero, Overflow],
)

MAX_MINOR = 2**63 - 1

_HALF = Fraction(1, 2)

_DECIMAL_TEXT = re.compile(r"[+-]?(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))")

# ISO 4217, the active codes with a minor unit (the funds codes too), by number of decimals.
_CODES_BY_EXPONENT = {
    0: "bif clp djf gnf isk jpy kmf krw pyg rwf ugx uyi vnd vuv xaf xof xpf",
    2: """
        aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bmd bnd bob bov brl bsd btn bwp byn bzd
        cad cdf che chf chw cny cop cou crc cup cve czk dkk dop dzd egp ern etb eur fjd fkp gbp gel ghs
        gip gmd gtq gyd hkd hnl htg huf idr ils inr irr jmd kes kgs khr kpw kyd kzt lak lbp lkr lrd lsl
        mad mdl mga mkd mmk mnt mop mru mur mvr mwk mxn mxv myr mzn nad ngn nio nok npr nzd pab pen pgk
        php pkr pln qar ron rsd rub sar sbd scr sdg sek sgd shp sle sos srd ssp stn svc syp szl thb tjs
        tmt top try ttd twd tzs uah usd usn uyu uzs ved ves wst xcd xcg yer zar zmw zwg
    """,
    3: "bhd iqd jod kwd lyd omr tnd",
    4: "clf uyw",
}
_EXPONENTS = {code: exponent for exponent, codes in _CODES_BY_EXPONENT.items() for code in codes.split()}


def round_half_away(value: Decimal | Fraction | int) -> int:
    """Round to the nearest whole number, a half away from zero: the one rounding of money.

    ``round_half_away(-x) == -round_half_away(x)``, so a credit mirrors its charge. Exact for any length.
    """
    if isinstance(value, Decimal):
        return int(value.to_integral_value(rounding=ROUND_HALF_UP, context=MONEY_CONTEXT))
    numerator, denominator = value.numerator, value.denominator
    # Twice the value plus one half unit, floored: no second division and no float.
    rounded = (2 * abs(numerator) + denominator) // (2 * denominator)
    return rounded if numerator >= 0 else -rounded


class RoundingMode(StrEnum):
    """To which neighbour a number is rounded. Money takes HALF_AWAY; the others are for quantities."""

    HALF_AWAY = "half_away_from_zero"
    HALF_EVEN = "half_even"
    HALF_DOWN = "half_down"  # a half towards zero
    UP = "up"  # away from zero
    DOWN = "down"  # towards zero
    CEIL = "ceil"
    FLOOR = "floor"


_DECIMAL_ROUNDING = {
    RoundingMode.HALF_AWAY: ROUND_HALF_UP,
    RoundingMode.HALF_EVEN: ROUND_HALF_EVEN,
    RoundingMode.HALF_DOWN: ROUND_HALF_DOWN,
    RoundingMode.UP: ROUND_UP,
    RoundingMode.DOWN: ROUND_DOWN,
    RoundingMode.CEIL: ROUND_CEILING,
    RoundingMode.FLOOR: ROUND_FLOOR,
}


def round_to(
    value: Decimal | Fraction | int, places: int = 0, mode: RoundingMode = RoundingMode.HALF_AWAY
) -> Decimal:
    """Round to so many decimal places; a negative number of places rounds to tens, hundreds and so on."""
    floor, rest = divmod(Fraction(value) * Fraction(10) ** places, 1)
    # Whether the rest is nothing, less than a half, a half or more is all that a mode asks about it.
    quarters = 0 if not rest else 1 if rest < _HALF else 2 if rest == _HALF else 3
    stand_in = MONEY_CONTEXT.add(Decimal(floor), MONEY_CONTEXT.multiply(Decimal(quarters), Decimal("0.25")))
    rounded = int(stand_in.to_integral_value(rounding=_DECIMAL_ROUNDING[mode], context=MONEY_CONTEXT))
    return Decimal(rounded * 10**-places) if places < 0 else Decimal(rounded).scaleb(-places, MONEY_CONTEXT)


def percent_of(amount: Decimal | Fraction | int, percent: Decimal) -> int:
    """So many per cent of an amount of minor units, rounded once: a tax of a line, for one."""
    return round_half_away(Fraction(amount) * Fraction(percent) / 100)


def normalize_currency(code: str) -> str:
    """The lower-case code that this package stores (``"USD"`` is ``"usd"``); InvalidCurrency if unknown."""
    lowered = code.lower()
    if lowered not in _EXPONENTS:
        raise InvalidCurrency(f"{code!r} is not a currency of ISO 4217; use a code such as 'usd'")
    return lowered


def currency_exponent(code: str) -> int:
    """How many decimals the minor unit of a currency has: 2 for usd, 0 for jpy, 3 for kwd (ISO 4217)."""
    return _EXPONENTS[normalize_currency(code)]


def format_minor(amount: int, currency: str) -> str:
    """An amount of minor units as text in major units: ``format_minor(1234, "usd") == "12.34"``."""
    exponent = currency_exponent(currency)
    sign = "-" if amount < 0 else ""
    if exponent == 0:
        return f"{sign}{abs(amount)}"
    major, minor = divmod(abs(amount), 10**exponent)
    return f"{sign}{major}.{minor:0{exponent}d}"


def check_minor(amount: int) -> int:
    """The amount itself if it fits a signed 64-bit column; otherwise AmountTooLarge."""
    if -MAX_MINOR <= amount <= MAX_MINOR:
        return amount
    raise AmountTooLarge(
        f"an amount of {len(str(abs(amount)))} digits does not fit 64-bit minor units; "
        "check the unit price and the quantity of the price"
    )


def parse_decimal(text: str, *, max_integer_digits: int, max_decimal_digits: int) -> Decimal:
    """Read a plain decimal such as ``"12.5"``; ValueError says what is wrong with anything else.

    No exponent, NaN, infinity, underscore, blank or non-ASCII digit. Zeros that carry no value (leading, or
    trailing after the point) do not count as digits, so equal numbers are accepted alike.
    """
    match = _DECIMAL_TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"{_shortened(text)} is not a plain decimal number; write it like '12.5'")
    whole, decimals, bare_decimals = match.groups()
    if len(whole or "") > max_integer_digits and len(whole.lstrip("0")) > max_integer_digits:
        raise ValueError(f"{_shortened(text)} has more than {max_integer_digits} digits before the point")
    fraction = decimals or bare_decimals or ""
    if len(fraction) > max_decimal_digits and len(fraction.rstrip("0")) > max_decimal_digits:
        raise ValueError(f"{_shortened(text)} has more than {max_decimal_digits} digits after the point")
    value = Decimal(text)
    return value if value else Decimal(0)  # "-0" and "0.000" are zero like any other


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
