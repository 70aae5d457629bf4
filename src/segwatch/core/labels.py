"""What people say of an incident or of days, and what that does.

    true        an anomaly: its periods leave the training data
    expected    a campaign, say: its periods are neither learned from nor scored
    new-normal  what came before is history: it ends there, or is carried to the new level while there is little else
    false       a false alarm: what alerts there again must be more improbable than what was called so
    snooze      says nothing of it, but is not to be told of until then
    none        what was said of it before no longer holds

Labels act on segments; what roll-ups sum follows from theirs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core import matrix
from segwatch.core.incidents import Direction
from segwatch.core.panel import Bools, Floats, History, Ints, Panel, Segments
from segwatch.core.segment import Values, holds
from segwatch.core.window import Window, length, long_period

Said = Literal["true", "false", "expected", "new-normal", "snooze", "none"]
SAID: tuple[Said, ...] = get_args(Said)
EXPECTED = "expected by a label"
"""Reason of a row that a label leaves out."""

# A false alarm is held against a segment for so long.
_REMEMBERED = np.timedelta64(365, "D")
# An alert in its place has to be so many times as improbable.
_STRANGER = 10.0
# Weeks that say what the level was before a shift, and after it.
_WEEKS_BEFORE, _WEEKS_AFTER = 8, 4
# No row is as improbable as that.
_NEVER = 1e-300


@dataclass(frozen=True)
class Label:
    """What somebody said. id: of the incident, or of what a file says of days. at: when, UTC. values: of the
    dimensions, None for any. first, last: periods, both inclusive. direction: None for both. alarms: segments and
    roll-ups that alerted in it, by id, with the smallest p-value of each."""

    id: str
    said: Said
    at: dt.datetime
    author: str
    values: Values
    first: np.datetime64
    last: np.datetime64
    direction: Direction | None = None
    alarms: tuple[tuple[str, float], ...] = ()
    note: str = ""

    def holds_at(self, times: npt.NDArray[np.datetime64]) -> Bools:
        """(n_times,), which periods it is about."""
        return np.asarray((times >= self.first) & (times <= self.last))


def standing(labels: Iterable[Label]) -> list[Label]:
    """The last word on each thing, in the order of time; snoozes apart, and without what was taken back."""
    last: dict[tuple[str, bool], Label] = {}
    for one in sorted(labels, key=lambda label: label.at):
        last[one.id, one.said == "snooze"] = one
    return [one for one in last.values() if one.said != "none"]


def followed(labels: Iterable[Label], last_seen: Mapping[str, np.datetime64]) -> list[Label]:
    """The labels, which last as long as their incidents went on after they were given. last_seen: by incident."""
    return [
        one if one.said == "snooze" else replace(one, last=max(one.last, last_seen.get(one.id, one.last)))
        for one in labels
    ]


@dataclass(frozen=True)
class Learned:
    """What labels did to the data that trains: cells (segment and period) that were left out, segments whose history
    was cut or carried to a new level."""

    n_left_out: int = 0
    n_cut: int = 0
    n_carried: int = 0

    @property
    def said(self) -> str:
        """In words; empty where labels did nothing."""
        parts = {
            "values left out": self.n_left_out,
            "histories begun anew": self.n_cut,
            "histories carried to a new level": self.n_carried,
        }
        return ", ".join(f"{n:,} {what}" for what, n in parts.items() if n)


def teach(panel: Panel, labels: Sequence[Label], min_history: int) -> tuple[Panel, Learned]:
    """The Panel of segments, without roll-ups, as the labels have it; its values are changed in place.

    min_history: periods that a history needs to stand by itself after a new normal.
    """
    n_left_out = leave_out(panel, [one for one in labels if one.said in ("true", "expected")])
    n_cut = n_carried = 0
    first_seen = panel.history.first_seen.copy()
    for row, columns in _shifts(panel, labels).items():
        for column, end in pairwise([*columns, len(panel.window)]):
            if (~np.isnan(panel.values[row, column:end])).sum() >= min_history:
                panel.forget((row, slice(column)))
                first_seen[row] = max(first_seen[row], panel.window.times[column])
                n_cut += 1
            else:
                n_carried += _carry(panel, row, column, end)
    matrix.release(panel.values)
    history = History(panel.segments, first_seen, np.maximum(panel.history.last_seen, first_seen))
    return replace(panel, history=history), Learned(n_left_out, n_cut, n_carried)


def _shifts(panel: Panel, labels: Sequence[Label]) -> dict[int, list[int]]:
    """Columns of the new normals of each segment that has some, ascending."""
    places = _Places(panel.segments)
    found: dict[int, set[int]] = {}
    for one in labels:
        column = int((one.first - panel.window.start).astype(np.int64))
        if one.said == "new-normal" and 0 < column < len(panel.window):
            for row in places.of(one.values).tolist():
                found.setdefault(row, set()).add(column)
    return {row: sorted(columns) for row, columns in found.items()}


def leave_out(panel: Panel, labels: Sequence[Label]) -> int:
    """What the labels are about is, in place, no longer observed in the Panel of segments; how many cells were."""
    n = 0
    places = _Places(panel.segments)
    for one in labels:
        columns, rows = np.flatnonzero(one.holds_at(panel.window.times)), places.of(one.values)
        if not columns.size or not rows.size:
            continue
        cells = np.ix_(rows, columns)
        n += int((~np.isnan(panel.values[cells])).sum())
        panel.forget(cells)
    return n


def is_expected(segments: Segments, window: Window, labels: Sequence[Label]) -> Bools:
    """(n_segments, n_times), which segments and roll-ups a label leaves out of the Window with all that they hold."""
    found = np.zeros((len(segments), len(window)), dtype=bool)
    places = _Places(segments)
    for one in labels:
        if one.said == "expected":
            found[np.ix_(places.of(one.values), np.flatnonzero(one.holds_at(window.times)))] = True
    return found


def _carry(panel: Panel, row: int, column: int, end: int) -> bool:
    """What a segment did before a period is, in place, at the level of what it did from then up to another; False if
    nothing is known.

    Weekday by weekday, so that a shift in the middle of a week is not taken for that of a weekend.
    """
    week = long_period(panel.window.grain)
    start, end = max(0, column - _WEEKS_BEFORE * week), min(end, column + _WEEKS_AFTER * week)
    values = np.array(panel.values[row, start:end])
    sizes = np.ones(len(values)) if panel.exposure is None else np.array(panel.exposure[row, start:end])
    before, slots = column - start, np.arange(start, end) % week
    usual = _rates(values[:before], sizes[:before], slots[:before], week)
    expected, seen = usual[slots[before:]] * sizes[before:], values[before:]
    both = ~np.isnan(expected) & ~np.isnan(seen)
    if not both.any():
        return False
    if panel.exposure is None and (np.array(panel.values[row, :end]) < 0).any():
        panel.values[row, :column] += float((seen[both] - expected[both]).mean())
    elif expected[both].sum() > 0:
        panel.values[row, :column] *= float(seen[both].sum() / expected[both].sum())
    else:
        panel.forget((row, slice(column)))
    return True


def _rates(values: Floats, sizes: Floats, slots: Ints, n_slots: int) -> Floats:
    """(n_slots,), what the values of each slot of a week are of their sizes; NaN where nothing is known."""
    known = ~np.isnan(values)
    totals, sums = (np.bincount(slots[known], np.nan_to_num(of[known]), n_slots) for of in (sizes, values))
    return np.asarray(np.divide(sums, totals, out=np.full(n_slots, np.nan), where=totals > 0))


class _Places:
    """Where in some segments those are that have given values."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._columns: list[pa.Array] | None = None

    def of(self, values: Values) -> Ints:
        """Positions of the segments, and roll-ups, that lie in the values."""
        if self._columns is None:
            self._columns = list(self._segments.columns().values())
        found = np.ones(len(self._segments), dtype=bool)
        for column, value in zip(self._columns, values, strict=True):
            if value is not None:
                found &= pc.fill_null(pc.equal(column, value), False).to_numpy(zero_copy_only=False)
        return np.flatnonzero(found)


