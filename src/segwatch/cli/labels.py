"""Commands by which people say what an incident was, and look at who said what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from segwatch.cli.session import LogFormat, MetricOption, Session, opened_run, printable, user_name

By = Annotated[str | None, typer.Option("--by", help="Who says it; default: the user of this machine.")]
Note = Annotated[str, typer.Option("--note", help="What to remember of it.")]
Id = Annotated[str, typer.Argument(metavar="INCIDENT", help="Id of the incident, or how it begins.")]

labels_app = typer.Typer(no_args_is_help=True, help="What people said of incidents and of days.")


def label(
    context: typer.Context,
    incident: Id,
    said: Annotated[
        str,
        typer.Argument(
            metavar="LABEL",
            help="true: an anomaly; false: none; expected: a campaign, say; new-normal: it stays so; none: take it"
            " back.",
        ),
    ],
    by: By = None,
    note: Note = "",
    until: Annotated[str | None, typer.Option(help="Of what is expected, its last period.")] = None,
    metric: MetricOption = None,
) -> None:
    """Say what an incident was; the next train and infer act on it."""
    from segwatch import actions
    from segwatch.labels import parse_said

    wanted = parse_said(said)
    with opened_run(context.obj, metric, None) as run:
        if wanted == "none":
            done = actions.take_back(run, incident, user_name(by), note)
        else:
            done = actions.label_incident(run, incident, wanted, user_name(by), note, until)
    _say(context.obj, "label", done)


def snooze(
    context: typer.Context,
    incident: Id,
    until: Annotated[str, typer.Option(help="Last period that is not told of.")],
    by: By = None,
    note: Note = "",
    metric: MetricOption = None,
) -> None:
    """Send no alerts of an incident until a period is over."""
    from segwatch import actions

    with opened_run(context.obj, metric, None) as run:
        done = actions.label_incident(run, incident, "snooze", user_name(by), note, until)
    _say(context.obj, "snooze", done)


def _say(session: Session, title: str, done: Any) -> None:
    from segwatch.labels import label_facts

    session.say(title, **{name: value for name, value in label_facts(done).items() if value})


@labels_app.command("list")
def labels_list(context: typer.Context, metric: MetricOption = None) -> None:
    """Print the labels that stand, the latest first: a line each, JSON with --log-format json."""
    from segwatch.labels import label_facts
    from segwatch.run import labels_of

    with opened_run(context.obj, metric, None) as run:
        found = labels_of(run)
    for one in reversed(found):
        facts = label_facts(one)
        if context.obj.log_format is LogFormat.json:
            typer.echo(json.dumps(facts, ensure_ascii=False))
        else:
            names = ("id", "label", "cause", "first", "last", "author", "note")
            typer.echo("\t".join(printable(str(facts[name])) for name in names))
    if not found:
        typer.echo("no label", err=True)


@labels_app.command("import")
def labels_import(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="CSV file: first_day, label, and last_day, note, dimensions.", readable=False)
    ],
    by: By = None,
    metric: MetricOption = None,
) -> None:
    """Tell of past events: outages (true), campaigns (expected), shifts (new-normal)."""
    from segwatch import actions

    with opened_run(context.obj, metric, None) as run:
        new = actions.import_events(run, file, user_name(by))
        unknown = actions.unknown_values(run, new)
    if unknown:
        typer.echo(
            f"no segment has {', '.join(map(printable, unknown))} now: mend the file if that is a slip", err=True
        )
    context.obj.say("labels import", new=len(new))


@labels_app.command("audit")
def labels_audit(context: typer.Context, metric: MetricOption = None) -> None:
    """Print who labelled, snoozed and promoted, the latest first: a line each, JSON with --log-format json."""
    from segwatch.audit import audit_of

    with opened_run(context.obj, metric, None) as run:
        rows = audit_of(run.warehouse, run.settings.audit_table, run.metric_name).to_pylist()
    for row in rows:
        facts = {**row, "ts": row["ts"].isoformat(timespec="seconds")}
        if context.obj.log_format is LogFormat.json:
            typer.echo(json.dumps(facts, ensure_ascii=False))
        else:
            names = ("ts", "author", "action", "subject", "detail")
            typer.echo("\t".join(printable(str(facts[name])) for name in names))
    if not rows:
        typer.echo("nothing was done yet", err=True)
