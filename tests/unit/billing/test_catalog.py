from __future__ import annotations

import re
from decimal import Decimal

import pytest

from svc_infra.billing.catalog import Catalog, EntitlementSpec, parse_catalog
from svc_infra.billing.rating import PriceModel, Tier
from svc_infra.exceptions import InvalidCatalog

EXAMPLE = """\
[[plans]]
key = "standard"
name = "Standard"
default = true
[[plans.entitlements]]
key = "cds"
limit = 1000
window = "month"
[[prices]]
key = "base"
plan = "standard"
currency = "usd"
unit_amount = "500"
recurring_interval = "month"
[[prices]]
key = "cds"
plan = "standard"
currency = "usd"
metric = "cds"
model = "graduated"          # or "per_unit" with unit_amount
tiers = [ { up_to = "3", unit_amount = "0" }, { up_to = "20", unit_amount = "12.5" }, \
{ unit_amount = "9", flat_amount = "100" } ]
"""

PLAN = '[[plans]]\nkey = "standard"\ndefault = true\n'
PRICE = '[[prices]]\nkey = "calls"\ncurrency = "usd"\nmetric = "calls"\nunit_amount = "1"\n'


def refusal(text: str) -> str:
    """What the parser says about a catalog; it names the file and the line first."""
    with pytest.raises(InvalidCatalog) as caught:
        parse_catalog(text, "prices.toml")
    message = str(caught.value)
    assert re.match(r"prices\.toml:\d+: ", message), message
    return message.removeprefix("prices.toml:")


def only_price(text: str) -> Catalog:
    return parse_catalog(PLAN + text)


def test_the_documented_example_is_read_as_it_is_written() -> None:
    catalog = parse_catalog(EXAMPLE)
    (plan,) = catalog.plans
    assert (plan.key, plan.name, plan.is_default, plan.line) == ("standard", "Standard", True, 1)
    assert plan.entitlements == (EntitlementSpec("cds", 1000, "month"),)
    base, cds = catalog.prices
    assert (base.plan, base.line) == ("standard", 9)
    assert (base.terms.key, base.terms.model, base.terms.unit_amount) == (
        "base",
        PriceModel.FIXED,
        Decimal(500),
    )
    assert base.terms.recurring_interval == "month"
    assert (cds.terms.metric, cds.terms.model, cds.terms.currency) == ("cds", PriceModel.GRADUATED, "usd")
    assert cds.terms.tiers == (
        Tier(Decimal(3), Decimal(0)),
        Tier(Decimal(20), Decimal("12.5")),
        Tier(None, Decimal(9), Decimal(100)),
    )


def test_the_default_plan_can_be_asked_for() -> None:
    catalog = parse_catalog(PLAN + '[[plans]]\nkey = "pro"\n')
    assert catalog.default_plan == catalog.plans[0]
    assert parse_catalog("").default_plan is None


def test_an_empty_catalog_has_nothing() -> None:
    assert parse_catalog("# nothing yet\n") == Catalog((), ())


def test_a_price_with_a_metric_is_per_unit_unless_it_says_otherwise() -> None:
    (price,) = only_price(PRICE).prices
    assert (price.plan, price.terms.model, price.terms.unit_amount) == (
        None,
        PriceModel.PER_UNIT,
        Decimal(1),
    )


def test_tiers_may_be_tables_of_their_own() -> None:
    text = PRICE.replace('unit_amount = "1"', 'model = "graduated"')
    text += '[[prices.tiers]]\nup_to = "2"\nunit_amount = "1"\n[[prices.tiers]]\nunit_amount = "0.5"\n'
    (price,) = only_price(text).prices
    assert price.terms.tiers == (Tier(Decimal(2), Decimal(1)), Tier(None, Decimal("0.5")))


def test_one_key_may_have_a_price_per_currency_and_per_plan() -> None:
    other_currency = PRICE.replace("usd", "EUR")
    base = '[[prices]]\nkey = "base"\ncurrency = "usd"\nunit_amount = "5"\nrecurring_interval = "month"\n'
    catalog = only_price(PRICE + other_currency + base + base + 'plan = "standard"\n')
    found = [(price.plan, price.terms.key, price.terms.currency) for price in catalog.prices]
    assert found == [
        (None, "calls", "usd"),
        (None, "calls", "eur"),
        (None, "base", "usd"),
        ("standard", "base", "usd"),
    ]


