"""What the warehouses in relational databases with transactions share; each adds how its own is talked to."""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any, NamedTuple

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from sqlglot import exp

from segwatch.core.schema import ARROW_TYPES, Column, TableSchema
from segwatch.core.window import Window
from segwatch.errors import DataError
from segwatch.settings import Metric
from segwatch.warehouses import asked as ask
from segwatch.warehouses import calendar, query
from segwatch.warehouses.asked import Asked, Figure, Order
from segwatch.warehouses.base import FEATURES_PREFIX
from segwatch.warehouses.checks import check_is_features, check_names, check_replaced, in_utc
from segwatch.warehouses.mark import Mark, as_utc
from segwatch.warehouses.sql import Dialect, Name, Query, numbered

_LISTED = 20


class Relation(NamedTuple):
    """A table or view of the database, with segwatch's mark where it bears one."""

    name: Name
    mark: Mark | None


class RelationalWarehouse(ABC):
    """Marks are the tables' comments, and what changes a table does so in one transaction.

    Times in tables that segwatch makes have no zone, and are UTC. The abstract methods are the database's own;
    they raise its own errors, which `_reading` and `_changing` translate.
    """

    def __init__(self, place: str, sql: Dialect) -> None:
        """place: what messages call the database."""
        self._place = place
        self._sql = sql

    def create_table(self, name: str, schema: TableSchema) -> bool:
        """See Warehouse. Makes the schema that the name gives where it is missing."""
        with self._changing():
            if self._find(name) is not None:
                self._complete(self._own(name), schema)
                return False
            target = self._new_name(name)
            is_new_schema = self._make_schema(target.schema)
            self._execute(self._sql.create(target, schema.columns))
            for column in schema.columns:
                self._describe(target, column)
            self._mark(target, self._new_mark(Mark(created_schema=is_new_schema)))
            return True

    def created_tables(self) -> list[str]:
        """See Warehouse."""
        with self._reading():
            return [str(relation.name) for relation in self._created()]

    def truncate(self, name: str) -> int:
        """See Warehouse."""
        with self._changing():
            target = self._own(name)
            self._lock(target)
            return self._change(self._sql.delete_all(target))

    def drop_created(self) -> list[str]:
        """See Warehouse."""
        with self._reading():
            created = self._created()
        self._drop(created)
        return [str(relation.name) for relation in created]

    def insert(self, name: str, batches: Iterable[pa.RecordBatch], keys: Sequence[str]) -> int:
        """See Warehouse."""
        stream = _Stream(batches)
        if stream.schema is None:
            return 0
        columns = stream.schema.names
        with stream.own_errors(), self._changing():
            target = self._own(name)
            self._check_columns(target, [*columns, *keys])
            with self._staged(stream.reader()) as stage:
                self._lock(target)
                self._change(self._sql.delete_matching(target, stage, keys))
                return self._change(self._sql.insert_from(target, stage, columns))

    def table_schema(self, name: str) -> pa.Schema | None:
        """See Warehouse."""
        with self._reading():
            relation = self._find(name)
            return None if relation is None else in_utc(self._columns(relation.name))

    def observations(self, source: Metric, window: Window) -> pa.Table:
        """See Warehouse."""
        with self._reading():
            table = self._metric_table(source)
            query.check_rows(self._run, table, source, window)
            return query.finish(self._run(query.observations(table, source, window)), source)

    def observation_parts(self, source: Metric, window: Window) -> Generator[pa.Table]:
        """See Warehouse."""
        with self._reading():
            table = self._metric_table(source)
            query.check_rows(self._run, table, source, window)
            for rows in self._stream(query.observations(table, source, window, in_order=False)):
                yield query.named(rows, source)

    def span(self, source: Metric) -> tuple[np.datetime64, np.datetime64] | None:
        """See Warehouse."""
        with self._reading():
            return query.read_span(self._run, self._metric_table(source), source)

    def calendar(self, source: Metric) -> pa.Table | None:
        """See Warehouse."""
        if not source.calendar:
            return None
        with self._reading():
            name = self._need(source.calendar, calendar.ABSENT).name
            held = self._columns(name)
            columns = calendar.find_columns(held, source)
            table = self._bind(pa.schema(map(held.field, columns.values())), name)
            calendar.check_types(table, source, columns)
            return calendar.finish(self._run(calendar.days(table, source, columns)), source)

    def bytes_to_read(self, source: Metric, window: Window) -> int | None:  # noqa: ARG002
        """See Warehouse."""
        return None

    def write_features(self, run_id: str, rows: pa.Table, expires_at: dt.datetime) -> str:
        """See Warehouse."""
        with self._changing():
            name = self._new_name(FEATURES_PREFIX + run_id)
            if self._find(name.table) is not None:
                self._execute(self._sql.drop(self._own(name.table)))
            with self._staged(rows) as stage:
                self._execute(self._sql.create_from(name, stage))
            self._mark(name, self._new_mark(Mark(expires_at=expires_at)))
        return name.table

    def read_features(self, name: str) -> pa.Table:
        """See Warehouse."""
        order = ["segment_id", "ts"]
        with self._reading():
            check_is_features(name)
            return query.in_order(self._fetch(Query(self._sql.select(self._own(name), ["*"], order))), order)

    def drop_features(self, name: str) -> None:
        """See Warehouse."""
        check_is_features(name)
        with self._changing():
            if self._find(name) is not None:
                self._execute(self._sql.drop(self._own(name)))

    def sweep_features(self, now: dt.datetime) -> list[str]:
        """See Warehouse."""
        with self._reading():
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
        with self._changing():
            target = self._own(table)
            self._check_columns(target, [*rows.column_names, *selection])
            start, end = window.as_datetimes()
            removal = self._sql.delete_predictions(target, metric, start, end, selection)
            with self._staged(rows) as stage:
                self._lock(target)
                self._execute(removal.text, removal.values)
                return self._change(self._sql.insert_from(target, stage, rows.column_names))

    def predictions(self, table: str, metric: str, window: Window) -> pa.Table:
        """See Warehouse."""
        start, end = window.as_datetimes()
        order = ["ts", "segment_id"]
        with self._reading():
            found = self._predictions_table(table)
            rows = self._fetch(self._sql.select_predictions(found, metric, start, end, order))
        return query.in_order(rows.cast(in_utc(rows.schema)), order)

    def asked_rows(
        self,
        asked: Asked,
        columns: Sequence[str] = (),
        order: Sequence[Order] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> pa.Table:
        """See Warehouse."""
        with self._reading():
            table = self._asked_table(asked, [*columns, *(one.column for one in order)])
            rows = self._ask(ask.rows(table, asked, columns, order, limit, offset), asked)
        return ask.in_order(rows.cast(in_utc(rows.schema)), order)

    def prediction_sums(self, asked: Asked, by: Sequence[str], figures: Sequence[Figure]) -> pa.Table:
        """See Warehouse."""
        with self._reading():
            table = self._asked_table(asked, [*by, *ask.columns_of(figures)])
            rows = self._ask(ask.sums(table, asked, by, figures), asked)
        return rows.cast(in_utc(rows.schema))

    def _asked_table(self, asked: Asked, columns: Iterable[str]) -> ir.Table:
        name = self._need(asked.table, ask.ABSENT).name
        held = self._columns(name)
        check_names(asked.table, held.names, [*asked.columns, *columns], self._place)
        return self._bind(held, name)

    def _ask(self, expression: ir.Table, asked: Asked) -> pa.Table:
        tree, values = ask.parameterised(self._tree(expression), asked, numbered)
        return self._fetch(Query(tree.sql(dialect=self._sql.name), values))

    def prediction_span(self, table: str, metric: str) -> tuple[np.datetime64, np.datetime64] | None:
        """See Warehouse."""
        with self._reading():
            found = self._fetch(self._sql.select_prediction_span(self._predictions_table(table), metric))
        first, last = (column.to_numpy()[0] for column in found.columns)
        return None if np.isnat(first) else (first, last)

    @abstractmethod
    def _reading(self) -> AbstractContextManager[None]:
        """The database is open for what runs inside, and its errors are translated."""

    @abstractmethod
    def _changing(self) -> AbstractContextManager[None]:
        """As `_reading`, and what runs inside is done as a whole or not at all."""

    @abstractmethod
    def _staged(self, rows: pa.Table | pa.RecordBatchReader) -> AbstractContextManager[Name]:
        """The rows can be read, as often as it takes, from the table named; it is gone afterwards."""

    @abstractmethod
    def _execute(self, statement: str, values: Sequence[Any] = ()) -> object:
        """The statement has been executed."""

    @abstractmethod
    def _change(self, statement: str) -> int:
        """Executes a DELETE or INSERT and returns how many rows it touched."""

    @abstractmethod
    def _fetch(self, statement: Query) -> pa.Table:
        """The rows that the statement returns."""

    @abstractmethod
    def _run(self, expression: Any) -> pa.Table:
        """The rows of an ibis expression."""

    @abstractmethod
    def _tree(self, expression: Any) -> exp.Expression:
        """The statement that an ibis expression is."""

    @abstractmethod
    def _stream(self, expression: Any) -> Iterator[pa.Table]:
        """The rows of an ibis expression in tables of some of them."""

    @abstractmethod
    def _relations(self) -> list[Relation]:
        """Every table and view, sorted by name."""

    @abstractmethod
    def _columns(self, name: Name) -> pa.Schema:
        """Columns of a table or view."""

    @abstractmethod
    def _home(self) -> str:
        """The schema of what is named by `table` alone."""

    @abstractmethod
    def _has_schema(self, name: str) -> bool:
        """Whether there is a schema of that name."""

    @abstractmethod
    def _drop_schema(self, name: str) -> None:
        """The schema is gone, unless anyone has put something into it."""

    @abstractmethod
    def _lock(self, name: Name) -> None:
        """No other session changes the table until the transaction ends."""

    def _new_mark(self, mark: Mark) -> Mark:
        """The mark of a table made now, with what the database adds to it."""
        return mark

    def _bind(self, columns: pa.Schema, name: Name) -> ir.Table:
        """The ibis table of a metric's columns."""
        return query.bind(columns, name.table, name.schema)

    def _created(self) -> list[Relation]:
        return [relation for relation in self._relations() if relation.mark is not None]

    def _find(self, name: str) -> Relation | None:
        """The table or view of a name; where none is written so, one that differs in case alone."""
        relations = self._relations()
        for folded in (str, str.lower):
            for relation in relations:
                if folded(name) in (folded(str(relation.name)), folded(relation.name.full)):
                    return relation
        return None

    def _need(self, name: str, mend: str = "") -> Relation:
        found = self._find(name)
        if found is None:
            raise DataError(f"{self._place} has no table {name!r}; it holds {_listed(self._relations())}{mend}")
        return found

    def _own(self, name: str) -> Name:
        """Where a table of segwatch's is. Raises DataError if it is anyone else's, or not there."""
        found = self._need(name)
        if found.mark is None:
            raise DataError(
                f"{name!r} in {self._place} was not made by segwatch, which changes its own tables only:"
                " name another table in the settings"
            )
        return found.name

    def _check_columns(self, name: Name, columns: Iterable[str]) -> None:
        check_names(str(name), self._columns(name).names, columns, self._place)

    def _predictions_table(self, table: str) -> Name:
        name = self._need(table).name
        self._check_columns(name, ["metric", "ts", "segment_id"])
        return name

    def _metric_table(self, source: Metric) -> ir.Table:
        name = self._need(source.table).name
        self._check_columns(name, source.columns)
        held = self._columns(name)
        # Only these: a column of a type that ibis does not know is no reason to refuse the table.
        table = self._bind(pa.schema([held.field(column) for column in source.columns]), name)
        query.check_columns(table, source)
        return table

    def _new_name(self, name: str) -> Name:
        """Where a new table goes. Raises DataError if a part of its name is empty."""
        schema, dot, table = name.partition(".")
        home = self._home()
        place = Name(schema, table, schema == home) if dot else Name(home, name, True)
        if not place.schema or not place.table:
            raise DataError(f"{name!r} is not the name of a table: write it as table or schema.table")
        return place

    def _complete(self, name: Name, schema: TableSchema) -> None:
        """The table has every column of the schema. Raises DataError if that needs more than adding NULLs."""
        held = {field.name: field.type for field in in_utc(self._columns(name))}
        for column in schema.columns:
            if column.name not in held and not column.required:
                self._execute(self._sql.add_column(name, column))
                self._describe(name, column)
            elif held.get(column.name) != ARROW_TYPES[column.type]:
                raise DataError(
                    f"table {str(name)!r} in {self._place} was made with other columns: {column.name!r} must"
                    f" be {column.type}, and is {held.get(column.name, 'missing')}; name another table in the"
                    " settings"
                )

    def _make_schema(self, name: str) -> bool:
        """The schema exists; True if it was made now."""
        if self._has_schema(name):
            return False
        self._execute(self._sql.create_schema(name))
        return True

    def _describe(self, name: Name, column: Column) -> None:
        if column.description:
            self._execute(self._sql.describe(name, column))

    def _mark(self, name: Name, mark: Mark) -> None:
        self._execute(self._sql.comment(name, mark.to_comment()))

    def _drop(self, relations: Sequence[Relation]) -> None:
        if not relations:
            return
        with self._changing():
            for relation in relations:
                self._execute(self._sql.drop(relation.name))
        for schema in sorted(created_schemas(relations)):
            self._drop_schema(schema)


class _Stream:
    """Batches as an Arrow stream that keeps the error of their source, which a database would turn into its own.

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


def created_schemas(relations: Iterable[Relation]) -> set[str]:
    """Schemas that segwatch made along with a table."""
    return {relation.name.schema for relation in relations if relation.mark and relation.mark.created_schema}


def _listed(relations: Sequence[Relation]) -> str:
    names = [str(relation.name) for relation in relations]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more if names else "no tables"


def _has_expired(relation: Relation, now: dt.datetime) -> bool:
    expiry = relation.mark.expires_at if relation.mark else None
    return expiry is not None and expiry <= now
