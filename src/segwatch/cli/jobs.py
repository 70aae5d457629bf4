"""Commands that train, score and look back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from segwatch.cli.session import (
    AsOf,
    DryRun,
    End,
    FailOn,
    MetricOption,
    Runner,
    RunnerOption,
    Select,
    Session,
    Start,
    Wait,
    check_place,
    git_revision,
    metric_of,
    opened_run,
    parse_fail_on,
    write_whole,
)
from segwatch.errors import UsageError


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
        with opened_run(context.obj, metric, select) as run:
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

    with opened_run(session, metric, select) as run:
        summary = train(run, training_window(run, as_of, start), force=force)
    session.say("train", **train_rows(summary))


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
        check_place("--output", output)
    with opened_run(context.obj, metric, select) as run:
        summary = runner.evaluate(run, training_window(run, as_of, start))
    if output is not None:
        write_whole(output, _csv(evaluate_table(summary)))
    context.obj.say("evaluate", **evaluate_rows(summary))


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

    sessions = [replace(context.obj, settings_path=path) for path in (context.obj.settings_path, against) if path]
    weeks = {}
    for session in sessions:
        with opened_run(session, metric, select) as run:
            weeks[str(session.settings_path)] = runner.backtest(run, scoring_window(run, None, start, end), every)
    context.obj.say("backtest", **backtest_rows(weeks))
    for session in sessions:
        with opened_run(session, metric, select) as run:
            found = weeks[str(session.settings_path)]
            if not runner.keep_backtest(run, found, every, session.settings_path.name):
                table = run.settings.backtests_table
                typer.echo(f"not kept, as there is no table {table!r}: `segwatch create` makes it", err=True)


def _csv(rows: list[dict[str, object]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def infer(
    context: typer.Context,
    metric: MetricOption = None,
    as_of: AsOf = None,
    start: Start = None,
    end: End = None,
    select: Select = None,
    dry_run: DryRun = False,
    keep_features: Annotated[bool, typer.Option(help="Keep the temporary feature table for a day.")] = False,
    fail_on: FailOn = None,
    runner: RunnerOption = None,
    wait: Wait = False,
) -> None:
    """Score the last complete period before --as-of, or [--start, --end), with the champion."""
    from segwatch.run import scoring_window
    from segwatch.runner import plan_inference

    if dry_run:
        with opened_run(context.obj, metric, select) as run:
            context.obj.say("infer would do", **plan_inference(run, scoring_window(run, as_of, start, end)))
    else:
        least = parse_fail_on(fail_on)
        _infer(context.obj, runner, metric, select, as_of, start, end, keep_features, least, wait)


def _infer(
    session: Session,
    runner: Runner | None,
    metric: str | None,
    select: list[str] | None = None,
    as_of: str | None = None,
    start: str | None = None,
    end: str | None = None,
    keep_features: bool = False,
    fail_on: float = math.inf,
    wait: bool = False,
) -> None:
    where = _runner(session, runner)
    if where is Runner.local:
        from segwatch.console import infer_rows
        from segwatch.run import scoring_window
        from segwatch.runner import infer

        with opened_run(session, metric, select) as run:
            done = infer(run, scoring_window(run, as_of, start, end), keep_features=keep_features)
        session.say("infer", **infer_rows(done))
        news = done.news
    else:
        if keep_features:
            raise UsageError("--keep-features needs --runner local: a pipeline drops its temporary table in any case")
        if fail_on < math.inf and where is Runner.vertex:
            raise UsageError("--fail-on needs --runner local or kfp-local: a job on Vertex AI does not say")
        news = _launch(session, where, "infer", metric, select, wait, as_of=as_of, start=start, end=end)
    if news is not None and news >= fail_on:
        raise typer.Exit(5)


def run_daily(
    context: typer.Context,
    metric: MetricOption = None,
    as_of: AsOf = None,
    fail_on: FailOn = None,
    runner: RunnerOption = None,
) -> None:
    """The daily job: train if there is no champion or it is too old, then score."""
    least = parse_fail_on(fail_on)
    from segwatch.run import scoring_window
    from segwatch.runner import training_reason

    with opened_run(context.obj, metric, None) as run:
        why = training_reason(run, scoring_window(run, as_of).end)
    context.obj.say("run", trains=why or "no: the champion is young enough")
    if why:
        _train(context.obj, runner, metric, as_of=as_of, wait=True)
    _infer(context.obj, runner, metric, as_of=as_of, fail_on=least, wait=True)


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
) -> float | None:
    """A pipeline ran on this machine, or was handed to Vertex AI; the `InferSummary.news` that it told of."""
    import secrets

    from segwatch.core.segment import parse_selection

    settings = session.settings().for_target(session.target)
    name, chosen = metric_of(settings, metric)
    parse_selection(select or [], chosen.dimensions)
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    if pipeline == "train":
        given["git_revision"] = git_revision()
    if where is Runner.vertex:
        from segwatch.pipelines.vertex import VertexPipelines

        pipelines = VertexPipelines(settings)
        job = pipelines.submit(pipeline, name, select=select or [], **given)
        session.say(pipeline, job=job.name, console=job.console)
        if wait:
            pipelines.wait(job, session.tell)
        return None
    from segwatch.pipelines.launch import run_locally

    root = session.workspace / f"{pipeline}_{secrets.token_hex(6)}"
    summary = run_locally(pipeline, settings, name, root, session.tell, select=select or [], **given)
    session.say(pipeline, **summary[pipeline])
    news: float | None = summary.get("news")
    return news
