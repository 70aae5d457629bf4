from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from segwatch.settings import Endpoints, Google

from .fakes.storage import Door, emulator
from .no_skip import pytest_addoption, pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401
from .servers import bigquery, postgres

_CAPABILITIES = "-dac_override,-dac_read_search"


@pytest.fixture(scope="session")
def no_override() -> list[str]:
    """What to put before a command so that file permissions bind it, as they do everyone but root."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return ["setpriv", f"--bounding-set={_CAPABILITIES}", "--"] if is_root else []


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    """A server of its own for each process that runs tests."""
    programs = postgres.programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgres.running(programs) as server:
        yield server


@pytest.fixture(scope="session")
def bigquery_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bigquery.BigqueryEmulator]:
    """An emulator of its own for each process that runs tests."""
    if not bigquery.is_installed():
        pytest.skip(f"there is no BigQuery emulator in {bigquery.ENVIRONMENT}: make .venv/installed-emulators")
    with bigquery.running(tmp_path_factory.mktemp("bigquery")) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def storage_emulator() -> Iterator[str]:
    """The address of a Cloud Storage emulator."""
    with emulator() as url:
        yield url


@dataclass(frozen=True)
class Bucket:
    """An empty bucket behind a door of its own, and the settings that lead there."""

    uri: str
    door: Door

    @property
    def google(self) -> Google:
        return Google(project="test-project", endpoints=Endpoints(storage=self.door.url))


@pytest.fixture
def bucket(storage_emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    # What the product needs it takes from its settings; a variable of the machine must not help.
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    door = Door(storage_emulator)
    yield Bucket(door.make_bucket(f"test-{secrets.token_hex(4)}"), door)
    door.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage library repeats at once what it would repeat after a pause."""
    import asyncio

    async def at_once(_: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=at_once))
