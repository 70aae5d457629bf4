"""Incidents: what broke, said once, however many segments show it and however long it lasts.

In each period the anomalies are put down to causes (`causes_of`): sets of dimension values that account for the change
(`segwatch.core.localisation`), or a segment by itself. A cause that goes on from one period to the next is one incident
(`follow`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from segwatch.core.localisation import EXPOSED, localise
from segwatch.core.panel import Bools, Floats, Ints, Segments
from segwatch.core.segment import Values, digest, holds, label, signed
from segwatch.core.window import Grain, length

Status = Literal["new", "ongoing", "worse", "resolved"]
Direction = Literal["up", "down"]

QUIET = 1
"""Periods without an anomaly that an incident outlives: one good day in an outage does not end it."""

# A sum is explained by what accounts for half of its change.
_EXPLAINED = 0.5
# What fell hardly more than the average is no cause of its own where the total alerts.
_EVEN = 1.25
# An incident is worse once its impact is so many times that of its worst period so far.
_WORSE = 1.5
# Of a wider cause's impact that an incident must have had to be the beginning of it.
_PART = 0.25
# Looks at all segments for causes, in a period and direction, and causes of one look; what is left is said segment by
# segment.
_MOST_LOOKS, _MOST_CAUSES = 5, 25
MOST_NAMED = 20
"""Segments that an incident names, those of the largest impact."""


@dataclass(frozen=True)
class Scored:
    """A period's rows: segments and roll-ups that could be scored. values, expected, is_anomaly: (n_rows,), of
    a ratio the numerators. weight: (n_rows,), see `localise`; None for |expected|. is_additive: whether values can be
    added up, as counts can and temperatures cannot."""

    segments: Segments
    values: Floats
    expected: Floats
    is_anomaly: Bools
    is_additive: bool = True
    weight: Floats | None = None

    @property
    def weights(self) -> Floats:
        return np.abs(self.expected) if self.weight is None else self.weight

    @property
    def change(self) -> Floats:
        return self.values - self.expected


@dataclass(frozen=True)
class Cause:
    """What broke in a period. values: of the dimensions, None for any. impact, expected: of its segments together, in
    the metric's unit. share: part of the period's change in this direction that it accounts for, NaN where values
    cannot be added up. rows: positions of the anomalous rows that it explains; segments: positions of its segments,
    the largest impact first."""

    values: Values
    direction: Direction
    impact: float
    expected: float
    share: float
    rows: Ints
    segments: Ints


def causes_of(scored: Scored) -> list[Cause]:
    """The causes of a period's anomalies, the largest impact first; each anomaly is put down to one of them."""
    causes = [*_of_direction(scored, "down"), *_of_direction(scored, "up")]
    return sorted(causes, key=lambda cause: (-abs(cause.impact), label(cause.values)))


def _of_direction(scored: Scored, direction: Direction) -> Iterator[Cause]:
    sign = 1.0 if direction == "up" else -1.0
    change = sign * scored.change
    pending = scored.is_anomaly & (change > 0)
    if not pending.any():
        return
    codes, is_rollup = scored.segments.codes, scored.segments.is_rollup
    total = float(np.maximum(change, 0.0)[~is_rollup].sum()) if scored.is_additive else np.nan
    # Segments whose change is not put down to a cause yet.
    rest = ~is_rollup

    def put_down_to(cell: Ints) -> Cause:
        """The cause in the cell, whose alerts and segments are no longer open."""
        inside = _within(codes, cell)
        explained = pending & inside
        explained[_explained(codes, cell, change, rest, np.flatnonzero(pending & is_rollup))] = True
        leaves = np.flatnonzero(inside & rest)
        leaves = leaves[np.argsort(-change[leaves], kind="stable")]
        impact, expected = sign * float(change[leaves].sum()), float(scored.expected[leaves].sum())
        one = leaves if len(leaves) else np.flatnonzero(explained)
        values = tuple(None if code < 0 else scored.segments.values[one[0]][d] for d, code in enumerate(cell))
        cause = Cause(values, direction, impact, expected, abs(impact) / total, np.flatnonzero(explained), leaves)
        pending[cause.rows] = False
        rest[cause.segments] = False
        return cause

    if scored.is_additive:
        for _ in range(_MOST_LOOKS):
            n_pending = pending.sum()
            for cell in _common_causes(scored, codes, rest, pending, int(sign)):
                yield put_down_to(cell)
            if pending.sum() == n_pending:
                break
        for row in _summed_causes(change, is_rollup, pending, scored.weights):
            if pending[row]:
                yield put_down_to(codes[:, row])
    # The others speak for themselves.
    for row in np.flatnonzero(pending):
        impact = sign * float(change[row])
        yield Cause(
            values=scored.segments.values[row],
            direction=direction,
            impact=impact,
            expected=float(scored.expected[row]),
            share=abs(impact) / total,
            rows=np.array([row]),
            segments=np.array([row]),
        )


