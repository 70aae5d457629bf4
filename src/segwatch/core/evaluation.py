"""How models do on the last periods before now: their alert rate, and planted changes that they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segwatch.core.baseline import Baseline
from segwatch.core.bundle import ModelBundle, Rules
from segwatch.core.calibration import pooled
from segwatch.core.decision import undiscovered
from segwatch.core.detector import Detector
from segwatch.core.features import FeatureSet
from segwatch.core.panel import Bools, Floats, Ints
from segwatch.core.replay import Series, contexts_of
from segwatch.core.training import Prepared, Progress, Rows, alive, fit_rows, n_trained, parts
from segwatch.core.window import long_period

SAMPLE = 200
INJECTED = {"drop_30": 0.7, "drop_60": 0.4, "spike_30": 1.3, "spike_60": 1.6}
# Fewer rows than this tell two models' alert rates apart by chance alone.
_MIN_COMPARED = 50


@dataclass(frozen=True)
class HeldOut:
    """Rows that models did not see, (n_rows,) each: p-values as observed and with each injected change.

    segment: position in the Panel. period: column of the Panel.
    """

    segment: Ints
    period: Ints
    observed: Floats
    injected: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.period)

    def where(self, wanted: Bools) -> HeldOut:
        """Those of the rows that are wanted (n_rows,)."""
        injected = {name: values[wanted] for name, values in self.injected.items()}
        return HeldOut(self.segment[wanted], self.period[wanted], self.observed[wanted], injected)

    def same_as(self, other: HeldOut) -> HeldOut:
        """Those of the rows that the other has too."""
        keys, others = (np.stack([rows.segment, rows.period], axis=1).tolist() for rows in (self, other))
        return self.where(np.isin(_joined(keys), _joined(others)))


def _joined(keys: list[list[int]]) -> Ints:
    pairs = np.array(keys, dtype=np.int64).reshape(-1, 2)
    return np.asarray(pairs[:, 0] << 32 | pairs[:, 1])


def held_out(prepared: Prepared, rules: Rules, holdout: int, progress: Progress = lambda _: None) -> HeldOut:
    """The last `holdout` periods under models fitted without them, of at most 200 segments chosen by their ids.

    The states that the periods are judged by are of before each of them, so that only the fits are made anew.
    """
    sample = _sample(prepared)
    rows = Rows.of(sample, min(n_trained(sample) + holdout, len(sample.panel.window)))
    before = rows.until(max(0, rows.values.shape[1] - holdout))
    observed = (~np.isnan(np.asarray(sample.values)[:, :-holdout]) & alive(sample)[:, :-holdout]).sum(axis=1)
    fitted = [one.detector for one in fit_rows(before, observed, rules.min_history)]
    progress(len(fitted))
    pool = pooled([one.calibration for one in fitted if one])
    detectors = [one.pooled(pool) if one and pool else None for one in fitted]
    return _rows(sample, rows, detectors, before.values.shape[1])


def held_out_of(bundle: ModelBundle, prepared: Prepared, holdout: int) -> HeldOut:
    """The same periods and segments under a bundle's models; where it can be, only periods after its training."""
    sample = _sample(prepared)
    window = sample.panel.window
    unseen = int((bundle.window.end - window.start).astype(np.int64))
    n = len(window)
    first = max(0, n - holdout, unseen if unseen < n else 0)
    places = bundle.find(sample.panel.segments.ids).tolist()
    detectors = [None if at < 0 or bundle.status[at] != "ok" else bundle.detector(at) for at in places]
    goes_on = 0 < unseen < n
    contexts = _goes_on(bundle, sample, unseen, n - first) if goes_on else None
    return _rows(sample, Rows.of(sample, n - first, contexts), detectors, 0)


def _goes_on(bundle: ModelBundle, sample: Prepared, unseen: int, keep: int) -> Floats:
    """The contexts of the last periods from the bundle's own states at the end of its training, as in inference.

    What a candidate has learned of data that were spoilt must not make the champion as bad.
    """
    at = bundle.find(sample.panel.segments.ids)
    known = bundle.state(at[at >= 0])
    # Those that the bundle has not met are new to it; they have no detector either.
    fresh = Baseline.fresh(sample.scale[at < 0], bundle.feature_set)
    order = np.argsort(np.concatenate([np.flatnonzero(at >= 0), np.flatnonzero(at < 0)]))
    state = known.joined(fresh).take(order)
    series = Series.of(sample.panel, state.scale, bundle.recursion.timezone).since(unseen)
    return contexts_of(series, bundle.recursion, state, sample.shared.since(unseen), keep)


def budget_threshold(bundle: ModelBundle, prepared: Prepared, holdout: int, alert_budget: float) -> float:
    """The p-value at or under which `alert_budget` rows a week would have alerted in the last `holdout` periods."""
    found = [_scored(bundle, part, start, holdout) for start, part in parts(prepared)]
    p_values = np.sort(np.concatenate([np.empty(0), *found]))
    n_alerts = alert_budget * holdout / long_period(prepared.recursion.features.grain)
    if not p_values.size or n_alerts >= len(p_values):
        return bundle.rules.alpha
    if n_alerts < 1:
        # p-values are uniform on ordinary rows, so that less than the smallest is met less often by as much.
        return min(bundle.rules.alpha, float(n_alerts * p_values[0]))
    low, high = p_values[int(n_alerts) - 1 : int(n_alerts) + 1]
    return min(bundle.rules.alpha, float(np.sqrt(low * high)))


