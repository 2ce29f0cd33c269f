"""Single usage events: trace, void and amend them, list what was refused, and the meters of metrics."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from sqlalchemy import select
from sqlalchemy.orm import Session

from svc_infra.billing.metering import Metering, QuantityRounding
from svc_infra.billing.meters import Meter
from svc_infra.billing.money import RoundingMode
from svc_infra.billing.units import Operation, UnitConversion
from svc_infra.billing.usage import UsageLimits, quantity
from svc_infra.billing.usage_corrections import amend_usage, void_usage
from svc_infra.billing.usage_meters import list_meters, register_meter
from svc_infra.billing.usage_models import RECORDED
from svc_infra.billing.usage_rejections import list_rejections
from svc_infra.billing.usage_state import UsageState, usage_state
from svc_infra.canonical import canonical_decimal, canonical_instant
from svc_infra.cli.acting import actor_option, echo_act, in_transaction
from svc_infra.cli.context import echo_json, json_option, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings
from svc_infra.exceptions import InvalidUsage, NotFound

tenant_option = click.option("--tenant", "tenant_id", help="Whose event it is, where several have the id.")
reason_option = click.option("--reason", required=True, help="Why; it is kept with the event.")


def limits_in(settings: Settings) -> UsageLimits:
    """How far from now the settings let usage lie."""
    return UsageLimits.of(settings.billing.usage_past_days, settings.billing.usage_future_seconds)


@click.command()
@click.argument("event_id")
@tenant_option
@json_option
@settings_options
def trace(settings: Settings, event_id: str, tenant_id: str | None, as_json: bool) -> None:
    """Say what became of usage event EVENT_ID, and name the line that billed it."""
    state = in_transaction(
        settings, lambda session: usage_state(session, _owner(session, event_id, tenant_id), event_id)
    )
    if as_json:
        echo_json(_as_json(state))
        return
    event = state.event
    click.echo(f"{canonical_decimal(event.amount)} {event.metric} of {event.tenant_id}, {_text(event.at)}")
    click.echo(f"recorded {_text(state.recorded_at)} under key {event.idempotency_key}")
    if state.archived_at is not None:
        click.echo(f"archived {_text(state.archived_at)}; it counts as before")
    click.echo(f"counted in the day from {_text(state.day.start)} to {_text(state.day.end)}")
    click.echo(f"state: {state.state}")
    if state.correction is not None:
        instead = state.correction.replacement_id
        click.echo(
            f"{state.state} {_text(state.correction.created_at)} by {state.correction.actor}: "
            f"{state.correction.reason}" + (f"; event {instead} counts instead" if instead else "")
        )
    for line in state.lines:
        click.echo(
            f"line {line.position} ({line.kind}) of invoice {line.invoice} [{line.invoice_id}]: "
            f"{canonical_decimal(line.quantity)} for {line.amount} minor units {line.currency}"
        )


@click.command()
@click.argument("event_id")
@tenant_option
@reason_option
@json_option
@actor_option
@settings_options
def void(
    settings: Settings, event_id: str, tenant_id: str | None, reason: str, actor: str, as_json: bool
) -> None:
    """Take usage event EVENT_ID out of what is counted and billed from now on."""
    now = SystemClock().now()

    def act(session: Session) -> None:
        owner = _owner(session, event_id, tenant_id)
        void_usage(session, owner, event_id, reason=reason, actor=actor, now=now)

    in_transaction(settings, act)
    echo_act(as_json, "voided", id=event_id)


@click.command()
@click.argument("event_id")
@click.option("--amount", help="The right quantity, a decimal string.")
@click.option("--at", "at_text", help="The right instant, ISO 8601 with an offset.")
@tenant_option
@reason_option
@json_option
@actor_option
@settings_options
def amend(
    settings: Settings,
    event_id: str,
    amount: str | None,
    at_text: str | None,
    tenant_id: str | None,
    reason: str,
    actor: str,
    as_json: bool,
) -> None:
    """Replace usage event EVENT_ID by one with another amount or instant; print the new event's id."""
    now = SystemClock().now()

    def act(session: Session) -> str:
        return amend_usage(
            session,
            _owner(session, event_id, tenant_id),
            event_id,
            amount=None if amount is None else quantity(amount),
            at=None if at_text is None else _instant(at_text),
            reason=reason,
            actor=actor,
            now=now,
            limits=limits_in(settings),
        )

    replacement_id = in_transaction(settings, act)
    if as_json:
        echo_json({"id": event_id, "replacement_id": replacement_id})
    else:
        click.echo(replacement_id)


