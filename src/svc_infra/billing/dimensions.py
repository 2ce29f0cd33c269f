"""Which price an event falls under by its metadata: filters that share a metric out exactly once. Pure.

The prices of a metric that a tenant has at the same time compete. An event falls under the most specific
filter that it matches: the one that names most keys, then the one that allows fewest values, then the first
in the order of their texts. So it is billed once, however filters overlap; without a match it falls under the
default, and where there is none it is not billed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from svc_infra.exceptions import InvalidMeter


@dataclass(frozen=True, slots=True)
class DimensionFilter:
    """The values that a price is for, by metadata key: ``(("model", ("gpt", "gpt-mini")),)``.

    Keys and values are in ascending order. Without keys it is the default, which takes what no other filter
    does. A metadata value that is not text counts as its JSON text (``true``, ``1.5``).
    """

    values: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Iterable[str] | str]) -> DimensionFilter:
        """The filter of a mapping from keys to a value or to several; InvalidMeter for one without values."""
        found = []
        for key, allowed in sorted(values.items()):
            texts = [allowed] if isinstance(allowed, str) else list(allowed)
            if not texts or not all(isinstance(value, str) for value in texts):
                raise InvalidMeter(f"the filter {key!r} needs the texts that it allows, not {allowed!r:.60}")
            found.append((key, tuple(sorted(set(texts)))))
        return cls(tuple(found))

    @property
    def keys(self) -> tuple[str, ...]:
        """The metadata keys that it looks at."""
        return tuple(key for key, _ in self.values)

    def matches(self, dimension: Mapping[str, str | None]) -> bool:
        """Whether it allows these values."""
        return all(dimension.get(key) in allowed for key, allowed in self.values)

    def to_snapshot(self) -> dict[str, list[str]]:
        """As JSON, in the shape of the catalog; ``of`` reads it."""
        return {key: list(allowed) for key, allowed in self.values}


DEFAULT = DimensionFilter()


def filter_of(
    dimension: Mapping[str, str | None], filters: Iterable[DimensionFilter]
) -> DimensionFilter | None:
    """The one of competing filters that these values fall under; None if none takes them."""
    return min((each for each in filters if each.matches(dimension)), key=_rank, default=None)


def _rank(each: DimensionFilter) -> tuple[int, int, str]:
    return -len(each.values), sum(len(allowed) for _, allowed in each.values), repr(each.values)
