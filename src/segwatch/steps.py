"""The steps of both pipelines: plain functions over paths, a warehouse, a registry and a metric.

train   extract -> preprocess -> train (in shards -> join) -> evaluate -> register
infer   resolve -> featurize -> predict -> publish
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather

from segwatch.core.bundle import ModelBundle, Rules, write_bundle
from segwatch.core.decision import Decisions, Floors, decide
from segwatch.core.evaluation import Gate, held_out, held_out_of, measure
from segwatch.core.features import CONTEXT, FEATURES
from segwatch.core.injection import Found, inject
from segwatch.core.panel import Floats, Panel, build_panel
from segwatch.core.schema import TableSchema
from segwatch.core.segment import Selection, describe, is_selected, shard
from segwatch.core.training import Progress, ended_after, fit_panel
from segwatch.core.window import Window
from segwatch.data import predictions_schema
from segwatch.errors import DataError, ModelError
from segwatch.registries.base import ModelRegistry, ModelVersion
from segwatch.settings import Metric
from segwatch.warehouses.base import Warehouse

FEATURES_KEPT_FOR = dt.timedelta(days=1)
_PREFIX = "dimension_"
_SHIFT = b"segwatch.shift"
# With fewer rows one event of a few segments would look like drift.
_MIN_SHIFTED, _MIN_RATED, _RATE_MARGIN = 50, 100, 0.05


def _ignore(_: int) -> None:
    return None


def model_name(metric_name: str) -> str:
    """Name of a metric's model in the registry."""
    return f"segwatch-{metric_name}"


def predictions_table(dimensions: tuple[str, ...]) -> TableSchema:
    """Schema of the predictions table: the fixed columns and one for each dimension."""
    return predictions_schema().with_columns(dimensions, after="level")


def rules(metric: Metric) -> Rules:
    """The thresholds that the settings ask of a metric's model."""
    return Rules(metric.alpha, metric.fdr, metric.min_history)


def extract(warehouse: Warehouse, metric: Metric, window: Window, to: Path) -> int:
    """The file `to` holds the Window's observations; returns how many."""
    observations = warehouse.observations(metric, window)
    feather.write_feather(observations, str(to), compression="lz4")
    return int(observations.num_rows)


def preprocess(observations: Path, metric: Metric, window: Window, to: Path, selection: Selection) -> Panel:
    """The directory `to` holds the Panel of the selected segments in the extracted observations.

    Raises DataError if no segment is selected.
    """
    table = feather.read_table(str(observations))
    panel = build_panel(table, metric.dimensions, window, metric.missing)
    if selection:
        # Chosen only now: whether data arrived is seen from all segments.
        panel = _selected(panel, selection)
    panel.save(to)
    return Panel.load(to)


def _selected(panel: Panel, selection: Selection) -> Panel:
    segments = panel.segments
    rows = [i for i, v in enumerate(segments.values) if is_selected(segments.dimensions, v, selection)]
    if not rows:
        raise DataError(f"no segment in {panel.window} has {describe(selection)}: see the values in the table")
    return panel.take(rows)


def train(panel: Path, metric_name: str, metric: Metric, to: Path, progress: Progress = _ignore) -> ModelBundle:
    """The directory `to` holds the bundle of one detector per segment of the Panel.

    Raises DataError if not one segment could be fitted, naming the first one's reason.
    """
    return _fitted(_fit(Panel.load(panel), metric_name, metric, to, progress))


def train_shard(panel: Path, metric_name: str, metric: Metric, to: Path, number: int, shards: int) -> ModelBundle:
    """The directory `to` holds the bundle of the segments of one shard, of so many, for `join`."""
    loaded = Panel.load(panel)
    rows = [i for i, id_ in enumerate(loaded.segments.ids) if shard(id_, shards) == number]
    return _fit(loaded.take(rows), metric_name, metric, to, _ignore)


