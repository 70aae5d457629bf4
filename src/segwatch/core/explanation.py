"""Why a row has its score, and what was around it: the facts of an explanation. `segwatch.core.words` says them.

The score is taken apart as Break-Down does (Staniak and Biecek 2018; Gosiewska and Biecek 2019): one after another, the
feature whose reset to its typical value makes the score fall most is reset. A feature's part is by how much the score
falls at its turn, so that all parts together are exactly the score less that of the typical row, and the first one is
exactly what resetting that feature alone takes away.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from segwatch.core.bundle import ModelBundle
from segwatch.core.features import FEATURES
from segwatch.core.incidents import Incident
from segwatch.core.noise import Kind
from segwatch.core.panel import Bools, Floats, Ints, Segments
from segwatch.core.segment import Values, holds
from segwatch.core.window import Grain

Verdict = Literal["flagged", "ordinary", "chance", "budget", "small", "ongoing", "labelled", "ended", "unscored"]
"""Whether a row alerted, and if not, why: not rare enough; rare, but among so many rows of the period not too rare for
chance; too common for the alert budget; under the floors of an impact; a change said before goes on; a label raised
the bar; the segment has ended; it has no score."""

MOVED = 0.1
"""A row has moved if its p-value is at most this: it is among the rarest tenth of its own days."""

MOST_NAMED = 3
"""Siblings of a dimension, and rows inside a roll-up, that an explanation names."""

_DIGITS = 6


@dataclass(frozen=True)
class Decomposition:
    """Scores taken apart, in the order of the turns. features: (n_rows, n_features) columns of X; parts: the same
    shape, by how much the score falls at each turn; the last ones are negative where a reset makes it rise."""

    features: Ints
    parts: Floats


def step_down(score: Callable[[Floats], Floats], X: Floats, typical: Floats) -> Decomposition:
    """The scores of rows X (n_rows, n_features) taken apart, against typical rows of the same shape.

    score: of rows (m, n_features), m = n_features n_rows with each row's candidates one after the other.
    Source: the greedy Break-Down of Staniak and Biecek 2018.
    """
    n, d = X.shape
    now, is_reset = X.copy(), np.zeros((n, d), dtype=np.bool_)
    features, parts = np.empty((n, d), dtype=np.int64), np.empty((n, d))
    rows, each = np.arange(n), np.arange(d)
    before: Floats | None = None
    for turn in range(d):
        candidates = np.repeat(now[:, None, :], d, axis=1)
        if before is None:
            before = score(candidates.reshape(-1, d)).reshape(n, d)[:, 0]
        candidates[:, each, each] = typical
        after = score(candidates.reshape(-1, d)).reshape(n, d)
        chosen = np.where(is_reset, np.inf, after).argmin(axis=1)
        features[:, turn], parts[:, turn] = chosen, before - after[rows, chosen]
        before, now = after[rows, chosen], candidates[rows, chosen]
        is_reset[rows, chosen] = True
    return Decomposition(features, parts)


@dataclass(frozen=True)
class Part:
    """One feature's part in a score: what the feature is in the row, and by how much its reset lets the score fall."""

    feature: str
    value: float
    part: float


def parts_of(bundle: ModelBundle, segment_ids: Sequence[str], X: Floats) -> list[tuple[Part, ...]]:
    """What the scores of rows X (n_rows, n_features) are made of, each row's in the order of `step_down`.

    Raises DataError for an unknown segment, ModelError for a segment without a detector.
    """
    if not len(X):
        return []
    repeated = np.repeat(np.asarray(segment_ids, dtype=object), X.shape[1]).tolist()
    found = step_down(lambda rows: bundle.score(repeated, rows)[0], X, bundle.typical(segment_ids))
    return [
        tuple(Part(FEATURES[k], float(X[row, k]), float(part)) for k, part in zip(order, parts, strict=True))
        for row, (order, parts) in enumerate(zip(found.features.tolist(), found.parts.tolist(), strict=True))
    ]


