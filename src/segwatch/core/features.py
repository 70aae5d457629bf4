"""The only feature definitions: Panel values in, features out, for training, inference and bounds alike.

A row's features are a function of its own value and of a *context* of what came before it (`segwatch.core.baseline`
makes it). The split lets the same code answer "what if this value had been another": bounds and injected anomalies
need no second definition.

    z       the value against what is expected of it, in the segment's own noise, less half of what its groups share
    short   z and the two before it, clipped, summed and divided by the root of their number
    long    the same over a season
    flat    how improbable a run of equal values is, as a z
    shared  half the z of what its groups share: of the group that moved most
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from segwatch.core import compiled
from segwatch.core.noise import Kind, chance_of, relative_sd, standardised, value_at
from segwatch.core.panel import Bools, Floats
from segwatch.core.schema import to_metadata
from segwatch.core.window import Grain, long_period, period

FEATURES = ("z", "short", "long", "flat", "shared")
CONTEXT = (
    "unit",
    "expected",
    "noise",
    "former",
    "common",
    "common_z",
    "sum_short",
    "count_short",
    "sum_long",
    "count_long",
    "previous",
    "repeats",
    "surprise",
    "repeat_rate",
    "peak",
)
SHORT = 3
WINDOW_CLIP = 3.0
"""A past z counts at most this in a window's sum."""
_TODAY_CLIP = 6.0
_LARGEST = 12.0
# A window says little against a day that is itself in order.
_DISAGREEING, _AGREES_FROM = 1.5, 0.5
_SHARED_WEIGHT = 0.5
# asinh(x / scale): noise that adds up should not be taken for noise that multiplies, nor the other way round.
_LINEAR_UP_TO = 2.0
# What has been as clear as this is said: it goes on where the value itself is in order.
_SAID, _IN_ORDER = 4.0, 3.0
# A segment that repeats itself this often says nothing by repeating itself; nor does a run that went on for so long.
USUAL_REPEATS, _LONGEST_RUN = 0.5, 14.0


@dataclass(frozen=True)
class Own:
    """Values against the nearer of two levels: the present one, and that of before the last shift.

    z: standard deviations from it. sd: one of them on a log-like scale. is_former: whether it was the former level.
    """

    z: Floats
    sd: Floats
    is_former: Bools


