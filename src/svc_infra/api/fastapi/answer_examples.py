"""Examples of answers in the OpenAPI document: made from the schema of an answer, field by field.

A field's example is that of its own schema, its first allowed value, or what stands here under its name. What
is usually not there, like the end of what goes on, is null where it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

_OURS = ("billing_", "webhooks_", "jobs_", "livez", "readyz")
_INSTANT = "2025-01-31T12:00:00Z"

# By the name of a field and the type of its value; a model's own come first.
_VALUES: dict[tuple[str, str], Any] = {
    **{
        (name, "string"): text
        for name, text in {
            "act": "queue.pause",
            "action": "rotate",
            "actor": "svc_key_1",
            "amount": "12.5",
            "body": '{"type":"shop.order.paid","timestamp":"2025-01-31T12:00:00Z","data":{"order_id":"o-1"}}',
            "currency": "usd",
            "cycle": "calendar",
            "description": "1000 tokens",
            "detail": "idempotency_key: String should have at least 1 character",
            "effective_on": "2025-01-01",
            "expression": "5 0 * * *",
            "fingerprint": "5d41402abc4b2a76",
            "flat_amount": "0",
            "granularity": "day",
            "idempotency_key": "req-42",
            "invoice_status": "finalized",
            "job": "shop.report",
            "key": "tokens",
            "kind": "usage",
            "last_error": "TimeoutError: the handler took longer than its 60 s",
            "last_outcome": "success",
            "message_id": "msg_0194b1e0000070008000000000000001",
            "metric": "tokens",
            "model": "per_unit",
            "name": "shop.report",
            "outcome": "success",
            "pattern": "TimeoutError: the handler took longer than its # s",
            "day_end": "2025-02-01T00:00:00Z",
            "day_start": "2025-01-31T00:00:00Z",
            "period_end": "2025-02-01T00:00:00Z",
            "period_start": "2025-01-01T00:00:00Z",
            "window_end": "2025-02-01T00:00:00Z",
            "window_start": "2025-01-31T00:00:00Z",
            "plan": "pro",
            "provider_invoice_id": "in_1",
            "public_key": "whpk_1",
            "quantity": "1000",
            "queue": "default",
            "reason": "recorded twice",
            "recurring_interval": "month",
            "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "series": "A",
            "states": "dead",
            "subject": "default",
            "tenant_id": "acme",
            "timezone": "UTC",
            "topic": "shop.order.paid",
            "topics": "shop.order.*",
            "total": "1000",
            "trigger": "scheduled",
            "unit_amount": "0.002",
            "url": "https://shop.example/hook",
            "used": "12.5",
            "value": "gold",
        }.items()
    },
    **{
        (name, "integer"): number
        for name, number in {
            "alert_percents": 80,
            "amount": 200,
            "credited_amount": 0,
            "duration_ms": 87,
            "index": 0,
            "limit": 1_000_000,
            "max_attempts": 20,
            "priority": 0,
            "rescues": 0,
            "status_code": 204,
            "total_amount": 200,
            "conflict": 0,
            "duplicate": 0,
            "invalid": 0,
            "given_up": 0,
        }.items()
    },
    ("counts", "object"): {"completed": 12, "discarded": 1},
    ("payload", "object"): {"day": "2025-01-31"},
    ("metadata", "object"): {"model": "gpt"},
    ("json_schema", "object"): {"type": "object"},
    ("example", "object"): {"order_id": "o-1"},
    ("terms", "object"): {"unit_amount": "0.002"},
    ("price", "object"): {"model": "per_unit", "unit_amount": "0.002"},
    ("rate_per_second", "number"): 50,
}
_OF_MODELS: dict[tuple[str, str], Any] = {
    ("Delivery", "state"): "delivered",
    ("DeliveryWithBody", "state"): "delivered",
    ("InvoiceBody", "kind"): "regular",
    ("InvoiceBody", "status"): "finalized",
    ("TierBody", "amount"): "200",
    ("TraceBody", "correction"): None,
    ("TraceBody", "state"): "billed",
    ("PlanBody", "key"): "pro",
    ("PlanBody", "name"): "Pro",
    ("PlanBody", "description"): "For teams",
    ("Attempt", "detail"): None,
    ("EntitlementBody", "value"): None,
    ("PlanEntitlementBody", "value"): None,
    ("UsageResult", "detail"): None,
}
_USUALLY_NULL = frozenset(
    "adjusts_invoice_id closed_at closed_reason disabled_at disabled_reason ended_at ended_on expires_at "
    "failing_since filter finalize_after group_id hold_reason in_flight_cap last_error lease_until "
    "next_cursor paused_at paused_until public_key public_keys rate_per_second replaces_id trial_ends_at "
    "waits_for replacement_id provider_invoice_id corrected_by".split()
)


def with_examples(openapi: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Return what makes the document with an example for each answer of ours that has a body.

    Not where the routes are declared, for the framework leaves out what is null there.
    """

    def document() -> dict[str, Any]:
        made = openapi()
        schemas = made.get("components", {}).get("schemas", {})
        for content in _answers(made):
            content.setdefault("example", _example(content["schema"], schemas, "", ""))
        return made

    return document


def _answers(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document.get("paths", {}).values():
        for operation in path.values():
            if not str(operation.get("operationId", "")).startswith(_OURS):
                continue
            for status, answer in operation["responses"].items():
                if status.startswith("2"):
                    yield from answer.get("content", {}).values()


def _example(schema: dict[str, Any], known: dict[str, Any], name: str, model: str) -> Any:
    if "$ref" in schema:
        title = schema["$ref"].rpartition("/")[2]
        return _example(known[title], known, name, title)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if (name, schema.get("type")) in _VALUES:
        return _VALUES[name, schema["type"]]
    if schema.get("examples"):
        return schema["examples"][0]
    if "anyOf" in schema:
        return _first_of(schema["anyOf"], known, name, model)
    match schema.get("type"):
        case "object" if "properties" in schema:
            return {key: _field(key, each, known, model) for key, each in schema["properties"].items()}
        case "array":
            return [_example(schema["items"], known, name, model)]
        case "null":
            return None
        case kind:
            return _plain(str(kind), schema)


def _field(name: str, schema: dict[str, Any], known: dict[str, Any], model: str) -> Any:
    if (model, name) in _OF_MODELS:
        return _OF_MODELS[model, name]
    return _example(schema, known, name, model)


def _first_of(choices: list[dict[str, Any]], known: dict[str, Any], name: str, model: str) -> Any:
    if name in _USUALLY_NULL and {"type": "null"} in choices:
        return None
    return _example(choices[0], known, name, model)


def _plain(kind: str, schema: dict[str, Any]) -> Any:
    """Return an example of what has no name here."""
    is_instant = schema.get("format") == "date-time"
    text = _INSTANT if is_instant else "0194b1e0-0000-7000-8000-000000000001"
    return {"string": text, "integer": 1, "number": 1.0, "boolean": False, "object": {}}[kind]
