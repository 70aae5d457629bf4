"""Metrics that are no counts, with labels: rates of conversion, and balances that may be negative.

Of every five segments four have one event in the scored days: a day or three of a lower or higher value, or a level
that stays other for a week or two, after which the rest is not judged.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from quality_data import END, NOT_JUDGED, ORDINARY, SCORED, SEED, Case

from segwatch.core.panel import Floats, History, Ints, Panel, Segments
from segwatch.core.window import Window, length

_KINDS = ("drop", "rise", "level_shift", "flat_line", None)
_DIMENSIONS = ("channel", "product")


def conversions(segments: int = 100, days: int = 1000, seed: int = SEED) -> Case:
    """Orders of visits: binomial, of 1 to 20 of 100 of 100 to 30,000 visits a day, around a rate with a weekly pattern.

    The rate's logarithm has noise of 0.03 to 0.1, half of whose variance has a memory of days. The visits of every
    third segment halve or double for good in the scored days: that is no event of the rate. An event is of 4 to 9
    standard deviations of a day, at least a tenth of the rate; at most 95 of 100 of it are lost.
    """
    rng = np.random.default_rng(seed)
    week = np.exp(rng.normal(0.0, 0.08, (segments, 7)))[:, _weekdays(days)]
    visits = np.exp(rng.uniform(np.log(100.0), np.log(30_000.0), (segments, 1))) * week[::-1]
    visits = visits * np.exp(0.1 * rng.normal(size=(segments, days)))
    start = days - SCORED + int(rng.integers(5, 20))
    visits[::3, start:] *= rng.choice([0.5, 2.0], size=(len(visits[::3]), 1))
    visits = np.maximum(1.0, np.rint(visits))
    noise = rng.uniform(0.03, 0.1, (segments, 1))
    rate = (
        np.exp(rng.uniform(np.log(0.01), np.log(0.2), (segments, 1))) * week * np.exp(noise * _remembering(rng, week))
    )
    rate = np.minimum(rate, 0.9)
    sd = np.sqrt(noise**2 + 1.0 / np.median(visits * rate, axis=1, keepdims=True))
    events, kinds = _plant(rng, segments)
    for number, kind in enumerate(kinds):
        row, columns = _cells(events, number, days)
        size = max(0.1, float(rng.uniform(4.0, 9.0) * sd[row, 0]))
        up = kind == "rise" or (kind == "level_shift" and rng.random() < 0.5)
        if kind == "flat_line":
            # A feed that stands still: the day before, again and again.
            rate[row, columns], visits[row, columns] = np.nan, visits[row, columns[0] - 1]
        else:
            rate[row, columns] = np.minimum(rate[row, columns] * (1.0 + size if up else max(0.05, 1.0 - size)), 0.95)
    orders = rng.binomial(visits.astype(int), np.nan_to_num(rate)).astype(float)
    for row, column in np.argwhere(np.isnan(rate)).tolist():
        orders[row, column] = orders[row, column - 1]
    return Case("conversion rates", _panel(orders, visits), events, tuple(kinds), kind="ratio")


def balances(segments: int = 100, days: int = 1000, seed: int = SEED) -> Case:
    """Sums that may be negative, as payments less refunds: a level within 3 standard deviations of zero, a week's
    pattern of one, noise with Student's t of 6 degrees of freedom, a third of whose variance has a memory of days.

    An event is of 4 to 9 standard deviations. Units differ between segments by up to a thousand times.
    """
    rng = np.random.default_rng(seed)
    unit = np.exp(rng.uniform(0.0, np.log(1000.0), (segments, 1)))
    level = rng.uniform(-3.0, 3.0, (segments, 1)) + rng.normal(0.0, 1.0, (segments, 7))[:, _weekdays(days)]
    tails = rng.standard_t(6, (segments, days)) / np.sqrt(1.5)
    values = level + np.sqrt(2.0 / 3.0) * tails + np.sqrt(1.0 / 3.0) * _remembering(rng, level, 0.0)
    events, kinds = _plant(rng, segments)
    for number, kind in enumerate(kinds):
        row, columns = _cells(events, number, days)
        size = rng.uniform(4.0, 9.0)
        up = kind == "rise" or (kind == "level_shift" and rng.random() < 0.5)
        values[row, columns] = (
            values[row, columns[0] - 1] if kind == "flat_line" else values[row, columns] + (size if up else -size)
        )
    return Case("balances", _panel(np.round(unit * values, 2)), events, tuple(kinds), kind="value")


def _weekdays(days: int) -> Ints:
    return np.arange(days) % 7


def _remembering(rng: np.random.Generator, like: Floats, own: float = 0.5) -> Floats:
    """Normal noise of variance 1, `own` of which is each day's own and the rest remembers 0.7 of the day before."""
    memory = rng.normal(size=like.shape)
    for day in range(1, like.shape[1]):
        memory[:, day] = 0.7 * memory[:, day - 1] + np.sqrt(1.0 - 0.7**2) * memory[:, day]
    return np.asarray(np.sqrt(own) * rng.normal(size=like.shape) + np.sqrt(1.0 - own) * memory)


def _plant(rng: np.random.Generator, segments: int) -> tuple[Ints, list[str]]:
    """Where the events lie in the scored days, and their kinds."""
    events = np.full((segments, SCORED), ORDINARY)
    kinds: list[str] = []
    for row in range(segments):
        kind = _KINDS[row % len(_KINDS)]
        if kind is None:
            continue
        long = {"level_shift": 7, "flat_line": int(rng.integers(4, 11))}.get(kind, int(rng.integers(1, 4)))
        start = int(rng.integers(3, SCORED - 21))
        if kind == "level_shift":
            events[row, start:] = NOT_JUDGED
        events[row, start : start + long] = len(kinds)
        kinds.append(kind)
    return events, kinds


def _cells(events: Ints, number: int, days: int) -> tuple[int, Ints]:
    """Row and columns of the whole series that an event changes; a level that shifts stays so to the end."""
    row, columns = np.nonzero(events == number)
    stays = (events[row[0], columns[-1] + 1 :] == NOT_JUDGED).any()
    last = events.shape[1] - 1 if stays else columns[-1]
    return int(row[0]), np.arange(columns[0], last + 1) + days - events.shape[1]


def _panel(values: Floats, exposure: Floats | None = None) -> Panel:
    n, days = values.shape
    window = Window(END - length(days, "day"), END)
    names = tuple((f"channel {i // 10:02d}", f"product {i % 10}") for i in range(n))
    first, last = (np.repeat(window.times[at], n) for at in (0, -1))
    return Panel(History(Segments(_DIMENSIONS, names), first, last), window, values, exposure)


CASES: dict[str, Callable[[], Case | None]] = {"conversion rates": conversions, "balances": balances}
