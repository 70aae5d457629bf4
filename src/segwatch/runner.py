"""The in-process runner: the steps in sequence, in a work directory that is gone afterwards."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segwatch import steps
from segwatch.alerts import NotifySummary, check_deliveries, notify
from segwatch.core.bundle import ModelBundle
from segwatch.core.compiled import notice
from segwatch.core.evaluation import SAMPLE
from segwatch.core.explanation import Explanation
from segwatch.core.incidents import Incident
from segwatch.core.injection import Found
from segwatch.core.labels import Learned
from segwatch.core.observations import write_observations
from segwatch.core.panel import Segments, build_panel
from segwatch.core.segment import counted, describe, label
from segwatch.core.training import Progress
from segwatch.core.window import Window, length
from segwatch.data import backtests_schema
from segwatch.detectability import keep
from segwatch.errors import DataError, ModelError, SegwatchError, disk_error
from segwatch.explain import SIMILAR
from segwatch.explain import explain as explain_row
from segwatch.gaps import Gap, gaps_of
from segwatch.incidents import incidents_of, latest, update_incidents
from segwatch.registries import ModelVersion
from segwatch.run import Observer, Run, labels_of
from segwatch.settings import Metric

if TYPE_CHECKING:
    from segwatch.report import ModelFacts

_STALE = 24 * 3600


@dataclass(frozen=True)
class TrainSummary:
    """What a training did. counts: see `steps.counts_of`. seconds: wall time by step.

    verdict: whether the alias champion moved to it, and why. learned: what labels did to the data.
    """

    window: Window
    version: ModelVersion
    verdict: steps.Verdict
    n_rows: int
    counts: Mapping[str, int]
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    learned: Learned | None = None


@dataclass(frozen=True)
class Worst:
    """A segment with alerts: their number and their summed difference from the expected value."""

    segment: str
    n_anomalies: int
    impact: float


@dataclass(frozen=True)
class InferSummary:
    """What a scoring did. worst: segments and roll-ups by the size of their impact. gaps: data that did not arrive.
    incidents: what the Window's last word of each is, those of the largest impact first and the resolved ones last.
    news: the largest size of impact of what is new or worse; where only some segments were scored, and incidents are
    not told, that of their anomalies. None where there is none."""

    window: Window
    version: ModelVersion
    n_rows: int
    n_segments: int
    n_rollups: int
    n_anomalies: int
    by_status: Mapping[str, int]
    worst: tuple[Worst, ...]
    features_table: str | None
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()
    incidents: tuple[Incident, ...] = ()
    news: float | None = None
    notified: NotifySummary | None = None


@dataclass
class _Clock:
    """Runs steps under the observer and keeps their times."""

    observer: Observer
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Progress]:
        start = time.perf_counter()
        with self.observer.step(name, total) as progress:
            yield progress
        self.seconds[name] = round(time.perf_counter() - start, 3)


@contextmanager
def _workspace(run: Run) -> Iterator[Path]:
    """A directory of this run alone, removed at the end; those that a killed run left behind go too.

    What the disk refuses inside is raised as BackendError: the adapters tell of their own files themselves.
    """
    directory = run.workspace / run.run_id
    try:
        _sweep(run.workspace)
        directory.mkdir(parents=True)
        yield directory
    except OSError as error:
        raise disk_error(error, f"the work directory {run.workspace}") from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _sweep(workspace: Path) -> None:
    """The directories that killed runs left behind a day ago or more are gone."""
    for old in workspace.glob("*"):
        # Another run may be sweeping too.
        with suppress(FileNotFoundError):
            if old.stat().st_mtime < time.time() - _STALE:
                shutil.rmtree(old, ignore_errors=True)


def train(run: Run, window: Window, *, force: bool = False) -> TrainSummary:
    """A new version of the metric's model is registered, and is the champion if the gate lets it.

    force: the gate's objection is recorded and passed over.
    """
    clock = _Clock(run.observer)
    with _workspace(run) as work:
        with clock.step("extract"):
            n_rows = steps.extract(run.warehouse, run.metric, window, work / "observations")
        with clock.step("preprocess"):
            calendar = run.warehouse.calendar(run.metric)
            made = steps.preprocess(
                work / "observations", run.metric, window, work / "panel", run.selection, calendar, labels_of(run), work
            )
        segments = made.segments
        # Fitting takes minutes, in which others may read the file.
        run.warehouse.close()
        with clock.step("train", len(segments)) as progress:
            bundle = steps.train(work / "panel", run.metric_name, run.metric, work / "bundle", progress)
        with clock.step("evaluate", min(SAMPLE, len(segments))) as progress:
            champion = steps.champion(run.registry, run.metric_name, run.metric, work / "champion")
            evaluation = steps.evaluate(work / "panel", bundle, champion, run.metric, progress)
        verdict = steps.judge(evaluation.objection, run.selection, force)
        with clock.step("register"):
            version = steps.register(
                run.registry,
                bundle,
                evaluation.metrics,
                run.run_id,
                settings_digest=steps.settings_digest(run.metric),
                git_revision=run.git_revision,
                gate=verdict.said,
            )
            if verdict.promote:
                version = run.registry.promote(version.name, version.version)
        counts = steps.counts_of(bundle)
    unknown = steps.unknown_countries(run.metric, segments, window)
    warnings = tuple(said for said in (unknown, notice()) if said)
    return TrainSummary(
        window, version, verdict, n_rows, counts, evaluation.metrics, clock.seconds, warnings, made.learned
    )


@dataclass(frozen=True)
class EvaluateSummary:
    """What models fitted without the last periods would have found there. labels: of the segments, by position.

    kept: where each segment's smallest drop and rise were written, or why they were not.
    """

    window: Window
    labels: tuple[str, ...]
    found: list[Found]
    kept: str
    seconds: Mapping[str, float]


def evaluate(run: Run, window: Window) -> EvaluateSummary:
    """Nothing is registered: events are injected into the held-out periods of the Window.

    The detectability table, where there is one, holds the smallest change that each segment's model notices.
    """
    clock = _Clock(run.observer)
    with _workspace(run) as work:
        with clock.step("extract"):
            steps.extract(run.warehouse, run.metric, window, work / "observations")
        with clock.step("preprocess"):
            calendar = run.warehouse.calendar(run.metric)
            segments = steps.preprocess(
                work / "observations", run.metric, window, work / "panel", run.selection, calendar, labels_of(run), work
            ).segments
        with clock.step("evaluate", len(segments)) as progress:
            found = steps.detectability(work / "panel", run.metric, progress)
        with clock.step("keep"):
            kept = _keep(run, window, segments, found)
    return EvaluateSummary(window, segments.labels, found, kept, clock.seconds)


def _keep(run: Run, window: Window, segments: Segments, found: Sequence[Found]) -> str:
    """The detectability table holds what was found; says so, or that a project of before has no such table."""
    table = run.settings.detectability_table
    if run.warehouse.table_schema(table) is None:
        return f"nowhere: there is no table {table!r}; `segwatch create` makes it, and `segwatch explain` reads it"
    stamp = {"run_id": run.run_id, "evaluated_at": run.now}
    n = keep(run.warehouse, table, run.metric_name, segments, found, window.end, stamp, run.selection)
    return f"{n:,} rows in the table {table}"


@dataclass(frozen=True)
class BacktestWeek:
    """What would have alerted in some periods, under a model trained on the periods before them."""

    window: Window
    n_scored: int
    n_anomalies: int
    worst: tuple[Worst, ...]


def backtest(run: Run, window: Window, every: int) -> list[BacktestWeek]:
    """What would have alerted in the Window; a model is trained anew every so many periods. Nothing is written.

    Raises DataError where the table has no rows, or too few before the Window for a model.
    """
    with run.observer.step("extract"):
        span = run.warehouse.span(run.metric)
        first = window.start if span is None else min(span[0], window.start)
        observations = run.warehouse.observations(run.metric, Window(first, window.end, window.grain))
        calendar = run.warehouse.calendar(run.metric)
        # Models take minutes, in which others may read the file.
        run.warehouse.close()
    starts = np.arange(window.start, window.end, length(every, window.grain))
    weeks = []
    with _workspace(run) as work, run.observer.step("backtest", len(starts)) as progress:
        for number, start in enumerate(starts):
            end = min(start + length(every, window.grain), window.end)
            scored = Window(start, end, window.grain)
            weeks.append(_backtest_week(run, observations, calendar, first, scored, work / str(number)))
            progress(1)
    return weeks


def keep_backtest(run: Run, weeks: Sequence[BacktestWeek], every: int, settings: str) -> bool:
    """The backtests table holds the weeks, for the page to show them; False where there is no such table yet.

    settings: name of the settings file that the backtest followed.
    """
    table = run.settings.backtests_table
    if not weeks or run.warehouse.table_schema(table) is None:
        return False
    rows = [
        {
            "metric": run.metric_name,
            "run_id": run.run_id,
            "ts": run.now,
            "settings": settings,
            "selection": describe(run.selection) if run.selection else None,
            "every": every,
            **dict(
                zip(
                    ("start", "stop"), (time.replace(tzinfo=dt.UTC) for time in week.window.as_datetimes()), strict=True
                )
            ),
            "n_scored": week.n_scored,
            "n_anomalies": week.n_anomalies,
            "worst": json.dumps([[one.segment, one.n_anomalies, one.impact] for one in week.worst]),
        }
        for week in weeks
    ]
    batches = pa.Table.from_pylist(rows, schema=backtests_schema().arrow()).to_batches()
    run.warehouse.insert(table, batches, ("metric", "run_id", "start"))
    return True


def _backtest_week(
    run: Run,
    observations: pa.Table,
    calendar: pa.Table | None,
    first: np.datetime64,
    window: Window,
    work: Path,
) -> BacktestWeek:
    if not first < window.start:
        raise DataError(
            f"table {run.metric.table} has no rows before {window.start} to train on: choose a later --start"
        )
    work.mkdir()
    before = Window(first, window.start, window.grain)
    write_observations([_within(observations, before)], run.metric.dimensions, work / "observations")
    steps.preprocess(work / "observations", run.metric, before, work / "panel", {}, calendar, room=work)
    bundle = steps.train(work / "panel", run.metric_name, run.metric, work / "bundle")
    rows = _within(observations, steps.reading_window(bundle, window))
    stamp = {"model_version": "", "run_id": run.run_id, "scored_at": run.now}
    features = steps.feature_rows(rows, run.metric, bundle, window, calendar)
    predictions = steps.predict_rows(features, run.metric_name, run.metric, bundle, stamp)
    chosen = steps.select(predictions, run.selection, window)
    flagged = chosen.filter(chosen["is_anomaly"])
    n_scored = int(pc.sum(pc.equal(chosen["status"], "ok")).as_py() or 0)
    return BacktestWeek(window, n_scored, flagged.num_rows, _worst(flagged, run.metric, top=3))


def _within(observations: pa.Table, window: Window) -> pa.Table:
    start, end = (pa.scalar(moment, pa.timestamp("us")) for moment in window.as_datetimes())
    ts = observations["ts"]
    return observations.filter(pc.and_(pc.greater_equal(ts, start), pc.less(ts, end)))


def infer(run: Run, window: Window, *, keep_features: bool = False) -> InferSummary:
    """The predictions table holds the champion's predictions of the Window, and no temporary table is left."""
    clock = _Clock(run.observer)
    with _workspace(run) as work:
        with clock.step("resolve"):
            run.warehouse.sweep_features(run.now)
            version, bundle = steps.resolve(run.registry, run.metric_name, run.metric, work / "bundle")
        predictions, table = _score(run, window, version, bundle, clock, keep_features, work)
        with clock.step("publish"):
            done = publish(run, window, predictions)
    return scoring_summary(run.metric, window, version, predictions, done, clock.seconds, table)


