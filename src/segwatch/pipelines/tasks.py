"""What each component calls: one step of `segwatch.steps`, on what a pipeline can hand over, texts and paths.

settings: `Settings` as JSON, whose default target is the one to use. window: `Window.as_dict` as JSON.
job: name of the pipeline job, which names the run. The last path is the output.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import pyarrow.feather as feather

from segwatch import runner, steps
from segwatch.console import QuietObserver, infer_rows, say_json, train_rows
from segwatch.core.bundle import ModelBundle
from segwatch.core.segment import parse_selection
from segwatch.core.window import Window
from segwatch.errors import BackendError, SegwatchError
from segwatch.run import Run, labels_of, open_run, reporting_window, scoring_window, training_window
from segwatch.settings import Metric, Settings
from segwatch.warehouses.base import FEATURES_PREFIX

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _task(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, ended after its step's time; an expected error is one line and an exit code."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            step = _settings(str(args[0])).step(function.__name__)
            with _limited(function.__name__, step.timeout_minutes):
                return function(*args, **kwargs)
        except SegwatchError as error:
            say_json("error", message=str(error), exit_code=error.exit_code, retryable=error.retryable)
            # SystemExit rather than the error: KFP prints a traceback of anything else.
            sys.exit(error.exit_code)

    return run


@contextmanager
def _limited(name: str, minutes: int) -> Iterator[None]:
    """KFP has no time limit of its own for a step."""

    def stop(*_: object) -> None:
        raise BackendError(
            f"the step {name} did not end within {minutes} minutes: raise its timeout_minutes, or its cpu and memory",
            retryable=True,
        )

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60 * minutes)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _settings(text: str) -> Settings:
    return Settings.model_validate_json(text)


def _metric(settings: str, name: str) -> Metric:
    return _settings(settings).metric(name)


@contextmanager
def _opened(settings: str, metric: str, job: str = "", now: dt.datetime | None = None) -> Iterator[Run]:
    moment = now or dt.datetime.now(dt.UTC)
    with open_run(_settings(settings), None, metric, {}, Path.cwd(), QuietObserver(), moment, run_id(job)) as run:
        yield run


def run_id(job: str) -> str:
    """The job's name as it may stand in the name of a table."""
    return re.sub(r"\W", "_", job.rpartition("/")[2])


def _moment(scheduled: str) -> dt.datetime:
    """The time that a schedule ran the pipeline for; now, where no schedule did."""
    try:
        return dt.datetime.fromisoformat(scheduled).astimezone(dt.UTC)
    except ValueError:
        return dt.datetime.now(dt.UTC)


def _window(text: str) -> Window:
    return Window.from_dict(json.loads(text))


def _new(path: str) -> Path:
    """The path of an output, whose folder need not be there yet."""
    to = Path(path)
    to.parent.mkdir(parents=True, exist_ok=True)
    return to


@_task
def plan_training(settings: str, metric: str, as_of: str, start: str, scheduled: str) -> str:
    """The training Window."""
    with _opened(settings, metric, now=_moment(scheduled)) as run:
        return json.dumps(training_window(run, as_of or None, start or None).as_dict())


@_task
def plan_scoring(settings: str, metric: str, as_of: str, start: str, end: str, scheduled: str) -> str:
    """The Window to score."""
    with _opened(settings, metric, now=_moment(scheduled)) as run:
        return json.dumps(scoring_window(run, as_of or None, start or None, end or None).as_dict())


@_task
def extract(settings: str, metric: str, window: str, observations: str) -> int:
    """How many observations there are."""
    with _opened(settings, metric) as run:
        return steps.extract(run.warehouse, run.metric, _window(window), _new(observations))


@_task
def preprocess(settings: str, metric: str, window: str, select: Sequence[str], observations: str, panel: str) -> None:
    """The Panel is there."""
    chosen = _metric(settings, metric)
    selection = parse_selection(select, chosen.dimensions)
    with _opened(settings, metric) as run:
        calendar, said = run.warehouse.calendar(run.metric), labels_of(run)
    steps.preprocess(Path(observations), chosen, _window(window), _new(panel), selection, calendar, said)


@_task
def train(settings: str, metric: str, panel: str, shard: int, shards: int, part: str) -> None:
    """One shard's bundle is there."""
    steps.train_shard(Path(panel), metric, _metric(settings, metric), _new(part), shard, shards)