def to_json(parts: Sequence[Part]) -> str:
    """The parts as the predictions table holds them: [[feature, feature value, part], ...]."""
    listed = [[one.feature, round(one.value, _DIGITS), round(one.part, _DIGITS)] for one in parts]
    return json.dumps(listed, separators=(",", ":"))


def from_json(text: str | None) -> tuple[Part, ...]:
    """Inverse of `to_json`, up to its rounding; no parts of None."""
    return tuple(Part(str(name), float(value), float(part)) for name, value, part in json.loads(text or "[]"))


@dataclass(frozen=True)
class Row:
    """What the predictions say of one segment or roll-up in a period; numbers are NaN where there are none.

    impact: value minus expected, of a ratio in its numerator.
    """

    segment_id: str
    values: Values
    value: float
    expected: float
    impact: float
    p_value: float
    is_anomaly: bool

    @property
    def change(self) -> float:
        """value against expected, as a share of its size; NaN against nothing."""
        return (self.value - self.expected) / abs(self.expected) if self.expected else np.nan


@dataclass(frozen=True)
class Siblings:
    """The scored rows that differ from one in a single dimension. values: what they and it have in common. n_fell,
    n_rose: how many moved, see `MOVED`; n_alerts: how many alerted. largest: those of the largest impact."""

    dimension: str
    values: Values
    n: int
    n_fell: int
    n_rose: int
    n_alerts: int
    largest: tuple[Row, ...]


@dataclass(frozen=True)
class Period:
    """All rows of one period, segments and roll-ups; arrays are (n_rows,), NaN where there is no number."""

    segments: Segments
    value: Floats
    expected: Floats
    impact: Floats
    p_value: Floats
    is_anomaly: Bools

    def row(self, at: int) -> Row:
        """The row at a position."""
        return Row(
            self.segments.ids[at],
            self.segments.values[at],
            float(self.value[at]),
            float(self.expected[at]),
            float(self.impact[at]),
            float(self.p_value[at]),
            bool(self.is_anomaly[at]),
        )

    def parents(self, at: int) -> tuple[Row, ...]:
        """The roll-ups that hold the row, the narrowest first."""
        codes = self.segments.codes
        inside = ((codes < 0) | (codes == codes[:, at : at + 1])).all(axis=0)
        inside[at] = False
        found = np.flatnonzero(inside)
        return tuple(self.row(i) for i in found[np.argsort(-(codes[:, found] >= 0).sum(axis=0), kind="stable")])

    def inside(self, at: int) -> tuple[Row, ...]:
        """The rows that a roll-up holds, of the largest impact: those that are told apart by the fewest dimensions."""
        codes = self.segments.codes
        own = codes[:, at : at + 1]
        held = ((own < 0) | (codes == own)).all(axis=0) & self._is_scored
        held[at] = False
        n_set = (codes >= 0).sum(axis=0)
        rows = np.flatnonzero(held & (n_set == n_set[held].min(initial=len(codes))))
        return self._largest(rows)

    def _largest(self, rows: Ints) -> tuple[Row, ...]:
        return tuple(self.row(i) for i in rows[np.argsort(-np.abs(self.impact[rows]), kind="stable")][:MOST_NAMED])

    def siblings(self, at: int) -> tuple[Siblings, ...]:
        """Of each dimension that the row has a value of, its siblings."""
        own = self.segments.values[at]
        return tuple(self._siblings(at, d) for d, value in enumerate(own) if value is not None)

    def _siblings(self, at: int, d: int) -> Siblings:
        codes, own = self.segments.codes, self.segments.values[at]
        others = (np.delete(codes, d, axis=0) == np.delete(codes, d, axis=0)[:, at : at + 1]).all(axis=0)
        rows = np.flatnonzero(others & (codes[d] >= 0) & (codes[d] != codes[d, at]) & self._is_scored)
        fell, rose = (self._moved(sign)[rows] for sign in (-1, 1))
        return Siblings(
            self.segments.dimensions[d],
            tuple(None if k == d else value for k, value in enumerate(own)),
            len(rows),
            int(fell.sum()),
            int(rose.sum()),
            int(self.is_anomaly[rows].sum()),
            self._largest(rows),
        )

    @cached_property
    def _is_scored(self) -> Bools:
        return ~np.isnan(self.p_value) & ~np.isnan(self.value)

    def _moved(self, sign: int) -> Bools:
        """(n_rows,), which rows moved in a direction."""
        return np.asarray(self._is_scored & (self.p_value <= MOVED) & (sign * self.impact > 0))

    def suspect(self, at: int) -> Values:
        """What seems to be broken where the row is: its own values, without those whose siblings moved with it.

        That is, where at least half of the scored siblings of a dimension moved in the row's direction. Where less than
        half of the rows of what is left did, only the dimension of the largest share of them is left out.
        """
        sign = -1 if self.impact[at] < 0 else 1
        moved_with = {}
        for one in self.siblings(at):
            n_moved = one.n_fell if sign < 0 else one.n_rose
            if one.n and n_moved >= one.n / 2:
                moved_with[one.dimension] = n_moved / one.n
        widest = self._without(at, moved_with)
        if len(moved_with) > 1 and self._moved(sign)[self._alike(at, widest)].mean() < 0.5:
            return self._without(at, [max(moved_with, key=lambda name: moved_with[name])])
        return widest

    def _without(self, at: int, names: Sequence[str] | dict[str, float]) -> Values:
        pairs = zip(self.segments.dimensions, self.segments.values[at], strict=True)
        return tuple(None if name in names else value for name, value in pairs)

    def _alike(self, at: int, values: Values) -> Ints:
        """The scored rows of the same level as the row that lie in the values."""
        codes = self.segments.codes
        same_level = ((codes >= 0) == (codes[:, at : at + 1] >= 0)).all(axis=0)
        wanted = [d for d, value in enumerate(values) if value is not None]
        inside = (codes[wanted] == codes[wanted, at : at + 1]).all(axis=0)
        return np.flatnonzero(same_level & inside & self._is_scored)


