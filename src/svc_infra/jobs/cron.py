"""Cron schedules in local time, with rules for the days on which the clocks change.

The search in the calendar is croniter's, in plain wall-clock time; what a wall-clock time means in a zone is
decided here, because croniter alone fires a fixed time twice in the autumn:

- A local time that comes twice fires the first time only. Where the hour field is a wildcard (``*`` or
  anything with a step) the schedule follows elapsed time instead and fires both times.
- A local time that the clocks skip fires at the first instant after the gap, once however many were skipped.
  A schedule that runs in every hour of the day has nothing to catch up and leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice
from zoneinfo import ZoneInfo

from croniter import croniter
from croniter.croniter import CroniterBadDateError

from svc_infra.clock import require_utc
from svc_infra.exceptions import InvalidSchedule
from svc_infra.jobs.cron_fields import CronFields
from svc_infra.jobs.timing import Timing

_REFERENCE = datetime(2000, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class CronSchedule:
    """A five-field cron expression (or ``@hourly`` … ``@yearly``) in an IANA time zone.

    Where both day fields are restricted, a day that matches either fires, as in crontab(5).

    Raises:
        InvalidSchedule: the expression cannot be read or never fires, or the zone is unknown.
    """

    expression: str
    timezone: str = "UTC"
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)
    _fields: CronFields = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_zone", _zone_named(self.timezone))
        object.__setattr__(self, "_fields", CronFields.parse(self.expression))
        self.next_fire(_REFERENCE)

    def next_fire(self, after: datetime) -> datetime:
        """Return the first fire strictly after the aware instant ``after``, in UTC."""
        start = require_utc(after)
        local = start.astimezone(self._zone)
        wall = local.replace(tzinfo=None, fold=0, second=0, microsecond=0)
        fire_at = next(at for at in self._fires_after_wall(wall) if at > start)
        if not self._fields.hour_is_wildcard or not _comes_again(local):
            return fire_at
        # The clocks will be set back: wall times before this one are still to come a second time.
        set_back_at = _offset_change(self._zone, start, _second_pass(local))
        wall = set_back_at.astimezone(self._zone).replace(tzinfo=None, fold=0)
        return min(fire_at, next(at for at in self._fires_after_wall(wall - _MINUTE) if at >= set_back_at))

    def fires_between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the fires in (``after``, ``until``] in order, in UTC."""
        fire_at = self.next_fire(after)
        while fire_at <= until:
            yield fire_at
            fire_at = self.next_fire(fire_at)

    def _fires_after_wall(self, wall: datetime) -> Iterator[datetime]:
        """Yield the instants of every match after the wall-clock time ``wall``, match by match."""
        matches = croniter(self._fields.normalised, wall.replace(tzinfo=UTC))
        while True:
            try:
                match = matches.get_next(datetime)
            except CroniterBadDateError:
                raise InvalidSchedule(f"{self.expression!r} never fires: no such date exists") from None
            yield from self._instants(match.replace(tzinfo=None))

    def _instants(self, wall: datetime) -> list[datetime]:
        """Return when a matching wall-clock time fires: usually one instant, by the rules above 0 or 2."""
        first = wall.replace(tzinfo=self._zone, fold=0).astimezone(UTC)
        second = wall.replace(tzinfo=self._zone, fold=1).astimezone(UTC)
        if first == second:
            return [first]
        if first < second:
            return [first, second] if self._fields.hour_is_wildcard else [first]
        # In a gap PEP 495 reads fold=0 with the offset before it and fold=1 with the one after it.
        return [] if self._fields.is_every_hour else [_offset_change(self._zone, second, first)]


class CatchUp(StrEnum):
    """What to do with fires that were missed while no scheduler ran."""

    ALL = "all"
    LATEST = "latest"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class DueFires:
    """The fires to run and those to record as missed, each in order.

    ``fired_until`` is how far the schedule is dealt with: the next call's ``after``. ``has_more`` says that
    the cap was reached and another call with the same ``now`` has fires left to return.
    """

    fires: list[datetime]
    missed: list[datetime]
    fired_until: datetime
    has_more: bool


def due_fires(
    schedule: Timing,
    *,
    after: datetime,
    now: datetime,
    catch_up: CatchUp,
    cap: int = 1_000,
    tolerance_seconds: float = 60,
) -> DueFires:
    """Sort the oldest ``cap`` fires in (``after``, ``now``] into those to run and those missed.

    ``all`` runs every one; over the cap the newer ones wait for the next call, because a billing run must
    lose none. ``latest`` runs the newest of all and records the others as missed. ``none`` runs what is at
    most ``tolerance_seconds`` old (a tick is never exactly on time) and records the others as missed.
    """
    found = list(islice(schedule.fires_between(after, now), cap + 1))
    has_more = len(found) > cap
    due = found[:cap]
    if catch_up is CatchUp.ALL:
        fires = due
    elif catch_up is CatchUp.LATEST:
        fires = [] if has_more else due[-1:]
    else:
        oldest_at = now - timedelta(seconds=tolerance_seconds)
        fires = [fire_at for fire_at in due if fire_at >= oldest_at]
    missed = due[: len(due) - len(fires)]
    return DueFires(fires, missed, due[-1] if has_more else max(after, now), has_more)


def _zone_named(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        # ZoneInfo raises each of these for some unknown name: a directory, an absolute path, a NUL.
        raise InvalidSchedule(f"unknown time zone {name!r}; use an IANA name like 'Europe/Berlin'") from None


def _second_pass(local: datetime) -> datetime:
    return local.replace(fold=1).astimezone(UTC)


def _comes_again(local: datetime) -> bool:
    """Tell whether the wall-clock time of ``local`` will come a second time."""
    return local.fold == 0 and _second_pass(local) > local.astimezone(UTC)


def _offset_change(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """Return the first second in (``before``, ``after``] with another UTC offset than ``before``, in UTC."""
    before = before.replace(microsecond=0)
    offset = before.astimezone(zone).utcoffset()
    same, changed = 0, int((after - before).total_seconds())
    while changed - same > 1:
        middle = (same + changed) // 2
        if (before + timedelta(seconds=middle)).astimezone(zone).utcoffset() == offset:
            same = middle
        else:
            changed = middle
    return before + timedelta(seconds=changed)