def test_two_plans_may_price_one_metric_each() -> None:
    other_plan = '[[plans]]\nkey = "pro"\n'
    prices = PRICE + 'plan = "standard"\n' + PRICE + 'plan = "pro"\n'
    assert len(parse_catalog(PLAN + other_plan + prices).prices) == 2


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("[[plan]]\n", 1, "unknown key 'plan'; did you mean 'plans'?"),
        (PLAN + 'nmae = "x"\n', 4, "unknown key 'nmae'; did you mean 'name'?"),
        (PLAN + '\n[[plans.entitlements]]\nkey = "a"\nlimits = 1\n', 7, "did you mean 'limit'?"),
        (PRICE + 'unit_amonut = "1"\n', 6, "unknown key 'unit_amonut'; did you mean 'unit_amount'?"),
        (PRICE + "zzz = 1\n", 6, "unknown key 'zzz'; known are key, plan, currency"),
        (
            PRICE + 'tiers = [\n  { up_to = "1", unit_amount = "1" },\n  { unit_amuont = "2" },\n]\n',
            8,
            "unknown key 'unit_amuont'; did you mean 'unit_amount'?",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_right_one(
    text: str, line: int, complaint: str
) -> None:
    message = refusal(text)
    assert message.startswith(f"{line}: ")
    assert complaint in message


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("a = \n", 1, "not valid TOML"),
        ('[[plans]]\nkey = "a"\nkey = "b"\n', 3, "not valid TOML"),
        ('a = "x', 1, "not valid TOML"),
        ("[prices]\n", 1, "begin each with [[prices]]"),
        ("\nprices = 1\n", 2, "begin each with [[prices]]"),
        ('[[plans]]\nname = "x"\n', 1, "key is missing"),
        ('[[plans]]\nkey = ""\n', 2, "empty"),
        ('[[plans]]\nkey = " a"\n', 2, "blanks"),
        ("[[plans]]\nkey = 1\n", 2, "key must be a string"),
        (f'[[plans]]\nkey = "{"x" * 101}"\n', 2, "at most 100"),
        ('[[plans]]\nkey = "a"\ndefault = "yes"\n', 3, "default must be true or false"),
        ('[[plans]]\nkey = "a"\ndescription = 1\n', 3, "description must be a string"),
    ],
)
def test_a_malformed_file_is_refused(text: str, line: int, complaint: str) -> None:
    message = refusal(text)
    assert message.startswith(f"{line}: ")
    assert complaint in message


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ('[[plans]]\nkey = "a"\n', 1, "no plan is the default"),
        (PLAN + '[[plans]]\nkey = "b"\ndefault = true\n', 6, "'standard' is the default already"),
        (PLAN + '[[plans]]\nkey = "standard"\n', 5, "stated twice; the first is on line 2"),
    ],
)
def test_exactly_one_plan_is_the_default_and_keys_are_unique(text: str, line: int, complaint: str) -> None:
    message = refusal(text)
    assert message.startswith(f"{line}: ")
    assert complaint in message


@pytest.mark.parametrize(
    ("entitlement", "complaint"),
    [
        ('window = "day"', "4: limit must be a whole number"),
        ('window = "day"\nlimit = -1', "7: limit must be a whole number"),
        ('window = "day"\nlimit = 1.5', "7: limit must be a whole number"),
        ('window = "day"\nlimit = true', "7: limit must be a whole number"),
        ('window = "day"\nlimit = "5"', "7: limit must be a whole number"),
        ("limit = 1", "4: window is missing"),
        ('limit = 1\nwindow = "days"', "7: window 'days' is not known; did you mean 'day'?"),
        ('limit = 1\nwindow = "week"', "7: window 'week' is not known; known are day, month"),
    ],
)
def test_an_entitlement_needs_a_limit_and_a_window(entitlement: str, complaint: str) -> None:
    text = PLAN + f'[[plans.entitlements]]\nkey = "cds"\n{entitlement}\n'
    assert refusal(text).startswith(complaint)


