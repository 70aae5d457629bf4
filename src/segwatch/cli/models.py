"""Commands of the model's versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from segwatch.cli.labels import By
from segwatch.cli.session import MetricOption, metric_of, opened_run, registry_of, user_name

if TYPE_CHECKING:
    from segwatch.registries.base import ModelRegistry


models_app = typer.Typer(no_args_is_help=True, help="The versions of the metric's model.")


def _versions(context: typer.Context, metric: str | None) -> tuple[ModelRegistry, str]:
    from segwatch.steps import model_name

    settings = context.obj.settings()
    name, _ = metric_of(settings, metric)
    return registry_of(context.obj, settings), model_name(name)


@models_app.command("list")
def models_list(context: typer.Context, metric: MetricOption = None) -> None:
    """Print the versions, newest first, with what the gate said of each."""
    registry, name = _versions(context, metric)
    versions = registry.versions(name)
    if not versions:
        typer.echo(f"{name} has no version yet: run `segwatch train`", err=True)
        return
    typer.echo("version\tregistered\ttrained on\talias\tgate")
    for version in versions:
        parameters = version.parameters
        window = f"[{parameters.get('window_start')}, {parameters.get('window_end')})"
        gate = version.tags.get("segwatch.gate", "")
        aliases = ",".join(version.aliases)
        typer.echo(f"{version.version}\t{version.created_at:%Y-%m-%d %H:%M}\t{window}\t{aliases}\t{gate}")


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
    by: By = None,
) -> None:
    """Make a version the champion."""
    from segwatch import actions

    with opened_run(context.obj, metric, None) as run:
        context.obj.say("models promote", champion=actions.promote(run, version, user_name(by)).version)


@models_app.command("rollback")
def models_rollback(context: typer.Context, metric: MetricOption = None, by: By = None) -> None:
    """Make the version that was champion before the champion again."""
    from segwatch import actions

    with opened_run(context.obj, metric, None) as run:
        context.obj.say("models rollback", champion=actions.rollback(run, user_name(by)).version)
