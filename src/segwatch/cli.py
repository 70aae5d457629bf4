"""The command line: parse, one call, print."""

from __future__ import annotations

import _thread
import datetime as dt
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segwatch import __version__
from segwatch.errors import SegwatchError, UsageError, disk_error

if TYPE_CHECKING:
    from segwatch.core.bundle import ModelBundle
    from segwatch.pipelines.vertex import VertexPipelines
    from segwatch.registries.base import ModelRegistry
    from segwatch.run import Observer, Run
    from segwatch.settings import Metric, Settings
    from segwatch.warehouses.base import Warehouse


class LogFormat(StrEnum):
    text = "text"
    json = "json"


class Runner(StrEnum):
    local = "local"
    kfp_local = "kfp-local"
    vertex = "vertex"


class Pipeline(StrEnum):
    train = "train"
    infer = "infer"


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One One-Class SVM per segment of a metric, trained and scored warehouse to warehouse.",
)
data_app = typer.Typer(no_args_is_help=True, help="Insert rows of the metric into its table, or remove them.")
models_app = typer.Typer(no_args_is_help=True, help="The versions of the metric's model.")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
schedule_app = typer.Typer(no_args_is_help=True, help="When Vertex AI runs the pipelines by itself.")
app.add_typer(schedule_app, name="schedule")

MetricOption = Annotated[
    str | None, typer.Option("--metric", help="Metric of the settings; needed where they have several.")
]
AsOf = Annotated[str | None, typer.Option("--as-of", help="The day it is run for, YYYY-MM-DD; default: today (UTC).")]
Start = Annotated[str | None, typer.Option("--start", help="First period, inclusive.")]
End = Annotated[str | None, typer.Option("--end", help="End of the Window, exclusive.")]
Select = Annotated[
    list[str] | None, typer.Option("--select", help="dimension=value; several add up.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be read, fitted and written; do nothing.")]
RunnerOption = Annotated[
    Runner | None, typer.Option("--runner", help="What executes the steps; default: the target's runner.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the job on Vertex AI to its end.")]