def _score(
    run: Run, window: Window, version: ModelVersion, bundle: ModelBundle, clock: _Clock, keep_features: bool, work: Path
) -> tuple[pa.Table, str | None]:
    """Predictions of the selected rows, and the name of the feature table where it was kept."""
    stamp = {"model_version": version.version, "run_id": run.run_id, "scored_at": run.now}
    features = None
    try:
        with clock.step("featurize"):
            said = labels_of(run)
            features = steps.featurize(run.warehouse, run.metric, bundle, window, run.run_id, run.now, said, work)
        with clock.step("predict", features.n_scorable) as progress:
            predictions = steps.predict(
                run.warehouse, features, run.metric_name, run.metric, bundle, stamp, said, progress
            )
    finally:
        if features is not None and not keep_features:
            run.warehouse.drop_features(features.table)
    return steps.select(predictions, run.selection, window), features.table if keep_features else None


@dataclass(frozen=True)
class Published:
    """What was published: rows of predictions, what is said of incidents in the order of time (None where only some
    segments were scored, which say nothing of them), what of that is news, and what became of the alerts."""

    n_rows: int
    said: list[Incident] | None = None
    news: tuple[Incident, ...] = ()
    notified: NotifySummary | None = None


def publish(run: Run, window: Window, predictions: pa.Table) -> Published:
    """The tables hold the predictions of the Window and what they say of incidents, and who wants to know was told.

    What goes wrong in telling is in the summary: it takes back nothing, and the next run tells. Raises DataError where
    a table is missing, before anything is written.
    """
    check_deliveries(run)
    if run.warehouse.table_schema(run.settings.incidents_table) is None:
        raise DataError(f"there is no table {run.settings.incidents_table!r}: run `segwatch create`, which makes it")
    n_rows = steps.publish(
        run.warehouse, run.settings.predictions_table, run.metric_name, window, predictions, run.selection
    )
    if run.selection:
        return Published(n_rows)
    of_metric = (run.warehouse, run.settings.incidents_table, run.metric_name, run.metric, window)
    # What is scored again for late rows was told of when it was scored first.
    rescored = set(window.times[: run.metric.rescore].tolist())
    before = {(one.id, one.ts, one.status) for one in incidents_of(*of_metric)} if rescored else set()
    said = update_incidents(*of_metric, predictions)
    news = tuple(one for one in said if one.ts.item() not in rescored or (one.id, one.ts, one.status) not in before)
    try:
        return Published(n_rows, said, news, notify(run))
    except SegwatchError as error:
        return Published(n_rows, said, news, NotifySummary(problem=str(error)))


