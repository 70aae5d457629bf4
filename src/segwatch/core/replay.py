"""Going through a Panel one period at a time: what training and inference make of the same past is the same.

All segments move together, since what groups share in a period is seen from all of them. Once that is known (`Shared`),
any part of the segments can be gone through again on its own: training does so part by part, in as much memory as a
part needs, on one machine or on many.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segwatch.core import compiled, matrix
from segwatch.core.baseline import Baseline, Period, Recursion
from segwatch.core.calendar import Days
from segwatch.core.features import CONTEXT, FEATURES
from segwatch.core.groups import Groups, GroupScales
from segwatch.core.known import Known, Seen
from segwatch.core.panel import Bools, Floats, Ints, Panel
from segwatch.core.rollup import Rollups
from segwatch.core.window import Grain, Times, local_times, long_period

# Fewer segments than this are not worth a thread of their own.
_LEAST_PART = 2000
# Periods of matrices in files that are in memory at a time.
_HELD = 32
_EXPECTED, _COMMON, _COMMON_Z = (CONTEXT.index(name) for name in ("expected", "common", "common_z"))


def slots(times: Times, grain: Grain) -> Ints:
    """(n_times,) each local period's place in the week; 0 is Monday, or the hour after Monday's midnight."""
    # 1970-01-01 was a Thursday.
    monday = np.datetime64("1969-12-29").astype(times.dtype)
    return np.asarray((times - monday).astype(np.int64) % long_period(grain))


@dataclass(frozen=True)
class Shared:
    """What the groups of a Panel shared: effects on a log-like scale and their z, (n_groups, n_times) each.

    known: (n_segments, n_times), the effects that were expected of each period beforehand.
    """

    groups: Groups
    effects: Floats
    z: Floats
    known: npt.NDArray[np.float32]

    def take(self, rows: Ints | slice) -> Shared:
        """The same for some of the segments."""
        return Shared(self.groups.take(rows), self.effects, self.z, matrix.take(self.known, rows))

    def since(self, column: int) -> Shared:
        """The same of the periods from a column on."""
        return Shared(self.groups, self.effects[:, column:], self.z[:, column:], self.known[:, column:])

    def expects(self, period: Period, column: int) -> Period:
        """The period with what is known of it."""
        return replace(period, effect=np.asarray(self.known[:, column], dtype=np.float64))

    def fill(self, context: Floats, column: int) -> None:
        """The contexts (n_segments, n_context) of a period say, in place, what the segments' groups shared in it."""
        _share(self.groups, self.effects[:, column].copy(), self.z[:, column].copy(), context)


def _share(groups: Groups, effects: Floats, z: Floats, context: Floats) -> None:
    """The contexts (n_segments, n_context) say, in place, what the segments' groups (n_groups,) shared."""
    if compiled.native is not None:
        compiled.native.share(groups.members, len(groups.members), effects, z, context)
        return
    context[:, _COMMON] = groups.spread(effects).sum(axis=0)
    of_segments = groups.spread(z)
    context[:, _COMMON_Z] = np.take_along_axis(of_segments, np.abs(of_segments).argmax(axis=0)[None, :], axis=0)[0]


@dataclass(frozen=True)
class Series:
    """Values of segments over a Window, (n_segments, n_times), as the features take them: of a ratio its quotient.

    units: see `FeatureSet.to_scale`; (n_segments, n_times), or (n_segments, 1) where they do not change. times:
    (n_times,), by the clock of the place whose week is meant.
    """

    times: Times
    grain: Grain
    values: Floats
    units: Floats

    @classmethod
    def of(cls, panel: Panel, scale: Floats, timezone: str) -> Series:
        """The series of a Panel. scale: (n_segments,), of each segment's values; a ratio has its exposure instead."""
        times = local_times(panel.window, timezone)
        if panel.exposure is None:
            return cls(times, panel.window.grain, panel.values, scale[:, None])
        return cls(times, panel.window.grain, matrix.quotient(panel.values, panel.exposure), panel.exposure)

    def __len__(self) -> int:
        return len(self.values)

    def until(self, column: int) -> Series:
        """The series of the periods before a column, the first at least."""
        return Series(self.times[:column], self.grain, self.values[:, :column], self.units[:, :column])

    def since(self, column: int) -> Series:
        """The series of the periods from a column on."""
        units = self.units if self.units.shape[1] == 1 else self.units[:, column:]
        return Series(self.times[column:], self.grain, self.values[:, column:], units)

    @cached_property
    def slots(self) -> Ints:
        """(n_times,), see `slots`."""
        return slots(self.times, self.grain)

    def at(self, column: int) -> tuple[Floats, Period]:
        """Values (n_segments,) and what is known of one period."""
        units = self.units[:, min(column, self.units.shape[1] - 1)]
        values = np.array(self.values[:, column], dtype=np.float64)
        return values, Period(int(self.slots[column]), np.array(units, dtype=np.float64), np.zeros(len(values)))

    def take(self, rows: Ints | slice) -> Series:
        """The series of some of the segments."""
        return Series(self.times, self.grain, self.values[rows], self.units[rows])


