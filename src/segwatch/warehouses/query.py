"""What every warehouse reads of a metric, written once: ibis expressions, and the check of what comes back.

A backend hands in its table as an ibis table that has (at least) the metric's columns.
"""

from __future__ import annotations

import datetime as dates
from collections.abc import Callable
from itertools import product
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ibis.common.exceptions import IbisError

from segwatch.core.schema import LARGEST, observations_schema
from segwatch.core.segment import NULL, label
from segwatch.core.window import Window, length, unit
from segwatch.errors import DataError
from segwatch.settings import Metric

FAULTS = {
    "null": "NULL",
    "nan": "NaN",
    "infinite": "an infinite number",
    "negative": "a negative number",
}
"""What can be wrong with a number that is summed; `faults` counts each by its name behind that of the sum."""

_TRUNCATION = {"day": "D", "hour": "h"}
_MICROSECONDS = dt.Timestamp(scale=6)
_FIRST_DAY, _LAST_DAY = dates.datetime(1, 1, 1), dates.datetime(9999, 12, 31)


def bind(columns: pa.Schema, name: str, database: str, catalog: str | None = None) -> ir.Table:
    """The ibis table of a name with the columns given; a type that ibis does not know becomes `unknown`."""
    types = {field.name: _ibis_type(field.type) for field in columns}
    return ibis.table(types, name=name, database=database, catalog=catalog)


def check_columns(table: ir.Table, source: Metric) -> None:
    """Nothing happens if the metric's columns have types that can be watched.

    Raises DataError naming table, column, type and mend otherwise.
    """
    time = table.schema()[source.time]
    at = f"table {source.table!r}, column"
    if not (time.is_date() or time.is_timestamp()):
        raise DataError(
            f"{at} {source.time!r} (the time) has the type {type_name(time)}; it must be DATE, DATETIME or"
            " TIMESTAMP: name another column, or make a view that casts it"
        )
    if time.is_date() and source.grain == "hour":
        raise DataError(
            f"{at} {source.time!r} (the time) is a DATE, which cannot hold hours; set grain = 'day' or"
            " name a TIMESTAMP column"
        )
    for role, column in source.sums.items():
        number = table.schema()[column]
        if not number.is_numeric() or number.is_boolean():
            raise DataError(
                f"{at} {column!r} (the {role}) has the type {type_name(number)}; it must be a number: name another"
                " column, or make a view that casts it"
            )
    for name in source.dimensions:
        if is_opaque(table.schema()[name]):
            raise DataError(
                f"{at} {name!r} (a dimension) has the type {type_name(table.schema()[name])}; it must be text, a"
                " number, a truth value or a date: make a view that takes it apart"
            )


def observations(table: ir.Table, source: Metric, window: Window, in_order: bool = True) -> ir.Table:
    """One row per segment and period: ts, d0, d1, ..., value, denominator where the metric has one, n_rows.

    The numbered names cannot clash with one another or with ts, whatever the case that a backend folds;
    `finish` puts the dimensions' own in their place.
    """
    rows = table.filter(_within(table, source, window))
    keys = _texts(rows, source)
    # Cast last: whole numbers and decimals add up exactly, in any order.
    sums = {name: rows[column].sum().cast("float64") for name, column in source.sums.items()}
    summed = rows.group_by(ts=_period(rows, source), **keys).aggregate(**sums, n_rows=rows.count())
    selected = summed.select("ts", *keys, *sums, "n_rows")
    return selected.order_by([*keys, "ts"]) if in_order else selected


def extent(table: ir.Table, source: Metric) -> ir.Table:
    """One row about the whole table: first and last time, and n_timeless, the rows without a usable time."""
    time = moment(table[source.time])
    return table.aggregate(
        first=time.min(), last=time.max(), n_timeless=table.count(where=is_timeless(table[source.time]))
    )


def at_any_time(table: ir.Table, column: str) -> ir.Table:
    """All rows of the table, by a filter on a time of it: an engine may refuse to read a partitioned table without one.

    Only for engines whose times all lie in the years 1 to 9999.
    """
    time = _filterable(table[column])
    return table.filter((time >= moment_like(time, _FIRST_DAY)) | time.isnull())


def faults(table: ir.Table, source: Metric, window: Window) -> ir.Table:
    """One row: n_timeless of the table, n_rows of the Window, and how many of those have each fault of a number."""
    # Filtered first, so that an engine with partitions reads those of the Window and of NULL, and no others.
    rows = table.filter(_within(table, source, window) | is_timeless(table[source.time]))
    within = _within(rows, source, window)
    counts = {name: rows.count(where=within & bad) for name, bad in _bad_numbers(rows, source).items()}
    return rows.aggregate(
        n_timeless=rows.count(where=is_timeless(rows[source.time])), n_rows=rows.count(where=within), **counts
    )


