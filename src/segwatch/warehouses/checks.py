"""What every warehouse asks of the rows and names that it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.window import Window
from segwatch.errors import DataError
from segwatch.warehouses.base import FEATURES_PREFIX

_UTC = pa.timestamp("us", tz="UTC")


def check_is_features(name: str) -> None:
    """Nothing happens if the name is that of a feature table."""
    if not name.startswith(FEATURES_PREFIX):
        raise DataError(f"{name!r} is not a feature table: their names start with {FEATURES_PREFIX}")


def check_names(table: str, held: Sequence[str], wanted: Iterable[str], place: str) -> None:
    """Nothing happens if the table has all columns that are wanted."""
    for column in wanted:
        if column not in held:
            raise DataError(f"table {table!r} in {place} has no column {column!r}; it has {', '.join(held)}")


def in_utc(columns: pa.Schema) -> pa.Schema:
    """The columns with every time as UTC microseconds, which a warehouse may hold without a zone."""
    return pa.schema([field.with_type(_UTC) if pa.types.is_timestamp(field.type) else field for field in columns])


def plain(rows: pa.Table) -> pa.Table:
    """The rows without what a driver says of their columns."""
    return rows.cast(pa.schema([field.remove_metadata() for field in rows.schema]))


def check_replaced(rows: pa.Table, metric: str, window: Window, selection: Mapping[str, frozenset[str]]) -> None:
    """Nothing happens if all rows lie within what is replaced; NULLs are left to the table's constraints."""
    missing = [name for name in ("metric", "ts", *selection) if name not in rows.column_names]
    if missing:
        raise DataError(f"the predictions have no column {missing[0]!r}; they have {', '.join(rows.column_names)}")
    start, end = (pa.scalar(moment, pa.timestamp("us")) for moment in window.as_datetimes())
    ts = rows["ts"].cast(pa.timestamp("us"))
    inside = {
        f"metric {metric}": pc.equal(rows["metric"], metric),
        f"Window {window}": pc.and_(pc.greater_equal(ts, start), pc.less(ts, end)),
    }
    for name, wanted in selection.items():
        inside[f"selection {name} = {', '.join(sorted(wanted))}"] = pc.is_in(
            rows[name], pa.array(sorted(wanted), pa.string())
        )
    for what, is_inside in inside.items():
        if not pc.all(is_inside, min_count=0).as_py():
            raise DataError(f"predictions outside of the {what} cannot replace those inside")
