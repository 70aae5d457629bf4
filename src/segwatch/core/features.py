"""The only feature definitions: Panel values in, features out, for training, inference and bounds alike.

A row's features are a function of its own value and of a *context* of what came before it. The split lets the same
code answer "what if this value had been another": bounds and injected anomalies need no second definition.

Notation (P = season, L = long season of the grain; "prev" excludes the row itself):
    y   value, variance-stabilised        b   mean of y at lags L, 2L ... 8L without its two smallest and two largest
    e   y - b                             m   mean |e| over 4P prev, half a count's step at least
    ew  e clipped to +-2.5 m              yw  b + ew   (an anomaly must not echo in later baselines)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from segwatch.core.panel import Bools, Floats
from segwatch.core.schema import to_metadata
from segwatch.core.window import Grain, period

FEATURES = ("e", "u", "d4", "a3", "a7", "vol", "flat")
CONTEXT = (
    "baseline",
    "spread",
    "recent",
    "level",
    "sum_2",
    "count_2",
    "sum_season",
    "count_season",
    "absolute_season",
    "max_2",
    "min_2",
    "usual_range",
)
_DISPERSION = 0.001
_WINSOR = 2.5
_SMALL = 0.001
_LAGS = 8
# What Gaussian noise would show: standard deviation of the logarithm of a mean of seven |e|.
_LEAST_VOLATILITY = 0.3
_LONG_SEASON: dict[Grain, int] = {"day": 7, "hour": 168}


@dataclass(frozen=True)
class FeatureSet:
    """The named, ordered features of one grain, their lookback and a fingerprint of their definition.

    is_count: True for non-negative counts, stabilised by 2 asinh(sqrt(0.001 x)) (the negative binomial's transform);
    False for values of any sign, stabilised by asinh(x / scale) with one scale per segment.
    """

    grain: Grain
    is_count: bool
    name: str = "trailing"
    version: int = 2

    @property
    def names(self) -> tuple[str, ...]:
        return FEATURES

    @property
    def season(self) -> int:
        return period(self.grain)

    @property
    def long_season(self) -> int:
        return _LONG_SEASON[self.grain]

    @property
    def lookback(self) -> int:
        """Periods before a row that its features can depend on."""
        return _LAGS * self.long_season + 8 * self.season

    @property
    def fingerprint(self) -> str:
        """sha256 of the definition. Raise `version` with every change of a formula: a test holds their values."""
        definition = {
            "name": self.name,
            "version": self.version,
            "is_count": self.is_count,
            "season": self.season,
            "long_season": self.long_season,
            "features": FEATURES,
            "context": CONTEXT,
            "constants": [_DISPERSION, _WINSOR, _SMALL, _LAGS, _LEAST_VOLATILITY],
        }
        return hashlib.sha256(to_metadata(definition).encode()).hexdigest()

    def segment_scale(self, values: Floats) -> Floats:
        """(n_segments,) scale of each row of `values`: 1 for counts, else the median |value| (1 if that is 0)."""
        if self.is_count:
            return np.ones(len(values))
        return np.array([_positive_median(np.abs(row[~np.isnan(row)])) for row in values])

    def stabilise(self, values: Floats, scale: Floats) -> Floats:
        """y, whose noise is about as wide for small and large values. Shapes broadcast."""
        if self.is_count:
            return np.asarray(2.0 * np.arcsinh(np.sqrt(_DISPERSION * values)))
        return np.asarray(np.arcsinh(values / scale))

    def restore(self, stabilised: Floats, scale: Floats) -> Floats:
        """The value with this y; inverse of `stabilise`."""
        if self.is_count:
            return np.asarray(np.sinh(np.maximum(stabilised, 0.0) / 2.0) ** 2 / _DISPERSION)
        return np.asarray(scale * np.sinh(stabilised))

    def least_spread(self, level: float) -> Floats:
        """(n_features,) spreads below which a feature's own are not noise, for a segment of this median value.

        Counts move in steps of one, however still a segment's past has been; other values have no such step.
        """
        if not self.is_count:
            return np.zeros(len(FEATURES))
        one = np.ones(1)
        step = float(2.0 * self._half_step(self.stabilise(level * one, one), one)[0])
        means = [step / np.sqrt(3.0), step / np.sqrt(self.season)]
        return np.array([step, step, step, *means, _LEAST_VOLATILITY, np.log(2.0)])

    def context(self, values: Floats, scale: Floats) -> Floats:
        """What the features of each cell need from before it.

        values: (n_segments, n_times), NaN = no observation. scale: (n_segments,).
        Returns (n_segments, n_times, len(CONTEXT)). The numbers of a cell depend on its `lookback` periods alone,
        to the last bit, wherever the matrix begins.
        """
        season = self.season
        y = self.stabilise(values, scale[:, None])
        baseline = _trimmed_mean([_shift(y, k * self.long_season) for k in range(1, _LAGS + 1)])
        error = y - baseline
        spread = np.maximum(
            _mean_before(np.abs(error), 4 * season, 2 * season), self._half_step(baseline, scale[:, None])
        )
        winsorised = np.clip(error, -_WINSOR * spread, _WINSOR * spread)
        sum_2, count_2 = _sum_before(winsorised, 2)
        sum_season, count_season = _sum_before(winsorised, season - 1)
        absolute_season, _ = _sum_before(np.abs(winsorised), season - 1)
        before = [_shift(values, 1), _shift(values, 2)]
        highest, lowest = np.fmax(*before), np.fmin(*before)
        spans = self._span(np.fmax(values, highest), np.fmin(values, lowest), scale[:, None])
        columns = (
            baseline,
            spread,
            _mean_before(winsorised, season, (season + 1) // 2),
            _mean_before(baseline + winsorised, 4 * season, 2 * season),
            sum_2,
            count_2,
            sum_season,
            count_season,
            absolute_season,
            highest,
            lowest,
            _mean_before(spans, 4 * season, 2 * season),
        )
        return np.stack(columns, axis=-1)

    def is_complete(self, context: Floats) -> Bools:
        """Which contexts hold all that the features need; the others cannot be scored."""
        named = dict(zip(CONTEXT, np.moveaxis(context, -1, 0), strict=True))
        enough = (named["count_2"] >= 1) & (named["count_season"] >= self.season // 2)
        return np.asarray(enough & ~np.isnan(context).any(axis=-1))

    def features(self, values: Floats, context: Floats, scale: Floats) -> Floats:
        """The features of values in their contexts.

        values, scale: (...), context: (..., len(CONTEXT)); shapes broadcast. Returns (..., len(FEATURES)) float64,
        NaN where the value or the context is.
        """
        named = dict(zip(CONTEXT, np.moveaxis(context, -1, 0), strict=True))
        y = self.stabilise(values, scale)
        e = y - named["baseline"]
        spread = named["spread"]
        winsorised = np.clip(e, -_WINSOR * spread, _WINSOR * spread)
        recent_n = 1.0 + named["count_season"]
        volatility = (np.abs(winsorised) + named["absolute_season"]) / recent_n
        small = np.maximum(_SMALL, self._half_step(named["baseline"], scale))
        span = self._span(np.maximum(values, named["max_2"]), np.minimum(values, named["min_2"]), scale)
        columns = (
            e,
            e - named["recent"],
            y - named["level"],
            (winsorised + named["sum_2"]) / (1.0 + named["count_2"]),
            (winsorised + named["sum_season"]) / recent_n,
            np.log((volatility + small) / (spread + small)),
            np.minimum(0.0, span - named["usual_range"]),
        )
        return np.stack(np.broadcast_arrays(*columns), axis=-1)

    def expected(self, context: Floats, scale: Floats) -> Floats:
        """The baseline in the metric's own unit."""
        return self.restore(context[..., 0], scale)

    def _half_step(self, stabilised: Floats, scale: Floats) -> Floats:
        """Half of what one more count adds to y; 0 where values are not counts."""
        if not self.is_count:
            return np.zeros_like(stabilised)
        return np.asarray((self.stabilise(self.restore(stabilised, scale) + 1.0, scale) - stabilised) / 2.0)

    def _span(self, highest: Floats, lowest: Floats, scale: Floats) -> Floats:
        width = highest - lowest
        return np.asarray(np.log1p(width if self.is_count else width / scale))


def _positive_median(values: Floats) -> float:
    median = float(np.median(values)) if values.size else 0.0
    return median if median > 0 else 1.0


def _shift(matrix: Floats, periods: int, fill: float = np.nan) -> Floats:
    """Row-wise, each cell takes the value `periods` earlier."""
    shifted = np.full_like(matrix, fill)
    if periods < matrix.shape[1]:
        shifted[:, periods:] = matrix[:, : matrix.shape[1] - periods]
    return shifted


def _trimmed_mean(lags: list[Floats]) -> Floats:
    """Mean of the observed lags without a third at either end (eight: two and two); NaN of fewer than two."""
    # Sorted, the missing come last.
    stack = np.sort(np.stack(lags), axis=0)
    count = (~np.isnan(stack)).sum(axis=0)
    cut = count // 3
    total = np.zeros(count.shape)
    for rank, values in enumerate(stack):
        total += np.where((rank >= cut) & (rank < count - cut), values, 0.0)
    return np.where(count >= 2, total / np.maximum(count - 2 * cut, 1), np.nan)


def _window_sum(matrix: Floats, periods: int) -> Floats:
    """Sum over `periods` up to and with each cell, zeros before the first.

    Adds shifted blocks of 1, 2, 4, ... periods instead of a running sum, whose rounding would depend on where the
    matrix begins and make training and inference differ.
    """
    total = np.zeros_like(matrix)
    block, size, offset = matrix, 1, 0
    while periods:
        if periods & 1:
            total += _shift(block, offset, 0.0)
            offset += size
        periods >>= 1
        if periods:
            block = block + _shift(block, size, 0.0)
            size *= 2
    return total


def _sum_before(matrix: Floats, periods: int) -> tuple[Floats, Floats]:
    """Sum and count of the observations in the `periods` before each cell."""
    valid = ~np.isnan(matrix)
    total = _window_sum(np.where(valid, matrix, 0.0), periods)
    count = _window_sum(valid.astype(np.float64), periods)
    return _shift(total, 1, 0.0), _shift(count, 1, 0.0)


def _mean_before(matrix: Floats, periods: int, at_least: int) -> Floats:
    """Mean of the observations in the `periods` before each cell; NaN where fewer than `at_least`."""
    total, count = _sum_before(matrix, periods)
    return np.where(count >= at_least, total / np.maximum(count, 1.0), np.nan)
