"""One run on one metric: its places, its identity, its clock, and the Windows that it is about."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from segwatch.core.labels import Label
from segwatch.core.segment import Selection
from segwatch.core.training import Progress
from segwatch.core.window import Window, length, parse_time, unit
from segwatch.errors import DataError, UsageError
from segwatch.labels import read_labels
from segwatch.registries import ModelRegistry, open_registry
from segwatch.settings import Metric, Settings
from segwatch.warehouses import Warehouse, open_warehouse

_REPORTED = 90


class Observer(Protocol):
    """Is told which step runs, and how far it is."""

    def step(self, name: str, total: int | None = None) -> AbstractContextManager[Progress]:
        """While the context is open the step runs; its value is called with how many more items are done."""
        ...


@dataclass(frozen=True)
class Run:
    """One run on one metric: its places, its identity and its clock.

    settings: with no other target than the run's. workspace: directory in which the run has a directory of its own.
    now: UTC. git_revision: of the working directory, empty where it is in no repository.
    """

    run_id: str
    now: dt.datetime
    metric_name: str
    metric: Metric
    warehouse: Warehouse
    registry: ModelRegistry
    settings: Settings
    workspace: Path
    observer: Observer
    selection: Selection = field(default_factory=dict)
    git_revision: str = ""


@contextmanager
def open_run(
    settings: Settings,
    target: str | None,
    metric: str,
    selection: Selection,
    workspace: Path,
    observer: Observer,
    now: dt.datetime,
    run_id: str | None = None,
    git_revision: str = "",
) -> Iterator[Run]:
    """A run on a target of the settings; its warehouse is closed at the end. run_id: by default one of its own."""
    where = settings.target(target)
    warehouse = open_warehouse(where.warehouse, where.google)
    try:
        yield Run(
            run_id or f"{now:%Y%m%dT%H%M%S}_{secrets.token_hex(3)}",
            now,
            metric,
            settings.metric(metric),
            warehouse,
            open_registry(where.registry, where.bucket, where.google, where.image),
            settings.for_target(target),
            workspace,
            observer,
            selection,
            git_revision,
        )
    finally:
        warehouse.close()


def labels_of(run: Run) -> list[Label]:
    """What stands of the metric's labels; see `read_labels`."""
    return read_labels(
        run.warehouse, run.settings.labels_table, run.settings.incidents_table, run.metric_name, run.metric
    )


def _as_of(run: Run, text: str | None) -> np.datetime64:
    """The period that --as-of names, today's by default. Raises UsageError if it lies in the future."""
    now = np.datetime64(run.now.replace(tzinfo=None), unit(run.metric.grain))
    if text is None:
        return now
    day = parse_time(text, run.metric.grain, "--as-of")
    if day > now:
        raise UsageError(f"--as-of {day} lies in the future: the last complete {run.metric.grain} ends at {now}")
    return day


def _settled(run: Run, as_of: str | None) -> np.datetime64:
    """The end of what is neither going on nor waited for: late rows of the last `settle` periods may still come."""
    return np.datetime64(_as_of(run, as_of) - length(run.metric.settle, run.metric.grain))


def training_window(run: Run, as_of: str | None = None, start: str | None = None) -> Window:
    """The settled periods before `as_of`, from `start` or the table's first on.

    Raises UsageError if a text names no period, DataError if the table has no rows there.
    """
    end = _settled(run, as_of)
    if start is not None:
        return Window(parse_time(start, run.metric.grain, "--start"), end, run.metric.grain)
    span = run.warehouse.span(run.metric)
    if span is None:
        raise DataError(f"table {run.metric.table} has no rows: insert some, or name another table in the settings")
    if not span[0] < end:
        raise DataError(f"table {run.metric.table} has no rows before {end}: its first are of {span[0]}")
    return Window(span[0], end, run.metric.grain)


def scoring_window(run: Run, as_of: str | None = None, start: str | None = None, end: str | None = None) -> Window:
    """The last settled period before `as_of` and the `rescore` periods before it, or [start, end).

    Raises UsageError if a text names no period, or the period before `end` is not over.
    """
    grain = run.metric.grain
    if start is None and end is None:
        last = _settled(run, as_of)
        return Window(last - length(1 + run.metric.rescore, grain), last, grain)
    if start is None or end is None or as_of is not None:
        raise UsageError("give either --as-of, or both --start and --end")
    until = parse_time(end, grain, "--end")
    if until > (now := _as_of(run, None)):
        # Half a day's rows would look like a drop.
        raise UsageError(f"--end {until}: the {grain} before it is not over; the last complete {grain} ends at {now}")
    return Window(parse_time(start, grain, "--start"), until, grain)


def scored_span(run: Run) -> tuple[np.datetime64, np.datetime64] | None:
    """The first and the last period that have predictions; None where none has."""
    span = run.warehouse.prediction_span(run.settings.predictions_table, run.metric_name)
    if span is None:
        return None
    first, last = (moment.astype(f"datetime64[{unit(run.metric.grain)}]") for moment in span)
    return first, last


def reporting_window(run: Run, start: str | None = None, end: str | None = None) -> Window:
    """[start, end), by default the last 90 periods that have predictions. Raises DataError where none has."""
    grain = run.metric.grain
    span = scored_span(run)
    if span is None:
        raise DataError(f"there are no predictions of {run.metric_name}: run `segwatch infer` first")
    first, last = span
    until = last + length(1, grain) if end is None else parse_time(end, grain, "--end")
    since = max(first, until - length(_REPORTED, grain)) if start is None else parse_time(start, grain, "--start")
    return Window(since, until, grain)
