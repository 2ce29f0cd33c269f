"""The options of commands that change something by hand, and how they reach the database."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from typing import TypeVar

import click
from sqlalchemy.orm import Session

from svc_infra.cli.context import echo_json, open_database, run_async
from svc_infra.config import Settings

T = TypeVar("T")


def actor_option(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command ``--actor``: who is recorded as having done it, by default the user of this machine."""
    option: Callable[[Callable[..., T]], Callable[..., T]] = click.option(
        "--actor", default=_user, show_default="the user", help="Who does it; kept in the record of acts."
    )
    return option(command)


def echo_act(as_json: bool, done: str, **subject: str | None) -> None:
    """Say what was done: ``done`` for people, an object that begins with the subject for programs."""
    if as_json:
        echo_json({**subject, "done": done})
    else:
        click.echo(done)


def in_transaction(settings: Settings, work: Callable[[Session], T]) -> T:
    """Run ``work`` in one transaction of the settings' database and return what it returned."""

    async def run() -> T:
        async with open_database(settings) as session_factory, session_factory.begin() as session:
            return await session.run_sync(work)

    return run_async(run())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return f"uid {os.getuid()}"
