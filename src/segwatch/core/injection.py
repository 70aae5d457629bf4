"""What models would have found: events of known kinds and sizes injected into periods that they did not see."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from segwatch.core.baseline import Baseline, Recursion
from segwatch.core.bundle import Rules
from segwatch.core.calibration import pooled
from segwatch.core.decision import alert_bounds, undiscovered
from segwatch.core.detector import Detector
from segwatch.core.panel import Bools, Floats, Ints
from segwatch.core.replay import Series, Shared, contexts_of
from segwatch.core.training import Prepared, Progress, Rows, alive, fit_rows, n_trained, parts

SIZES = (0.2, 0.4, 0.6)
KINDS = ("drop", "rise", "level_down", "level_up", "drift_down", "flat_line", "zero_out")
CLASSES = (0.0, 10.0, 100.0, 1_000.0, 10_000.0, np.inf)
"""Edges of the segments' size classes, by the size of their median value."""
_LENGTHS = {"drop": 1, "rise": 1, "zero_out": 1, "flat_line": 7, "level_down": 7, "level_up": 7, "drift_down": 7}
_UNSIZED = ("flat_line", "zero_out")
# So many segments' changed series are gone through together.
_AT_ONCE = 100


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


def inject(prepared: Prepared, rules: Rules, holdout: int, progress: Progress = lambda _: None) -> Iterator[Found]:
    """What the models of each segment, fitted without the last `holdout` periods, find there.

    An event begins in each season of the held-out periods that has room for it. A row alerts where its p-value is at
    most the threshold that its period had without any injection.
    """
    fitted = [one for first, part in parts(prepared) for one in _fit(first, part, rules, holdout, progress)]
    pool = pooled([one.detector.calibration for one in fitted])
    models = [replace(one, detector=one.detector.pooled(pool)) for one in fitted if pool]
    observed = [one.p_values(one.own[None], one.part.contexts[None, one.row])[0] for one in models]
    thresholds = _thresholds(observed, rules)
    for start in range(0, len(models), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        yield from _found(models[some], observed[some], thresholds[some])


@dataclass(frozen=True)
class _Part:
    """The held-out periods of some segments. state: of before them. contexts: (n_segments, holdout, n_context)."""

    recursion: Recursion
    series: Series
    shared: Shared
    state: Baseline
    alive: Bools
    contexts: Floats

    def of_changed(self, rows: Ints, values: Floats) -> Floats:
        """Contexts (n_series, holdout, n_context) of values (n_series, holdout) in place of those of the segments at
        `rows`, (n_series,)."""
        series = Series(self.series.times, self.series.grain, values, self.series.units[rows])
        return contexts_of(series, self.recursion, self.state.take(rows), self.shared.take(rows), values.shape[1])


@dataclass(frozen=True)
class _Fitted:
    """The model of one segment, at a row of its part. size: the median of its value's size."""

    position: int
    part: _Part
    row: int
    size: float
    detector: Detector

    @property
    def own(self) -> Floats:
        """(holdout,), the segment's held-out values."""
        return np.asarray(self.part.series.values[self.row])

    def p_values(self, values: Floats, contexts: Floats) -> Floats:
        """p-values (n_series, holdout) of held-out values in their contexts; NaN where a row cannot be scored."""
        features = self.part.recursion.features
        wanted = features.is_complete(contexts) & ~np.isnan(values) & self.part.alive[self.row]
        found = np.full(values.shape, np.nan)
        if wanted.any():
            found[wanted] = undiscovered(self.detector, features, values[wanted], contexts[wanted])
        return found

    def bounds(self, thresholds: Floats) -> tuple[Floats, Floats, Floats]:
        """Expected, lower and upper (n_rows,) of the held-out periods that have thresholds."""
        rows, features = ~np.isnan(thresholds), self.part.recursion.features
        contexts = self.part.contexts[self.row, rows]
        expected = features.expected(contexts)
        # Asked of the expected value, which passes where any does: how far from it does the model let a value go?
        passes = np.ones(len(expected), dtype=bool)
        return expected, *alert_bounds(self.detector, features, expected, contexts, thresholds[rows], passes)


def _fit(first: int, prepared: Prepared, rules: Rules, holdout: int, progress: Progress) -> Iterator[_Fitted]:
    """The models of a part of the segments, of which the first is at the position `first` of all."""
    n = len(prepared.panel.window)
    living, values = alive(prepared), np.asarray(prepared.values)
    rows = Rows.of(prepared, min(n_trained(prepared) + holdout, n))
    part = _Part(
        prepared.recursion,
        prepared.series.since(n - holdout),
        prepared.shared.since(n - holdout),
        prepared.state_before(holdout),
        living[:, -holdout:],
        rows.contexts[:, -holdout:],
    )
    observed = (~np.isnan(values[:, :-holdout]) & living[:, :-holdout]).sum(axis=1)
    earlier = rows.until(max(0, rows.values.shape[1] - holdout))
    for row, fitted in enumerate(fit_rows(earlier, observed, rules.min_history)):
        progress(1)
        if fitted.detector is not None:
            yield _Fitted(first + row, part, row, abs(float(np.nanmedian(values[row]))), fitted.detector)


def _thresholds(observed: list[Floats], rules: Rules) -> list[Floats]:
    """For each segment the thresholds (holdout,) of its held-out rows; NaN where a row was not scored."""
    if not observed:
        return []
    matrix = np.stack(observed)
    scored = ~np.isnan(matrix)
    _, periods = np.nonzero(scored)
    thresholds = np.full(matrix.shape, np.nan)
    thresholds[scored] = rules.thresholds(matrix[scored], periods)
    return list(thresholds)


def _found(models: list[_Fitted], observed: list[Floats], thresholds: list[Floats]) -> Iterator[Found]:
    """What each of the models found; all their changed series are gone through together."""
    holdout, season = len(thresholds[0]), models[0].part.recursion.features.season
    events = [
        (begin, one)
        for begin in range(0, holdout, season)
        for one in INJECTIONS
        if begin + _LENGTHS[one.kind] <= holdout
    ]
    changed = [np.stack([_changed(model.own, begin, one) for begin, one in events]) for model in models]
    for model, values, contexts, p_values, limits in zip(
        models, changed, _contexts(models, changed), observed, thresholds, strict=True
    ):
        delays: dict[Injection, list[float]] = {injection: [] for injection in INJECTIONS}
        for (begin, one), found in zip(events, model.p_values(values, contexts), strict=True):
            span = slice(begin, begin + _LENGTHS[one.kind])
            delays[one].append(_delay(found[span], limits[span]))
        n_alerts, n_rows = int((p_values <= limits).sum()), int((~np.isnan(limits)).sum())
        yield Found(model.position, model.size, n_rows, n_alerts, delays, *_smallest(model, limits))


def _contexts(models: list[_Fitted], changed: list[Floats]) -> Iterator[Floats]:
    """The contexts of each model's changed series, (n_series, holdout, n_context)."""
    for _, those in itertools.groupby(zip(models, changed, strict=True), key=lambda pair: id(pair[0].part)):
        pairs = list(those)
        rows = np.repeat([model.row for model, _ in pairs], [len(values) for _, values in pairs])
        contexts = pairs[0][0].part.of_changed(rows, np.concatenate([values for _, values in pairs]))
        yield from np.split(contexts, np.cumsum([len(values) for _, values in pairs])[:-1])


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
    is_open = (lower <= 0) & fitted.part.recursion.features.is_count
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


def as_metrics(found: list[Found]) -> dict[str, float]:
    """What was found by size class, as the metrics of a model version: `found_10_to_100_drop_40`,
    `smallest_drop_10_to_100`; the smallest changes are left out where there is none."""
    metrics: dict[str, float] = {}
    for one in by_size(found):
        name = f"{one.low:.0f}_to_{one.high:.0f}" if np.isfinite(one.high) else f"{one.low:.0f}_and_more"
        smallest = {"drop": one.smallest_drop, "rise": one.smallest_rise}
        metrics |= {f"smallest_{kind}_{name}": share for kind, share in smallest.items() if np.isfinite(share)}
        for injection, recall in one.recalls.items():
            size = "" if injection.kind in _UNSIZED else f"_{100 * injection.size:.0f}"
            metrics[f"found_{name}_{injection.kind}{size}"] = recall
    return metrics
