"""How a model would have done on the last periods before it: its alert rate, and planted changes it finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segwatch.core.bundle import Rules
from segwatch.core.calibration import alert_thresholds
from segwatch.core.features import FeatureSet
from segwatch.core.panel import Bools, Floats, Ints, Panel
from segwatch.core.training import Progress, ended_after, fit_segment

SAMPLE = 200
INJECTED = {"drop_30": 0.7, "drop_60": 0.4, "spike_30": 1.3, "spike_60": 1.6}


@dataclass(frozen=True)
class _HeldOut:
    """Rows of the held-out periods: p-values as observed and with each injected change, and the period of each."""

    observed: Floats
    injected: dict[str, Floats]
    period: Ints


def evaluate(
    panel: Panel, feature_set: FeatureSet, rules: Rules, holdout: int, progress: Progress = lambda _: None
) -> dict[str, float]:
    """Metrics of models fitted without the last `holdout` periods, on those periods.

    evaluated_segments and evaluated_rows; prediction_rate, the share of rows with a p-value of at most alpha;
    alert_rate, the share of rows that alert; and for each of ±30 % and ±60 % the recall of that change in each row
    alone. At most 200 segments, chosen by their ids. Empty where no segment has enough history.
    """
    if holdout >= len(panel.window):
        return {}
    sample = np.argsort(panel.segments.ids)[:SAMPLE]
    alive = panel.ended(ended_after(feature_set))
    parts = []
    for i in sample:
        part = _held_out(np.asarray(panel.values[i]), ~alive[i], feature_set, rules, holdout)
        progress(1)
        if part is not None:
            parts.append(part)
    if not parts:
        return {}
    observed = np.concatenate([part.observed for part in parts])
    thresholds = alert_thresholds(observed, np.concatenate([part.period for part in parts]), rules.fdr, rules.alpha)
    metrics = {
        "evaluated_segments": float(len(parts)),
        "evaluated_rows": float(len(observed)),
        "prediction_rate": float((observed <= rules.alpha).mean()),
        "alert_rate": float((observed <= thresholds).mean()),
    }
    for name in INJECTED:
        p_values = np.concatenate([part.injected[name] for part in parts])
        metrics[f"recall_{name}"] = float((p_values <= thresholds).mean())
    return metrics


def _held_out(values: Floats, alive: Bools, feature_set: FeatureSet, rules: Rules, holdout: int) -> _HeldOut | None:
    """The held-out rows of one segment (n_times,), or None where it cannot be fitted or has none."""
    fitted = fit_segment(values[:-holdout], alive[:-holdout], feature_set, rules.min_history)
    if fitted.detector is None:
        return None
    context = feature_set.context(values[None, :], np.array([fitted.scale]))[0]
    wanted = alive & feature_set.is_complete(context) & ~np.isnan(values)
    rows = np.flatnonzero(wanted)
    rows = rows[rows >= len(values) - holdout]
    if not rows.size:
        return None
    scale = np.full(len(rows), fitted.scale)

    def p_value(factor: float) -> Floats:
        return fitted.detector.p_value(feature_set.features(values[rows] * factor, context[rows], scale))  # type: ignore[union-attr]

    return _HeldOut(p_value(1.0), {name: p_value(factor) for name, factor in INJECTED.items()}, rows)