def test_an_entitlement_is_stated_once_per_window() -> None:
    entitlement = '[[plans.entitlements]]\nkey = "cds"\nlimit = 0\nwindow = "day"\n'
    assert refusal(PLAN + entitlement + entitlement).startswith(
        "8: entitlement 'cds' per day is stated twice"
    )
    assert len(parse_catalog(PLAN + entitlement + entitlement.replace("day", "month")).plans) == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('"usd"', '"usdx"'), "3: 'usdx' is not a currency"),
        (('currency = "usd"\n', ""), "1: currency is missing"),
        (
            ('unit_amount = "1"', "unit_amount = 1"),
            "5: unit_amount must be a decimal string; put it in quotes",
        ),
        (('unit_amount = "1"', "unit_amount = 12.5"), 'put it in quotes: unit_amount = "12.5"'),
        (('unit_amount = "1"', 'unit_amount = "1e3"'), "5: unit_amount: '1e3' is not a plain decimal"),
        (('unit_amount = "1"', 'unit_amount = "NaN"'), "5: unit_amount: 'NaN' is not a plain decimal"),
        (('unit_amount = "1"', 'unit_amount = "-1"'), "5: unit_amount '-1' must not be negative"),
        (('unit_amount = "1"', f'unit_amount = "0.{"1" * 19}"'), "5: unit_amount: "),
        (('unit_amount = "1"\n', ""), "1: price 'calls': model 'per_unit' takes a unit_amount and no tiers"),
        (('metric = "calls"\n', ""), "1: price 'calls': a fixed price has a recurring_interval"),
        (
            ("unit_amount", 'model = "graduate"\nunit_amount'),
            "5: model 'graduate' is not known; did you mean",
        ),
        (("unit_amount", 'model = "fixed"\nunit_amount'), "1: price 'calls': a fixed price has a recurring"),
        (
            ("unit_amount", 'recurring_interval = "year"\nunit_amount'),
            "1: price 'calls': usage is billed with the invoice of its period; leave recurring_interval out",
        ),
        (
            ("unit_amount", 'recurring_interval = "mont"\nunit_amount'),
            "5: recurring_interval 'mont' is not known",
        ),
        (("unit_amount", 'plan = "pro"\nunit_amount'), "5: there is no plan 'pro'; none is known"),
    ],
)
def test_a_price_that_cannot_be_billed_is_refused(change: tuple[str, str], complaint: str) -> None:
    assert complaint in refusal(PRICE.replace(*change, 1))


def test_a_plan_that_is_not_there_is_refused_with_the_nearest_one() -> None:
    assert refusal(PLAN + PRICE + 'plan = "standrad"\n').startswith(
        "9: there is no plan 'standrad'; did you mean 'standard'?"
    )


@pytest.mark.parametrize(
    ("tiers", "complaint"),
    [
        ('{ up_to = "3", unit_amount = "1" }', "6: the last tier must have no up_to"),
        ('{ unit_amount = "1" }, { unit_amount = "1" }', "6: up_to is missing"),
        (
            '{ up_to = "3", unit_amount = "1" },\n{ up_to = "3.0", unit_amount = "0" }, {}',
            "7: up_to 3.0 must be more than 3",
        ),
        ('{ up_to = "0", unit_amount = "1" }, { unit_amount = "1" }', "6: up_to 0 must be more than 0"),
        ('{ up_to = 3, unit_amount = "1" }, { unit_amount = "1" }', "6: up_to must be a decimal string"),
        ('{ up_to = "3" },\n{ unit_amount = "1" }', "6: unit_amount is missing"),
        ('{ unit_amount = "1", flat_amount = 1 }', "6: flat_amount must be a decimal string"),
        ("1, 2", "6: tiers must be an array of tables"),
        ("", "1: price 'calls': model 'graduated' takes tiers"),
    ],
)
def test_tiers_are_refused_on_their_own_line(tiers: str, complaint: str) -> None:
    text = PRICE.replace('unit_amount = "1"', 'model = "graduated"') + f"tiers = [{tiers}]\n"
    assert refusal(text).startswith(complaint)


SECOND_METRIC_PRICE = """\
[[prices]]
{first}
currency = "usd"
metric = "calls"
unit_amount = "1"
[[prices]]
{second}
currency = "usd"
metric = "calls"
unit_amount = "1"
"""


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        ('key = "a"', 'key = "b"', "12: metric 'calls' has a price for every tenant already (line 7)"),
        ('key = "a"\nplan = "standard"', 'key = "a"', "13: metric 'calls' has a price of plan 'standard'"),
        ('key = "a"', 'key = "a"\nplan = "standard"', "13: metric 'calls' has a price for every tenant"),
        (
            'key = "a"\nplan = "standard"',
            'key = "b"\nplan = "standard"',
            "14: metric 'calls' has a price of plan 'standard' already (line 8)",
        ),
    ],
)
def test_a_second_price_for_a_metric_of_one_tenant_is_refused(
    first: str, second: str, complaint: str
) -> None:
    assert refusal(PLAN + SECOND_METRIC_PRICE.format(first=first, second=second)).startswith(complaint)


def test_a_price_is_unique_by_plan_key_and_currency() -> None:
    other_metric = PRICE.replace('metric = "calls"', 'metric = "other"')
    assert refusal(PRICE + other_metric).startswith(
        "7: price 'calls' in usd for every tenant is stated twice; the first is on line 2"
    )
