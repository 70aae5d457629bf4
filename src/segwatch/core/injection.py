"""What models would have found: events of known kinds and sizes injected into periods that they did not see."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from segwatch.core.bundle import Rules
from segwatch.core.calibration import alert_thresholds
from segwatch.core.decision import alert_bounds
from segwatch.core.detector import Detector
from segwatch.core.features import FeatureSet
from segwatch.core.panel import Bools, Floats, Panel
from segwatch.core.training import Progress, ended_after, fit_segment

SIZES = (0.2, 0.4, 0.6)
KINDS = ("drop", "rise", "level_down", "level_up", "drift_down", "flat_line", "zero_out")
CLASSES = (0.0, 10.0, 100.0, 1_000.0, 10_000.0, np.inf)
"""Edges of the segments' size classes, by the size of their median value."""
_LENGTHS = {"drop": 1, "rise": 1, "zero_out": 1, "flat_line": 7, "level_down": 7, "level_up": 7, "drift_down": 7}
_UNSIZED = ("flat_line", "zero_out")


@dataclass(frozen=True)
class Injection:
    """An event to inject. size: the share by which the value changes; 1 where the kind has none."""

    kind: str
    size: float

    def apply(self, values: Floats) -> Floats:
        """The values (n_periods,) of the event's periods, changed."""
        into = np.arange(1, len(values) + 1) / len(values)
        match self.kind:
            case "drop" | "level_down":
                return values * (1 - self.size)
            case "rise" | "level_up":
                return values * (1 + self.size)
            case "drift_down":
                return values * (1 - self.size * into)
            case "flat_line":
                return np.full(len(values), values[0])
            case _:
                return np.zeros(len(values))


INJECTIONS = tuple(Injection(kind, size) for kind in KINDS for size in ((1.0,) if kind in _UNSIZED else SIZES))


@dataclass(frozen=True)
class Found:
    """What one segment's model did. delays: by injection the periods from an event's begin to its first alert, NaN
    where it was not found. smallest_drop, smallest_rise: medians of the smallest change of one period that would
    have alerted, as shares of the expected value; NaN where no such change would."""

    segment: int
    size: float
    n_rows: int
    n_alerts: int
    delays: dict[Injection, list[float]]
    smallest_drop: float
    smallest_rise: float


def inject(
    panel: Panel, feature_set: FeatureSet, rules: Rules, holdout: int, progress: Progress = lambda _: None
) -> Iterator[Found]:
    """What the models of each segment, fitted without the last `holdout` periods, find there.

    An event begins in each season of the held-out periods that has room for it. A row alerts where its p-value is at
    most the threshold that its period had without any injection.
    """
    alive = ~panel.ended(ended_after(feature_set))
    fitted = []
    for position in range(len(panel.segments)):
        values = np.asarray(panel.values[position])
        one = fit_segment(values[:-holdout], alive[position][:-holdout], feature_set, rules.min_history)
        if one.detector is not None:
            fitted.append(_Fitted(feature_set, position, values, alive[position], one.detector, one.scale))
        progress(1)
    observed = [model.p_values(model.values[None, :])[0] for model in fitted]
    for model, p_values, thresholds in zip(fitted, observed, _thresholds(observed, rules, holdout), strict=True):
        yield _found(model, p_values, thresholds)


@dataclass(frozen=True)
class _Fitted:
    """One segment's values (n_times,) and the model of those before the held-out ones."""

    feature_set: FeatureSet
    position: int
    values: Floats
    alive: Bools
    detector: Detector
    scale: float

    def p_values(self, values: Floats) -> Floats:
        """p-values (n_series, n_times) of series in place of the values; NaN where a row cannot be scored."""
        context = self.feature_set.context(values, np.full(len(values), self.scale))
        wanted = self.feature_set.is_complete(context) & ~np.isnan(values) & self.alive
        found = np.full(values.shape, np.nan)
        if wanted.any():
            scales = np.full(int(wanted.sum()), self.scale)
            found[wanted] = self.detector.p_value(self.feature_set.features(values[wanted], context[wanted], scales))
        return found

    def bounds(self, thresholds: Floats) -> tuple[Floats, Floats, Floats]:
        """Expected, lower and upper (n_rows,) of the last periods that have thresholds."""
        rows = ~np.isnan(thresholds)
        scales = np.full(int(rows.sum()), self.scale)
        context = self.feature_set.context(self.values[None, :], np.array([self.scale]))[0, -len(thresholds) :][rows]
        expected = self.feature_set.expected(context, scales)
        # Asked of the expected value, which passes where any does: how far from it does the model let a value go?
        passes = np.ones(len(expected), dtype=bool)
        return expected, *alert_bounds(
            self.detector, self.feature_set, expected, context, scales, thresholds[rows], passes
        )