FailOn = Annotated[bool, typer.Option("--fail-on-anomalies", help="Exit with 5 if there are anomalies.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@dataclass(frozen=True)
class Session:
    """The options before the command."""

    settings_path: Path
    target: str | None
    log_format: LogFormat
    quiet: bool

    def settings(self) -> Settings:
        from segwatch.settings import load_settings

        return load_settings(self.settings_path, self.target)

    def say(self, title: str, **rows: Any) -> None:
        """Print what happened, as text or as a JSON line; nothing with -q."""
        from rich.console import Console

        from segwatch.console import print_rows, say_json

        if self.log_format is LogFormat.json:
            say_json(title, **rows)
        elif not self.quiet:
            print_rows(Console(stderr=True), title, {n.replace("_", " "): str(v) for n, v in rows.items()})

    @property
    def workspace(self) -> Path:
        """Where runs have their work directories."""
        return self.settings_path.absolute().parent / ".segwatch" / "runs"

    def tell(self, step: str) -> None:
        """Print that a step of a pipeline begins; nothing with -q."""
        if self.log_format is LogFormat.json:
            from segwatch.console import say_json

            say_json("step", step=step)
        elif not self.quiet:
            typer.echo(f"step {step}", err=True)

    def observer(self) -> Observer:
        from rich.console import Console

        from segwatch.console import BarObserver, JsonObserver, QuietObserver

        if self.log_format is LogFormat.json:
            return JsonObserver()
        console = Console(stderr=True)
        return QuietObserver() if self.quiet or not console.is_terminal else BarObserver(console)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"segwatch {__version__}")
        raise typer.Exit


@app.callback()
def session(
    context: typer.Context,
    settings: Annotated[Path, typer.Option(help="Settings file.", readable=False)] = Path("segwatch.toml"),
    target: Annotated[str | None, typer.Option(help="Target of the settings.")] = None,
    log_format: Annotated[LogFormat, typer.Option(help="text for people, json for machines.")] = LogFormat.text,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say only errors.")] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = Session(settings, target, log_format, quiet)


@contextmanager
def _warehouse(session: Session, settings: Settings) -> Iterator[Warehouse]:
    from segwatch.warehouses import open_warehouse

    target = settings.target(session.target)
    warehouse = open_warehouse(target.warehouse, target.google)
    try:
        yield warehouse
    finally:
        warehouse.close()


def _registry(session: Session, settings: Settings) -> ModelRegistry:
    from segwatch.registries import open_registry

    target = settings.target(session.target)
    return open_registry(target.registry, target.bucket, target.google, target.image)


def _metric(settings: Settings, name: str | None) -> tuple[str, Metric]:
    if name is None and len(settings.metrics) > 1:
        raise UsageError(f"the settings have several metrics, name one with --metric: {', '.join(settings.metrics)}")
    chosen = name or next(iter(settings.metrics))
    return chosen, settings.metric(chosen)


@contextmanager
def _run(session: Session, metric: str | None, select: list[str] | None) -> Iterator[Run]:
    """A run of the command's metric on its target, now."""
    from segwatch.core.segment import parse_selection
    from segwatch.run import open_run

    settings = session.settings()
    name, chosen = _metric(settings, metric)
    with open_run(
        settings,
        session.target,
        name,
        parse_selection(select or [], chosen.dimensions),
        session.workspace,
        session.observer(),
        dt.datetime.now(dt.UTC),
        git_revision=_git_revision(),
    ) as run:
        yield run


def _git_revision() -> str:
    """The commit that the working directory is at; empty where it is in no repository."""
    import subprocess

    try:
        asked = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


@app.command()
def init(
    context: typer.Context, force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False
) -> None:
    """Write a commented settings file for the generated metric."""
    from segwatch.settings import TEMPLATE

    path = context.obj.settings_path
    _check_place("--settings", path)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already: edit it, or write it anew with --force")
    _write_whole(path, TEMPLATE)
    context.obj.say("init", wrote=path)


@app.command()
def create(context: typer.Context) -> None:
    """Make the tables and the model registry; what is there already stays."""
    from segwatch.data import labels_schema, metric_schema
    from segwatch.steps import predictions_table

    settings = context.obj.settings()
    with _warehouse(context.obj, settings) as warehouse:
        # First, because making a table is what makes a new database file.
        made = [settings.predictions_table] * warehouse.create_table(
            settings.predictions_table, predictions_table(settings.dimensions)
        )
        for metric in settings.metrics.values():
            if warehouse.table_schema(metric.table) is None:
                made += [metric.table] * warehouse.create_table(metric.table, metric_schema(metric))
                if _is_generated(metric):
                    made += [_labels_table(metric)] * warehouse.create_table(_labels_table(metric), labels_schema())
    _registry(context.obj, settings).create()
    context.obj.say("create", made=", ".join(made) or "nothing: the tables were there")


def _is_generated(metric: Metric) -> bool:
    from segwatch.data import generated_schema

    return generated_schema().names == (metric.time, *metric.dimensions, metric.value)


def _labels_table(metric: Metric) -> str:
    return f"{metric.table}_labels"


@data_app.command("insert")
def data_insert(
    context: typer.Context,
    metric: MetricOption = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A .csv or .parquet file of your own rows.", readable=False)
    ] = None,
    segments: Annotated[int, typer.Option(help="Segments to generate.")] = 27,
    days: Annotated[int, typer.Option(help="Days to generate.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the generator.")] = 7,
    end: Annotated[str | None, typer.Option(help="Day after the last one; default: today (UTC).")] = None,
) -> None:
    """Insert generated rows, or those of a file, in place of rows of the same time and segment."""
    settings = context.obj.settings()
    _, chosen = _metric(settings, metric)
    keys = [chosen.time, *chosen.dimensions]
    with _warehouse(context.obj, settings) as warehouse:
        if source is not None:
            from segwatch.data.files import read_rows

            rows = read_rows(source, chosen)
            n_rows = warehouse.insert(chosen.table, rows.to_batches(), keys)
        else:
            n_rows = _insert_generated(warehouse, chosen, segments, days, seed, end)
    context.obj.say("data insert", table=chosen.table, rows=n_rows)


def _insert_generated(
    warehouse: Warehouse, metric: Metric, segments: int, days: int, seed: int, end: str | None
) -> int:
    import numpy as np

    from segwatch.core.window import parse_time
    from segwatch.data.generate import GeneratorSettings, generate

    if not _is_generated(metric):
        raise UsageError(f"the generator writes the columns of new_users, not those of {metric.table}: use --from FILE")
    last = np.datetime64(dt.datetime.now(dt.UTC).date()) if end is None else parse_time(end, "day", "--end")
    labels = []

    def observations() -> Iterator[Any]:
        for batch in generate(GeneratorSettings(segments=segments, days=days, seed=seed, end=last)):
            labels.append(batch.labels)
            yield batch.observations

    n_rows = warehouse.insert(metric.table, observations(), [metric.time, *metric.dimensions])
    warehouse.truncate(_labels_table(metric))
    warehouse.insert(_labels_table(metric), labels, ["created_at", *metric.dimensions, "event_id"])
    return n_rows


def _ask(question: str, yes: bool) -> None:
    """Nothing happens if the answer is yes. Raises UsageError if it is no, or if there is nobody to answer."""
    try:
        if yes or typer.confirm(question, err=True):
            return
    except typer.Abort:
        # The question's line is still open.
        typer.echo(err=True)
    raise UsageError("nothing was removed: answer y, or give --yes")


@data_app.command("truncate")
def data_truncate(context: typer.Context, metric: MetricOption = None, yes: Yes = False) -> None:
    """Remove every row of the metric's table, if segwatch made it."""
    settings = context.obj.settings()
    _, chosen = _metric(settings, metric)
    with _warehouse(context.obj, settings) as warehouse:
        _ask(f"Remove every row of {chosen.table}?", yes)
        n_rows = warehouse.truncate(chosen.table)
        if _is_generated(chosen):
            warehouse.truncate(_labels_table(chosen))
    context.obj.say("data truncate", table=chosen.table, rows_removed=n_rows)


@app.command()
def train(
    context: typer.Context,
    metric: MetricOption = None,
    as_of: AsOf = None,
    start: Start = None,
    select: Select = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Make it champion even if the gate objects.")] = False,
    runner: RunnerOption = None,
    wait: Wait = False,
) -> None:
    """Fit every segment on the periods before --as-of; the model becomes champion if the gate lets it."""
    from segwatch.run import training_window
    from segwatch.runner import plan_training

    if dry_run:
        with _run(context.obj, metric, select) as run:
            context.obj.say("train would do", **plan_training(run, training_window(run, as_of, start)))
    else:
        _train(context.obj, runner, metric, select, as_of, start, wait, force)


def _train(
    session: Session,
    runner: Runner | None,
    metric: str | None,
    select: list[str] | None = None,
    as_of: str | None = None,
    start: str | None = None,
    wait: bool = False,
    force: bool = False,
) -> None:
    where = _runner(session, runner)
    if where is not Runner.local:
        _launch(session, where, "train", metric, select, wait, as_of=as_of, start=start, force=force or None)
        return
    from segwatch.console import train_rows
    from segwatch.run import training_window
    from segwatch.runner import train

    with _run(session, metric, select) as run:
        summary = train(run, training_window(run, as_of, start), force=force)
    session.say("train", **train_rows(summary))


@app.command()
def evaluate(
    context: typer.Context,
    metric: MetricOption = None,
    as_of: AsOf = None,
    start: Start = None,
    select: Select = None,
    output: Annotated[
        Path | None, typer.Option(help="CSV file to write: each segment's smallest drop and rise.", readable=False)
    ] = None,
) -> None:
    """Inject events into the last periods and say what would have been found; nothing is registered."""
    from segwatch import runner
    from segwatch.console import evaluate_rows, evaluate_table
    from segwatch.run import training_window

    if output is not None:
        _check_place("--output", output)
    with _run(context.obj, metric, select) as run:
        summary = runner.evaluate(run, training_window(run, as_of, start))
    if output is not None:
        _write_whole(output, _csv(evaluate_table(summary)))
    context.obj.say("evaluate", **evaluate_rows(summary))


@app.command()
def backtest(
    context: typer.Context,
    start: Annotated[str, typer.Option("--start", help="First period, inclusive.")],
    end: Annotated[str, typer.Option("--end", help="End, exclusive.")],
    metric: MetricOption = None,
    select: Select = None,
    every: Annotated[int, typer.Option(min=1, help="Periods after which a model is trained anew.")] = 7,
    against: Annotated[Path | None, typer.Option(help="A second settings file, shown beside.")] = None,
) -> None:
    """Say what would have alerted, week by week, each week under a model that could have existed then."""
    from dataclasses import replace

    from segwatch import runner
    from segwatch.console import backtest_rows
    from segwatch.run import scoring_window

    weeks = {}
    for path in filter(None, (context.obj.settings_path, against)):
        with _run(replace(context.obj, settings_path=path), metric, select) as run:
            weeks[str(path)] = runner.backtest(run, scoring_window(run, None, start, end), every)
    context.obj.say("backtest", **backtest_rows(weeks))


def _csv(rows: list[dict[str, object]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@app.command()
def infer(
    context: typer.Context,
    metric: MetricOption = None,
    as_of: AsOf = None,
    start: Start = None,
    end: End = None,
    select: Select = None,
    dry_run: DryRun = False,
    keep_features: Annotated[bool, typer.Option(help="Keep the temporary feature table for a day.")] = False,
    fail_on: FailOn = False,
    runner: RunnerOption = None,
    wait: Wait = False,
) -> None:
    """Score the last complete period before --as-of, or [--start, --end), with the champion."""
    from segwatch.run import scoring_window
    from segwatch.runner import plan_inference

    if dry_run:
        with _run(context.obj, metric, select) as run:
            context.obj.say("infer would do", **plan_inference(run, scoring_window(run, as_of, start, end)))
    else:
        _infer(context.obj, runner, metric, select, as_of, start, end, keep_features, fail_on, wait)


def _infer(
    session: Session,
    runner: Runner | None,
    metric: str | None,
    select: list[str] | None = None,
    as_of: str | None = None,
    start: str | None = None,
    end: str | None = None,
    keep_features: bool = False,
    fail_on: bool = False,
    wait: bool = False,
) -> None:
    where = _runner(session, runner)
    if where is Runner.local:
        from segwatch.console import infer_rows
        from segwatch.run import scoring_window
        from segwatch.runner import infer

        with _run(session, metric, select) as run:
            done = infer(run, scoring_window(run, as_of, start, end), keep_features=keep_features)
        session.say("infer", **infer_rows(done))
        n_anomalies = done.n_anomalies
    else:
        if keep_features:
            raise UsageError("--keep-features needs --runner local: a pipeline drops its temporary table in any case")
        if fail_on and where is Runner.vertex:
            raise UsageError("--fail-on-anomalies needs --runner local or kfp-local: a job on Vertex AI does not say")
        n_anomalies = _launch(session, where, "infer", metric, select, wait, as_of=as_of, start=start, end=end)
    if fail_on and n_anomalies:
        raise typer.Exit(5)


@app.command("run")
def run_daily(
    context: typer.Context,
    metric: MetricOption = None,
    as_of: AsOf = None,
    fail_on: FailOn = False,
    runner: RunnerOption = None,
) -> None:
    """The daily job: train if there is no champion or it is too old, then score."""
    from segwatch.run import scoring_window
    from segwatch.runner import training_reason

    with _run(context.obj, metric, None) as run:
        why = training_reason(run, scoring_window(run, as_of).end)
    context.obj.say("run", trains=why or "no: the champion is young enough")
    if why:
        _train(context.obj, runner, metric, as_of=as_of, wait=True)
    _infer(context.obj, runner, metric, as_of=as_of, fail_on=fail_on, wait=True)


def _runner(session: Session, wanted: Runner | None) -> Runner:
    """What executes the steps: the option, or the target's setting."""
    return wanted or Runner(session.settings().target(session.target).runner)


def _launch(
    session: Session,
    where: Runner,
    pipeline: str,
    metric: str | None,
    select: list[str] | None,
    wait: bool,
    **options: str | bool | None,
) -> int:
    """A pipeline ran on this machine, or was handed to Vertex AI; how many anomalies it told of."""
    import secrets

    from segwatch.core.segment import parse_selection

    settings = session.settings().for_target(session.target)
    name, chosen = _metric(settings, metric)
    parse_selection(select or [], chosen.dimensions)
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    if pipeline == "train":
        given["git_revision"] = _git_revision()
    if where is Runner.vertex:
        from segwatch.pipelines.vertex import VertexPipelines

        pipelines = VertexPipelines(settings)
        job = pipelines.submit(pipeline, name, select=select or [], **given)
        session.say(pipeline, job=job.name, console=job.console)
        if wait:
            pipelines.wait(job, session.tell)
        return 0
    from segwatch.pipelines.launch import run_locally

    root = session.workspace / f"{pipeline}_{secrets.token_hex(6)}"
    summary = run_locally(pipeline, settings, name, root, session.tell, select=select or [], **given)
    session.say(pipeline, **summary[pipeline])
    return int(summary.get("anomalies", 0))


@app.command("compile")
def compile_(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path("pipelines"),
    upload: Annotated[bool, typer.Option("--upload", help="Write to the target's bucket instead.")] = False,
    metric: MetricOption = None,
) -> None:
    """Write both pipelines as KFP YAML, with the settings of --target as their default parameters."""
    from segwatch.pipelines.launch import compile_pipelines, upload_pipelines

    settings = context.obj.settings().for_target(context.obj.target)
    name, _ = _metric(settings, metric)
    wrote = [upload_pipelines(settings, name)] if upload else compile_pipelines(settings, name, output)
    context.obj.say("compile", wrote=", ".join(str(place) for place in wrote))


def _pipelines(context: typer.Context, metric: str | None) -> tuple[VertexPipelines, str]:
    settings = context.obj.settings().for_target(context.obj.target)
    name, _ = _metric(settings, metric)
    return _vertex(settings), name


@schedule_app.command("set")
def schedule_set(
    context: typer.Context,
    pipeline: Annotated[Pipeline, typer.Argument(help="train or infer.")],
    cron: Annotated[str, typer.Option("--cron", help="When, as five fields: '0 5 * * *' is 05:00 each day.")],
    time_zone: Annotated[str, typer.Option("--time-zone", help="Time zone of --cron.")] = "Etc/UTC",
    metric: MetricOption = None,
) -> None:
    """Let Vertex AI run a pipeline at fixed times, in place of the schedule that it had."""
    pipelines, name = _pipelines(context, metric)
    one = pipelines.schedule(pipeline.value, name, cron, time_zone)
    context.obj.say(
        "schedule set", pipeline=one.pipeline, metric=one.metric, cron=one.cron, state=one.state, next=one.next_run
    )


@schedule_app.command("list")
def schedule_list(context: typer.Context, metric: MetricOption = None) -> None:
    """Print the schedules: pipeline, metric, cron, state, next run."""
    pipelines, name = _pipelines(context, metric)
    for one in pipelines.schedules(name):
        typer.echo(f"{one.pipeline}\t{one.metric}\t{one.cron}\t{one.state}\t{one.next_run}")


@schedule_app.command("pause")
def schedule_pause(context: typer.Context, pipeline: Pipeline, metric: MetricOption = None) -> None:
    """Let a pipeline run no more until `schedule resume`."""
    pipelines, name = _pipelines(context, metric)
    pipelines.pause(pipeline.value, name)
    context.obj.say("schedule pause", paused=f"{pipeline.value} of {name}")


@schedule_app.command("resume")
def schedule_resume(context: typer.Context, pipeline: Pipeline, metric: MetricOption = None) -> None:
    """Let a paused pipeline run again."""
    pipelines, name = _pipelines(context, metric)
    pipelines.resume(pipeline.value, name)
    context.obj.say("schedule resume", resumed=f"{pipeline.value} of {name}")


@schedule_app.command("delete")
def schedule_delete(context: typer.Context, pipeline: Pipeline, metric: MetricOption = None) -> None:
    """Remove a pipeline's schedule."""
    pipelines, name = _pipelines(context, metric)
    pipelines.unschedule(pipeline.value, name)
    context.obj.say("schedule delete", deleted=f"{pipeline.value} of {name}")


def _versions(context: typer.Context, metric: str | None) -> tuple[ModelRegistry, str]:
    from segwatch.steps import model_name

    settings = context.obj.settings()
    name, _ = _metric(settings, metric)
    return _registry(context.obj, settings), model_name(name)


@models_app.command("list")
def models_list(context: typer.Context, metric: MetricOption = None) -> None:
    """Print the versions, newest first."""
    registry, name = _versions(context, metric)
    for version in registry.versions(name):
        parameters = version.parameters
        window = f"[{parameters.get('window_start')}, {parameters.get('window_end')})"
        typer.echo(f"{version.version}\t{version.created_at:%Y-%m-%d %H:%M}\t{window}\t{','.join(version.aliases)}")


@models_app.command("show")
def models_show(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="Version or alias.")] = "champion",
    metric: MetricOption = None,
) -> None:
    """Print one version: its Window, parameters and metrics."""
    registry, name = _versions(context, metric)
    found = registry.resolve(name, version)
    facts: dict[str, Any] = {
        "name": found.name,
        "version": found.version,
        "uri": found.uri,
        "aliases": ",".join(found.aliases),
        "created_at": found.created_at.isoformat(timespec="seconds"),
        **found.parameters,
        **{key: f"{value:g}" for key, value in found.metrics.items()},
    }
    for key, value in facts.items():
        typer.echo(f"{key}\t{value}")


@models_app.command("promote")
def models_promote(
    context: typer.Context,
    version: Annotated[str, typer.Argument(help="Version.")],
    metric: MetricOption = None,
) -> None:
    """Make a version the champion."""
    registry, name = _versions(context, metric)
    context.obj.say("models promote", champion=registry.promote(name, version).version)


@models_app.command("rollback")
def models_rollback(context: typer.Context, metric: MetricOption = None) -> None:
    """Make the version that was champion before the champion again."""
    registry, name = _versions(context, metric)
    context.obj.say("models rollback", champion=registry.rollback(name).version)


@app.command()
def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder or gs:// URI of a model, or a version or alias; default: AIP_STORAGE_URI, champion."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0: a free one; default: AIP_HTTP_PORT, 8080.")
    ] = None,
    metric: MetricOption = None,
) -> None:
    """Answer requests for predictions, as Vertex AI asks of a container, until it is stopped."""
    from segwatch import serving
    from segwatch.console import JsonServingObserver, TextServingObserver
    from segwatch.settings import load_serving

    session, asked = context.obj, load_serving()
    serving.serve(
        # In a container the port is reached from outside of it; elsewhere nobody outside is let in unasked.
        host or ("127.0.0.1" if asked.http_port is None else "0.0.0.0"),
        (asked.http_port or 8080) if port is None else port,
        asked.health_route,
        asked.predict_route,
        _model_source(session, model or asked.storage_uri, metric),
        (JsonServingObserver if session.log_format is LogFormat.json else TextServingObserver)(session.say),
    )


