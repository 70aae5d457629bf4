"""Series and Panels that tests simulate, and what the baselines make of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segwatch.core.baseline import Baseline, Recursion
from segwatch.core.features import CONTEXT, FEATURES, FeatureSet
from segwatch.core.groups import TOTAL, Groups
from segwatch.core.noise import PHI
from segwatch.core.panel import History, Panel, Segments
from segwatch.core.replay import Pools, Series, Whole, go_through
from segwatch.core.window import Window, length, unit

START = np.datetime64("2025-01-06")
"""A Monday."""
WEEK = np.array([1.1, 1.0, 1.0, 0.95, 1.05, 1.0, 0.9])


def panel_of(values, names=None, dimensions=("name",), exposure=None, grain="day"):
    """The Panel of values (n_segments, n_times) from START on; NaN: no observation."""
    values = np.array(values, dtype=float)
    n, n_times = values.shape
    start = START.astype(f"datetime64[{unit(grain)}]")
    segments = Segments(tuple(dimensions), tuple(names or ((f"s{i:04d}",) for i in range(n))))
    observed = ~np.isnan(values)
    first, last = observed.argmax(axis=1), n_times - 1 - observed[:, ::-1].argmax(axis=1)
    window = Window(start, start + length(n_times, grain), grain)
    return Panel(History(segments, window.times[first], window.times[last]), window, values, exposure)


@dataclass(frozen=True)
class Gone:
    """What a recursion made of series, each on its own. X: (n_segments, n_times, n_features)."""

    state: Baseline
    contexts: np.ndarray
    X: np.ndarray
    features: FeatureSet
    values: np.ndarray

    def __getitem__(self, name):
        """(n_segments, n_times) of a feature or of a column of the contexts."""
        return self.X[..., FEATURES.index(name)] if name in FEATURES else self.contexts[..., CONTEXT.index(name)]

    @property
    def expected(self):
        """(n_segments, n_times), in the values' own unit."""
        return self.features.expected(self.contexts)

    @property
    def is_ongoing(self):
        return self.features.is_ongoing(self.values, self.contexts)


def gone_through(values, kind="count", grain="day", exposure=None, adapt_after=7):
    """Series that share nothing, from their first period on."""
    panel = panel_of(np.atleast_2d(values), exposure=exposure, grain=grain)
    features = FeatureSet(grain, kind)
    scale = features.segment_scale(panel.values)
    series = Series.of(panel, scale, "UTC")
    n, n_times = series.values.shape
    state, groups = Baseline.fresh(scale, features), Groups((TOTAL,), np.full((1, n), -1))
    recursion = Recursion(features, adapt_after)
    _, contexts = go_through(Whole(series, groups), recursion, state, Pools.fresh(groups), n_times)
    return Gone(state, contexts, features.features(series.values, contexts), features, series.values)


def weekly(n_times, level=100.0, profile=WEEK):
    """(n_times,) expected values from a Monday on."""
    return level * profile[np.arange(n_times) % len(profile)]


def counts(rng, expected, noise=1.0):
    """Negative binomial counts around expected values, whose standard deviation is that of noise 1 times the noise."""
    size = 1.0 / np.maximum(noise**2 * (PHI + 1.0 / expected) - 1.0 / expected, 1e-9)
    return rng.poisson(rng.gamma(size, expected / size)).astype(float)
