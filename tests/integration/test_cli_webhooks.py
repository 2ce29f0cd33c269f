"""The commands about webhooks, on a real database and, where it is about receiving, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from svc_infra.cli import cli
from svc_infra.cli.endpoints import endpoints
from svc_infra.cli.listening import make_receiver
from svc_infra.cli.webhooks import webhooks
from svc_infra.config import Settings
from svc_infra.db.migration import migrate
from svc_infra.db.session import make_engine
from svc_infra.exceptions import InvalidEndpoint, InvalidSettings, NotFound
from svc_infra.runtime import Runtime
from svc_infra.testing.webhooks import loopback_sender
from svc_infra.webhooks.delivery import Answer, OutgoingRequest
from svc_infra.webhooks.sealing import new_sealing_key
from svc_infra.webhooks.signature import new_secret, sign

PAYLOAD = {
    "tenant_id": "t1",
    "invoice_id": "i1",
    "period_start": "2025-01-01T00:00:00Z",
    "period_end": "2025-02-01T00:00:00Z",
    "currency": "usd",
}


def run(url: str, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, [*arguments, "--database-url", url])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def read_json(url: str, *arguments: str) -> Any:
    result = run(url, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def url(empty_database_url: str) -> str:
    async def bring_up() -> None:
        engine = make_engine(empty_database_url)
        await migrate(engine)
        await engine.dispose()

    asyncio.run(bring_up())
    return empty_database_url


class Refusing:
    """An endpoint that always answers 500."""

    async def send(self, request: OutgoingRequest) -> Answer:
        return Answer(500, None, b"out of order", 3)


@asynccontextmanager
async def worker(url: str) -> AsyncIterator[Runtime]:
    engine = make_engine(url)
    try:
        yield Runtime(Settings(), engine, Refusing())
    finally:
        await engine.dispose()


def publish_and_deliver(url: str) -> None:
    async def work() -> None:
        async with worker(url) as runtime:
            async with runtime.session_factory.begin() as session:
                runtime.webhooks.publish("billing.invoice.created", PAYLOAD, tenant_id="t1", session=session)
            await runtime.webhooks.deliver_due()

    asyncio.run(work())


def test_from_an_endpoint_to_its_attempts_and_back(url: str) -> None:
    added = read_json(
        url, "webhooks", "endpoints", "add", "https://example.com/", "--topic", "billing.*", "--tenant", "t1"
    )
    publish_and_deliver(url)
    (delivery,) = read_json(url, "webhooks", "deliveries", "--state", "pending", "--tenant", "t1")
    assert (delivery["topic"], delivery["attempts"], delivery["last_outcome"]) == (
        "billing.invoice.created",
        1,
        "server_error",
    )
    assert read_json(url, "webhooks", "deliveries", "--tenant", "t2") == []
    waiting = {one["waits_for"]: one["count"] for one in read_json(url, "webhooks", "backlog")}
    assert {reason: count for reason, count in waiting.items() if count} == {"retry": 1}
    (attempt,) = read_json(url, "webhooks", "deliveries", delivery["id"])
    assert (attempt["status_code"], attempt["detail"]) == (500, "out of order")
    assert run(url, "webhooks", "redeliver", delivery["id"], "--actor", "ann").exit_code == 0
    message = read_json(url, "webhooks", "test", added["id"])
    assert message["message_id"].startswith("msg_")
    replay = read_json(
        url, "webhooks", "replay", added["id"], "--since", "2025-01-01T00:00:00Z", "--state", "dead"
    )
    assert (replay["state"], replay["states"]) == ("running", ["dead"])
    (listed,) = read_json(url, "webhooks", "replays", "--cancel", replay["id"])
    assert listed["state"] == "cancelled"
    shown = read_json(url, "webhooks", "endpoints", "show", added["id"])
    assert [act["action"] for act in shown["acts"]] == ["cancel_replay", "replay", "test", "redeliver", "add"]
    assert shown["acts"][3]["actor"] == "ann"


def test_an_endpoint_is_disabled_and_enabled_and_what_was_held_is_sent(url: str) -> None:
    added = read_json(url, "endpoints", "add", "https://example.com/", "--topic", "*")
    assert "disabled" in run(url, "endpoints", "disable", added["id"], "--reason", "moving").stdout
    assert "already" in run(url, "endpoints", "disable", added["id"], "--reason", "moving").stdout
    publish_and_deliver(url)
    assert "disabled: moving" in run(url, "endpoints", "list").stdout
    assert "1 held" in run(url, "endpoints", "enable", added["id"], "--replay-held").stdout
    with pytest.raises(NotFound):
        run(url, "endpoints", "disable", "nowhere", "--reason", "x")


def test_every_command_about_webhooks_speaks_json() -> None:
    commands = {**webhooks.commands, **endpoints.commands}
    silent = {
        name
        for name, command in commands.items()
        if not isinstance(command, click.Group) and not any("--json" in each.opts for each in command.params)
    }
    assert silent == set()


def test_an_endpoint_is_changed_where_something_is_given_and_removed(url: str) -> None:
    added = read_json(
        *(
            url,
            "endpoints",
            "add",
            "https://example.com/",
            "--topic",
            "a.b",
            "--rate",
            "5",
            "--ordering",
            "key",
        ),
        *("--header", "authorization=Bearer abc", "--header", "x-team=books", "--filter", '{"plan": "gold"}'),
    )
    endpoint = ("endpoints", "change", added["id"])
    changed = read_json(
        url, *endpoint, "--url", "https://new.example/", "--label", "team=ops", "--in-flight", "2"
    )
    assert changed == {
        **{name: value for name, value in added.items() if name != "secret"},
        "url": "https://new.example/",
        "metadata": {"team": "ops"},
        "in_flight_cap": 2,
    }
    bare = read_json(url, *endpoint, "--filter", "null", "--rate", "0", "--drop-header", "X-Team")
    assert (bare["filter"], bare["rate_per_second"], list(bare["headers"])) == (None, None, ["authorization"])
    shown = read_json(url, "endpoints", "show", added["id"])
    assert shown["acts"][1]["detail"] == {"changed": ["url", "options"]}

    assert run(url, "endpoints", "remove", added["id"]).exit_code == 1  # asked, and nobody said yes
    assert read_json(url, "endpoints", "remove", added["id"], "--yes") == {"id": added["id"], "given_up": 0}
    assert read_json(url, "endpoints", "list") == []


def test_a_secret_given_on_standard_input_is_on_no_command_line(url: str) -> None:
    secret = new_secret()
    arguments = ["endpoints", "add", "https://example.com/", "--topic", "*", "--secret", "-", "--json"]
    result = CliRunner().invoke(cli, [*arguments, "--database-url", url], input=f"{secret}\n")
    assert json.loads(result.stdout)["secret"] == secret


def test_secrets_are_sealed_with_the_keys_of_a_file_and_rotated(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = read_json(url, "endpoints", "add", "https://example.com/", "--topic", "*")
    with pytest.raises(InvalidSettings, match="new-key"):
        run(url, "webhooks", "reseal")
    key_file = tmp_path / "keys"
    key_file.write_text(CliRunner().invoke(cli, ["webhooks", "new-key", "k1"]).stdout)
    monkeypatch.setenv("SVC__WEBHOOKS__SECRET_KEYS_FILE", str(key_file))
    assert "1 endpoints" in run(url, "webhooks", "reseal").stdout
    rotated = read_json(url, "webhooks", "rotate-secret", plain["id"], "--overlap-seconds", "60")
    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != plain["secret"]
    checks = {check["name"]: check["outcome"] for check in read_json(url, "doctor")}
    assert checks["webhook secrets"] == "ok"
    monkeypatch.setenv("SVC__WEBHOOKS__SECRET_KEYS", new_sealing_key("k2"))
    with pytest.raises(InvalidSettings, match="not both"):
        run(url, "webhooks", "reseal")


@pytest.mark.sqlite_only
def test_the_settings_decide_which_urls_an_endpoint_may_have(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("endpoints", "add", "http://127.0.0.1:9000/", "--topic", "*")
    for setting, value in [
        ("allow_http", "true"),
        ("allow_ports", "[9000]"),
        ("allow_networks", '["127.0.0.0/8"]'),
    ]:
        with pytest.raises(InvalidEndpoint, match=f"webhooks.{setting}"):
            run(url, *arguments)
        monkeypatch.setenv(f"SVC__WEBHOOKS__{setting.upper()}", value)
    assert run(url, *arguments).exit_code == 0


@pytest.mark.sqlite_only
def test_an_ed25519_endpoint_prints_its_public_key(url: str) -> None:
    shown = run(url, "endpoints", "add", "https://example.com/", "--topic", "*", "--signing", "v1a")
    assert "whpk_" in shown.stdout
    assert "whsk_" not in shown.output


def test_topics_are_listed_with_their_schemas() -> None:
    schemas = json.loads(CliRunner().invoke(cli, ["webhooks", "topics", "--json"]).stdout)
    assert schemas["billing.invoice.created"]["examples"][0]["data"]["currency"] == "usd"
    assert "webhooks.endpoint.disabled" in CliRunner().invoke(cli, ["webhooks", "topics"]).stdout


@pytest.mark.parametrize("is_forged", [False, True])
def test_a_received_body_is_verified(tmp_path: Path, is_forged: bool) -> None:
    secret, body = new_secret(), b'{"n":1}'
    timestamp = int(datetime.now(UTC).timestamp())
    file = tmp_path / "body"
    file.write_bytes(body + b" " * is_forged)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign("msg_1", timestamp, body, [secret]),
    }
    arguments = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    result = CliRunner().invoke(cli, ["webhooks", "verify", str(file), "--secret", secret, *arguments])
    assert result.exit_code == (1 if is_forged else 0), result.output
    assert ("refused" if is_forged else "verified") in result.output


async def test_the_development_receiver_shows_what_it_verified_and_what_it_refused() -> None:
    secret, seen = new_secret(), list[dict[str, Any]]()
    server = make_receiver(0, [secret], seen.append)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    sender = loopback_sender()
    try:
        body = b'{"type":"a.b","timestamp":"2025-01-01T00:00:00Z","data":{"n":1}}'
        timestamp = int(datetime.now(UTC).timestamp())
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign("msg_1", timestamp, body, [secret]),
        }
        address = f"http://127.0.0.1:{server.server_port}/hook"
        answers = [await sender.send(OutgoingRequest(address, headers, sent)) for sent in (body, body + b" ")]
    finally:
        await sender.aclose()
        server.shutdown()
        thread.join()
        server.server_close()
    assert [answer.status for answer in answers if isinstance(answer, Answer)] == [204, 401]
    assert [(one["path"], one["is_verified"]) for one in seen] == [("/hook", True), ("/hook", False)]
    assert (seen[0]["topic"], seen[0]["data"]) == ("a.b", {"n": 1})
