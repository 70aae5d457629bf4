"""Flagged days joined into events, and the segments they hit ranked by their impact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from segwatch.core.segment import label


@dataclass(frozen=True)
class Event:
    """Flagged periods of one segment that follow each other, one period between them at most.

    impact: sum of value - expected. expected: sum of the expected values. first, last: texts of the periods.
    """

    first: str
    last: str
    n_periods: int
    impact: float
    expected: float
    p_value: float
    is_pattern: bool


@dataclass(frozen=True)
class SegmentEvents:
    """A segment's events, the one of the largest impact first."""

    segment_id: str
    segment: str
    events: tuple[Event, ...]


def rank_events(rows: pa.Table, dimensions: Sequence[str], period: np.timedelta64) -> list[SegmentEvents]:
    """Segments with flagged rows, the largest single impact first."""
    flagged = rows.filter(rows["is_anomaly"]).sort_by([("segment_id", "ascending"), ("ts", "ascending")])
    by_segment: dict[str, list[dict[str, object]]] = {}
    names = ["segment_id", *dimensions, "ts", "value", "expected", "p_value", "reason"]
    for row in flagged.select(names).to_pylist():
        by_segment.setdefault(row["segment_id"], []).append(row)
    ranked = [
        SegmentEvents(id_, label(str(found[0][d]) for d in dimensions), _events(found, period))
        for id_, found in by_segment.items()
    ]
    return sorted(ranked, key=lambda one: (-abs(one.events[0].impact), one.segment))


def _events(rows: list[dict[str, object]], period: np.timedelta64) -> tuple[Event, ...]:
    times = np.array([row["ts"].replace(tzinfo=None) for row in rows], dtype="datetime64[us]")  # type: ignore[attr-defined]
    parts = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(times) > 2 * period) + 1)
    events = [_event([rows[i] for i in part]) for part in parts]
    return tuple(sorted(events, key=lambda event: (-abs(event.impact), event.first)))


def _event(rows: list[dict[str, object]]) -> Event:
    value, expected, p_value = (
        np.array([row[n] for row in rows], dtype=float) for n in ("value", "expected", "p_value")
    )
    return Event(
        _text(rows[0]["ts"]),
        _text(rows[-1]["ts"]),
        len(rows),
        float((value - expected).sum()),
        float(expected.sum()),
        float(p_value.min()),
        all(row["reason"] == "pattern" for row in rows),
    )


def _text(ts: object) -> str:
    return f"{ts:%Y-%m-%d %H:%M}".removesuffix(" 00:00")
