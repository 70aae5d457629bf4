"""A warehouse in one DuckDB file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import ibis
import numpy as np
import pyarrow as pa

from segwatch.core.schema import ARROW_TYPES, Column, TableSchema
from segwatch.core.window import Window
from segwatch.errors import BackendError, DataError
from segwatch.settings import Metric
from segwatch.warehouses import duckdb_sql as sql
from segwatch.warehouses import query
from segwatch.warehouses.base import FEATURES_PREFIX
from segwatch.warehouses.checks import check_is_features, check_replaced, in_utc
from segwatch.warehouses.duckdb_errors import translated
from segwatch.warehouses.duckdb_sql import MAIN, Name, Query
from segwatch.warehouses.mark import Mark, as_utc

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
_ROWS, _STAGE = Name("temp", "segwatch_rows"), Name("temp", "segwatch_stage")
_LISTED = 20


class _Relation(NamedTuple):
    """A table or view of the database, with segwatch's mark where it bears one."""

    name: Name
    mark: Mark | None


class DuckdbWarehouse:
    """The warehouse in a DuckDB file. It is opened at first use; only `create_table` makes the file.

    Times in tables that segwatch makes are TIMESTAMP without a zone, and UTC.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: duckdb.DuckDBPyConnection | None = None

    def create_table(self, name: str, schema: TableSchema) -> bool:
        """See Warehouse. Makes the file, and the schema that the name gives, where they are missing."""
        is_new_file = not self._exists()
        connection = self._connect()
        try:
            with self._errors(), self._transaction(connection):
                return self._create(name, schema, is_new_file)
        except BaseException:
            if is_new_file:
                self._remove_file()
            raise

    def created_tables(self) -> list[str]:
        """See Warehouse."""
        with self._errors():
            return [str(relation.name) for relation in self._created()]

    def truncate(self, name: str) -> int:
        """See Warehouse."""
        with self._errors(), self._transaction(self._open()):
            return self._change(sql.delete_all(self._own(name)))

    def drop_created(self) -> list[str]:
        """See Warehouse."""
        with self._errors():
            created = self._created()
            if self._is_file_ours(created):
                self._remove_file()
            else:
                self._drop(created)
        return [str(relation.name) for relation in created]

    def insert(self, name: str, batches: Iterable[pa.RecordBatch], keys: Sequence[str]) -> int:
        """See Warehouse."""
        stream = _Stream(batches)
        if stream.schema is None:
            return 0
        columns = stream.schema.names
        with stream.own_errors(), self._errors(), self._writing(stream.reader()):
            target = self._own(name)
            self._check_columns(target, [*columns, *keys])
            # Staged in a temporary table, which spills to disk when memory runs short.
            self._execute(sql.create_stage(_STAGE, _ROWS))
            self._change(sql.delete_matching(target, _STAGE, keys))
            count = self._change(sql.insert_from(target, _STAGE, columns))
            self._execute(sql.drop(_STAGE))
        return count

    def table_schema(self, name: str) -> pa.Schema | None:
        """See Warehouse."""
        with self._errors():
            relation = self._find(name)
            return None if relation is None else in_utc(self._columns(relation.name)).schema

    def observations(self, source: Metric, window: Window) -> pa.Table:
        """See Warehouse."""
        with self._errors():
            table = self._metric_table(source)
            query.check_rows(self._run, table, source, window)
            return query.finish(self._run(query.observations(table, source, window)), source)

    def span(self, source: Metric) -> tuple[np.datetime64, np.datetime64] | None:
        """See Warehouse."""
        with self._errors():
            return query.read_span(self._run, self._metric_table(source), source)

    def bytes_to_read(self, source: Metric, window: Window) -> int | None:  # noqa: ARG002
        """See Warehouse."""
        return None

    def write_features(self, run_id: str, rows: pa.Table, expires_at: dt.datetime) -> str:
        """See Warehouse."""
        name = Name(MAIN, FEATURES_PREFIX + run_id)
        with self._errors(), self._writing(rows):
            if self._find(name.table) is not None:
                self._execute(sql.drop(self._own(name.table)))
            self._execute(sql.create_from(name, _ROWS))
            self._mark(name, Mark(created_file=self._has_created_file(), expires_at=expires_at))
        return name.table

    def read_features(self, name: str) -> pa.Table:
        """See Warehouse."""
        with self._errors():
            check_is_features(name)
            return self._fetch(Query(sql.select(self._own(name), ["*"], ["segment_id", "ts"]), []))

    def drop_features(self, name: str) -> None:
        """See Warehouse."""
        check_is_features(name)
        with self._errors(), self._transaction(self._open()):
            if self._find(name) is not None:
                self._execute(sql.drop(self._own(name)))

    def sweep_features(self, now: dt.datetime) -> list[str]:
        """See Warehouse."""
        with self._errors():
            expired = [relation for relation in self._created() if _has_expired(relation, as_utc(now))]
            self._drop(expired)
        return [str(relation.name) for relation in expired]

    def replace_predictions(
        self,
        table: str,
        metric: str,
        window: Window,
        rows: pa.Table,
        selection: Mapping[str, frozenset[str]],
    ) -> int:
        """See Warehouse."""
        check_replaced(rows, metric, window, selection)
        with self._errors(), self._writing(rows):
            target = self._own(table)
            self._check_columns(target, [*rows.column_names, *selection])
            start, end = window.as_datetimes()
            removal = sql.delete_predictions(target, metric, start, end, selection)
            self._execute(removal.text, removal.values)
            return self._change(sql.insert_from(target, _ROWS, rows.column_names))

    def predictions(self, table: str, metric: str, window: Window) -> pa.Table:
        """See Warehouse."""
        start, end = window.as_datetimes()
        with self._errors():
            found = self._predictions_table(table)
            order = ["ts", "segment_id"]
            return in_utc(self._fetch(sql.select_predictions(found, metric, start, end, order)))

    def prediction_span(self, table: str, metric: str) -> tuple[np.datetime64, np.datetime64] | None:
        """See Warehouse."""
        with self._errors():
            found = self._fetch(sql.select_prediction_span(self._predictions_table(table), metric))
        first, last = (column.to_numpy()[0] for column in found.columns)
        return None if np.isnat(first) else (first, last)

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
                # Not in `config`: DuckDB refuses two connections of one process that differ in it.
                connection = duckdb.connect(str(self._path))
                for statement in _SESSION:
                    connection.execute(statement)
            self._connection = connection
        return self._connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
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
    def _transaction(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        connection.begin()
        try:
            yield
            connection.commit()
        except BaseException:
            # A failed COMMIT has rolled back by itself, and a second rollback would hide its error.
            with suppress(duckdb.Error):
                connection.rollback()
            raise

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> duckdb.DuckDBPyConnection:
        return self._open().execute(statement, list(values))

    def _change(self, statement: str) -> int:
        """Executes a DELETE or INSERT and returns how many rows it touched."""
        row = self._execute(statement).fetchone()
        return 0 if row is None else int(row[0])

    def _fetch(self, statement: Query) -> pa.Table:
        connection = self._open()
        relation = (
            connection.sql(statement.text, params=statement.values)
            if statement.values
            else connection.sql(statement.text)
        )
        return relation.to_arrow_table()

    def _run(self, expression: Any) -> pa.Table:
        return self._fetch(Query(ibis.to_sql(expression, dialect="duckdb", pretty=False), []))

    def _relations(self) -> list[_Relation]:
        rows = self._execute(_RELATIONS).fetchall()
        return [_Relation(Name(schema, name), Mark.from_comment(comment)) for schema, name, comment in rows]

    def _created(self) -> list[_Relation]:
        return [relation for relation in self._relations() if relation.mark is not None]

    def _find(self, name: str) -> _Relation | None:
        """The table or view of a name; DuckDB does not tell names apart by case."""
        for relation in self._relations():
            if name.lower() in (str(relation.name).lower(), ".".join(relation.name).lower()):
                return relation
        return None

    def _need(self, name: str) -> _Relation:
        found = self._find(name)
        if found is None:
            raise DataError(f"{self._path} has no table {name!r}; it holds {_listed(self._relations())}")
        return found

    def _own(self, name: str) -> Name:
        """Where a table of segwatch's is. Raises DataError if it is anyone else's, or not there."""
        found = self._need(name)
        if found.mark is None:
            raise DataError(
                f"{name!r} in {self._path} was not made by segwatch, which changes its own tables only:"
                " name another table in the settings"
            )
        return found.name

    def _columns(self, name: Name, columns: Sequence[str] = ("*",)) -> pa.Table:
        """No rows, but the columns' names and types."""
        try:
            return self._fetch(Query(sql.select_no_rows(name, columns), []))
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise DataError(f"the view {str(name)!r} in {self._path} cannot be read: {error}") from error

    def _check_columns(self, name: Name, columns: Iterable[str]) -> None:
        held = self._columns(name).column_names
        for column in columns:
            if column not in held:
                raise DataError(
                    f"table {str(name)!r} in {self._path} has no column {column!r}; it has {', '.join(held)}"
                )

    def _predictions_table(self, table: str) -> Name:
        name = self._need(table).name
        self._check_columns(name, ["metric", "ts", "segment_id"])
        return name

    def _metric_table(self, source: Metric) -> Any:
        name = self._need(source.table).name
        columns = [source.time, source.value, *source.dimensions]
        self._check_columns(name, columns)
        # Only these: a column of a type that ibis does not know is no reason to refuse the table.
        table = query.bind(self._columns(name, columns).schema, name.table, name.schema)
        query.check_columns(table, source)
        return table

    def _create(self, name: str, schema: TableSchema, is_new_file: bool) -> bool:
        if self._find(name) is not None:
            self._complete(self._own(name), schema)
            return False
        target = _placed(name)
        is_new_schema = self._make_schema(target.schema)
        self._execute(sql.create(target, schema.columns))
        for column in schema.columns:
            self._describe(target, column)
        self._mark(target, Mark(is_new_file or self._has_created_file(), is_new_schema))
        return True

    def _complete(self, name: Name, schema: TableSchema) -> None:
        """The table has every column of the schema. Raises DataError if that needs more than adding NULLs."""
        held = {field.name: field.type for field in in_utc(self._columns(name)).schema}
        for column in schema.columns:
            if column.name not in held and not column.required:
                self._execute(sql.add_column(name, column))
                self._describe(name, column)
            elif held.get(column.name) != ARROW_TYPES[column.type]:
                raise DataError(
                    f"table {str(name)!r} in {self._path} was made with other columns: {column.name!r} must"
                    f" be {column.type}, and is {held.get(column.name, 'missing')}; name another table in the"
                    " settings"
                )

    def _make_schema(self, name: str) -> bool:
        """The schema exists; True if it was made now."""
        if self._execute(_HAS_SCHEMA, [name]).fetchone() is not None:
            return False
        self._execute(sql.create_schema(name))
        return True

    def _describe(self, name: Name, column: Column) -> None:
        if column.description:
            self._execute(sql.describe(name, column))

    def _mark(self, name: Name, mark: Mark) -> None:
        self._execute(sql.comment(name, mark.to_comment()))

    def _has_created_file(self) -> bool:
        return any(relation.mark is not None and relation.mark.created_file for relation in self._created())

    def _is_file_ours(self, created: Sequence[_Relation]) -> bool:
        """Whether segwatch made the file and nothing that anyone else made is in it."""
        schemas = {schema for (schema,) in self._execute(_SCHEMAS).fetchall()}
        return (
            self._has_created_file()
            and len(created) == len(self._relations())
            and schemas <= _created_schemas(created)
            and self._execute(_OTHER_OBJECTS).fetchone() is None
        )

    def _drop(self, relations: Sequence[_Relation]) -> None:
        with self._transaction(self._open()):
            for relation in relations:
                self._execute(sql.drop(relation.name))
        for schema in sorted(_created_schemas(relations)):
            # Anyone else may have put something into it.
            with suppress(duckdb.DependencyException):
                self._execute(sql.drop_schema(schema))

    def _remove_file(self) -> None:
        """The file is gone, its log first: a log without its file would be replayed into the next one."""
        self.close()
        with translated(self._path):
            self._path.with_name(self._path.name + ".wal").unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, rows: pa.Table | pa.RecordBatchReader) -> Iterator[None]:
        """A transaction in which the rows can be read as temp.segwatch_rows."""
        connection = self._open()
        connection.register(_ROWS.table, rows)
        try:
            with self._transaction(connection):
                yield
        finally:
            # A connection that DuckDB has given up refuses this too, and its first error is the one to tell.
            with suppress(duckdb.Error):
                connection.unregister(_ROWS.table)


