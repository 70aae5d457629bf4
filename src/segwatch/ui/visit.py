"""One request to the page: what it asks, and what may be read until it is answered."""

from __future__ import annotations

import datetime as dt
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
from starlette.requests import Request

from segwatch.console import QuietObserver
from segwatch.core.segment import level
from segwatch.core.window import Window, length, parse_time, unit
from segwatch.errors import BackendError, DataError
from segwatch.registries import ModelRegistry, open_registry
from segwatch.run import Run
from segwatch.settings import Google, Metric, Settings
from segwatch.ui import words
from segwatch.ui.guard import Refused
from segwatch.warehouses import Warehouse, open_reader, open_warehouse
from segwatch.warehouses.asked import Asked, Cell

PERIODS = 42
"""Periods that charts and lists go back unless more are asked for."""
MOST_VALUES = 200
"""Values of a dimension that are offered to choose from."""
DIMENSION = "d."
"""What precedes the name of a dimension in an address, so that none is taken for another parameter."""
# Between two openings of a database file, so that a process that waits to write to it comes in.
_PAUSE_SECONDS = 0.03
# Requests that wait for one another while another process writes would add up.
_PATIENCE_SECONDS = 10.0


class Turns:
    """One reader of a database file at a time, with a pause after each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_at = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The file is this request's alone, of this process's. Raises BackendError if others have it for too long."""
        if not self._lock.acquire(timeout=_PATIENCE_SECONDS):
            raise BackendError("other requests of this page have the database: try again", retryable=True)
        try:
            time.sleep(max(0.0, self._free_at - time.monotonic()))
            yield
        finally:
            self._free_at = time.monotonic() + _PAUSE_SECONDS
            self._lock.release()


@dataclass(frozen=True)
class Project:
    """What the page is of. settings: of one target. clock: the time now, UTC."""

    settings: Settings
    clock: Callable[[], dt.datetime]
    turns: Turns = field(default_factory=Turns)
    values: dict[tuple[str, np.datetime64], Mapping[str, list[str]]] = field(default_factory=dict)

    def reading(self) -> AbstractContextManager[Warehouse]:
        """The warehouse for reading, until the request is answered: nothing is held open between requests."""
        return self._opened(open_reader)

    def writing(self) -> AbstractContextManager[Warehouse]:
        """The warehouse for an action, until the request is answered."""
        return self._opened(open_warehouse)

    @contextmanager
    def _opened(self, open_: Callable[[str, Google], Warehouse]) -> Iterator[Warehouse]:
        target = self.settings.target(None)
        with self.turns.turn() if target.warehouse.startswith("duckdb:") else nullcontext():
            warehouse = open_(target.warehouse, target.google)
            try:
                yield warehouse
            finally:
                warehouse.close()

    def registry(self) -> ModelRegistry:
        """The registry of the models."""
        target = self.settings.target(None)
        return open_registry(target.registry, target.bucket, target.google, target.image)


