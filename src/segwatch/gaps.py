"""Data that did not arrive, named once: a country without a row is one gap, not one for each of its segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.labels import EXPECTED
from segwatch.core.segment import Values, holds, label
from segwatch.core.window import Grain, length, period_of

LEFT_OUT = "left out by the calendar"
"""Reason of a row that the user's calendar masks."""


@dataclass(frozen=True)
class Gap:
    """Periods in a row, from the first to the last, without data of a segment, or of all n_segments of a roll-up."""

    segment: str
    first: np.datetime64
    last: np.datetime64
    n_segments: int


def gaps_of(predictions: pa.Table, dimensions: Sequence[str], grain: Grain) -> tuple[Gap, ...]:
    """Gaps in predictions, those of most segments and periods first."""
    is_absent = pc.and_(pc.equal(predictions["status"], "no_data"), pc.is_null(predictions["value"]))
    is_meant = pc.is_in(predictions["reason"], pa.array([LEFT_OUT, EXPECTED]))
    absent = predictions.filter(pc.and_(is_absent, pc.invert(is_meant)))
    found: dict[tuple[Values, int], list[np.datetime64]] = {}
    for ts in pc.unique(absent["ts"]).sort():
        rows, lost = (table.filter(pc.equal(table["ts"], ts)).select(dimensions) for table in (predictions, absent))
        missing = list(zip(*(lost[name].to_pylist() for name in dimensions), strict=True))
        period = period_of(ts.as_py(), grain)
        for one in _largest(rows, missing):
            found.setdefault(one, []).append(period)
    gaps = [
        Gap(label(values), first, last, n)
        for (values, n), periods in found.items()
        for first, last in _runs(periods, grain)
    ]
    return tuple(sorted(gaps, key=lambda gap: (-gap.n_segments, gap.first - gap.last, gap.first, gap.segment)))


def _largest(rows: pa.Table, missing: Sequence[Values]) -> Iterator[tuple[Values, int]]:
    """Of a period's rows (of dimensions) those missing that no larger one holds, with the number of their segments.

    A roll-up is missing where all its segments are; one that lacks only most of them is not.
    """
    kept = {tuple(value is not None for value in values) for values in missing if None in values}
    of_missing = Counter(_summed(values, pattern) for values in missing if None not in values for pattern in kept)
    rollups = [v for v in missing if None in v and 0 < of_missing[v] == _n_segments(rows, v)]
    named: list[Values] = []
    for values in sorted(rollups, key=of_missing.__getitem__, reverse=True):
        if not any(holds(one, values) for one in named):
            named.append(values)
            yield values, of_missing[values]
    for values in missing:
        if None not in values and not any(holds(one, values) for one in named):
            yield values, 1


def _summed(values: Values, kept: Sequence[bool]) -> Values:
    return tuple(value if keep else None for value, keep in zip(values, kept, strict=True))


def _n_segments(rows: pa.Table, rollup: Values) -> int:
    """How many of a period's rows are of segments that the roll-up sums."""
    wanted: list[Any] = [
        pc.is_valid(column) if value is None else pc.fill_null(pc.equal(column, value), False)
        for column, value in zip(rows.columns, rollup, strict=True)
    ]
    return int(pc.sum(reduce(pc.and_, wanted)).as_py() or 0)


def _runs(periods: Sequence[np.datetime64], grain: Grain) -> Iterator[tuple[np.datetime64, np.datetime64]]:
    """First and last of each run of periods that follow each other; periods ascend."""
    first = 0
    for i, period in enumerate(periods):
        if i + 1 == len(periods) or periods[i + 1] - period > length(1, grain):
            yield periods[first], period
            first = i + 1
