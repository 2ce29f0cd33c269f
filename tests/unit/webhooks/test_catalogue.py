"""What can be published: known topics with payloads that fit, and the documents made of them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import BaseModel

from svc_infra.application import Application
from svc_infra.db.outbox import InMemoryOutboxStore
from svc_infra.exceptions import InvalidPayload, InvalidTopic
from svc_infra.runtime import catalogue
from svc_infra.webhooks.catalogue import TopicCatalogue
from svc_infra.webhooks.service import InMemoryWebhookSubscriptions, WebhookService


class Line(BaseModel):
    sku: str


class OrderPaid(BaseModel):
    order_id: str
    lines: list[Line] = []


EXAMPLE = {"order_id": "o1", "lines": [{"sku": "a"}]}


@pytest.fixture
def topics() -> TopicCatalogue:
    topics = TopicCatalogue()
    topics.add("shop.order.paid", OrderPaid, description="An order was paid.", example=EXAMPLE, version=2)
    return topics


def service(topics: TopicCatalogue | None) -> tuple[WebhookService, InMemoryOutboxStore]:
    outbox = InMemoryOutboxStore()
    made = WebhookService(outbox=outbox, subs=InMemoryWebhookSubscriptions(), topics=topics)
    return made, outbox


def test_an_unknown_topic_is_refused_at_publish_and_the_nearest_one_named(topics: TopicCatalogue) -> None:
    webhooks, outbox = service(topics)
    with pytest.raises(InvalidTopic, match=r"nearest one is 'shop\.order\.paid'"):
        webhooks.publish("shop.order.payd", EXAMPLE)
    assert outbox.messages == []


@pytest.mark.parametrize(
    ("payload", "fault"),
    [({}, "order_id: Field required"), ({"order_id": "o1", "lines": [{}]}, r"lines\.0\.sku: Field required")],
)
def test_a_payload_that_does_not_fit_is_refused_at_publish(
    topics: TopicCatalogue, payload: dict[str, Any], fault: str
) -> None:
    webhooks, outbox = service(topics)
    with pytest.raises(InvalidPayload, match=fault):
        webhooks.publish("shop.order.paid", payload)
    assert outbox.messages == []


def test_what_fits_is_published_and_without_a_catalogue_everything_is(topics: TopicCatalogue) -> None:
    webhooks, outbox = service(topics)
    webhooks.publish("shop.order.paid", EXAMPLE)
    anything, other_outbox = service(None)
    anything.publish("made.up", {"n": 1})
    assert (len(outbox.messages), len(other_outbox.messages)) == (1, 1)


def test_an_example_that_does_not_fit_is_refused_and_so_is_a_second_registration(
    topics: TopicCatalogue,
) -> None:
    with pytest.raises(InvalidPayload, match="order_id"):
        topics.add("shop.order.sent", OrderPaid, description="Sent.", example={})
    with pytest.raises(InvalidTopic, match="registered already"):
        topics.add("shop.order.paid", OrderPaid, description="Again.", example=EXAMPLE)
    with pytest.raises(InvalidTopic):
        topics.add("no topic", OrderPaid, description="No.", example=EXAMPLE)


def test_the_json_schema_is_of_the_whole_body(topics: TopicCatalogue) -> None:
    schema = topics.json_schema("shop.order.paid")
    assert schema["properties"]["type"] == {"const": "shop.order.paid"}
    assert schema["properties"]["data"]["required"] == ["order_id"]
    assert schema["examples"][0]["data"] == EXAMPLE
    assert (schema["x-version"], schema["description"]) == (2, "An order was paid.")
    # References inside the data resolve from the root of the document.
    assert schema["properties"]["data"]["properties"]["lines"]["items"] == {"$ref": "#/$defs/Line"}
    assert schema["$defs"]["Line"]["required"] == ["sku"]
    with pytest.raises(InvalidTopic):
        topics.json_schema("made.up")


def test_the_openapi_section_has_an_operation_for_each_topic(topics: TopicCatalogue) -> None:
    section = topics.openapi_webhooks()
    assert set(section) == {"shop.order.paid"}
    operation = section["shop.order.paid"]["post"]
    assert [one["name"] for one in operation["parameters"]] == [
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ]
    assert "schema" in operation["requestBody"]["content"]["application/json"]


def test_a_worker_knows_billings_topics_its_own_and_the_applications(topics: TopicCatalogue) -> None:
    application = Application(topics=topics)
    assert [topic.topic for topic in catalogue(application)] == [
        "billing.invoice.created",
        "billing.quota.threshold",
        "billing.usage_aggregated",
        "shop.order.paid",
        "webhooks.delivery.exhausted",
        "webhooks.endpoint.disabled",
        "webhooks.test",
    ]
    theirs = TopicCatalogue()
    theirs.add("billing.invoice.created", OrderPaid, description="Mine.", example=EXAMPLE)
    with pytest.raises(InvalidTopic, match="registered twice"):
        catalogue(Application(topics=theirs))


def test_the_references_of_a_nested_model_lead_somewhere_in_both_documents(topics: TopicCatalogue) -> None:
    for whole in (topics.json_schema("shop.order.paid"), {"webhooks": topics.openapi_webhooks()}):
        (pointer,) = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(whole)))
        found: Any = whole
        for part in pointer.split("/"):
            found = found[part.replace("~1", "/")]
        assert found["title"] == "Line"


class Parcel(BaseModel):
    pieces: int


def test_what_would_only_fit_after_a_conversion_does_not_fit() -> None:
    topics = TopicCatalogue()
    topics.add("shop.parcel.sent", Parcel, description="A parcel was sent.", example={"pieces": 1})
    with pytest.raises(InvalidPayload, match="pieces"):
        topics.require("shop.parcel.sent", {"pieces": "1"})
