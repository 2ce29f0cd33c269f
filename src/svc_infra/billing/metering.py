"""How a metric becomes a billed quantity: its meter, its dimensions, conversion and rounding. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from svc_infra.billing.meters import Meter
from svc_infra.billing.money import RoundingMode
from svc_infra.billing.units import Operation, UnitConversion, round_quantity
from svc_infra.canonical import canonical_decimal
from svc_infra.exceptions import InvalidMeter, InvalidPrice

MAX_DIMENSIONS = 8
KEY_LENGTH = 200
PLACES = range(-26, 13)


@dataclass(frozen=True, slots=True)
class QuantityRounding:
    """To how many places the quantity of a period is rounded; negative ones are tens, hundreds and so on."""

    mode: RoundingMode = RoundingMode.HALF_AWAY
    places: int = 0


@dataclass(frozen=True, slots=True)
class Metering:
    """What is made of the events of a metric.

    ``unique_key`` is the metadata key that a unique count counts the values of. ``dimensions`` are the
    metadata keys that prices may filter by and lines may be grouped by. ``conversion`` and ``rounding`` turn
    what was measured over a period into the quantity that is billed, in this order.

    InvalidMeter for parts that do not fit together.
    """

    metric: str
    meter: Meter = Meter.SUM
    unique_key: str | None = None
    dimensions: tuple[str, ...] = ()
    conversion: UnitConversion | None = None
    rounding: QuantityRounding | None = None

    def __post_init__(self) -> None:
        if (self.meter is Meter.UNIQUE_COUNT) != (self.unique_key is not None):
            raise self._error(
                "a unique_count needs the unique_key that it counts, and no other meter has one"
            )
        for key in (*self.dimensions, *([] if self.unique_key is None else [self.unique_key])):
            if not isinstance(key, str) or not 0 < len(key) <= KEY_LENGTH:
                raise self._error(f"a metadata key has 1 to {KEY_LENGTH} characters, got {key!r:.60}")
        if len(set(self.dimensions)) < len(self.dimensions) or len(self.dimensions) > MAX_DIMENSIONS:
            raise self._error(f"dimensions are at most {MAX_DIMENSIONS} different metadata keys")
        for part in (self.conversion, self.rounding):
            if part is not None and part.places not in PLACES:
                raise self._error(f"places must be {PLACES.start} to {PLACES.stop - 1}")

    @property
    def is_plain(self) -> bool:
        """Whether the plain daily sums say everything, so that no row by dimension is kept."""
        return self.meter is Meter.SUM and not self.dimensions

    @property
    def takes_negative(self) -> bool:
        """Whether an event may take something away: it is a change of a level, not an amount used."""
        return self.meter is Meter.WEIGHTED_SUM

    def billed(self, measured: Decimal) -> Decimal:
        """The quantity that is rated for what was measured over a period: converted, then rounded."""
        quantity = measured if self.conversion is None else self.conversion.convert(measured)
        if self.rounding is None:
            return quantity
        return round_quantity(quantity, places=self.rounding.places, mode=self.rounding.mode)

    @property
    def units(self) -> dict[str, Any]:
        """The conversion and the rounding as JSON; a line keeps them, like the terms of its price."""
        units: dict[str, Any] = {}
        if self.conversion is not None:
            units["conversion"] = {
                "operation": self.conversion.operation.value,
                "factor": canonical_decimal(self.conversion.factor),
                "rounding": None if self.conversion.rounding is None else self.conversion.rounding.value,
                "places": self.conversion.places,
            }
        if self.rounding is not None:
            units["rounding"] = {"mode": self.rounding.mode.value, "places": self.rounding.places}
        return units

    def measures_like(self, other: Metering) -> bool:
        """Whether both make the same of every event, so that only what is done with totals differs."""
        return (self.meter, self.unique_key) == (other.meter, other.unique_key)

    def to_snapshot(self) -> dict[str, Any]:
        """As JSON, for storing and for keeping on an invoice line; what is absent is left out."""
        snapshot: dict[str, Any] = {"meter": self.meter.value}
        if self.unique_key is not None:
            snapshot["unique_key"] = self.unique_key
        if self.dimensions:
            snapshot["dimensions"] = list(self.dimensions)
        return snapshot | self.units

    @classmethod
    def from_snapshot(cls, metric: str, snapshot: Mapping[str, Any]) -> Metering:
        """What ``to_snapshot`` wrote; InvalidMeter for anything else."""
        try:
            return cls(
                metric,
                Meter(snapshot["meter"]),
                snapshot.get("unique_key"),
                tuple(snapshot.get("dimensions", ())),
                _conversion(snapshot.get("conversion")),
                _rounding(snapshot.get("rounding")),
            )
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError, InvalidPrice) as error:
            raise InvalidMeter(f"metric {metric!r}: not a meter's definition: {error}") from error

    def _error(self, what: str) -> InvalidMeter:
        return InvalidMeter(f"metric {self.metric!r}: {what}")


def _conversion(snapshot: Mapping[str, Any] | None) -> UnitConversion | None:
    if snapshot is None:
        return None
    rounding = snapshot["rounding"]
    return UnitConversion(
        Operation(snapshot["operation"]),
        Decimal(snapshot["factor"]),
        None if rounding is None else RoundingMode(rounding),
        snapshot["places"],
    )


def _rounding(snapshot: Mapping[str, Any] | None) -> QuantityRounding | None:
    return None if snapshot is None else QuantityRounding(RoundingMode(snapshot["mode"]), snapshot["places"])
