"""Daily new users of an app by country_code x platform x channel, with planted, labelled anomalies.

A day's value depends only on the seed, the segment and the day: every random number is a hash of these (splitmix64,
Steele et al. 2014), so any part of any series can be made alone. Only how many old events are kept depends on the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import ndtri

from segwatch.core.panel import Floats
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
    "slow_drift": (8, 12),
    "flat_line": (4, 7),
    "zero_out": (1, 3),
    "country_outage": (1, 2),
    "platform_outage": (1, 2),
}
_NOISE_MULTIPLES = {1: 3.2, 2: 5.0, 3: 8.0}
_BLOCK = 60
_SEGMENT_RATE = 0.3
_PARENT_RATE = 0.3
_OLD_KEPT = 0.04
_MISSING = 0.05
_MEMORY = 20

_COUNTRIES = (
    "it fr de es gb us no se dk fi nl be at ch pt ie pl cz sk hu ro bg gr hr si rs ua tr il eg ma tn dz ng gh ke za na"
    " bw zm zw tz ug et sn ci cm in pk bd lk np mm th vn kh la my sg id ph jp kr cn tw hk mo mn kz uz kg tj tm ge am az"
    " ir iq sa ae qa kw bh om ye jo lb sy cy mt is lu li mc sm va ad al mk me ba md by ru lt lv ee ca mx gt hn sv ni cr"
    " pa cu do ht jm tt bb bs bz co ve ec pe bo cl ar uy py br gy sr au nz fj pg sb vu ws to"
).split()
_PLATFORMS = ["ios", "android", "web"]
_CHANNELS = ["organic", "paid", "referral"]


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
    wide = -(-n // n_countries)
    side = max(3, int(np.ceil(np.sqrt(wide))))
    platforms = _PLATFORMS + [f"device_{i}" for i in range(4, side + 1)]
    channels = _CHANNELS + [f"campaign_{i}" for i in range(4, side + 1)]
    return islice(product(_COUNTRIES[:n_countries], platforms, channels), n)


def generate(settings: GeneratorSettings, batch_segments: int = 500) -> Iterator[Batch]:
    """All rows, in batches of segments, sorted by segment and day; zero counts and missing country-days have none."""
    last = int(settings.end.astype("datetime64[D]").astype(np.int64))
    days = np.arange(last - settings.days, last)
    names = segment_names(settings.segments)
    while batch := list(islice(names, batch_segments)):
        yield _batch(settings.seed, batch, days)


@dataclass(frozen=True)
class _Event:
    """One planted event, on days [start, stop)."""

    id: str
    kind: str
    severity: int
    start: int
    stop: int
    sign: float


def _batch(seed: int, names: list[tuple[str, str, str]], days: Days) -> Batch:
    keys = _keys(seed, names)
    noise_sd = 0.05 + 0.09 * _uniform(keys, _word(1), 1)
    mean = _mean(seed, names, keys, days)
    counts = _counts(mean * _noise(keys, days, noise_sd), keys, days)
    missing = _missing(seed, names, days)
    labels: list[tuple[int, int, _Event]] = []
    for row, name in enumerate(names):
        for event in _events(seed, name, days):
            _plant(counts[row], mean[row], days, event, float(noise_sd[row, 0]))
            touched = np.flatnonzero((days >= event.start) & (days < event.stop) & ~missing[row])
            labels.extend((row, int(t), event) for t in touched)
    rows, columns = np.nonzero((counts > 0) & ~missing)
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


def _events(seed: int, name: tuple[str, str, str], days: Days) -> Iterator[_Event]:
    """The segment's own events and those of its country and platform that touch the days."""
    yield from _drawn(seed, name, _SEGMENT_KINDS, _SEGMENT_RATE, days)
    yield from _drawn(seed, (name[0],), ("country_outage",), _PARENT_RATE, days)
    yield from _drawn(seed, ("platform", name[1]), ("platform_outage",), _PARENT_RATE, days)


def _drawn(seed: int, key: tuple[str, ...], kinds: tuple[str, ...], rate: float, days: Days) -> Iterator[_Event]:
    """At most one event in each block of 60 days; most of the blocks before the last 60 days have none."""
    first, end = int(days[0]), int(days[-1]) + 1
    blocks = np.arange(first // _BLOCK - 1, (end - 1) // _BLOCK + 1)
    u = np.concatenate([_uniform(_keys(seed, [key]), blocks.astype(np.uint64), 20 + k) for k in range(6)])
    for block, (exists, kind_u, severity_u, length_u, start_u, sign_u) in zip(blocks, u.T, strict=True):
        kind = kinds[int(kind_u * len(kinds))]
        low, high = _LENGTHS[kind]
        length = low + int(length_u * (high - low + 1))
        start = int(block) * _BLOCK + int(start_u * (_BLOCK - length))
        kept = rate if start >= end - _BLOCK else rate * _OLD_KEPT
        if exists < kept and start >= first and start < end:
            id_ = "/".join((kind, *key, str(np.datetime64(start, "D"))))
            yield _Event(id_, kind, 1 + int(severity_u * 3), start, start + length, -1.0 if sign_u < 0.6 else 1.0)


def _plant(counts: npt.NDArray[np.int64], mean: Floats, days: Days, event: _Event, noise_sd: float) -> None:
    """The event happens to one segment's counts (n_days,), in place."""
    rows = np.flatnonzero((days >= event.start) & (days < event.stop))
    if not rows.size:
        return
    typical = float(mean[rows].mean())
    step = _NOISE_MULTIPLES[event.severity] * np.sqrt(noise_sd**2 + 1.0 / max(typical, 1.0))
    if event.kind == "flat_line":
        counts[rows] = counts[rows[0]]
        return
    counts[rows] = np.maximum(0, np.rint(counts[rows] * _factors(event, step, days[rows]))).astype(np.int64)
    if event.kind.endswith("outage"):
        counts[rows] = np.maximum(1, counts[rows])


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
            return np.full(len(days), 0.03 * event.severity)


def _keys(seed: int, names: list[tuple[str, ...]] | list[tuple[str, str, str]] | list[tuple[str]]) -> Words:
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
