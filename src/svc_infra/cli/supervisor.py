"""Several worker processes under one: what dies is started again, and signals are passed on."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Sequence

import structlog

from svc_infra.jobs.loop import wait_any

log = structlog.get_logger(__name__)

SUPERVISED = "--supervised"
_OPTION = "--processes"
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 30.0
# A process that lived for this long had started well, whatever it died of.
_HEALTHY_SECONDS = 30.0


def child_command(argv: Sequence[str]) -> list[str]:
    """Return the command of a worker process without its index: our own arguments but ``--processes``."""
    arguments: list[str] = []
    skips_next = False
    for argument in argv[1:]:
        if not skips_next and argument != _OPTION and not argument.startswith(f"{_OPTION}="):
            arguments.append(argument)
        skips_next = argument == _OPTION
    return [sys.executable, "-c", "from svc_infra.cli import main; main()", *arguments, SUPERVISED]


async def supervise(command: Sequence[str], processes: int) -> int:
    """Keep ``processes`` of ``command`` running until a signal to stop; return the exit code.

    Each gets its index as one more argument. SIGTERM and SIGINT are passed on, each time. It ends when all
    processes have ended: 0 if each of them stopped in order, else 1.
    """
    supervisor = _Supervisor(command)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.pass_on, number)
    codes = await asyncio.gather(*(supervisor.keep_running(index) for index in range(processes)))
    return 0 if not any(codes) else 1


class _Supervisor:
    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._running: set[asyncio.subprocess.Process] = set()
        self._stop = asyncio.Event()

    def pass_on(self, number: signal.Signals) -> None:
        """Send the signal to every process; the first one also ends their being started again."""
        log.info("supervisor.stopping", signal=number.name, processes=len(self._running))
        self._stop.set()
        for process in self._running:
            if process.returncode is None:
                process.send_signal(number)

    async def keep_running(self, index: int) -> int:
        """Run one process, again whenever it ends; return its last exit code once stopping."""
        failures, code = 0, 0
        while not self._stop.is_set():
            started = time.monotonic()
            code = await self._run_once(index)
            if self._stop.is_set():
                return code
            failures = 1 if time.monotonic() - started > _HEALTHY_SECONDS else failures + 1
            delay = min(_FIRST_BACKOFF_SECONDS * 2 ** (failures - 1), _LONGEST_BACKOFF_SECONDS)
            log.warning("supervisor.process_ended", index=index, code=code, restart_in_seconds=delay)
            await wait_any(self._stop, timeout_seconds=delay)
        return 0

    async def _run_once(self, index: int) -> int:
        # In a session of its own: Ctrl-C reaches it once, from here, and not from the terminal too.
        # Its standard input is a pipe that nobody writes to: it ends when this process does, however it dies.
        process = await asyncio.create_subprocess_exec(
            *self._command, str(index), stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        self._running.add(process)
        log.info("supervisor.process_started", index=index, pid=process.pid)
        try:
            if self._stop.is_set():  # the signal came while it was being started
                process.terminate()
            return await process.wait()
        finally:
            self._running.discard(process)