def join(panel: Path, metric_name: str, metric: Metric, parts: Sequence[Path], to: Path) -> ModelBundle:
    """The directory `to` holds one bundle of the shards' detectors, the same as `train` makes of the whole Panel.

    Raises DataError as `train` does.
    """
    loaded = Panel.load(panel)
    places = {
        id_: (bundle, position)
        for bundle in map(ModelBundle.open, parts)
        for id_, position in bundle.history.segments.position.items()
    }
    fitted = (bundle.fitted(position) for bundle, position in map(places.__getitem__, loaded.segments.ids))
    return _fitted(write_bundle(to, metric_name, loaded, metric.feature_set, rules(metric), fitted))


def _fit(panel: Panel, metric_name: str, metric: Metric, to: Path, progress: Progress) -> ModelBundle:
    fitted = fit_panel(panel, metric.feature_set, metric.min_history, progress)
    return write_bundle(to, metric_name, panel, metric.feature_set, rules(metric), fitted)


def _fitted(bundle: ModelBundle) -> ModelBundle:
    """The bundle. Raises DataError if not one of its segments was fitted."""
    if "ok" not in bundle.status:
        raise DataError(
            f"no segment of {bundle.manifest['metric']} can be trained in {bundle.window}; the first, "
            f"{bundle.history.segments.labels[0]}: {bundle.reason[0]}"
        )
    return bundle


@dataclass(frozen=True)
class Evaluation:
    """How a candidate does. objection: why it must not become champion; None where it may."""

    metrics: Mapping[str, float]
    objection: str | None


def champion(registry: ModelRegistry, metric_name: str, metric: Metric, to: Path) -> ModelBundle | None:
    """The champion's bundle, downloaded to `to`; None where there is none that could score under the settings."""
    try:
        _, bundle = resolve(registry, metric_name, metric, to)
    except (ModelError, DataError):
        return None
    return bundle


def evaluate(
    panel: Path, candidate: ModelBundle, champion: ModelBundle | None, metric: Metric, progress: Progress = _ignore
) -> Evaluation:
    """Alert rate on the last `holdout` periods, recall of changes planted there, and how the champion does on them.

    The candidate's numbers are those of models fitted without these periods. Compared are the periods after the
    champion's training; where there are none, both bundles as they are, so that neither knows more than the other.
    """
    loaded = Panel.load(panel)
    rows = held_out(loaded, metric.feature_set, rules(metric), metric.holdout, progress)
    metrics = measure(rows, rules(metric))
    if champion is None:
        return Evaluation(metrics, None)
    theirs = held_out_of(champion, loaded, metric.holdout)
    if champion.window.end >= loaded.window.end:
        rows = held_out_of(candidate, loaded, metric.holdout)
    gate = Gate(metric.max_alert_increase, metric.max_recall_loss)
    ours, theirs = rows.same_as(theirs), theirs.same_as(rows)
    return Evaluation(metrics, gate.objection(measure(ours, rules(metric)), measure(theirs, champion.rules)))


def detectability(panel: Path, metric: Metric, progress: Progress = _ignore) -> list[Found]:
    """What the models of each segment would find of events injected into the last `holdout` periods.

    Raises DataError if no segment has enough history before them.
    """
    loaded = Panel.load(panel)
    if metric.holdout >= len(loaded.window):
        raise DataError(f"{loaded.window} is no longer than the {metric.holdout} periods of holdout: widen --start")
    found = list(inject(loaded, metric.feature_set, rules(metric), metric.holdout, progress))
    if not found:
        raise DataError(f"no segment has {metric.min_history} periods before the last {metric.holdout}: widen --start")
    return found


