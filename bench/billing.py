"""Billing measured: recording, importing and aggregating usage, invoices, rating and quotas.

    python bench/billing.py [--only record,batch] [--json] [--quick] [--runs 5]

Each group of rows is a function of a file beside this one, named in ``GROUPS``: it takes the ``Bench`` and
returns its measures. Ours and the others alternate within a run, medians count, and every row asserts what it
left in the database.
"""

from __future__ import annotations

from collections.abc import Callable

import _billing_invoices
import _billing_quota
import _billing_usage
from _common import Bench, Measure, arguments, databases, note, report

from svc_infra.cli.context import collect_garbage_rarely
from svc_infra.logs import configure_logging

GROUPS: dict[str, Callable[[Bench], list[Measure]]] = {
    "record": _billing_usage.record,
    "batch": _billing_usage.batch,
    "aggregate": _billing_usage.aggregate,
    "incremental": _billing_usage.incremental,
    "import": _billing_usage.imports,
    "invoices": _billing_invoices.invoices,
    "rating": _billing_invoices.rating,
    "quota": _billing_quota.quota,
}


def main() -> None:
    parser = arguments("billing: usage, invoices, rating, quotas")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"groups, of {', '.join(GROUPS)}")
    options = parser.parse_args()
    configure_logging("warning")
    collect_garbage_rarely()  # as the worker does
    measures = []
    with databases() as fresh:
        bench = Bench(fresh, options.quick, options.runs or (1 if options.quick else 5))
        for name in options.only.split(","):
            found = GROUPS[name](bench)
            for measure in found:  # said at once, so that a run that is ended early has told something
                note(f"{measure.measure}: {measure.ours} {measure.unit}, others {measure.others}")
            measures += found
    report(measures, as_json=options.json)


if __name__ == "__main__":
    main()
