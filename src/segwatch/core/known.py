"""What a period is expected to do beyond level and profile, because something is known of it beforehand.

Two sources: a calendar (`segwatch.core.calendar`), and last year: where a group of segments stood out on the same date.
An effect is a logarithm for counts and a summand for other values. It has a part that the segments share, learned from
the occasions of the same kind or the date of last year, and the segment's own deviation from it, learned from all such
days together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segwatch.core.calendar import Days, Key
from segwatch.core.groups import Groups, GroupScales
from segwatch.core.panel import Bools, Floats, Ints

# Of what a group did on the date last year, if it stood out by so much and was no outage.
_YEARLY, _STANDS_OUT, _OUTAGE = 0.9, 1.5, 1.5
_DATES = 366
_LEAST_RATE, _MOST, _LEAST_SCALE = 0.2, 1.5, 0.005
# An effect known from one occasion is believed by half.
_PRIOR = 1.0


@dataclass
class Occasions:
    """What segments together did on the occasions of each kind: mean and number of occasions, by pool and kind."""

    means: dict[Key, tuple[float, float]] = field(default_factory=dict)

    def expected(self, key: Key) -> float:
        """The effect of an occasion: the mean of its kind, drawn to that of its pool by so much as it is unknown."""
        pool = [mean for (name, _), mean in self.means.items() if name == key[0]]
        usual = sum(mean * n for mean, n in pool) / (sum(n for _, n in pool) + _PRIOR) if pool else 0.0
        mean, n = self.means.get(key, (0.0, 0.0))
        return (n * mean + _PRIOR * usual) / (n + _PRIOR)

    def learn(self, key: Key, effect: float) -> None:
        """The mean has, in place, moved to the effect of one more occasion."""
        mean, n = self.means.get(key, (0.0, 0.0))
        self.means[key] = (mean + (effect - mean) * max(_LEAST_RATE, 1.0 / (n + 1.0)), n + 1.0)

    def as_list(self) -> list[list[str | float]]:
        """JSON-ready form; `from_list` reads it back."""
        return [[*key, *mean] for key, mean in self.means.items()]

    @classmethod
    def from_list(cls, rows: Sequence[Sequence[Any]]) -> Occasions:
        """Inverse of `as_list`."""
        return cls({(pool, kind): (mean, n) for pool, kind, mean, n in rows})


@dataclass
class Known:
    """What is known beforehand, learned as time goes on.

    yearly: (n_groups, 366), what each group did on each date of the last year where it stood out, else 0.
    """

    yearly: Floats
    occasions: Occasions

    @classmethod
    def fresh(cls, n_groups: int) -> Known:
        return cls(np.zeros((n_groups, _DATES)), Occasions())

    def shared(self, groups: Groups, days: Days | None, column: int, date: np.datetime64) -> tuple[Floats, Bools]:
        """The shared part of the segments' effects in a period, and for which of them anything is known."""
        effects = groups.spread(_YEARLY * self.yearly[:, _place(date)]).sum(axis=0)
        if days is None or not (days.codes[:, column] >= 0).any():
            return effects, effects != 0
        codes = days.at(column)
        expected = np.array([*(self.occasions.expected(key) for key in days.keys), 0.0])
        return np.where(codes >= 0, expected[codes], effects), (effects != 0) | (codes >= 0)

    def learn(
        self,
        groups: Groups,
        scales: GroupScales,
        seen: Seen,
        days: Days | None,
        column: int,
        date: np.datetime64 | None,
    ) -> None:
        """It has, in place, learned from a period. date: of the period, None where it is not to be remembered."""
        codes = np.full(len(seen.total), -1) if days is None else days.at(column)
        if date is not None:
            self._learn_date(groups, scales, seen, codes, date)
        for code in np.unique(codes[codes >= 0]):
            those = seen.total[(codes == code) & (groups.members[0] >= 0) & ~np.isnan(seen.total)]
            if days is not None and those.size:
                self.occasions.learn(days.keys[code], float(np.clip(np.median(those), -_MOST, _MOST)))

    def _learn_date(self, groups: Groups, scales: GroupScales, seen: Seen, codes: Ints, date: np.datetime64) -> None:
        at = _place(date)
        effects = _YEARLY * self.yearly[:, at] + seen.of_groups
        usual = np.maximum(np.nan_to_num(scales.scale), _LEAST_SCALE)
        stands_out = (np.abs(effects) >= _STANDS_OUT * usual) & ~np.isnan(scales.scale)
        # A moving feast is the calendar's; an outage does not come back.
        in_calendar = np.zeros(len(effects), dtype=bool)
        in_calendar[np.unique(groups.members[:, codes >= 0])] = True
        self.yearly[:, at] = np.where(stands_out & ~in_calendar & (effects > -_OUTAGE), effects, 0.0)


@dataclass(frozen=True)
class Seen:
    """What a period was. total: (n_segments,) effects as they turned out, without the segments' own deviations, NaN
    where there was no value. of_groups: (n_groups,), what groups did beyond what was expected of them."""

    total: Floats
    of_groups: Floats


def _place(date: np.datetime64) -> int:
    """Place of a date in a year of 366 days."""
    day = date.astype("datetime64[D]").item()
    return int(day.replace(year=2024).timetuple().tm_yday) - 1
