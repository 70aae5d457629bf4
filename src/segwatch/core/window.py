"""Time: grains and half-open Windows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from segwatch.errors import UsageError

Grain = Literal["day", "hour"]
GRAINS: tuple[Grain, ...] = get_args(Grain)
Times = npt.NDArray[np.datetime64]

_UNIT: dict[Grain, Literal["D", "h"]] = {"day": "D", "hour": "h"}
_PERIOD: dict[Grain, int] = {"day": 7, "hour": 24}
_LONG_PERIOD: dict[Grain, int] = {"day": 7, "hour": 168}


def unit(grain: Grain) -> Literal["D", "h"]:
    """The numpy datetime64 unit of a grain."""
    return _UNIT[grain]


def length(n: int, grain: Grain) -> np.timedelta64:
    """The length of n periods; numpy no longer adds a bare number to a time."""
    return np.timedelta64(n, unit(grain))


def period(grain: Grain) -> int:
    """P, the number of grain steps in one season: 7 days in a week, 24 hours in a day."""
    return _PERIOD[grain]


def long_period(grain: Grain) -> int:
    """The number of grain steps in a week."""
    return _LONG_PERIOD[grain]


@dataclass(frozen=True)
class Window:
    """Half-open span of time `[start, end)`, in steps of one grain, UTC.

    Half-open, so that adjacent Windows never score a period twice.
    Raises UsageError if it holds no period.
    """

    start: np.datetime64
    end: np.datetime64
    grain: Grain = "day"

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", self.start.astype(f"datetime64[{unit(self.grain)}]"))
        object.__setattr__(self, "end", self.end.astype(f"datetime64[{unit(self.grain)}]"))
        if not self.start < self.end:
            raise UsageError(
                f"the Window [{self.start}, {self.end}) is empty: the start is inclusive and the end exclusive,"
                f" so the end must be at least one {self.grain} after the start"
            )

    def __len__(self) -> int:
        return int((self.end - self.start).astype(np.int64))

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"

    @property
    def times(self) -> Times:
        """(n_times,) starts of the periods, ascending."""
        return np.arange(self.start, self.end)

    def before(self, n_periods: int) -> Window:
        """The same Window, begun n_periods earlier."""
        return Window(self.start - length(n_periods, self.grain), self.end, self.grain)

    def parts(self, n: int) -> Iterator[Window]:
        """About n Windows of equal length, one after the other, that together are this one."""
        step = max(1, -(-len(self) // max(1, n)))
        for start in range(0, len(self), step):
            first = self.start + length(start, self.grain)
            yield Window(first, min(first + length(step, self.grain), self.end), self.grain)

    def as_datetimes(self) -> tuple[dt.datetime, dt.datetime]:
        """Start and end as naive UTC datetimes, for drivers that bind parameters."""
        start, end = (t.astype("datetime64[us]").item() for t in (self.start, self.end))
        return start, end

    def as_dict(self) -> dict[str, str]:
        """JSON-ready form; `Window.from_dict` reads it back."""
        return {"start": str(self.start), "end": str(self.end), "grain": self.grain}

    @classmethod
    def from_dict(cls, document: dict[str, str]) -> Window:
        """Inverse of `as_dict`."""
        grain: Grain = "hour" if document["grain"] == "hour" else "day"
        return cls(np.datetime64(document["start"]), np.datetime64(document["end"]), grain)


EVER = Window(np.datetime64("1970-01-01"), np.datetime64("2200-01-01"))
"""The rows of a table, whatever their time."""


def local_times(window: Window, timezone: str) -> Times:
    """(n_times,) the Window's times by the clock of a time zone, in the unit of its grain; days have none.

    An hour that is set back comes twice, one that is set forward not at all.
    """
    if window.grain == "day" or timezone == "UTC":
        return window.times
    zone = ZoneInfo(timezone)
    moments = [moment.replace(tzinfo=dt.UTC) for moment in window.times.astype("datetime64[us]").tolist()]
    local = [moment.astimezone(zone).replace(tzinfo=None) for moment in moments]
    return np.array(local, dtype="datetime64[us]").astype(window.times.dtype)


def parse_time(text: str, grain: Grain, option: str) -> np.datetime64:
    """The period that an ISO 8601 date or time names.

    Raises UsageError naming the option if the text is no date, or is finer than the grain.
    """
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not a date: write it as YYYY-MM-DD ({error})") from error
    if moment.tzinfo is not None:
        moment = moment.astimezone(dt.UTC).replace(tzinfo=None)
    fine = np.datetime64(moment, "us")
    coarse: np.datetime64 = fine.astype(f"datetime64[{unit(grain)}]")
    if coarse != fine:
        raise UsageError(f"{option} {text!r} falls inside a {grain}: give the start of a {grain}")
    return coarse


def parse_last(text: str, grain: Grain, option: str) -> np.datetime64:
    """The last period that an ISO 8601 date or time names: of a day that is given to hours, its last hour.

    Raises UsageError as `parse_time`.
    """
    first = parse_time(text, grain, option)
    try:
        dt.date.fromisoformat(text)
    except ValueError:
        return first
    return first + np.timedelta64(1, "D") - length(1, grain)


def period_of(moment: dt.datetime, grain: Grain) -> np.datetime64:
    """Inverse of `utc_of`."""
    return np.datetime64(moment.astimezone(dt.UTC).replace(tzinfo=None), unit(grain))


def utc_of(period: np.datetime64) -> dt.datetime:
    """A period's start as a datetime with its zone."""
    moment: dt.datetime = period.astype("datetime64[us]").item()
    return moment.replace(tzinfo=dt.UTC)
