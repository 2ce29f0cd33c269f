"""Senders that may reach a receiver on this machine, which the guard of the ordinary one refuses."""

from __future__ import annotations

from svc_infra.webhooks.guard import LOOPBACK_NETWORKS, PublicAddresses, UrlPolicy
from svc_infra.webhooks.transport import HttpSender

LOOPBACK_ADDRESSES = PublicAddresses(allow=LOOPBACK_NETWORKS)
"""Public addresses and this machine."""

LOOPBACK_URLS = UrlPolicy(allow_http=True, ports=None)
"""https and http, on every port."""


def loopback_sender(*, deadline_seconds: float = 15.0) -> HttpSender:
    """Make a sender for tests and demos: plain http and this machine are allowed; all else stays guarded."""
    return HttpSender(policy=LOOPBACK_ADDRESSES, urls=LOOPBACK_URLS, deadline_seconds=deadline_seconds)
