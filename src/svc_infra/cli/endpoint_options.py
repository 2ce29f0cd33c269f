"""The options of commands that make and change endpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.message import ContentMode

T = TypeVar("T")
_NOT_GIVEN = object()


def _pair(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read NAME=VALUE options."""
    pairs = {}
    for text in values:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"{text!r} has no '='; write NAME=VALUE")
        pairs[name] = value
    return pairs


def _filter(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    try:
        return _NOT_GIVEN if value is None else json.loads(value)
    except ValueError:
        raise click.BadParameter("""write the filter as JSON, like '{"plan.name": "gold"}'""") from None


def secret_option(text: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Make the option ``--secret``; with ``-`` it is read from standard input, where nobody sees it."""

    def read(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
        return sys.stdin.readline().strip() if value == "-" else value

    option: Callable[[Callable[..., T]], Callable[..., T]] = click.option(
        "--secret", callback=read, help=f"{text} '-' reads it from standard input."
    )
    return option


def changeable_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options of an endpoint that can be changed, beside its URL and topics."""
    options: list[Callable[[Callable[..., T]], Callable[..., T]]] = [
        click.option(
            "--filter", "payload_filter", callback=_filter, help="What payloads must hold, as JSON."
        ),
        click.option("--header", "headers", multiple=True, callback=_pair, help="NAME=VALUE sent each time."),
        click.option("--label", "labels", multiple=True, callback=_pair, help="NAME=VALUE of your own."),
        click.option("--content-mode", type=click.Choice(["standard", "cloudevents"]), help="Envelope."),
        click.option("--rate", "rate_per_second", type=float, help="Requests a second of one worker."),
        click.option("--in-flight", "in_flight_cap", type=int, help="Requests of one worker at a time."),
    ]
    for option in options:
        command = option(command)
    return command


def changed_options(
    options: EndpointOptions,
    *,
    payload_filter: object,
    headers: dict[str, str],
    labels: dict[str, str],
    content_mode: ContentMode | None,
    rate_per_second: float | None,
    in_flight_cap: int | None,
    dropped: tuple[str, ...] = (),
) -> EndpointOptions:
    """Return ``options`` with what is given; 0, and a filter of null, take one away."""
    gone = {name.lower() for name in (*dropped, *headers)}
    kept = {name: value for name, value in options.headers.items() if name.lower() not in gone}
    given: dict[str, Any] = {"headers": {**kept, **headers}, "metadata": {**options.metadata, **labels}}
    if payload_filter is not _NOT_GIVEN:
        given["payload_filter"] = payload_filter
    if content_mode is not None:
        given["content_mode"] = content_mode
    for name, value in (("rate_per_second", rate_per_second), ("in_flight_cap", in_flight_cap)):
        if value is not None:
            given[name] = value or None
    return replace(options, **given)