def scoring_summary(
    metric: Metric,
    window: Window,
    version: ModelVersion,
    rows: pa.Table,
    done: Published,
    seconds: Mapping[str, float],
    features_table: str | None = None,
) -> InferSummary:
    """What a scoring did, from the predictions that it published."""
    statuses = {row["values"]: row["counts"] for row in pc.value_counts(rows["status"]).to_pylist()}
    flagged = rows.filter(rows["is_anomaly"])
    if done.said is None:
        news = flagged["impact"].to_pylist()
    else:
        news = [one.impact for one in done.news if one.status in ("new", "worse")]
    is_segment = pc.equal(rows["level"], metric.level)
    segments, rollups = rows.filter(is_segment), rows.filter(pc.invert(is_segment))
    return InferSummary(
        window,
        version,
        done.n_rows,
        len(pc.unique(segments["segment_id"])),
        len(pc.unique(rollups["segment_id"])),
        flagged.num_rows,
        statuses,
        _worst(flagged, metric),
        features_table,
        seconds,
        steps.warnings(rows, version.metrics),
        gaps_of(rows, metric.dimensions, metric.grain),
        tuple(_by_rank(latest(done.said or ()))),
        max((abs(impact) for impact in news), default=None),
        done.notified,
    )


def _worst(flagged: pa.Table, metric: Metric, top: int = 5) -> tuple[Worst, ...]:
    table = flagged.select([*metric.dimensions, "impact"])
    sums = table.group_by(list(metric.dimensions)).aggregate([("impact", "sum"), ([], "count_all")])
    rows = [
        Worst(label(row[name] for name in metric.dimensions), row["count_all"], row["impact_sum"])
        for row in sums.to_pylist()
    ]
    return tuple(sorted(rows, key=lambda worst: (-abs(worst.impact), worst.segment))[:top])


