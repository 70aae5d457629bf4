"""Commands of the pipelines on KFP and Vertex AI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segwatch.cli.session import MetricOption, Pipeline, metric_of, vertex_of

if TYPE_CHECKING:
    from segwatch.pipelines.vertex import VertexPipelines


schedule_app = typer.Typer(no_args_is_help=True, help="When Vertex AI runs the pipelines by itself.")


def compile_(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path("pipelines"),
    upload: Annotated[bool, typer.Option("--upload", help="Write to the target's bucket instead.")] = False,
    metric: MetricOption = None,
) -> None:
    """Write both pipelines as KFP YAML, with the settings of --target as their default parameters."""
    from segwatch.pipelines.launch import compile_pipelines, upload_pipelines

    settings = context.obj.settings().for_target(context.obj.target)
    name, _ = metric_of(settings, metric)
    wrote = [upload_pipelines(settings, name)] if upload else compile_pipelines(settings, name, output)
    context.obj.say("compile", wrote=", ".join(str(place) for place in wrote))


def _pipelines(context: typer.Context, metric: str | None) -> tuple[VertexPipelines, str]:
    settings = context.obj.settings().for_target(context.obj.target)
    name, _ = metric_of(settings, metric)
    return vertex_of(settings), name


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
