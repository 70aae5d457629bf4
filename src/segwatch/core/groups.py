"""What segments share in a period: the total, and each value of a dimension, against what was expected of them.

    residual of a segment = total + value of dimension 1 + ... + value of dimension k + rest

by a few sweeps of robust backfitting (Breiman and Friedman 1985; weights after Huber 1964). Each dimension's values are
recentred by their median, so that the shock of one does not show with the opposite sign in the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segwatch.core import compiled
from segwatch.core.panel import Floats, Ints, Segments

LEAST_MEMBERS = 4
_SWEEPS = 4
_HUBER = 1.5
# Of a large and quiet segment's weight, against the median.
_MOST_WEIGHT = 10.0
# A group's effect within two of its standard errors is taken for chance (James and Stein 1961).
_CHANCE = 4.0
# Calm groups move about once a month: of more such periods, their first outage would be told nowhere.
_RATE, _YOUNG, _CLIP = 0.02, 5.0, 3.0
_LEAST_SCALE, _FIRST = 0.005, 0.1
_ABS_TO_SD = 1.2533

TOTAL = (-1, "")
Key = tuple[int, str]
"""A group: the position of its dimension, and the value; `TOTAL` is all segments."""


@dataclass(frozen=True)
class Groups:
    """The groups of some segments. members: (1 + n_dimensions, n_segments), each segment's group in each margin, or -1.

    A value of a dimension is a group where enough segments have it, and the others together do not fall short.
    """

    keys: tuple[Key, ...]
    members: Ints

    @classmethod
    def of(cls, segments: Segments) -> Groups:
        """The groups of the segments; roll-ups belong to none."""
        keys: list[Key] = [TOTAL]
        leaves = ~segments.is_rollup
        margins = [np.where(leaves, 0, -1)]
        for d in range(len(segments.dimensions)):
            counts: dict[str | None, int] = {}
            for values, is_leaf in zip(segments.values, leaves, strict=True):
                if is_leaf:
                    counts[values[d]] = counts.get(values[d], 0) + 1
            large = sorted(value for value, count in counts.items() if value is not None and count >= LEAST_MEMBERS)
            place: dict[str | None, int] = (
                {value: len(keys) + i for i, value in enumerate(large)} if len(large) > 1 else {}
            )
            keys += [(d, value) for value in large if value in place]
            margins.append(
                np.array([place.get(v[d], -1) if leaf else -1 for v, leaf in zip(segments.values, leaves, strict=True)])
            )
        return cls(tuple(keys), np.stack(margins).astype(np.int64))

    def take(self, rows: Ints | slice) -> Groups:
        """The same groups, with some of the segments."""
        return Groups(self.keys, np.ascontiguousarray(self.members[:, rows]))

    def spread(self, of_groups: Floats) -> Floats:
        """(n_margins, n_segments): what each segment's groups (n_groups,) have; 0 where it is in none."""
        return np.where(self.members >= 0, of_groups[np.maximum(self.members, 0)], 0.0)

    def effects(self, residuals: Floats, sd: Floats) -> Floats:
        """(n_groups,) effects of one period, 0 where nothing is known or it may be chance.

        residuals: (n_segments,) on a log-like scale, NaN where there is none. sd: (n_segments,), of each residual.
        """
        effects = np.zeros(len(self.keys))
        if compiled.native is not None:
            compiled.native.effects(residuals, sd, self.members, len(self.members), effects)
            return effects
        rows = np.flatnonzero(~np.isnan(residuals) & (self.members[0] >= 0))
        if len(rows) < LEAST_MEMBERS:
            return effects
        members, residual, sd = self.members[:, rows], residuals[rows], sd[rows]
        precision = 1.0 / sd**2
        precision = np.minimum(precision, _MOST_WEIGHT * np.median(precision))
        fitted = np.zeros(members.shape)
        for _ in range(_SWEEPS):
            for margin, groups in enumerate(members):
                fitted[margin] = 0.0
                rest = residual - fitted.sum(axis=0)
                new = self._margin(groups, rest, rest - effects_of(effects, groups), precision, sd, centred=margin > 0)
                known = np.flatnonzero(~np.isnan(new))
                effects[known] = new[known]
                fitted[margin] = effects_of(effects, groups)
        return effects

    def _margin(
        self, groups: Ints, rest: Floats, distance: Floats, precision: Floats, sd: Floats, centred: bool
    ) -> Floats:
        """(n_groups,) effects of one margin's groups, NaN of all others."""
        inside = groups >= 0
        groups = groups[inside]
        rest, distance, precision, sd = (a[inside] for a in (rest, distance, precision, sd))
        n = len(self.keys)
        weight = precision * np.minimum(1.0, _HUBER / np.maximum(np.abs(distance / sd), 1e-9))
        total = np.bincount(groups, weight, n)
        with np.errstate(invalid="ignore", divide="ignore"):
            effect = np.bincount(groups, weight * rest, n) / total
            chance = _CHANCE / np.bincount(groups, precision, n)
            effect *= np.maximum(0.0, 1.0 - chance / effect**2)
        effect = np.where(total > 0, np.nan_to_num(effect), np.nan)
        return effect - np.nanmedian(effect) if centred and inside.any() else effect


def effects_of(effects: Floats, groups: Ints) -> Floats:
    """The effect of each one's group; 0 where it is in none."""
    return np.where(groups >= 0, effects[np.maximum(groups, 0)], 0.0)


@dataclass
class GroupScales:
    """How much each group moves where it does: (n_groups,) exponentially weighted scale, and in how many periods."""

    scale: Floats
    n_seen: Floats

    @classmethod
    def fresh(cls, n_groups: int) -> GroupScales:
        return cls(np.full(n_groups, np.nan), np.zeros(n_groups))

    def z(self, effects: Floats) -> Floats:
        """The effects in their groups' usual sizes; 0 where these are not known yet."""
        return np.where(self.n_seen >= _YOUNG, effects / np.maximum(np.nan_to_num(self.scale), _LEAST_SCALE), 0.0)

    def update(self, effects: Floats) -> None:
        """The scales, in place, have seen the effects of a period."""
        seen = effects != 0
        size = np.abs(effects) * _ABS_TO_SD
        # A first effect that is an outage, or a blizzard, would hide the next for years.
        limit = np.where(self.n_seen >= 1, _CLIP * np.maximum(self.scale, _LEAST_SCALE), _FIRST)
        size = np.minimum(size, limit)
        first = seen & np.isnan(self.scale)
        self.scale[first] = size[first]
        rate = np.maximum(_RATE, 1.0 / (self.n_seen + 1.0))
        self.scale += np.where(seen & ~first, rate * (size - self.scale), 0.0)
        self.n_seen += seen
