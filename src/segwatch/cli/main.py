"""The commands together, and how their errors end."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from segwatch import __version__
from segwatch.cli import alerts, data, jobs, labels, models, page, pipelines, project
from segwatch.cli.session import LogFormat, Session, printable
from segwatch.errors import SegwatchError, disk_error

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One One-Class SVM per segment of a metric, trained and scored warehouse to warehouse.",
)


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


for _command, _name in (
    (project.init, "init"),
    (project.create, "create"),
    (jobs.train, "train"),
    (jobs.infer, "infer"),
    (jobs.run_daily, "run"),
    (jobs.evaluate, "evaluate"),
    (jobs.backtest, "backtest"),
    (pipelines.compile_, "compile"),
    (project.serve, "serve"),
    (page.ui, "ui"),
    (project.doctor, "doctor"),
    (project.incidents, "incidents"),
    (alerts.notify, "notify"),
    (labels.label, "label"),
    (labels.snooze, "snooze"),
    (project.explain, "explain"),
    (project.report, "report"),
    (project.destroy, "destroy"),
):
    app.command(_name)(_command)
app.add_typer(data.data_app, name="data")
app.add_typer(labels.labels_app, name="labels")
app.add_typer(models.models_app, name="models")
app.add_typer(pipelines.schedule_app, name="schedule")


@contextmanager
def interruptible() -> Iterator[None]:
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
    # Arrow's own allocators keep what is freed for a while, which many steps after each other would add up.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        with interruptible():
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
        typer.echo(f"error: {printable(str(error))}", err=True)
    sys.exit(error.exit_code)
