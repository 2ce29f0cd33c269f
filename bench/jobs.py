"""Our job queue beside its peers, in one run on one PostgreSQL: rates of working and enqueuing, and latency.

    python bench/jobs.py [--json] [--quick] [--only ROW ...] [--runs 5] [--jobs 20000]

Every figure is of separate worker processes on a fresh database into which all jobs were enqueued before; the
time is from the word to start until no job is left unfinished, as counted in the database. A queue that does
not get through them in four seconds (ten with a ledger) is stopped then, and what it has finished is counted.
Ours runs with its fences on. Runs of all queues alternate, and medians are given. Peers need
``make bench-deps``; those on Redis need Debian's redis-server. A peer that is missing or fails is named
beside the figures that are without it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from _common import Measure, arguments, check_equal, databases, note, report
from _jobs_backlog import claim_microseconds, rates_while_held
from _jobs_systems import PEERS, Failed, System, Workers, call, execute, left, ours, query
from _redis import ask, redis_server, redis_version

BATCH = ours("ours", "batch")
PLAIN = ours("ours, plain handler", "plain")
SINGLE = ours("ours, single handler", "job")
BARE = ours("bare", "batch", bare_script="_jobs_bare.py")
LEDGER_BATCH = ours("ours, ledger", "batch", has_ledger=True)
LEDGER_SINGLE = ours("ours, ledger, single handler", "job", has_ledger=True)
LEDGER_BARE = ours("bare, ledger", "job", has_ledger=True, bare_script="_jobs_bare.py")
_LONGEST_SECONDS = 4.0
# With a commit for each job the start of the worker would weigh too much in four seconds.
_LONGEST_LEDGER_SECONDS = 10.0
_SAMPLES = 200


class Bench:
    """The servers, the peers that are installed, and how often and how much is run."""

    def __init__(
        self,
        fresh: Callable[[str], str],
        redis_url: str | None,
        *,
        runs: int,
        jobs: int,
        is_quick: bool = False,
    ) -> None:
        self.is_quick = is_quick
        self._fresh = fresh
        self._redis_url = redis_url
        self.runs = runs
        self.jobs = jobs
        self.peers = [
            peer for peer in PEERS if peer.version() and (not peer.is_redis or redis_url is not None)
        ]
        self._failed: set[str] = set()

    @property
    def without(self) -> str:
        """Which peers the figures are without: not installed, or failed."""
        names = [peer.name for peer in PEERS if peer not in self.peers or peer.name in self._failed]
        return f"without {', '.join(names)}" if names else ""

    def installed(self, system: System, kind: str = "postgresql") -> str:
        """Make a fresh database with the tables of ``system`` and return its URL."""
        if system.is_redis:
            assert self._redis_url is not None
            port = int(self._redis_url.rsplit(":", 1)[1].split("/")[0])
            ask(port, "FLUSHALL")
            return self._redis_url
        url = self._fresh(kind)
        call(system, "install", url)
        return url

    def filled(self, system: System, jobs: int, kind: str = "postgresql") -> str:
        """The same with waiting jobs, vacuumed so that no autovacuum starts in one of the runs."""
        url = self.installed(system, kind)
        call(system, "bulk", url, "--jobs", str(jobs))
        check_equal(f"{system.name}: jobs enqueued", left(system, url), jobs)
        if url.startswith("postgresql"):
            execute(url, "VACUUM ANALYZE", "CHECKPOINT")
        return url

    def rate(self, system: System, *, processes: int = 1, kind: str = "postgresql") -> float:
        """Jobs a second that worker processes finish."""
        url = self.filled(system, self.jobs, kind)
        seconds = _LONGEST_LEDGER_SECONDS if "--has-ledger" in system.options else _LONGEST_SECONDS
        found = Workers(system, url, processes).drain(url, self.jobs, longest_seconds=seconds)
        if "--has-ledger" in system.options:
            check_equal(
                f"{system.name}: ledger rows",
                query(url, "SELECT count(*) FROM ledger"),
                self.jobs - left(system, url),
            )
        note(f"  {system.name}, {processes} processes on {kind}: {found:,.0f} jobs/s")
        return found

    def enqueue_rate(self, system: System, *, is_bulk: bool, jobs: int) -> float:
        """Jobs a second that one process enqueues."""
        url = self.installed(system)
        action = ("bulk", "--jobs") if is_bulk else ("singly", "--jobs")
        seconds = call(system, action[0], url, action[1], str(jobs))["seconds"]
        check_equal(f"{system.name}: jobs enqueued", left(system, url), jobs)
        note(f"  {system.name}, {action[0]}: {jobs / seconds:,.0f} jobs/s")
        return jobs / seconds

    def latency(self, system: System) -> list[float]:
        """Milliseconds from before the enqueuing to the start, one job at a time on an idle worker."""
        url = self.installed(system)
        workers = Workers(system, url, 1)
        workers.begin()
        time.sleep(1.5)
        call(system, "singly", url, "--jobs", str(_SAMPLES), "--gap", "0.03")
        give_up_at = time.monotonic() + 5
        while workers.arrived() < _SAMPLES and time.monotonic() < give_up_at:
            time.sleep(0.01)
        samples = workers.stop()
        if len(samples) != _SAMPLES:
            raise Failed(f"{system.name}: {len(samples)} of {_SAMPLES} samples arrived")
        return samples

    def medians(
        self, systems: Sequence[System], run: Callable[[System], float], runs: int | None = None
    ) -> dict[str, float]:
        """The median of alternated runs of each system, by its name; without a peer that failed."""
        found: dict[str, list[float]] = {system.name: [] for system in systems}
        for _ in range(runs or self.runs):
            for system in systems:
                self.attempt(system, lambda system=system: found[system.name].append(run(system)))
        return {name: statistics.median(rates) for name, rates in found.items() if rates}

    def attempt(self, system: System, run: Callable[[], None]) -> None:
        """Run a system; a peer that fails is left out from then on, and only ours ends the benchmark."""
        if system.name in self._failed:
            return
        try:
            run()
        except Failed as error:
            if system.package is None:
                raise SystemExit(str(error)) from error
            note(f"  LEFT OUT: {error}")
            self._failed.add(system.name)


def best(peers: Sequence[System], rates: Mapping[str, float], *, least: bool = False) -> str | None:
    """The name of the best peer."""
    known = [peer.name for peer in peers if peer.name in rates]
    return (min if least else max)(known, key=lambda name: rates[name], default=None)


def no_op(bench: Bench) -> list[Measure]:
    rates = bench.medians([BATCH, PLAIN, SINGLE, BARE, *bench.peers], bench.rate)
    mine, reference = rates.pop(BATCH.name), best(bench.peers, rates)
    return [
        Measure(
            "no_op",
            "jobs/s",
            mine,
            others=rates,
            reference=reference,
            target=1.5,
            target_on="ratio",
            reason=bench.without,
        ),
        Measure(
            "no_op_of_bare", "jobs/s", mine, others=rates, reference="bare", target=0.3, target_on="ratio"
        ),
    ]


def ledger(bench: Bench) -> list[Measure]:
    rates = bench.medians([LEDGER_BATCH, LEDGER_SINGLE, LEDGER_BARE], bench.rate)
    bare = {LEDGER_BARE.name: rates[LEDGER_BARE.name]}
    return [
        Measure("ledger_batch", "jobs/s", rates[LEDGER_BATCH.name], others=bare, target=10_000),
        Measure(
            "ledger_single",
            "jobs/s",
            rates[LEDGER_SINGLE.name],
            others=bare,
            reference=LEDGER_BARE.name,
            target=0.4,
            target_on="ratio",
        ),
    ]


def enqueue(bench: Bench) -> list[Measure]:
    postgres = [peer for peer in bench.peers if not peer.is_redis]
    singly = bench.medians(
        [BATCH, *bench.peers], partial(bench.enqueue_rate, is_bulk=False, jobs=bench.jobs // 10)
    )
    bulk = bench.medians([BATCH, *bench.peers], partial(bench.enqueue_rate, is_bulk=True, jobs=bench.jobs))
    ours_singly, ours_bulk = singly.pop(BATCH.name), bulk.pop(BATCH.name)
    return [
        Measure(
            "enqueue_singly",
            "jobs/s",
            ours_singly,
            others=singly,
            reference=best(postgres, singly),
            reason=bench.without,
        ),
        Measure(
            "enqueue_bulk",
            "jobs/s",
            ours_bulk,
            others=bulk,
            reference=best(bench.peers, bulk),
            target=1.25,
            target_on="ratio",
            reason=bench.without,
        ),
    ]


def latency(bench: Bench) -> list[Measure]:
    samples: dict[str, list[list[float]]] = {}
    # The plain handler is of the peers' kind; the other begins its transaction before it starts.
    systems = [PLAIN, BATCH, *bench.peers]

    def sample(system: System) -> None:
        found = sorted(bench.latency(system))
        samples.setdefault(system.name, []).append(found)
        note(f"  {system.name}: p50 {found[_SAMPLES // 2]:.2f} ms, p99 {found[_SAMPLES * 99 // 100 - 1]:.2f}")

    for _ in range(bench.runs):
        for system in systems:
            bench.attempt(system, partial(sample, system))
    measures = []
    postgres = [peer for peer in bench.peers if not peer.is_redis]
    for label, place in (("p50", _SAMPLES // 2), ("p99", _SAMPLES * 99 // 100 - 1)):
        found = {name: statistics.median(run[place] for run in runs) for name, runs in samples.items()}
        mine = found.pop(PLAIN.name)
        measures.append(
            Measure(
                f"latency_{label}",
                "ms",
                mine,
                better="lower",
                others=found,
                reference=best(postgres, found, least=True),
                target=1.0,
                target_on="ratio",
                reason=bench.without,
            )
        )
    return measures


def sqlite(bench: Bench) -> list[Measure]:
    rates = bench.medians([BATCH, PLAIN], partial(bench.rate, kind="sqlite"))
    return [
        Measure("no_op_sqlite", "jobs/s", rates[BATCH.name], target=10_000),
        Measure("no_op_plain_sqlite", "jobs/s", rates[PLAIN.name]),
    ]


def processes(bench: Bench) -> list[Measure]:
    quick = [peer for peer in bench.peers if peer.name in {"pgqueuer", "awa", "arq", "dramatiq"}]
    measures = []
    one = bench.medians([BATCH, *quick], bench.rate)
    for count, target in ((2, 1.6), (4, 1.0)):
        rates = bench.medians([BATCH, *quick], partial(bench.rate, processes=count))
        others = {name: rates[name] / one[name] for name in rates if name != BATCH.name and name in one}
        measures.append(
            Measure(
                f"{count}_processes",
                "x one",
                rates[BATCH.name] / one[BATCH.name],
                others={**others, "ours, jobs/s": rates[BATCH.name], "ours, one": one[BATCH.name]},
                target=target,
            )
        )
    return measures


def backlog(bench: Bench) -> list[Measure]:
    costs = {}
    for waiting in (1_000, 1_000_000):
        costs[waiting] = statistics.median(
            claim_microseconds(bench.installed(BATCH), waiting=waiting) for _ in range(min(bench.runs, 3))
        )
        note(f"  a claim with {waiting:,} waiting: {costs[waiting]:.1f} us a job")
    ratio = costs[1_000_000] / costs[1_000]
    others = {f"us/job, {waiting:,} waiting": cost for waiting, cost in costs.items()}
    return [
        Measure("claim_cost_1000000", "x 1,000", ratio, better="lower", others=others, target=1.5),
    ]


def held(bench: Bench) -> list[Measure]:
    seconds = 20.0 if bench.is_quick else 600.0
    quiet, last = rates_while_held(BATCH, bench.installed(BATCH), quiet_rounds=5, held_seconds=seconds)
    others = {"quiet, jobs/s": quiet, "held, jobs/s": last}
    reason = f"held open for {seconds:.0f} s"
    return [Measure("held_transaction", "x quiet", last / quiet, others=others, target=0.7, reason=reason)]


ROWS: Mapping[str, Callable[[Bench], list[Measure]]] = {
    "no_op": no_op,
    "ledger": ledger,
    "enqueue": enqueue,
    "latency": latency,
    "sqlite": sqlite,
    "processes": processes,
    "backlog": backlog,
    "held": held,
}


def main() -> None:
    parser = arguments("our job queue beside its peers")
    parser.add_argument("--only", nargs="+", choices=tuple(ROWS), help="only these rows")
    parser.add_argument("--jobs", type=int, default=20_000, help="waiting jobs of each run")
    options = parser.parse_args()
    measures: list[Measure] = []
    with ExitStack() as stack:
        fresh = stack.enter_context(databases())
        redis_url = stack.enter_context(redis_server()) if redis_version() else None
        runs = options.runs or (1 if options.quick else 5)
        bench = Bench(fresh, redis_url, runs=runs, jobs=options.jobs, is_quick=options.quick)
        _say_versions(bench)
        for name in options.only or ROWS:
            note(name)
            measures += ROWS[name](bench)
    report(measures, as_json=options.json)


def _say_versions(bench: Bench) -> None:
    for peer in PEERS:
        note(f"{peer.name} {peer.version() or 'is not installed: make bench-deps'}")
    note(f"Redis {redis_version() or 'is not installed: apt-get install redis-server'}")
    note(f"SKIPPED: {', '.join(p.name for p in PEERS if p not in bench.peers) or 'nothing'}")


if __name__ == "__main__":
    main()
