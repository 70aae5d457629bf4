"""A BigQuery emulator on free ports of this machine, from an environment of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("EMULATORS", ROOT / ".venv" / "emulators"))
STARTS_WITHIN = 60


@dataclass(frozen=True)
class BigqueryEmulator:
    """Endpoints of a running emulator, as google.endpoints takes them."""

    rest: str
    storage: str


def is_installed() -> bool:
    return (ENVIRONMENT / "bin" / "python").exists()


@contextmanager
def running(folder: Path) -> Iterator[BigqueryEmulator]:
    """An emulator that keeps its files in the folder, stopped at the end."""
    rest, grpc = _free_port(), _free_port()
    script = Path(__file__).with_name("bqemulator_mended.py")
    command = [ENVIRONMENT / "bin" / "python", script, "start", "--project", "test", "--log-level", "critical"]
    ports = ["--rest-port", str(rest), "--grpc-port", str(grpc)]
    # DuckDB looks for its extensions in the home directory; the emulators' own has them.
    environment = {**os.environ, "HOME": str(ENVIRONMENT), "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*command, *ports], stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            _wait_until_ready(server, f"http://127.0.0.1:{rest}/readyz", folder / "log")
            yield BigqueryEmulator(f"http://127.0.0.1:{rest}", f"http://127.0.0.1:{grpc}")
        finally:
            server.kill()
            server.wait()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the BigQuery emulator did not start within {STARTS_WITHIN} s: {log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
