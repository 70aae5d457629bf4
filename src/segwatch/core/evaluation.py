"""How models do on the last periods before now: their alert rate, and planted changes that they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from segwatch.core.bundle import ModelBundle, Rules
from segwatch.core.calibration import alert_thresholds
from segwatch.core.detector import Detector
from segwatch.core.features import FeatureSet
from segwatch.core.panel import Bools, Floats, Ints, Panel
from segwatch.core.training import Progress, ended_after, fit_segment

SAMPLE = 200
INJECTED = {"drop_30": 0.7, "drop_60": 0.4, "spike_30": 1.3, "spike_60": 1.6}
# Fewer rows than this tell two models' alert rates apart by chance alone.
_MIN_COMPARED = 50

_Model = tuple[Detector, float]
"""A segment's detector and its scale."""


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


def held_out(
    panel: Panel, feature_set: FeatureSet, rules: Rules, holdout: int, progress: Progress = lambda _: None
) -> HeldOut:
    """The last `holdout` periods under models fitted without them, of at most 200 segments chosen by their ids."""

    def fitted(position: int, values: Floats, alive: Bools) -> _Model | None:  # noqa: ARG001
        one = fit_segment(values[:-holdout], alive[:-holdout], feature_set, rules.min_history)
        return None if one.detector is None else (one.detector, one.scale)

    return _rows(panel, feature_set, fitted, max(0, len(panel.window) - holdout), progress)


def held_out_of(bundle: ModelBundle, panel: Panel, holdout: int) -> HeldOut:
    """The same periods and segments under a bundle's models; where it can be, only periods after its training."""
    n = len(panel.window)
    unseen = int((bundle.window.end - panel.window.start).astype(np.int64))
    first = max(n - holdout, unseen) if unseen < n else n - holdout
    places = bundle.history.segments.position

    def of_bundle(position: int, values: Floats, alive: Bools) -> _Model | None:  # noqa: ARG001
        place = places.get(panel.segments.ids[position])
        if place is None or bundle.status[place] != "ok":
            return None
        return bundle.detector(place), float(bundle.scale[place])

    return _rows(panel, bundle.feature_set, of_bundle, max(0, first), lambda _: None)


def _rows(
    panel: Panel,
    feature_set: FeatureSet,
    model: Callable[[int, Floats, Bools], _Model | None],
    first: int,
    progress: Progress,
) -> HeldOut:
    """The rows of the sampled segments from the Panel's column `first` on."""
    parts = list(_segments(panel, feature_set, model, first, progress)) if first else []
    if not parts:
        empty, none = np.empty(0, dtype=np.int64), np.empty(0)
        return HeldOut(empty, empty, none, {name: none for name in INJECTED})
    return HeldOut(
        np.concatenate([part.segment for part in parts]),
        np.concatenate([part.period for part in parts]),
        np.concatenate([part.observed for part in parts]),
        {name: np.concatenate([part.injected[name] for part in parts]) for name in INJECTED},
    )


def _segments(
    panel: Panel,
    feature_set: FeatureSet,
    model: Callable[[int, Floats, Bools], _Model | None],
    first: int,
    progress: Progress,
) -> Iterator[HeldOut]:
    alive = ~panel.ended(ended_after(feature_set))
    for position in np.argsort(panel.segments.ids)[:SAMPLE].tolist():
        values = np.asarray(panel.values[position])
        found = model(position, values, alive[position])
        progress(1)
        if found is None:
            continue
        detector, scale = found
        context = feature_set.context(values[None, :], np.array([scale]))[0]
        wanted = alive[position] & feature_set.is_complete(context) & ~np.isnan(values)
        wanted[:first] = False
        rows = np.flatnonzero(wanted)
        if rows.size:
            p_values = _p_values(detector, feature_set, values[rows], context[rows], np.full(len(rows), scale))
            yield HeldOut(np.full(len(rows), position), rows, p_values.pop(""), p_values)


def _p_values(
    detector: Detector, feature_set: FeatureSet, values: Floats, context: Floats, scale: Floats
) -> dict[str, Floats]:
    """p-values by injected change; as observed under the empty name."""
    return {
        name: detector.p_value(feature_set.features(values * factor, context, scale))
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
    thresholds = alert_thresholds(rows.observed, rows.period, rules.fdr, rules.alpha)
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