def _model_source(session: Session, model: str, metric: str | None) -> Callable[[Path], ModelBundle]:
    """What opens the model; the settings are read only where the registry of a target has it."""
    from segwatch.core.bundle import ModelBundle
    from segwatch.registries.base import CHAMPION
    from segwatch.serving import open_model
    from segwatch.settings import Google
    from segwatch.steps import model_name

    if "/" in model or (model and Path(model).is_dir()):
        # A container on Vertex AI has no settings file, and none of the places that it could name.
        google = session.settings().target(session.target).google if session.settings_path.exists() else Google()
        return lambda to: open_model(model, to, google)
    settings = session.settings()
    name, _ = _metric(settings, metric)
    registry = _registry(session, settings)

    def registered(to: Path) -> ModelBundle:
        return ModelBundle.open(registry.download(registry.resolve(model_name(name), model or CHAMPION), to))

    return registered


@app.command()
def doctor(context: typer.Context) -> None:
    """Look at all that --target needs: one line each, and what to run where something is missing."""
    from segwatch.console import say_json
    from segwatch.doctor import examine

    session = context.obj
    ill = 0
    for finding in examine(session.settings().for_target(session.target)):
        ill += not finding.is_well
        if session.log_format is LogFormat.json:
            say_json("finding", what=finding.what, is_well=finding.is_well, said=finding.said)
        else:
            typer.echo(f"{'ok  ' if finding.is_well else 'FAIL'}  {finding.what}: {finding.said}")
    if ill:
        raise typer.Exit(4)


