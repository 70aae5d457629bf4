"""The command line: parse, one call, print."""

from __future__ import annotations

import _thread
import datetime as dt
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segwatch import __version__
from segwatch.errors import DataError, ModelError, SegwatchError, UsageError, disk_error

if TYPE_CHECKING:
    import numpy as np

    from segwatch.core.window import Window
    from segwatch.registries.base import ModelRegistry, ModelVersion
    from segwatch.runner import Observer, Run
    from segwatch.settings import Metric, Settings
    from segwatch.warehouses.base import Warehouse


class LogFormat(StrEnum):
    text = "text"
    json = "json"


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

        return load_settings(self.settings_path)

    def say(self, title: str, **rows: Any) -> None:
        """Print what happened, as text or as a JSON line; nothing with -q."""
        from rich.console import Console

        from segwatch.console import print_rows, say_json

        if self.log_format is LogFormat.json:
            say_json(title, **rows)
        elif not self.quiet:
            print_rows(Console(stderr=True), title, {n.replace("_", " "): str(v) for n, v in rows.items()})

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

    warehouse = open_warehouse(settings.target(session.target).warehouse)
    try:
        yield warehouse
    finally:
        warehouse.close()


def _registry(session: Session, settings: Settings) -> ModelRegistry:
    from segwatch.registries import open_registry

    return open_registry(settings.target(session.target).registry)


def _metric(settings: Settings, name: str | None) -> tuple[str, Metric]:
    if name is None and len(settings.metrics) > 1:
        raise UsageError(f"the settings have several metrics, name one with --metric: {', '.join(settings.metrics)}")
    chosen = name or next(iter(settings.metrics))
    return chosen, settings.metric(chosen)


@contextmanager
def _run(session: Session, metric: str | None, select: list[str] | None) -> Iterator[Run]:
    """A run of the command's metric on its target, now."""
    import secrets

    from segwatch.core.segment import parse_selection
    from segwatch.runner import Run

    settings = session.settings()
    name, chosen = _metric(settings, metric)
    selection = parse_selection(select or [], chosen.dimensions)
    now = dt.datetime.now(dt.UTC)
    with _warehouse(session, settings) as warehouse:
        yield Run(
            f"{now:%Y%m%dT%H%M%S}_{secrets.token_hex(3)}",
            now,
            name,
            chosen,
            warehouse,
            _registry(session, settings),
            settings.predictions_table,
            session.settings_path.absolute().parent / ".segwatch" / "runs",
            session.observer(),
            selection,
        )


def _day(text: str | None, run: Run) -> np.datetime64:
    """The period that --as-of names, today's by default. Raises UsageError if it lies in the future."""
    import numpy as np

    from segwatch.core.window import parse_time, unit

    now = np.datetime64(run.now.replace(tzinfo=None), unit(run.metric.grain))
    if text is None:
        return now
    day = parse_time(text, run.metric.grain, "--as-of")
    if day > now:
        raise UsageError(f"--as-of {day} lies in the future: the last complete {run.metric.grain} ends at {now}")
    return day


def _training_window(run: Run, as_of: str | None, start: str | None) -> Window:
    from segwatch.core.window import Window, parse_time

    end = _day(as_of, run)
    if start is not None:
        return Window(parse_time(start, run.metric.grain, "--start"), end, run.metric.grain)
    span = run.warehouse.span(run.metric)
    if span is None:
        raise DataError(f"table {run.metric.table} has no rows: insert some, or name another table in the settings")
    if not span[0] < end:
        raise DataError(f"table {run.metric.table} has no rows before {end}: its first are of {span[0]}")
    return Window(span[0], end, run.metric.grain)


def _scoring_window(run: Run, as_of: str | None, start: str | None, end: str | None) -> Window:
    from segwatch.core.window import Window, parse_time

    grain = run.metric.grain
    if start is None and end is None:
        last = _day(as_of, run)
        return Window(last - 1, last, grain)
    if start is None or end is None or as_of is not None:
        raise UsageError("give either --as-of, or both --start and --end")
    return Window(parse_time(start, grain, "--start"), parse_time(end, grain, "--end"), grain)


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
) -> None:
    """Fit every segment on the periods before --as-of and register the model as champion."""
    from segwatch import runner

    with _run(context.obj, metric, select) as run:
        window = _training_window(run, as_of, start)
        if dry_run:
            context.obj.say("train would do", **runner.plan_training(run, window))
        else:
            _report_training(context.obj, runner.train(run, window))