@dataclass(frozen=True)
class FeatureSet:
    """The named, ordered features of one grain, and a fingerprint of their definition.

    kind: of the values; see `segwatch.core.noise`.
    """

    grain: Grain
    kind: Kind
    name: str = "recursive"
    version: int = 5

    @property
    def names(self) -> tuple[str, ...]:
        return FEATURES

    @property
    def is_count(self) -> bool:
        """Whether values are counts or ratios of them: none is negative."""
        return self.kind != "value"

    @property
    def season(self) -> int:
        return period(self.grain)

    @property
    def long_season(self) -> int:
        return long_period(self.grain)

    @property
    def burn_in(self) -> int:
        """Observations that a segment's baseline needs before its rows can be scored: four weeks, or two for hours."""
        return 4 * self.season if self.grain == "day" else 2 * self.long_season

    @property
    def fingerprint(self) -> str:
        """sha256 of the definition. Raise `version` with every change of a formula: a test holds their values."""
        definition = {
            "name": self.name,
            "version": self.version,
            "kind": self.kind,
            "season": self.season,
            "long_season": self.long_season,
            "features": FEATURES,
            "context": CONTEXT,
        }
        return hashlib.sha256(to_metadata(definition).encode()).hexdigest()

    def segment_scale(self, values: Floats) -> Floats:
        """(n_segments,) scale of each row of `values`: 1 for counts, else twice the median |value| (2 if that is 0)."""
        if self.is_count:
            return np.ones(len(values))
        return np.array([_LINEAR_UP_TO * _positive_median(np.abs(row[~np.isnan(row)])) for row in values])

    def to_scale(self, values: Floats, unit: Floats) -> Floats:
        """The values on the scale of the levels: counts as they are, ratios as counts, others as asinh(x / unit)."""
        return np.asarray(values * unit if self.is_count else np.arcsinh(values / unit))

    def from_scale(self, levels: Floats, unit: Floats) -> Floats:
        """Inverse of `to_scale`."""
        return np.asarray(levels / unit if self.is_count else unit * np.sinh(levels))

    def is_complete(self, context: Floats) -> Bools:
        """Which contexts (..., n_context) hold all that the features need; the others cannot be scored."""
        return ~np.isnan(context[..., CONTEXT.index("noise")])

    def features(self, values: Floats, context: Floats) -> Floats:
        """The features of values in their contexts.

        values: (...), context: (..., n_context); shapes broadcast. Returns (..., n_features) float64, NaN where the
        value or the context is.
        """
        if compiled.native is not None:
            shape, values, context = _paired(values, context)
            X = np.empty((*shape, len(FEATURES)))
            compiled.native.features(self.kind, values, context, values.shape[1], X)
            return X
        named = _named(context)
        own = self._own(values, named)
        z = own.z - _SHARED_WEIGHT * named["common"] / own.sd
        short = _window(z, named["sum_short"], named["count_short"])
        long = _window(z, named["sum_long"], named["count_long"])
        flat = self._flat(values, named)
        shared = _SHARED_WEIGHT * np.clip(named["common_z"], -_LARGEST, _LARGEST)
        columns = np.clip(z, -_LARGEST, _LARGEST), short, long, flat, shared
        return np.stack(np.broadcast_arrays(*columns), axis=-1)

    def own(self, values: Floats, context: Floats) -> Own:
        """The values against what is expected of them alone, whatever their groups do; shapes as in `features`."""
        if compiled.native is None:
            return self._own(values, _named(context))
        shape, values, context = _paired(values, context)
        found = Own(np.empty(shape), np.empty(shape), np.empty(shape, dtype=np.bool_))
        compiled.native.own(self.kind, values, context, values.shape[1], found.z, found.sd, found.is_former)
        return found

    def _own(self, values: Floats, named: Mapping[str, Floats]) -> Own:
        x, noise = self.to_scale(values, named["unit"]), named["noise"]
        z, former = (standardised(x, named[name], noise, self.kind) for name in ("expected", "former"))
        is_former = np.abs(former) < np.abs(z)
        expected = np.where(is_former, named["former"], named["expected"])
        return Own(np.where(is_former, former, z), relative_sd(noise, expected, self.kind), is_former)

    def is_ongoing(self, values: Floats, context: Floats) -> Bools:
        """Whether the values are in order by themselves, while the periods before have shown a change already."""
        peak = context[..., CONTEXT.index("peak")]
        return np.asarray((np.abs(self.own(values, context).z) < _IN_ORDER) & (peak >= _SAID))

    def surprise(self, values: Floats, context: Floats) -> Floats:
        """-ln of the chance of a run of equal values that goes on with these; 0 where they begin a new one."""
        return self._surprise(values, _named(context))

    def _surprise(self, values: Floats, named: Mapping[str, Floats]) -> Floats:
        x = self.to_scale(values, named["unit"])
        if self.is_count:
            chance = np.maximum(chance_of(x, named["expected"], named["noise"]), named["repeat_rate"])
        else:
            chance = named["repeat_rate"]
        goes_on = np.where(named["repeats"] < _LONGEST_RUN, -np.log(chance), 0.0)
        return np.where(values == named["previous"], named["surprise"] + goes_on, 0.0)

    def _flat(self, values: Floats, named: Mapping[str, Floats]) -> Floats:
        nats = self._surprise(values, named)
        from scipy.special import ndtri  # see `_exact` of noise.py

        z = np.where(nats > np.log(2.0), -ndtri(np.exp(-np.minimum(nats, 600.0))), 0.0)
        is_usual = (named["repeat_rate"] >= USUAL_REPEATS) | (named["repeats"] >= _LONGEST_RUN)
        return np.where(np.isnan(values), np.nan, np.where(is_usual, 0.0, np.minimum(z, _LARGEST)))

    def expected(self, context: Floats) -> Floats:
        """The level in the metric's own unit."""
        named = _named(context)
        return self.from_scale(named["expected"], named["unit"])

    def values_at(self, z: Floats, context: Floats) -> Floats:
        """About the values that lie z standard deviations from the expected one; shapes broadcast."""
        named = _named(context)
        return self.from_scale(value_at(z, named["expected"], named["noise"], self.kind), named["unit"])


def _paired(values: Floats, context: Floats) -> tuple[tuple[int, ...], Floats, Floats]:
    """Their common shape, the values (m, k) and the contexts (m, n_context), for the compiled code."""
    shape = np.broadcast_shapes(np.shape(values), context.shape[:-1])
    if context.ndim > 1 and context.shape[-2] == 1 and context.shape[:-2] == shape[:-1]:
        rows, width = context, shape[-1]
    else:
        rows, width = np.broadcast_to(context, (*shape, len(CONTEXT))), 1
    return (
        shape,
        np.ascontiguousarray(np.broadcast_to(values, shape), dtype=np.float64).reshape(-1, width),
        np.ascontiguousarray(rows, dtype=np.float64).reshape(-1, len(CONTEXT)),
    )


def _positive_median(values: Floats) -> float:
    median = float(np.median(values)) if values.size else 0.0
    return median if median > 0 else 1.0


def _named(context: Floats) -> Mapping[str, Floats]:
    return dict(zip(CONTEXT, np.moveaxis(context, -1, 0), strict=True))


def _window(z: Floats, past: Floats, count: Floats) -> Floats:
    total = (np.clip(z, -_TODAY_CLIP, _TODAY_CLIP) + past) / np.sqrt(count + 1.0)
    agrees = (np.abs(z) >= _AGREES_FROM) & (np.sign(z) == np.sign(past))
    return np.where(agrees, total, np.clip(total, -_DISAGREEING, _DISAGREEING))
