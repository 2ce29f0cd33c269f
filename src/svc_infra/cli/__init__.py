"""The command line: one file per group of commands, imported only when one of its commands runs."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from svc_infra import __version__

EXIT_FAILED, EXIT_USAGE = 1, 2

# The help text stands here so that listing the commands imports none of them.
_COMMANDS = {
    "migrate": ("svc_infra.cli.migrate:migrate", "Bring the database to the schema of this version."),
    "copy": ("svc_infra.cli.copy:copy", "Copy a SQLite database to PostgreSQL."),
    "run": ("svc_infra.cli.run:run", "Run the worker: jobs, cron, webhook relay and sender."),
    "api": ("svc_infra.cli.api:api", "Serve the HTTP API."),
    "usage": ("svc_infra.cli.usage:usage", "Import usage; trace, void and amend events; set meters."),
    "catalog": ("svc_infra.cli.catalog:catalog", "Check, compare and apply plans and prices from a file."),
    "subscriptions": (
        "svc_infra.cli.subscriptions:subscriptions",
        "Subscribe tenants; change, end and list that.",
    ),
    "tenants": ("svc_infra.cli.tenants:tenants", "Show and change how a tenant is billed; erase its usage."),
    "endpoints": ("svc_infra.cli.endpoints:endpoints", "Add and list webhook endpoints."),
    "webhooks": ("svc_infra.cli.webhooks:webhooks", "Deliveries, replays, secrets; receive and verify."),
    "invoices": (
        "svc_infra.cli.invoices:invoices",
        "List, show, export, finalize, void and credit invoices.",
    ),
    "invoice": ("svc_infra.cli.invoices:invoices", "The same as invoices."),
    "audit": ("svc_infra.cli.audit:audit", "Recompute every invoice from raw events, independently."),
    "jobs": ("svc_infra.cli.jobs:jobs", "Look at jobs; retry, cancel, requeue and purge them."),
    "queues": ("svc_infra.cli.queues:queues", "List queues; pause and resume them."),
    "top": ("svc_infra.cli.top:top", "Show what goes on, live: queues, jobs, leases, schedules, failures."),
    "schedules": ("svc_infra.cli.schedules:schedules", "List schedules and fires; pause, resume, run them."),
    "demo": ("svc_infra.cli.demo:demo", "Bill a history in simulated time and prove every amount."),
    "keys": ("svc_infra.cli.keys:keys", "Make, list and revoke the keys of the HTTP API."),
    "config": ("svc_infra.cli.config:config", "Show the settings in force and where each comes from."),
    "simulate": ("svc_infra.cli.simulate:simulate", "Bill usage under a catalog in simulated time."),
    "healthcheck": ("svc_infra.cli.healthcheck:healthcheck", "Ask a running process how it is."),
    "doctor": ("svc_infra.cli.doctor:doctor", "Check the database, the settings and the schedules."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module_name, attribute = _COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module_name), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Usage-based billing, a durable job worker with cron, and transactional webhooks.

    Exit codes: 0 done, 1 failed (the message says what), 2 wrong usage.
    """


def main() -> None:
    """Run the command line; expected errors are one sentence on standard error, never a traceback."""
    from svc_infra.exceptions import InvalidSettings, SvcInfraError

    try:
        cli.main(standalone_mode=True)
    except InvalidSettings as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_USAGE)
    except SvcInfraError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except Exception as error:
        from svc_infra.cli.unusable import why_unusable

        if reason := why_unusable(error):
            click.echo(f"Error: {reason}", err=True)
            sys.exit(EXIT_FAILED)
        raise
