"""The methods that quality.py compares. Each takes a Case and gives scores, higher = more anomalous, and own flags.

All learn from the periods before the scored ones, and see of a scored period what came before it. pyod and
statsforecast are in benchmarks/requirements.txt; a method whose package is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from quality_data import ORDINARY, Case
from scipy.special import gammainc, gammaincc, roots_hermitenorm
from sklearn.svm import OneClassSVM

from segwatch.core.baseline import Recursion
from segwatch.core.calibration import alert_thresholds, pooled
from segwatch.core.detector import Detector
from segwatch.core.features import FeatureSet
from segwatch.core.panel import Bools, Floats, Ints, Panel
from segwatch.core.rollup import with_rollups
from segwatch.core.scaling import Scaling
from segwatch.core.training import Prepared, Rows, fit_rows, n_trained
from segwatch.core.window import Grain

ALPHA, FDR = 0.01, 0.05
ADAPT_AFTER: Mapping[Grain, int] = {"day": 7, "hour": 48}
# MSTL takes about a second a fit on hours.
SAMPLE: Mapping[Grain, int] = {"day": 40, "hour": 10}
_LEAST_ROWS = 30


@dataclass(frozen=True)
class Scored:
    """scores, flags: (n_segments, n_scored), NaN and False where the method cannot score.

    promised: false alerts per 1,000 ordinary cells that the flags are meant to make; None where nothing is promised.
    p_values: (n_segments, n_scored), where the method has them.
    """

    scores: Floats
    flags: Bools
    promised: float | None = None
    p_values: Floats | None = None

    def take(self, rows: Ints) -> Scored:
        """The scores of some of the segments."""
        p_values = None if self.p_values is None else self.p_values[rows]
        return Scored(self.scores[rows], self.flags[rows], self.promised, p_values)


@dataclass(frozen=True)
class Method:
    """sample: only so many segments, evenly chosen, are scored, by grain. package: what has to be installed."""

    name: str
    score: Callable[[Case], Scored]
    sample: Mapping[Grain, int] | None = None
    package: str | None = None

    @property
    def is_installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None


def segwatch(case: Case) -> Scored:
    """The product as it is: -ln p, and is_anomaly at the default alpha and fdr; no roll-ups."""
    return _segwatch(case, case.panel)


def with_its_rollups(case: Case) -> tuple[Panel, Scored]:
    """The same with the total and each dimension's values, as the product does by default: the Panel and all rows."""
    panel = with_rollups(case.panel, 1)
    return panel, _segwatch(case, panel)


def _segwatch(case: Case, panel: Panel) -> Scored:
    rows, before = rows_of(case, panel)
    some = slice(-case.scored, None)
    p_values = np.full(rows.values[:, some].shape, np.nan)
    for i, detector in enumerate(fitted_detectors(case, panel, before)):
        wanted = rows.is_complete[i, some]
        if detector is not None and wanted.any():
            p_values[i, wanted] = detector.p_value(rows.X[i, some][wanted])
    ongoing = _feature_set(case).is_ongoing(rows.values[:, some], rows.contexts[:, some])
    thresholds = _thresholds(np.where(ongoing & ~np.isnan(p_values), 1.0, p_values))
    flags = (p_values <= thresholds) & ~ongoing
    return Scored(-np.log(p_values), flags, _promised(case, thresholds), p_values)


def fitted_detectors(case: Case, panel: Panel, before: Rows) -> list[Detector | None]:
    """One for each segment of the Panel, calibrated as the product does; None where it has too little history."""
    observed = (~np.isnan(np.asarray(panel.values)[:, : -case.scored])).sum(axis=1)
    detectors = [fitted.detector for fitted in fit_rows(before, observed, case.min_history)]
    pool = pooled([one.calibration for one in detectors if one])
    return [one.pooled(pool) if one and pool else None for one in detectors]


def rows_of(case: Case, panel: Panel) -> tuple[Rows, Rows]:
    """The rows that train and are scored, and the former alone: no row depends on a later one."""
    prepared = Prepared.of(panel, Recursion(_feature_set(case), ADAPT_AFTER[panel.window.grain]))
    keep = min(n_trained(prepared) + case.scored, len(panel.window))
    rows = Rows.of(prepared, keep)
    return rows, rows.until(keep - case.scored)


def _thresholds(p_values: Floats) -> Floats:
    """What the product flags across the rows of each period, NaN where there is no p-value."""
    known = ~np.isnan(p_values)
    thresholds = np.full(p_values.shape, np.nan)
    thresholds[known] = alert_thresholds(p_values[known], np.nonzero(known)[1], FDR, ALPHA)
    return thresholds


