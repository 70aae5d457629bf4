"""Detection quality on the generator at three seeds, beside a plain same-weekday robust z-score.

    python benchmarks/quality.py [--segments 200] [--seeds 1 2 3]

Both score the last 60 days. Average precision is over segment-days; event recall is the share of planted events with
at least one of their segment-days above the score that 2, 5 or 10 unlabelled segment-days per 1,000 exceed.
"""

import argparse

import numpy as np
import pyarrow as pa
from sklearn.metrics import average_precision_score

from segwatch.core.features import FeatureSet
from segwatch.core.panel import Panel, build_panel
from segwatch.core.segment import segment_id
from segwatch.core.training import fit_segment
from segwatch.core.window import Window, length
from segwatch.data.generate import GeneratorSettings, generate

END = np.datetime64("2026-11-24")
DIMENSIONS = ("country_code", "platform", "channel")
SCORED, PER_1000 = 60, (2, 5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    print(
        "| seed | method | AP | "
        + " | ".join(f"recall at {k}/1000" for k in PER_1000)
        + " |\n|---|---|---|---|---|---|"
    )
    for seed in options.seeds:
        panel, events = data(options.segments, seed)
        scores = {"segwatch": segwatch_scores(panel), "weekday z": robust_z(panel)}
        common = np.all([np.isfinite(s) for s in scores.values()], axis=0)
        for method, score in scores.items():
            print(f"| {seed} | {method} | " + " | ".join(f"{x:.3f}" for x in quality(score, events, common)) + " |")


def data(segments: int, seed: int, days: int = 1000) -> tuple[Panel, np.ndarray]:
    """The Panel, and for each cell of the last days the number of its event, or -1."""
    batches = list(generate(GeneratorSettings(end=END, segments=segments, seed=seed, days=days)))
    rows = pa.Table.from_batches([batch.observations for batch in batches])
    days = rows["created_at"].cast(pa.timestamp("us"))
    window = Window(days.to_numpy().min().astype("datetime64[D]"), END)
    table = pa.table(
        {"ts": days, **{d: rows[d] for d in DIMENSIONS}, "value": rows["new_users"].cast(pa.float64()),
         "n_rows": pa.array(np.ones(rows.num_rows, int))}
    )  # fmt: skip
    panel = build_panel(table, DIMENSIONS, window, "zero")
    events = np.full((len(panel.segments), SCORED), -1)
    numbers: dict[str, int] = {}
    for row in pa.Table.from_batches([batch.labels for batch in batches]).to_pylist():
        column = int((np.datetime64(row["created_at"]) - (END - length(SCORED, "day"))).astype(int))
        if column >= 0:
            place = panel.segments.position[segment_id(DIMENSIONS, [row[d] for d in DIMENSIONS])]
            events[place, column] = numbers.setdefault(row["event_id"], len(numbers))
    return panel, events


def segwatch_scores(panel: Panel) -> np.ndarray:
    """-ln p of each segment's detector, trained on the days before."""
    features = FeatureSet("day", True)
    scores = np.full((len(panel.segments), SCORED), np.nan)
    for i, values in enumerate(panel.values):
        fitted = fit_segment(values[:-SCORED], np.ones(len(values) - SCORED, bool), features, 90)
        if fitted.detector is None:
            continue
        scale = np.array([1.0])
        context = features.context(values[None, :], scale)[0, -SCORED:]
        rows = features.is_complete(context) & ~np.isnan(values[-SCORED:])
        X = features.features(values[-SCORED:][rows], context[rows], scale)
        scores[i, rows] = -np.log(fitted.detector.p_value(X))
    return scores


def robust_z(panel: Panel) -> np.ndarray:
    """|log1p(x) - median of the last 8 same weekdays| in robust standard deviations of the last 56 such residuals."""
    x = np.log1p(panel.values)
    residual = np.full_like(x, np.nan)
    scores = np.full((len(x), SCORED), np.nan)
    with np.errstate(all="ignore"):
        for t in range(56, x.shape[1]):
            residual[:, t] = x[:, t] - np.nanmedian(x[:, t - 56 : t : 7], axis=1)
        for k in range(SCORED):
            t = x.shape[1] - SCORED + k
            spread = 1.4826 * np.nanmedian(np.abs(residual[:, t - 56 : t]), axis=1)
            scores[:, k] = np.abs(residual[:, t]) / np.maximum(spread, 0.02)
    return scores


def quality(scores: np.ndarray, events: np.ndarray, common: np.ndarray) -> list[float]:
    """Average precision, then the event recall at each number of false alerts."""
    ordinary = scores[common & (events < 0)]
    n_events = len(np.unique(events[common & (events >= 0)]))
    recalls = []
    for k in PER_1000:
        found = common & (events >= 0) & (scores > np.quantile(ordinary, 1 - k / 1000))
        recalls.append(len(np.unique(events[found])) / n_events)
    return [average_precision_score(events[common] >= 0, scores[common]), *recalls]


if __name__ == "__main__":
    main()
