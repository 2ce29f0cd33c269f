"""``subscriptions add`` and ``list``: which tenant is on which plan."""

from __future__ import annotations

from datetime import date, datetime

import click
from sqlalchemy.orm import Session

from svc_infra.billing.periods import day_bounds, zone
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
    """Subscribe tenants to plans; list them."""


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
@json_option
@settings_options
def add(
    settings: Settings, tenant: str, plan: str, starts_on: date, ends_on: date | None, as_json: bool
) -> None:
    """Put TENANT on PLAN (the plan's key in the catalog) and print the subscription's id."""
    subscription_id = run_async(_add(settings, tenant, plan, starts_on, ends_on))
    if as_json:
        echo_json({"id": subscription_id})
    else:
        click.echo(subscription_id)


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
        print_table(["id", "tenant", "plan", "from", "to"], [list(row.values()) for row in found])


async def _add(settings: Settings, tenant: str, plan: str, starts_on: date, ends_on: date | None) -> str:
    def add_to(session: Session) -> str:
        effective_at = _midnight(session, tenant, starts_on)
        ended_at = None if ends_on is None else _midnight(session, tenant, ends_on)
        return subscribe(
            session,
            tenant_id=tenant,
            plan_key=plan,
            effective_at=effective_at,
            ended_at=ended_at,
            now=SystemClock().now(),
        )

    async with open_database(settings) as session_factory, session_factory.begin() as session:
        return await session.run_sync(add_to)


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


def _row(item: ListedSubscription) -> dict[str, str | None]:
    return {
        "id": item.id,
        "tenant_id": item.tenant_id,
        "plan": item.plan_key,
        "effective_at": canonical_instant(item.effective_at),
        "ended_at": None if item.ended_at is None else canonical_instant(item.ended_at),
    }
