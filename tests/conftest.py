"""Servers that tests talk to, started once for each worker and stopped at its end."""

import os
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EMULATORS = Path(os.environ.get("SEGWATCH_EMULATORS", ROOT / ".venv" / "emulators"))
STARTS_WITHIN = 60


@dataclass(frozen=True)
class BigqueryEmulator:
    """Endpoints of a running emulator, as google.endpoints takes them."""

    rest: str
    storage: str


@pytest.fixture(scope="session")
def bigquery_emulator(tmp_path_factory):
    python = EMULATORS / "bin" / "python"
    if not python.exists():
        reason = f"there is no BigQuery emulator in {EMULATORS}: run make .venv/installed-emulators"
        if os.environ.get("SEGWATCH_NO_SKIP"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("bigquery")
    rest, grpc = _free_port(), _free_port()
    command = [python, ROOT / "tests" / "bigquery_emulator.py", "start", "--project", "test", "--log-level", "critical"]
    ports = ["--rest-port", str(rest), "--grpc-port", str(grpc)]
    # DuckDB looks for its extensions in the home directory; the emulators' own has them.
    environment = {**os.environ, "HOME": str(EMULATORS), "TMPDIR": str(folder)}
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen([*command, *ports], stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            _wait_until_ready(server, f"http://127.0.0.1:{rest}/readyz", folder / "log")
            yield BigqueryEmulator(f"http://127.0.0.1:{rest}", f"http://127.0.0.1:{grpc}")
        finally:
            server.kill()
            server.wait()


def _wait_until_ready(server, url, log):
    end = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the BigQuery emulator did not start within {STARTS_WITHIN} s: {log.read_text()[-2000:]}")


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
