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
from _common import Bench, Measure, run_groups

from svc_infra.cli.context import collect_garbage_rarely

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
    collect_garbage_rarely()  # as the worker does
    run_groups(GROUPS, "billing: usage, invoices, rating, quotas")


if __name__ == "__main__":
    main()
