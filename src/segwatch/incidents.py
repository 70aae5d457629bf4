"""The incidents table: one row for each incident and period that something is said of it.

The latest row of an incident is what is known of it. A Window's rows follow from its predictions and from what was open
before it, so that scoring it again gives the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.incidents import Incident, Scored, follow
from segwatch.core.panel import Ints, Segments
from segwatch.core.schema import TableSchema
from segwatch.core.segment import level, segment_id
from segwatch.core.window import EVER, Grain, Window, length, period_of, utc_of
from segwatch.data import incidents_schema
from segwatch.settings import Metric
from segwatch.warehouses.asked import Asked, Order
from segwatch.warehouses.base import Warehouse

# Periods before a Window in which an incident that is still open may have its last row: those may not have been scored.
_LOOKED_BACK = 30


def incidents_table(dimensions: tuple[str, ...]) -> TableSchema:
    """Schema of the incidents table: the fixed columns and one for each dimension."""
    return incidents_schema().with_columns(dimensions, after="level")


def update_incidents(
    warehouse: Warehouse,
    table: str,
    metric_name: str,
    metric: Metric,
    window: Window,
    predictions: pa.Table,
) -> list[Incident]:
    """The table holds what the Window's predictions say of incidents; returns it, in the order of time."""
    earlier = Window(window.start - length(_LOOKED_BACK, metric.grain), window.start, metric.grain)
    open_ = [one for one in latest(incidents_of(warehouse, table, metric_name, metric, earlier))
             if one.status != "resolved"]  # fmt: skip
    said: list[Incident] = []
    for ts, scored in _by_period(predictions, metric):
        now, open_ = follow(metric_name, open_, scored, ts, metric.grain)
        said += now
    stamp = predictions.select(["model_version", "run_id", "scored_at"]).slice(0, 1).to_pylist()
    rows = _rows(said, metric_name, metric.dimensions, stamp[0] if stamp else {})
    warehouse.replace_predictions(table, metric_name, window, rows, {})
    return said


def incidents_of(warehouse: Warehouse, table: str, metric_name: str, metric: Metric, window: Window) -> list[Incident]:
    """What was said of incidents in the Window, in the order of time."""
    return incidents_in(warehouse.predictions(table, metric_name, window), metric)


def incidents_in(rows: pa.Table, metric: Metric) -> list[Incident]:
    """What rows of the incidents table say."""
    return [_incident(row, metric.dimensions, metric.grain) for row in rows.to_pylist()]


def incidents_with(warehouse: Warehouse, table: str, metric_name: str, metric: Metric, text: str) -> list[Incident]:
    """What was said of incidents whose ids hold a text, in the order of time."""
    asked = Asked(table, metric_name, EVER, words=(text,), searched=("incident_id",))
    return incidents_in(warehouse.asked_rows(asked, order=[Order("ts")]), metric)


def latest(said: Iterable[Incident]) -> list[Incident]:
    """What is known of each incident, of what was said of them in the order of time."""
    return list({one.id: one for one in said}.values())


def known(said: pa.Table) -> pa.Table:
    """One row for each incident: the latest of what was said of it, and of its worst period `worst_ts`, `worst_impact`,
    `worst_impact_share` and `worst_change_share`.

    said: rows of the incidents table, in any order.
    """
    if not said.num_rows:
        last = worst = pa.array([], pa.int64())
    else:
        ids = said["incident_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        times = said["ts"].cast(pa.int64()).to_numpy()
        last, worst = (_last_of(ids, key) for key in (times, np.abs(said["impact"].to_numpy())))
    rows, worst_rows = said.take(last), said.take(worst)
    for name in ("ts", "impact", "impact_share", "change_share"):
        rows = rows.append_column(f"worst_{name}", worst_rows[name])
    return rows


def _last_of(ids: Ints, key: npt.NDArray[Any]) -> pa.Array:
    """The row of the largest key of each id, in the order of the ids."""
    order = np.lexsort((key, ids))
    is_last = np.r_[ids[order][1:] != ids[order][:-1], True]
    return pa.array(order[is_last])


def _by_period(predictions: pa.Table, metric: Metric) -> Iterable[tuple[np.datetime64, Scored]]:
    """The scored rows of each period, in the order of time."""
    rows = predictions.filter(pc.and_(pc.is_valid(predictions["p_value"]), pc.is_valid(predictions["value"])))
    for ts in pc.unique(rows["ts"]).sort():
        some = rows.filter(pc.equal(rows["ts"], ts)).sort_by("segment_id")
        values, expected, denominator = (some[name].to_numpy() for name in ("value", "expected", "denominator"))
        # Ratios cannot be added up, but what they are made of can.
        times = denominator if metric.feature_set.kind == "ratio" else 1.0
        yield (
            period_of(ts.as_py(), metric.grain),
            Scored(
                segments=Segments.from_columns(metric.dimensions, some),
                values=values * times,
                expected=expected * times,
                is_anomaly=np.array(some["is_anomaly"], dtype=bool),
                is_additive=metric.feature_set.kind != "value",
                weight=denominator if metric.feature_set.kind == "ratio" else None,
            ),
        )


def _rows(
    said: Sequence[Incident], metric_name: str, dimensions: tuple[str, ...], stamp: Mapping[str, object]
) -> pa.Table:
    schema = incidents_table(dimensions).arrow()
    rows = [
        {
            "metric": metric_name,
            "incident_id": one.id,
            "ts": utc_of(one.ts),
            "status": one.status,
            "direction": one.direction,
            "first_seen": utc_of(one.first_seen),
            "last_seen": utc_of(one.last_seen),
            "level": level(dimensions, one.values),
            **dict(zip(dimensions, one.values, strict=True)),
            "segment_id": segment_id(dimensions, one.values),
            "impact": one.impact,
            "impact_share": _known(one.impact / one.expected) if one.expected else None,
            "change_share": _known(one.share),
            "total_impact": one.total_impact,
            "peak_impact": one.peak,
            "n_segments": one.n_segments,
            "segments": json.dumps([list(pair) for pair in zip(one.segments, one.labels, strict=True)]),
            "model_version": stamp["model_version"],
            "run_id": stamp["run_id"],
            "updated_at": stamp["scored_at"],
        }
        for one in said
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _known(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def _incident(row: Mapping[str, object], dimensions: tuple[str, ...], grain: Grain) -> Incident:
    """Inverse of `_rows`."""

    def period(name: str) -> np.datetime64:
        return period_of(row[name], grain)  # type: ignore[arg-type]

    def number(name: str) -> float:
        value = row[name]
        return np.nan if value is None else float(value)  # type: ignore[arg-type]

    pairs = json.loads(str(row["segments"]))
    impact, relative = number("impact"), number("impact_share")
    return Incident(
        id=str(row["incident_id"]),
        ts=period("ts"),
        first_seen=period("first_seen"),
        last_seen=period("last_seen"),
        status=row["status"],  # type: ignore[arg-type]
        direction=row["direction"],  # type: ignore[arg-type]
        values=tuple(row[name] for name in dimensions),  # type: ignore[misc]
        impact=impact,
        expected=impact / relative if relative else np.nan,
        share=number("change_share"),
        total_impact=number("total_impact"),
        peak=number("peak_impact"),
        n_segments=int(number("n_segments")),
        segments=tuple(id_ for id_, _ in pairs),
        labels=tuple(name for _, name in pairs),
    )
