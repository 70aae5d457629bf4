"""The methods that quality.py compares. Each takes a Case and gives scores, higher = more anomalous, and own flags.

All learn from the periods before the scored ones, and see of a scored period what came before it. pyod and
statsforecast are in benchmarks/requirements.txt; a method whose package is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from quality_data import ORDINARY, Case, training
from scipy.special import gammainc, gammaincc, roots_hermitenorm
from sklearn.svm import OneClassSVM

from segwatch.core.calibration import alert_thresholds
from segwatch.core.detector import Scaling
from segwatch.core.features import FeatureSet
from segwatch.core.panel import Bools, Floats, Ints, Panel
from segwatch.core.training import complete_rows, ended_after, fit_panel
from segwatch.core.window import Grain

ALPHA, FDR = 0.01, 0.1
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
    """The product as it is: -ln p, and is_anomaly at the default alpha and fdr."""
    features = _feature_set(case)
    scored, panel = case.scored, case.panel
    fitted = list(fit_panel(training(panel, scored), features, case.min_history))
    scale = np.array([segment.scale for segment in fitted])
    context = features.context(panel.values, scale)[:, -scored:]
    values = panel.values[:, -scored:]
    wanted = features.is_complete(context) & ~np.isnan(values) & ~panel.ended(ended_after(features))[:, -scored:]
    p_values = np.full(values.shape, np.nan)
    for i, segment in enumerate(fitted):
        rows = wanted[i]
        if segment.detector is not None and rows.any():
            X = features.features(values[i, rows], context[i, rows], np.full(int(rows.sum()), scale[i]))
            p_values[i, rows] = segment.detector.p_value(X)
    return _decided(case, p_values)


def _decided(case: Case, p_values: Floats) -> Scored:
    """-ln p, and what the product flags across the segments of each period.

    Promised is what p-values that are uniform on ordinary cells would flag at the thresholds used.
    """
    known = ~np.isnan(p_values)
    thresholds = np.full(p_values.shape, np.nan)
    thresholds[known] = alert_thresholds(p_values[known], np.nonzero(known)[1], FDR, ALPHA)
    ordinary = thresholds[case.judged & (case.events == ORDINARY)]
    promised = 1000.0 * float(np.nan_to_num(ordinary).mean())
    return Scored(-np.log(p_values), p_values <= thresholds, promised, p_values)


def largest_feature(case: Case) -> Scored:
    """max |z| of segwatch's features, scaled as its detector scales them; no SVM. Flags from 5 on."""

    def score(X: Floats, tested: Floats, least_spread: Floats) -> Floats:
        return np.asarray(np.abs(Scaling.fit(X, least_spread).apply(tested)).max(axis=1))

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
    return _decided(case, p_values)


def weekday_z(case: Case) -> Scored:
    """`robust_z`; flags from 3.5 on (Iglewicz and Hoaglin 1993)."""
    season = _feature_set(case).long_season
    return _flagged(robust_z(case.panel, case.scored, season), 3.5)


def robust_z(panel: Panel, scored: int = 60, season: int = 7) -> Floats:
    """|log1p(x) - median of the last 8 same weekdays| in robust standard deviations of the last 56 such residuals."""
    x = np.log1p(panel.values)
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

    def score(X: Floats, tested: Floats, _: Floats) -> Floats:
        model = make()
        model.fit(X)  # type: ignore[attr-defined]
        return np.asarray(model.decision_function(tested) - model.threshold_)  # type: ignore[attr-defined]

    return _flagged(_on_features(case, score), 0.0, 100.0)


def mstl(case: Case) -> Scored:
    """Distance from the forecast of statsforecast's MSTL on log1p, in half-widths of its 99 % interval.

    Refitted every season, 7 days or 24 hours. Days have one season, 7; hours two, 24 and 168. Gaps are filled with
    the value a long season earlier.
    """
    from statsforecast.models import MSTL

    features = _feature_set(case)
    step, season = features.season, sorted({features.season, features.long_season})
    filled = _filled(np.log1p(case.panel.values), features.long_season)
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
    return FeatureSet(case.panel.window.grain, True)


def _flagged(scores: Floats, above: float, promised: float | None = None) -> Scored:
    return Scored(scores, np.nan_to_num(scores, nan=-np.inf) > above, promised)


def _on_features(case: Case, score: Callable[[Floats, Floats, Floats], Floats]) -> Floats:
    """Scores of a model per segment on segwatch's features, of the segments that have enough of them to learn from.

    score: of the training's rows, the scored rows and the least spreads.
    """
    scores = np.full(case.events.shape, np.nan)
    for i, X, rows, tested, least in _feature_rows(case):
        scores[i, rows] = score(X, tested, least)
    return scores


def _feature_rows(case: Case) -> Iterator[tuple[int, Floats, Bools, Floats, Floats]]:
    """For each segment: its place, training rows, which scored periods have features, those, and the least spreads."""
    features, scored = _feature_set(case), case.scored
    one = np.array([1.0])
    for i, values in enumerate(case.panel.values):
        history = values[:-scored]
        X = complete_rows(history, 1.0, features, np.ones(len(history), dtype=bool))
        if len(X) < _LEAST_ROWS or not np.ptp(X, axis=0).any():
            continue
        context = features.context(values[None, :], one)[0, -scored:]
        rows = features.is_complete(context) & ~np.isnan(values[-scored:])
        if rows.any():
            tested = features.features(values[-scored:][rows], context[rows], np.ones(int(rows.sum())))
            yield i, X, rows, tested, features.least_spread(float(np.nanmedian(history)))


def _on_observed(
    case: Case, lost: int, prepare: Callable[[Floats], Floats], score: Callable[[Floats, Floats], Floats]
) -> Floats:
    """Scores of a model per segment on its observed values, gaps closed; `prepare` loses the first `lost` of them."""
    scores = np.full(case.events.shape, np.nan)
    for i, values in enumerate(case.panel.values):
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
