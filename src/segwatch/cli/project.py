"""Commands that set up, look at, serve and remove what there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segwatch.cli.data import is_generated, labels_table
from segwatch.cli.session import (
    End,
    LogFormat,
    MetricOption,
    Session,
    Start,
    Yes,
    ask,
    check_place,
    metric_of,
    opened_run,
    opened_warehouse,
    printable,
    registry_of,
    vertex_of,
    write_whole,
)
from segwatch.errors import UsageError

if TYPE_CHECKING:
    from segwatch.core.bundle import ModelBundle
    from segwatch.settings import Settings, Target

_FILE = "duckdb:///"


def init(
    context: typer.Context, force: Annotated[bool, typer.Option(help="Replace an existing file.")] = False
) -> None:
    """Write a commented settings file for the generated metric."""
    from segwatch.settings import TEMPLATE

    path = context.obj.settings_path
    check_place("--settings", path)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already: edit it, or write it anew with --force")
    write_whole(path, TEMPLATE)
    context.obj.say("init", wrote=path)


def create(context: typer.Context) -> None:
    """Make the tables and the model registry; what is there already stays."""
    from segwatch.data import (
        audit_schema,
        backtests_schema,
        deliveries_schema,
        incident_labels_schema,
        labels_schema,
        metric_schema,
    )
    from segwatch.detectability import detectability_table
    from segwatch.incidents import incidents_table
    from segwatch.steps import predictions_table

    settings = context.obj.settings()
    with opened_warehouse(context.obj, settings) as warehouse:
        # First, because making a table is what makes a new database file.
        tables = (
            (settings.predictions_table, predictions_table(settings.dimensions)),
            (settings.incidents_table, incidents_table(settings.dimensions)),
            (settings.detectability_table, detectability_table(settings.dimensions)),
            (settings.labels_table, incident_labels_schema()),
            (settings.deliveries_table, deliveries_schema()),
            (settings.audit_table, audit_schema()),
            (settings.backtests_table, backtests_schema()),
        )
        made = [name for name, schema in tables if warehouse.create_table(name, schema)]
        for metric in settings.metrics.values():
            if warehouse.table_schema(metric.table) is None:
                made += [metric.table] * warehouse.create_table(metric.table, metric_schema(metric))
                if is_generated(metric):
                    made += [labels_table(metric)] * warehouse.create_table(labels_table(metric), labels_schema())
    registry_of(context.obj, settings).create()
    context.obj.say("create", made=", ".join(made) or "nothing: the tables were there")


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
    name, _ = metric_of(settings, metric)
    registry = registry_of(session, settings)

    def registered(to: Path) -> ModelBundle:
        return ModelBundle.open(registry.download(registry.resolve(model_name(name), model or CHAMPION), to))

    return registered


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

    check_place("--output", output)
    with opened_run(context.obj, metric, None) as run:
        page = runner.report(run, reporting_window(run, start, end))
    write_whole(output, page)
    context.obj.say("report", wrote=output.absolute())


def incidents(
    context: typer.Context,
    metric: MetricOption = None,
    start: Start = None,
    end: End = None,
    open_: Annotated[bool, typer.Option("--open", help="Only those that are not resolved.")] = False,
) -> None:
    """Print what broke in the last 90 periods, open incidents first: a line each, JSON with --log-format json."""
    from segwatch import runner
    from segwatch.console import incident_facts
    from segwatch.run import reporting_window

    with opened_run(context.obj, metric, None) as run:
        found = runner.incidents(run, reporting_window(run, start, end))
    found = [one for one in found if not open_ or one.status != "resolved"]
    for one in found:
        facts = incident_facts(one)
        if context.obj.log_format is LogFormat.json:
            typer.echo(json.dumps(facts, ensure_ascii=False))
        else:
            typer.echo("\t".join(str(facts[name]) for name in ("id", "first_seen", "last_seen", "said")))
    if not found:
        typer.echo("no open incident" if open_ else "no incident", err=True)


def explain(
    context: typer.Context,
    segment: Annotated[str, typer.Argument(help="it/ios/paid, a roll-up it/*/*, total, or a segment_id.")],
    at: Annotated[str, typer.Option("--at", help="The day, YYYY-MM-DD, or hour that is explained.")],
    metric: MetricOption = None,
    similar: Annotated[
        int, typer.Option(min=0, help="Similar days to name; 0: none, and the training's rows are not read again.")
    ] = 3,
) -> None:
    """Say why a segment alerted on a day or did not, what its score is made of, and what was around it."""
    from segwatch import runner
    from segwatch.console import explanation_facts
    from segwatch.core.words import sentences

    with opened_run(context.obj, metric, None) as run:
        told = runner.explain(run, segment, at, similar)
    if context.obj.log_format is LogFormat.json:
        typer.echo(json.dumps(explanation_facts(told), ensure_ascii=False))
    else:
        typer.echo("\n".join(map(printable, sentences(told))))


def destroy(context: typer.Context, yes: Yes = False) -> None:
    """List what segwatch made, ask, and remove only that."""
    from segwatch.pipelines.launch import remove_pipelines, uploaded_pipelines

    settings = context.obj.settings().for_target(context.obj.target)
    registry, schedules = registry_of(context.obj, settings), _schedules(settings)
    lost = _lost_database(settings.target(None))
    with opened_warehouse(context.obj, settings) as warehouse:
        made = {
            "table": [] if lost else warehouse.created_tables(),
            "model": registry.created(),
            "compiled pipelines": uploaded_pipelines(settings.target(None)),
            "schedule": [f"{pipeline} of {metric}" for pipeline, metric in schedules],
        }
        for kind, names in made.items():
            for name in names:
                typer.echo(f"{kind} {name}")
        if lost:
            typer.echo(f"there is no database {lost}, so no table is removed", err=True)
        ask("Remove all of these?", yes)
        for pipeline, metric in schedules:
            vertex_of(settings).unschedule(pipeline, metric)
        remove_pipelines(settings.target(None), made["compiled pipelines"])
        # The warehouse last: the database file goes with it, and without one a second destroy could not finish.
        registry.destroy()
        if not lost:
            warehouse.drop_created()
    context.obj.say("destroy", removed=", ".join(f"{len(names)} {kind}" for kind, names in made.items()))


def _lost_database(target: Target) -> Path | None:
    """The target's database where that is a file that is not there, as after somebody removed it by hand."""
    path = Path(target.warehouse.removeprefix(_FILE))
    return path if target.warehouse.startswith(_FILE) and not path.exists() else None


def _schedules(settings: Settings) -> list[tuple[str, str]]:
    """Pipeline and metric of each schedule on Vertex AI."""
    if settings.target(None).runner != "vertex":
        return []
    pipelines = vertex_of(settings)
    return [(one.pipeline, one.metric) for metric in settings.metrics for one in pipelines.schedules(metric)]
