"""What the settings say about endpoints: the URLs that may be used, and the keys that seal their secrets."""

from __future__ import annotations

from svc_infra.config import WebhookSettings
from svc_infra.webhooks.endpoints import EndpointRules
from svc_infra.webhooks.guard import PublicAddresses, UrlPolicy
from svc_infra.webhooks.sealing import KeyRing


def key_ring(webhooks: WebhookSettings) -> KeyRing | None:
    """Return the keys that seal signing secrets, or None if the settings give none.

    Raises:
        InvalidSettings: they cannot be read.
    """
    keys = webhooks.secret_keys.get_secret_value().strip()
    return KeyRing.parse(keys) if keys else None


def endpoint_rules(webhooks: WebhookSettings) -> EndpointRules:
    """Return what the settings say about the URLs and secrets of endpoints.

    Raises:
        InvalidSettings: a network or a key cannot be read.
    """
    urls = UrlPolicy(allow_http=webhooks.allow_http, ports=webhooks.allow_ports)
    addresses = PublicAddresses(webhooks.allow_networks)
    return EndpointRules(urls, addresses, key_ring(webhooks), webhooks.endpoints_per_tenant)
