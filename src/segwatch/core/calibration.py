"""From scores to p-values, and from p-values to alerts across segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segwatch.core.panel import Floats

LEVELS = (0.8, 0.95, 0.97)
KNEE = float(np.log((1 - LEVELS[0]) / (1 - LEVELS[1])))
_MOST_STRETCH = 4.0
# The own tail counts for this much, the rest is what all segments of the model have.
_OWN = 0.3
# Rows that trained score lower than new ones, by the more the fewer they are; measured on noise without any event.
_SEEN = 20.0
_TINY = 1e-300


@dataclass(frozen=True)
class Calibration:
    """Survival function of a segment's scores on ordinary rows: exponential in two pieces, 20 % beyond `location`.

    Up to 5 % the scores fall off by `scale`, from there on by `stretch` >= 1 times as much: real metrics have longer
    tails than an exponential has. Three quantiles of the scores of the rows that trained it fix it, the 80, the 95 and
    the 97 %: a tail fitted to the largest scores would go blind when anomalies are in the training rows.
    """

    location: float
    scale: float
    stretch: float

    @classmethod
    def fit(cls, scores: Floats, least_scale: float) -> Calibration:
        """The segment's own calibration, from the scores (n,) of its training rows, n >= 2."""
        return cls.of_quantiles(np.quantile(scores, LEVELS), len(scores), least_scale)

    @classmethod
    def of_quantiles(cls, quantiles: Floats, n: int, least_scale: float) -> Calibration:
        """The same from the quantiles of n scores at LEVELS."""
        low, knee, high = quantiles.tolist()
        scale = max((knee - low) / KNEE, least_scale)
        beyond = (high - knee) / float(np.log((1 - LEVELS[1]) / (1 - LEVELS[2])))
        stretch = float(np.clip(beyond / max(scale, _TINY), 1.0, _MOST_STRETCH))
        return cls(low, scale * (1.0 + _SEEN / n), stretch)

    def towards(self, pool: Calibration) -> Calibration:
        """This calibration, drawn to that of all segments: a few hundred rows say little of one in a thousand."""
        location = _OWN * self.location + (1 - _OWN) * pool.location
        scale, stretch = (
            own**_OWN * shared ** (1 - _OWN) for own, shared in ((self.scale, pool.scale), (self.stretch, pool.stretch))
        )
        return Calibration(location, scale, stretch)

    def p_value(self, scores: Floats) -> Floats:
        """Share of ordinary rows that score as high or higher, in (0, 1]; falls strictly."""
        beyond = (scores - self.location) / self.scale
        stretched = np.where(beyond > KNEE, KNEE + (beyond - KNEE) / self.stretch, beyond)
        tail = (1 - LEVELS[0]) * np.exp(-np.maximum(stretched, 0.0))
        below = 1.0 - LEVELS[0] * np.exp(np.minimum(beyond, 0.0))
        return np.asarray(np.where(beyond > 0, np.maximum(tail, _TINY), below))


def pooled(calibrations: Sequence[Calibration]) -> Calibration | None:
    """The middle of all segments' calibrations; None of none."""
    if not calibrations:
        return None
    middle = np.median([(one.location, one.scale, one.stretch) for one in calibrations], axis=0)
    return Calibration(*middle.tolist())


def alert_thresholds(p_values: Floats, groups: npt.NDArray[np.int64], fdr: float, alpha: float) -> Floats:
    """The p-value at or under which each row is flagged, all other rows as they are.

    p_values: (n_rows,). groups: (n_rows,), the period of each row. Within a period the rule is Benjamini and
    Hochberg (1995) at `fdr`, and never above `alpha`. `p_values <= alert_thresholds(...)` are exactly its rejections,
    and a row whose p-value moved to the other side of its threshold would change its own decision.
    """
    thresholds = np.empty(len(p_values))
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order][:1] - 1)) if len(order) else order
    for rows in np.split(order, starts[1:]):
        if rows.size:
            thresholds[rows] = _benjamini_hochberg(p_values[rows], fdr)
    return np.minimum(thresholds, alpha)


def _benjamini_hochberg(p_values: Floats, fdr: float) -> Floats:
    """Threshold of each p-value: fdr R / m, R = rejections if that p-value alone were 0."""
    m = len(p_values)
    order = np.argsort(p_values, kind="stable")
    ranked = p_values[order]
    rank = np.arange(1, m + 1)
    # With p_(i) set to 0, the p-values below it move up one rank and those above keep theirs.
    own = np.flatnonzero(ranked <= fdr * rank / m)
    n_rejected = int(own[-1]) + 1 if own.size else 0
    moved = ranked <= fdr * (rank + 1) / m
    last_moved = np.maximum.accumulate(np.where(moved, rank, 0))
    before = np.concatenate([[0], last_moved[:-1]])
    rejections = np.where(rank <= n_rejected, n_rejected, np.maximum(before + 1, n_rejected + 1))
    thresholds = np.empty(m)
    thresholds[order] = fdr * np.minimum(rejections, m) / m
    return thresholds
