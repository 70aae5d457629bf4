"""A warehouse in one DuckDB file."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import ibis
import numpy as np
import pyarrow as pa
from ibis.backends.sql.compilers.duckdb import DuckDBCompiler
from sqlglot import exp

from segwatch.core.schema import TableSchema
from segwatch.core.window import Window
from segwatch.errors import BackendError, DataError
from segwatch.settings import Metric
from segwatch.warehouses import query
from segwatch.warehouses.duckdb_errors import is_locked, translated
from segwatch.warehouses.mark import Mark
from segwatch.warehouses.relational import Relation, RelationalWarehouse, created_schemas
from segwatch.warehouses.sql import Dialect, Name, Query

_SQL = Dialect(
    "duckdb",
    {
        "STRING": "VARCHAR",
        "INTEGER": "BIGINT",
        "FLOAT": "DOUBLE",
        "BOOLEAN": "BOOLEAN",
        "DATE": "DATE",
        # Without a zone, and UTC: a day's ts then equals its DATE whatever a session's TimeZone.
        "TIMESTAMP": "TIMESTAMP",
    },
)
_SESSION = (
    # Nothing is ever downloaded, and no name of a table finds a variable of ours or a file instead.
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",
    "SET TimeZone = 'UTC'",
    "SET enable_progress_bar = false",
)
_RELATIONS = """
    SELECT schema_name, table_name AS name, comment FROM duckdb_tables()
    WHERE database_name = current_database() AND NOT internal
    UNION ALL
    SELECT schema_name, view_name, NULL FROM duckdb_views()
    WHERE database_name = current_database() AND NOT internal
    ORDER BY 1, 2
"""
_OTHER_OBJECTS = """
    SELECT 1 FROM duckdb_sequences() WHERE database_name = current_database()
    UNION ALL SELECT 1 FROM duckdb_functions() WHERE database_name = current_database() AND NOT internal
    UNION ALL SELECT 1 FROM duckdb_types() WHERE database_name = current_database() AND NOT internal
    LIMIT 1
"""
_SCHEMAS = """
    SELECT schema_name FROM duckdb_schemas() WHERE database_name = current_database() AND NOT internal
