"""The command that tells of incidents."""

from __future__ import annotations

from typing import Annotated

import typer

from segwatch.cli.session import MetricOption, Session, opened_run, printable


def notify(
    context: typer.Context,
    metric: MetricOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would go where; send nothing.")] = False,
    test: Annotated[str | None, typer.Option("--test", help="Send a message that is a test to this channel.")] = None,
) -> None:
    """Send the alerts that are due and were not sent, of all metrics or one; `infer` does so by itself."""
    session: Session = context.obj
    settings = session.settings()
    metrics = [metric] if metric else list(settings.metrics)
    if test is not None:
        from segwatch.alerts import try_channel

        with opened_run(session, metrics[0], None) as run:
            try_channel(run, test)
        session.say("notify", sent=f"a test to {test}")
        return
    failed = 0
    for name in metrics:
        failed += _planned(session, name) if dry_run else _sent(session, name)
    if failed:
        raise typer.Exit(4)


def _planned(session: Session, metric: str) -> int:
    from segwatch.alerts import planned

    with opened_run(session, metric, None) as run:
        found = planned(run)
    for message in found:
        typer.echo(f"to {message.channel}, by {message.rule}: {printable(message.title)}")
        for line in message.body.splitlines():
            typer.echo(f"    {printable(line)}")
    if not found:
        typer.echo(f"nothing is to be told of {metric}", err=True)
    return 0


def _sent(session: Session, metric: str) -> int:
    """How many were not delivered."""
    from segwatch.alerts import notify
    from segwatch.console import notify_rows

    with opened_run(session, metric, None) as run:
        summary = notify(run)
    session.say(f"notify {metric}", **(notify_rows(summary) or {"alerts": "nothing is to be told"}))
    return len(summary.failed)
