"""What is made of scored rows: predictions, alerts across segments, and the interval that would not have alerted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segwatch.core import compiled
from segwatch.core.bundle import ModelBundle, Rules
from segwatch.core.detector import Detector, Packed
from segwatch.core.features import FeatureSet
from segwatch.core.labels import Bars
from segwatch.core.panel import Bools, Floats, Ints
from segwatch.core.training import Progress

# Standard deviations from the expected value at which the model is asked.
_STEPS = np.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0, 30.0, 60.0])
# Of the distance of two candidates, until a bound is known; and the truncation of ITP.
_HALVINGS, _TRUNCATED = 20, 0.2


@dataclass(frozen=True)
class Decisions:
    """One entry per row, all (n_rows,). lower and upper are NaN where nothing bounds the value on that side.

    is_pattern: no value would have passed in this row's place, so the value alone does not explain the alert.
    is_ongoing: the row is as improbable as an anomaly, but its value is in order: a change said before goes on.
    is_barred: it would alert, had not a label raised the bar.
    """

    score: Floats
    p_value: Floats
    prediction: Ints
    is_anomaly: Bools
    expected: Floats
    lower: Floats
    upper: Floats
    impact: Floats
    impact_share: Floats
    is_pattern: Bools
    is_ongoing: Bools
    is_barred: Bools


@dataclass(frozen=True)
class Floors:
    """Differences from the expected value below which no row is an anomaly: in the metric's unit, and as a share of
    what all rows of a period together are expected to have."""

    impact: float = 0.0
    share: float = 0.0


def decide(
    bundle: ModelBundle,
    segment_ids: Sequence[str] | pa.Array,
    periods: npt.NDArray[np.int64],
    values: Floats,
    contexts: Floats,
    X: Floats,
    progress: Progress = lambda _: None,
    floors: Floors = Floors(),
    rules: Rules | None = None,
    is_rollup: Bools | None = None,
    is_over: Bools | None = None,
    bars: Bars | None = None,
) -> Decisions:
    """Decisions on rows (n_rows,) of fitted segments; false discoveries are controlled within each period.

    contexts: (n_rows, n_context). X: (n_rows, n_features), the rows' features. progress is told of finished rows.
    rules: thresholds in place of those that the model was trained with; p-values do not depend on them. is_rollup:
    (n_rows,), rows that the total of their period holds already. is_over: (n_rows,), rows of segments that have ended:
    their silence was an anomaly when it began. bars: what labels ask of the rows' p-values.
    """
    rules, features = rules or bundle.rules, bundle.feature_set
    scores, p_values = bundle.score(segment_ids, X)
    # What is said already is no discovery.
    is_ongoing = (p_values <= rules.alpha) & features.is_ongoing(values, contexts)
    if is_over is not None:
        is_ongoing |= is_over
    expected = features.expected(contexts)
    is_barred = np.zeros(len(values), dtype=bool)
    if bars is not None:
        is_barred = ~is_ongoing & (p_values > np.where(values > expected, bars.up, bars.down))
    candidates = np.where(is_ongoing | is_barred, 1.0, p_values)
    thresholds = rules.thresholds(candidates, periods)
    is_anomaly = candidates <= thresholds
    is_barred &= p_values <= thresholds
    lower, upper = _bounds(bundle, segment_ids, values, contexts, thresholds, ~is_anomaly, progress)
    if bars is not None:
        rows = np.flatnonzero(bars.is_raised)
        asked = np.where(is_ongoing, 1.0, p_values)
        lower[rows], upper[rows] = _barred_bounds(bundle, segment_ids, values, contexts, asked, thresholds, bars, rows)
    impact = values - expected
    totals = _sums_by(periods, expected if is_rollup is None else np.where(is_rollup, 0.0, expected))
    floor = np.maximum(floors.impact, floors.share * np.abs(totals))
    lower, upper = _widened(lower, upper, values, expected, floor, is_anomaly)
    if features.is_count:
        lower = np.maximum(lower, 0.0)
    is_anomaly &= np.abs(impact) >= floor
    is_barred &= np.abs(impact) >= floor
    # Both sides unbounded and still flagged: no value would have passed.
    is_pattern = is_anomaly & np.isnan(lower) & np.isnan(upper)
    is_ongoing = is_ongoing if is_over is None else is_ongoing & ~is_over
    prediction = np.where(p_values <= rules.alpha, -1, 1)
    share = np.divide(impact, np.abs(totals), out=np.full(len(values), np.nan), where=totals != 0)
    return Decisions(
        scores,
        p_values,
        prediction,
        is_anomaly,
        expected,
        lower,
        upper,
        impact,
        share,
        is_pattern,
        is_ongoing,
        is_barred,
    )


def _bounds(
    bundle: ModelBundle,
    segment_ids: Sequence[str] | pa.Array,
    values: Floats,
    contexts: Floats,
    thresholds: Floats,
    passes: Bools,
    progress: Progress,
) -> tuple[Floats, Floats]:
    """`alert_bounds` of rows of many segments."""
    lower, upper = (np.full(len(values), np.nan) for _ in range(2))
    features = bundle.feature_set
    if compiled.native is None:
        for position, rows in bundle.groups(segment_ids):
            lower[rows], upper[rows] = alert_bounds(
                bundle.detector(position), features, values[rows], contexts[rows], thresholds[rows], passes[rows]
            )
            progress(len(rows))
        return lower, upper
    native = compiled.native

    def of_shard(detectors: Packed, of_rows: Ints, rows: Ints) -> int:
        found = np.empty((2, len(rows)))
        v, c, t = (np.ascontiguousarray(a[rows], dtype=np.float64) for a in (values, contexts, thresholds))
        native.bounds(features.kind, detectors, of_rows, v, c, t, passes[rows], found[0], found[1])
        lower[rows], upper[rows] = found
        return len(rows)

    for n_rows in bundle.by_shard(segment_ids, of_shard):
        progress(n_rows)
    return lower, upper


def _barred_bounds(
    bundle: ModelBundle,
    segment_ids: Sequence[str] | pa.Array,
    values: Floats,
    contexts: Floats,
    p_values: Floats,
    thresholds: Floats,
    bars: Bars,
    rows: Ints,
) -> tuple[Floats, Floats]:
    """`_bounds` of the rows at `rows`, each side under its own bar."""
    ids = [str(segment_ids[int(row)]) for row in rows]
    found = []
    for bar in (bars.down, bars.up):
        asked = np.minimum(thresholds, bar)[rows]
        passes = p_values[rows] > asked
        found.append(_bounds(bundle, ids, values[rows], contexts[rows], asked, passes, lambda _: None))
    return found[0][0], found[1][1]


def undiscovered(detector: Detector, features: FeatureSet, values: Floats, contexts: Floats) -> Floats:
    """p-values of rows (n_rows,) of one segment; 1 where a change that was said before goes on."""
    p_values = detector.p_value(features.features(values, contexts))
    return np.where(features.is_ongoing(values, contexts), 1.0, p_values)


def _sums_by(periods: npt.NDArray[np.int64], values: Floats) -> Floats:
    """For each row the sum of the values of its period."""
    _, codes = np.unique(periods, return_inverse=True)
    return np.asarray(np.bincount(codes, values)[codes]) if len(values) else values


def _widened(
    lower: Floats, upper: Floats, values: Floats, expected: Floats, floor: Floats, is_flagged: Bools
) -> tuple[Floats, Floats]:
    """The intervals with the values whose impact is under the floor; open sides stay open.

    Where the two do not meet and the observed value lies between them and is flagged, the interval stays as it is.
    """
    low, high = np.minimum(lower, expected - floor), np.maximum(upper, expected + floor)
    inside = (values > low) & (values < high) & is_flagged & (np.abs(values - expected) >= floor)
    return np.where(inside, lower, low), np.where(inside, upper, high)


def alert_bounds(
    detector: Detector,
    features: FeatureSet,
    values: Floats,
    contexts: Floats,
    thresholds: Floats,
    passes: Bools,
) -> tuple[Floats, Floats]:
    """Smallest and largest value (n_rows,) of the interval that the detector would not flag in each row's place.

    The interval is the run of unflagged values around the observed one, or, where that is flagged, around the
    unflagged value nearest to the expected one. NaN where the interval has no end on that side, or does not exist.
    passes: (n_rows,) whether the observed value is not flagged.
    """

    if compiled.native is not None:
        lower, upper = np.empty(len(values)), np.empty(len(values))
        of_rows = np.zeros(len(values), dtype=np.int64)
        v, c, t = (np.ascontiguousarray(a, dtype=np.float64) for a in (values, contexts, thresholds))
        compiled.native.bounds(
            features.kind, detector.packed, of_rows, v, c, t, np.ascontiguousarray(passes), lower, upper
        )
        return lower, upper

    def margin(candidates: Floats) -> Floats:
        """For candidates (n_rows, k), by how much ln p is above that of the threshold: above 0 they would pass."""
        X = features.features(candidates, contexts[:, None, :])
        p_values = detector.p_value(X.reshape(-1, X.shape[-1])).reshape(candidates.shape)
        with np.errstate(divide="ignore"):
            above = np.log(p_values) - np.log(thresholds[:, None])
        return np.where(features.is_ongoing(candidates, contexts[:, None, :]), 1.0, above)

    grid = _candidates(features, values, contexts)
    observed = grid == values[:, None]
    margins = np.where(observed, np.where(passes, 1.0, -1.0)[:, None], margin(grid))
    unflagged = margins > 0
    anchor = _anchor(grid, unflagged, observed, passes, features.expected(contexts))
    exists = unflagged.any(axis=1)
    low = _edge(grid[:, ::-1], margins[:, ::-1], grid.shape[1] - 1 - anchor, margin)
    high = _edge(grid, margins, anchor, margin)
    if features.is_count:
        # Nothing lies under zero, so an interval open to that side ends there.
        low = np.where(np.isnan(low), 0.0, low)
    return np.where(exists, low, np.nan), np.where(exists, high, np.nan)


def _candidates(features: FeatureSet, values: Floats, contexts: Floats) -> Floats:
    """Ascending values (n_rows, k) around the expected one, with it and the observed one among them."""
    steps = np.concatenate([-_STEPS[::-1], [0.0], _STEPS])
    grid = features.values_at(steps, contexts[:, None, :])
    return np.sort(np.concatenate([grid, values[:, None]], axis=1), axis=1)


def _anchor(grid: Floats, unflagged: Bools, observed: Bools, passes: Bools, expected: Floats) -> Ints:
    """Column of the value that the interval holds."""
    distance = np.where(unflagged, np.abs(grid - expected[:, None]), np.inf)
    return np.asarray(np.where(passes, observed.argmax(axis=1), distance.argmin(axis=1)))


def _edge(grid: Floats, margins: Floats, anchor: Ints, margin: Callable[[Floats], Floats]) -> Floats:
    """Last unflagged value from the anchor rightwards; NaN where all up to the end of the grid are.

    Between the candidates on both sides of it by the method ITP (Oliveira and Takahashi 2021), which needs no more
    steps than bisection and a third of them where the p-value is smooth.
    """
    columns = np.arange(grid.shape[1])
    flagged_after = (margins <= 0) & (columns > anchor[:, None])
    first = np.where(flagged_after.any(axis=1), flagged_after.argmax(axis=1), 0)
    before = np.maximum(first - 1, 0)
    rows = np.arange(len(grid))
    (inside, outside), (f, g) = ([m[rows, before], m[rows, first]] for m in (grid, margins))
    a, b = np.zeros(len(grid)), np.ones(len(grid))
    least = 0.5 ** (_HALVINGS + 1)
    for step in range(_HALVINGS + 1):
        half, width = (a + b) / 2.0, b - a
        with np.errstate(invalid="ignore", divide="ignore"):
            line = (g * a - f * b) / (g - f)
        away, reach = np.sign(half - line), least * 2.0 ** (_HALVINGS + 1 - step) - width / 2.0
        t = np.where(_TRUNCATED * width**2 <= np.abs(half - line), line + away * _TRUNCATED * width**2, half)
        t = np.where(np.abs(t - half) > reach, half - away * reach, t)
        here = margin((inside + t * (outside - inside))[:, None])[:, 0]
        goes_on = width > 2.0 * least
        up, down = goes_on & (here > 0), goes_on & ~(here > 0)
        a, f = np.where(up, t, a), np.where(up, here, f)
        b, g = np.where(down, t, b), np.where(down, here, g)
    return np.where(first > 0, inside + a * (outside - inside), np.nan)
