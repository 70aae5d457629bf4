"""The steps of both pipelines: plain functions over paths, a warehouse, a registry and a metric.

train   extract -> preprocess -> train (in shards -> join) -> evaluate -> register
infer   resolve -> featurize -> predict -> publish
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.baseline import Baseline
from segwatch.core.bundle import ModelBundle, Rules, write_bundle
from segwatch.core.calendar import Days, Occasion, holidays_of, lay_out
from segwatch.core.decision import Decisions, Floors, decide
from segwatch.core.evaluation import Gate, budget_threshold, held_out, held_out_of, measure
from segwatch.core.explanation import parts_of, to_json
from segwatch.core.features import CONTEXT, FEATURES, FeatureSet
from segwatch.core.groups import Groups
from segwatch.core.injection import Found, as_metrics, inject
from segwatch.core.labels import EXPECTED, Bars, Label, Learned, bars, is_expected, leave_out, teach
from segwatch.core.noise import Kind
from segwatch.core.observations import Observations, write_observations
from segwatch.core.panel import Bools, Floats, History, Ints, Panel, Segments, build_panel
from segwatch.core.replay import Pools, Series, Whole, go_through, gone_on
from segwatch.core.rollup import Rollups, with_rollups
from segwatch.core.schema import TableSchema
from segwatch.core.segment import Selection, describe, is_selected, shard
from segwatch.core.training import Prepared, Progress, ended_after, fit_prepared
from segwatch.core.window import Times, Window, length, unit
from segwatch.data import predictions_schema
from segwatch.errors import DataError, ModelError
from segwatch.gaps import LEFT_OUT
from segwatch.registries.base import CHAMPION, ModelRegistry, ModelVersion
from segwatch.settings import Holidays, Metric
from segwatch.warehouses.base import Warehouse

# As many segments say how much their size class would see.
INJECTED_INTO = 100
FEATURES_KEPT_FOR = dt.timedelta(days=1)
_PREFIX = "dimension_"
Texts = np.ndarray[tuple[int, int], np.dtype[np.object_]]
_SHIFT = b"segwatch.shift"
_KINDS: Mapping[Kind, str] = {"count": "counts", "ratio": "ratios", "value": "values of any sign"}
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
    return Rules(metric.alpha, metric.fdr, metric.min_history, metric.alert_budget)


def extract(warehouse: Warehouse, metric: Metric, window: Window, to: Path) -> int:
    """The directory `to` holds the Window's observations; returns how many."""
    with closing(warehouse.observation_parts(metric, window)) as parts:
        return write_observations(parts, metric.dimensions, to)


@dataclass(frozen=True)
class Preprocessed:
    """The segments of a prepared Panel, and what labels did to it."""

    segments: Segments
    learned: Learned


def preprocess(
    extracted: Path,
    metric: Metric,
    window: Window,
    to: Path,
    selection: Selection,
    calendar: pa.Table | None = None,
    labels: Sequence[Label] = (),
    room: Path | None = None,
) -> Preprocessed:
    """The directory `to` holds the Panel of the selected segments, prepared for training; see `Prepared`.

    extracted: what `extract` wrote. calendar: the user's own days, as `Warehouse.calendar` gives them. labels: what
    stands of what people said. room: a directory for matrices that are larger than memory, of the same file system as
    `to` at best.
    Raises DataError if no segment is selected.
    """
    with TemporaryDirectory(dir=room) as made:
        panel = build_panel(Observations.open(extracted), metric.dimensions, window, metric.missing, room=Path(made))
        panel, learned = teach(panel, labels, metric.min_history)
        whole = whole_panel(panel, metric, Path(made))
        days = days_of(metric, whole.segments, window, calendar)
        if days:
            days.mask(whole)
        prepared = Prepared.of(whole, metric.recursion, days, Path(made))
        if selection:
            # Chosen only now: whether data arrived, and what groups share, is seen from all segments.
            prepared = prepared.take(_selected(prepared.panel, selection))
        prepared.save(to)
    return Preprocessed(prepared.panel.segments, learned)


def whole_panel(panel: Panel, metric: Metric, room: Path | None = None) -> Panel:
    """The Panel with the roll-ups that the metric asks for; room: see `matrix.new`."""
    return _with_rollups(panel, metric.max_rollup_order, metric.feature_set, room=room)


