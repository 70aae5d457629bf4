"""Columns of prediction rows as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.panel import Bools, Floats
from segwatch.core.segment import level
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


def is_counted(rows: pa.Table) -> Bools:
    """(n_rows,) whether a row has both numbers that totals compare, the value and the expected one."""
    return np.isfinite(floats_of(rows, "value")) & np.isfinite(floats_of(rows, "expected"))


def apart(rows: pa.Table, dimensions: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """The rows of segments, and those of roll-ups, which hold again what the segments' rows hold."""
    is_segment = pc.equal(rows["level"], level(dimensions, dimensions))
    return rows.filter(is_segment), rows.filter(pc.invert(is_segment))


def flagged_of(rows: pa.Table) -> pa.Table:
    """The rows that are anomalies."""
    return rows.filter(rows["is_anomaly"])


def impact_of(rows: pa.Table) -> Floats:
    """(n_rows,) value - expected, NaN where one is missing."""
    return floats_of(rows, "value") - floats_of(rows, "expected")


def largest_first(impact: Floats) -> npt.NDArray[np.intp]:
    """(n_rows,) places from the largest |impact| to the smallest; those of no known impact last."""
    return np.argsort(-np.abs(impact), kind="stable")