@click.command()
@click.option("--tenant", "tenant_id", help="Only of this tenant.")
@click.option("--limit", default=100, type=click.IntRange(1, 10_000), help="At most so many.")
@json_option
@settings_options
def rejected(settings: Settings, tenant_id: str | None, limit: int, as_json: bool) -> None:
    """List the events that were refused, with their reasons, in the order they came."""
    rows = [
        {
            "id": row.id,
            "tenant_id": row.tenant_id,
            "metric": row.metric,
            "amount": row.amount,
            "at": canonical_instant(row.at_ts),
            "idempotency_key": row.idempotency_key,
            "refused_at": canonical_instant(row.created_at),
            "reason": row.reason,
        }
        for row in in_transaction(
            settings, lambda session: list_rejections(session, tenant_id=tenant_id, limit=limit)
        )
    ]
    if as_json:
        echo_json(rows)
    else:
        columns = ["tenant_id", "metric", "amount", "at", "idempotency_key", "reason"]
        print_table(columns, [[row[name] for name in columns] for row in rows], right=["amount"])


@click.group()
def meters() -> None:
    """Say what is made of a metric's events; a metric without a meter is a sum."""


@meters.command(name="list")
@json_option
@settings_options
def list_(settings: Settings, as_json: bool) -> None:
    """List the registered meters."""
    rows = [{"metric": each.metric, **each.to_snapshot()} for each in in_transaction(settings, list_meters)]
    if as_json:
        echo_json(rows)
    else:
        table = [
            [row["metric"], row["meter"], row.get("unique_key", ""), ", ".join(row.get("dimensions", ()))]
            for row in rows
        ]
        print_table(["metric", "meter", "unique_key", "dimensions"], table)


@meters.command(name="set")
@click.argument("metric")
@click.argument("meter", type=click.Choice([meter.value for meter in Meter]))
@click.option("--unique-key", help="The metadata key whose values a unique_count counts.")
@click.option("--dimension", "dimensions", multiple=True, help="A metadata key to filter or group by.")
@click.option("--divide-by", help="Divide the period's quantity, as in 1000000000 for bytes to gigabytes.")
@click.option("--multiply-by", help="Multiply the period's quantity.")
@click.option(
    "--round",
    "mode",
    type=click.Choice([mode.value for mode in RoundingMode]),
    help="Round the period's quantity.",
)
@click.option("--places", default=0, help="Decimals that --round keeps.")
@settings_options
def set_(
    settings: Settings,
    metric: str,
    meter: str,
    unique_key: str | None,
    dimensions: tuple[str, ...],
    divide_by: str | None,
    multiply_by: str | None,
    mode: str | None,
    places: int,
) -> None:
    """Register what is made of METRIC. Once it has usage, only dimensions and rounding can be changed."""
    if divide_by and multiply_by:
        raise click.UsageError("give --divide-by or --multiply-by, not both")
    conversion = None
    if factor := divide_by or multiply_by:
        operation = Operation.DIVIDE if divide_by else Operation.MULTIPLY
        conversion = UnitConversion(operation, quantity(factor), None)
    rounding = None if mode is None else QuantityRounding(RoundingMode(mode), places)
    metering = Metering(metric, Meter(meter), unique_key, dimensions, conversion, rounding)
    now = SystemClock().now()
    has_changed = in_transaction(settings, lambda session: register_meter(session, metering, now=now))
    click.echo(f"{metric}: {meter}" + ("" if has_changed else " (unchanged)"))


def _owner(session: Session, event_id: str, tenant_id: str | None) -> str:
    if tenant_id is not None:
        return tenant_id
    found = [select(event.tenant_id).where(event.id == event_id).limit(2) for event in RECORDED]
    owners = sorted({owner for statement in found for owner in session.scalars(statement)})
    if not owners:
        raise NotFound(f"there is no usage event {event_id!r}")
    if len(owners) > 1:
        raise InvalidUsage(f"several tenants have an event {event_id!r}; name one with --tenant")
    return owners[0]


def _instant(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidUsage(f"--at {text!r:.60} is not an ISO 8601 instant: {error}") from None


def _text(instant: datetime) -> str:
    return canonical_instant(instant)


def _as_json(state: UsageState) -> dict[str, Any]:
    event, correction = state.event, state.correction
    return {
        "id": state.event_id,
        "tenant_id": event.tenant_id,
        "metric": event.metric,
        "amount": canonical_decimal(event.amount),
        "at": _text(event.at),
        "idempotency_key": event.idempotency_key,
        "metadata": event.metadata,
        "recorded_at": _text(state.recorded_at),
        "archived_at": None if state.archived_at is None else _text(state.archived_at),
        "day_start": _text(state.day.start),
        "state": state.state,
        "correction": None
        if correction is None
        else {
            "kind": correction.kind,
            "replacement_id": correction.replacement_id,
            "reason": correction.reason,
            "actor": correction.actor,
            "at": _text(correction.created_at),
        },
        "lines": [
            asdict(line)
            | {
                "quantity": canonical_decimal(line.quantity),
                "period": [_text(line.period.start), _text(line.period.end)],
            }
            for line in state.lines
        ],
    }
