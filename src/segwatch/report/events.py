"""Flagged days joined into events, and the segments they hit ranked by their impact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segwatch.core.segment import label
from segwatch.core.window import Grain, Times, unit
from segwatch.report.columns import bools_of, flagged_of, floats_of, impact_of, times_of


@dataclass(frozen=True)
class Event:
    """Flagged periods of one segment that follow each other, one unflagged period between them at most.

    impact: sum of value - expected over the flagged periods. expected: sum of their expected values.
    direction: up, down, or mixed. p_value: the lowest. is_pattern: no value would have passed in any of them.
    """

    first: np.datetime64
    last: np.datetime64
    n_periods: int
    impact: float
    expected: float
    direction: str
    p_value: float
    is_pattern: bool


@dataclass(frozen=True)
class SegmentEvents:
    """The events of a segment or of a roll-up, the one of the largest impact first."""

    segment_id: str
    segment: str
    is_rollup: bool
    events: tuple[Event, ...]


def rank_events(rows: pa.Table, dimensions: Sequence[str], grain: Grain) -> list[SegmentEvents]:
    """Segments with flagged rows, the largest single |impact| first."""
    flagged = flagged_of(rows).sort_by([("segment_id", "ascending"), ("ts", "ascending")])
    if not flagged.num_rows:
        return []
    times, segments = times_of(flagged), _codes(flagged)
    changes = np.diff(segments) != 0
    apart = np.diff(times) > 2 * np.timedelta64(1, unit(grain))
    event_starts = np.flatnonzero(np.r_[True, changes | apart])
    segment_starts = np.flatnonzero(np.r_[True, changes])
    events = list(_events(flagged, times, event_starts))
    bounds = np.r_[np.searchsorted(event_starts, segment_starts), len(events)]
    firsts = flagged.take(pa.array(segment_starts))
    ids, labels = firsts["segment_id"].to_pylist(), zip(*(firsts[d].to_pylist() for d in dimensions), strict=True)
    ranked = [
        SegmentEvents(id_, label(values), None in values, tuple(sorted(events[low:high], key=_by_impact)))
        for id_, values, low, high in zip(ids, labels, bounds[:-1], bounds[1:], strict=True)
    ]
    return sorted(ranked, key=lambda one: (-abs(one.events[0].impact), one.segment))


def _by_impact(event: Event) -> tuple[float, np.datetime64]:
    return -abs(event.impact), event.first


def _codes(flagged: pa.Table) -> npt.NDArray[np.int64]:
    ids = flagged["segment_id"].combine_chunks().dictionary_encode()
    return np.asarray(ids.indices.to_numpy(), dtype=np.int64)


def _events(flagged: pa.Table, times: Times, starts: npt.NDArray[np.intp]) -> Iterator[Event]:
    """The events in the order of the rows; starts: first row of each."""
    expected = np.nan_to_num(floats_of(flagged, "expected"))
    # A row without a value or an expected one is an event, of no known impact.
    impact = np.nan_to_num(impact_of(flagged))
    n_up = np.add.reduceat(bools_of(flagged, "direction", "up").astype(int), starts)
    n_patterns = np.add.reduceat(bools_of(flagged, "reason", "pattern").astype(int), starts)
    lasts = np.r_[starts[1:], len(times)] - 1
    sizes = lasts - starts + 1
    columns = zip(
        times[starts],
        times[lasts],
        sizes.tolist(),
        np.add.reduceat(impact, starts).tolist(),
        np.add.reduceat(expected, starts).tolist(),
        np.where(n_up == sizes, "up", np.where(n_up == 0, "down", "mixed")).tolist(),
        np.fmin.reduceat(floats_of(flagged, "p_value"), starts).tolist(),
        (n_patterns == sizes).tolist(),
        strict=True,
    )
    return (Event(*row) for row in columns)
