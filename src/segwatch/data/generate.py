"""Daily new users of an app by country_code x platform x channel, with planted, labelled anomalies.

A day's value depends only on the seed, the segment and the day: every random number is a hash of these (splitmix64,
Steele et al. 2014), so any part of any series can be made alone. One thing depends on the end: of the events that
begin more than 60 days before it few are kept, so that there is a history to learn from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import ndtri

from segwatch.core.panel import Bools, Floats
from segwatch.data import generated_schema, labels_schema
from segwatch.data.holidays import is_holiday
from segwatch.errors import UsageError

Words = npt.NDArray[np.uint64]
Days = npt.NDArray[np.int64]

MAX_SEGMENTS = 100_000
KINDS = (
    "spike",
    "drop",
    "level_shift",
    "weekly_pattern",
    "slow_drift",
    "flat_line",
    "zero_out",
    "country_outage",
    "platform_outage",
)
_SEGMENT_KINDS = KINDS[:7]
_LENGTHS = {
    "spike": (1, 2),
    "drop": (1, 4),
    "level_shift": (7, 10),
    "weekly_pattern": (7, 10),
    "slow_drift": (7, 10),
    "flat_line": (4, 7),
    "zero_out": (1, 3),
    "country_outage": (1, 2),
    "platform_outage": (1, 2),
}
_LONGEST = 10
# Sizes of an event by severity: in standard deviations of a day's noise, and what an outage leaves of the expected.
_NOISE_MULTIPLES = {1: 4.0, 2: 6.0, 3: 9.0}
_LEFT_BY_OUTAGE = {1: 0.3, 2: 0.1, 3: 0.03}
# Below this many users a day zero is ordinary: nothing is planted that only a larger segment would show.
_VISIBLE = 8.0
_BLOCK = 60
_SEGMENT_RATE = 0.3
_OLD_KEPT = 0.04
_MISSING = 0.05
_MEMORY = 20
# Irrational steps: the multiples of each are spread evenly over [0, 1), and independently of the others'.
_SPREAD = (5**0.5 / 2 - 0.5, 2**0.5 - 1)

_COUNTRIES = (
    "it fr de es gb us no se dk fi nl be at ch pt ie pl cz sk hu ro bg gr hr si rs ua tr il eg ma tn dz ng gh ke za na"
    " bw zm zw tz ug et sn ci cm in pk bd lk np mm th vn kh la my sg id ph jp kr cn tw hk mo mn kz uz kg tj tm ge am az"
    " ir iq sa ae qa kw bh om ye jo lb sy cy mt is lu li mc sm va ad al mk me ba md by ru lt lv ee ca mx gt hn sv ni cr"
    " pa cu do ht jm tt bb bs bz co ve ec pe bo cl ar uy py br gy sr au nz fj pg sb vu ws to"
).split()
_PLATFORMS = (
    "ios android web windows macos linux ipados android_tablet chromeos tvos android_tv fire_tv roku tizen webos"
    " playstation xbox switch watchos wear_os carplay android_auto kaios harmonyos kindle smart_display api"
).split()
_CHANNELS = (
    "organic paid referral email social affiliate display video search direct push sms podcast radio tv print events"
    " influencer partner reseller app_store preload qr_code retargeting native community webinar"
).split()


@dataclass(frozen=True)
class GeneratorSettings:
    """What to generate: the days before `end` (datetime64[D], exclusive)."""

    end: np.datetime64
    segments: int = 27
    days: int = 1000
    seed: int = 7

    def __post_init__(self) -> None:
        if not 1 <= self.segments <= MAX_SEGMENTS:
            raise UsageError(f"--segments {self.segments} is not between 1 and {MAX_SEGMENTS}")
        if self.days < 1:
            raise UsageError(f"--days {self.days} is not at least 1")


@dataclass(frozen=True)
class Batch:
    """Rows of some segments, in the columns of schema.json and labels_schema.json."""

    observations: pa.RecordBatch
    labels: pa.RecordBatch


def segment_names(n: int) -> Iterator[tuple[str, str, str]]:
    """The first n combinations: three countries, then all countries, then more platforms and channels."""
    n_countries = min(len(_COUNTRIES), max(3, -(-n // 9)))
    side = max(3, int(np.ceil(np.sqrt(-(-n // n_countries)))))
    return islice(product(_COUNTRIES[:n_countries], _PLATFORMS[:side], _CHANNELS[:side]), n)


def generate(settings: GeneratorSettings, batch_segments: int = 500) -> Iterator[Batch]:
    """All rows, in batches of segments, sorted by segment and day; zero counts and missing country-days have none."""
    end = int(settings.end.astype("datetime64[D]").astype(np.int64))
    names = segment_names(settings.segments)
    while batch := list(islice(names, batch_segments)):
        yield _batch(settings.seed, batch, end - settings.days, end)


@dataclass(frozen=True)
class _Event:
    """One planted event, on days [start, stop)."""

    id: str
    kind: str
    severity: int
    start: int
    stop: int
    sign: float


def _batch(seed: int, names: list[tuple[str, str, str]], first: int, end: int) -> Batch:
    # Days before the first are made too, and left out: an event that began there goes on as it would have.
    days = np.arange(first - _LONGEST, end)
    keys = _keys(seed, names)
    noise_sd = 0.05 + 0.09 * _uniform(keys, _word(1), 1)
    mean = _mean(seed, names, keys, days)
    counts = _counts(mean * _noise(keys, days, noise_sd), keys, days)
    absent = _missing(seed, names, days) | (days < first)
    labels: list[tuple[int, int, _Event]] = []
    for row, events in enumerate(_events(seed, names, days)):
        for event in events:
            at = np.flatnonzero((days >= event.start) & (days < event.stop))
            if _plant(counts[row], at, float(mean[row, at[0]]), days[at], event, float(noise_sd[row, 0])):
                labels.extend((row, int(t), event) for t in at[~absent[row, at]])
    rows, columns = np.nonzero((counts > 0) & ~absent)
    observations = _named(names, rows, days[columns]) | {"new_users": pa.array(counts[rows, columns])}
    schema = generated_schema().arrow()
    return Batch(
        pa.record_batch([observations[name] for name in schema.names], schema=schema),
        _label_batch(names, labels, days),
    )


def _label_batch(
    names: list[tuple[str, str, str]], labels: list[tuple[int, int, _Event]], days: Days
) -> pa.RecordBatch:
    rows = np.array([row for row, _, _ in labels], dtype=np.int64)
    columns = _named(names, rows, days[np.array([t for _, t, _ in labels], dtype=np.int64)]) | {
        "event_id": pa.array([event.id for _, _, event in labels], pa.string()),
        "kind": pa.array([event.kind for _, _, event in labels], pa.string()),
        "severity": pa.array([event.severity for _, _, event in labels], pa.int64()),
    }
    schema = labels_schema().arrow()
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _named(names: list[tuple[str, str, str]], rows: npt.NDArray[np.int64], days: Days) -> dict[str, pa.Array]:
    columns = {"created_at": pa.array(days.astype("datetime64[D]"))}
    for d, name in enumerate(("country_code", "platform", "channel")):
        values = pa.array([parts[d] for parts in names], pa.string())
        columns[name] = values.take(pa.array(rows))
    return columns


def _mean(seed: int, names: list[tuple[str, str, str]], keys: Words, days: Days) -> Floats:
    """Expected users (n_segments, n_days) without noise and events."""
    countries = [name[0] for name in names]
    country_keys = _keys(seed, [(c,) for c in countries])
    size = 5.0 * np.exp(8.3 * _uniform(keys, _word(1), 2) ** 1.6)
    year = days / 365.25
    growth = 0.25 * (_uniform(keys, _word(1), 3) - 0.4) * (year - 54.0)
    waves = 0.06 * np.sin(2 * np.pi * (year / 2.7 + _uniform(keys, _word(1), 4)))
    season = (0.05 + 0.15 * _uniform(country_keys, _word(1), 5)) * np.sin(
        2 * np.pi * (year + _uniform(country_keys, _word(1), 6))
    )
    # 1970-01-01 was a Thursday; 0 is Monday.
    weekday = (days + 3) % 7
    strength = 0.25 + 0.5 * _uniform(keys, _word(1), 7)
    sign = np.where(_uniform(keys, _word(1), 8) < 0.3, -1.0, 1.0)
    base = np.array([0.05, 0.08, 0.06, 0.03, 0.0, -0.12, -0.1])
    own = 0.12 * (_uniform(keys, np.arange(7).astype(np.uint64), 9) - 0.5)
    week = (sign * strength * 2.0 * base + own)[:, weekday]
    holiday = np.stack([is_holiday(country, days) for country in countries])
    effect = 0.6 * (_uniform(keys, _word(1), 10) - 0.7)
    shock = 0.02 * _moving_normals(country_keys, days, 11)
    return np.asarray(size * np.exp(growth + waves + season + week + effect * holiday + shock))


def _noise(keys: Words, days: Days, sd: Floats) -> Floats:
    """Multiplicative noise: autocorrelated and independent parts, log-normal with standard deviation `sd`."""
    independent = _normal(keys, days.astype(np.uint64), 13)
    return np.asarray(np.exp(sd * (0.5 * _moving_normals(keys, days, 12) + 0.87 * independent)))


def _moving_normals(keys: Words, days: Days, stream: int) -> Floats:
    """Autocorrelated standard normals: a finite moving average, so that no value depends on where the range begins."""
    weights = 0.8 ** np.arange(_MEMORY)
    weights /= np.sqrt((weights**2).sum())
    wide = np.arange(days[0] - _MEMORY + 1, days[-1] + 1).astype(np.uint64)
    normals = _normal(keys, wide, stream)
    return np.asarray(sum(w * normals[:, _MEMORY - 1 - k : normals.shape[1] - k] for k, w in enumerate(weights)))


def _counts(rate: Floats, keys: Words, days: Days) -> npt.NDArray[np.int64]:
    """Poisson counts of the rates, by inverting their distribution; the normal's where the rate is large."""
    u = _uniform(keys, days.astype(np.uint64), 14)
    counts: npt.NDArray[np.int64] = np.maximum(0, np.rint(rate + np.sqrt(rate) * ndtri(u))).astype(np.int64)
    small = rate < 40.0
    counts[small] = _invert_poisson(rate[small], u[small])
    return counts


