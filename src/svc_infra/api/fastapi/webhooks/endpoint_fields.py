"""The fields of endpoints as they come and as they are shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SecretStr

from svc_infra.api.fastapi.fields import Answer, Id, InstantText, JsonObject, RequestBody, Text
from svc_infra.webhooks.endpoint_options import MAX_HEADER_LENGTH, MAX_HEADERS, MAX_LABELS, EndpointOptions
from svc_infra.webhooks.endpoints import Endpoint
from svc_infra.webhooks.guard import MAX_URL_LENGTH

_MAX_TOPICS = 100
_URL = "https://hooks.example.com/billing"

Url = Annotated[Text, Field(min_length=1, max_length=MAX_URL_LENGTH, examples=[_URL])]
Topics = Annotated[
    list[Annotated[Text, Field(max_length=200)]],
    Field(min_length=1, max_length=_MAX_TOPICS, examples=[["billing.*"]]),
]
Description = Annotated[Text, Field(max_length=500)]
Headers = Annotated[
    dict[str, Annotated[str, Field(max_length=MAX_HEADER_LENGTH)]], Field(max_length=MAX_HEADERS)
]
ChangedHeaders = Annotated[
    dict[str, Annotated[str, Field(max_length=MAX_HEADER_LENGTH)] | None], Field(max_length=2 * MAX_HEADERS)
]
Metadata = Annotated[dict[Text, Text], Field(max_length=MAX_LABELS)]
Rate = Annotated[float, Field(ge=0.01, le=100_000)]
Cap = Annotated[int, Field(ge=1, le=1_000)]
Secret = Annotated[SecretStr, Field(min_length=1, max_length=500)]


class NewEndpoint(RequestBody):
    """An endpoint to make. Without a ``secret`` one is made, which the answer shows once.

    ``topics`` are topics, ``billing.*`` for all below one, or ``*``. ``filter`` are conditions on payloads,
    ``{"plan.name": "gold"}``. ``headers`` are sent with every request, and their values are never shown.
    ``metadata`` is your own and sent nowhere. ``ordering`` ``key`` sends messages of one key one after the
    other. The rate and the cap hold for each worker.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "url": _URL,
                    "topics": ["billing.invoice.created"],
                    "description": "our books",
                }
            ]
        }
    )

    url: Url
    topics: Topics
    description: Description = ""
    secret: Secret | None = None
    signing: Literal["v1", "v1a"] = "v1"
    filter: JsonObject | None = None
    headers: Headers = Field(default_factory=dict, repr=False)
    metadata: Metadata = Field(default_factory=dict)
    ordering: Literal["none", "key"] = "none"
    content_mode: Literal["standard", "cloudevents"] = "standard"
    rate_per_second: Rate | None = None
    in_flight_cap: Cap | None = None

    def options(self) -> EndpointOptions:
        """Return the options.

        Raises:
            InvalidEndpoint: one of them cannot be used.
        """
        return EndpointOptions(
            self.filter,
            self.headers,
            self.metadata,
            self.ordering,
            self.content_mode,
            self.rate_per_second,
            self.in_flight_cap,
        )


class EndpointChange(RequestBody):
    """What is to change of an endpoint; a field that is left out stays as it is.

    Null takes a filter, rate or cap away. Of ``headers`` and ``metadata`` the names that are given change,
    and a null takes one away.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [{"topics": ["billing.*"], "filter": None}]})

    url: Url | None = None
    topics: Topics | None = None
    description: Description | None = None
    filter: JsonObject | None = None
    headers: ChangedHeaders | None = Field(None, repr=False)
    metadata: Annotated[dict[Text, Text | None], Field(max_length=2 * MAX_LABELS)] | None = None
    content_mode: Literal["standard", "cloudevents"] | None = None
    rate_per_second: Rate | None = None
    in_flight_cap: Cap | None = None

    def options(self, now_set: EndpointOptions) -> EndpointOptions | None:
        """Return ``now_set`` with the change; None if there is none.

        Raises:
            InvalidEndpoint: one of the options cannot be used.
        """
        given: dict[str, Any] = {}
        for name in ("rate_per_second", "in_flight_cap"):
            if name in self.model_fields_set:
                given[name] = getattr(self, name)
        if "filter" in self.model_fields_set:
            given["payload_filter"] = self.filter
        if self.content_mode is not None:
            given["content_mode"] = self.content_mode
        if self.headers is not None:
            given["headers"] = _merged_headers(now_set.headers, self.headers)
        if self.metadata is not None:
            merged = {**now_set.metadata, **self.metadata}
            given["metadata"] = {name: value for name, value in merged.items() if value is not None}
        return replace(now_set, **given) if given else None


def _merged_headers(now_set: Any, change: dict[str, str | None]) -> dict[str, str]:
    """Names of headers are the same in upper and lower case."""
    changed = {name.lower() for name in change}
    kept = {name: value for name, value in now_set.items() if name.lower() not in changed}
    return kept | {name: value for name, value in change.items() if value is not None}


class EndpointShown(Answer):
    """An endpoint. Of ``headers`` the values are hidden; ``public_keys`` are those of ed25519."""

    id: Id
    url: str
    topics: list[str]
    description: str
    is_enabled: bool
    disabled_reason: str | None
    disabled_at: InstantText | None
    failing_since: InstantText | None
    paused_until: InstantText | None
    public_keys: list[str]
    filter: dict[str, Any] | None
    headers: dict[str, str]
    metadata: dict[str, str]
    ordering: Literal["none", "key"]
    content_mode: Literal["standard", "cloudevents"]
    rate_per_second: float | None
    in_flight_cap: int | None
    created_at: InstantText


class EndpointWithSecret(EndpointShown):
    """An endpoint with its new signing secret, which is shown this once; one of ed25519 has none to show."""

    secret: str | None = Field(repr=False)


def shown(endpoint: Endpoint) -> EndpointShown:
    """Return what is shown of an endpoint."""
    return EndpointShown(**_fields(endpoint))


def shown_with_secret(endpoint: Endpoint) -> EndpointWithSecret:
    """Return an endpoint that was made or rotated just now."""
    return EndpointWithSecret(**_fields(endpoint), secret=endpoint.secret)


def _fields(endpoint: Endpoint) -> dict[str, Any]:
    options = endpoint.options
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "topics": list(endpoint.topics),
        "description": endpoint.description,
        "is_enabled": endpoint.is_enabled,
        "disabled_reason": endpoint.disabled_reason,
        "disabled_at": endpoint.disabled_at,
        "failing_since": endpoint.failing_since,
        "paused_until": endpoint.paused_until,
        "public_keys": list(endpoint.public_keys),
        "filter": options.payload_filter,
        "headers": dict(options.headers),
        "metadata": dict(options.metadata),
        "ordering": options.ordering,
        "content_mode": options.content_mode,
        "rate_per_second": options.rate_per_second,
        "in_flight_cap": options.in_flight_cap,
        "created_at": endpoint.created_at,
    }