def example(table: ir.Table, source: Metric, window: Window, fault: str) -> ir.Table:
    """The first row of the Window with a fault: ts, d0, d1, ..."""
    bad = table.filter(_within(table, source, window) & _bad_numbers(table, source)[fault])
    texts = _texts(bad, source)
    return bad.select(ts=moment(bad[source.time]), **texts).order_by(["ts", *texts]).limit(1)


def timeless_example(table: ir.Table, source: Metric) -> ir.Table:
    """One row without a usable time: d0, d1, ..."""
    bad = table.filter(is_timeless(table[source.time]))
    texts = _texts(bad, source)
    return bad.select(**texts).order_by(list(texts)).limit(1)


Run = Callable[[ir.Table], pa.Table]
"""Executes an expression on the backend."""


def check_rows(run: Run, table: ir.Table, source: Metric, window: Window) -> int:
    """How many rows the Window holds, if it holds some and all of them can be watched.

    Raises DataError naming table, column, how many rows and the first of them.
    """
    counts = run(faults(table, source, window))
    _check_times(run, counts, table, source)
    if _count(counts, "n_rows") == 0:
        raise DataError(_nothing_in(window, source, ends(run(extent(table, source)), source)))
    for role, fault in product(source.sums, FAULTS):
        name = f"{role}_{fault}"
        if name in counts.column_names and _count(counts, name):
            first = run(example(table, source, window, name))
            raise DataError(_bad_number(source, role, window, fault, _count(counts, name), first))
    return _count(counts, "n_rows")


def read_span(run: Run, table: ir.Table, source: Metric) -> tuple[np.datetime64, np.datetime64] | None:
    """The first period that the table holds and the one after the last; None if it has no rows.

    Raises DataError if a row has no usable time.
    """
    counts = run(extent(table, source))
    _check_times(run, counts, table, source)
    return ends(counts, source)


def ends(counts: pa.Table, source: Metric) -> tuple[np.datetime64, np.datetime64] | None:
    """The span in a result of `extent`."""
    if counts["first"].null_count:
        return None
    first, last = (counts[name].to_numpy()[0] for name in ("first", "last"))
    grain = source.grain
    return np.datetime64(first, unit(grain)), np.datetime64(last, unit(grain)) + length(1, grain)


def finish(rows: pa.Table, source: Metric) -> pa.Table:
    """The result of `observations` as `named`, in the promised order."""
    return in_order(named(rows, source), [*source.dimensions, "ts"])


def named(rows: pa.Table, source: Metric) -> pa.Table:
    """The result of `observations` with the dimensions' names and the promised types.

    Raises DataError if a sum is past LARGEST.
    """
    schema = observations_schema(source.dimensions, source.sums)
    table = rows.rename_columns(schema.names).cast(schema)
    for role in source.sums:
        _check_size(table, source, role)
    return table


def _check_size(table: pa.Table, source: Metric, role: str) -> None:
    """Nothing happens if no sum is past LARGEST."""
    large = table.filter(pc.greater(pc.abs(table[role]), LARGEST))
    if large.num_rows:
        first = large.slice(0, 1)
        raise DataError(
            f"{_place(source, role)}: the rows of {_segment(first.select([*source.dimensions]))} at {first['ts'][0]}"
            f" add up to a number past {LARGEST:g}; mend them or leave them out in a view"
        )


def in_order(table: pa.Table, keys: list[str]) -> pa.Table:
    """The rows sorted by keys that hold no NULL, text in byte order."""
    # ORDER BY is not to be trusted: collations, enums and parallel Arrow readers each change the order.
    return table if _is_sorted(table, keys) else table.sort_by([(key, "ascending") for key in keys])


def _is_sorted(table: pa.Table, keys: list[str]) -> bool:
    """Whether each row's keys are greater than those of the row before."""
    earlier, later = table.slice(0, max(0, table.num_rows - 1)), table.slice(1)
    is_less: Any = pa.scalar(False)
    is_tied: Any = pa.scalar(True)
    for key in keys:
        is_less = pc.or_(is_less, pc.and_(is_tied, pc.less(earlier[key], later[key])))
        is_tied = pc.and_(is_tied, pc.equal(earlier[key], later[key]))
    return bool(pc.all(is_less, min_count=0).as_py())


def _ibis_type(type_: pa.DataType) -> dt.DataType:
    try:
        return dt.DataType.from_pyarrow(type_)
    except (ValueError, KeyError, NotImplementedError, IbisError):
        return dt.unknown


