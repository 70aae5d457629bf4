"""What segwatch asks of a warehouse; tests/contract/test_warehouse.py holds every backend to it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from segwatch.core.schema import TableSchema
from segwatch.core.window import Window
from segwatch.settings import Metric
from segwatch.warehouses.asked import Asked, Figure, Order

FEATURES_PREFIX = "segwatch_features_"
"""Start of the name of every temporary feature table; the run's id follows."""


class Warehouse(Protocol):
    """Reads observations, holds the temporary feature table, replaces predictions atomically.

    A table is given as `table` or `schema.table`. Times are UTC. Every table that segwatch makes is marked as
    its own, and only those are ever changed or dropped. Every call raises BackendError where the warehouse
    cannot be reached, and DataError where a table or its rows are not what the call needs.
    """

    def create_table(self, name: str, schema: TableSchema) -> bool:
        """The table exists, is segwatch's, and has every column of the schema. True if it was made now.

        Nullable columns that an earlier table of segwatch's lacks are added to it, at its end.
        Raises DataError if segwatch did not make the table, or its columns cannot become those of the schema.
        """
        ...

    def created_tables(self) -> list[str]:
        """Names of all tables that segwatch made, feature tables included, sorted."""
        ...

    def truncate(self, name: str) -> int:
        """The table is empty; returns how many rows it had.

        Raises DataError if segwatch did not make the table.
        """
        ...

    def drop_created(self) -> list[str]:
        """Nothing that segwatch made is left; returns the names of the tables dropped.

        A database file goes too if segwatch made it and nothing else is in it.
        """
        ...

    def insert(self, name: str, batches: Iterable[pa.RecordBatch], keys: Sequence[str]) -> int:
        """The table holds the batches' rows, in place of those with the same keys. Returns rows inserted.

        keys: columns in which rows are compared; NULL equals NULL. Inserting twice leaves the same table.
        All rows or none: an error, the batches' own included, leaves the table as it was.
        Raises DataError if segwatch did not make the table, so that no row of anyone else's is replaced.
        """
        ...

    def table_schema(self, name: str) -> pa.Schema | None:
        """Columns of a table or view; None if there is none. Its times are given as UTC microseconds."""
        ...

    def observations(self, source: Metric, window: Window) -> pa.Table:
        """One row per segment and period of the Window that has data, sorted by dimensions, then ts.

        Columns and types of `observations_schema(source.dimensions, source.sums)`; NULL dimensions are the text
        `<null>`.
        Raises DataError naming table, column and first example if the table or its rows cannot be watched, or
        if the Window holds no rows.
        """
        ...

    def observation_parts(self, source: Metric, window: Window) -> Generator[pa.Table]:
        """The rows of `observations`, of one moment, in tables, in any order; to be closed if not all are taken.

        Not more of them than one is in memory where the backend can do so.
        Raises DataError as `observations` does, before the first table.
        """
        ...

    def span(self, source: Metric) -> tuple[np.datetime64, np.datetime64] | None:
        """The first period that the table holds and the one after the last; None if it has no rows."""
        ...

    def calendar(self, source: Metric) -> pa.Table | None:
        """The user's own days, sorted by all columns; None where the metric names no calendar.

        Columns and types of `calendar_schema(source.dimensions)`. A missing last_day is first_day, a missing event
        the text `event`; a dimension that the table lacks is NULL, which is any value.
        Raises DataError naming table, column or first row, and mend if the table or a row is no calendar's.
        """
        ...

    def bytes_to_read(self, source: Metric, window: Window) -> int | None:
        """Bytes that `observations` and `calendar` would be billed for at most.

        None where the engine does not bill by bytes.
        """
        ...

    def write_features(self, run_id: str, rows: pa.Table, expires_at: dt.datetime) -> str:
        """The run's temporary feature table holds the rows and is marked with its expiry. Returns its name.

        A table that the same run wrote before is replaced.
        """
        ...

    def read_features(self, name: str) -> pa.Table:
        """The rows of a feature table, ordered by segment_id and ts. Raises DataError if it is not there."""
        ...

    def drop_features(self, name: str) -> None:
        """The feature table is gone, whether or not it was there.

        Raises DataError if the name is not that of a feature table.
        """
        ...

    def sweep_features(self, now: dt.datetime) -> list[str]:
        """Feature tables that have expired by now are gone; returns their names."""
        ...

    def replace_predictions(
        self,
        table: str,
        metric: str,
        window: Window,
        rows: pa.Table,
        selection: Mapping[str, frozenset[str]],
    ) -> int:
        """The rows stand in place of all predictions of (metric, Window, selection). Returns rows inserted.

        selection: wanted values by dimension column; all where empty. All or nothing: after an error, or the
        process's death, the table holds either the old rows or the new ones.
        Raises DataError if a row lies outside of what is replaced, since a second run would then double it.
        """
        ...

    def predictions(self, table: str, metric: str, window: Window) -> pa.Table:
        """Predictions of a metric in the Window, ordered by ts and segment_id."""
        ...

    def asked_rows(
        self,
        asked: Asked,
        columns: Sequence[str] = (),
        order: Sequence[Order] = (),
        limit: int | None = None,
        offset: int = 0,
    ) -> pa.Table:
        """Rows of a table that has a metric and ts, in order, from `offset` on and not more than `limit`.

        columns: all where empty; they hold those of the order. Raises DataError if the table or a column is missing.
        """
        ...

    def prediction_sums(self, asked: Asked, by: Sequence[str], figures: Sequence[Figure]) -> pa.Table:
        """Figures of predictions: one row for each combination of the columns `by`, in no order; one without any.

        n_rows, n_anomalies; of the rows with a value and an expected one the sums `value`, `expected` and `weight`: of
        ratios the numerators and the denominator, of others the weight is the number of rows; NULL where there is none.
        first, last: ts; scored_at: the latest.
        """
        ...

    def prediction_span(self, table: str, metric: str) -> tuple[np.datetime64, np.datetime64] | None:
        """First and last ts of a metric's predictions, datetime64[us]; None if there are none."""
        ...

    def close(self) -> None:
        """Nothing is held open. A later call opens the warehouse anew."""
        ...