@dataclass(frozen=True)
class SimilarPeriod:
    """An earlier period of the segment that its model finds ordinary. similarity: in the model's kernel, in (0, 1]."""

    ts: np.datetime64
    value: float
    expected: float
    similarity: float


@dataclass(frozen=True)
class Detectable:
    """The smallest change of one period that the segment's model notices, as shares of the expected value; NaN where it
    notices none. as_of: the end of what was evaluated."""

    smallest_drop: float
    smallest_rise: float
    as_of: np.datetime64


@dataclass(frozen=True)
class Explanation:
    """All that is known of one row. lower, upper: what would not have alerted, NaN where nothing bounds it.

    parts: of its score, see `parts_of`; none where it is not scored or they are not known. suspect: what seems to be
    broken, the row's own values or wider ones; None of a row that did not alert and is in no incident. similar: the
    nearest first. detectable: None where it was not evaluated. notes: sentences on what could not be found out.
    """

    metric: str
    kind: Kind
    grain: Grain
    ts: np.datetime64
    row: Row
    status: str
    reason: str | None
    verdict: Verdict
    n_rows: int
    lower: float
    upper: float
    score: float
    model_version: str
    parts: tuple[Part, ...]
    parents: tuple[Row, ...]
    inside: tuple[Row, ...]
    siblings: tuple[Siblings, ...]
    incident: Incident | None
    suspect: Values | None
    similar: tuple[SimilarPeriod, ...] = ()
    detectable: Detectable | None = None
    notes: tuple[str, ...] = ()


def incident_of(row: Row, incidents: Sequence[Incident]) -> Incident | None:
    """The period's incident that a row belongs to: the narrowest whose cause holds it, in its direction.

    Of a roll-up that alerted and no cause holds, the one of the largest impact inside it.
    """
    direction = "down" if row.impact < 0 else "up"
    going_on = [one for one in incidents if one.direction == direction and one.status != "resolved"]
    around = [one for one in going_on if holds(one.values, row.values)]
    if around:
        return max(around, key=lambda one: sum(value is not None for value in one.values))
    inside = [one for one in going_on if row.is_anomaly and holds(row.values, one.values)]
    return max(inside, key=lambda one: abs(one.impact), default=None)