def _within(table: ir.Table, source: Metric, window: Window) -> ir.BooleanValue:
    start, end = window.as_datetimes()
    time = _filterable(table[source.time])
    return (time >= moment_like(time, start)) & (time < moment_like(time, end))


def _filterable(time: ir.Value) -> ir.Value:
    """The time as a filter compares it: the bare column where that can be, as casting it would hide partitions."""
    is_plain = time.type().is_date() or time.type().scale in (None, _MICROSECONDS.scale)
    return time if is_plain else moment(time)


def moment_like(time: ir.Value, at: dates.datetime) -> ir.Value:
    """A naive UTC moment as a value of the time's own type."""
    if time.type().is_date():
        return ibis.date(at.date())
    return ibis.timestamp(at.replace(tzinfo=dates.UTC) if time.type().timezone else at)


def moment(time: ir.Value) -> ir.TimestampValue:
    """The time as a UTC timestamp without a zone."""
    return time.cast(_MICROSECONDS)


def _period(table: ir.Table, source: Metric) -> ir.TimestampValue:
    return moment(table[source.time]).truncate(_TRUNCATION[source.grain]).cast(_MICROSECONDS)


def is_timeless(time: ir.Value) -> ir.BooleanValue:
    """NULL, or outside of the years that a date can have: DuckDB stores even 'infinity' as a time."""
    time = _filterable(time)
    return time.isnull() | (time < moment_like(time, _FIRST_DAY)) | (time > moment_like(time, _LAST_DAY))


def _texts(table: ir.Table, source: Metric) -> dict[str, ir.StringValue]:
    """The dimensions as text: d0, d1, ..."""
    return {f"d{i}": table[name].cast("string").fill_null(NULL) for i, name in enumerate(source.dimensions)}


def _bad_numbers(table: ir.Table, source: Metric) -> dict[str, ir.BooleanValue]:
    """What is bad in a row, by the sum and the fault: `value_null`."""
    return {
        f"{role}_{fault}": bad
        for role, column in source.sums.items()
        for fault, bad in _bad(table[column], is_count=role == "denominator" or source.missing == "zero").items()
    }


def _bad(number: ir.NumericValue, is_count: bool) -> dict[str, ir.BooleanValue]:
    bad: dict[str, ir.BooleanValue] = {"null": number.isnull()}
    # PostgreSQL's NUMERIC holds NaN and infinity too.
    if number.type().is_floating() or number.type().is_decimal():
        bad["nan"] = number.cast("float64").isnan()
        bad["infinite"] = number.cast("float64").isinf()
    if is_count:
        bad["negative"] = number < 0
    return bad


def _check_times(run: Run, counts: pa.Table, table: ir.Table, source: Metric) -> None:
    count = _count(counts, "n_timeless")
    if count:
        first = run(timeless_example(table, source))
        raise DataError(
            f"table {source.table!r}, column {source.time!r} (the time): {rows_have(count)} NULL or no"
            f" date of the years 1 to 9999, the first in {_segment(first)}; mend the rows or leave them"
            " out in a view"
        )


def _bad_number(source: Metric, role: str, window: Window, fault: str, count: int, first: pa.Table) -> str:
    mend = "mend the rows or leave them out in a view"
    if (role, fault) == ("value", "negative"):
        mend += ', or set missing = "gap" if the metric is not a count'
    when = np.datetime_as_string(first["ts"].to_numpy()[0].astype("datetime64[s]"))
    return (
        f"{_place(source, role)}: {rows_have(count)} {FAULTS[fault]} in the Window {window}, the first at {when} in"
        f" {_segment(first)}; {mend}"
    )


def _place(source: Metric, role: str) -> str:
    """Where a number is, for a message."""
    return f"table {source.table!r}, column {source.sums[role]!r} (the {role})"


def _nothing_in(window: Window, source: Metric, held: tuple[np.datetime64, np.datetime64] | None) -> str:
    if held is None:
        return f"table {source.table!r} holds no rows: load some, or name another table"
    return (
        f"table {source.table!r} has no rows in the Window {window}; it holds {held[0]} to"
        f" {held[1] - length(1, source.grain)}:"
        " choose a Window within"
    )


def _count(counts: pa.Table, name: str) -> int:
    return int(counts[name][0].as_py())


def rows_have(count: int) -> str:
    return "1 row has" if count == 1 else f"{count} rows have"


def _segment(first: pa.Table) -> str:
    texts = first.select([name for name in first.column_names if name != "ts"])
    return f"segment {label(texts.to_pylist()[0].values())}"


def is_opaque(type_: dt.DataType) -> bool:
    return bool(type_.is_nested() or type_.is_binary() or type_.is_unknown())


def type_name(type_: dt.DataType) -> str:
    return str(type_.copy(nullable=True)).upper()
