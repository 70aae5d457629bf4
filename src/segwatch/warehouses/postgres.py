"""A warehouse in a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
from adbc_driver_manager import Error
from adbc_driver_postgresql import dbapi
from ibis.backends.sql.compilers import PostgresCompiler
from sqlglot import exp

from segwatch.core.schema import ARROW_TYPES
from segwatch.warehouses import postgres_sql as sql
from segwatch.warehouses.checks import plain
from segwatch.warehouses.mark import Mark
from segwatch.warehouses.postgres_errors import translated
from segwatch.warehouses.postgres_url import complete, masked
from segwatch.warehouses.relational import Relation, RelationalWarehouse
from segwatch.warehouses.sql import Name, Query

_STAGE = Name("pg_temp", "segwatch_rows")
_NOT_EMPTY, _NO_SCHEMA = "2BP01", "3F000"
_KINDS = (
    (pa.types.is_integer, ARROW_TYPES["INTEGER"]),
    (pa.types.is_floating, ARROW_TYPES["FLOAT"]),
    (pa.types.is_dictionary, ARROW_TYPES["STRING"]),
    (pa.types.is_timestamp, pa.timestamp("us")),
)
"""What rows are staged as: the types of the tables that segwatch makes."""


class PostgresWarehouse(RelationalWarehouse):
    """The warehouse in a PostgreSQL database, through ADBC. It is connected at first use.

    Reads see one moment of the database. Writers of a table wait for one another, and readers for none of them.
    """

    def __init__(self, url: str) -> None:
        """url: postgresql://USER@HOST:PORT/DATABASE, as libpq reads it; a password is libpq's to find.

        Raises SettingsError if it is not of that form.
        """
        super().__init__(masked(url), sql.POSTGRES)
        self._url = complete(url)
        self._connection: dbapi.Connection | None = None

    def close(self) -> None:
        """See Warehouse."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Error):
                connection.close()

    def _open(self) -> dbapi.Connection:
        if self._connection is None:
            connection = dbapi.connect(self._url, autocommit=True)
            self._connection = connection
            self._execute(sql.SESSION)
        return self._connection

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with translated(self._place), self._transaction(sql.READ):
            yield

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with translated(self._place), self._transaction(sql.WRITE):
            yield

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        # Outside of one the connection commits by itself: a transaction held open while segwatch trains would be
        # ended by many servers.
        connection = self._begin(kind)
        try:
            yield
            connection.commit()
            connection.adbc_connection.set_autocommit(True)
        except BaseException:
            self._roll_back()
            raise

    def _begin(self, kind: str) -> dbapi.Connection:
        """A connection with a transaction begun, a new one where the last has died of idleness."""
        is_used = self._connection is not None
        try:
            connection = self._open()
            connection.adbc_connection.set_autocommit(False)
            self._execute(kind)
        except Error:
            self.close()
            if not is_used:
                raise
            return self._begin(kind)
        return connection

    def _roll_back(self) -> None:
        """Nothing of the transaction is left; a connection that cannot even do that is let go of."""
        if self._connection is None:
            return
        try:
            self._connection.rollback()
            self._connection.adbc_connection.set_autocommit(True)
        except Error:
            self.close()

    @contextmanager
    def _staged(self, rows: pa.Table | pa.RecordBatchReader) -> Iterator[Name]:
        reader = rows.to_reader() if isinstance(rows, pa.Table) else rows
        with self._open().cursor() as cursor:
            staged = reader.cast(_staged_schema(reader.schema))
            cursor.adbc_ingest(_STAGE.table, staged, mode="create", temporary=True)
        yield _STAGE
        self._execute(self._sql.drop(_STAGE))

    def _lock(self, name: Name) -> None:
        self._execute(sql.POSTGRES.lock(name))

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        with self._open().cursor() as cursor:
            cursor.execute(statement, list(values) or None)

    def _change(self, statement: str) -> int:
        with self._open().cursor() as cursor:
            cursor.execute(statement)
            return int(cursor.rowcount)

    def _fetch(self, statement: Query) -> pa.Table:
        with self._open().cursor() as cursor:
            cursor.execute(statement.text, list(statement.values) or None)
            return plain(cursor.fetch_arrow_table())

    def _stream(self, expression: Any) -> Iterator[pa.Table]:
        with self._open().cursor() as cursor:
            cursor.execute(_compiled(expression))
            for batch in cursor.fetch_record_batch():
                yield plain(pa.Table.from_batches([batch]))

    def _rows(self, text: str, *values: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self._fetch(Query(text, values)).to_pylist()]

    def _run(self, expression: Any) -> pa.Table:
        return self._fetch(Query(_compiled(expression)))

    def _tree(self, expression: Any) -> exp.Expression:
        return PostgresCompiler().to_sqlglot(expression)

    def _relations(self) -> list[Relation]:
        return [
            Relation(Name(schema, name, is_home), Mark.from_comment(comment))
            for schema, name, comment, is_home in self._rows(sql.RELATIONS)
        ]

    def _columns(self, name: Name) -> pa.Schema:
        return pa.schema(
            [
                pa.field(column, sql.arrow_type(type_, kind), nullable=not is_required)
                for column, type_, kind, is_required in self._rows(sql.COLUMNS, name.schema, name.table)
            ]
        )

    def _bind(self, columns: pa.Schema, name: Name) -> ir.Table:
        table = super()._bind(columns, name)
        texts = [field.name for field in columns if sql.is_text_like(field.type)]
        return table.mutate(**{text: table[text].cast("string") for text in texts}) if texts else table

    def _home(self) -> str:
        return str(self._rows(sql.HOME)[0][0])

    def _new_name(self, name: str) -> Name:
        place = super()._new_name(name)
        sql.check_length(place.schema)
        sql.check_length(place.table)
        return place

    def _has_schema(self, name: str) -> bool:
        return bool(self._rows(sql.HAS_SCHEMA, name))

    def _drop_schema(self, name: str) -> None:
        with translated(self._place):
            try:
                with self._transaction(sql.WRITE):
                    self._execute(self._sql.drop_schema(name))
            except Error as error:
                if error.sqlstate not in (_NOT_EMPTY, _NO_SCHEMA):
                    raise


def _compiled(expression: Any) -> str:
    compiler = PostgresCompiler()
    return str(sql.in_byte_order(compiler.to_sqlglot(expression)).sql(dialect=compiler.dialect))


def _staged_schema(rows: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_type(_staged_type(field.type)) for field in rows])


def _staged_type(type_: pa.DataType) -> pa.DataType:
    return next((staged for is_kind, staged in _KINDS if is_kind(type_)), type_)