@_task
def join(settings: str, metric: str, panel: str, parts: Sequence[str], bundle: str) -> None:
    """The bundle of all shards is there."""
    steps.join(Path(panel), metric, _metric(settings, metric), [Path(part) for part in parts], _new(bundle))


@_task
def evaluate(settings: str, metric: str, panel: str, bundle: str) -> steps.Evaluation:
    """How the candidate does, and whether it may take the champion's place."""
    with _opened(settings, metric) as run, tempfile.TemporaryDirectory() as folder:
        champion = steps.champion(run.registry, metric, run.metric, Path(folder) / "champion")
        return steps.evaluate(Path(panel), ModelBundle.open(Path(bundle)), champion, run.metric)


@_task
def register(
    settings: str,
    metric: str,
    bundle: str,
    evaluation: str,
    n_rows: int,
    select: Sequence[str],
    force: bool,
    job: str,
    git_revision: str,
    summary: str,
) -> str:
    """The number of the new version; what training did is in the summary."""
    opened, evaluated = ModelBundle.open(Path(bundle)), steps.Evaluation(**json.loads(evaluation))
    with _opened(settings, metric, job) as run:
        verdict = steps.judge(evaluated.objection, parse_selection(select, run.metric.dimensions), force)
        version = steps.register(
            run.registry,
            opened,
            evaluated.metrics,
            run.run_id,
            settings_digest=steps.settings_digest(run.metric),
            git_revision=git_revision,
            gate=verdict.said,
        )
        if verdict.promote:
            version = run.registry.promote(version.name, version.version)
    counts = steps.counts_of(opened)
    trained = runner.TrainSummary(opened.window, version, verdict, n_rows, counts, evaluated.metrics, {})
    _new(summary).write_text(json.dumps({"train": train_rows(trained)}), encoding="utf-8")
    return version.version


@_task
def resolve(settings: str, metric: str, bundle: str) -> str:
    """The number of the exact version that scores; its bundle is there."""
    with _opened(settings, metric) as run:
        version, _ = steps.resolve(run.registry, metric, run.metric, _new(bundle))
    return version.version


@_task
def featurize(settings: str, metric: str, window: str, bundle: str, job: str) -> str:
    """The temporary table of features and its numbers of rows, as JSON."""
    with _opened(settings, metric, job) as run:
        run.warehouse.sweep_features(run.now)
        opened = ModelBundle.open(Path(bundle))
        scored, said = _window(window), labels_of(run)
        rows = steps.featurize(run.warehouse, run.metric, opened, scored, run.run_id, run.now, said)
    return json.dumps(asdict(rows))


@_task
def predict(settings: str, metric: str, features: str, version: str, bundle: str, job: str, predictions: str) -> None:
    """The predictions are there."""
    opened, rows = ModelBundle.open(Path(bundle)), steps.FeatureRows(**json.loads(features))
    with _opened(settings, metric, job) as run:
        stamp = {"model_version": version, "run_id": run.run_id, "scored_at": run.now}
        predicted = steps.predict(run.warehouse, rows, metric, run.metric, opened, stamp, labels_of(run))
    feather.write_feather(predicted, str(_new(predictions)), compression="lz4")


@_task
def publish(
    settings: str, metric: str, window: str, select: Sequence[str], predictions: str, version: str, summary: str
) -> int:
    """How many anomalies were published; what scoring did is in the summary."""
    scored = _window(window)
    with _opened(settings, metric) as run:
        run = replace(run, selection=parse_selection(select, run.metric.dimensions))
        rows = steps.select(feather.read_table(predictions), run.selection, scored)
        used = run.registry.resolve(steps.model_name(metric), version)
        published = runner.publish(run, scored, rows)
        done = runner.scoring_summary(run.metric, scored, used, rows, published, {})
    _new(summary).write_text(json.dumps({"infer": infer_rows(done), "news": done.news}), encoding="utf-8")
    return done.n_anomalies


@_task
def report(settings: str, metric: str, page: str) -> None:
    """The page of the last 90 periods' predictions is there."""
    with _opened(settings, metric) as run:
        text = runner.report(run, reporting_window(run))
    _new(page).write_text(text, encoding="utf-8")


@_task
def tidy(settings: str, metric: str, job: str) -> None:
    """The run's temporary feature table is gone, whatever became of the run."""
    with _opened(settings, metric, job) as run:
        run.warehouse.drop_features(FEATURES_PREFIX + run.run_id)