def _promised(case: Case, thresholds: Floats) -> float:
    """What p-values that are uniform on ordinary cells would flag at the thresholds used, of 1,000."""
    of_segments = thresholds[: len(case.events)]
    return 1000.0 * float(np.nan_to_num(of_segments[case.judged & (case.events == ORDINARY)]).mean())


def largest_feature(case: Case) -> Scored:
    """max |z| of segwatch's features, scaled as its detector scales them; no SVM. Flags from 5 on."""

    def score(X: Floats, tested: Floats) -> Floats:
        return np.asarray(np.abs(Scaling.fit(X, 1.0).apply(tested)).max(axis=1))

    return _flagged(_on_features(case, score), 5.0)


def oracle(case: Case) -> Scored:
    """-ln p of the count under the mean and noise that made it, one period at a time."""
    truth = case.truth
    if truth is None:
        return _flagged(np.full(case.events.shape, np.nan), 0.0)
    values = case.panel.values[:, -case.scored :]
    nodes, weights = roots_hermitenorm(80)
    below, above = np.zeros(values.shape), np.zeros(values.shape)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        rate = np.broadcast_to(truth.mean * np.exp(truth.sd * node), values.shape)
        below += weight * gammaincc(values + 1.0, rate)
        above += weight * np.where(values > 0, gammainc(np.maximum(values, 1.0), rate), 1.0)
    p_values = np.clip(2.0 * np.minimum(below, above), 1e-300, 1.0)
    thresholds = _thresholds(np.where(np.isnan(values), np.nan, p_values))
    return Scored(-np.log(p_values), p_values <= thresholds, _promised(case, thresholds), p_values)


def weekday_z(case: Case) -> Scored:
    """`robust_z`; flags from 3.5 on (Iglewicz and Hoaglin 1993)."""
    season = _feature_set(case).long_season
    return _flagged(robust_z(_transformed(case), case.scored, season), 3.5)


def _transformed(case: Case) -> Floats:
    """(n_segments, n_times) on the scale that a plain method compares on: log1p of counts, all else as it is, its
    median 0 and its median deviation a tenth, about that of the counts."""
    if case.kind == "count":
        return np.asarray(np.log1p(case.values))
    center = np.nanmedian(case.values, axis=1, keepdims=True)
    spread = np.nanmedian(np.abs(case.values - center), axis=1, keepdims=True)
    return np.asarray((case.values - center) / np.where(spread > 0, 10.0 * spread, 1.0))


def robust_z(x: Floats, scored: int = 60, season: int = 7) -> Floats:
    """|x - median of the last 8 same weekdays| in robust standard deviations of the last 56 such residuals."""
    residual = np.full_like(x, np.nan)
    scores = np.full((len(x), scored), np.nan)
    long = 8 * season
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for t in range(max(long, x.shape[1] - scored - long), x.shape[1]):
            residual[:, t] = x[:, t] - np.nanmedian(x[:, t - long : t : season], axis=1)
        for k in range(scored):
            t = x.shape[1] - scored + k
            spread = 1.4826 * np.nanmedian(np.abs(residual[:, max(0, t - long) : t]), axis=1)
            scores[:, k] = np.abs(residual[:, t]) / np.maximum(spread, 0.02)
    return scores


def template(case: Case) -> Scored:
    """One scikit-learn OneClassSVM per segment on the raw value, standardised; flags where predict says -1."""

    def score(history: Floats, tested: Floats) -> Floats:
        center, spread = history.mean(), history.std() or 1.0
        model = OneClassSVM(kernel="rbf", nu=0.05, gamma="scale").fit(((history - center) / spread)[:, None])
        return np.asarray(-model.decision_function(((tested - center) / spread)[:, None]))

    return _flagged(_on_observed(case, 0, lambda values: values, score), 0.0, 50.0)


def pca_on_differences(case: Case) -> Scored:
    """pyod's PCA on first differences smoothed over 3, with 3 lags, as the closest peer sets it.

    The peer's score is pyod's probability (the training's scores scaled to 0..1), flagged above 0.8. It also smooths
    that over 3 periods and clips it at 1, which ties and delays; neither is done here.
    """
    from pyod.models.pca import PCA

    def score(history: Floats, tested: Floats) -> Floats:
        model = PCA()
        model.fit(history)
        low, high = model.decision_scores_.min(), model.decision_scores_.max()
        return np.asarray((model.decision_function(tested) - low) / max(high - low, 1e-12))

    return _flagged(_on_observed(case, 6, _lagged_differences, score), 0.8)


def _lagged_differences(values: Floats) -> Floats:
    """(n - 6, 4): differences of the values (n,), means of 3, each with the 3 before."""
    smooth = np.convolve(np.diff(values), np.ones(3) / 3.0, "valid")
    return np.column_stack([smooth[3 - lag : len(smooth) - lag] for lag in range(4)])