"""
_HAS_SCHEMA = "SELECT 1 FROM duckdb_schemas() WHERE database_name = current_database() AND schema_name = ?"
_MAIN = "main"
# Raw rows of a table that are grouped at a time.
_ROWS_AT_A_TIME, _ROWS_OF_A_TABLE = 4_000_000, 250_000
_FRUGAL, _LEAST = "128MiB", "8MiB"
LOCK_WAIT_SECONDS = 10.0
"""How long a file is waited for that another process has open."""
READER_WAIT_SECONDS = 2.0
"""The same of those that only read, who can look again later."""
# Shorter than the pause that a process makes which opens the file again and again.
_POLL_SECONDS = 0.005
_ROWS, _STAGE = Name("temp", "segwatch_rows"), Name("temp", "segwatch_stage")


class DuckdbWarehouse(RelationalWarehouse):
    """The warehouse in a DuckDB file. It is opened at first use; only `create_table` makes the file."""

    _is_reader = False

    @property
    def _patience(self) -> float:
        return LOCK_WAIT_SECONDS

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _SQL)
        self._path = path
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._made_file = False

    def create_table(self, name: str, schema: TableSchema) -> bool:
        """See Warehouse. Makes the file, and the schema that the name gives, where they are missing."""
        is_new_file = not self._exists()
        self._made_file |= is_new_file
        self._connect()
        try:
            return super().create_table(name, schema)
        except BaseException:
            if is_new_file:
                self._remove_file()
            raise

    def drop_created(self) -> list[str]:
        """See Warehouse."""
        with self._reading():
            created = self._created()
            is_file_ours = self._is_file_ours(created)
        if is_file_ours:
            self._remove_file()
        else:
            self._drop(created)
        return [str(relation.name) for relation in created]

    def close(self) -> None:
        """See Warehouse."""
        if self._connection is not None:
            with translated(self._path):
                self._connection.close()
            self._connection = None

    def _exists(self) -> bool:
        with translated(self._path):
            return self._path.exists()

    def _open(self) -> duckdb.DuckDBPyConnection:
        """The connection. Raises BackendError if there is no file: reading must not make an empty one."""
        if self._connection is None and not self._exists():
            raise BackendError(
                f"there is no database {self._path}: run `segwatch create` to make it, or name an existing"
                " one in the settings"
            )
        return self._connect()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            with translated(self._path):
                _check_folder(self._path.parent)
                connection = self._waited_for()
                # Not in `config`: DuckDB refuses two connections of one process that differ in it.
                for statement in _SESSION:
                    connection.execute(statement)
            self._connection = connection
        return self._connection

    def _waited_for(self) -> duckdb.DuckDBPyConnection:
        """A connection, as soon as no other process has the file: DuckDB itself does not wait."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return duckdb.connect(str(self._path), read_only=self._is_reader)
            except duckdb.IOException as error:
                if not is_locked(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Translates DuckDB's errors, and lets go of a connection that DuckDB has given up."""
        with translated(self._path):
            try:
                yield
            except duckdb.FatalException:
                self._abandon()
                raise

    def _abandon(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(duckdb.Error):
                connection.close()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._reading():
            connection = self._open()
            connection.begin()
            try:
                yield
                connection.commit()
            except BaseException:
                # A failed COMMIT has rolled back by itself, and a second rollback would hide its error.
                with suppress(duckdb.Error):
                    connection.rollback()
                raise

    @contextmanager
    def _staged(self, rows: pa.Table | pa.RecordBatchReader) -> Iterator[Name]:
        connection = self._open()
        connection.register(_ROWS.table, rows)
        try:
            if isinstance(rows, pa.Table):
                yield _ROWS
            else:
                # A stream is read once; a temporary table can be read again, and spills to disk when memory runs short.
                self._execute(self._sql.create_stage(_STAGE, _ROWS))
                yield _STAGE
                self._execute(self._sql.drop(_STAGE))
        finally:
            # A connection that DuckDB has given up refuses this too, and its first error is the one to tell.
            with suppress(duckdb.Error):
                connection.unregister(_ROWS.table)

    def span(self, source: Metric) -> tuple[np.datetime64, np.datetime64] | None:
        """See Warehouse."""
        with self._reading(), self._frugal():
            return super().span(source)

    def observation_parts(self, source: Metric, window: Window) -> Generator[pa.Table]:
        """See Warehouse. GROUP BY takes 100 bytes and more for each row that it makes."""
        with self._reading(), self._snapshot(), self._frugal():
            table = self._metric_table(source)
            n_rows = query.check_rows(self._run, table, source, window)
            for part in window.parts(-(-n_rows // _ROWS_AT_A_TIME)):
                for rows in self._stream(query.observations(table, source, part, in_order=False)):
                    yield query.named(rows, source)

    def _stream(self, expression: Any) -> Iterator[pa.Table]:
        """The rows of an expression in tables of some of them."""
        relation = self._open().sql(ibis.to_sql(expression, dialect="duckdb", pretty=False))
        try:
            reader = relation.to_arrow_reader(_ROWS_OF_A_TABLE)
            first = next(reader, None)
        except duckdb.OutOfMemoryException:
            self._execute("RESET memory_limit")
            reader = relation.to_arrow_reader(_ROWS_OF_A_TABLE)
            first = next(reader, None)
        if first is not None:
            for batch in chain([first], reader):
                yield pa.Table.from_batches([batch])

    @contextmanager
    def _frugal(self) -> Iterator[None]:
        """DuckDB keeps no more of its file in memory than it must; a table that needs more still gets it."""
        self._execute("SET memory_limit = ?", [_FRUGAL])
        try:
            yield
        finally:
            # What it holds of the file is let go of by a limit under it, and by nothing else.
            for statement in (f"SET memory_limit = '{_LEAST}'", "RESET memory_limit"):
                with suppress(duckdb.Error):
                    self._execute(statement)

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment."""
        self._execute("begin transaction")
        try:
            yield
        finally:
            with suppress(duckdb.Error):
                self._execute("rollback")

    def _lock(self, name: Name) -> None:
        """DuckDB locks nothing: of two transactions that change the same rows, it refuses the later one."""

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> duckdb.DuckDBPyConnection:
        return self._open().execute(statement, list(values))

    def _change(self, statement: str) -> int:
        row = self._execute(statement).fetchone()
        return 0 if row is None else int(row[0])

    def _fetch(self, statement: Query) -> pa.Table:
        connection = self._open()
        relation = (
            connection.sql(statement.text, params=list(statement.values))
            if statement.values
            else connection.sql(statement.text)
        )
        return relation.to_arrow_table()

    def _run(self, expression: Any) -> pa.Table:
        return self._fetch(Query(ibis.to_sql(expression, dialect="duckdb", pretty=False)))

    def _tree(self, expression: Any) -> exp.Expression:
        return DuckDBCompiler().to_sqlglot(expression)

    def _relations(self) -> list[Relation]:
        rows = self._execute(_RELATIONS).fetchall()
        return [
            Relation(Name(schema, name, schema == _MAIN), Mark.from_comment(comment)) for schema, name, comment in rows
        ]

    def _columns(self, name: Name) -> pa.Schema:
        try:
            return self._fetch(Query(self._sql.select_no_rows(name))).schema
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise DataError(f"the view {str(name)!r} in {self._path} cannot be read: {error}") from error

    def _home(self) -> str:
        return _MAIN

    def _has_schema(self, name: str) -> bool:
        return self._execute(_HAS_SCHEMA, [name]).fetchone() is not None

    def _drop_schema(self, name: str) -> None:
        with self._reading(), suppress(duckdb.DependencyException):
            self._execute(self._sql.drop_schema(name))

    def _new_mark(self, mark: Mark) -> Mark:
        return Mark(self._has_created_file(), mark.created_schema, mark.expires_at)

    def _has_created_file(self) -> bool:
        return self._made_file or any(
            relation.mark is not None and relation.mark.created_file for relation in self._created()
        )

    def _is_file_ours(self, created: Sequence[Relation]) -> bool:
        """Whether segwatch made the file and nothing that anyone else made is in it."""
        schemas = {schema for (schema,) in self._execute(_SCHEMAS).fetchall()}
        return (
            self._has_created_file()
            and len(created) == len(self._relations())
            and schemas <= created_schemas(created)
            and self._execute(_OTHER_OBJECTS).fetchone() is None
        )

    def _remove_file(self) -> None:
        """The file is gone, its log first: a log without its file would be replayed into the next one."""
        self.close()
        with translated(self._path):
            self._path.with_name(self._path.name + ".wal").unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
        self._made_file = False


class DuckdbReader(DuckdbWarehouse):
    """The warehouse in a DuckDB file that other processes may read at the same time; it refuses all changes.

    What tables there are is asked once: as long as a reader has the file nobody changes it.
    """

    _is_reader = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._seen: list[Relation] | None = None
        self._held: dict[Name, pa.Schema] = {}

    def close(self) -> None:
        """See Warehouse."""
        super().close()
        self._seen, self._held = None, {}

    @property
    def _patience(self) -> float:
        return READER_WAIT_SECONDS

    def _relations(self) -> list[Relation]:
        if self._seen is None:
            self._seen = super()._relations()
        return self._seen

    def _columns(self, name: Name) -> pa.Schema:
        if name not in self._held:
            self._held[name] = super()._columns(name)
        return self._held[name]


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise BackendError(
            f"there is no folder {folder} to hold the database: make it, or name another in the settings"
        )
