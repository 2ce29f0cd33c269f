"""What was used of the planned lines of a batch of drafts, by the metrics' meters, in a few statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

from sqlalchemy import select, union_all
from sqlalchemy.orm import Session

from svc_infra.billing.dimensions import DEFAULT, DimensionFilter
from svc_infra.billing.invoice_draft import Draft
from svc_infra.billing.invoice_lines import USAGE, LinePlan, Measured
from svc_infra.billing.periods import overlap
from svc_infra.billing.usage_dimensions import is_counted
from svc_infra.billing.usage_models import RECORDED
from svc_infra.billing.usage_quantities import UsageQuantity, UsageQuery, measure_usage

_MeasuredLines = dict[int, list[Measured]]


def measure(session: Session, drafts: Sequence[Draft]) -> list[_MeasuredLines]:
    """The usage of each draft's planned usage lines, by their position in ``plans``."""
    asked: list[tuple[int, int, LinePlan]] = []
    queries = []
    for at, draft in enumerate(drafts):
        has_filters = any(plan.price.terms.filter is not DEFAULT for plan in draft.plans)
        for position, plan in enumerate(draft.plans):
            if plan.kind == USAGE:
                queries.append(_query(draft, plan, _filters(draft, plan) if has_filters else ()))
                asked.append((at, position, plan))
    measured: list[_MeasuredLines] = [defaultdict(list) for _ in drafts]
    answers = measure_usage(session, queries) if queries else []
    for (at, position, plan), answer in zip(asked, answers, strict=True):
        for found in answer:
            events = None
            if plan.price.terms.per_event is not None:
                events = _events(session, drafts[at].tenant_id, plan)
            measured[at][position].append(_measured(found, events))
    return measured


def _query(draft: Draft, plan: LinePlan, filters: tuple[DimensionFilter, ...]) -> UsageQuery:
    terms = plan.price.terms
    return UsageQuery(draft.tenant_id, terms.metric or "", plan.period, filters, terms.filter, terms.group_by)


def _filters(draft: Draft, plan: LinePlan) -> tuple[DimensionFilter, ...]:
    """The filters that share the metric out at that time; none if its only price bills every event."""
    found = {
        other.price.terms.filter
        for other in draft.plans
        if other.price.terms.metric == plan.price.terms.metric and overlap(other.period, plan.period)
    }
    return () if found == {DEFAULT} else tuple(sorted(found, key=repr))


def _measured(found: UsageQuantity, events: tuple[Decimal, ...] | None) -> Measured:
    measured = None if found.units is None else found.measured
    return Measured(found.quantity, found.group, events, measured, found.units)


def _events(session: Session, tenant_id: str, plan: LinePlan) -> tuple[Decimal, ...]:
    """The single amounts, in the order in which they came to be."""
    recorded = union_all(
        *(
            select(event.amount, event.at_ts, event.id).where(
                event.tenant_id == tenant_id,
                event.metric == plan.price.terms.metric,
                event.at_ts >= plan.period.start,
                event.at_ts < plan.period.end,
                is_counted(event),
            )
            for event in RECORDED
        )
    ).subquery()
    return tuple(session.scalars(select(recorded.c.amount).order_by(recorded.c.at_ts, recorded.c.id)))