@app.command()
def report(
    context: typer.Context,
    metric: MetricOption = None,
    start: Start = None,
    end: End = None,
    output: Annotated[Path, typer.Option(help="File to write.", readable=False)] = Path("segwatch-report.html"),
) -> None:
    """Write one self-contained HTML page of the predictions; the last 90 periods by default."""
    from segwatch import runner
    from segwatch.run import reporting_window

    _check_place("--output", output)
    with _run(context.obj, metric, None) as run:
        page = runner.report(run, reporting_window(run, start, end))
    _write_whole(output, page)
    context.obj.say("report", wrote=output.absolute())


def _check_place(option: str, path: Path) -> None:
    """Nothing happens if a file can be at the path. Raises UsageError if not."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}: make it, or name another file")


def _write_whole(path: Path, text: str) -> None:
    """The file holds the text, or what it held before."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise disk_error(error, str(path)) from error


@app.command()
def destroy(context: typer.Context, yes: Yes = False) -> None:
    """List what segwatch made, ask, and remove only that."""
    from segwatch.pipelines.launch import remove_pipelines, uploaded_pipelines

    settings = context.obj.settings().for_target(context.obj.target)
    registry, schedules = _registry(context.obj, settings), _schedules(settings)
    with _warehouse(context.obj, settings) as warehouse:
        made = {
            "table": warehouse.created_tables(),
            "model": registry.created(),
            "compiled pipelines": uploaded_pipelines(settings.target(None)),
            "schedule": [f"{pipeline} of {metric}" for pipeline, metric in schedules],
        }
        for kind, names in made.items():
            for name in names:
                typer.echo(f"{kind} {name}")
        _ask("Remove all of these?", yes)
        for pipeline, metric in schedules:
            _vertex(settings).unschedule(pipeline, metric)
        remove_pipelines(settings.target(None), made["compiled pipelines"])
        # The warehouse last: the database file goes with it, and without one a second destroy could not finish.
        registry.destroy()
        warehouse.drop_created()
    context.obj.say("destroy", removed=", ".join(f"{len(names)} {kind}" for kind, names in made.items()))


