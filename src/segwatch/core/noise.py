"""How far a value lies from what is expected, in standard deviations of a normal distribution.

Counts spread as a negative binomial: var(x) = mu + PHI mu^2 before the segment's own noise, a factor on the standard
deviation, is applied. Large counts are compared on the scale that makes this variance constant (Anscombe 1948), small
ones by the exact probabilities, which are far from normal there. Other values are compared on asinh(x / scale).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from segwatch.core.panel import Floats

Kind = Literal["count", "ratio", "value"]
"""Counts; ratios of two sums, the first of which is a count; values of any sign."""

PHI = 0.01
_EXACT_BELOW = 40.0
_LEAST_COUNT = 0.02
# A count moves in steps of one, however still a segment's past has been; rare ones by no more than chance explains.
_LEAST_STEP, _BY_CHANCE = 0.7, 1.0
_LEAST_NOISE = 1e-4


def stabilised(counts: Floats) -> Floats:
    """Counts on a scale where their standard deviation is 1 at noise 1."""
    return np.asarray(2.0 / np.sqrt(PHI) * np.arcsinh(np.sqrt(PHI * (np.maximum(counts, 0.0) + 0.375))))


def _restored(stabilised_counts: Floats) -> Floats:
    half = np.maximum(stabilised_counts, 0.0) * np.sqrt(PHI) / 2.0
    return np.asarray(np.maximum(np.sinh(half) ** 2 / PHI - 0.375, 0.0))


def floored(noise: Floats, expected: Floats, kind: Kind) -> Floats:
    """The noise, at least what a step of the values makes."""
    if kind == "value":
        return np.asarray(np.maximum(noise, _LEAST_NOISE))
    mu = np.maximum(expected, _LEAST_COUNT)
    return np.maximum(noise, np.minimum(_LEAST_STEP / np.sqrt(mu + PHI * mu * mu), _BY_CHANCE))


def relative_sd(noise: Floats, expected: Floats, kind: Kind) -> Floats:
    """Standard deviation of the value on a log-like scale: relative to the expected count, or on that of asinh."""
    if kind == "value":
        return floored(noise, expected, kind)
    return np.asarray(floored(noise, expected, kind) * np.sqrt(PHI + 1.0 / (np.maximum(expected, 0.0) + 1.0)))


def standardised(values: Floats, expected: Floats, noise: Floats, kind: Kind) -> Floats:
    """z of each value; its sign is that of value - expected. Shapes broadcast; NaN where one is.

    Small counts lie around their median, so that one between it and the mean has a z above 0.
    kind "value": values and expected are on the scale of asinh already.
    """
    sd = floored(noise, expected, kind)
    if kind == "value":
        return np.asarray((values - expected) / sd)
    mu = np.maximum(expected, _LEAST_COUNT)
    z = np.asarray((stabilised(values) - stabilised(mu)) / sd)
    values, mu, noise, sd = np.broadcast_arrays(values, mu, noise, sd)
    small = (mu < _EXACT_BELOW) & ~np.isnan(z)
    if small.any():
        above = np.maximum(noise[small], 1.0)
        z[small] = _exact(values[small], mu[small], above) * above / sd[small]
    return z


def _exact(counts: Floats, mu: Floats, noise: Floats) -> Floats:
    """Normal score of the mid-p of counts under the negative binomial whose relative variance is that of the noise."""
    from scipy.special import betainc, betaincc, ndtri  # a quarter of a second to import, which compiled code spares

    phi = np.maximum(noise * noise * (PHI + 1.0 / mu) - 1.0 / mu, 1e-4)
    size, chance = 1.0 / phi, 1.0 / (1.0 + phi * mu)
    counts = np.maximum(counts, 0.0)
    up_to = betainc(size, counts + 1.0, chance)
    under = np.where(counts > 0, betainc(size, np.maximum(counts, 1e-9), chance), 0.0)
    # By themselves: 1 less a probability near 1 has no digits.
    above = betaincc(size, counts + 1.0, chance)
    from_it = np.where(counts > 0, betaincc(size, np.maximum(counts, 1e-9), chance), 1.0)
    low, high = (up_to + under) / 2.0, (above + from_it) / 2.0
    return np.asarray(np.where(low < 0.5, 1.0, -1.0) * ndtri(np.maximum(np.where(low < 0.5, low, high), 1e-300)))


def value_at(z: Floats, expected: Floats, noise: Floats, kind: Kind) -> Floats:
    """About the value that lies z standard deviations from the expected one."""
    sd = floored(noise, expected, kind)
    if kind == "value":
        return np.asarray(expected + z * sd)
    return _restored(stabilised(np.maximum(expected, _LEAST_COUNT)) + z * sd)


def chance_of(count: Floats, expected: Floats, noise: Floats) -> Floats:
    """About the probability of exactly this count, in (0, 1]."""
    mu = np.maximum(expected, _LEAST_COUNT)
    sd = np.sqrt(np.maximum(floored(noise, mu, "count") ** 2 * (PHI * mu * mu + mu), 0.05))
    normal = 0.4 / sd * np.exp(-0.5 * np.minimum(((count - mu) / sd) ** 2, 50.0))
    return np.clip(np.where((count == 0) & (mu < 10.0), np.maximum(normal, np.exp(-mu)), normal), 1e-6, 1.0)
