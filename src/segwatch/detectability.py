"""The detectability table: the smallest change of each segment that its model notices, as `segwatch evaluate` found.

Of a metric it holds the last evaluation alone; that of some of the segments replaces theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from segwatch.core.explanation import Detectable
from segwatch.core.injection import Found
from segwatch.core.panel import Segments
from segwatch.core.schema import TableSchema
from segwatch.core.segment import Selection
from segwatch.core.window import EVER, Grain, period_of, utc_of
from segwatch.data import detectability_schema
from segwatch.warehouses.asked import Asked, Order
from segwatch.warehouses.base import Warehouse


def detectability_table(dimensions: tuple[str, ...]) -> TableSchema:
    """Schema of the detectability table: the fixed columns and one for each dimension."""
    return detectability_schema().with_columns(dimensions, after="level")


def keep(
    warehouse: Warehouse,
    table: str,
    metric_name: str,
    segments: Segments,
    found: Sequence[Found],
    as_of: np.datetime64,
    stamp: Mapping[str, object],
    selection: Selection,
) -> int:
    """The table holds what was found, in place of what it held of the metric's selected segments; returns how many.

    as_of: the end of what was evaluated. stamp: run_id and evaluated_at.
    """
    rows = [
        {
            "metric": metric_name,
            "level": segments.levels[one.segment],
            **dict(zip(segments.dimensions, segments.values[one.segment], strict=True)),
            "segment_id": segments.ids[one.segment],
            "ts": utc_of(as_of),
            "median_value": one.size,
            "smallest_drop": _known(one.smallest_drop),
            "smallest_rise": _known(one.smallest_rise),
            **stamp,
        }
        for one in found
    ]
    schema = detectability_table(segments.dimensions).arrow()
    return warehouse.replace_predictions(table, metric_name, EVER, pa.Table.from_pylist(rows, schema=schema), selection)


def detectable_of(
    warehouse: Warehouse, table: str, metric_name: str, grain: Grain, segment_id: str
) -> Detectable | None:
    """What is known of a segment; None where it was not evaluated, or there is no table."""
    if warehouse.table_schema(table) is None:
        return None
    asked = Asked(table, metric_name, EVER, {"segment_id": frozenset({segment_id})})
    rows = warehouse.asked_rows(asked, order=[Order("ts", "down")], limit=1)
    return next((_detectable(row, grain) for row in rows.to_pylist()), None)


def _detectable(row: Mapping[str, Any], grain: Grain) -> Detectable:
    return Detectable(_share(row["smallest_drop"]), _share(row["smallest_rise"]), period_of(row["ts"], grain))


def _share(share: float | None) -> float:
    return np.nan if share is None else share


def _known(share: float) -> float | None:
    return float(share) if np.isfinite(share) else None
