"""The loopback subscriber: what it verifies, what it counts, and that it never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from standardwebhooks.webhooks import Webhook

from svc_infra.exceptions import SvcInfraError
from svc_infra.simulation.receiver import Ledger, ReceiverProcess, ReceiverProtocol, ReceiverStats

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def delivery(
    webhook_id: str = "msg_1",
    body: bytes = b'{"type":"billing.invoice.created","timestamp":"1997-01-01T00:00:00Z","data":{}}',
    *,
    path: str = "/",
    secret: str = SECRET,
    age: timedelta = timedelta(0),
    **changed: str,
) -> bytes:
    """A signed request as it goes over the wire; ``changed`` replaces headers after signing."""
    at = datetime.now(UTC) - age
    headers = {
        "Webhook-Id": webhook_id,
        "Webhook-Timestamp": str(int(at.timestamp())),
        "Webhook-Signature": Webhook(secret).sign(webhook_id, at, body.decode("latin-1")),
        "Content-Length": str(len(body)),
    }
    headers |= {name.replace("_", "-").title(): value for name, value in changed.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode() + body


class Wire:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True


class Connection:
    """A connection to a receiver in this process."""

    def __init__(self, secrets: dict[str, str] | None = None) -> None:
        self.ledger = Ledger(secrets or {"/": SECRET})
        self.wire = Wire()
        self.protocol = ReceiverProtocol(self.ledger)
        self.protocol.connection_made(cast(asyncio.Transport, self.wire))

    def send(self, data: bytes) -> list[int]:
        """Let ``data`` arrive and return the status codes of the answers to it."""
        before = len(self.wire.written)
        self.protocol.data_received(data)
        answers = self.wire.written[before:].decode().split("HTTP/1.1 ")[1:]
        return [int(answer[:3]) for answer in answers]

    @property
    def stats(self) -> ReceiverStats:
        return self.ledger.stats()


def test_a_delivery_signed_with_the_secret_is_verified_however_old_the_event_is() -> None:
    connection = Connection()
    assert connection.send(delivery()) == [204]
    assert connection.stats == ReceiverStats(
        connections=1, received=1, verified=1, distinct_ids=1, topics={"billing.invoice.created": 1}
    )


@pytest.mark.parametrize(
    "request_bytes",
    [
        delivery(secret=OTHER_SECRET),
        delivery(webhook_id="msg_2", webhook_id_="msg_1").replace(b"msg_2", b"msg_3"),
        delivery().replace(b"created", b"creatEd"),
        delivery(webhook_signature="no-comma"),
        delivery(webhook_signature="v1,!"),
        delivery(webhook_timestamp="yesterday"),
        delivery(webhook_id=""),
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        delivery(body=b"\xff\xfe"),
        delivery(body=b"signed, but no JSON"),
    ],
)
def test_a_delivery_that_does_not_verify_is_counted_and_answered_with_401(request_bytes: bytes) -> None:
    connection = Connection()
    assert connection.send(request_bytes) == [401]
    assert connection.stats == ReceiverStats(connections=1, received=1, failed=1)
    assert connection.send(delivery()) == [204]


def test_an_old_attempt_does_not_verify() -> None:
    assert Connection().send(delivery(age=timedelta(seconds=310))) == [401]


def test_repeated_ids_are_duplicates_and_a_changed_body_is_noticed() -> None:
    connection = Connection()
    for _ in range(3):
        connection.send(delivery("msg_1", b'{"type":"a.b"}'))
    connection.send(delivery("msg_2", b'{"type":"a.b"}'))
    assert (connection.stats.duplicates, connection.stats.changed_bodies) == (2, 0)
    connection.send(delivery("msg_1", b'{"type":"a.c"}'))
    stats = connection.stats
    assert (stats.verified, stats.distinct_ids, stats.duplicates, stats.changed_bodies) == (5, 2, 3, 1)
    assert stats.topics == {"a.b": 4, "a.c": 1}


def test_each_path_has_its_own_secret_and_another_path_is_not_found() -> None:
    connection = Connection({"/a": SECRET, "/b": OTHER_SECRET})
    assert connection.send(delivery(path="/a")) == [204]
    assert connection.send(delivery(path="/b", secret=OTHER_SECRET)) == [204]
    assert connection.send(delivery(path="/b")) == [401]
    assert connection.send(delivery(path="/c")) == [404]
    assert (connection.stats.verified, connection.stats.failed) == (2, 2)


def test_pipelined_requests_are_answered_in_their_order() -> None:
    connection = Connection()
    together = delivery("msg_1") + delivery("msg_2", secret=OTHER_SECRET) + delivery("msg_3")
    assert connection.send(together + delivery("msg_4")[:-5]) == [204, 401, 204]
    assert connection.send(delivery("msg_4")[-5:]) == [204]


def test_a_request_that_arrives_byte_by_byte_is_put_together() -> None:
    connection = Connection()
    answers = [connection.send(bytes([byte])) for byte in delivery()]
    assert answers == [[]] * (len(answers) - 1) + [[204]]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_plain_post_is_refused_and_the_connection_closed(request_bytes: bytes) -> None:
    connection = Connection()
    assert connection.send(request_bytes + delivery()) == [400]
    assert connection.wire.closed
    assert connection.stats.received == 0


@pytest.fixture
def receiver() -> Iterator[ReceiverProcess]:
    with ReceiverProcess({"/hook": SECRET}) as process:
        yield process


def connect(url: str) -> socket.socket:
    host, port = url.split("/")[2].split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def test_the_process_serves_on_loopback_and_tells_what_it_saw(receiver: ReceiverProcess) -> None:
    assert receiver.url("/hook").startswith("http://127.0.0.1:")
    assert receiver.stats() == ReceiverStats()
    with connect(receiver.url()) as client:
        for number in range(3):
            client.sendall(delivery(f"msg_{number}", path="/hook"))
            assert client.recv(100).startswith(b"HTTP/1.1 204 ")
    stats = receiver.stats()
    assert (stats.connections, stats.verified, stats.distinct_ids) == (1, 3, 3)


def test_the_process_ends_when_it_is_stopped(receiver: ReceiverProcess) -> None:
    with connect(receiver.url()) as client:
        receiver.stop()
        assert client.recv(1) == b""
    receiver.stop()
    with pytest.raises(SvcInfraError, match="start"):
        receiver.stats()


def test_the_process_ends_when_its_parent_is_killed() -> None:
    program = (
        "import sys\n"
        "from svc_infra.simulation.receiver import ReceiverProcess\n"
        f"receiver = ReceiverProcess({{'/': {SECRET!r}}})\n"
        "receiver.start()\n"
        "print(receiver.url(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        with connect(parent.stdout.readline()) as client:
            client.sendall(delivery())
            assert client.recv(100).startswith(b"HTTP/1.1 204 ")
            os.kill(parent.pid, signal.SIGKILL)
            assert client.recv(1) == b""  # the child's sockets are closed: it is gone


def test_questions_to_a_process_that_died_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(SvcInfraError, match="ended"):
        ReceiverProcess({"/": SECRET}).start()
