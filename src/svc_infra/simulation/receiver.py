"""A webhook subscriber on loopback that verifies every request with a library a stranger wrote.

The demo and the tests send to it and then ask what arrived: ``ReceiverProcess`` runs it in a process of its
own, so that the sender is measured against another core and not against itself. It verifies with the PyPI
package ``standardwebhooks``, which shares no code with our signer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, cast

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from svc_infra.exceptions import SvcInfraError

_MAX_HEAD_BYTES = 64 * 1024
_MAX_BODY_BYTES = 4 * 1024 * 1024

_ACCEPTED = b"HTTP/1.1 204 No Content\r\n\r\n"
_UNVERIFIED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
_UNKNOWN_PATH = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_MALFORMED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class ReceiverStats:
    """What a receiver has seen so far.

    ``received`` = ``verified`` + ``failed``. Of the verified ones, ``distinct_ids`` counts the webhook-ids,
    ``duplicates`` the deliveries whose id was there before, and ``changed_bodies`` those of the duplicates
    whose body was not the one that came first: it must stay 0. ``topics`` counts the verified deliveries by
    the ``type`` of their body.
    """

    connections: int = 0
    received: int = 0
    verified: int = 0
    failed: int = 0
    distinct_ids: int = 0
    duplicates: int = 0
    changed_bodies: int = 0
    topics: dict[str, int] = field(default_factory=dict)


class Ledger:
    """Verifies deliveries and counts them; keeps eight bytes of digest per id and per body, no text."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._webhooks = {path: Webhook(secret) for path, secret in secrets.items()}
        self._body_by_id: dict[int, int] = {}
        self._topics: Counter[str] = Counter()
        self._verified = self._failed = self._changed = 0
        self.connections = 0

    def accept(self, path: str, headers: dict[str, str], body: bytes) -> bytes:
        """Verify one delivery, count it, and return the HTTP answer to it."""
        webhook = self._webhooks.get(path)
        if webhook is None:
            self._failed += 1
            return _UNKNOWN_PATH
        try:
            message = webhook.verify(body, headers)
        except (WebhookVerificationError, ValueError):
            # ValueError: the library lets out what a malformed header or body makes of base64, UTF-8, JSON.
            self._failed += 1
            return _UNVERIFIED
        self._count(headers["webhook-id"], body, message)
        return _ACCEPTED

    def _count(self, webhook_id: str, body: bytes, message: Any) -> None:
        self._verified += 1
        self._topics[str(message.get("type")) if isinstance(message, dict) else ""] += 1
        digest = _digest(body)
        if self._body_by_id.setdefault(_digest(webhook_id.encode()), digest) != digest:
            self._changed += 1

    def stats(self) -> ReceiverStats:
        """Return the counts so far."""
        return ReceiverStats(
            connections=self.connections,
            received=self._verified + self._failed,
            verified=self._verified,
            failed=self._failed,
            distinct_ids=len(self._body_by_id),
            duplicates=self._verified - len(self._body_by_id),
            changed_bodies=self._changed,
            topics=dict(self._topics),
        )


def _digest(data: bytes) -> int:
    # 60 bits, because such an int takes 32 bytes of memory and a longer one 48; two of half a million ids
    # share a digest once in ten million runs.
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 4


class ReceiverProtocol(asyncio.Protocol):
    """As much of an HTTP/1.1 server as a webhook needs: POST with Content-Length, keep-alive, pipelining."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not registered as such
        self._ledger.connections += 1

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete now, in their order."""
        self._buffer += data
        answers = []
        while (answer := self._answer_next()) is not None:
            answers.append(answer)
            if answer is _MALFORMED:
                self._buffer.clear()
        if answers and self._transport is not None:
            self._transport.write(b"".join(answers))
            if answers[-1] is _MALFORMED:
                self._transport.close()

    def _answer_next(self) -> bytes | None:
        """Take one request out of the buffer and return its answer, or None while it is incomplete."""
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return _MALFORMED if len(self._buffer) > _MAX_HEAD_BYTES else None
        request_line, *lines = self._buffer[:head_end].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length_text = headers.get("content-length", "")
        words = request_line.split(" ")
        if len(words) != 3 or words[0] != "POST" or not (length_text.isascii() and length_text.isdigit()):
            return _MALFORMED
        body_start = head_end + 4
        body_end = body_start + int(length_text)
        if body_end - body_start > _MAX_BODY_BYTES:
            return _MALFORMED
        if len(self._buffer) < body_end:
            return None
        body = bytes(self._buffer[body_start:body_end])
        del self._buffer[:body_end]
        return self._ledger.accept(words[1], headers, body)


class ReceiverProcess:
    """A receiver in a child process, listening on a free port of 127.0.0.1.

    ``secrets`` gives the signing secret (``whsec_`` and base64) for each path. The child ends with ``stop``,
    or by itself when this process is gone, however it died: it reads a pipe that only we hold.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = dict(secrets)
        self._child: subprocess.Popen[str] | None = None
        self._port = 0

    def start(self) -> None:
        """Start the child and wait until it listens."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "svc_infra.simulation.receiver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self._port = self._ask(self._secrets)["port"]
        except BaseException:
            self.stop()
            raise

    def url(self, path: str = "/") -> str:
        """Return the address to send to."""
        return f"http://127.0.0.1:{self._port}{path}"

    def stats(self) -> ReceiverStats:
        """Return what the child has seen so far."""
        return ReceiverStats(**self._ask("stats"))

    def stop(self) -> None:
        """End the child and wait for it; a second call does nothing."""
        child, self._child = self._child, None
        if child is None or child.stdin is None:
            return
        # Closing our end is what ends the child; where it died before, a question is left in the pipe.
        with contextlib.suppress(BrokenPipeError), child, child.stdin:
            pass

    def __enter__(self) -> ReceiverProcess:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _ask(self, question: object) -> Any:
        """Write a line of JSON to the child and return the line it answers with."""
        if self._child is None or self._child.stdin is None or self._child.stdout is None:
            raise SvcInfraError("the receiver is not running; call start() first")
        try:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SvcInfraError("the receiver process has ended; its standard error says why")
        return json.loads(answer)


async def _serve() -> None:
    """Be the child: take the secrets, say the port, answer questions until the pipe is closed."""
    loop = asyncio.get_running_loop()
    questions = asyncio.StreamReader(limit=1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    secrets = await questions.readline()
    if not secrets:
        return
    ledger = Ledger(json.loads(secrets))
    server = await loop.create_server(lambda: ReceiverProtocol(ledger), "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    while await questions.readline():
        print(json.dumps(asdict(ledger.stats())), flush=True)


if __name__ == "__main__":
    # Ctrl-C goes to all processes of a terminal; the parent decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_serve())