def _common_causes(scored: Scored, codes: Ints, rest: Bools, pending: Bools, sign: int) -> Iterator[Ints]:
    """The cells of the best candidates that anomalies speak for, none of which holds a part of another.

    Of a single segment its own alert does, of several two of theirs or one of a roll-up inside or of the cell itself.
    rest, pending: as they are when the next is asked for.
    """
    at = np.flatnonzero(rest)
    if not len(at):
        return
    found = localise(
        codes[:, at], scored.values[at], scored.expected[at], scored.weights[at], most=_MOST_CAUSES, direction=sign
    )
    total = np.full(len(codes), -1)
    is_even = not found or found[0].share < _EVEN * found[0].exposure
    if is_even and (pending & (codes < 0).all(axis=0)).any():
        yield total
        return
    looked_at = rest.copy()
    for candidate in found:
        if candidate.also:
            continue
        cell = total.copy()
        for d, code in candidate.dimensions.items():
            cell[d] = code
        inside = _within(codes, cell)
        if (inside & looked_at & ~rest).any():
            continue
        alerting = np.flatnonzero(pending & inside & rest)
        if candidate.n_leaves == 1:
            if len(alerting):
                yield codes[:, alerting[0]]
        elif len(alerting) > 1 or (pending & inside & scored.segments.is_rollup).any():
            yield cell


def _summed_causes(change: Floats, is_rollup: Bools, pending: Bools, weight: Floats) -> Ints:
    """The roll-ups that alerted although no group of segments stands out, the best account first: as in `localise`, but
    of the sums themselves, the total among them."""
    rows = np.flatnonzero(pending & is_rollup)
    if not len(rows):
        return rows
    score = change[rows] / change[rows].max() - EXPOSED * weight[rows] / max(float(weight[~is_rollup].sum()), 1e-12)
    return rows[np.argsort(-score, kind="stable")]


def _within(codes: Ints, cell: Ints) -> Bools:
    """(n_rows,), which rows lie in a cell: one code for each dimension, -1 for any."""
    return np.asarray(((cell[:, None] < 0) | (codes == cell[:, None])).all(axis=0))


def _explained(codes: Ints, cell: Ints, change: Floats, rest: Bools, rollups: Ints) -> Ints:
    """Those of the roll-ups of whose change half or more lies in the cell, among segments that are left."""
    at = np.flatnonzero(_within(codes, cell) & rest)
    inside, lost = codes[:, at], change[at]
    common = np.array([lost[_within(inside, codes[:, row])].sum() for row in rollups])
    return rollups[common >= _EXPLAINED * change[rollups]]


@dataclass(frozen=True)
class Incident:
    """An incident as of one period. values: see `Cause`; those of its worst period. first_seen, last_seen: periods with
    an anomaly. impact, expected, share: of this period; total_impact: of all so far; peak: the largest |impact| so far.
    segments: ids of the segments of the largest impact; labels: their names. n_segments: how many it concerns."""

    id: str
    ts: np.datetime64
    first_seen: np.datetime64
    last_seen: np.datetime64
    status: Status
    direction: Direction
    values: Values
    impact: float
    expected: float
    share: float
    total_impact: float
    peak: float
    n_segments: int
    segments: tuple[str, ...]
    labels: tuple[str, ...]


def incident_id(metric: str, dimensions: Sequence[str], cause: Cause, first_seen: np.datetime64) -> str:
    """Stable id of an incident: 20 hex digits over what broke first, and when."""
    pairs = [[name, value] for name, value in zip(dimensions, cause.values, strict=True) if value is not None]
    return digest([metric, str(first_seen), cause.direction, pairs])


