"""``worker.py run`` as a benchmark's subject: one process, on one core, that may send to the sink."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from _common import WORKER
from _sink import SENDER_CORE, pin


class WorkerProcess:
    """A worker on the database of ``url`` for a sink on ``port``; leaving the ``with`` block stops it.

    ``timeout_seconds`` is the deadline of one webhook.
    """

    def __init__(self, url: str, *, port: int, timeout_seconds: float = 15.0) -> None:
        self._environment = os.environ | {
            "DATABASE_URL": url,
            "SVC__LOG__LEVEL": "info",
            "SVC__WEBHOOKS__ALLOW_HTTP": "true",
            "SVC__WEBHOOKS__ALLOW_PORTS": f"[{port}]",
            "SVC__WEBHOOKS__ALLOW_NETWORKS": '["127.0.0.0/8"]',
            "SVC__WEBHOOKS__TIMEOUT_SECONDS": str(timeout_seconds),
            "SVC__WEBHOOKS__LEASE_SECONDS": str(2 * timeout_seconds),
        }

    def __enter__(self) -> WorkerProcess:
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), "run"],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=lambda: pin(SENDER_CORE),
        )
        give_up_at = time.monotonic() + 30
        while "worker.ready" not in self._said():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise SystemExit(f"the worker did not start:\n{self._said()}")
            time.sleep(0.05)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self._log.close()

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def memory_mb(self) -> float:
        """Return how much memory it holds now."""
        return self._status("VmRSS")

    def peak_mb(self) -> float:
        """Return the most memory that it has held."""
        return self._status("VmHWM")

    def cpu_seconds(self) -> float:
        """Return the processor time that it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _status(self, name: str) -> float:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
        raise SystemExit(f"/proc names no {name}; these rows need Linux")

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()