def training_reason(run: Run, as_of: np.datetime64) -> str | None:
    """Why the daily job trains before it scores; None if the champion is young enough."""
    try:
        champion = run.registry.resolve(steps.model_name(run.metric_name))
    except ModelError:
        return "there is no champion"
    asked = {
        "dimensions": ", ".join(run.metric.dimensions),
        "grain": run.metric.grain,
        "kind": run.metric.feature_set.kind,
        "adapt_after": str(run.metric.adapt_after),
        "max_rollup_order": str(run.metric.max_rollup_order),
    }
    for name, wanted in asked.items():
        held = champion.parameters.get(name, "unknown")
        if held != wanted:
            return f"the champion (version {champion.version}) was trained with {name} {held}, now it is {wanted}"
    trained_to = np.datetime64(champion.parameters["window_end"], "h")
    age = (as_of.astype("datetime64[h]") - trained_to) / np.timedelta64(24, "h")
    if age >= run.metric.retrain_every:
        return (
            f"the champion (version {champion.version}) was trained to {champion.parameters['window_end']},"
            f" {age:.0f} days ago, and retrain_every is {run.metric.retrain_every}"
        )
    return None


def plan_training(run: Run, window: Window) -> dict[str, object]:
    """What `train` would read, fit and write; nothing is changed, and nothing read where reading is billed."""
    plan, observations = _plan_reading(run, window)
    if observations is not None:
        panel = build_panel(observations, run.metric.dimensions, window, run.metric.missing)
        enough = (~np.isnan(panel.values)).sum(axis=1) >= run.metric.min_history
        n_rollups = int(steps.whole_panel(panel, run.metric).segments.is_rollup.sum())
        plan["fits"] = (
            f"{int(enough.sum())} of {len(panel.segments)} segments have the {run.metric.min_history} periods"
            + (f", {n_rollups} roll-ups besides" if n_rollups else "")
        )
    champion = "" if run.selection else ", which becomes the champion if the gate lets it"
    return {**plan, "writes": f"a new version of {steps.model_name(run.metric_name)}{champion}"}