def _thresholds(observed: list[Floats], rules: Rules, holdout: int) -> list[Floats]:
    """For each segment the thresholds (holdout,) of its held-out rows; NaN where a row was not scored."""
    if not observed:
        return []
    matrix = np.stack([p_values[-holdout:] for p_values in observed])
    scored = ~np.isnan(matrix)
    _, periods = np.nonzero(scored)
    thresholds = np.full(matrix.shape, np.nan)
    thresholds[scored] = alert_thresholds(matrix[scored], periods, rules.fdr, rules.alpha)
    return list(thresholds)


def _found(fitted: _Fitted, p_values: Floats, thresholds: Floats) -> Found:
    n, holdout = len(fitted.values), len(thresholds)
    delays: dict[Injection, list[float]] = {injection: [] for injection in INJECTIONS}
    for begin in range(n - holdout, n, fitted.feature_set.season):
        fits = [one for one in INJECTIONS if begin + _LENGTHS[one.kind] <= n]
        changed = np.stack([_changed(fitted.values, begin, one) for one in fits])
        for one, found in zip(fits, fitted.p_values(changed), strict=True):
            end = begin + _LENGTHS[one.kind]
            delays[one].append(_delay(found[begin:end], thresholds[begin - n + holdout : end - n + holdout]))
    drop, rise = _smallest(fitted, thresholds)
    n_alerts = int((p_values[-holdout:] <= thresholds).sum())
    n_rows = int((~np.isnan(thresholds)).sum())
    return Found(fitted.position, abs(float(np.nanmedian(fitted.values))), n_rows, n_alerts, delays, drop, rise)


def _changed(values: Floats, begin: int, injection: Injection) -> Floats:
    changed = values.copy()
    span = slice(begin, begin + _LENGTHS[injection.kind])
    changed[span] = injection.apply(values[span])
    return changed


def _delay(p_values: Floats, thresholds: Floats) -> float:
    hits = np.flatnonzero(p_values <= thresholds)
    return float(hits[0]) if hits.size else np.nan


def _smallest(fitted: _Fitted, thresholds: Floats) -> tuple[float, float]:
    if np.isnan(thresholds).all():
        return np.nan, np.nan
    expected, lower, upper = fitted.bounds(thresholds)
    with np.errstate(divide="ignore", invalid="ignore"):
        drops, rises = (expected - lower) / np.abs(expected), (upper - expected) / np.abs(expected)
    # A count cannot fall under zero, so an interval that begins there bounds no drop.
    is_open = (lower <= 0) & fitted.feature_set.is_count
    return _median(np.where(is_open, np.nan, drops)), _median(rises)


def _median(shares: Floats) -> float:
    """The median, NaN where at least half of the rows have none."""
    missing = ~np.isfinite(shares)
    return np.nan if missing.mean() >= 0.5 else float(np.median(shares[~missing]))


@dataclass(frozen=True)
class SizeClass:
    """How models of one size class do. recalls and delays: by injection, the share of events found and the mean delay
    of those in periods. smallest_drop, smallest_rise: medians over the segments."""

    low: float
    high: float
    n_segments: int
    alert_rate: float
    recalls: dict[Injection, float]
    delays: dict[Injection, float]
    smallest_drop: float
    smallest_rise: float


def by_size(found: list[Found]) -> list[SizeClass]:
    """The size classes that have segments, the smallest first."""
    return [
        _size_class(low, high, part)
        for low, high in itertools.pairwise(CLASSES)
        if (part := [one for one in found if low <= one.size < high])
    ]


def _size_class(low: float, high: float, found: list[Found]) -> SizeClass:
    delays = {one: np.array([d for segment in found for d in segment.delays[one]]) for one in INJECTIONS}
    caught = {one: values[~np.isnan(values)] for one, values in delays.items()}
    return SizeClass(
        low,
        high,
        len(found),
        sum(one.n_alerts for one in found) / max(1, sum(one.n_rows for one in found)),
        {one: len(caught[one]) / len(delays[one]) for one in INJECTIONS if len(delays[one])},
        {one: float(caught[one].mean()) for one in INJECTIONS if len(caught[one])},
        _median(np.array([one.smallest_drop for one in found])),
        _median(np.array([one.smallest_rise for one in found])),
    )
