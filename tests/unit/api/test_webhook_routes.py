"""Webhooks over HTTP: endpoints and their secrets, deliveries, replays and the event catalogue."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel
from sqlalchemy import select

from svc_infra.api.fastapi.billing.setup import add_billing
from svc_infra.api.fastapi.dependencies import Principal
from svc_infra.api.fastapi.webhooks.setup import add_webhook_routes
from svc_infra.api.models import IdempotentAnswerRow
from svc_infra.exceptions import InvalidSettings
from svc_infra.webhooks.catalogue import TopicCatalogue
from svc_infra.webhooks.delivery import Answer
from svc_infra.webhooks.models import EndpointRow
from svc_infra.webhooks.replay import advance_replay
from svc_infra.webhooks.sealing import KeyRing, new_sealing_key
from svc_infra.webhooks.signature import verify
from tests.contract.webhook_shop import NOON, TOPIC, URL, Factory, Shop
from tests.unit.api.asking import client_of

NEW = {"url": URL, "topics": ["shop.*"]}
SECRET = "whsec_" + "c2VjcmV0LWNhbmFyeS1vZi0zMi1ieXRlcy1vci1tb3Jl"
SCOPES = frozenset({"webhooks.read", "webhooks.write"})


class Order(BaseModel):
    n: int


@pytest.fixture
def shop(session_factory: Factory) -> Shop:
    return Shop(session_factory, keys=KeyRing.parse(new_sealing_key("k1")), attempts=2)


@pytest.fixture
def app(shop: Shop) -> FastAPI:
    async def caller(request: Request) -> Principal:
        return Principal(request.headers.get("X-Tenant", "t1"), SCOPES, name="ann")

    topics = TopicCatalogue()
    topics.add(TOPIC, Order, description="An order was paid.", example={"n": 1})
    app = FastAPI()
    add_webhook_routes(
        app,
        session_factory=shop.factory,
        principal=caller,
        clock=shop.clock,
        rules=shop.rules,
        topics=topics,
    )
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        client.base_url = httpx.URL("http://app.test/_webhooks")
        yield client


async def made(client: httpx.AsyncClient, **more: Any) -> Any:
    answer = await client.post("/endpoints", json=NEW | more)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_an_endpoint_lives_by_http(client: httpx.AsyncClient, shop: Shop) -> None:
    added = await made(
        client, headers={"X-Token": "pass-canary", "X-Shop": "1"}, metadata={"team": "books"}, description="d"
    )
    path = f"/endpoints/{added['id']}"
    assert added["secret"].startswith("whsec_")
    assert added["headers"] == {"X-Token": "hidden", "X-Shop": "hidden"}
    shown = (await client.get(path)).json()
    assert shown == {name: value for name, value in added.items() if name != "secret"}
    change = {"headers": {"x-shop": None, "X-New": "2"}, "metadata": {"team": None}, "in_flight_cap": 3}
    changed = (await client.patch(path, json=change)).json()
    assert changed == shown | {
        "headers": {"X-Token": "hidden", "X-New": "hidden"},
        "metadata": {},
        "in_flight_cap": 3,
    }
    assert (await client.patch(path, json={"in_flight_cap": None})).json()["in_flight_cap"] is None

    assert (await client.post(f"{path}/disable", json={"reason": "moving"})).json()["is_enabled"] is False
    await shop.publish({"n": 1}, tenant_id="t1")
    await shop.service.deliver_due()
    enabled = (await client.post(f"{path}/enable", json={"replay_held": True})).json()
    assert (enabled["replayed"], enabled["endpoint"]["is_enabled"]) == (1, True)
    await shop.service.deliver_due()
    [sent] = shop.sender.requests
    assert (sent.headers["x-token"], sent.headers["x-new"]) == ("pass-canary", "2")
    verify(sent.headers, sent.body, [added["secret"]])

    acts = (await client.get(f"{path}/acts")).json()["items"]
    assert [(act["actor"], act["action"]) for act in acts] == [
        ("ann", action) for action in ("enable", "disable", "change", "change", "add")
    ]
    assert (await client.delete(path)).json() == {"id": added["id"], "given_up": 0}
    for method in ("GET", "DELETE"):
        assert (await client.request(method, path)).status_code == 404
    assert (await client.get("/endpoints")).json() == {"items": [], "next_cursor": None}


async def test_secrets_are_listed_without_values_rotated_and_ended_early(client: httpx.AsyncClient) -> None:
    endpoint = await made(client)
    path = f"/endpoints/{endpoint['id']}/secrets"
    rotated = (await client.post(f"{path}/rotate", json={"secret": SECRET})).json()
    assert rotated["secret"] == SECRET
    listed = await client.get(path)
    assert [(one["version"], one["expires_at"] is None) for one in listed.json()["items"]] == [
        (2, True),
        (1, False),
    ]
    assert SECRET not in listed.text
    newest = await client.delete(f"{path}/2")
    assert (newest.status_code, newest.json()["type"]) == (422, "urn:svc-infra:problem:invalid-secret")
    assert [one["version"] for one in (await client.delete(f"{path}/1")).json()["items"]] == [2]
    assert (await client.delete(f"{path}/1")).status_code == 404
    asymmetric = await made(client, signing="v1a")
    assert (asymmetric["secret"], len(asymmetric["public_keys"])) == (None, 1)


async def test_deliveries_are_found_by_what_they_are_and_sent_again(
    client: httpx.AsyncClient, shop: Shop
) -> None:
    endpoint = await made(client, topics=["*"])
    other = await made(client, url="https://other.example/", topics=["shop.b"])
    shop.sender.answers[URL] = [Answer(500, None, b"no room", 1)] * 2
    await shop.publish({"n": 1}, tenant_id="t1")
    for _ in range(2):
        await shop.service.deliver_due()
        shop.clock.set(NOON.replace(hour=13))
    await shop.publish({"n": 2}, {"n": 3}, topic="shop.b", tenant_id="t1")
    await shop.service.deliver_due()

    async def found(**chosen: Any) -> list[Any]:
        return list((await client.get("/deliveries", params=chosen)).json()["items"])

    assert len(await found()) == 5
    assert len(await found(topic="shop.b", endpoint_id=other["id"])) == 2
    [dead] = await found(state="dead")
    assert (dead["topic"], dead["endpoint_id"], dead["attempts"]) == (TOPIC, endpoint["id"], 2)
    shown = (await client.get(f"/deliveries/{dead['id']}")).json()
    body = json.loads(shown.pop("body"))
    assert (shown, body["type"]) == (dead, dead["topic"])
    attempts = (await client.get(f"/deliveries/{dead['id']}/attempts")).json()["items"]
    assert [(one["attempt"], one["status_code"], one["detail"]) for one in attempts] == [
        (1, 500, "no room"),
        (2, 500, "no room"),
    ]
    again = await client.post(f"/deliveries/{dead['id']}/redeliver")
    assert (again.status_code, again.json()["state"]) == (202, "pending")
    await shop.service.deliver_due()
    assert (await client.get(f"/deliveries/{dead['id']}")).json()["state"] == "delivered"
    await client.post(f"/endpoints/{endpoint['id']}/disable", json={"reason": "r"})
    refused = await client.post(f"/deliveries/{dead['id']}/redeliver")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:svc-infra:problem:endpoint-not-ready")


async def test_lists_go_on_where_they_were_and_no_cursor_is_of_another_list(
    client: httpx.AsyncClient, shop: Shop
) -> None:
    ids = [(await made(client))["id"] for _ in range(5)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await client.get("/endpoints", params={"limit": "2"} | cursor)).json()
        seen += [endpoint["id"] for endpoint in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == ids
    for path, headers in (("/deliveries", {}), ("/endpoints", {"X-Tenant": "t2"})):
        answer = await client.get(path, params=cursor, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:svc-infra:problem:invalid-cursor")


async def test_a_replay_is_started_followed_and_cancelled(client: httpx.AsyncClient, shop: Shop) -> None:
    await shop.publish({"n": 1}, {"n": 2}, tenant_id="t1")
    await shop.service.deliver_due()
    endpoint = await made(client)
    path = f"/endpoints/{endpoint['id']}/replays"
    answer = await client.post(path, json={"since": "2025-01-01T00:00:00Z", "states": ["missing"]})
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    while await shop.do(advance_replay, now=shop.clock.now()):
        shop.clock.set(NOON.replace(hour=13))
    replay = (await client.get(f"/replays/{answer.json()['id']}")).json()
    assert (replay["state"], replay["queued"]) == ("completed", 2)
    await shop.service.deliver_due()
    assert sorted(one["n"] for one in shop.sender.data()) == [1, 2]
    second = (await client.post(path)).json()
    assert (await client.post(f"/replays/{second['id']}/cancel")).json()["state"] == "cancelled"
    listed = (await client.get("/replays", params={"endpoint_id": endpoint["id"]})).json()["items"]
    assert [(one["id"], one["state"]) for one in listed] == [
        (second["id"], "cancelled"),
        (replay["id"], "completed"),
    ]


async def test_a_test_event_is_delivered(client: httpx.AsyncClient, shop: Shop) -> None:
    endpoint = await made(client)
    answer = await client.post(f"/endpoints/{endpoint['id']}/test")
    await shop.service.deliver_due()
    [sent] = shop.sender.requests
    assert (answer.status_code, answer.json()) == (202, {"message_id": sent.headers["webhook-id"]})
    assert json.loads(sent.body)["data"] == {"endpoint_id": endpoint["id"], "sent_by": "ann"}


@pytest.mark.sqlite_only
async def test_the_catalogue_is_listed_and_stands_in_the_document(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    listed = (await client.get("/topics")).json()["items"]
    names = [topic["topic"] for topic in listed]
    assert {TOPIC, "billing.invoice.created", "webhooks.test"} <= set(names)
    one = (await client.get(f"/topics/{TOPIC}")).json()
    assert one in listed
    assert one["json_schema"]["properties"]["data"]["properties"] == {"n": {"title": "N", "type": "integer"}}
    assert (await client.get("/topics/no.such")).status_code == 404
    document = app.openapi()
    assert document["openapi"].startswith("3.1")
    assert sorted(document["webhooks"]) == sorted(names)
    operation = document["webhooks"][TOPIC]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["title"] == TOPIC


async def test_no_secret_is_shown_twice_kept_open_or_logged(
    client: httpx.AsyncClient, shop: Shop, capfd: pytest.CaptureFixture[str]
) -> None:
    body = NEW | {"secret": SECRET, "headers": {"X-Token": "pass-canary"}}
    key = {"Idempotency-Key": "k"}
    first = await client.post("/endpoints", json=body, headers=key)
    again = await client.post("/endpoints", json=body, headers=key)
    assert (again.status_code, again.content) == (201, first.content)  # the caller lost the answer: again
    assert again.headers["Idempotency-Replayed"] == "true"
    path = f"/endpoints/{first.json()['id']}"
    answers = [
        await client.get("/endpoints"),
        await client.get(path),
        await client.get(f"{path}/acts"),
        await client.get(f"{path}/secrets"),
        await client.patch(path, json={"description": "x"}),
        await client.post("/endpoints", json=body | {"url": f"https://ann:{SECRET}@x.example/"}),
        await client.post("/endpoints", json=body | {"topics": []}),
        await client.post("/endpoints", json=body | {"secret": f"{SECRET}-not-base64!"}),
        await client.post("/endpoints", json=body | {"headers": {"Host": "pass-canary"}}),
        await client.post(f"{path}/secrets/rotate", json={"secret": SECRET, "overlap_seconds": -1}),
    ]
    assert {answer.status_code for answer in answers} == {200, 422}
    async with shop.factory() as session:
        kept = (await session.scalars(select(IdempotentAnswerRow))).one()
        row = (await session.execute(select(EndpointRow.__table__))).one()
    out, err = capfd.readouterr()
    for text in (*(answer.text for answer in answers), repr(kept.body), repr(row), out, err):
        assert SECRET.removeprefix("whsec_") not in text
        assert "pass-canary" not in text


@pytest.mark.sqlite_only
async def test_an_answer_whose_seal_does_not_open_is_not_made_up(
    client: httpx.AsyncClient, app: FastAPI, shop: Shop
) -> None:
    key = {"Idempotency-Key": "k"}
    await client.post("/endpoints", json=NEW, headers=key)
    app.state.svc_infra.secret_keys = KeyRing.parse(new_sealing_key("k2"))
    again = await client.post("/endpoints", json=NEW, headers=key)
    assert (again.status_code, again.json()["type"]) == (409, "urn:svc-infra:problem:answer-sealed")


@pytest.mark.sqlite_only
async def test_unless_rules_are_given_the_settings_say_which_urls_are_let_in(
    session_factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = FastAPI()
    principal = Principal("t1", SCOPES)
    add_billing(app, session_factory=session_factory, principal=lambda request: principal)
    add_webhook_routes(app)
    async with client_of(app) as client:
        for url in ("http://hooks.example.com/", "https://127.0.0.1/", "https://hooks.example.com:22/"):
            answer = await client.post("/_webhooks/endpoints", json=NEW | {"url": url})
            assert (answer.status_code, answer.json()["type"]) == (
                422,
                "urn:svc-infra:problem:invalid-endpoint",
            )
        assert (await client.post("/_webhooks/endpoints", json=NEW)).status_code == 201
    with pytest.raises(InvalidSettings, match="once"):
        add_webhook_routes(app)


@pytest.mark.sqlite_only
def test_parts_of_one_application_share_their_database(session_factory: Factory) -> None:
    app = FastAPI()
    add_webhook_routes(app, session_factory=session_factory)
    with pytest.raises(InvalidSettings, match="another session_factory"):
        add_billing(app, session_factory=Factory())
