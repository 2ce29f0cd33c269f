"""A Redis server of the benchmark's own, on a free loopback port, and the one question asked of it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory


def redis_version() -> str | None:
    """The version of the installed server, or None where there is none."""
    if shutil.which("redis-server") is None:
        return None
    said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    return said.split("v=")[1].split()[0]


@contextmanager
def redis_server() -> Iterator[str]:
    """Give the URL of a server without persistence, which is Redis at its quickest."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with TemporaryDirectory(prefix="bench-redis") as folder:
        command = [
            "redis-server",
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        process = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            for _ in range(200):
                try:
                    ask(port, "PING")
                    break
                except OSError:
                    time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


def ask(port: int, *words: str) -> int:
    """Send one command whose answer is a number (or a word, read as 0)."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall((" ".join(words) + "\r\n").encode())
        answer = connection.recv(200)
    return int(answer[1:]) if answer[:1] == b":" else 0
