"""A user's own rows, from a CSV or a Parquet file."""

from __future__ import annotations

import csv as text_csv
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.schema import LARGEST, TableSchema
from segwatch.data import metric_schema
from segwatch.errors import DataError, UsageError, disk_error
from segwatch.settings import Metric

_NOT_OF_ITS_TYPE = re.compile(r"In CSV column #(\d+): Row #(\d+): CSV conversion error to [^:]*: (.*)")
_NOT_A_ROW = re.compile(r"CSV parse error: Row #(\d+): (.*)")


def read_rows(path: Path, metric: Metric) -> pa.Table:
    """The rows of a .csv or .parquet file, in the columns and types of the metric's table.

    Raises UsageError if the file is of another kind or missing, DataError naming column and row (counted from 1, a
    header apart) if one of them does not fit or could not be watched.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UsageError(f"--from {path} is neither a .csv nor a .parquet file")
    if not path.is_file():
        raise UsageError(f"--from {path}: there is no such file")
    schema = metric_schema(metric)
    try:
        rows = _read_csv(path, schema) if path.suffix == ".csv" else _read_parquet(path)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise DataError(_explain(str(error).splitlines()[0], path, schema)) from error
    except OSError as error:
        raise disk_error(error, str(path)) from error
    if not rows.num_rows:
        raise DataError(f"{path} holds no rows")
    rows = schema.conform(rows, str(path))
    _check_rows(rows, metric, path)
    return rows


def _read_csv(path: Path, schema: TableSchema) -> pa.Table:
    """Times without a zone are UTC; those of a file have one all, or none."""
    naive = {c.name: pa.timestamp("us") for c in schema.columns if c.type == "TIMESTAMP"}
    try:
        return _parse_csv(path, schema, naive)
    except pa.ArrowInvalid as error:
        if "expected no zone offset" not in str(error):
            raise
    return _parse_csv(path, schema, {})


def _parse_csv(path: Path, schema: TableSchema, types: dict[str, pa.DataType]) -> pa.Table:
    """types: by column, where it is not that of the schema."""
    from pyarrow import csv

    # Only an empty field is NULL: "NA" is Namibia, and "null" may be somebody's channel.
    convert = csv.ConvertOptions(
        column_types={field.name: field.type for field in schema.arrow()} | types,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    # With several threads an error does not tell its row, and a value with a newline breaks at the edge of a block.
    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(use_threads=False),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=convert,
    )


def _read_parquet(path: Path) -> pa.Table:
    from pyarrow import parquet

    return parquet.read_table(path)


def _explain(said: str, path: Path, schema: TableSchema) -> str:
    """What PyArrow said, with the column's name in place of its number."""
    if found := _NOT_OF_ITS_TYPE.match(said):
        column = _header(path)[int(found[1])]
        types = {column.name: column.type for column in schema.columns}
        return f"{path}, column {column!r} (row {int(found[2]) - 1}): {found[3]}; it must be {types.get(column)}"
    if found := _NOT_A_ROW.match(said):
        return f"{path}, row {int(found[1]) - 1}: {found[2]}"
    return f"{path} cannot be read: {said}"


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(text_csv.reader(file))


def _check_rows(rows: pa.Table, metric: Metric, path: Path) -> None:
    """Nothing happens if every row can be watched: what a file brings in is harder to find in the table."""
    year = pc.year(rows[metric.time])
    _check(pc.or_(pc.less(year, 1), pc.greater(year, 9999)), f"{path} has no date of the years 1 to 9999", metric.time)
    for column in metric.sums.values():
        _check_number(rows[column], column, path)
    if metric.missing == "zero":
        mend = ', where missing = "zero" says that it is a count: mend the file, or set missing = "gap"'
        _check(pc.less(rows[metric.value], 0), f"{path} has a negative number", metric.value, mend)
    if metric.denominator is not None:
        _check(pc.less(rows[metric.denominator], 0), f"{path} has a negative number", metric.denominator)


def _check_number(numbers: pa.ChunkedArray, column: str, path: Path) -> None:
    if pa.types.is_floating(numbers.type):
        _check(pc.is_nan(numbers), f"{path} has NaN", column)
        _check(pc.greater(pc.abs(numbers), LARGEST), f"{path} has a number past {LARGEST:g}", column)


def _check(is_bad: pa.ChunkedArray, what: str, column: str, mend: str = ": mend the file") -> None:
    row = pc.index(is_bad, True).as_py()
    if row >= 0:
        raise DataError(f"{what} in column {column!r} (row {row + 1}){mend}")