def follow(
    metric: str, open_: Sequence[Incident], scored: Scored, ts: np.datetime64, grain: Grain
) -> tuple[list[Incident], list[Incident]]:
    """The incidents as of a period, and those that are open after it.

    open_: those open before the period. A cause belongs to the open incident of its direction that is about the same
    dimension values, or holds them, or lies in them; an incident without a cause is over after `QUIET` periods.
    """
    taken: dict[str, list[Cause]] = {one.id: [] for one in open_}
    by_values: dict[tuple[Direction, Values], list[Incident]] = {}
    for one in open_:
        by_values.setdefault((one.direction, one.values), []).append(one)
    fresh: list[Cause] = []
    for cause in causes_of(scored):
        related = [one for key in _holding(cause.values) for one in by_values.get((cause.direction, key), ())]
        if not related and None in cause.values:
            last = ts - length(1, grain)
            related = [one for one in open_ if one.last_seen == last and _is_beginning_of(one, cause)]
        if related:
            taken[min(related, key=lambda one: (one.values != cause.values, one.first_seen)).id].append(cause)
        else:
            fresh.append(cause)
    said = [_begun(metric, cause, scored, ts) for cause in fresh]
    still_open = list(said)
    for one in open_:
        if taken[one.id]:
            said.append(_gone_on(one, taken[one.id], scored, ts))
            still_open.append(said[-1])
        elif ts - one.last_seen > length(QUIET, grain):
            said.append(replace(one, ts=ts, status="resolved", impact=0.0, expected=np.nan, share=np.nan))
        else:
            still_open.append(one)
    return sorted(said, key=lambda one: (-abs(one.impact), one.id)), still_open


def _holding(values: Values) -> Iterator[Values]:
    """The values themselves and all that hold them."""
    return product(*((value,) if value is None else (value, None) for value in values))


def _is_beginning_of(one: Incident, cause: Cause) -> bool:
    """Whether an incident of the period before may have become a wider cause: if it was no small part of it."""
    is_large = one.direction == cause.direction and one.peak >= _PART * abs(cause.impact)
    return is_large and holds(cause.values, one.values)


def _begun(metric: str, cause: Cause, scored: Scored, ts: np.datetime64) -> Incident:
    id_ = incident_id(metric, scored.segments.dimensions, cause, ts)
    size = abs(cause.impact)
    return _named(
        Incident(
            id_, ts, ts, ts, "new", cause.direction, cause.values, cause.impact, cause.expected, cause.share,
            cause.impact, size, 0, (), (),
        ),
        [cause],
        scored,
    )  # fmt: skip


def _gone_on(one: Incident, causes: Sequence[Cause], scored: Scored, ts: np.datetime64) -> Incident:
    impact = sum(cause.impact for cause in causes)
    widest = min((cause.values for cause in causes), key=lambda values: sum(value is not None for value in values))
    is_wider = holds(widest, one.values) and widest != one.values
    is_worse = is_wider or abs(impact) > _WORSE * one.peak
    gone_on = replace(
        one,
        ts=ts,
        last_seen=ts,
        status="worse" if is_worse else "ongoing",
        values=widest if is_wider else one.values,
        impact=impact,
        expected=sum(cause.expected for cause in causes),
        share=float(sum(cause.share for cause in causes)),
        total_impact=one.total_impact + impact,
        peak=max(one.peak, abs(impact)),
    )
    return _named(gone_on, causes, scored)


def _named(one: Incident, causes: Sequence[Cause], scored: Scored) -> Incident:
    """The incident with the segments of its causes."""
    sign = 1.0 if one.direction == "up" else -1.0
    places = np.unique(np.concatenate([cause.segments for cause in causes]))
    change = sign * (scored.values[places] - scored.expected[places])
    places = places[np.argsort(-change, kind="stable")]
    named = places[:MOST_NAMED].tolist()
    return replace(
        one,
        n_segments=len(places),
        segments=tuple(scored.segments.ids[i] for i in named),
        labels=tuple(label(scored.segments.values[i]) for i in named),
    )


def sentence(one: Incident) -> str:
    """An incident in words: `it/ios/* down 62 % (-1,240) since 2026-11-20, 9 segments: ongoing`."""
    said = f"{label(one.values)} {one.direction}"
    if one.status == "resolved":
        last = "" if one.first_seen == one.last_seen else f" to {one.last_seen}"
        said += f" ({signed(one.total_impact)} in all) {'from' if last else 'on'} {one.first_seen}{last}"
    else:
        if one.expected and np.isfinite(one.expected):
            said += f" {100 * abs(one.impact / one.expected):.0f} %"
        said += f" ({signed(one.impact)}) " + ("on" if one.first_seen == one.ts else "since") + f" {one.first_seen}"
    held = f", {one.n_segments:,} segments" if one.n_segments > 1 else ""
    return f"{said}{held}: {one.status}"