def _report_training(session: Session, summary: Any) -> None:
    from segwatch.console import train_rows

    session.say("train", **train_rows(summary))


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
    fail_on: Annotated[bool, typer.Option("--fail-on-anomalies", help="Exit with 5 if there are anomalies.")] = False,
) -> None:
    """Score the last complete period before --as-of, or [--start, --end), with the champion."""
    from segwatch import runner

    with _run(context.obj, metric, select) as run:
        window = _scoring_window(run, as_of, start, end)
        if dry_run:
            context.obj.say("infer would do", **runner.plan_inference(run, window))
            return
        summary = runner.infer(run, window, keep_features=keep_features)
    _report_scoring(context.obj, summary, fail_on)


def _report_scoring(session: Session, summary: Any, fail_on: bool) -> None:
    from segwatch.console import infer_rows

    session.say("infer", **infer_rows(summary))
    if fail_on and summary.n_anomalies:
        raise typer.Exit(5)


@app.command("run")
def run_daily(
    context: typer.Context,
    metric: MetricOption = None,
    as_of: AsOf = None,
    fail_on: Annotated[bool, typer.Option("--fail-on-anomalies", help="Exit with 5 if there are anomalies.")] = False,
) -> None:
    """The daily job: train if there is no champion or it is too old, then score."""
    from segwatch import runner

    with _run(context.obj, metric, None) as run:
        scored = _scoring_window(run, as_of, None, None)
        why = runner.training_reason(run, scored.end)
        context.obj.say("run", trains=why or "no: the champion is young enough")
        if why:
            _report_training(context.obj, runner.train(run, _training_window(run, as_of, None)))
        summary = runner.infer(run, scored)
    _report_scoring(context.obj, summary, fail_on)


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
def report(
    context: typer.Context,
    metric: MetricOption = None,
    start: Start = None,
    end: End = None,
    output: Annotated[Path, typer.Option(help="File to write.", readable=False)] = Path("segwatch-report.html"),
) -> None:
    """Write one self-contained HTML page of the predictions; the last 90 periods by default."""
    from segwatch.report import render_report

    _check_place("--output", output)
    with _run(context.obj, metric, None) as run:
        window = _reported_window(run, start, end)
        predictions = run.warehouse.predictions(run.predictions_table, run.metric_name, window)
        page = render_report(
            predictions,
            metric=run.metric_name,
            dimensions=run.metric.dimensions,
            grain=run.metric.grain,
            model=_model_facts(run, predictions),
            generated_at=run.now,
        )
    _write_whole(output, page)
    context.obj.say("report", wrote=output.absolute())


def _reported_window(run: Run, start: str | None, end: str | None, periods: int = 90) -> Window:
    from segwatch.core.window import Window, parse_time, unit

    grain = run.metric.grain
    span = run.warehouse.prediction_span(run.predictions_table, run.metric_name)
    if span is None:
        raise DataError(f"there are no predictions of {run.metric_name}: run `segwatch infer` first")
    first, last = (moment.astype(f"datetime64[{unit(grain)}]") for moment in span)
    until = last + 1 if end is None else parse_time(end, grain, "--end")
    since = max(first, until - periods) if start is None else parse_time(start, grain, "--start")
    return Window(since, until, grain)


def _model_facts(run: Run, predictions: Any) -> Any:
    """Facts of the version that made the latest predictions; None if the registry no longer has it."""
    from segwatch.report import ModelFacts
    from segwatch.steps import model_name

    if not predictions.num_rows:
        return None
    latest = predictions.sort_by("ts").slice(predictions.num_rows - 1)
    try:
        version: ModelVersion = run.registry.resolve(model_name(run.metric_name), latest["model_version"][0].as_py())
    except ModelError:
        return None
    return ModelFacts(
        name=version.name,
        version=version.version,
        trained_start=version.parameters.get("window_start", ""),
        trained_end=version.parameters.get("window_end", ""),
        registered_at=version.created_at,
        segments_fitted=int(version.metrics.get("segments_ok", 0)),
        metrics=version.metrics,
    )


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
    settings = context.obj.settings()
    registry = _registry(context.obj, settings)
    with _warehouse(context.obj, settings) as warehouse:
        tables, models = warehouse.created_tables(), registry.created()
        for name in tables:
            typer.echo(f"table {name}")
        for name in models:
            typer.echo(f"model {name}")
        _ask("Remove all of these?", yes)
        # The warehouse last: the database file goes with it, and without one a second destroy could not finish.
        registry.destroy()
        warehouse.drop_created()
    context.obj.say("destroy", tables=len(tables), models=len(models))


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
