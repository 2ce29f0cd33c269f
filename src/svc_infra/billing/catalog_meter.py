"""The ``[[meters]]`` of a catalog file: what is made of a metric's events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from svc_infra.billing.metering import KEY_LENGTH, PLACES, Metering, QuantityRounding
from svc_infra.billing.meters import Meter
from svc_infra.billing.money import RoundingMode
from svc_infra.billing.rating import PriceTerms, parse_unit_amount
from svc_infra.billing.toml_table import METRIC_LENGTH, Table, nearest
from svc_infra.billing.units import Operation, UnitConversion
from svc_infra.exceptions import InvalidMeter

_KEYS = ("metric", "meter", "unique_key", "dimensions", "conversion", "rounding")
_CONVERSION_KEYS = ("operation", "factor", "rounding", "places")
_ROUNDING_KEYS = ("mode", "places")
_MODES = [mode.value for mode in RoundingMode]


@dataclass(frozen=True, slots=True)
class MeterSpec:
    """A meter as the file states it; ``place`` is the file and the line."""

    metering: Metering
    place: str = field(compare=False)


def read_meter(table: Table) -> MeterSpec:
    """Read one meter; InvalidCatalog names the line of what is wrong with it."""
    table.refuse_unknown_keys(_KEYS)
    metric = table.required_text("metric", METRIC_LENGTH)
    meter = table.choice("meter", [meter.value for meter in Meter])
    if meter is None:
        raise table.error(f"meter is missing; {nearest('', [meter.value for meter in Meter])}")
    unique_key = table.text("unique_key", KEY_LENGTH)
    dimensions = table.values.get("dimensions", [])
    if not isinstance(dimensions, list) or not all(isinstance(key, str) for key in dimensions):
        raise table.error('dimensions must be metadata keys, like ["model", "region"]', "dimensions")
    conversion, rounding = table.table("conversion"), table.table("rounding")
    try:
        metering = Metering(
            metric,
            Meter(meter),
            unique_key,
            tuple(dimensions),
            None if conversion is None else _conversion(conversion),
            None if rounding is None else _rounding(rounding),
        )
    except InvalidMeter as error:
        raise table.error(str(error)) from error
    return MeterSpec(metering, table.place("metric"))


def refuse_unknown_dimension(meters: Mapping[str, MeterSpec], terms: PriceTerms, table: Table) -> None:
    """Refuse a price that divides the usage of a metric by a key that the file's own meter has not."""
    spec = meters.get(terms.metric or "")
    if spec is None:
        return
    known = spec.metering.dimensions
    parts: Sequence[tuple[str, Iterable[str]]] = (
        ("filter", terms.filter.keys),
        ("group_by", terms.group_by),
    )
    for name, keys in parts:
        for key in keys:
            if key not in known:
                raise table.error(
                    f"{key!r} is no dimension of the meter of {terms.metric!r}; {nearest(key, known)}", name
                )


def _conversion(table: Table) -> UnitConversion:
    table.refuse_unknown_keys(_CONVERSION_KEYS)
    operation = table.choice("operation", [operation.value for operation in Operation])
    factor = table.amount("factor", parse_unit_amount)
    if operation is None or not factor:
        raise table.error(
            "a conversion has an operation ('multiply' or 'divide') and a factor of more than 0"
        )
    mode = table.choice("rounding", _MODES)
    return UnitConversion(
        Operation(operation), factor, None if mode is None else RoundingMode(mode), _places(table)
    )


def _rounding(table: Table) -> QuantityRounding:
    table.refuse_unknown_keys(_ROUNDING_KEYS)
    mode = table.choice("mode", _MODES)
    return QuantityRounding(RoundingMode.HALF_AWAY if mode is None else RoundingMode(mode), _places(table))


def _places(table: Table) -> int:
    places = table.values.get("places", 0)
    if type(places) is not int or places not in PLACES:
        raise table.error(f"places must be {PLACES.start} to {PLACES.stop - 1}, without quotes", "places")
    return places
