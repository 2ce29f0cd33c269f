"""``subscriptions add``, ``change``, ``end`` and ``list``: which tenant is on which plan."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import Any

import click
from sqlalchemy.orm import Session

from svc_infra.billing.periods import day_bounds, zone
from svc_infra.billing.subscription_changes import change_subscription, end_subscription
from svc_infra.billing.subscriptions import ListedSubscription, list_subscriptions, subscribe
from svc_infra.billing.tenants import settings_of
from svc_infra.canonical import canonical_instant
from svc_infra.cli.context import echo_json, json_option, open_database, run_async, settings_options
from svc_infra.cli.table import print_table
from svc_infra.clock import SystemClock
from svc_infra.config import Settings

_PAGE = 1_000


def day_or_instant(_ctx: click.Context, _param: click.Parameter, value: str | None) -> date | None:
    """Read a date, which means the tenant's midnight that it begins with, or an instant with its offset."""
    if value is None:
        return None
    try:
        if len(value) == len("YYYY-MM-DD"):
            return date.fromisoformat(value)
        instant = datetime.fromisoformat(value)
    except ValueError:
        message = f"{value!r} is neither a date like 2025-01-31 nor an ISO 8601 instant"
        raise click.BadParameter(message) from None
    if instant.tzinfo is None:
        raise click.BadParameter(f"{value!r} has no UTC offset; end it with Z, or give the date alone")
    return instant


@click.group()
def subscriptions() -> None:
    """Subscribe tenants to plans; change, end and list that."""


@subscriptions.command()
@click.argument("tenant")
@click.argument("plan")
@click.option(
    "--from",
    "starts_on",
    callback=day_or_instant,
    required=True,
    metavar="DATE",
    help="First day, in the tenant's zone; or an ISO 8601 instant.",
)
@click.option(
    "--to",
    "ends_on",
    callback=day_or_instant,
    metavar="DATE",
    help="The day after the last one; without it there is no end.",
)
@click.option("--quantity", type=click.IntRange(min=1), default=1, help="Seats.")
@click.option("--trial-days", type=click.IntRange(min=0), default=0, help="Days without the fixed prices.")
@click.option("--anchor", callback=day_or_instant, metavar="DATE", help="Bill months that begin on its day.")
@click.option("--interval", type=click.Choice(["month", "year"]), default="month", help="Of the anchor.")
@json_option
@settings_options
def add(settings: Settings, tenant: str, plan: str, as_json: bool, **options: Any) -> None:
    """Put TENANT on PLAN (the plan's key in the catalog) and print the subscription's id."""
    _print_id(run_async(_call(settings, _add, tenant, plan, **options)), as_json)


@subscriptions.command()
@click.argument("tenant")
@click.argument("subscription_id", metavar="ID")
@click.option("--plan", help="The plan to go on with.")
@click.option("--quantity", type=click.IntRange(min=1), help="The seats to go on with.")
@click.option("--at", callback=day_or_instant, metavar="DATE", help="First day of the change; today without.")
@click.option("--at-period-end", is_flag=True, help="When the running period ends.")
@json_option
@settings_options
def change(settings: Settings, tenant: str, subscription_id: str, as_json: bool, **options: Any) -> None:
    """Go on with another plan or quantity, and print the id of what goes on."""
    _print_id(run_async(_call(settings, _change, tenant, subscription_id, **options)), as_json)


@subscriptions.command()
@click.argument("tenant")
@click.argument("subscription_id", metavar="ID")
@click.option("--at", callback=day_or_instant, metavar="DATE", help="The day after the last one.")
@json_option
@settings_options
def end(settings: Settings, tenant: str, subscription_id: str, at: date | None, as_json: bool) -> None:
    """End a subscription, by default when its running period ends."""
    ended_at = run_async(_call(settings, _end, tenant, subscription_id, at=at))
    if as_json:
        echo_json({"id": subscription_id, "ended_at": canonical_instant(ended_at)})
    else:
        click.echo(f"ends at {canonical_instant(ended_at)}")


@subscriptions.command(name="list")
@click.option("--tenant", help="Only this tenant's.")
@json_option
@settings_options
def list_(settings: Settings, tenant: str | None, as_json: bool) -> None:
    """List subscriptions by tenant."""
    found = [_row(item) for item in run_async(_list(settings, tenant))]
    if as_json:
        echo_json(found)
    else:
        columns = ["id", "tenant", "plan", "from", "to", "quantity", "trial to", "cycle"]
        print_table(columns, [list(row.values()) for row in found])


def _add(
    session: Session,
    tenant: str,
    plan: str,
    *,
    starts_on: date,
    ends_on: date | None,
    anchor: date | None,
    **options: Any,
) -> str:
    return subscribe(
        session,
        tenant_id=tenant,
        plan_key=plan,
        effective_at=_midnight(session, tenant, starts_on),
        ended_at=None if ends_on is None else _midnight(session, tenant, ends_on),
        anchor_on=anchor.date() if isinstance(anchor, datetime) else anchor,
        now=SystemClock().now(),
        **options,
    )


def _change(
    session: Session,
    tenant: str,
    subscription_id: str,
    *,
    plan: str | None,
    at: date | None,
    **options: Any,
) -> str:
    instant = None if at is None else _midnight(session, tenant, at)
    now = SystemClock().now()
    return change_subscription(
        session, tenant, subscription_id, plan_key=plan, at=instant, now=now, **options
    )


def _end(session: Session, tenant: str, subscription_id: str, *, at: date | None) -> datetime:
    ended_at = None if at is None else _midnight(session, tenant, at)
    return end_subscription(session, tenant, subscription_id, ended_at=ended_at, now=SystemClock().now())


async def _call(settings: Settings, act: Callable[..., Any], *args: Any, **options: Any) -> Any:
    async with open_database(settings) as session_factory, session_factory.begin() as session:
        return await session.run_sync(act, *args, **options)


def _print_id(subscription_id: str, as_json: bool) -> None:
    if as_json:
        echo_json({"id": subscription_id})
    else:
        click.echo(subscription_id)


def _midnight(session: Session, tenant: str, day: date) -> datetime:
    if isinstance(day, datetime):
        return day
    return day_bounds(day, zone(settings_of(session, tenant).timezone)).start


async def _list(settings: Settings, tenant: str | None) -> list[ListedSubscription]:
    found: list[ListedSubscription] = []
    async with open_database(settings) as session_factory, session_factory() as session:
        while page := await session.run_sync(
            list_subscriptions,
            tenant_id=tenant,
            after=(found[-1].tenant_id, found[-1].id) if found else None,
            limit=_PAGE,
        ):
            found += page
    return found


def _row(item: ListedSubscription) -> dict[str, str | int | None]:
    return {
        "id": item.id,
        "tenant_id": item.tenant_id,
        "plan": item.plan_key,
        "effective_at": canonical_instant(item.effective_at),
        "ended_at": None if item.ended_at is None else canonical_instant(item.ended_at),
        "quantity": item.quantity,
        "trial_ends_at": None if item.trial_ends_at is None else canonical_instant(item.trial_ends_at),
        "cycle": item.cycle,
    }