def _invert_poisson(rate: Floats, u: Floats) -> npt.NDArray[np.int64]:
    counts = np.zeros(len(rate), dtype=np.int64)
    term = np.exp(-rate)
    total = term.copy()
    for k in range(1, 120):
        above = u > total
        if not above.any():
            break
        counts += above
        term = term * rate / k
        total = total + term
    return counts


def _missing(seed: int, names: list[tuple[str, str, str]], days: Days) -> npt.NDArray[np.bool_]:
    """(n_segments, n_days) where the country's data did not arrive."""
    keys = _keys(seed, [(name[0],) for name in names])
    return np.asarray(_uniform(keys, days.astype(np.uint64), 15) < _MISSING)


def _events(seed: int, names: list[tuple[str, str, str]], days: Days) -> Iterator[list[_Event]]:
    """For each name the segment's own events and those of its country and platform, as far as they touch the days."""
    own = _drawn(_segment_draws(seed, names, days), names, _SEGMENT_KINDS, days)
    countries = sorted({name[0] for name in names})
    by_country = _drawn(
        _outage_draws(seed, countries, _COUNTRIES, days), [(c,) for c in countries], ("country_outage",), days
    )
    platforms = sorted({name[1] for name in names})
    by_platform = _drawn(
        _outage_draws(seed, platforms, _PLATFORMS, days), [(p,) for p in platforms], ("platform_outage",), days
    )
    for name in names:
        yield own[name] + by_country[name[:1]] + by_platform[name[1:2]]


