"""Days that something is known of beforehand: public holidays, and the user's own campaigns and outages."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segwatch.core.panel import Bools, Ints, Panel, Segments
from segwatch.core.segment import Values
from segwatch.core.window import Window

_LIEU = " (observed)"


@dataclass(frozen=True)
class Occasion:
    """Days [first, last] on which something happens to the segments that have these values (all of them if empty).

    kind: what happens; occasions of one kind and one pool are expected to do what the ones before did. is_masked: they
    are left out, neither learned from nor scored.
    """

    first: dt.date
    last: dt.date
    kind: str
    pool: str = ""
    where: Mapping[str, str] | None = None
    is_masked: bool = False

    def concerns(self, dimensions: Sequence[str], values: Values) -> bool:
        """Whether it happens to a segment; to a roll-up only where all that it sums have the values."""
        named = dict(zip(dimensions, values, strict=True))
        return all(named.get(name) == value for name, value in (self.where or {}).items())


Key = tuple[str, str]
"""Pool and kind of an occasion."""


@dataclass(frozen=True)
class Days:
    """A calendar laid out over segments and a Window.

    profile: (n_segments,), which row of the others is a segment's. codes: (n_profiles, n_times), position in `keys` of
    what is known of the period, or -1. is_masked: (n_profiles, n_times).
    """

    keys: tuple[Key, ...]
    profile: Ints
    codes: npt.NDArray[np.int64]
    is_masked: Bools

    def at(self, column: int) -> Ints:
        """(n_segments,) codes of a period."""
        return np.asarray(self.codes[self.profile, column])

    def masked(self, periods: slice = slice(None)) -> Bools:
        """(n_segments, n_periods)."""
        return np.asarray(self.is_masked[:, periods][self.profile])

    def mask(self, panel: Panel) -> None:
        """What is masked is, in place, no longer observed."""
        for column in np.flatnonzero(self.is_masked.any(axis=0)):
            panel.forget((self.is_masked[self.profile, column], column))


def lay_out(occasions: Iterable[Occasion], segments: Segments, window: Window) -> Days | None:
    """The occasions that concern the segments in the Window; None where there is none. Of several on one day the last
    counts."""
    dates = window.times.astype("datetime64[D]")
    days = [(one, _within(one, dates)) for one in occasions]
    days = [(one, at) for one, at in days if at.any()]
    if not days:
        return None
    patterns: dict[tuple[bool, ...], int] = {}
    # Few distinct sets of values decide what concerns a segment.
    relevant = {name for one, _ in days for name in (one.where or {})}
    positions = [d for d, name in enumerate(segments.dimensions) if name in relevant]
    known: dict[Values, int] = {}
    profile = np.empty(len(segments), dtype=np.int64)
    for i, values in enumerate(segments.values):
        part = tuple(values[d] for d in positions)
        if part not in known:
            concerned = tuple(one.concerns(segments.dimensions, values) for one, _ in days)
            known[part] = patterns.setdefault(concerned, len(patterns))
        profile[i] = known[part]
    keys = tuple(dict.fromkeys((one.pool, one.kind) for one, _ in days if not one.is_masked))
    codes = np.full((len(patterns), len(dates)), -1, dtype=np.int64)
    masked = np.zeros(codes.shape, dtype=bool)
    for concerned, row in patterns.items():
        for (one, at), is_concerned in zip(days, concerned, strict=True):
            if is_concerned and one.is_masked:
                masked[row] |= at
            elif is_concerned:
                codes[row, at] = keys.index((one.pool, one.kind))
    return Days(keys, profile, codes, masked)


def _within(one: Occasion, dates: npt.NDArray[np.datetime64]) -> Bools:
    return np.asarray((dates >= np.datetime64(one.first)) & (dates <= np.datetime64(one.last)))


def holidays_of(dimension: str, countries: Mapping[str, str], window: Window) -> tuple[list[Occasion], list[str]]:
    """Public holidays of the countries by dimension value, and the values whose country is not known.

    countries: value to ISO 3166 code, with a subdivision after a dash: DE-BY. Days in lieu are of the kind of the
    holiday that they stand for.
    """
    import holidays  # a tenth of a second to import, for those who ask for it

    first, last = window.as_datetimes()
    years = range(first.year, last.year + 1)
    found: list[Occasion] = []
    unknown: list[str] = []
    for value, code in sorted(countries.items()):
        country, _, subdivision = code.upper().partition("-")
        try:
            dates = holidays.country_holidays(country, subdiv=subdivision or None, years=years)
        except NotImplementedError:
            unknown.append(value)
            continue
        found += [
            Occasion(day, day, name.replace(_LIEU, ""), country, {dimension: value})
            for day, name in sorted(dates.items())
        ]
    return found, unknown
