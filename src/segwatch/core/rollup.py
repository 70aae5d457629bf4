"""Roll-ups: the sums of segments over a subset of the dimensions, watched as series of their own.

A fall spread thinly over many segments shows in their sum alone. A roll-up is a segment whose values are None in the
dimensions that are summed out; the total has None in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import csr_matrix

from segwatch.core.panel import Floats, History, Ints, Panel, Segments
from segwatch.core.segment import Values

# With more than this share of what is expected missing, a sum says nothing.
_MOST_MISSING = 0.5


def with_rollups(panel: Panel, max_order: int, known: History | None = None) -> Panel:
    """The Panel with the roll-ups of up to `max_order` dimensions behind it.

    Those of ratios have the sums of their segments; the values of others are NaN until `Rollups.fill`, since what did
    not arrive is made up for by what was expected.

    Left out is a roll-up of one segment, or of the very segments of another one. known: segments and roll-ups of
    before, which keep their places, the first ones.
    """
    before = () if known is None else tuple(values for values in known.segments.values if None in values)
    found = dict(_rollups(panel.segments, max_order))
    members = {values: found.get(values) or rows for values, rows in _members(panel.segments, before)} | found
    added = Segments(panel.segments.dimensions, tuple(members))
    history = panel.history
    seen = [(history.first_seen[rows].min(), history.last_seen[rows].max()) for rows in members.values()]
    first, last = np.array(seen, dtype=history.first_seen.dtype).reshape(-1, 2).T
    if panel.exposure is None:
        values, exposure = np.full((len(added), len(panel.window)), np.nan), None
    else:
        values, exposure = (_sums(matrix, list(members.values())) for matrix in (panel.values, panel.exposure))
    joined = Panel(
        History(
            Segments(added.dimensions, panel.segments.values + added.values),
            np.concatenate([history.first_seen, first]),
            np.concatenate([history.last_seen, last]),
        ),
        panel.window,
        np.concatenate([panel.values, values]),
        None if panel.exposure is None or exposure is None else np.concatenate([panel.exposure, exposure]),
    )
    if known is None:
        return joined
    kept = [joined.segments.position[id_] for id_ in known.segments.ids]
    return joined.take([*kept, *sorted(set(range(len(joined.segments))) - set(kept))])


def _sums(matrix: Floats, members: Sequence[list[int]]) -> Floats:
    """(n_rollups, n_times) sums of what was observed; NaN where nothing was."""
    sums = [np.nansum(matrix[rows], axis=0) for rows in members]
    known = [(~np.isnan(matrix[rows])).any(axis=0) for rows in members]
    shape = len(members), matrix.shape[1]
    return np.where(np.reshape(known, shape), np.reshape(sums, shape), np.nan)


def _rollups(segments: Segments, max_order: int) -> Iterator[tuple[Values, list[int]]]:
    """The values of each roll-up and the positions of its segments."""
    n = len(segments.dimensions)
    told: set[tuple[int, ...]] = set()
    for order in range(min(max_order, n - 1) + 1):
        for kept in combinations(range(n), order):
            for values, rows in _summed(segments, kept).items():
                if len(rows) > 1 and tuple(rows) not in told:
                    told.add(tuple(rows))
                    yield values, rows


def _summed(segments: Segments, kept: Sequence[int]) -> dict[Values, list[int]]:
    """Positions of the segments that share their values in the kept dimensions."""
    groups: dict[Values, list[int]] = {}
    for i, values in enumerate(segments.values):
        if None not in values:
            key = tuple(value if d in kept else None for d, value in enumerate(values))
            groups.setdefault(key, []).append(i)
    return groups


def _members(segments: Segments, rollups: Sequence[Values]) -> Iterator[tuple[Values, list[int]]]:
    """Positions of the segments of each roll-up."""
    by_kept: dict[tuple[int, ...], list[Values]] = {}
    for values in rollups:
        by_kept.setdefault(tuple(d for d, value in enumerate(values) if value is not None), []).append(values)
    for kept, some in by_kept.items():
        groups = _summed(segments, kept)
        yield from ((values, groups[values]) for values in some)


@dataclass(frozen=True)
class Rollups:
    """Which segments each roll-up sums. rows: (n_rollups,), their places. sums: (n_rollups, n_segments), 0 and 1.

    is_filled: whether they have their values already.
    """

    rows: Ints
    sums: csr_matrix
    is_filled: bool = False

    @classmethod
    def of(cls, panel: Panel) -> Rollups | None:
        """The Panel's roll-ups; None where there are none."""
        segments = panel.segments
        if not segments.is_rollup.any():
            return None
        rows = np.flatnonzero(segments.is_rollup)
        members = dict(_members(segments, [segments.values[i] for i in rows]))
        of_rollups = [members[segments.values[i]] for i in rows]
        lengths = [len(one) for one in of_rollups]
        columns = np.concatenate([np.empty(0, dtype=np.int64), *map(np.array, of_rollups)])
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(
            rows,
            csr_matrix((np.ones(len(columns)), columns, ends), (len(rows), len(segments))),
            panel.exposure is not None,
        )

    def fill(self, values: Floats, expected: Floats) -> None:
        """The roll-ups' values (n_segments,) of a period are, in place, the sums of their segments'.

        expected: (n_segments,); stands for a value that did not arrive, NaN for one that is not due. A sum of which
        more than half would be such stays NaN.
        """
        if self.is_filled:
            return
        absent = np.isnan(values)
        observed = self.sums @ np.where(absent, 0.0, values)
        missing = self.sums @ np.where(absent, np.nan_to_num(expected), 0.0)
        some = self.sums @ (~absent).astype(np.float64)
        usable = (some > 0) & (missing <= _MOST_MISSING * (observed + missing))
        values[self.rows] = np.where(usable, observed + missing, np.nan)

    def combine(self, effects: Floats, expected: Floats) -> None:
        """The roll-ups' effects (n_segments,), logarithms, are, in place, what their segments' make of the sums.

        expected: (n_segments,) without any effect, NaN of a new segment.
        """
        plain = np.nan_to_num(expected)
        without, with_effects = self.sums @ plain, self.sums @ (plain * np.exp(effects))
        known = (without > 0) & (with_effects > 0)
        effects[self.rows] = np.where(
            known, np.log(np.where(known, with_effects, 1.0) / np.where(known, without, 1.0)), 0.0
        )