@dataclass(frozen=True)
class _Draws:
    """What chance says of each name's event in each block of 60 days, numbers in [0, 1), all (n_names, n_blocks)."""

    blocks: Days
    exists: Bools
    kind: Floats
    severity: Floats
    start: Floats
    length: Floats
    is_kept: Bools
    is_down: Bools


def _segment_draws(seed: int, names: Sequence[tuple[str, ...]], days: Days) -> _Draws:
    """Existence and kind, and severity, are spread evenly over the names: few segments have their share of each too."""
    blocks = _blocks(days)
    group, counters = _keys(seed, [("segments",)]), blocks.astype(np.uint64)
    values = (_COUNTRIES, _PLATFORMS, _CHANNELS)
    positions = np.array([[float(9 * c + 3 * p + q)] for c, p, q in (map(list.index, values, name) for name in names)])
    exists = (positions * _SPREAD[0] + _uniform(group, counters, 20)) % 1.0
    severity = (positions * _SPREAD[1] + _uniform(group, counters, 21)) % 1.0
    keys = _keys(seed, names)
    start = _uniform(keys, counters, 22)
    return _draws(keys, blocks, exists < _SEGMENT_RATE, exists / _SEGMENT_RATE, severity, start)


def _outage_draws(seed: int, names: Sequence[str], known: list[str], days: Days) -> _Draws:
    """One of three neighbours has an outage in any 60 days."""
    blocks = _blocks(days)
    counters = blocks.astype(np.uint64)
    positions = np.array([[known.index(name)] for name in names])
    triples = _keys(seed, [(known[0], str(position // 3)) for position in positions[:, 0]])
    exists = (positions % 3 / 3 + _uniform(triples, counters, 20)) % 1.0 < 1 / 3
    keys = _keys(seed, [(known[0], name) for name in names])
    severity = _uniform(keys, counters, 21)
    start = np.broadcast_to(_uniform(triples, _word(1), 22), severity.shape)
    return _draws(keys, blocks, exists, np.zeros_like(severity), severity, start)


def _draws(keys: Words, blocks: Days, exists: Bools, kind: Floats, severity: Floats, start: Floats) -> _Draws:
    length, kept, down = (_uniform(keys, blocks.astype(np.uint64), stream) for stream in (23, 24, 25))
    return _Draws(blocks, exists, kind, severity, start, length, kept < _OLD_KEPT, down < 0.6)


def _blocks(days: Days) -> Days:
    """Numbers of the blocks whose events can touch the days."""
    return np.arange((days[0] - _LONGEST) // _BLOCK, days[-1] // _BLOCK + 1)


def _drawn(
    draws: _Draws, names: Sequence[tuple[str, ...]], kinds: tuple[str, ...], days: Days
) -> dict[tuple[str, ...], list[_Event]]:
    """The events that touch the days, by name; most of those that begin before the last 60 days are left out."""
    first, end = int(days[0]), int(days[-1]) + 1
    events: dict[tuple[str, ...], list[_Event]] = {name: [] for name in names}
    for at in map(tuple, np.argwhere(draws.exists)):
        name, kind = names[at[0]], kinds[int(draws.kind[at] * len(kinds))]
        low, high = _LENGTHS[kind]
        length = low + int(draws.length[at] * (high - low + 1))
        start = int(draws.blocks[at[1]]) * _BLOCK + int(draws.start[at] * _BLOCK)
        if (start >= end - _BLOCK or draws.is_kept[at]) and start < end and start + length > first:
            id_ = "/".join((kind, *name, str(np.datetime64(start, "D"))))
            sign = -1.0 if draws.is_down[at] else 1.0
            events[name].append(_Event(id_, kind, 1 + int(draws.severity[at] * 3), start, start + length, sign))
    return events


def _plant(
    counts: npt.NDArray[np.int64], at: npt.NDArray[np.intp], typical: float, days: Days, event: _Event, noise_sd: float
) -> bool:
    """The event happens to one segment's counts (n_days,), in place, at `at`; False if the segment is too small."""
    is_outage = event.kind.endswith("outage")
    if typical < _VISIBLE and not is_outage:
        return False
    if event.kind == "flat_line":
        counts[at] = counts[at[0]]
        return True
    step = _NOISE_MULTIPLES[event.severity] * np.sqrt(noise_sd**2 + 1.0 / typical)
    changed = np.rint(counts[at] * _factors(event, step, days)).astype(np.int64)
    # An outage leaves a few rows: with none at all the data would seem not to have arrived.
    counts[at] = np.maximum(1, changed) if is_outage else changed
    return True


def _factors(event: _Event, step: float, days: Days) -> Floats:
    """What the event multiplies each of its days by; step: its size in log units."""
    into = days - event.start + 1
    n = event.stop - event.start
    match event.kind:
        case "spike":
            return np.full(len(days), np.exp(step))
        case "drop":
            return np.full(len(days), np.exp(-step))
        case "level_shift":
            return np.full(len(days), np.exp(event.sign * 0.6 * step))
        case "slow_drift":
            return np.exp(event.sign * step * into / n)
        case "weekly_pattern":
            return np.exp(0.7 * step * np.where(days % 2 == 0, 1.0, -1.0))
        case "zero_out":
            return np.zeros(len(days))
        case _:
            return np.full(len(days), _LEFT_BY_OUTAGE[event.severity])


def _keys(seed: int, names: Sequence[tuple[str, ...]]) -> Words:
    """(n, 1) hashes of names under the seed."""
    texts = ("\x1f".join((str(seed), *name)).encode() for name in names)
    words = [int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") for text in texts]
    return np.array(words, dtype=np.uint64)[:, None]


def _word(value: int) -> Words:
    return np.array([value], dtype=np.uint64)


def _uniform(keys: Words, counters: Words, stream: int) -> Floats:
    """(n_keys, n_counters) numbers in (0, 1)."""
    mixed = _splitmix(_splitmix(keys ^ _splitmix(_word(stream))) + counters)
    return np.asarray(((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def _normal(keys: Words, counters: Words, stream: int) -> Floats:
    return np.asarray(ndtri(_uniform(keys, counters, stream)))


def _splitmix(words: Words) -> Words:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(words ^ (words >> np.uint64(31)))