def settings_digest(metric: Metric) -> str:
    """sha256 of all settings of a metric: the same settings, the same digest."""
    return hashlib.sha256(json.dumps(metric.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def register(
    registry: ModelRegistry,
    bundle: ModelBundle,
    metrics: Mapping[str, float],
    run_id: str,
    *,
    settings_digest: str = "",
    git_revision: str = "",
    gate: str = "",
) -> ModelVersion:
    """The bundle is a new version of the metric's model; no alias moves.

    settings_digest and git_revision, where they are known, say what the version was made from; gate, what became of
    it at the gate.
    """
    manifest = bundle.manifest
    counts = {f"segments_{name}": float(n) for name, n in manifest["counts"].items()}
    parameters = {
        **{name: str(value) for name, value in manifest["rules"].items()},
        "window_start": manifest["window"]["start"],
        "window_end": manifest["window"]["end"],
        "dimensions": ", ".join(manifest["dimensions"]),
        "grain": manifest["feature_set"]["grain"],
        "feature_set": f"{manifest['feature_set']['name']} v{manifest['feature_set']['version']}",
        "data_digest": manifest["data_digest"],
    }
    origin = {
        "segwatch.settings_digest": settings_digest,
        "segwatch.git_revision": git_revision,
        "segwatch.gate": gate,
    }
    return registry.register(
        model_name(manifest["metric"]),
        bundle.path,
        parameters=parameters,
        metrics={**counts, **metrics},
        tags={"segwatch.run_id": run_id, **{key: value for key, value in origin.items() if value}},
    )


@dataclass(frozen=True)
class Verdict:
    """Whether a version becomes champion, and in words what the gate said."""

    promote: bool
    said: str


def judge(objection: str | None, selection: Selection, force: bool) -> Verdict:
    """A model of a selection is never champion, one that the gate objects to only by force."""
    if selection:
        return Verdict(False, "not promoted: only a selection was trained")
    if objection is None:
        return Verdict(True, "passed")
    return Verdict(True, f"forced, although {objection}") if force else Verdict(False, f"not promoted: {objection}")


def resolve(registry: ModelRegistry, metric_name: str, metric: Metric, to: Path) -> tuple[ModelVersion, ModelBundle]:
    """The exact version that `champion` points to, downloaded to `to` and checked.

    Raises ModelError if there is none or it is damaged, DataError if it was trained on other dimensions.
    """
    version = registry.resolve(model_name(metric_name))
    bundle = ModelBundle.open(registry.download(version, to))
    if bundle.dimensions != metric.dimensions or bundle.feature_set != metric.feature_set:
        raise DataError(
            f"version {version.version} of {version.name} was trained on other settings (dimensions"
            f" {', '.join(bundle.dimensions)}, grain {bundle.feature_set.grain}): run `segwatch train`"
        )
    return version, bundle


@dataclass(frozen=True)
class FeatureRows:
    """The temporary table of features, and how many of its rows can be scored."""

    table: str
    n_rows: int
    n_scorable: int


def featurize(
    warehouse: Warehouse, metric: Metric, bundle: ModelBundle, window: Window, run_id: str, now: dt.datetime
) -> FeatureRows:
    """A temporary table holds the Window's rows: keys, value, status, and where it is ok context and features.

    Raises ModelError if the model is older than `max_model_age` allows.
    """
    _check_age(bundle, metric, window)
    observations = warehouse.observations(metric, window.before(bundle.feature_set.lookback))
    rows = feature_rows(observations, metric, bundle, window)
    name = warehouse.write_features(run_id, rows, now + FEATURES_KEPT_FOR)
    return FeatureRows(name, rows.num_rows, pc.sum(pc.equal(rows["status"], "ok")).as_py() or 0)


def feature_rows(observations: pa.Table, metric: Metric, bundle: ModelBundle, window: Window) -> pa.Table:
    """The Window's rows from observations of it and the lookback before it, as `featurize` writes them."""
    wide = window.before(bundle.feature_set.lookback)
    panel = build_panel(observations, metric.dimensions, wide, metric.missing, bundle.history)
    return pa.concat_tables(_feature_rows(panel, bundle, window))


def _check_age(bundle: ModelBundle, metric: Metric, window: Window) -> None:
    days = int((window.start - bundle.window.end) / np.timedelta64(24, "h"))
    if metric.max_model_age and days > metric.max_model_age:
        raise ModelError(
            f"the model was trained to {bundle.window.end}, {days} days before {window.start}, and max_model_age is"
            f" {metric.max_model_age}: run `segwatch train`"
        )


def _feature_rows(panel: Panel, bundle: ModelBundle, window: Window) -> Iterator[pa.Table]:
    """The rows of each chunk of segments."""
    n_known = len(bundle.history.segments)
    width = len(window)
    features = bundle.feature_set
    statuses = np.array([*bundle.status, *["new_segment"] * (len(panel.segments) - n_known)], dtype=object)
    ended = panel.ended(ended_after(features))[:, -width:]
    for part in panel.chunks(500_000):
        values = np.asarray(panel.values[part])
        ids = np.arange(len(panel.segments))[part]
        known = ids < n_known
        scale = np.where(known, bundle.scale[np.minimum(ids, n_known - 1)], 1.0)
        context = features.context(values, scale)[:, -width:]
        values = values[:, -width:]
        complete = features.is_complete(context)
        status = np.repeat(statuses[part][:, None], width, axis=1)
        fit = status == "ok"
        status[fit & (np.isnan(values) | ~complete)] = "no_data"
        status[fit & ended[part]] = "ended"
        born = window.times[None, :] >= panel.history.first_seen[part][:, None]
        i, j = np.nonzero(born)
        yield _feature_table(
            panel, bundle, ids[i], window.times[j], values[i, j], status[i, j], context[i, j], scale[i]
        )


def _feature_table(
    panel: Panel,
    bundle: ModelBundle,
    positions: np.ndarray[tuple[int], np.dtype[np.int64]],
    times: np.ndarray[tuple[int], np.dtype[np.datetime64]],
    values: Floats,
    status: np.ndarray[tuple[int], np.dtype[np.object_]],
    context: Floats,
    scale: Floats,
) -> pa.Table:
    ok = status == "ok"
    X = bundle.feature_set.features(values, context, scale)
    segments = panel.segments
    reasons = [
        None if good else _reason(panel, bundle, int(i), s, v)
        for good, i, s, v in zip(ok, positions, status, values, strict=True)
    ]
    columns: dict[str, pa.Array] = {
        "segment_id": pa.array([segments.ids[i] for i in positions], pa.string()),
        **{
            _PREFIX + name: pa.array([segments.values[i][d] for i in positions], pa.string())
            for d, name in enumerate(segments.dimensions)
        },
        "ts": pa.array(times.astype("datetime64[us]")),
        "value": pa.array(values, from_pandas=True),
        "status": pa.array(status, pa.string()),
        "reason": pa.array(reasons, pa.string()),
        **{name: pa.array(context[:, k], mask=~ok) for k, name in enumerate(CONTEXT)},
        **{name: pa.array(X[:, k], mask=~ok) for k, name in enumerate(FEATURES)},
    }
    return pa.table(columns)


def _reason(panel: Panel, bundle: ModelBundle, position: int, status: str, value: float) -> str:
    """Why a row has no score."""
    if status == "new_segment":
        return f"first seen {panel.history.first_seen[position]}, after the model was trained"
    if status == "ended":
        return f"no row since {panel.history.last_seen[position]}"
    if status == "no_data":
        return "the data of this period did not arrive" if np.isnan(value) else "too many gaps before it"
    return bundle.reason[position] or status


def predict(
    warehouse: Warehouse,
    features: FeatureRows,
    metric_name: str,
    metric: Metric,
    bundle: ModelBundle,
    stamp: Mapping[str, object],
    progress: Progress = _ignore,
) -> pa.Table:
    """The predictions of every row of the feature table, scored or not, in the predictions table's columns.

    stamp: model_version, run_id and scored_at of the run. `shift_of` reads back how far the features have moved.
    """
    return predict_rows(warehouse.read_features(features.table), metric_name, metric, bundle, stamp, progress)


def predict_rows(
    rows: pa.Table,
    metric_name: str,
    metric: Metric,
    bundle: ModelBundle,
    stamp: Mapping[str, object],
    progress: Progress = _ignore,
) -> pa.Table:
    """The predictions of feature rows; see `predict`."""
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    contexts, X = (np.column_stack([ok[name].to_numpy() for name in names]) for names in (CONTEXT, FEATURES))
    ids = ok["segment_id"].to_pylist()
    periods = ok["ts"].to_numpy().astype("datetime64[us]").astype(np.int64)
    values = ok["value"].to_numpy()
    floors = Floors(metric.min_impact, metric.min_impact_share)
    decisions = decide(bundle, ids, periods, values, contexts, X, progress, floors, rules(metric))
    scored = _predictions(ok, metric_name, metric, stamp, decisions)
    rest = _predictions(rows.filter(pc.not_equal(rows["status"], "ok")), metric_name, metric, stamp, None)
    return pa.concat_tables([scored, rest]).replace_schema_metadata({_SHIFT: json.dumps(bundle.shift(ids, X))})


def shift_of(predictions: pa.Table) -> dict[str, float]:
    """What `ModelBundle.shift` said of the rows that were predicted."""
    shift: dict[str, float] = json.loads((predictions.schema.metadata or {}).get(_SHIFT, b"{}"))
    return shift


def warnings(predictions: pa.Table, training: Mapping[str, float]) -> tuple[str, ...]:
    """Sentences on what makes the run unlike the training whose metrics are given; none where there are few rows."""
    scored = pc.sum(pc.equal(predictions["status"], "ok")).as_py() or 0
    found = []
    if scored >= _MIN_SHIFTED:
        found += [
            f"half of the rows lie {shift:+.1f} spreads from training's in the feature {name}: train anew, or look at"
            " the data"
            for name, shift in shift_of(predictions).items()
            if abs(shift) > 1
        ]
    if scored >= _MIN_RATED and "alert_rate" in training:
        rate, usual = (pc.sum(predictions["is_anomaly"]).as_py() or 0) / scored, training["alert_rate"]
        if rate > 2 * usual + _RATE_MARGIN:
            found.append(
                f"{1000 * rate:.0f} of 1,000 rows alert where {1000 * usual:.0f} did at training: look at the data"
            )
    return tuple(found)


def _predictions(
    rows: pa.Table, metric_name: str, metric: Metric, stamp: Mapping[str, object], decisions: Decisions | None
) -> pa.Table:
    n = rows.num_rows
    schema = predictions_table(metric.dimensions).arrow()
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "metric": pa.repeat(metric_name, n),
        "level": pa.repeat(metric.level, n),
        **{name: rows[_PREFIX + name] for name in metric.dimensions},
        **{name: rows[name] for name in ("segment_id", "value", "status", "reason")},
        "ts": rows["ts"].cast(pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC")),
        "is_anomaly": pa.repeat(False, n),
        **{name: pa.repeat(pa.scalar(value, schema.field(name).type), n) for name, value in stamp.items()},
    }
    if decisions is not None:
        columns |= _decision_columns(rows, decisions)
    arrays = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema]
    return pa.table(arrays, schema=schema)


def _decision_columns(rows: pa.Table, decisions: Decisions) -> dict[str, pa.Array]:
    up = rows["value"].to_numpy() > decisions.expected
    directions = pa.array(np.where(up, "up", "down"), pa.string(), mask=~decisions.is_anomaly)
    return {
        "expected": pa.array(decisions.expected),
        "lower": pa.array(decisions.lower, from_pandas=True),
        "upper": pa.array(decisions.upper, from_pandas=True),
        "impact": pa.array(decisions.impact),
        "impact_share": pa.array(decisions.impact_share, from_pandas=True),
        "score": pa.array(decisions.score),
        "p_value": pa.array(decisions.p_value),
        "prediction": pa.array(decisions.prediction),
        "is_anomaly": pa.array(decisions.is_anomaly),
        "direction": directions,
        "reason": pa.array(["pattern"] * rows.num_rows, pa.string(), mask=~decisions.is_pattern),
    }


def select(predictions: pa.Table, selection: Selection, window: Window) -> pa.Table:
    """The predictions of the selected segments. Raises DataError if none is selected."""
    for name, wanted in selection.items():
        predictions = predictions.filter(pc.is_in(predictions[name], pa.array(sorted(wanted), pa.string())))
    if selection and not predictions.num_rows:
        raise DataError(f"no segment in {window} is selected by --select {describe(selection)}: see the table's values")
    return predictions


def publish(
    warehouse: Warehouse,
    table: str,
    metric_name: str,
    window: Window,
    predictions: pa.Table,
    selection: Selection,
) -> int:
    """The predictions stand in place of those of the same metric, Window and selection; returns how many.

    Raises DataError if the table lacks a column, as one that an earlier segwatch made does.
    """
    held = warehouse.table_schema(table)
    missing = [] if held is None else [name for name in predictions.column_names if name not in held.names]
    if missing:
        raise DataError(f"table {table!r} has no column {missing[0]!r}: run `segwatch create`, which adds it")
    return warehouse.replace_predictions(table, metric_name, window, predictions, selection)
