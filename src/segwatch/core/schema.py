"""Tables: columns in BigQuery's JSON form, their Arrow types, and the check of rows against them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from segwatch.errors import DataError

ARROW_TYPES: dict[str, pa.DataType] = {
    "STRING": pa.string(),
    "INTEGER": pa.int64(),
    "FLOAT": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
}


LARGEST = 1e100
"""Values past it, of either sign, are refused: squares and sums of the features would overflow."""


@dataclass(frozen=True)
class Column:
    """One column: its name, its BigQuery type, whether NULL is refused, and what it holds."""

    name: str
    type: str
    required: bool = False
    description: str = ""


@dataclass(frozen=True)
class TableSchema:
    """The ordered columns of a table. Every warehouse creates its tables from this."""

    columns: tuple[Column, ...]

    @classmethod
    def from_json(cls, text: str) -> TableSchema:
        """The schema that a BigQuery JSON schema file holds.

        Raises DataError if the text is not such a file or uses a type segwatch does not store.
        """
        try:
            fields = json.loads(text)
            columns = tuple(
                Column(f["name"], f["type"], f.get("mode") == "REQUIRED", f.get("description", "")) for f in fields
            )
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"the table schema is not BigQuery JSON: {error!r}") from error
        for column in columns:
            if column.type not in ARROW_TYPES:
                raise DataError(
                    f"column {column.name} has the type {column.type}; a schema file can hold {', '.join(ARROW_TYPES)}"
                )
        return cls(columns)

    def to_json(self) -> str:
        """BigQuery JSON; `from_json` reads it back."""
        fields = [
            {
                "name": c.name,
                "type": c.type,
                "mode": "REQUIRED" if c.required else "NULLABLE",
                "description": c.description,
            }
            for c in self.columns
        ]
        return json.dumps(fields, indent=2)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def arrow(self) -> pa.Schema:
        """The Arrow schema, with NOT NULL where the column is required."""
        return pa.schema([pa.field(c.name, ARROW_TYPES[c.type], nullable=not c.required) for c in self.columns])

    def with_columns(self, names: Sequence[str], after: str, type_: str = "STRING") -> TableSchema:
        """The schema with nullable columns put behind the column `after`."""
        at = self.names.index(after) + 1
        added = tuple(Column(name, type_) for name in names)
        return TableSchema(self.columns[:at] + added + self.columns[at:])

    def conform(self, rows: pa.Table, source: str) -> pa.Table:
        """The rows with this schema's columns, order and types.

        source: what to call the rows in a message. Extra columns are refused, so that nothing is dropped unsaid.
        Raises DataError naming the column if one is missing, there twice, unknown, of a type that does not convert
        without loss, or holds a NULL where the schema refuses it.
        """
        twice = [name for name in rows.column_names if rows.column_names.count(name) > 1]
        if twice:
            raise DataError(f"{source} has the column {twice[0]!r} {rows.column_names.count(twice[0])} times: keep one")
        missing = [name for name in self.names if name not in rows.column_names]
        if missing:
            raise DataError(f"{source} has no column {missing[0]!r}: it holds {', '.join(rows.column_names)}")
        unknown = [name for name in rows.column_names if name not in self.names]
        if unknown:
            raise DataError(f"{source} has the column {unknown[0]!r}, which is none of {', '.join(self.names)}")
        columns = [_conform_column(rows[column.name], column, source) for column in self.columns]
        return pa.table(columns, schema=self.arrow())


def _conform_column(values: pa.ChunkedArray, column: Column, source: str) -> pa.ChunkedArray:
    wanted = ARROW_TYPES[column.type]
    if column.required and values.null_count:
        row = _first_null(values)
        raise DataError(f"{source} has NULL in column {column.name!r} (row {row + 1}), which needs a value")
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        return _cast(values, wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{source} has {values.type} in column {column.name!r}, which must be {column.type}: {error}"
        ) from error


def _cast(values: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_timestamp(wanted) and pa.types.is_timestamp(values.type) and values.type.tz is None:
        # A time without a zone is UTC; a plain cast to a zoned type says the same.
        return values.cast(pa.timestamp("us")).cast(wanted)
    if pa.types.is_integer(wanted) and pa.types.is_string(values.type):
        raise pa.ArrowInvalid("text is not a number")
    return values.cast(wanted)


def _first_null(values: pa.ChunkedArray) -> int:
    return int(values.is_null().to_numpy().argmax())


def observations_schema(dimensions: Sequence[str], sums: Iterable[str] = ("value",)) -> pa.Schema:
    """What a warehouse returns for a Window: one row per segment and period that has data.

    ts: start of the period, UTC. value: sum of the period's rows; of a ratio, that of its numerator, with the
    denominator's beside it. n_rows: how many rows were summed. sums: `Metric.sums`.
    """
    return pa.schema(
        [
            pa.field("ts", pa.timestamp("us"), nullable=False),
            *(pa.field(name, pa.string(), nullable=False) for name in dimensions),
            *(pa.field(name, pa.float64(), nullable=False) for name in sums),
            pa.field("n_rows", pa.int64(), nullable=False),
        ]
    )


CALENDAR_COLUMNS = ("first_day", "last_day", "event", "effect")
"""Columns of a calendar beside its dimensions."""


def calendar_schema(dimensions: Sequence[str]) -> pa.Schema:
    """What a warehouse returns of the user's own days: one row per event and the segments that it concerns.

    first_day, last_day: UTC, both inclusive; a time of the day where the table has one. effect: `mask` or `expect`.
    A dimension holds the value that is concerned, as observations have it, and NULL for any value.
    """
    return pa.schema(
        [
            pa.field("first_day", pa.timestamp("us"), nullable=False),
            pa.field("last_day", pa.timestamp("us"), nullable=False),
            pa.field("event", pa.string(), nullable=False),
            pa.field("effect", pa.string(), nullable=False),
            *(pa.field(name, pa.string()) for name in dimensions),
        ]
    )


def to_metadata(document: dict[str, Any]) -> str:
    """Canonical JSON: the same document always gives the same text."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))