class _Stream:
    """Batches as an Arrow stream that keeps the error of their source, which DuckDB would turn into its own.

    schema: None if there are no batches.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._rest = iter(batches)
        self._first = next(self._rest, None)
        self._error: Exception | None = None
        self.schema: pa.Schema | None = None if self._first is None else self._first.schema

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self.schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from chain([self._first], self._rest)
        except Exception as error:
            self._error = error
            raise

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """What runs inside raises the source's error as it was."""
        try:
            yield
        except Exception:
            if self._error is not None:
                raise self._error from None
            raise


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise BackendError(
            f"there is no folder {folder} to hold the database: make it, or name another in the settings"
        )


def _placed(name: str) -> Name:
    """Where a new table goes. Raises DataError if a part of its name is empty."""
    schema, dot, table = name.partition(".")
    place = Name(schema, table) if dot else Name(MAIN, name)
    if not all(place):
        raise DataError(f"{name!r} is not the name of a table: write it as table or schema.table")
    return place


def _listed(relations: Sequence[_Relation]) -> str:
    names = [str(relation.name) for relation in relations]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "no tables"


def _created_schemas(relations: Iterable[_Relation]) -> set[str]:
    return {relation.name.schema for relation in relations if relation.mark and relation.mark.created_schema}


def _has_expired(relation: _Relation, now: dt.datetime) -> bool:
    expiry = relation.mark.expires_at if relation.mark else None
    return expiry is not None and expiry <= now
