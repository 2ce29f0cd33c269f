"""The options of an endpoint as its row keeps them: header values sealed, and never shown again."""

from __future__ import annotations

from typing import Any

from svc_infra.exceptions import InvalidEndpoint
from svc_infra.webhooks.endpoint_options import EndpointOptions
from svc_infra.webhooks.models import EndpointRow
from svc_infra.webhooks.sealing import KeyRing, SecretPlace, is_sealed
from svc_infra.webhooks.stored_secrets import open_text

HIDDEN = "hidden"
"""Stands for the value of a header wherever an endpoint is shown; given back, it keeps the stored value."""


def store_options(row: EndpointRow, options: EndpointOptions, keys: KeyRing | None) -> None:
    """Write ``options`` into the row; a header whose value is ``HIDDEN`` stays as it is stored.

    Raises:
        InvalidEndpoint: a header's value is hidden and none is stored.
    """
    row.headers = _stored_headers(row, dict(options.headers), keys)
    row.payload_filter = None if options.payload_filter is None else dict(options.payload_filter)
    row.labels = dict(options.metadata) or None
    row.ordering = options.ordering
    row.content_mode = options.content_mode
    row.rate_per_second = options.rate_per_second
    row.in_flight_cap = options.in_flight_cap


def shown_options(row: EndpointRow) -> EndpointOptions:
    """Return what may be shown of the options: of headers, whose values are often passwords, the names."""
    values: dict[str, Any] = {
        "ordering": row.ordering,
        "content_mode": row.content_mode,
        "rate_per_second": row.rate_per_second,
        "in_flight_cap": row.in_flight_cap,
    }
    hidden = dict.fromkeys(row.headers or {}, HIDDEN)
    return EndpointOptions(row.payload_filter, hidden, row.labels or {}, **values)


def opened_headers(
    headers: dict[str, str] | None, tenant_id: str | None, endpoint_id: str, keys: KeyRing | None
) -> dict[str, str]:
    """Return the stored headers of an endpoint, ready to send.

    Raises:
        InvalidSecret: one is sealed and does not open with ``keys``.
    """
    place = SecretPlace(tenant_id, endpoint_id, 0)
    return {name: open_text(value, place, keys) for name, value in (headers or {}).items()}


def reseal_headers(row: EndpointRow, keys: KeyRing) -> bool:
    """Seal the headers with the newest of ``keys`` if one is not; return whether one was not.

    Raises:
        InvalidSecret: one does not open with ``keys``.
    """
    stored = row.headers or {}
    if not any(not is_sealed(text) or keys.needs_resealing(text) for text in stored.values()):
        return False
    place = _place(row)
    row.headers = {name: keys.seal(open_text(text, place, keys), place) for name, text in stored.items()}
    return True


def _stored_headers(row: EndpointRow, headers: dict[str, str], keys: KeyRing | None) -> dict[str, str] | None:
    stored = {}
    for name, value in headers.items():
        if value != HIDDEN:
            stored[name] = value if keys is None else keys.seal(value, _place(row))
        elif row.headers and name in row.headers:
            stored[name] = row.headers[name]
        else:
            raise InvalidEndpoint(f"the value of the header {name!r} was hidden; give it anew")
    return stored or None


def _place(row: EndpointRow) -> SecretPlace:
    return SecretPlace(row.tenant_id, row.id, 0)