def days_of(metric: Metric, segments: Segments, window: Window, calendar: pa.Table | None) -> Days | None:
    """What is known of the Window's periods beforehand: public holidays, and over them the user's own days."""
    occasions: list[Occasion] = []
    if metric.holidays is not None:
        occasions, _ = holidays_of(metric.holidays.dimension, _countries(metric.holidays, segments), window)
    rows = [] if calendar is None else calendar.to_pylist()
    return lay_out([*occasions, *(_occasion(row, metric.dimensions) for row in rows)], segments, window)


def _occasion(row: Mapping[str, Any], dimensions: Sequence[str]) -> Occasion:
    first, last = row["first_day"].date(), row["last_day"].date()
    where = {name: row[name] for name in dimensions if row[name] is not None}
    return Occasion(first, max(first, last), row["event"], "calendar", where, row["effect"] == "mask")


def _countries(holidays: Holidays, segments: Segments) -> Mapping[str, str]:
    """Country code of each value of the dimension."""
    if holidays.countries:
        return holidays.countries
    at = segments.dimensions.index(holidays.dimension)
    return {value: value for values in segments.values if (value := values[at]) is not None}


def unknown_countries(metric: Metric, segments: Segments, window: Window) -> str | None:
    """A sentence on the values whose public holidays are not known; None where all are."""
    if metric.holidays is None:
        return None
    _, unknown = holidays_of(metric.holidays.dimension, _countries(metric.holidays, segments), window)
    if not unknown:
        return None
    return (
        f"no public holidays are known for {metric.holidays.dimension} {', '.join(unknown[:10])}: these values go on"
        " without; name their countries in holidays.countries"
    )


def _selected(panel: Panel, selection: Selection) -> list[int]:
    segments = panel.segments
    rows = [i for i, v in enumerate(segments.values) if is_selected(segments.dimensions, v, selection)]
    if not rows:
        raise DataError(f"no segment in {panel.window} has {describe(selection)}: see the values in the table")
    return rows


def train(panel: Path, metric_name: str, metric: Metric, to: Path, progress: Progress = _ignore) -> ModelBundle:
    """The directory `to` holds the bundle of one detector per segment of the Panel.

    Raises DataError if not one segment could be fitted, naming the first one's reason.
    """
    prepared = Prepared.load(panel, metric.recursion)
    return _within_budget(_fitted(_fit(prepared, metric_name, metric, to, progress)), prepared, metric)


def train_shard(panel: Path, metric_name: str, metric: Metric, to: Path, number: int, shards: int) -> ModelBundle:
    """The directory `to` holds the bundle of the segments of one shard, of so many, for `join`."""
    loaded = Prepared.load(panel, metric.recursion)
    rows = [i for i, id_ in enumerate(loaded.panel.segments.ids) if shard(id_, shards) == number]
    return _fit(loaded.take(rows), metric_name, metric, to, _ignore)


def join(panel: Path, metric_name: str, metric: Metric, parts: Sequence[Path], to: Path) -> ModelBundle:
    """The directory `to` holds one bundle of the shards' detectors, the same as `train` makes of the whole Panel.

    Raises DataError as `train` does.
    """
    loaded = Prepared.load(panel, metric.recursion)
    places = {
        id_: (bundle, position)
        for bundle in map(ModelBundle.open, parts)
        for id_, position in bundle.history.segments.position.items()
    }
    fitted = (bundle.fitted(position) for bundle, position in map(places.__getitem__, loaded.panel.segments.ids))
    bundle = _fitted(write_bundle(to, metric_name, loaded, rules(metric), fitted, metric.max_rollup_order))
    return _within_budget(bundle, loaded, metric)


def _fit(prepared: Prepared, metric_name: str, metric: Metric, to: Path, progress: Progress) -> ModelBundle:
    fitted = fit_prepared(prepared, metric.min_history, progress)
    return write_bundle(to, metric_name, prepared, rules(metric), fitted, metric.max_rollup_order)


def _within_budget(bundle: ModelBundle, prepared: Prepared, metric: Metric) -> ModelBundle:
    """The bundle; where alerts have a budget, with the threshold that keeps it."""
    if not metric.alert_budget:
        return bundle
    return bundle.with_threshold(budget_threshold(bundle, prepared, metric.holdout, metric.alert_budget))


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
    loaded = Prepared.load(panel, metric.recursion)
    asked = candidate.rules_for(rules(metric))
    rows = held_out(loaded, asked, metric.holdout, progress)
    sample = loaded.take(np.argsort(loaded.panel.segments.ids)[:INJECTED_INTO])
    found = list(inject(sample, asked, metric.holdout)) if metric.holdout < len(loaded.panel.window) else []
    metrics = {**measure(rows, asked), **as_metrics(found)}
    if champion is None:
        return Evaluation(metrics, None)
    theirs = held_out_of(champion, loaded, metric.holdout)
    if champion.window.end >= loaded.panel.window.end:
        rows = held_out_of(candidate, loaded, metric.holdout)
    gate = Gate(metric.max_alert_increase, metric.max_recall_loss)
    ours, theirs = rows.same_as(theirs), theirs.same_as(rows)
    return Evaluation(metrics, gate.objection(measure(ours, asked), measure(theirs, champion.rules)))


