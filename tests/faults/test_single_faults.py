"""Every database step of the queue and the scheduler fails in every way, once and for good: nothing breaks.

A case is run once to count its steps, and then once for every fault that it can have. After each the database
is healed, everything is run to its end, and the invariants of ``Shop.violations`` are checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from svc_infra.db import commit_notice
from svc_infra.jobs import Job
from svc_infra.jobs import attempt as attempts
from tests.faults.cases import CASES, Case, claimed, run
from tests.faults.injector import Fault, Injector, Kind, single_faults
from tests.faults.shop import Shop

FEWEST_FAULTS = 350


class Campaign:
    """The runs of some cases against one database."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.injector = Injector(shop.engine)
        self.runs = 0
        self.faults = 0
        self.violations: list[str] = []

    async def run(self, cases: Iterable[Case], kinds: Iterable[Kind] = tuple(Kind)) -> None:
        for case in cases:
            error = await self._run(case, None)
            assert error is None, f"{case.name} fails without a fault"
            assert self.violations == [], f"{case.name} without a fault: {self.violations}"
            for fault in single_faults(self.injector.steps.copy()):
                if fault.kind not in kinds:
                    continue
                await self._run(case, fault)
                # A queue remembers where it looked last, so that a run may have a step less than the count.
                self.runs += bool(self.injector.fired)
                self.faults += self.injector.fired

    async def _run(self, case: Case, fault: Fault | None) -> BaseException | None:
        self.shop.reset()
        prepared = await case.prepare(self.shop)
        task = asyncio.ensure_future(case.act(self.shop, prepared))
        with self.injector.watching(fault, task):
            (error,) = await asyncio.gather(task, return_exceptions=True)
        await self.shop.heal()
        found = await self.shop.violations()
        self.violations += [f"{case.name}, {fault}: {violation} ({error!r:.80})" for violation in found]
        return error


@pytest.fixture(autouse=True)
def _always_notify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no clock decide how many steps there are."""
    monkeypatch.setattr(commit_notice, "DEBOUNCE_SECONDS", 0.0)


@pytest.fixture
async def shop(engine: AsyncEngine) -> Shop:
    shop = Shop(engine)
    await shop.make_tables()
    return shop


@pytest.mark.timeout(600)
async def test_no_single_fault_loses_or_doubles_anything(
    shop: Shop, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = Campaign(shop)
    await campaign.run(CASES)
    with capsys.disabled():
        print(f" [{target}: {campaign.runs} runs, {campaign.faults} faults]", end="")
    assert campaign.violations == []
    assert campaign.runs >= FEWEST_FAULTS


class TwoTransactions(Shop):
    """The planted bug: the effect is written in a transaction of its own."""

    async def run_one(self, job: Job, session: object) -> None:
        async with self.sessions.begin() as own:
            await self.write(own, [job])


SINGLE = Case("finish in the transaction", run, claimed("single", 2))


@pytest.mark.postgres_only
async def test_the_campaign_finds_an_effect_that_is_written_beside_the_completion(
    engine: AsyncEngine,
) -> None:
    shop = TwoTransactions(engine)
    await shop.make_tables()
    campaign = Campaign(shop)
    await campaign.run([SINGLE], [Kind.COMMIT_LOST_BEFORE])
    assert any("happened 2 times" in violation for violation in campaign.violations)


async def test_the_campaign_finds_a_missing_fence(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    fence = attempts._fence

    async def no_fence(session: object, jobs: Sequence[Job], now: object) -> Sequence[Job]:
        try:
            await fence(session, jobs, now)  # type: ignore[arg-type]  # passed on as it came
        except attempts.LeaseLost:
            pass
        return jobs

    monkeypatch.setattr(attempts, "_fence", no_fence)
    campaign = Campaign(shop)
    await campaign.run([SINGLE], [Kind.COMMIT_LOST_AFTER])
    assert any("happened 2 times" in violation for violation in campaign.violations)
