"""The application's own part of a worker: its handlers, schedules and topics.

``worker.py run --app shop.worker:app`` imports ``shop.worker`` and takes its ``app``::

    from svc_infra.application import Application

    app = Application()

    @app.handlers.job("shop.send_receipt")              # runs and completes in one transaction
    async def send_receipt(job: Job, session: AsyncSession) -> Outcome | None: ...

    @app.handlers.batch("shop.recount", batch_size=200)  # many jobs of one name in one transaction
    async def recount(jobs: Sequence[Job], session: AsyncSession) -> Mapping[str, Outcome] | None: ...

    @app.handlers.plain("shop.call_bank")               # no transaction open; completed afterwards
    async def call_bank(job: Job) -> Outcome | None: ...

    app.schedules.append(Schedule("shop.nightly", CronSchedule("0 3 * * *", "Europe/Berlin"), "shop.recount"))
    app.topics.add("shop.order.paid", OrderPaid, description="An order was paid.", example={"order_id": "o1"})
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from importlib import import_module

from svc_infra.billing.provider import ProviderSync
from svc_infra.exceptions import InvalidSettings
from svc_infra.jobs.handlers import Handlers
from svc_infra.jobs.scheduler import Schedule
from svc_infra.webhooks.catalogue import TopicCatalogue


@dataclass
class Application:
    """What an application adds to a worker beside billing's own handlers, schedules and topics.

    ``provider_sync(invoice, lines)`` mirrors each finalized invoice to a payment provider and returns the id
    that it has there; see ``svc_infra.billing.provider.ProviderSync``.
    """

    handlers: Handlers = field(default_factory=Handlers)
    schedules: list[Schedule] = field(default_factory=list)
    topics: TopicCatalogue = field(default_factory=TopicCatalogue)
    provider_sync: ProviderSync | None = None


def load_application(reference: str) -> Application:
    """Import ``module:attribute``, which is an ``Application`` or a function that returns one.

    Raises:
        InvalidSettings: it cannot be imported or is something else.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise InvalidSettings(f"--app {reference!r}: write it as module:attribute, like shop.worker:app")
    # A module beside where the worker is started is found, as by other servers.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidSettings(f"--app {reference}: {error}") from error
    if callable(found) and not isinstance(found, Application):
        found = found()
    if not isinstance(found, Application):
        raise InvalidSettings(f"--app {reference} is a {type(found).__name__}, not an Application")
    return found