class Moved(Exception):
    """What is asked for is at another address of the page."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


class Done(NamedTuple):
    """What an action leads to: an address of the page, and what to say there."""

    address: str
    said: str


@dataclass(frozen=True)
class Visit:
    """A request: its metric, and the warehouse until it is answered."""

    project: Project
    request: Request
    metric_name: str
    metric: Metric
    warehouse: Warehouse
    now: dt.datetime

    @property
    def run(self) -> Run:
        """The visit as a run, which is what people act by."""
        return Run(
            f"ui_{secrets.token_hex(6)}",
            self.now,
            self.metric_name,
            self.metric,
            self.warehouse,
            self.project.registry(),
            self.project.settings,
            Path(),
            QuietObserver(),
        )

    @property
    def dimensions(self) -> tuple[str, ...]:
        return self.metric.dimensions

    def parameter(self, name: str, default: str = "") -> str:
        """A parameter of the address, without what no database takes."""
        return self.request.query_params.get(name, default).replace("\0", " ").strip()

    def choice(self, name: str, *known: str) -> str:
        """A parameter that is one of those known; the first where it is missing or none of them."""
        given = self.parameter(name, known[0])
        return given if given in known else known[0]

    def number(self, name: str, default: int, most: int = 1_000_000) -> int:
        """A parameter that is a whole number from 1 on. Raises Refused if it is none."""
        given = self.parameter(name) or str(default)
        if not given.isdecimal() or not 1 <= int(given[:10]) <= most:
            raise Refused(400, f"{name} is {given[:40]!r}: it must be a number from 1 to {most:,}.")
        return int(given)

    def period(self, name: str, default: np.datetime64) -> np.datetime64:
        """A parameter that is a day or hour. Raises UsageError if it is none."""
        given = self.parameter(name)
        if not given:
            return default
        time = parse_time(given.replace(" ", "T"), self.metric.grain, name)
        # What databases can compare.
        if not np.datetime64("1900") <= time < np.datetime64("2200"):
            raise Refused(400, f"{name} is {given[:40]!r}: it must be of the years 1900 to 2199.")
        return time

    @cached_property
    def values(self) -> dict[str, str]:
        """Wanted dimension values, by the dimension."""
        given = {name: self.request.query_params.get(DIMENSION + name, "") for name in self.dimensions}
        return {name: value.replace("\0", " ") for name, value in given.items() if value}

    @cached_property
    def span(self) -> tuple[np.datetime64, np.datetime64]:
        """First and last period that has predictions. Raises DataError where none has."""
        settings = self.project.settings
        span = self.warehouse.prediction_span(settings.predictions_table, self.metric_name)
        if span is None:
            raise DataError(f"There are no predictions of {self.metric_name} yet: run `segwatch run`.")
        first, last = (moment.astype(f"datetime64[{unit(self.metric.grain)}]") for moment in span)
        return first, last

    @property
    def last(self) -> np.datetime64:
        return self.span[1]

    def window_to(self, last: np.datetime64, periods: int) -> Window:
        """So many periods, up to and with the last."""
        grain = self.metric.grain
        return Window(last - length(periods - 1, grain), last + length(1, grain), grain)

    def asked(self, window: Window, among: Mapping[str, Cell] | None = None) -> Asked:
        """Predictions of the Window with these values by column."""
        return self.asked_among(window, {name: frozenset({value}) for name, value in (among or {}).items()})

    def asked_among(self, window: Window, among: Mapping[str, frozenset[Cell]]) -> Asked:
        """Predictions of the Window with one of the values each."""
        return Asked(self.project.settings.predictions_table, self.metric_name, window, among)

    def of_segment(self, window: Window, values: Sequence[str | None]) -> Asked:
        """Predictions of one segment or roll-up: found by its values several times sooner than by its id."""
        among: dict[str, Cell] = {
            name: value for name, value in zip(self.dimensions, values, strict=True) if value is not None
        }
        if None in values:
            among["level"] = level(self.dimensions, values)
        return self.asked(window, among)

    @cached_property
    def known_values(self) -> Mapping[str, list[str]]:
        """Values of each dimension on the last period, kept until there is a later one; none where they are many."""
        key = (self.metric_name, self.last)
        if key not in self.project.values:
            self.project.values.clear()
            self.project.values[key] = {name: self._values_of(name) for name in self.dimensions}
        return self.project.values[key]

    def _values_of(self, name: str) -> list[str]:
        rows = self.warehouse.prediction_sums(
            self.asked(self.window_to(self.last, 1), {"level": self.metric.level}), (name,), ("n_rows",)
        )
        values = sorted(value for value in rows[name].to_pylist() if value is not None)
        return values if len(values) <= MOST_VALUES else []

    def name_of(self, row: Mapping[str, Any]) -> str:
        """Name of a row's segment: `it/ios/paid`."""
        return words.named([row[name] for name in self.dimensions])

    def cause_of(self, row: Mapping[str, Any]) -> str:
        """What a row's dimension values are, for people."""
        return words.cause(self.dimensions, [row[name] for name in self.dimensions])

    def link(self, path: str, **parameters: object) -> str:
        """An address in the page, of the same metric."""
        return address(path, self._of_metric() | parameters)

    def link_to(self, path: str, values: Mapping[str, str], **parameters: object) -> str:
        """An address in the page with dimension values."""
        return self.link(path, **parameters, **{DIMENSION + name: value for name, value in values.items()})

    def here(self, **changes: object) -> str:
        """The address asked for, with other parameters."""
        given: dict[str, object] = dict(self.request.query_params)
        return address(self.request.url.path, given | changes)

    def _of_metric(self) -> dict[str, object]:
        is_said = len(self.project.settings.metrics) > 1
        return {"metric": self.metric_name} if is_said else {}


def address(path: str, parameters: Mapping[str, object]) -> str:
    """A path with those parameters that say something."""
    said = {name: str(value) for name, value in parameters.items() if value not in (None, "", False)}
    return f"{path}?{urlencode(said)}" if said else path
