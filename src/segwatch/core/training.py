"""Fitting the segments of a Panel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from segwatch.core.detector import Detector
from segwatch.core.features import FeatureSet
from segwatch.core.panel import Bools, Floats, Panel

MIN_ROWS = 30
Progress = Callable[[int], None]


@dataclass(frozen=True)
class FittedSegment:
    """What training made of one segment: a detector, or the status and the reason why there is none."""

    n_observations: int
    scale: float
    detector: Detector | None
    status: str = "ok"
    reason: str | None = None


def ended_after(feature_set: FeatureSet) -> int:
    """Periods without a row after which a segment counts as ended: four seasons."""
    return 4 * feature_set.season


def fit_panel(
    panel: Panel, feature_set: FeatureSet, min_history: int, progress: Progress = lambda _: None
) -> Iterator[FittedSegment]:
    """The fitted segments, in the order of the Panel; progress is told how many more are done."""
    # libsvm lets go of the interpreter lock, so threads share the cores without copying the Panel.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for rows in panel.chunks():
            alive = ~panel_part(panel, rows).ended(ended_after(feature_set))
            values = np.asarray(panel.values[rows])
            for fitted in pool.map(
                lambda i, v=values, a=alive: fit_segment(v[i], a[i], feature_set, min_history),
                range(len(values)),
            ):
                progress(1)
                yield fitted


def panel_part(panel: Panel, rows: slice) -> Panel:
    """The Panel of some of its segments."""
    return Panel(panel.history.take(range(len(panel.segments))[rows]), panel.window, panel.values[rows])


def fit_segment(values: Floats, alive: Bools, feature_set: FeatureSet, min_history: int) -> FittedSegment:
    """The fitted segment of values (n_times,); only rows that are `alive` (n_times,) train it."""
    observed = values[alive & ~np.isnan(values)]
    n = len(observed)
    scale = float(feature_set.segment_scale(values[None, alive])[0])
    if n < min_history:
        reason = f"{n} periods, needs {min_history}: widen the Window or lower min_history"
        return FittedSegment(n, scale, None, "too_short", reason)
    if observed.min() == observed.max():
        return FittedSegment(n, scale, None, "constant", f"every value of the {n} periods is {observed[0]:g}")
    X = complete_rows(values, scale, feature_set, alive)
    if len(X) < MIN_ROWS:
        reason = f"{len(X)} periods with a full history behind them, needs {MIN_ROWS}: too many gaps"
        return FittedSegment(n, scale, None, "too_short", reason)
    return FittedSegment(
        n, scale, Detector.fit(X, feature_set.season, feature_set.least_spread(float(np.median(observed))))
    )


def complete_rows(values: Floats, scale: float, feature_set: FeatureSet, wanted: Bools) -> Floats:
    """Features (n_rows, n_features) of one segment's wanted periods that have all they need."""
    scales = np.array([scale])
    context = feature_set.context(values[None, :], scales)[0]
    rows = wanted & feature_set.is_complete(context) & ~np.isnan(values)
    return feature_set.features(values[rows], context[rows], np.full(int(rows.sum()), scale))
