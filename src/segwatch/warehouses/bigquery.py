"""A warehouse in a dataset of BigQuery."""

from __future__ import annotations

import datetime as dt
import re
import secrets
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.schema import ARROW_TYPES, Column, TableSchema
from segwatch.core.window import Window
from segwatch.errors import DataError, SettingsError
from segwatch.google import missing_extra
from segwatch.settings import Google, Metric
from segwatch.warehouses import asked as ask
from segwatch.warehouses import bigquery_sql as sql
from segwatch.warehouses.asked import Asked, Figure, Order
from segwatch.warehouses.base import FEATURES_PREFIX
from segwatch.warehouses.bigquery_sql import Key, Name, Query, Value
from segwatch.warehouses.checks import check_is_features, check_names, check_replaced, in_utc

if TYPE_CHECKING:
    from segwatch.warehouses.bigquery_client import Held, Session

MARK = "segwatch"
"""Label of every table and dataset that segwatch makes."""
EXPIRES = "segwatch_expires"
"""Label of a temporary table: the second, since 1970, at which it may be swept."""

VERSION = "1"
_TEMPORARY_FOR = dt.timedelta(days=1)
_ROWS_PREFIX, _STAGE_PREFIX = "segwatch_rows_", "segwatch_stage_"
_TABLE = re.compile(r"\w([\w \-]*\w)?")
_DATASET = re.compile(r"\w+")
_MAX_CLUSTERING = 4
_LISTED = 20
_PREDICTIONS = {"metric", "ts", "segment_id"}


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class BigqueryWarehouse:
    """The warehouse in a dataset of BigQuery; only `create_table` makes the dataset.

    A table is given as `table`, `dataset.table` or `project.dataset.table`. Jobs run in google.location, which
    must be the dataset's region. Rows leave a query through a named table of segwatch's, read by the Storage API
    and then dropped; rows come in through a staging table and one transaction. Both expire by themselves.
    """

    def __init__(self, project: str, dataset: str, google: Google, clock: Callable[[], dt.datetime] = _utc_now) -> None:
        self._project, self._dataset, self._google, self._clock = project, dataset, google, clock
        self._place = f"dataset {project}.{dataset}"
        self._session: Session | None = None
        self._is_checked = False

    def create_table(self, name: str, schema: TableSchema) -> bool:
        """See Warehouse. Makes the dataset that the name gives, in google.location, where it is missing."""
        target = self._name(name)
        self._make_dataset(self._connect(), target)
        held = self._open().find(target)
        if held is not None:
            self._complete(self._check_own(held, name), schema)
            return False
        self._open().create_table(
            target, map(_field, schema.columns), {MARK: VERSION}, _layout(schema), f"Made by segwatch: {name}"
        )
        return True

    def created_tables(self) -> list[str]:
        """See Warehouse."""
        return [self._shown(name) for name in self._created()]

    def truncate(self, name: str) -> int:
        """See Warehouse."""
        held = self._own(name)
        n_rows = self._open().fetch(sql.count(held.name, held.time, _time_type(held)))["n"][0].as_py()
        self._open().execute(sql.truncate(held.name))
        return int(n_rows)

    def drop_created(self) -> list[str]:
        """See Warehouse. A dataset that segwatch made goes too if nothing else is in it."""
        created = self._created()
        session = self._open()
        for name in created:
            session.drop_table(name)
        for dataset in session.datasets():
            if MARK in dataset.labels:
                session.drop_dataset_if_empty(dataset.id)
                self._is_checked = False
        return [self._shown(name) for name in created]

    def insert(self, name: str, batches: Iterable[pa.RecordBatch], keys: Sequence[str]) -> int:
        """See Warehouse."""
        rest = iter(batches)
        first = next(rest, None)
        if first is None:
            return 0
        held = self._own(name)
        columns = first.schema.names
        self._check_columns(held, [*columns, *keys])
        with (
            _parquet(_checked(held, first, rest), first.schema, keys) as (file, bounds),
            self._staged(held, columns, file) as (stage, n_rows),
        ):
            compared = [Key(key, key not in held.required) for key in keys]
            self._open().execute(sql.replace_matching(held.name, stage, compared, columns, _bounds(held, bounds)))
        return n_rows

    def table_schema(self, name: str) -> pa.Schema | None:
        """See Warehouse."""
        held = self._open().find(self._name(name))
        return None if held is None else in_utc(held.columns)

    def observations(self, source: Metric, window: Window) -> pa.Table:
        """See Warehouse."""
        from segwatch.warehouses import query

        held, table = self._metric_table(source)
        with self._reading(held):
            query.check_rows(self._run, table, source, window)
            return query.finish(self._rows(_compiled(query.observations(table, source, window))), source)

    def observation_parts(self, source: Metric, window: Window) -> Generator[pa.Table]:
        """See Warehouse. One query reads the table once."""
        from segwatch.warehouses import query

        held, table = self._metric_table(source)
        with self._reading(held):
            query.check_rows(self._run, table, source, window)
            rows = query.observations(table, source, window, in_order=False)
            with self._result(_compiled(rows)) as name:
                for part in self._open().stream(name):
                    yield query.named(part, source)

    def span(self, source: Metric) -> tuple[np.datetime64, np.datetime64] | None:
        """See Warehouse."""
        from segwatch.warehouses import query

        held, table = self._metric_table(source)
        with self._reading(held):
            return query.read_span(self._run, table, source)

    def calendar(self, source: Metric) -> pa.Table | None:
        """See Warehouse."""
        from segwatch.warehouses import calendar

        if not source.calendar:
            return None
        held, days = self._calendar_days(source)
        with self._reading(held):
            return calendar.finish(self._run(days), source)

    def bytes_to_read(self, source: Metric, window: Window) -> int | None:
        """See Warehouse."""
        from segwatch.warehouses import query

        _, table = self._metric_table(source)
        asked = [query.faults(table, source, window), query.observations(table, source, window)]
        if source.calendar:
            asked.append(self._calendar_days(source)[1])
        return sum(self._open().bytes_of(_compiled(expression)) for expression in asked)

    def write_features(self, run_id: str, rows: pa.Table, expires_at: dt.datetime) -> str:
        """See Warehouse. BigQuery drops the table by itself when it expires."""
        name = self._name(FEATURES_PREFIX + run_id)
        session = self._open()
        held = session.find(name)
        if held is not None:
            self._check_own(held, name.table)
            session.drop_table(name)
        session.create_table(name, _fields(rows.schema), _temporary(expires_at), expires_at=_utc(expires_at))
        try:
            with _parquet(iter(rows.to_batches()), rows.schema, ()) as (file, _):
                session.load(name, file)
        except BaseException:
            session.drop_table(name)
            raise
        return name.table

    def read_features(self, name: str) -> pa.Table:
        """See Warehouse."""
        check_is_features(name)
        rows = self._open().read(self._own(name).name)
        return rows.sort_by([("segment_id", "ascending"), ("ts", "ascending")])

    def drop_features(self, name: str) -> None:
        """See Warehouse."""
        check_is_features(name)
        held = self._open().find(self._name(name))
        if held is not None:
            self._open().drop_table(self._check_own(held, name).name)

    def sweep_features(self, now: dt.datetime) -> list[str]:
        """See Warehouse. Staging and result tables that a killed run left behind go too."""
        moment = _seconds(now)
        session = self._open()
        expired = [
            listed.name
            for listed in session.tables(self._dataset)
            if MARK in listed.labels and EXPIRES in listed.labels and int(listed.labels[EXPIRES]) <= moment
        ]
        for name in expired:
            session.drop_table(name)
        return [self._shown(name) for name in expired]

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
        held = self._own(table)
        columns = rows.column_names
        self._check_columns(held, [*columns, *selection])
        of_window = (metric, *window.as_datetimes(), selection)
        if not rows.num_rows:
            self._open().execute(sql.replace_predictions(held.name, None, columns, *of_window))
            return 0
        with (
            _parquet(_checked(held, None, iter(rows.to_batches())), rows.schema, ()) as (file, _),
            self._staged(held, columns, file) as (stage, n_rows),
        ):
            self._open().execute(sql.replace_predictions(held.name, stage, columns, *of_window))
        return n_rows

    def predictions(self, table: str, metric: str, window: Window) -> pa.Table:
        """See Warehouse."""
        held = self._predictions_table(table)
        rows = self._rows(sql.select_predictions(held.name, metric, *window.as_datetimes()))
        ordered = rows.sort_by([("ts", "ascending"), ("segment_id", "ascending")])
        return ordered.cast(in_utc(ordered.schema))

    def asked_rows(
        self,
        asked: Asked,
        columns: Sequence[str] = (),
        order: Sequence[Order] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> pa.Table:
        """See Warehouse."""
        held = self._asked_table(asked, [*columns, *(one.column for one in order)])
        rows = self._ask(ask.rows(held, asked, columns, order, limit, offset), asked)
        return ask.in_order(rows, order)

    def prediction_sums(self, asked: Asked, by: Sequence[str], figures: Sequence[Figure]) -> pa.Table:
        """See Warehouse."""
        return self._ask(ask.sums(self._asked_table(asked, [*by, *ask.columns_of(figures)]), asked, by, figures), asked)

    def prediction_span(self, table: str, metric: str) -> tuple[np.datetime64, np.datetime64] | None:
        """See Warehouse."""
        held = self._predictions_table(table)
        found = self._open().fetch(sql.select_prediction_span(held.name, metric))
        first, last = (column.cast(pa.timestamp("us")).to_numpy()[0] for column in found.columns)
        return None if np.isnat(first) else (first, last)

    def close(self) -> None:
        """See Warehouse."""
        if self._session is not None:
            self._session.close()
        self._session, self._is_checked = None, False

    def _connect(self) -> Session:
        if self._session is None:
            try:
                # Google's clients take seconds to import.
                from segwatch.warehouses.bigquery_client import Session
            except ModuleNotFoundError as error:
                raise missing_extra(error) from error
            labels = {**self._google.labels, MARK: VERSION}
            self._session = Session(self._google, self._project, self._place, labels)
        return self._session

    def _open(self) -> Session:
        """The client, once it is known that the dataset is there and in the region where jobs run."""
        session = self._connect()
        if not self._is_checked:
            found = session.dataset(self._dataset)
            if found is None:
                there = ", ".join(dataset.id for dataset in session.datasets()[:_LISTED]) or "no datasets"
                raise DataError(
                    f"project {self._project} has no dataset {self._dataset!r}; it holds {there}: run `segwatch"
                    " create` to make it, or name another in the settings"
                )
            self._check_region(self._dataset, found.location)
            self._is_checked = True
        return session

    def _check_region(self, dataset: str, location: str) -> None:
        if location.lower() != self._google.location.lower():
            raise SettingsError(
                f"dataset {self._project}.{dataset} is in {location}, and google.location is"
                f" {self._google.location}: set it to {location}, or name a dataset of {self._google.location}"
            )

    def _make_dataset(self, session: Session, name: Name) -> None:
        wanted = dict.fromkeys([self._dataset, name.dataset] if name.project == self._project else [self._dataset])
        for dataset in wanted:
            found = session.dataset(dataset)
            if found is None:
                session.create_dataset(dataset, {MARK: VERSION})
            else:
                self._check_region(dataset, found.location)

    def _name(self, name: str) -> Name:
        """Where a table is or will be. Raises DataError if that is not a name that BigQuery allows."""
        *path, table = name.split(".")
        dataset = path.pop() if path else self._dataset
        project = ".".join(path) or self._project
        is_known = _TABLE.fullmatch(table) and _DATASET.fullmatch(dataset) and all(path)
        if not is_known or len(name.encode()) > 1024:
            raise DataError(
                f"{name!r} is not the name of a table: write it as table, dataset.table or project.dataset.table,"
                " of letters, digits, underscores, dashes and spaces"
            )
        return Name(project, dataset, table)

    def _shown(self, name: Name) -> str:
        if name.project != self._project:
            return ".".join(name)
        return name.table if name.dataset == self._dataset else f"{name.dataset}.{name.table}"

    def _need(self, name: str, mend: str = "") -> Held:
        place = self._name(name)
        held = self._open().find(place)
        if held is None:
            there = self._open().tables_if_allowed(place.dataset, place.project)
            listed = [self._shown(item.name) for item in there]
            more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
            raise DataError(
                f"dataset {place.project}.{place.dataset} has no table {name!r}; it holds"
                f" {', '.join(sorted(listed)[:_LISTED]) or 'no tables'}{more}{mend}"
            )
        return held

    def _own(self, name: str) -> Held:
        """A table of segwatch's. Raises DataError if it is anyone else's, or not there."""
        return self._check_own(self._need(name), name)

    def _check_own(self, held: Held, name: str) -> Held:
        if MARK not in held.labels:
            raise DataError(
                f"{name!r} in {self._place} was not made by segwatch, which changes its own tables only: name"
                " another table in the settings"
            )
        return held

    def _created(self) -> list[Name]:
        """All tables of segwatch's in the project, those of the default dataset first."""
        session = self._open()
        # A project may hold datasets that are none of segwatch's business, and closed to it.
        others = [dataset.id for dataset in session.datasets() if dataset.id != self._dataset]
        listed = [*session.tables(self._dataset)]
        for dataset in others:
            listed += session.tables_if_allowed(dataset, self._project)
        names = [item.name for item in listed if MARK in item.labels]
        return sorted(names, key=lambda name: (name.dataset != self._dataset, name))

    def _check_columns(self, held: Held, columns: Iterable[str]) -> None:
        check_names(self._shown(held.name), held.columns.names, columns, self._place)

    def _complete(self, held: Held, schema: TableSchema) -> None:
        """The table has every column of the schema. Raises DataError if that needs more than adding NULLs."""
        types = {field.name: field.type for field in held.columns}
        added = [column for column in schema.columns if column.name not in types and not column.required]
        for column in schema.columns:
            if column not in added and types.get(column.name) != ARROW_TYPES[column.type]:
                raise DataError(
                    f"table {self._shown(held.name)!r} in {self._place} was made with other columns:"
                    f" {column.name!r} must be {column.type}, and is {types.get(column.name, 'missing')}; name"
                    " another table in the settings"
                )
        if added:
            self._open().execute(sql.add_columns(held.name, added))

    def _predictions_table(self, table: str) -> Held:
        held = self._need(table)
        self._check_columns(held, ["metric", "ts", "segment_id"])
        return held

    def _asked_table(self, asked: Asked, columns: Iterable[str]) -> Any:
        from segwatch.warehouses import query

        held = self._need(asked.table, ask.ABSENT)
        self._check_columns(held, [*asked.columns, *columns])
        return query.bind(held.columns, held.name.table, held.name.dataset, held.name.project)

    def _ask(self, expression: Any, asked: Asked) -> pa.Table:
        """The rows of an expression; few enough that none but the answer itself need carry them."""
        from ibis.backends.sql.compilers import BigQueryCompiler

        tree, values = ask.parameterised(BigQueryCompiler().to_sqlglot(expression), asked, sql.numbered)
        named = {sql.numbered(i).name: Value("STRING", value) for i, value in enumerate(values, 1)}
        rows = self._open().fetch(Query(str(tree.sql(dialect="bigquery")), named))
        return rows.cast(in_utc(rows.schema))

    def _metric_table(self, source: Metric) -> tuple[Held, Any]:
        from segwatch.warehouses import query

        held = self._need(source.table)
        self._check_columns(held, source.columns)
        wanted = pa.schema([held.columns.field(column) for column in source.columns])
        table = query.bind(wanted, held.name.table, held.name.dataset, held.name.project)
        query.check_columns(table, source)
        return held, query.at_any_time(table, source.time)

    def _calendar_days(self, source: Metric) -> tuple[Held, Any]:
        from segwatch.warehouses import calendar, query

        held = self._need(source.calendar, calendar.ABSENT)
        columns = calendar.find_columns(held.columns, source)
        wanted = pa.schema(map(held.columns.field, columns.values()))
        table = query.bind(wanted, held.name.table, held.name.dataset, held.name.project)
        calendar.check_types(table, source, columns)
        calendar.check_types(table, source, columns)
        return held, calendar.days(query.at_any_time(table, columns["first_day"]), source, columns)

    @contextmanager
    def _reading(self, held: Held) -> Iterator[None]:
        """What runs inside says of which view it is, where a view cannot be read."""
        try:
            yield
        except DataError as error:
            # Google's own errors have a cause; what segwatch says of rows is complete.
            if not held.is_view or error.__cause__ is None:
                raise
            raise DataError(f"the view {self._shown(held.name)!r} cannot be read: {error}") from error

    def _run(self, expression: Any) -> pa.Table:
        return self._open().fetch(_compiled(expression))

    def _rows(self, query: Query) -> pa.Table:
        """All rows of a query, in no order."""
        with self._result(query) as name:
            return self._open().read(name)

    @contextmanager
    def _result(self, query: Query) -> Iterator[Name]:
        """A table of the query's rows; it is gone afterwards."""
        session = self._open()
        expires_at = self._clock() + _TEMPORARY_FOR
        name = Name(self._project, self._dataset, _ROWS_PREFIX + secrets.token_hex(8))
        labels = {**self._google.labels, **_temporary(expires_at)}
        try:
            session.execute(sql.create_from(name, query, expires_at, labels))
            yield name
        finally:
            session.drop_table(name)

    @contextmanager
    def _staged(self, held: Held, columns: Sequence[str], parquet: IO[bytes]) -> Iterator[tuple[Name, int]]:
        """A table beside the target with the file's rows, and their number; it is gone afterwards."""
        session = self._open()
        expires_at = self._clock() + _TEMPORARY_FOR
        name = held.name._replace(table=_STAGE_PREFIX + secrets.token_hex(8))
        fields = _fields(pa.schema([held.columns.field(column) for column in columns]))
        session.create_table(name, fields, _temporary(expires_at), expires_at=expires_at)
        try:
            yield name, session.load(name, parquet)
        finally:
            session.drop_table(name)


def _field(column: Column) -> Any:
    from segwatch.warehouses.bigquery_client import Field

    return Field(column.name, column.type, column.required, column.description)


def _fields(schema: pa.Schema) -> list[Any]:
    """Nullable columns of the schema's types. A time without a zone stays one: DATETIME."""
    from segwatch.warehouses.bigquery_client import Field

    names = {type_: name for name, type_ in ARROW_TYPES.items()} | {pa.timestamp("us"): "DATETIME"}
    return [Field(field.name, names[field.type]) for field in schema]


def _layout(schema: TableSchema) -> Any:
    """Partitions by day of the first required time, clusters by the first texts."""
    from segwatch.warehouses.bigquery_client import Layout

    times = [c.name for c in schema.columns if c.required and c.type in ("DATE", "TIMESTAMP")]
    texts = [c.name for c in schema.columns if c.type == "STRING"]
    # Only predictions: anyone may want to look at a whole metric, and that table is theirs to read.
    is_predictions = set(schema.names) >= _PREDICTIONS
    return Layout(times[0] if times else None, tuple(texts[:_MAX_CLUSTERING]), is_predictions)


def _temporary(expires_at: dt.datetime) -> dict[str, str]:
    return {MARK: VERSION, EXPIRES: str(_seconds(expires_at))}


def _seconds(moment: dt.datetime) -> int:
    return int(_utc(moment).timestamp())


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def _time_type(held: Held) -> str:
    is_date = held.time is not None and pa.types.is_date(held.columns.field(held.time).type)
    return "DATE" if is_date else "TIMESTAMP"


def _compiled(expression: Any) -> Query:
    import ibis

    return Query(str(ibis.to_sql(expression, dialect="bigquery", pretty=False)), {})


def _checked(held: Held, first: pa.RecordBatch | None, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches, each once it is known to hold no NULL where the table refuses it: a load would say less."""
    if first is not None:
        yield _without_nulls(held, first)
    for batch in rest:
        yield _without_nulls(held, batch)


def _without_nulls(held: Held, batch: pa.RecordBatch) -> pa.RecordBatch:
    for column in sorted(held.required):
        if column not in batch.schema.names:
            raise DataError(f"the rows have no column {column!r}, which {held.name.table!r} needs")
        if batch[column].null_count:
            raise DataError(f"the rows have NULL in column {column!r}, which needs a value in {held.name.table!r}")
    return batch


class _Bounds(dict[str, tuple[Any, Any]]):
    """First and last value of columns, over all batches seen."""

    def see(self, batch: pa.RecordBatch, columns: Sequence[str]) -> None:
        for column in columns:
            if column in batch.schema.names and pa.types.is_temporal(batch[column].type) and batch.num_rows:
                ends = pc.min_max(batch[column]).as_py()
                if ends["min"] is not None:
                    first, last = self.get(column, (ends["min"], ends["max"]))
                    self[column] = min(first, ends["min"]), max(last, ends["max"])


@contextmanager
def _parquet(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, keys: Sequence[str]
) -> Iterator[tuple[IO[bytes], _Bounds]]:
    """The batches in a file that is gone afterwards, ready to be read, and the bounds of their keys."""
    from pyarrow import parquet

    bounds = _Bounds()
    with tempfile.TemporaryFile(prefix="segwatch_") as file:
        with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
                bounds.see(batch, keys)
        file.seek(0)
        yield file, bounds


def _bounds(held: Held, bounds: _Bounds) -> tuple[str, Value, Value] | None:
    """What the partition column's staged values lie between; None if the table has none among the keys."""
    if held.time is None or held.time not in bounds:
        return None
    type_ = _time_type(held)
    first, last = bounds[held.time]
    return held.time, Value(type_, first), Value(type_, last)
