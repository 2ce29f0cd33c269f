from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from svc_infra.jobs.cron import CatchUp, CronSchedule, due_fires

HOURLY = CronSchedule("@hourly")
MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def hours(*numbers: int) -> list[datetime]:
    return [MIDNIGHT + number * HOUR for number in numbers]


@pytest.mark.parametrize(
    ("catch_up", "fires", "missed"),
    [
        (CatchUp.ALL, hours(1, 2, 3), []),
        (CatchUp.LATEST, hours(3), hours(1, 2)),
        (CatchUp.NONE, [], hours(1, 2, 3)),
    ],
)
def test_missed_fires_are_caught_up_by_policy(
    catch_up: CatchUp, fires: list[datetime], missed: list[datetime]
) -> None:
    now = MIDNIGHT + timedelta(hours=3, minutes=30)
    due = due_fires(HOURLY, after=MIDNIGHT, now=now, catch_up=catch_up)
    assert (due.fires, due.missed, due.fired_until, due.has_more) == (fires, missed, now, False)


@pytest.mark.parametrize("catch_up", list(CatchUp))
def test_a_fire_that_is_just_due_runs_under_every_policy(catch_up: CatchUp) -> None:
    due = due_fires(HOURLY, after=MIDNIGHT, now=MIDNIGHT + HOUR + timedelta(seconds=60), catch_up=catch_up)
    assert (due.fires, due.missed) == (hours(1), [])


def test_without_catch_up_a_fire_older_than_the_tolerance_is_missed() -> None:
    now = MIDNIGHT + HOUR + timedelta(seconds=61)
    assert due_fires(HOURLY, after=MIDNIGHT, now=now, catch_up=CatchUp.NONE).missed == hours(1)
    patient = due_fires(HOURLY, after=MIDNIGHT, now=now, catch_up=CatchUp.NONE, tolerance_seconds=61)
    assert patient.fires == hours(1)


@pytest.mark.parametrize("catch_up", list(CatchUp))
@pytest.mark.parametrize("cap", [1, 2, 5, 6, 1000])
def test_over_the_cap_later_calls_deal_with_the_rest_and_lose_none(catch_up: CatchUp, cap: int) -> None:
    now, after = MIDNIGHT + timedelta(hours=5, seconds=5), MIDNIGHT
    fires: list[datetime] = []
    missed: list[datetime] = []
    calls = 0
    while True:
        due = due_fires(HOURLY, after=after, now=now, catch_up=catch_up, cap=cap)
        assert len(due.fires) + len(due.missed) <= cap
        fires, missed, after, calls = fires + due.fires, missed + due.missed, due.fired_until, calls + 1
        if not due.has_more:
            break
    assert sorted(fires + missed) == hours(1, 2, 3, 4, 5)
    assert fires == (hours(1, 2, 3, 4, 5) if catch_up is CatchUp.ALL else hours(5))
    assert after == now
    assert calls == -(-5 // cap)


def test_a_clock_set_back_neither_fires_nor_moves_the_schedule_back() -> None:
    due = due_fires(HOURLY, after=MIDNIGHT + DAY, now=MIDNIGHT, catch_up=CatchUp.ALL)
    assert (due.fires, due.missed, due.fired_until) == ([], [], MIDNIGHT + DAY)
