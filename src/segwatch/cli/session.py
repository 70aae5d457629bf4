"""What the commands share: their common options, and how they come by settings, warehouse and registry."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segwatch.errors import UsageError, disk_error

if TYPE_CHECKING:
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
FailOn = Annotated[
    str | None,
    typer.Option(help="Exit with 5 where an incident is new or worse: any, or impact=N for one of N or more."),
]
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


@contextmanager
def opened_warehouse(session: Session, settings: Settings) -> Iterator[Warehouse]:
    from segwatch.warehouses import open_warehouse

    target = settings.target(session.target)
    warehouse = open_warehouse(target.warehouse, target.google)
    try:
        yield warehouse
    finally:
        warehouse.close()


def registry_of(session: Session, settings: Settings) -> ModelRegistry:
    from segwatch.registries import open_registry

    target = settings.target(session.target)
    return open_registry(target.registry, target.bucket, target.google, target.image)


def metric_of(settings: Settings, name: str | None) -> tuple[str, Metric]:
    if name is None and len(settings.metrics) > 1:
        raise UsageError(f"the settings have several metrics, name one with --metric: {', '.join(settings.metrics)}")
    chosen = name or next(iter(settings.metrics))
    return chosen, settings.metric(chosen)


@contextmanager
def opened_run(session: Session, metric: str | None, select: list[str] | None) -> Iterator[Run]:
    """A run of the command's metric on its target, now."""
    from segwatch.core.segment import parse_selection
    from segwatch.run import open_run

    settings = session.settings()
    name, chosen = metric_of(settings, metric)
    with open_run(
        settings,
        session.target,
        name,
        parse_selection(select or [], chosen.dimensions),
        session.workspace,
        session.observer(),
        dt.datetime.now(dt.UTC),
        git_revision=git_revision(),
    ) as run:
        yield run


def user_name(given: str | None) -> str:
    """Who acts: who is named, or the user of this machine."""
    import getpass

    if given is not None:
        return given
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise UsageError("this machine does not say who you are: name yourself with --by") from error


def git_revision() -> str:
    """The commit that the working directory is at; empty where it is in no repository."""
    import subprocess

    try:
        asked = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def vertex_of(settings: Settings) -> VertexPipelines:
    from segwatch.pipelines.vertex import VertexPipelines

    return VertexPipelines(settings)


def parse_fail_on(text: str | None) -> float:
    """The least impact that --fail-on exits for: 0 for any, infinity without it."""
    if text is None:
        return math.inf
    name, is_given, number = text.partition("=")
    try:
        least = float(number) if is_given else 0.0
    except ValueError:
        least = math.nan
    if name != ("impact" if is_given else "any") or not 0 <= least < math.inf:
        raise UsageError(f"--fail-on {text!r}: write any, or impact=N with a number of the metric's unit")
    return least


def ask(question: str, yes: bool) -> None:
    """Nothing happens if the answer is yes. Raises UsageError if it is no, or if there is nobody to answer."""
    try:
        if yes or typer.confirm(question, err=True):
            return
    except typer.Abort:
        # The question's line is still open.
        typer.echo(err=True)
    raise UsageError("nothing was removed: answer y, or give --yes")


def printable(text: str) -> str:
    """The text on one line, whatever the values of the data in it hold."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def check_place(option: str, path: Path) -> None:
    """Nothing happens if a file can be at the path. Raises UsageError if not."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}: make it, or name another file")


def write_whole(path: Path, text: str) -> None:
    """The file holds the text, or what it held before."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise disk_error(error, str(path)) from error
