"""A whole real customer base through ``worker.py demo``: time, memory, and the cost of each event.

    python bench/cdnow.py [--sample] [--master cdnow_master.txt.gz] [--json] [--quick]

The sample is the quarter that the repository ships. The master file (the CDNOW purchases that Fader and
Hardie published: customer, date, number of CDs, dollars; 69,659 lines) is not shipped and is read from
``--master``. With both, the cost of an event, an invoice and a delivery is compared between them.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _common import KINDS, Measure, arguments, check_equal, databases, note, report, run_worker

from svc_infra.simulation.demo import USAGE_FILE

_MASTER_SECONDS = {"sqlite": 20 * 60, "postgresql": 15 * 60}
_SAMPLE_SECONDS = {"sqlite": 20, "postgresql": None}
_MASTER_MB = 500
_MASTER_EVENTS = 69_659


@dataclass(frozen=True)
class _Run:
    """What a demo said at its end, and what it took. ``peak_mb`` is the greatest of its processes."""

    report: dict[str, Any]
    seconds: float
    peak_mb: float


def main() -> None:
    parser = arguments("a real customer base through the demo")
    parser.add_argument("--sample", action="store_true", help="only the shipped sample")
    parser.add_argument("--master", type=Path, help="the master file as it was published, gzipped")
    parser.add_argument("--database", choices=KINDS, help="only on this database")
    options = parser.parse_args()
    master = None if options.sample or options.quick else options.master
    reason = "--quick leaves it out" if options.quick else "needs --master FILE"
    kinds = (options.database,) if options.database else KINDS
    measures = []
    with TemporaryDirectory(prefix="bench") as folder, databases(kinds) as fresh:
        for kind in kinds:
            sample = _bill(USAGE_FILE, kind, fresh)
            measures += _measures("sample", kind, sample, _SAMPLE_SECONDS[kind], None, "")
            whole = None
            if master is not None:
                usage = Path(folder) / "master.csv"
                write_usage(master, usage)
                whole = _bill(usage, kind, fresh)
                # The targets are those of the whole file; a part of it would meet them easily.
                check_equal("events in the master", whole.report["usage_events"], _MASTER_EVENTS)
            measures += _measures("master", kind, whole, _MASTER_SECONDS[kind], _MASTER_MB, reason)
            measures += [
                _growth(unit, kind, sample, whole, reason)
                for unit in ("usage_events", "invoices", "deliveries")
            ]
    report(measures, as_json=options.json)


def write_usage(master: Path, file: Path) -> None:
    """Write the published master file as usage: ``cds`` at noon, the line's number as the key."""
    with gzip.open(master, "rt") as lines, file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["tenant_id", "metric", "amount", "at", "idempotency_key"])
        next(lines)
        for number, line in enumerate(lines, start=1):
            customer, date, cds, _dollars = line.split()
            at = f"{date[:4]}-{date[4:6]}-{date[6:]}T12:00:00+00:00"
            writer.writerow([customer, "cds", cds, at, number])


def _bill(usage: Path, kind: str, fresh: Callable[[str], str]) -> _Run:
    note(f"demo, {kind}, {usage.name}")
    run = run_worker(["demo", "--usage", str(usage), "--json", "--database-url", fresh(kind)])
    said = json.loads(run.stdout.splitlines()[-1])
    check_equal("reconciled", said["reconciled"], True)
    check_equal("verified deliveries", said["deliveries_verified"], said["messages"])
    note(f"  {json.dumps(said)}")
    return _Run(said, run.seconds, run.peak_mb)


def _measures(
    what: str, kind: str, run: _Run | None, seconds: float | None, peak_mb: float | None, reason: str
) -> list[Measure]:
    name = f"cdnow_{what}_{kind}"
    if run is None:
        return [
            Measure(f"{name}_seconds", "s", None, "lower", target=seconds, reason=reason),
            Measure(f"{name}_peak", "MB", None, "lower", target=peak_mb, reason=reason),
        ]
    return [
        Measure(f"{name}_seconds", "s", run.seconds, "lower", target=seconds),
        Measure(f"{name}_peak", "MB", run.peak_mb, "lower", target=peak_mb),
        Measure(f"{name}_invoices", "invoices/s", run.report["invoices"] / run.seconds),
        Measure(f"{name}_deliveries", "deliveries/s", run.report["deliveries"] / run.seconds),
    ]


def _growth(unit: str, kind: str, sample: _Run, whole: _Run | None, reason: str) -> Measure:
    """How much more one ``unit`` costs in the master than in the sample; 1 is flat."""
    name = f"cdnow_cost_per_{unit}_{kind}"
    if whole is None:
        return Measure(name, "master/sample", None, "lower", reason=reason)
    costs = [1000 * run.report["seconds"] / run.report[unit] for run in (sample, whole)]
    words = f"{costs[0]:.3f} ms in the sample, {costs[1]:.3f} ms in the master"
    return Measure(name, "master/sample", costs[1] / costs[0], "lower", reason=words)


if __name__ == "__main__":
    main()
