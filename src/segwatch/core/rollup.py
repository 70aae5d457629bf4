"""Roll-ups: the sums of segments over a subset of the dimensions, watched as series of their own.

A fall spread thinly over many segments shows in their sum alone. A roll-up is a segment whose values are None in the
dimensions that are summed out; the total has None in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from segwatch.core import matrix
from segwatch.core.panel import Floats, History, Ints, Panel, Segments
from segwatch.core.segment import Values

# With more than this share of what is expected missing, a sum says nothing.
_MOST_MISSING = 0.5


def with_rollups(panel: Panel, max_order: int, known: History | None = None, room: Path | None = None) -> Panel:
    """The Panel with the roll-ups of up to `max_order` dimensions behind it.

    Those of ratios have the sums of their segments; the values of others are NaN until `Rollups.fill`, since what did
    not arrive is made up for by what was expected.

    Left out is a roll-up of one segment, or of the very segments of another one. known: segments and roll-ups of
    before, which keep their places, the first ones. room: see `matrix.new`.
    """
    before = () if known is None else tuple(values for values in known.segments.values if None in values)
    found = dict(_rollups(panel.segments, max_order))
    members = dict(_members(panel.segments, before)) | found
    added = Segments(panel.segments.dimensions, tuple(members))
    history = panel.history
    seen = [(history.first_seen[rows].min(), history.last_seen[rows].max()) for rows in members.values()]
    first, last = np.array(seen, dtype=history.first_seen.dtype).reshape(-1, 2).T
    of_ratio = None if panel.exposure is None else list(members.values())
    joined = Panel(
        History(
            panel.segments.joined(added),
            np.concatenate([history.first_seen, first]),
            np.concatenate([history.last_seen, last]),
        ),
        panel.window,
        _joined(panel.values, len(added), of_ratio, room),
        None if panel.exposure is None else _joined(panel.exposure, len(added), of_ratio, room),
    )
    if known is None:
        return joined
    kept = [joined.segments.position[id_] for id_ in known.segments.ids]
    order = [*kept, *sorted(set(range(len(joined.segments))) - set(kept))]
    return joined if order == list(range(len(order))) else joined.take(order, room)


def _joined(leaves: Floats, n_rollups: int, members: Sequence[Ints] | None, room: Path | None) -> Floats:
    """The matrix with roll-ups behind it: the sums of what was observed of their members where these are given, NaN
    where nothing was."""
    joined: Floats = matrix.new((len(leaves) + n_rollups, leaves.shape[1]), np.nan, room)
    matrix.copy_into(joined, leaves)
    if members is None:
        return joined
    for some in matrix.columns(leaves):
        block = np.array(leaves[:, some])
        for row, rows in enumerate(members, len(leaves)):
            is_known = ~np.isnan(block[rows])
            joined[row, some] = np.where(is_known.any(axis=0), np.nansum(block[rows], axis=0), np.nan)
        matrix.release(joined, leaves)
    return joined


def _rollups(segments: Segments, max_order: int) -> Iterator[tuple[Values, Ints]]:
    """The values of each roll-up and the positions of its segments."""
    n = len(segments.dimensions)
    told: set[bytes] = set()
    for order in range(min(max_order, n - 1) + 1):
        for kept in combinations(range(n), order):
            for values, rows in _summed(segments, kept).items():
                if len(rows) > 1 and rows.tobytes() not in told:
                    told.add(rows.tobytes())
                    yield values, rows


def _summed(segments: Segments, kept: Sequence[int]) -> dict[Values, Ints]:
    """Positions of the segments that share their values in the kept dimensions."""
    rows = np.flatnonzero(~segments.is_rollup)
    codes = segments.codes[list(kept)][:, rows]
    order = np.lexsort(codes) if kept else np.arange(len(rows))
    edges = np.flatnonzero((np.diff(codes[:, order], axis=1) != 0).any(axis=0)) + 1
    groups = sorted(np.split(rows[order], edges), key=lambda group: group[0]) if len(rows) else []
    firsts = (segments.values[group[0]] for group in groups)
    keys = (tuple(value if d in kept else None for d, value in enumerate(values)) for values in firsts)
    return dict(zip(keys, groups, strict=True))


def _members(segments: Segments, rollups: Sequence[Values]) -> Iterator[tuple[Values, Ints]]:
    """Positions of the segments of each roll-up."""
    by_kept: dict[tuple[int, ...], list[Values]] = {}
    for values in rollups:
        by_kept.setdefault(tuple(d for d, value in enumerate(values) if value is not None), []).append(values)
    for kept, some in by_kept.items():
        groups = _summed(segments, kept)
        yield from ((values, groups[values]) for values in some)


@dataclass(frozen=True)
class Rollups:
    """Which segments each roll-up sums. rows: (n_rollups,), their places. members: the places of each one's segments,
    one roll-up's after the other's; starts: (n_rollups,), where they begin.

    is_filled: whether they have their values already.
    """

    rows: Ints
    members: Ints
    starts: Ints
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
        lengths = np.array([len(one) for one in of_rollups], dtype=np.int64)
        return cls(rows, np.concatenate(of_rollups), np.cumsum(lengths) - lengths, panel.exposure is not None)

    def _sums(self, values: Floats) -> Floats:
        """(n_rollups,) sums of the segments' values (n_segments,)."""
        return np.asarray(np.add.reduceat(values[self.members], self.starts))

    def fill(self, values: Floats, expected: Floats) -> None:
        """The roll-ups' values (n_segments,) of a period are, in place, the sums of their segments'.

        expected: (n_segments,); stands for a value that did not arrive, NaN for one that is not due. A sum of which
        more than half would be such stays NaN.
        """
        if self.is_filled:
            return
        absent = np.isnan(values)
        observed = self._sums(np.where(absent, 0.0, values))
        missing = self._sums(np.where(absent, np.nan_to_num(expected), 0.0))
        some = self._sums((~absent).astype(np.float64))
        usable = (some > 0) & (missing <= _MOST_MISSING * (observed + missing))
        values[self.rows] = np.where(usable, observed + missing, np.nan)

    def combine(self, effects: Floats, expected: Floats) -> None:
        """The roll-ups' effects (n_segments,), logarithms, are, in place, what their segments' make of the sums.

        expected: (n_segments,) without any effect, NaN of a new segment.
        """
        plain = np.nan_to_num(expected)
        without, with_effects = self._sums(plain), self._sums(plain * np.exp(effects))
        known = (without > 0) & (with_effects > 0)
        effects[self.rows] = np.where(
            known, np.log(np.where(known, with_effects, 1.0) / np.where(known, without, 1.0)), 0.0
        )
