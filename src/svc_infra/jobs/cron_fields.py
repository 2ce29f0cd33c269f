"""The five fields of a cron expression: read strictly, and written out as plain lists of numbers.

Written out, so that nothing depends on the extensions of a cron library (seconds, years, hashed and random
fields) or on how it reads a corner case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from svc_infra.exceptions import InvalidSchedule

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS = {name: n for n, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
_WEEKDAYS = {name: n for n, name in enumerate("sun mon tue wed thu fri sat".split())}
_ITEM = re.compile(r"(?:(?P<star>\*)|(?P<low>\w+)(?:-(?P<high>\w+))?)(?:/(?P<step>[0-9]{1,4}))?", re.ASCII)
_LAST_DAY = "l"


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: dict[str, int]

    def values(self, text: str) -> set[int]:
        """Return the numbers that ``text`` (without the last-day letter) stands for."""
        found: set[int] = set()
        for item in text.split(","):
            found |= self._item_values(item, text)
        return found

    def _item_values(self, item: str, text: str) -> set[int]:
        parts = _ITEM.fullmatch(item)
        if parts is None:
            raise self._refusal(text, "write *, n, n-m, */s or n-m/s, joined by commas")
        step = int(parts["step"] or 1)
        if step < 1:
            raise self._refusal(text, "a step is at least 1")
        if parts["star"]:
            return set(range(self.low, self.high + 1, step))
        low = self._number(parts["low"], text)
        if parts["high"] is None:
            if parts["step"]:
                raise self._refusal(text, f"a step needs a range: {item.split('/')[0]}-{self.high}/{step}")
            return {low}
        high = self._number(parts["high"], text)
        if self.names is _WEEKDAYS and high == 0 < low:
            high = 7  # fri-sun: a range may end on Sunday, which is 7 as well as 0
        if high < low:
            raise self._refusal(text, "a range goes upwards")
        return set(range(low, high + 1, step))

    def _number(self, word: str, text: str) -> int:
        value = self.names.get(word)
        if value is None:
            value = int(word) if word.isdigit() and len(word) <= 4 else -1
        if not self.low <= value <= self.high:
            raise self._refusal(text, f"{word!r} is not from {self.low} to {self.high}")
        return value

    def _refusal(self, text: str, why: str) -> InvalidSchedule:
        return InvalidSchedule(f"the {self.name} field {text!r} cannot be read: {why}")


_FIELDS = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day-of-month", 1, 31, {}),
    _Field("month", 1, 12, _MONTHS),
    _Field("day-of-week", 0, 7, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class CronFields:
    """A cron expression that was read.

    ``normalised`` is the same schedule in lists of numbers and ``*`` for all. ``hour_is_wildcard`` tells
    whether the hour field was ``*`` or had a step, ``is_every_hour`` whether it means all 24 hours.
    """

    normalised: str
    hour_is_wildcard: bool
    is_every_hour: bool

    @classmethod
    def parse(cls, expression: str) -> CronFields:
        """Read ``expression``.

        Raises:
            InvalidSchedule: not five fields, or one cannot be read; the message names it.
        """
        text = expression.strip().lower()
        texts = _ALIASES.get(text, text).split()
        if len(texts) != len(_FIELDS):
            raise InvalidSchedule(
                f"{expression!r} is no cron expression: five fields (minute hour day-of-month month "
                f"day-of-week) or one of {', '.join(_ALIASES)}"
            )
        written = [_written(field, part) for field, part in zip(_FIELDS, texts, strict=True)]
        hour = texts[1]
        is_every_hour = written[1] == "*"
        return cls(" ".join(written), is_every_hour or "*" in hour or "/" in hour, is_every_hour)


def _written(field: _Field, text: str) -> str:
    items = text.split(",")
    has_last_day = field.name == "day-of-month" and _LAST_DAY in items
    rest = ",".join(item for item in items if not (has_last_day and item == _LAST_DAY))
    values = field.values(rest) if rest or not has_last_day else set()
    if field.names is _WEEKDAYS:
        values = {value % 7 for value in values}
    if len(values) == field.high - field.low + (0 if field.names is _WEEKDAYS else 1):
        return "*"
    numbers = [str(value) for value in sorted(values)]
    return ",".join([*numbers, _LAST_DAY] if has_last_day else numbers)