def plan_inference(run: Run, window: Window) -> dict[str, object]:
    """What `infer` would read, score and write; nothing is changed, and nothing read where reading is billed."""
    with _workspace(run) as work:
        version, bundle = steps.resolve(run.registry, run.metric_name, run.metric, work / "bundle")
        plan, _ = _plan_reading(run, steps.reading_window(bundle, window))
        return {
            **plan,
            "scores": f"{window} with version {version.version} of {version.name}"
            f" ({bundle.status.count('ok')} fitted of"
            f" {counted(*map(steps.counts_of(bundle).__getitem__, ('segments', 'rollups')))})",
            "writes": f"table {run.settings.predictions_table}, in place of what it holds of {run.metric_name} in"
            f" {window}",
        }


def incidents(run: Run, window: Window) -> list[Incident]:
    """What is known of each incident of the Window, as of its last period: the open ones first, by impact."""
    said = incidents_of(run.warehouse, run.settings.incidents_table, run.metric_name, run.metric, window)
    return _by_rank(latest(said))


def explain(run: Run, segment: str, at: str, n_similar: int = SIMILAR) -> Explanation:
    """All that is known of a segment's row at a day or hour; see `segwatch.explain`."""
    with _workspace(run) as work:
        return explain_row(run, segment, at, work, n_similar)


def _by_rank(known: Iterable[Incident]) -> list[Incident]:
    return sorted(known, key=lambda one: (one.status == "resolved", -abs(one.total_impact), one.id))


def report(run: Run, window: Window) -> str:
    """The page of the Window's predictions. Raises DataError where it has none."""
    from segwatch.report import render_report  # its charts take a second to import

    predictions = run.warehouse.predictions(run.settings.predictions_table, run.metric_name, window)
    return render_report(
        predictions,
        metric=run.metric_name,
        dimensions=run.metric.dimensions,
        grain=run.metric.grain,
        model=_model_facts(run, predictions),
        generated_at=run.now,
        incidents=incidents(run, window) if run.warehouse.table_schema(run.settings.incidents_table) else (),
    )


def _model_facts(run: Run, predictions: pa.Table) -> ModelFacts | None:
    """Facts of the version that made the latest predictions; None if the registry no longer has it."""
    from segwatch.report import ModelFacts

    if not predictions.num_rows:
        return None
    latest = predictions.sort_by("ts").slice(predictions.num_rows - 1)
    try:
        version = run.registry.resolve(steps.model_name(run.metric_name), latest["model_version"][0].as_py())
    except ModelError:
        return None
    return ModelFacts(
        name=version.name,
        version=version.version,
        trained_start=version.parameters.get("window_start", ""),
        trained_end=version.parameters.get("window_end", ""),
        registered_at=version.created_at,
        segments=counted(*(int(version.metrics.get(name, 0)) for name in ("segments", "rollups"))),
        n_fitted=int(version.metrics.get("segments_ok", 0)),
        metrics=version.metrics,
    )


def _plan_reading(run: Run, window: Window) -> tuple[dict[str, object], pa.Table | None]:
    """What would be read of the metric; its observations where reading them is free, what it bills where it is not."""
    place = f"{run.metric.table} in {window}"
    bills = run.warehouse.bytes_to_read(run.metric, window)
    if bills is not None:
        return {"reads": f"the observations of {place}", "bills": f"{bills:,} bytes at most"}, None
    observations = run.warehouse.observations(run.metric, window)
    return {"reads": f"{observations.num_rows} observations of {place}"}, observations