@dataclass(frozen=True)
class Pools:
    """What is learned from all segments together: how much groups move, and what is known beforehand."""

    scales: GroupScales
    known: Known

    @classmethod
    def fresh(cls, groups: Groups) -> Pools:
        return cls(GroupScales.fresh(len(groups.keys)), Known.fresh(len(groups.keys)))


@dataclass(frozen=True)
class Whole:
    """All segments of a Window at once: their series, groups and roll-ups, and the days that something is known of."""

    series: Series
    groups: Groups
    rollups: Rollups | None = None
    days: Days | None = None


def go_through(
    whole: Whole, recursion: Recursion, state: Baseline, pools: Pools, keep: int = 0, room: Path | None = None
) -> tuple[Shared, Floats]:
    """What the groups shared, and the contexts (n_segments, keep, n_context) of the last periods.

    state, pools: those before the Window; they are, in place, those after it. The roll-ups' values are filled in.
    room: see `matrix.new`.
    """
    series, groups = whole.series, whole.groups
    n_times = series.values.shape[1]
    effects, z = np.zeros((2, len(groups.keys), n_times))
    shared = Shared(groups, effects, z, matrix.new((len(series), n_times), 0, room, np.float32))
    contexts = np.empty((len(series), keep, len(CONTEXT)))
    found = _Found.of(len(series))
    with _Parts(whole, recursion, state) as parts:
        for column in range(n_times):
            values, period = series.at(column)
            period, is_known, common = _expect(whole, recursion, state, pools, shared, column, period)
            parts.each(_Part.look, period, found)
            if whole.rollups is not None:
                whole.rollups.fill(values, found.context[:, _EXPECTED])
                series.values[whole.rollups.rows, column] = values[whole.rollups.rows]
            parts.each(_Part.compare, values, period, found)
            effects[:, column] = groups.effects(found.residual, found.sd)
            z[:, column] = pools.scales.z(effects[:, column])
            _learn(whole, recursion, state, pools, shared, column, found.total, is_known, common)
            pools.scales.update(effects[:, column])
            parts.each(_Part.learn, values, period, found, effects[:, column].copy(), z[:, column].copy())
            if column >= n_times - keep:
                contexts[:, column - n_times + keep] = found.context
            if column % _HELD == _HELD - 1:
                matrix.release(series.values, series.units, shared.known)
    return shared, contexts


@dataclass(frozen=True)
class _Found:
    """What is found of a period, in arrays that serve one period after the other.

    context: (n_segments, n_context). residual, sd: (n_segments,) against what was expected. total: (n_segments,), as
    residual, without what was known beforehand.
    """

    context: Floats
    residual: Floats
    sd: Floats
    total: Floats

    @classmethod
    def of(cls, n: int) -> _Found:
        return cls(np.empty((n, len(CONTEXT))), np.empty(n), np.empty(n), np.empty(n))


@dataclass(frozen=True)
class _Part:
    """Some of the segments, whose state is a view of that of all: what one thread works on."""

    rows: slice
    recursion: Recursion
    state: Baseline
    groups: Groups

    def look(self, period: Period, found: _Found) -> None:
        """The contexts of the period are found, without what groups share."""
        found.context[self.rows] = self.recursion.context(self.state, period.take(self.rows))

    def compare(self, values: Floats, period: Period, found: _Found) -> None:
        """The residuals of the period's values are found."""
        own = self.recursion.features.own(values[self.rows], found.context[self.rows])
        residual = own.z * own.sd
        found.residual[self.rows], found.sd[self.rows] = residual, own.sd
        # A value that was nearer to a day like others was measured from there.
        is_plain = own.is_former & np.isnan(self.state.former_level)
        found.total[self.rows] = residual + np.where(is_plain, 0.0, period.effect[self.rows])

    def learn(self, values: Floats, period: Period, found: _Found, effects: Floats, z: Floats) -> None:
        """The contexts know what groups shared, (n_groups,) each, and the state has seen the values."""
        context = found.context[self.rows]
        _share(self.groups, effects, z, context)
        self.recursion.update(self.state, values[self.rows], context, period.take(self.rows))


