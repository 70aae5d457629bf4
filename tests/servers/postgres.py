"""A real PostgreSQL server on a free port of this machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER, DATABASE = "segwatch", "metrics"
GUEST, PASSWORD = "guest", "right:p@ss/w%rd"
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_CLIENTS = f"host all {USER} 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
_EMPTY = (
    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE datname = current_database() AND pid <> pg_backend_pid()""",
    """DO $$ DECLARE name text; BEGIN
      FOR name IN SELECT quote_ident(nspname) FROM pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
      LOOP EXECUTE 'DROP SCHEMA ' || name || ' CASCADE'; END LOOP; END $$""",
    "CREATE SCHEMA public",
)
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "20",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "shared_buffers": "64MB",
    "logging_collector": "off",
}


class PostgresServer:
    """A server of its own on a free port of this machine; `segwatch` may come in as is, `guest` by password."""

    guest, password = GUEST, PASSWORD

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._session: Any = None
        # PostgreSQL refuses to run as root.
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self.port = 0

    def start(self) -> None:
        data = self._folder / "data"
        initdb = [self._programs / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8"]
        subprocess.run(
            [*initdb, "--locale=C.UTF-8", "--no-sync"],
            user=self._user, cwd=self._folder, check=True, stdout=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
        (data / "pg_hba.conf").write_text(_CLIENTS)
        self.port = _free_port()
        settings = [f"--{name}={value}" for name, value in {**_SETTINGS, "port": self.port}.items()]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", data, *settings],
                user=self._user, cwd=self._folder, stderr=log, preexec_fn=_end_with_the_tests,
            )  # fmt: skip
        self.wait("postgres")
        with self.connect("postgres") as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {DATABASE}")
            cursor.execute(f"CREATE ROLE {GUEST} LOGIN PASSWORD '{PASSWORD}'")

    @property
    def times_ready(self) -> int:
        """How often the server has said that it is ready: once more after each of its processes that was killed."""
        return (self._folder / "log").read_bytes().count(b"database system is ready to accept connections")

    def wait(self, database: str = DATABASE, times_ready: int = 0) -> None:
        """The server lets sessions in, and has been ready so many times.

        After one of its processes was killed it lets none in for a moment; before it has noticed, it still does.
        """
        from adbc_driver_manager import Error

        self._forget_session()
        deadline = time.monotonic() + 60
        while self.times_ready < times_ready and time.monotonic() < deadline:
            time.sleep(0.02)
        while True:
            try:
                return self.connect(database).close()
            except Error:
                if time.monotonic() > deadline or self._process is None or self._process.poll() is not None:
                    raise
                time.sleep(0.02)

    def _forget_session(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None

    def stop(self) -> None:
        self._forget_session()
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT)  # At once: nothing in it is worth keeping.
        try:
            self._process.wait(20)
        finally:
            self._process.kill()

    def url(self, database: str = DATABASE) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = DATABASE) -> Any:
        """A session of its own, which commits by itself."""
        from adbc_driver_postgresql import dbapi

        return dbapi.connect(self.url(database), autocommit=True)

    @property
    def session(self) -> Any:
        """One session kept open, since to open one takes longer than a test's statements."""
        if self._session is None:
            self._session = self.connect()
        return self._session

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """The rows of the last statement."""
        rows: list[tuple[Any, ...]] = []
        for statement in statements:
            with self.session.cursor() as cursor:
                cursor.execute(statement)
                rows = cursor.fetchall()
        return rows

    def empty(self) -> None:
        """Nothing is in the database, and nobody else is connected to it."""
        self.run(*_EMPTY)


def _end_with_the_tests() -> None:
    """The process is ended when the tests are, even by kill -9."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGQUIT)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _unprivileged_user() -> str:
    import pwd

    return next(user for user in ("postgres", "nobody") if user in {entry.pw_name for entry in pwd.getpwall()})


def programs() -> Path | None:
    """The folder of the newest server installed; Debian keeps it off the PATH."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    found = [*([Path(on_path)] if on_path else []), *installed]
    return found[-1].parent if found else None


@contextmanager
def running(found: Path) -> Iterator[PostgresServer]:
    """A server of the programs in a folder, gone at the end."""
    # Short, and open to another user, which pytest's own folders are not.
    folder = Path(tempfile.mkdtemp(prefix="segwatch-postgres-", dir="/tmp"))
    server = PostgresServer(found, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
