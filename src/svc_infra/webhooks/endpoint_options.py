"""What may be set for an endpoint beside its URL, topics and secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from svc_infra.exceptions import InvalidEndpoint
from svc_infra.webhooks.delivery import is_reserved_header
from svc_infra.webhooks.message import ContentMode
from svc_infra.webhooks.payload_filter import check_filter

Ordering = Literal["none", "key"]
MAX_HEADERS = 20
MAX_HEADER_LENGTH = 1_000
MAX_LABELS = 50
_MAX_LABEL_LENGTH = 500
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?|")


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """How an endpoint is sent to.

    ``payload_filter``: send only messages whose payload fits (``payload_filter.check_filter``).
    ``headers``: sent with every request; those that frame or sign it are refused.
    ``metadata``: the owner's own labels, never sent. ``ordering``: ``key`` sends messages of one key one
    after the other, each after the one before was delivered or given up. ``content_mode``: ``standard`` for
    the envelope of Standard Webhooks, ``cloudevents`` for a structured CloudEvent of the same payload.
    ``rate_per_second`` and ``in_flight_cap`` hold for each worker process.

    Raises:
        InvalidEndpoint: one of them cannot be used.
    """

    payload_filter: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    ordering: Ordering = "none"
    content_mode: ContentMode = "standard"
    rate_per_second: float | None = None
    in_flight_cap: int | None = None

    def __post_init__(self) -> None:
        if self.payload_filter is not None:
            check_filter(self.payload_filter)
        _check_headers(self.headers)
        _check_metadata(self.metadata)
        if self.ordering not in get_args(Ordering) or self.content_mode not in get_args(ContentMode):
            raise InvalidEndpoint(
                "the ordering is 'none' or 'key', the content mode 'standard' or 'cloudevents'"
            )
        if self.rate_per_second is not None and not 0.01 <= self.rate_per_second <= 100_000:
            raise InvalidEndpoint("the rate of an endpoint is from 0.01 to 100,000 requests a second")
        if self.in_flight_cap is not None and not 1 <= self.in_flight_cap <= 1_000:
            raise InvalidEndpoint("the in-flight cap of an endpoint is from 1 to 1,000 requests")


def _check_headers(headers: Mapping[str, str]) -> None:
    if len(headers) > MAX_HEADERS:
        raise InvalidEndpoint(f"an endpoint has {MAX_HEADERS} headers of its own at most")
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise InvalidEndpoint(f"{name!r:.60} is no name of a header")
        if is_reserved_header(name):
            raise InvalidEndpoint(f"the header {name!r} is set by the sender; remove it")
        if len(value) > MAX_HEADER_LENGTH or not _VALUE.fullmatch(value):
            # The value may be a password, so it is not repeated.
            raise InvalidEndpoint(
                f"the value of the header {name!r} must be printable ASCII without spaces around it, "
                f"{MAX_HEADER_LENGTH} characters at most"
            )
    if len({name.lower() for name in headers}) < len(headers):
        raise InvalidEndpoint("a header is given twice; names differ in more than upper and lower case")


def _check_metadata(metadata: Mapping[str, str]) -> None:
    are_texts = all(
        isinstance(text, str) and len(text) <= _MAX_LABEL_LENGTH for pair in metadata.items() for text in pair
    )
    if len(metadata) > MAX_LABELS or not are_texts:
        raise InvalidEndpoint(
            f"the metadata of an endpoint is up to {MAX_LABELS} texts by name, of {_MAX_LABEL_LENGTH} "
            "characters each"
        )