def _schedules(settings: Settings) -> list[tuple[str, str]]:
    """Pipeline and metric of each schedule on Vertex AI."""
    if settings.target(None).runner != "vertex":
        return []
    pipelines = _vertex(settings)
    return [(one.pipeline, one.metric) for metric in settings.metrics for one in pipelines.schedules(metric)]


def _vertex(settings: Settings) -> VertexPipelines:
    from segwatch.pipelines.vertex import VertexPipelines

    return VertexPipelines(settings)


@contextmanager
def _interruptible() -> Iterator[None]:
    """While the context is open Ctrl-C ends the command wherever it falls.

    In a destructor or a weakref's callback Python prints it and carries on; here it comes again a moment later.
    """
    usual = sys.unraisablehook

    def again(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            again_soon = threading.Timer(0.01, _thread.interrupt_main)
            again_soon.daemon = True
            again_soon.start()
        else:
            usual(unraisable)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = usual


def main() -> None:
    """Run the command line; every expected error is one message and its exit code."""
    try:
        with _interruptible():
            app()
    except SegwatchError as error:
        _fail(error)
    except OSError as error:
        _fail(disk_error(error, str(error.filename or "the output")))


def _fail(error: SegwatchError) -> None:
    if "--log-format=json" in sys.argv or ("--log-format" in sys.argv and "json" in sys.argv):
        from segwatch.console import say_json

        say_json("error", message=str(error), exit_code=error.exit_code, retryable=error.retryable)
    else:
        # A value of the data may hold anything, and a message is one line.
        shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(error))
        typer.echo(f"error: {shown}", err=True)
    sys.exit(error.exit_code)
