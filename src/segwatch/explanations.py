"""Explanations from the tables alone: what predictions, incidents and detectability say of a row, without the model.

They cost no more than reading a period's rows, so that a page can have one for each of its alerts. What needs the model
and the data, `segwatch.explain` adds.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.explanation import (
    Detectable,
    Explanation,
    Period,
    Row,
    Verdict,
    from_json,
    incident_of,
)
from segwatch.core.incidents import Incident
from segwatch.core.panel import Floats, Segments
from segwatch.core.segment import ALL, TOTAL, label
from segwatch.core.window import period_of
from segwatch.errors import DataError
from segwatch.settings import Metric

_NEAR, _LISTED = 3, 5


@dataclass(frozen=True)
class ScoredPeriod:
    """The predictions of one period, of all segments and roll-ups. rows: as the predictions table has them.

    incidents: what was said in the period.
    """

    metric_name: str
    metric: Metric
    rows: pa.Table
    incidents: Sequence[Incident] = ()

    @property
    def ts(self) -> np.datetime64:
        return period_of(self.rows["ts"][0].as_py(), self.metric.grain)

    @cached_property
    def period(self) -> Period:
        """The rows as arrays."""
        value, expected, p_value, impact = map(self._numbers, ("value", "expected", "p_value", "impact"))
        if self.metric.feature_set.kind == "ratio":
            impact = impact * self._numbers("denominator")
        is_anomaly = np.array(self.rows["is_anomaly"].to_pylist(), dtype=bool)
        return Period(self._segments, value, expected, impact, p_value, is_anomaly)

    @cached_property
    def _segments(self) -> Segments:
        return Segments.from_columns(self.metric.dimensions, self.rows)

    def _numbers(self, name: str) -> Floats:
        column = self.rows[name].combine_chunks()
        return np.asarray(pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False), dtype=np.float64)

    def find(self, segment: str) -> int:
        """The position of the row of a segment, given by its label or id.

        Raises DataError where none is, naming those that are near, or where a label names several.
        """
        segments = self._segments
        if segment in segments.position:
            return segments.position[segment]
        labels = [label(values) for values in segments.values]
        is_total = segment in (TOTAL, "/".join([ALL] * len(self.metric.dimensions)))
        found = [i for i, name in enumerate(labels) if name == (TOTAL if is_total else segment)]
        if len(found) == 1:
            return found[0]
        if found:
            # A value may hold a slash, or be a star.
            ids = "; ".join(f"{segments.ids[i]} ({', '.join(map(str, segments.values[i]))})" for i in found[:_LISTED])
            raise DataError(f"{segment!r} names {len(found)} segments: give the id of one: {ids}")
        raise DataError(self._unknown(segment, labels))

    def _unknown(self, segment: str, labels: Sequence[str]) -> str:
        near = difflib.get_close_matches(segment, labels, _NEAR) or sorted(labels)[:_NEAR]
        said = f"no segment {segment!r} in the predictions of {self.metric_name} at {self.ts}"
        if ALL in segment.split("/"):
            said += f" (roll-ups are watched up to max_rollup_order, which is {self.metric.max_rollup_order})"
        return f"{said}: write it as {'/'.join(self.metric.dimensions)}, as in {', '.join(near)}"

    def explanation(self, at: int, detectable: Detectable | None = None) -> Explanation:
        """What the tables say of the row at a position."""
        row, period = self.period.row(at), self.period
        fields: dict[str, Any] = self.rows.slice(at, 1).to_pylist()[0]
        incident = incident_of(row, self.incidents) if np.isfinite(row.p_value) else None
        return Explanation(
            metric=self.metric_name,
            kind=self.metric.feature_set.kind,
            grain=self.metric.grain,
            ts=self.ts,
            row=row,
            status=fields["status"],
            reason=fields["reason"],
            verdict=self._verdict(row, fields),
            n_rows=int(np.isfinite(period.p_value).sum()),
            lower=_number(fields["lower"]),
            upper=_number(fields["upper"]),
            score=_number(fields["score"]),
            model_version=fields["model_version"],
            parts=from_json(fields.get("contributions")),
            parents=period.parents(at),
            inside=period.inside(at),
            siblings=period.siblings(at),
            incident=incident,
            suspect=incident.values if incident else period.suspect(at) if row.is_anomaly else None,
            detectable=detectable,
        )

    def _verdict(self, row: Row, fields: dict[str, Any]) -> Verdict:
        if fields["p_value"] is None:
            return "unscored"
        if row.is_anomaly:
            return "flagged"
        if fields["status"] == "ended":
            return "ended"
        if fields["reason"] in ("ongoing", "labelled"):
            return "ongoing" if fields["reason"] == "ongoing" else "labelled"
        if fields["prediction"] == 1:
            return "ordinary"
        share = fields["impact_share"]
        is_small = abs(fields["impact"]) < self.metric.min_impact
        if is_small or (share is not None and abs(share) < self.metric.min_impact_share):
            return "small"
        return "budget" if self.metric.alert_budget else "chance"


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
