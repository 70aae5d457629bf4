"""Columns of prediction rows as arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.panel import Bools, Floats
from segwatch.core.window import Times


def times_of(rows: pa.Table) -> Times:
    """(n_rows,) times in UTC, microseconds."""
    return np.asarray(rows["ts"].cast(pa.timestamp("us")).to_numpy().astype("datetime64[us]"))


def floats_of(rows: pa.Table, name: str) -> Floats:
    """(n_rows,) numbers of a column, NaN for NULL."""
    return np.asarray(rows[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def bools_of(rows: pa.Table, name: str, equal_to: str) -> Bools:
    """(n_rows,) whether a text column holds this text."""
    return np.asarray(pc.fill_null(pc.equal(rows[name], equal_to), False).to_numpy(), dtype=bool)


def flagged_of(rows: pa.Table) -> pa.Table:
    """The rows that are anomalies."""
    return rows.filter(rows["is_anomaly"])
