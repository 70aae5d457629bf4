"""A user's own rows, from a CSV or a Parquet file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from segwatch.core.schema import TableSchema
from segwatch.errors import DataError, UsageError


def read_rows(path: Path, schema: TableSchema) -> pa.Table:
    """The rows of a .csv or .parquet file, in the columns and types of the schema.

    Raises UsageError if the file is of another kind or missing, DataError if its rows do not fit.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UsageError(f"--from {path} is neither a .csv nor a .parquet file")
    if not path.is_file():
        raise UsageError(f"--from {path}: there is no such file")
    try:
        rows = _read_csv(path, schema) if path.suffix == ".csv" else _read_parquet(path)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not rows.num_rows:
        raise DataError(f"{path} holds no rows")
    return schema.conform(rows, str(path))


def _read_csv(path: Path, schema: TableSchema) -> pa.Table:
    from pyarrow import csv

    # Only an empty field is NULL: "NA" is Namibia, and "null" may be somebody's channel.
    convert = csv.ConvertOptions(
        column_types={field.name: field.type for field in schema.arrow()},
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    return csv.read_csv(path, convert_options=convert)


def _read_parquet(path: Path) -> pa.Table:
    from pyarrow import parquet

    return parquet.read_table(path)
