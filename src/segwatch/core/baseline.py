"""What is expected of each segment next, learned one period at a time: O(1) work and memory per row.

    level    exponentially weighted mean of the values without their profile
    profile  one factor (one summand where values have a sign) for each period of a week, the same kind of mean over
             about 13 weeks, shrunk towards flat by as much as noise can explain (James and Stein 1961)
    noise    the segment's own, exponentially weighted

A value moves them by less the less likely it was (Huber's weight, none past 4 standard deviations), so that an anomaly
does not echo. A change that stays becomes the new normal: after `adapt_after` anomalous periods on one side the level
is learned anew from them, and after two weeks that repeat each other and not the profile both are. For four weeks the
level before is remembered: a return to it is no second change.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa

from segwatch.core import compiled
from segwatch.core.features import CONTEXT, FEATURES, SHORT, WINDOW_CLIP, FeatureSet, Own
from segwatch.core.noise import PHI, floored, standardised
from segwatch.core.panel import Bools, Floats, Ints
from segwatch.core.window import Grain

# Per period; hours come in larger numbers and teach less each.
_SPEED: dict[Grain, float] = {"day": 1.0, "hour": 1.0 / 8.0}
_LEVEL_RATE, _NOISE_RATE, _PROFILE_RATE = 0.05, 0.02, 0.074
# In the first weeks the noise is hardly known.
_YOUNG_WEEKS, _YOUNG_NOISE_RATE = 12, 0.05
_FULL_WEIGHT, _NO_WEIGHT, _KNOWN_WEIGHT = 2.5, 4.0, 0.3
# What spoke for itself would only echo in the windows after it.
_ECHO = 1.0
_ANOMALOUS = 3.0
_MISFIT_CLIP, _MISFIT, _REPEATS_BETTER = 25.0, 4.0, 0.25
_REMEMBERED_WEEKS, _RETURNED_AFTER = 4, 3.0
_LEAST_STREAK, _SHIFTING = 0.4, 2.0
_REPEAT_RATE = 0.01
_MATERIAL = 1.0
_LEAST_PROFILE, _MOST_PROFILE, _LEAST_LEVEL = 0.05, 20.0, 0.005
_ABS_TO_SD = 1.2533
_EFFECT_RATE, _MOST_EFFECT = 0.2, 1.5
_LEAST_NOISE, _MOST_NOISE = 1e-4, 20.0

STATE = "state."
"""What the names of a state's columns begin with."""


