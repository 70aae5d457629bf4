"""What every warehouse reads of the user's own days, written once: an ibis expression, and the check of what comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.schema import CALENDAR_COLUMNS, calendar_schema
from segwatch.errors import DataError
from segwatch.settings import Metric
from segwatch.warehouses.query import is_opaque, is_timeless, moment, rows_have, type_name

EFFECTS = ("mask", "expect")
MOST_ROWS = 100_000
ABSENT = ": make the calendar, or take it out of the settings"
"""What to do about a table that is not there."""

_TIMES, _REQUIRED = ("first_day", "last_day"), ("first_day", "event", "effect")
_NO_EVENT = "event"
_LONGEST_TEXT = 60


def find_columns(held: pa.Schema, source: Metric) -> dict[str, str]:
    """The table's columns by the names of the calendar's and the dimensions; last_day and dimensions may be absent.

    Where no column is written so, one that differs in case alone: a value that is overlooked would mean any value.
    Raises DataError naming a column that is missing.
    """
    found = {name: _find(held.names, name) for name in (*CALENDAR_COLUMNS, *source.dimensions)}
    for name in _REQUIRED:
        if found[name] is None:
            raise DataError(
                f"{_place(source)} has no column {name!r}; it has {', '.join(held.names)}: add it, or name a view that"
                " has it"
            )
    return {name: column for name, column in found.items() if column is not None}


def check_types(table: ir.Table, source: Metric, columns: Mapping[str, str]) -> None:
    """Nothing happens if days are dates or times and the rest can be told as text.

    Raises DataError naming column, type and mend otherwise.
    """
    for name, column in columns.items():
        type_ = table.schema()[column]
        is_day = name in _TIMES
        if is_day and not (type_.is_date() or type_.is_timestamp()):
            wanted = "DATE, DATETIME or TIMESTAMP"
        elif not is_day and is_opaque(type_):
            wanted = "text, a number, a truth value or a date"
        else:
            continue
        raise DataError(
            f"{_place(source)} has the type {type_name(type_)} in column {column!r}; it must be {wanted}: name a view"
            " that casts it"
        )


def days(table: ir.Table, source: Metric, columns: Mapping[str, str]) -> ir.Table:
    """All rows, or one more than allowed: first, last, is_endless, event, effect, and d0, d1, ... as there are.

    table: has passed `check_types`. first and last are NULL where they are no date; is_endless tells such a last from
    one that is not given.
    """
    first = table[columns["first_day"]]
    last = table[columns.get("last_day", columns["first_day"])]
    texts = {
        f"d{i}": table[columns[name]].cast("string") for i, name in enumerate(source.dimensions) if name in columns
    }
    asked = table.select(
        first=is_timeless(first).ifelse(None, moment(first)),
        last=is_timeless(last).ifelse(None, moment(last)),
        is_endless=is_timeless(last) & last.notnull(),
        event=table[columns["event"]].cast("string"),
        effect=table[columns["effect"]].cast("string"),
        **texts,
    )
    return asked.limit(MOST_ROWS + 1)


def finish(rows: pa.Table, source: Metric) -> pa.Table:
    """The result of `days` as `calendar_schema` has it, sorted.

    Raises DataError naming the first row that is none of a calendar's, or the number of rows if they are too many.
    """
    if rows.num_rows > MOST_ROWS:
        raise DataError(
            f"{_place(source)} has more than {MOST_ROWS:,} rows: leave out in a view what is long past, or join the"
            " days of an event to one row"
        )
    table = _table(rows, source)
    for fault, mend, is_bad in _faults(table, rows["is_endless"]):
        bad = _in_order(table.filter(is_bad))
        if bad.num_rows:
            raise DataError(f"{_place(source)}: {rows_have(bad.num_rows)} {fault}, the first is {_row(bad)}; {mend}")
    return _in_order(table)


def _table(rows: pa.Table, source: Metric) -> pa.Table:
    schema = calendar_schema(source.dimensions)
    texts = [
        rows[f"d{i}"] if f"d{i}" in rows.column_names else pa.nulls(rows.num_rows, pa.string())
        for i in range(len(source.dimensions))
    ]
    # A last day that is no date is not made a good one: its row is told as it is.
    last = pc.if_else(rows["is_endless"], rows["last"], pc.coalesce(rows["last"], rows["first"]))
    columns = [rows["first"], last, pc.fill_null(rows["event"].cast(pa.string()), _NO_EVENT), rows["effect"], *texts]
    return pa.table([column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)


def _faults(table: pa.Table, is_endless: pa.ChunkedArray) -> list[tuple[str, str, pa.ChunkedArray]]:
    """What can be wrong with a row, how to mend it, and which rows it is wrong with."""
    first, last = table["first_day"], table["last_day"]
    # A day without a time is the whole of it, so that it can be the last of an event that begins later that day.
    is_whole = pc.equal(last, pc.floor_temporal(first, unit="day"))
    return [
        (
            "NULL or no date of the years 1 to 9999 in first_day",
            "mend first_day, or leave the row out in a view",
            pc.is_null(first),
        ),
        (
            "no date of the years 1 to 9999 in last_day",
            "mend last_day, or make it NULL if it is first_day",
            is_endless,
        ),
        (
            "a last_day before first_day",
            "swap them, or make last_day NULL if it is first_day",
            pc.and_(pc.less(last, first), pc.invert(is_whole)),
        ),
        (
            f"an effect that is not {' or '.join(EFFECTS)}",
            "write mask for days to leave out, expect for days whose effect is to be learned",
            pc.invert(pc.is_in(table["effect"], pa.array(EFFECTS))),
        ),
    ]


def _in_order(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in table.column_names])


def _find(names: Sequence[str], name: str) -> str | None:
    if name in names:
        return name
    return next((held for held in names if held.lower() == name.lower()), None)


def _place(source: Metric) -> str:
    return f"table {source.calendar!r} (the calendar)"


def _row(rows: pa.Table) -> str:
    """The first row's content, what is NULL left out."""
    [row] = rows.slice(0, 1).to_pylist()
    days = [f"{name} {row[name].isoformat().removesuffix('T00:00:00')}" for name in _TIMES if row[name] is not None]
    texts = [
        f"{name} {value[:_LONGEST_TEXT]!r}" for name, value in row.items() if name not in _TIMES and value is not None
    ]
    return ", ".join([*days, *texts])