def _scored(bundle: ModelBundle, part: Prepared, first: int, holdout: int) -> Floats:
    """p-values of the rows that can be scored in the last periods; first: position of the part's first segment."""
    rows = Rows.of(part, min(holdout, len(part.panel.window)))
    found = [np.empty(0)]
    for i in range(len(part)):
        wanted = rows.is_complete[i]
        if bundle.status[first + i] == "ok" and wanted.any():
            detector, features = bundle.detector(first + i), part.recursion.features
            found.append(undiscovered(detector, features, rows.values[i, wanted], rows.contexts[i, wanted]))
    return np.concatenate(found)


def _sample(prepared: Prepared) -> Prepared:
    return prepared.take(np.argsort(prepared.panel.segments.ids)[:SAMPLE])


def _rows(sample: Prepared, rows: Rows, detectors: Sequence[Detector | None], first: int) -> HeldOut:
    """What the detectors say of the rows from the column `first` of the kept ones on."""
    offset = len(sample.panel.window) - rows.values.shape[1]
    parts = []
    for position, detector in enumerate(detectors):
        columns = np.flatnonzero(rows.is_complete[position])
        columns = columns[columns >= first]
        if detector is None or not columns.size or not offset + first:
            continue
        values, contexts = rows.values[position, columns], rows.contexts[position, columns]
        p_values = _p_values(detector, sample.recursion.features, values, contexts)
        parts.append(HeldOut(np.full(len(columns), position), offset + columns, p_values.pop(""), p_values))
    if not parts:
        empty, none = np.empty(0, dtype=np.int64), np.empty(0)
        return HeldOut(empty, empty, none, {name: none for name in INJECTED})
    return HeldOut(
        np.concatenate([part.segment for part in parts]),
        np.concatenate([part.period for part in parts]),
        np.concatenate([part.observed for part in parts]),
        {name: np.concatenate([part.injected[name] for part in parts]) for name in INJECTED},
    )


def _p_values(detector: Detector, features: FeatureSet, values: Floats, contexts: Floats) -> dict[str, Floats]:
    """p-values by injected change, 1 where they are said already; as observed under the empty name."""
    return {
        name: undiscovered(detector, features, values * factor, contexts)
        for name, factor in {"": 1.0, **INJECTED}.items()
    }


def measure(rows: HeldOut, rules: Rules) -> dict[str, float]:
    """What the rows say of their models; empty where there are none.

    evaluated_segments and evaluated_rows; prediction_rate, the share of rows with a p-value of at most alpha;
    alert_rate, the share of rows that alert; and for each of ±30 % and ±60 % the recall of that change in each row
    alone.
    """
    if not len(rows):
        return {}
    thresholds = rules.thresholds(rows.observed, rows.period)
    return {
        "evaluated_segments": float(len(np.unique(rows.segment))),
        "evaluated_rows": float(len(rows)),
        "prediction_rate": float((rows.observed <= rules.alpha).mean()),
        "alert_rate": float((rows.observed <= thresholds).mean()),
        **{f"recall_{name}": float((values <= thresholds).mean()) for name, values in rows.injected.items()},
    }


@dataclass(frozen=True)
class Gate:
    """How much worse than the champion a candidate may be and still take its place.

    max_alert_increase: in the alert rate, per 1,000 rows. max_recall_loss: in the mean recall of injected changes.
    """

    max_alert_increase: float
    max_recall_loss: float

    def objection(self, candidate: Mapping[str, float], champion: Mapping[str, float]) -> str | None:
        """Why the candidate must not become champion, from what `measure` says of both on the same rows."""
        if candidate.get("evaluated_rows", 0.0) < _MIN_COMPARED or champion.get("evaluated_rows", 0.0) < _MIN_COMPARED:
            return None
        rates = [1000 * metrics["alert_rate"] for metrics in (candidate, champion)]
        recalls = [_mean_recall(metrics) for metrics in (candidate, champion)]
        if rates[0] - rates[1] > self.max_alert_increase:
            return (
                f"it alerts on {rates[0]:.1f} of 1,000 rows where the champion does on {rates[1]:.1f}, and"
                f" max_alert_increase is {self.max_alert_increase:g}"
            )
        if recalls[1] - recalls[0] > self.max_recall_loss:
            return (
                f"it finds {recalls[0]:.2f} of injected changes where the champion finds {recalls[1]:.2f}, and"
                f" max_recall_loss is {self.max_recall_loss:g}"
            )
        return None


def _mean_recall(metrics: Mapping[str, float]) -> float:
    return float(np.mean([metrics[f"recall_{name}"] for name in INJECTED]))
