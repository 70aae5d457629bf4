"""The SQLite file of a local MLflow: is it there, is it free, and whose is it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from segwatch.errors import BackendError
from segwatch.registries.mlflow_call import backend_error

LOCK_WAIT_SECONDS = 5.0
DEFAULT_EXPERIMENT = "0"
CREATED_TAG = "segwatch.created"
_UNFINISHED = ".new-"
# Tables in which a new MLflow database has rows of its own.
_OWN_TABLES = {"alembic_version", "workspaces", "experiments", "experiment_tags"}


class RegistryFile:
    """One SQLite file, and the directory beside it that holds the artifacts."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.path = Path(uri.removeprefix("sqlite:///")).absolute()
        self.artifacts = self.path.parent / "mlartifacts"

    def exists(self) -> bool:
        """Whether there is a database. Raises BackendError if its directory is missing or cannot be read."""
        folder = self.path.parent
        if not folder.is_dir():
            raise BackendError(
                f"the directory {folder} of the registry {self.uri} does not exist; make it, or correct"
                " `registry` in segwatch.toml"
            )
        # SQLite takes an empty file for an empty database, so nothing is in it either way.
        return self.path.exists() and (not self.path.is_file() or self.path.stat().st_size > 0)

    def check_readable(self) -> None:
        """The file holds MLflow's tables and nobody has it locked. Raises BackendError if not.

        MLflow itself waits 20 s for a lock, retries for 100 s to open a damaged file, and would fill a
        database of another program with its tables.
        """
        with self._connection("be read") as connection:
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        if not {"experiments", "registered_models"} <= names:
            raise BackendError(
                f"the registry {self.uri} is a SQLite database, but not one of MLflow's; name another file"
            )

    def check_writable(self) -> None:
        """The file can be written now. Raises BackendError if not."""
        self.check_readable()
        with self._connection("be written") as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")

    def create(self, build: Callable[[Path], None]) -> None:
        """The database exists, complete: `build` made it elsewhere, then it took its name in one step."""
        try:
            self.artifacts.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=self.artifacts) as folder:
                built = Path(folder) / self.path.name
                build(built)
                self._place(built)
        except OSError as error:
            raise backend_error(self.uri, "be created", error) from error

    def _place(self, built: Path) -> None:
        if self.path.exists() and self.path.stat().st_size == 0:
            os.replace(built, self.path)
            return
        # Unlike a rename, a link never replaces the database that another process made meanwhile.
        with suppress(FileExistsError):
            os.link(built, self.path)

    def remove_if_ours(self) -> None:
        """The file is gone if segwatch created it and only MLflow's own rows are left in it."""
        with self._connection("be removed") as connection:
            # Held until the file is gone, so nobody adds to it after the look.
            connection.execute("BEGIN EXCLUSIVE")
            if not _made_by_segwatch(connection) or _holds_anything(connection):
                return
            self.path.unlink()
        self._remove_artifacts_root()

    def _remove_artifacts_root(self) -> None:
        for folder in self.artifacts.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            self.artifacts.rmdir()

    @contextmanager
    def _connection(self, doing: str) -> Iterator[sqlite3.Connection]:
        try:
            # mode=rw: a missing file is an error, not a new database.
            with closing(
                sqlite3.connect(
                    f"{self.path.as_uri()}?mode=rw", uri=True, timeout=LOCK_WAIT_SECONDS, isolation_level=None
                )
            ) as connection:
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise backend_error(self.uri, doing, error) from error


def _made_by_segwatch(connection: sqlite3.Connection) -> bool:
    query = "SELECT count(*) FROM experiment_tags WHERE key = ? AND experiment_id = ?"
    return bool(connection.execute(query, (CREATED_TAG, DEFAULT_EXPERIMENT)).fetchone()[0])


def _holds_anything(connection: sqlite3.Connection) -> bool:
    if connection.execute("SELECT count(*) FROM experiments").fetchone()[0] > 1:
        return True
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    others = {name for name in tables - _OWN_TABLES if not name.startswith("sqlite_")}
    return any(connection.execute(f'SELECT EXISTS (SELECT 1 FROM "{name}")').fetchone()[0] for name in others)