def detectability(panel: Path, metric: Metric, progress: Progress = _ignore) -> list[Found]:
    """What the models of each segment would find of events injected into the last `holdout` periods.

    Raises DataError if no segment has enough history before them.
    """
    loaded = Prepared.load(panel, metric.recursion)
    if metric.holdout >= len(loaded.panel.window):
        raise DataError(
            f"{loaded.panel.window} is no longer than the {metric.holdout} periods of holdout: widen --start"
        )
    found = list(inject(loaded, rules(metric), metric.holdout, progress))
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
    counts = {name: float(n) for name, n in counts_of(bundle).items()}
    parameters = {
        **{name: str(value) for name, value in manifest["rules"].items() if value is not None},
        "window_start": manifest["window"]["start"],
        "window_end": manifest["window"]["end"],
        "dimensions": ", ".join(manifest["dimensions"]),
        "grain": manifest["feature_set"]["grain"],
        "kind": manifest["feature_set"]["kind"],
        "adapt_after": str(manifest["adapt_after"]),
        "max_rollup_order": str(manifest["max_rollup_order"]),
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


def counts_of(bundle: ModelBundle) -> dict[str, int]:
    """Numbers of segments and rollups, and under `segments_STATUS` of both together by what became of them."""
    n_rollups = int(bundle.history.segments.is_rollup.sum())
    counts = {"segments": len(bundle.status) - n_rollups, "rollups": n_rollups}
    for status in bundle.status:
        counts[f"segments_{status}"] = counts.get(f"segments_{status}", 0) + 1
    return counts


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


def resolve(
    registry: ModelRegistry, metric_name: str, metric: Metric, to: Path, reference: str = CHAMPION
) -> tuple[ModelVersion, ModelBundle]:
    """The exact version that `champion`, or another reference, points to, downloaded to `to` and checked.

    Raises ModelError if there is none or it is damaged, DataError if it was trained on other dimensions, on another
    grain or on values of another kind.
    """
    version = registry.resolve(model_name(metric_name), reference)
    bundle = ModelBundle.open(registry.download(version, to))
    if bundle.dimensions != metric.dimensions or bundle.feature_set != metric.feature_set:
        theirs, ours = (
            f"dimensions {', '.join(dimensions)}, grain {features.grain}, {_KINDS[features.kind]}"
            for dimensions, features in (
                (bundle.dimensions, bundle.feature_set),
                (metric.dimensions, metric.feature_set),
            )
        )
        raise DataError(
            f"version {version.version} of {version.name} was trained on other settings ({theirs}) than these ({ours}):"
            " run `segwatch train`"
        )
    return version, bundle


@dataclass(frozen=True)
class FeatureRows:
    """The temporary table of features, and how many of its rows can be scored."""

    table: str
    n_rows: int
    n_scorable: int


def featurize(
    warehouse: Warehouse,
    metric: Metric,
    bundle: ModelBundle,
    window: Window,
    run_id: str,
    now: dt.datetime,
    labels: Sequence[Label] = (),
    room: Path | None = None,
) -> FeatureRows:
    """A temporary table holds the Window's rows: keys, value, status, and where it is ok context and features.

    labels, room: see `preprocess`.
    Raises ModelError if the model is older than `max_model_age` allows.
    """
    _check_age(bundle, metric, window)
    with TemporaryDirectory(dir=room) as made:
        extract(warehouse, metric, reading_window(bundle, window), Path(made) / "observations")
        read = Observations.open(Path(made) / "observations")
        rows = feature_rows(read, metric, bundle, window, warehouse.calendar(metric), labels, Path(made))
    name = warehouse.write_features(run_id, rows, now + FEATURES_KEPT_FOR)
    return FeatureRows(name, rows.num_rows, rows.num_rows - rows[FEATURES[0]].null_count)


def reading_window(bundle: ModelBundle, window: Window) -> Window:
    """What has to be read to score a Window: all since the end of training, whose states the bundle has.

    A Window that begins before that end is gone through from the beginning of training on.
    """
    start = bundle.window.end if window.start >= bundle.window.end else min(bundle.window.start, window.start)
    return Window(start, window.end, window.grain)


def feature_rows(
    observations: pa.Table | Observations,
    metric: Metric,
    bundle: ModelBundle,
    window: Window,
    calendar: pa.Table | None,
    labels: Sequence[Label] = (),
    room: Path | None = None,
) -> pa.Table:
    """The Window's rows from observations of its `reading_window`, as `featurize` writes them; calendar, labels: see
    `preprocess`, room: `matrix.new`."""
    panel, whole, state, pools = _before(observations, metric, bundle, window, calendar, labels, room)
    _, contexts = go_through(whole, bundle.recursion, state, pools, len(window), room)
    panel, days = panel.last(len(window)), whole.days
    status = _status(panel, bundle, bundle.feature_set.is_complete(contexts))
    masked = days.masked(slice(-len(window), None)) if days else np.zeros(status.shape, dtype=bool)
    left_out = np.where(is_expected(panel.segments, window, labels), 2, masked).astype(np.int8)
    born = window.times[None, :] >= panel.history.first_seen[:, None]
    tables = []
    for part in panel.chunks(500_000):
        i, j = np.nonzero(born[part])
        at = i + part.start
        tables.append(_with_left_out(_feature_table(panel, bundle, at, j, status, contexts), left_out[at, j]))
    return pa.concat_tables(tables)


def _before(
    observations: pa.Table | Observations,
    metric: Metric,
    bundle: ModelBundle,
    window: Window,
    calendar: pa.Table | None,
    labels: Sequence[Label],
    room: Path | None,
) -> tuple[Panel, Whole, Baseline, Pools]:
    """What is to be gone through to score a Window: its `reading_window`, and the states before that."""
    wide = reading_window(bundle, window)
    features = bundle.feature_set
    leaves = build_panel(observations, metric.dimensions, wide, metric.missing, bundle.history.leaves, room)
    leave_out(leaves, [one for one in labels if one.said == "expected"])
    panel = _with_rollups(leaves, bundle.manifest["max_rollup_order"], features, bundle.history, room)
    groups = Groups.of(panel.segments)
    goes_on = wide.start == bundle.window.end
    state = _states(panel, bundle, goes_on)
    pools = bundle.pools(groups) if goes_on else Pools.fresh(groups)
    days = days_of(metric, panel.segments, wide, calendar)
    if days:
        days.mask(panel)
    series = Series.of(panel, state.scale, bundle.recursion.timezone)
    return panel, Whole(series, groups, Rollups.of(panel), days), state, pools


@dataclass(frozen=True)
class Past:
    """The periods of one segment that can be scored, (n_periods,) each. X: (n_periods, n_features)."""

    times: Times
    values: Floats
    expected: Floats
    X: Floats


def past_of(
    warehouse: Warehouse,
    metric: Metric,
    bundle: ModelBundle,
    window: Window,
    segment_id: str,
    labels: Sequence[Label],
    room: Path,
) -> Past:
    """The Window's features of one segment of the model, the same as `feature_rows` has.

    All segments are gone through for what groups share, but the features of this one alone are kept.
    Raises DataError where there is nothing to read any more, or of no such segment.
    """
    with TemporaryDirectory(dir=room) as made:
        extract(warehouse, metric, reading_window(bundle, window), Path(made) / "observations")
        read = Observations.open(Path(made) / "observations")
        calendar = warehouse.calendar(metric)
        _, whole, state, pools = _before(read, metric, bundle, window, calendar, labels, Path(made))
        row = bundle.positions([segment_id])
        own, n = state.take(row), len(window)
        shared, _ = go_through(whole, bundle.recursion, state, pools, 0, Path(made))
        series = whole.series.take(row)
        X, contexts = gone_on(series, bundle.recursion, own, shared.take(row), n)
    values = np.array(series.values[0, -n:])
    known = bundle.feature_set.is_complete(contexts[0]) & ~np.isnan(values)
    expected = bundle.feature_set.expected(contexts[0, known])
    return Past(window.times[known], values[known], expected, X[0, known])


def _with_rollups(
    panel: Panel, max_order: int, features: FeatureSet, known: History | None = None, room: Path | None = None
) -> Panel:
    """The Panel with its roll-ups; values of any sign, as temperatures are, have none."""
    return with_rollups(panel, max_order, known, room) if features.is_count else panel


def _states(panel: Panel, bundle: ModelBundle, goes_on: bool) -> Baseline:
    """The states before the Panel: those at the end of training where it goes on from there, else new ones.

    Segments that training has not met are new in any case.
    """
    known, features = bundle.state(), bundle.feature_set
    scale = features.segment_scale(panel.values[len(known) :])
    if goes_on:
        return known.joined(Baseline.fresh(scale, features))
    return Baseline.fresh(np.concatenate([known.scale, scale]), features)


def _status(panel: Panel, bundle: ModelBundle, is_complete: Bools) -> Texts:
    """(n_segments, n_times) statuses of the Panel's rows."""
    n_new = len(panel.segments) - len(bundle.status)
    of_segments = np.array([*bundle.status, *["new_segment"] * n_new], dtype=object)
    status = np.repeat(of_segments[:, None], len(panel.window), axis=1)
    fitted = status == "ok"
    status[fitted & (np.isnan(panel.values) | ~is_complete)] = "no_data"
    status[fitted & panel.ended(ended_after(bundle.feature_set))] = "ended"
    return status


def _check_age(bundle: ModelBundle, metric: Metric, window: Window) -> None:
    days = int((window.start - bundle.window.end) / np.timedelta64(24, "h"))
    if metric.max_model_age and days > metric.max_model_age:
        raise ModelError(
            f"the model was trained to {bundle.window.end}, {days} days before {window.start}, and max_model_age is"
            f" {metric.max_model_age}: run `segwatch train`"
        )


def _feature_table(
    panel: Panel, bundle: ModelBundle, positions: Ints, columns: Ints, status: Texts, contexts: Floats
) -> pa.Table:
    """The rows of the segments at `positions` and the periods at `columns`, (n_rows,) each."""
    values = panel.values[positions, columns]
    if panel.exposure is not None:
        values = values / panel.exposure[positions, columns]
    context, of_rows = contexts[positions, columns], status[positions, columns]
    ok = of_rows == "ok"
    # A segment that ended keeps its score: it would be wrong of a table to have holes where nothing is missing.
    scorable = ok | ((of_rows == "ended") & ~np.isnan(values) & bundle.feature_set.is_complete(context))
    X = bundle.feature_set.features(values, context)
    segments = panel.segments.take(np.arange(positions[0], positions[-1] + 1)) if len(positions) else panel.segments
    texts = {
        "segment_id": pa.array(segments.ids, pa.string()),
        **segments.columns(_PREFIX),
        "level": pa.array(segments.levels, pa.string()),
    }
    reasons = np.full(len(positions), None)
    for k in np.flatnonzero(~ok):
        reasons[k] = _reason(panel, bundle, int(positions[k]), of_rows[k], values[k])
    of_texts = pa.array(positions - positions[0] if len(positions) else positions)
    table: dict[str, pa.Array] = {
        **{name: column.take(of_texts) for name, column in texts.items()},
        "ts": pa.array(panel.window.times[columns].astype("datetime64[us]")),
        "value": pa.array(values, from_pandas=True),
        "status": pa.array(of_rows, pa.string()),
        "reason": pa.array(reasons, pa.string()),
        **{name: pa.array(context[:, k], mask=~scorable, from_pandas=True) for k, name in enumerate(CONTEXT)},
        **{name: pa.array(X[:, k], mask=~scorable) for k, name in enumerate(FEATURES)},
    }
    return pa.table(table)


def _with_left_out(rows: pa.Table, left_out: npt.NDArray[np.int8]) -> pa.Table:
    """The rows, whose reason says so where the calendar (1) or a label (2) leaves them out. left_out: (n_rows,)."""
    is_said = pc.and_(pc.equal(rows["status"], "no_data"), pa.array(left_out > 0))
    reasons = pa.array([None, LEFT_OUT, EXPECTED]).take(pa.array(left_out))
    return rows.set_column(
        rows.column_names.index("reason"), "reason", pc.if_else(is_said, reasons, rows["reason"].combine_chunks())
    )


def _reason(panel: Panel, bundle: ModelBundle, position: int, status: str, value: float) -> str:
    """Why a row has no score."""
    if status == "new_segment":
        return f"first seen {panel.history.first_seen[position]}, after the model was trained"
    if status == "ended":
        return f"no row since {panel.history.last_seen[position]}"
    if status == "no_data":
        return "the data of this period did not arrive" if np.isnan(value) else "too few periods before it"
    return bundle.reason[position] or status


def predict(
    warehouse: Warehouse,
    features: FeatureRows,
    metric_name: str,
    metric: Metric,
    bundle: ModelBundle,
    stamp: Mapping[str, object],
    labels: Sequence[Label] = (),
    progress: Progress = _ignore,
) -> pa.Table:
    """The predictions of every row of the feature table, scored or not, in the predictions table's columns.

    stamp: model_version, run_id and scored_at of the run. labels: see `preprocess`. `shift_of` reads back how far the
    features have moved.
    """
    return predict_rows(warehouse.read_features(features.table), metric_name, metric, bundle, stamp, labels, progress)


def predict_rows(
    rows: pa.Table,
    metric_name: str,
    metric: Metric,
    bundle: ModelBundle,
    stamp: Mapping[str, object],
    labels: Sequence[Label] = (),
    progress: Progress = _ignore,
) -> pa.Table:
    """The predictions of feature rows; see `predict`."""
    has_features = pc.is_valid(rows[FEATURES[0]])
    ok = rows.filter(has_features)
    contexts, X = (np.column_stack([ok[name].to_numpy() for name in names]) for names in (CONTEXT, FEATURES))
    ids = ok["segment_id"].combine_chunks()
    periods = ok["ts"].to_numpy().astype("datetime64[us]").astype(np.int64)
    values = ok["value"].to_numpy()
    floors = Floors(metric.min_impact, metric.min_impact_share)
    is_rollup = ok["level"].to_numpy() != metric.level
    asked = bundle.rules_for(rules(metric))
    is_over = ok["status"].to_numpy() == "ended"
    raised = _bars(labels, bundle, ids, ok["ts"].to_numpy()) if labels else None
    decisions = decide(bundle, ids, periods, values, contexts, X, progress, floors, asked, is_rollup, is_over, raised)
    scored = _predictions(ok, metric_name, metric, stamp, decisions)
    scored = _with_contributions(scored, bundle, ids, X)
    rest = _predictions(rows.filter(pc.invert(has_features)), metric_name, metric, stamp, None)
    return pa.concat_tables([scored, rest]).replace_schema_metadata({_SHIFT: json.dumps(bundle.shift(ids, X))})


def _bars(labels: Sequence[Label], bundle: ModelBundle, ids: pa.Array, ts: npt.NDArray[np.datetime64]) -> Bars | None:
    """What labels ask of rows of a Window, (n_rows,)."""
    if not len(ts):
        return None
    grain = bundle.feature_set.grain
    times = ts.astype(f"datetime64[{unit(grain)}]")
    window = Window(times.min(), times.max() + length(1, grain), grain)
    return Bars.of(bars(labels, bundle.history.segments, bundle.window, window), ids, times)


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
        "level": rows["level"],
        **{name: rows[_PREFIX + name] for name in metric.dimensions},
        **{name: rows[name] for name in ("segment_id", "value", "status", "reason")},
        "ts": rows["ts"].cast(pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC")),
        "is_anomaly": pa.repeat(False, n),
        **{name: pa.repeat(pa.scalar(value, schema.field(name).type), n) for name, value in stamp.items()},
    }
    if decisions is not None:
        columns |= _decision_columns(rows, decisions)
        if metric.feature_set.kind == "ratio":
            columns["denominator"] = rows["unit"]
    arrays = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema]
    return pa.table(arrays, schema=schema)


def _with_contributions(scored: pa.Table, bundle: ModelBundle, ids: pa.Array, X: Floats) -> pa.Table:
    """The scored rows; those that alert say what their scores are made of."""
    is_anomaly = scored["is_anomaly"].combine_chunks()
    said = np.full(len(X), None)
    flagged = np.flatnonzero(is_anomaly)
    said[flagged] = [to_json(parts) for parts in parts_of(bundle, ids.take(pa.array(flagged)).to_pylist(), X[flagged])]
    at = scored.column_names.index("contributions")
    return scored.set_column(at, scored.schema.field(at), pa.array(said, pa.string()))


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
        "reason": pc.coalesce(_said(decisions), rows["reason"].combine_chunks()),
    }


def _said(decisions: Decisions) -> pa.Array:
    """Why a row is an anomaly although its value alone is none, or none although it is improbable."""
    words = np.where(decisions.is_pattern, "pattern", np.where(decisions.is_barred, "labelled", "ongoing"))
    return pa.array(words, pa.string(), mask=~(decisions.is_pattern | decisions.is_ongoing | decisions.is_barred))


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