@dataclass(frozen=True)
class Bar:
    """An alert of a segment in a direction (None: in both) must have a p-value under `p_value` in the periods after
    `after`, up to `last` where there is such."""

    segment_id: str
    direction: Direction | None
    after: np.datetime64
    p_value: float
    last: np.datetime64 | None = None


def bars(labels: Sequence[Label], segments: Segments, trained: Window, window: Window) -> Iterator[Bar]:
    """The bars that labels raise in a Window for a model of segments and roll-ups that was trained on another.

    A false alarm raises that of what alerted in it. A new normal is told no more while it was one, and goes on so until
    a model has learned it.
    """
    places = _Places(segments)
    for one in labels:
        if one.said == "false" and one.last + _REMEMBERED > window.start:
            yield from (Bar(id_, one.direction, one.last, p / _STRANGER) for id_, p in one.alarms)
        elif one.said == "new-normal":
            is_learned = trained.end > one.last + length(1, trained.grain)
            held = {segments.ids[i] for i in places.of(one.values)} | {id_ for id_, _ in one.alarms}
            before, last = one.first - length(1, trained.grain), one.last if is_learned else None
            yield from (Bar(id_, one.direction, before, _NEVER, last) for id_ in sorted(held))


@dataclass(frozen=True)
class Bars:
    """The p-value under which each row (n_rows,) alerts at most, where its value is above or below the expected one;
    infinite where no label says so."""

    up: Floats
    down: Floats

    @classmethod
    def of(cls, raised: Iterable[Bar], segment_ids: pa.Array, ts: npt.NDArray[np.datetime64]) -> Bars | None:
        """The bars of rows (n_rows,); None where nothing is raised."""
        by_id: dict[str, list[Bar]] = {}
        for bar in raised:
            by_id.setdefault(bar.segment_id, []).append(bar)
        rows = np.flatnonzero(pc.is_in(segment_ids, pa.array(list(by_id), pa.string())).to_numpy(zero_copy_only=False))
        if not rows.size:
            return None
        found = cls(*np.full((2, len(segment_ids)), np.inf))
        for row in rows:
            for bar in by_id[segment_ids[int(row)].as_py()]:
                if ts[row] > bar.after and (bar.last is None or ts[row] <= bar.last):
                    for side, levels in (("up", found.up), ("down", found.down)):
                        if bar.direction in (side, None):
                            levels[row] = min(levels[row], bar.p_value)
        return found

    @property
    def is_raised(self) -> Bools:
        """(n_rows,)."""
        return np.asarray(np.isfinite(self.up) | np.isfinite(self.down))


def alarms_of(rows: pa.Table, values: Values, direction: Direction, dimensions: Sequence[str]) -> dict[str, float]:
    """The smallest p-value of each segment and roll-up that alerted in a direction and lies in the values, or holds
    them. rows: predictions of the periods that an incident lasted."""
    flagged = rows.filter(pc.and_(rows["is_anomaly"], pc.equal(rows["direction"], direction)))
    found: dict[str, float] = {}
    for row in flagged.select(["segment_id", "p_value", *dimensions]).to_pylist():
        theirs = [row[name] for name in dimensions]
        if holds(values, theirs) or holds(theirs, values):
            found[row["segment_id"]] = min(row["p_value"], found.get(row["segment_id"], 1.0))
    return found