class _Parts:
    """All segments, in as many parts as there are cores: the compiled code lets go of the interpreter lock."""

    def __init__(self, whole: Whole, recursion: Recursion, state: Baseline) -> None:
        n_parts = 1
        if compiled.native is not None:
            n_parts = max(1, min(os.cpu_count() or 1, len(state) // _LEAST_PART))
        ends = np.linspace(0, len(state), n_parts + 1).astype(int).tolist()
        # In one part numpy may put new arrays in place of old ones.
        self._parts = [
            _Part(rows, recursion, state if n_parts == 1 else state.take(rows), whole.groups.take(rows))
            for rows in map(slice, ends[:-1], ends[1:])
        ]
        self._pool = ThreadPoolExecutor(n_parts) if n_parts > 1 else None

    def each(self, work: Callable[..., None], *arguments: object) -> None:
        """The work, a method of `_Part`, is done by every part."""
        if self._pool is None:
            work(self._parts[0], *arguments)
            return
        for done in [self._pool.submit(work, part, *arguments) for part in self._parts]:
            done.result()

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _expect(
    whole: Whole, recursion: Recursion, state: Baseline, pools: Pools, shared: Shared, column: int, period: Period
) -> tuple[Period, Bools, Floats]:
    """The period with what is known of it, for which segments that is anything, and its shared part."""
    date = whole.series.times[column]
    common, is_known = pools.known.shared(whole.groups, whole.days, column, date)
    if not is_known.any():
        return period, is_known, common
    effect = recursion.effects(state, common, is_known)
    if whole.rollups is not None:
        whole.rollups.combine(effect, recursion.expected(state, period))
    shared.known[:, column] = effect
    return shared.expects(period, column), is_known, common


def _learn(
    whole: Whole,
    recursion: Recursion,
    state: Baseline,
    pools: Pools,
    shared: Shared,
    column: int,
    total: Floats,
    is_known: Bools,
    common: Floats,
) -> None:
    """What is known beforehand has, in place, learned from the period's effects, total (n_segments,)."""
    # Hours of a date differ too much to be told by last year's.
    date = whole.series.times[column] if whole.series.grain == "day" else None
    own = recursion.effects(state, np.zeros(len(total)), is_known)
    seen = Seen(total - own, shared.effects[:, column])
    pools.known.learn(whole.groups, pools.scales, seen, whole.days, column, date)
    if is_known.any():
        recursion.learn_effects(state, total - common, is_known)


def contexts_of(series: Series, recursion: Recursion, state: Baseline, shared: Shared, keep: int) -> Floats:
    """(n_segments, keep, n_context) of the last periods of some segments, from what all of them shared.

    state: that before the series, changed in place.
    """
    return gone_on(series, recursion, state, shared, keep)[1]


def gone_on(
    series: Series, recursion: Recursion, state: Baseline, shared: Shared, keep: int, has_contexts: bool = True
) -> tuple[Floats, Floats]:
    """Features (n_segments, keep, n_features) and contexts of the last periods, as `contexts_of`.

    has_contexts: without, there are none of 0 segments; they take three times as much memory as the features.
    """
    if compiled.native is None:
        contexts = _contexts_of(series, recursion, state, shared, keep)
        return recursion.features.features(series.values[:, series.values.shape[1] - keep :], contexts), contexts
    n, n_times = series.values.shape
    X = np.empty((n, keep, len(FEATURES)))
    contexts = np.empty((n if has_contexts else 0, keep, len(CONTEXT)))
    effects, z = (np.ascontiguousarray(a[:, :n_times]) for a in (shared.effects, shared.z))
    compiled.native.run(
        recursion.rules,
        state.arrays,
        np.ascontiguousarray(series.slots),
        np.ascontiguousarray(series.values, dtype=np.float64),
        np.ascontiguousarray(series.units, dtype=np.float64),
        np.ascontiguousarray(shared.known[:, :n_times]),
        np.ascontiguousarray(shared.groups.members),
        effects,
        z,
        len(shared.groups.members),
        len(effects),
        keep,
        X,
        contexts,
    )
    return X, contexts


def _contexts_of(series: Series, recursion: Recursion, state: Baseline, shared: Shared, keep: int) -> Floats:
    n_times = series.values.shape[1]
    contexts = np.empty((len(series), keep, len(CONTEXT)))
    for column in range(n_times):
        values, period = series.at(column)
        period = shared.expects(period, column)
        context = recursion.context(state, period)
        shared.fill(context, column)
        recursion.update(state, values, context, period)
        if column >= n_times - keep:
            contexts[:, column - n_times + keep] = context
    return contexts