@dataclass
class Baseline:
    """The state of n segments before a period, which `Recursion.update` changes in place.

    Arrays are (n,), or (n, P) with P the periods of a week. scale: of the segment's values, see
    `FeatureSet.segment_scale`. misfit, repeat_misfit: how badly the profile, and the week before in its place, have
    fitted of late. streak: anomalous periods in a row, with their sign; peak: how clear they were at most;
    settled_level: the level before them, trail: those of the season before, (n, season), the last one first. window:
    clipped z of the periods of one season before, (n, season - 1), the last one first. own_effect: by how much the
    segment does otherwise than its groups on days that something is known of, from n_effects of them.
    """

    scale: Floats
    n_seen: Floats
    level: Floats
    profile: Floats
    slot_seen: Floats
    noise: Floats
    last: Floats
    before_last: Floats
    misfit: Floats
    repeat_misfit: Floats
    streak: Floats
    peak: Floats
    settled_level: Floats
    trail: Floats
    former_level: Floats
    former_age: Floats
    former_votes: Floats
    window: Floats
    previous: Floats
    repeats: Floats
    surprise: Floats
    repeat_rate: Floats
    own_effect: Floats
    n_effects: Floats

    def __len__(self) -> int:
        return len(self.scale)

    @classmethod
    def fresh(cls, scale: Floats, features: FeatureSet) -> Baseline:
        """The state of segments of which nothing was seen yet. scale: (n,)."""
        n, long = len(scale), features.long_season

        def filled(value: float, *width: int) -> Floats:
            return np.full((n, *width), value)

        return cls(
            scale=np.asarray(scale, dtype=np.float64),
            n_seen=filled(0.0),
            level=filled(np.nan),
            profile=filled(1.0 if features.is_count else 0.0, long),
            slot_seen=filled(0.0, long),
            noise=filled(1.0 if features.is_count else 0.5),
            last=filled(np.nan, long),
            before_last=filled(np.nan, long),
            misfit=filled(0.0),
            repeat_misfit=filled(0.0),
            streak=filled(0.0),
            peak=filled(0.0),
            settled_level=filled(np.nan),
            trail=filled(np.nan, features.season),
            former_level=filled(np.nan),
            former_age=filled(0.0),
            former_votes=filled(0.0),
            window=filled(np.nan, features.season - 1),
            previous=filled(np.nan),
            repeats=filled(0.0),
            surprise=filled(0.0),
            repeat_rate=filled(2.0 * _REPEAT_RATE),
            own_effect=filled(0.0),
            n_effects=filled(0.0),
        )

    @property
    def arrays(self) -> tuple[Floats, ...]:
        """Its arrays, in the order of its fields."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def take(self, rows: Ints | slice) -> Baseline:
        """The state of some of the segments."""
        return Baseline(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def joined(self, other: Baseline) -> Baseline:
        """The state of these segments and of the others after them."""
        return Baseline(
            **{f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        )

    def columns(self) -> dict[str, pa.Array]:
        """One Arrow column for each array; `from_table` reads them back."""
        return {f"{STATE}{f.name}": _column(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_table(cls, table: pa.Table) -> Baseline:
        """Inverse of `columns`; other columns of the table are ignored."""
        return cls(**{f.name: _array(table[f"{STATE}{f.name}"]) for f in fields(cls)})


def _column(values: Floats) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _array(column: pa.ChunkedArray) -> Floats:
    whole = column.combine_chunks()
    if not pa.types.is_fixed_size_list(whole.type):
        return np.array(whole.to_numpy(zero_copy_only=False))
    return np.array(whole.flatten().to_numpy(zero_copy_only=False)).reshape(len(whole), whole.type.list_size)


@dataclass(frozen=True)
class Period:
    """Of one period: its slot in the week, and for each segment (n,) its unit (see `FeatureSet.to_scale`) and effect.

    effect: what is known of the period beforehand, a logarithm for counts and a summand for other values.
    """

    slot: int
    unit: Floats
    effect: Floats

    def take(self, rows: slice) -> Period:
        """The same of some of the segments."""
        return Period(self.slot, self.unit[rows], self.effect[rows])


@dataclass(frozen=True)
class Recursion:
    """How a Baseline goes on from one period to the next.

    adapt_after: anomalous periods after which a shift of the level is the new normal. timezone: whose week is meant.
    """

    features: FeatureSet
    adapt_after: int = 7
    timezone: str = "UTC"

    def expected(self, state: Baseline, period: Period) -> Floats:
        """(n,), what the period's values are expected to be, on the scale of the levels; NaN of a new segment."""
        return self._with(state.level, self._profile(state, period), period)

    def effects(self, state: Baseline, shared: Floats, is_known: Bools) -> Floats:
        """(n,) effects of a period, from what the segments share of it; 0 where nothing is known."""
        own = state.own_effect * state.n_effects / (state.n_effects + 1.0)
        return np.where(is_known, np.clip(shared + own, -_MOST_EFFECT, _MOST_EFFECT), 0.0)

    def learn_effects(self, state: Baseline, deviation: Floats, is_known: Bools) -> None:
        """The segments' own effects have, in place, learned by how much they differed from the shared ones."""
        seen = is_known & ~np.isnan(deviation)
        rate = np.maximum(_EFFECT_RATE, 1.0 / (state.n_effects + 1.0))
        step = np.clip(deviation, -_MOST_EFFECT, _MOST_EFFECT) - state.own_effect
        state.own_effect += np.where(seen, rate * step, 0.0)
        state.n_effects += seen

    def context(self, state: Baseline, period: Period) -> Floats:
        """(n, n_context): what the features of the period need. What groups share is 0, for the caller to fill in."""
        if compiled.native is not None:
            found = np.empty((len(state), len(CONTEXT)))
            compiled.native.context(self.rules, state.arrays, period.slot, period.unit, period.effect, found)
            return found
        is_ready = (state.n_seen >= self.features.burn_in) & ~np.isnan(state.level)
        profile = self._profile(state, period)
        recent = state.window[:, : SHORT - 1]
        # A day of which something is known may turn out a day like others.
        plain = np.where(period.effect != 0, state.level, np.nan)
        former = np.where(np.isnan(state.former_level), plain, state.former_level)
        other = replace(period, effect=np.where(np.isnan(state.former_level), 0.0, period.effect))
        columns = {
            "unit": period.unit,
            "expected": self._with(state.level, profile, period),
            "noise": np.where(is_ready, state.noise, np.nan),
            "former": self._with(former, profile, other),
            "sum_short": np.nansum(recent, axis=1),
            "count_short": (~np.isnan(recent)).sum(axis=1),
            "sum_long": np.nansum(state.window, axis=1),
            "count_long": (~np.isnan(state.window)).sum(axis=1),
            "previous": state.previous,
            "repeats": state.repeats,
            "surprise": state.surprise,
            "repeat_rate": state.repeat_rate,
            "peak": state.peak,
        }
        context = np.zeros((len(state), len(CONTEXT)))
        for name, column in columns.items():
            context[:, CONTEXT.index(name)] = column
        return context

    def update(self, state: Baseline, values: Floats, context: Floats, period: Period) -> None:
        """The state, in place, has seen the period's values (n,); NaN: no observation. context: that of the values."""
        if compiled.native is not None:
            compiled.native.update(self.rules, state.arrays, period.slot, period.unit, period.effect, values, context)
            return
        seen = ~np.isnan(values)
        x = self.features.to_scale(values, period.unit)
        bare = self._without(x, period)
        self._start(state, bare, seen)
        # The state's own noise where the context has none yet.
        context = _replaced(context, noise=state.noise)
        own, X = self.features.own(values, context), self.features.features(values, context)
        self._update_repeats(state, values, context, seen)
        self._update_misfit(state, own, x, period, seen)
        self._update_noise(state, X, context, seen)
        self._update_level(state, own, X, bare, period, seen)
        self._update_former(state, own, seen)
        self._update_window(state, X, x, context, seen)
        state.before_last[seen, period.slot] = state.last[seen, period.slot]
        state.last[seen, period.slot] = bare[seen]
        state.n_seen += seen
        self._relearn_level(state, period.slot)
        self._relearn_profile(state)
        if period.slot == self.features.long_season - 1:
            self._centre(state)

    @property
    def rules(self) -> tuple[str, int, int, int, int, float]:
        """What the compiled code needs to know of it."""
        features = self.features
        return features.kind, features.long_season, features.season, features.burn_in, self.adapt_after, self._speed

    @property
    def _speed(self) -> float:
        return _SPEED[self.features.grain]

    def _with(self, level: Floats, profile: Floats, period: Period) -> Floats:
        if self.features.is_count:
            return np.asarray(level * profile * np.exp(period.effect) * period.unit)
        return np.asarray(level + profile + period.effect)

    def _without(self, x: Floats, period: Period) -> Floats:
        """x without its effect and, for counts, per unit: level and profile are left."""
        if self.features.is_count:
            return np.asarray(x / (np.exp(period.effect) * period.unit))
        return np.asarray(x - period.effect)

    def _less(self, bare: Floats, part: Floats) -> Floats:
        """The level that values without their effect have by their profile, or the profile by their level."""
        return np.asarray(bare / part if self.features.is_count else bare - part)

    def _profile(self, state: Baseline, period: Period) -> Floats:
        """The slot's factor or summand (n,), as far from the week's mean as noise does not explain."""
        mean = state.profile.mean(axis=1)
        variance = state.noise**2
        if self.features.is_count:
            level = np.maximum(np.nan_to_num(state.level * mean * period.unit), 0.01)
            variance = variance * (PHI + 1.0 / level)
        settled = _PROFILE_RATE / 2.0
        noise = np.maximum(settled, 1.0 / np.maximum(state.slot_seen[:, period.slot], 1.0)) * variance
        spread = ((state.profile - mean[:, None]) ** 2).mean(axis=1)
        signal = np.maximum(spread - settled * variance, 1e-4)
        profile = mean + signal / (signal + noise) * (state.profile[:, period.slot] - mean)
        return np.asarray(np.maximum(profile, _LEAST_PROFILE) if self.features.is_count else profile)

    def _start(self, state: Baseline, bare: Floats, seen: Bools) -> None:
        first = seen & np.isnan(state.level)
        state.level[first] = np.maximum(bare[first], _LEAST_LEVEL) if self.features.is_count else bare[first]

    def _update_repeats(self, state: Baseline, values: Floats, context: Floats, seen: Bools) -> None:
        same = values == state.previous
        # A long run would teach that repeats are usual.
        counted = seen & ~np.isnan(state.previous) & (state.repeats < SHORT)
        state.surprise[seen] = self.features.surprise(values, context)[seen]
        state.repeat_rate += np.where(counted, _REPEAT_RATE * (same - state.repeat_rate), 0.0)
        state.repeats[seen] = np.where(same, state.repeats + 1.0, 0.0)[seen]
        state.previous[seen] = values[seen]

    def _update_misfit(self, state: Baseline, own: Own, x: Floats, period: Period, seen: Bools) -> None:
        """How badly the level and profile fit, and how badly the week before would have."""
        features, rate = self.features, 2.0 / (self.features.long_season + 1.0)
        week_before = self._with(state.last[:, period.slot], np.ones(1) * features.is_count, period)
        other = standardised(x, week_before, state.noise, features.kind)
        other = np.where(np.isnan(other), _MISFIT_CLIP, np.minimum(other**2 / 2.0, _MISFIT_CLIP))
        squared = np.minimum(np.nan_to_num(own.z) ** 2, _MISFIT_CLIP)
        state.misfit += np.where(seen, rate * (squared - state.misfit), 0.0)
        state.repeat_misfit += np.where(seen, rate * (other - state.repeat_misfit), 0.0)

    def _update_noise(self, state: Baseline, X: Floats, context: Floats, seen: Bools) -> None:
        if self.features.kind == "value":
            self._start_noise(state, seen)
        expected = context[:, CONTEXT.index("expected")]
        size = np.abs(X[:, 0]) * floored(state.noise, expected, self.features.kind)
        size = np.minimum(size, _FULL_WEIGHT * state.noise) * _ABS_TO_SD
        young = state.n_seen < _YOUNG_WEEKS * self.features.long_season
        rate = np.where(young, _YOUNG_NOISE_RATE, _NOISE_RATE) * self._speed
        # What happens amid a shift says nothing of the noise.
        counted = seen & self._is_grown(state) & ~np.isnan(size) & (np.abs(state.streak) < _SHIFTING)
        state.noise += np.where(counted, rate * (size - state.noise), 0.0)
        np.clip(state.noise, _LEAST_NOISE, _MOST_NOISE, out=state.noise)

    def _start_noise(self, state: Baseline, seen: Bools) -> None:
        """The noise of values that are two weeks old is that of one week against the other.

        Counts begin at 1, near theirs; what moves values is any share of what their level is.
        """
        rows = np.flatnonzero(seen & (state.n_seen == 2 * self.features.long_season))
        differences = np.abs(state.last[rows] - state.before_last[rows])
        state.noise[rows] = np.nanmean(differences, axis=1) * _ABS_TO_SD / np.sqrt(2.0)

    def _is_grown(self, state: Baseline) -> Bools:
        return np.asarray(state.n_seen >= 2 * self.features.long_season)

    def _update_level(self, state: Baseline, own: Own, X: Floats, bare: Floats, period: Period, seen: Bools) -> None:
        long, flat = (X[:, FEATURES.index(name)] for name in ("long", "flat"))
        strength = np.nan_to_num(np.maximum(np.maximum(np.abs(own.z), np.abs(long)), flat))
        grown = self._is_grown(state)
        # The first period has no z, and a NaN would stay in the streak for ever.
        side = np.sign(np.nan_to_num(np.where(np.abs(own.z) >= np.abs(long), own.z, long)))
        # A run of equal values has no side of its own.
        side = np.where((flat >= strength) & (state.streak != 0), np.sign(state.streak), side)
        side = np.where((strength > _ANOMALOUS) & grown, side, 0.0)
        # A day off, as a holiday amid a shift, does not begin the count anew.
        kept = np.where(side * state.streak >= 0, 1.0, 0.5) * np.where(side == 0, 0.5, 1.0)
        streak = kept * state.streak + side
        state.streak[seen] = np.where(np.abs(streak) < _LEAST_STREAK, 0.0, streak)[seen]
        goes_on = np.where(np.abs(state.streak) >= 1.0, np.maximum(state.peak, strength), 0.0)
        state.peak[seen] = goes_on[seen]
        single = np.nan_to_num(np.maximum(np.abs(own.z), flat))
        huber = np.where(single > _NO_WEIGHT, 0.0, np.minimum(1.0, _FULL_WEIGHT / np.maximum(single, 1e-9)))
        weight = np.where(grown, huber, 1.0)
        weight = weight * np.where(period.effect != 0, _KNOWN_WEIGHT, 1.0) * (seen & ~own.is_former)
        self._update_settled(state)
        profile = self._profile(state, period)
        rate = np.maximum(_LEVEL_RATE * self._speed, 1.0 / (state.n_seen + 1.0)) * weight
        # A slot of half the mean counts half: its relative noise is the larger.
        step = bare - state.level * profile if self.features.is_count else bare - profile - state.level
        state.level += np.where(rate > 0, rate * step, 0.0)
        if self.features.is_count:
            np.maximum(state.level, _LEAST_LEVEL, out=state.level)
        seen_slot = state.slot_seen[:, period.slot]
        rate = np.maximum(_PROFILE_RATE, 1.0 / (seen_slot + 1.0)) * weight
        own_profile = state.profile[:, period.slot]
        own_profile += np.where(rate > 0, rate * (self._less(bare, state.level) - own_profile), 0.0)
        if self.features.is_count:
            np.clip(own_profile, 0.0, _MOST_PROFILE, out=own_profile)
        seen_slot += seen

    def _update_settled(self, state: Baseline) -> None:
        """What shows only by and by has moved the level before it is found: the settled one is a season old."""
        is_settled = np.abs(state.streak) < 1.0
        state.settled_level = np.where(is_settled, state.trail[:, -1], state.settled_level)
        state.trail[:, 1:] = state.trail[:, :-1].copy()
        state.trail[:, 0] = state.level

    def _update_former(self, state: Baseline, own: Own, seen: Bools) -> None:
        """The former level is the present one again after some periods in a row that it fits better."""
        is_former = own.is_former & ~np.isnan(state.former_level)
        state.former_votes[seen] = np.where(is_former, state.former_votes + 1.0, 0.0)[seen]
        state.former_age += 1.0
        is_back = state.former_votes >= _RETURNED_AFTER
        state.level[is_back] = state.former_level[is_back]
        is_old = state.former_age > _REMEMBERED_WEEKS * self.features.long_season
        state.former_level[is_back | is_old] = np.nan
        state.former_votes[is_back | is_old] = 0.0

    def _update_window(self, state: Baseline, X: Floats, x: Floats, context: Floats, seen: Bools) -> None:
        counted = seen & (state.n_seen >= self.features.burn_in)
        state.window[:, 1:] = state.window[:, :-1].copy()
        most = np.where(np.abs(X[:, 0]) > _NO_WEIGHT, _ECHO, WINDOW_CLIP)
        if self.features.kind == "count":
            # What lies within a step or so of a count's expectation says nothing, however often it is said.
            most = np.minimum(most, np.abs(x - context[:, CONTEXT.index("expected")]) / _MATERIAL)
        state.window[:, 0] = np.where(counted, np.clip(X[:, 0], -most, most), np.nan)

    def _relearn_level(self, state: Baseline, slot: int) -> None:
        rows = np.flatnonzero(np.abs(state.streak) >= self.adapt_after)
        if not rows.size:
            return
        slots = (slot - np.arange(min(self.adapt_after, self.features.long_season))) % self.features.long_season
        profile, bare = state.profile[np.ix_(rows, slots)], state.last[np.ix_(rows, slots)]
        if self.features.is_count:
            level = np.nansum(bare, axis=1) / np.maximum(
                np.where(np.isnan(bare), 0.0, profile).sum(axis=1), _LEAST_PROFILE
            )
        else:
            level = np.nanmean(bare - profile, axis=1)
        forgotten = np.isnan(state.former_level[rows])
        state.former_level[rows] = np.where(forgotten, state.settled_level[rows], state.former_level[rows])
        state.former_age[rows], state.former_votes[rows] = 0.0, 0.0
        state.level[rows] = np.maximum(level, _LEAST_LEVEL) if self.features.is_count else level
        self._restart(state, rows)

    def _relearn_profile(self, state: Baseline) -> None:
        wrong = (state.misfit > _MISFIT) & (state.repeat_misfit < _REPEATS_BETTER * state.misfit)
        rows = np.flatnonzero(wrong & (state.n_seen >= 4 * self.features.long_season))
        rows = rows[~np.isnan(state.before_last[rows]).any(axis=1)]
        if not rows.size:
            return
        weeks = (state.last[rows] + state.before_last[rows]) / 2.0
        level = weeks.mean(axis=1)
        if self.features.is_count:
            level = np.maximum(level, _LEAST_LEVEL)
        profile = self._less(weeks, level[:, None])
        state.profile[rows] = np.clip(profile, 0.0, _MOST_PROFILE) if self.features.is_count else profile
        state.level[rows], state.slot_seen[rows], state.misfit[rows] = level, 2.0, 1.0
        state.former_level[rows] = np.nan
        self._restart(state, rows)

    def _restart(self, state: Baseline, rows: Ints) -> None:
        """What the periods before said of an anomaly is forgotten: it is over."""
        state.streak[rows], state.peak[rows], state.surprise[rows], state.window[rows] = 0.0, 0.0, 0.0, np.nan

    def _centre(self, state: Baseline) -> None:
        """The level is that of the week's mean."""
        mean = state.profile.mean(axis=1)
        if self.features.is_count:
            mean = np.maximum(mean, 1e-3)
            state.profile /= mean[:, None]
            for level in (state.level, state.settled_level, state.former_level, *state.trail.T):
                level *= mean
        else:
            state.profile -= mean[:, None]
            for level in (state.level, state.settled_level, state.former_level, *state.trail.T):
                level += mean


def _replaced(context: Floats, **columns: Floats) -> Floats:
    changed = context.copy()
    for name, column in columns.items():
        changed[:, CONTEXT.index(name)] = column
    return changed