def isolation_forest(case: Case) -> Scored:
    """pyod's IForest per segment on segwatch's features, its defaults and a fixed seed."""
    from pyod.models.iforest import IForest

    return _pyod_on_features(case, lambda: IForest(random_state=0))


def ecod(case: Case) -> Scored:
    """pyod's ECOD per segment on segwatch's features, its defaults."""
    from pyod.models.ecod import ECOD

    return _pyod_on_features(case, ECOD)


def _pyod_on_features(case: Case, make: Callable[[], object]) -> Scored:
    """The score less the model's own threshold, which its default contamination puts at 10 % of the training."""

    def score(X: Floats, tested: Floats) -> Floats:
        model = make()
        model.fit(X)  # type: ignore[attr-defined]
        return np.asarray(model.decision_function(tested) - model.threshold_)  # type: ignore[attr-defined]

    return _flagged(_on_features(case, score), 0.0, 100.0)


def mstl(case: Case) -> Scored:
    """Distance from the forecast of statsforecast's MSTL on log1p of counts, in half-widths of its 99 % interval.

    Refitted every season, 7 days or 24 hours. Days have one season, 7; hours two, 24 and 168. Gaps are filled with
    the value a long season earlier.
    """
    from statsforecast.models import MSTL

    features = _feature_set(case)
    step, season = features.season, sorted({features.season, features.long_season})
    filled = _filled(_transformed(case), features.long_season)
    n = filled.shape[1]
    scores = np.full(case.events.shape, np.nan)
    for i, y in enumerate(filled):
        if not np.ptp(y[: n - case.scored]):
            continue
        for start in range(n - case.scored, n, step):
            stop = min(start + step, n)
            forecast = MSTL(season_length=season).forecast(y[:start], h=stop - start, level=[99])
            width = np.maximum((forecast["hi-99"] - forecast["lo-99"]) / 2.0, 1e-6)
            columns = slice(start - (n - case.scored), stop - (n - case.scored))
            scores[i, columns] = np.abs(y[start:stop] - forecast["mean"]) / width
    scores[np.isnan(case.panel.values[:, -case.scored :])] = np.nan
    return _flagged(scores, 1.0, 10.0)


def _filled(y: Floats, season: int) -> Floats:
    filled = np.where(np.isnan(y[:, :season]), np.nanmedian(y, axis=1)[:, None], y[:, :season])
    for t in range(season, y.shape[1]):
        column = np.where(np.isnan(y[:, t]), filled[:, t - season], y[:, t])
        filled = np.column_stack([filled, column])
    return filled


def _feature_set(case: Case) -> FeatureSet:
    return FeatureSet(case.panel.window.grain, case.kind)


def _flagged(scores: Floats, above: float, promised: float | None = None) -> Scored:
    return Scored(scores, np.nan_to_num(scores, nan=-np.inf) > above, promised)


def _on_features(case: Case, score: Callable[[Floats, Floats], Floats]) -> Floats:
    """Scores of a model per segment on segwatch's features, of the segments that have enough of them to learn from.

    score: of the training's rows and the scored rows.
    """
    scores = np.full(case.events.shape, np.nan)
    rows, before = rows_of(case, case.panel)
    for i, X in enumerate(before.each()):
        wanted = rows.is_complete[i, -case.scored :]
        if len(X) >= _LEAST_ROWS and np.ptp(X, axis=0).any() and wanted.any():
            scores[i, wanted] = score(X, rows.X[i, -case.scored :][wanted])
    return scores


def _on_observed(
    case: Case, lost: int, prepare: Callable[[Floats], Floats], score: Callable[[Floats, Floats], Floats]
) -> Floats:
    """Scores of a model per segment on its observed values, gaps closed; `prepare` loses the first `lost` of them."""
    scores = np.full(case.events.shape, np.nan)
    for i, values in enumerate(case.values):
        observed = np.flatnonzero(~np.isnan(values))
        rows, columns = prepare(values[observed]), observed[lost:] - (len(values) - case.scored)
        history = rows[columns < 0]
        if len(history) >= _LEAST_ROWS and np.ptp(history) > 0 and (columns >= 0).any():
            scores[i, columns[columns >= 0]] = score(history, rows[columns >= 0])
    return scores


METHODS = (
    Method("segwatch", segwatch),
    Method("max z of its features", largest_feature),
    Method("weekday z", weekday_z),
    Method("template", template),
    Method("PCA on differences", pca_on_differences, package="pyod"),
    Method("Isolation Forest", isolation_forest, package="pyod"),
    Method("ECOD", ecod, package="pyod"),
    Method("MSTL", mstl, sample=SAMPLE, package="statsforecast"),
    Method("oracle", oracle),
)
