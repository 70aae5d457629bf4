"""From scores to p-values, and from p-values to alerts across segments."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from segwatch.core.panel import Bools, Floats

LOWER_LEVELS = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
TAIL_LEVEL = 0.95
TAIL_SHAPE = 0.1
N_QUANTILES = len(LOWER_LEVELS) + 1
# About the smallest that ordinary noise shows: in a segment that never moved the first step is not yet an alert.
_MIN_SPREAD = 0.1


@dataclass(frozen=True)
class Calibration:
    """Survival function of a segment's ordinary scores.

    quantiles: (7,) at the levels 0, .1, .2, .3, .4, .5 and .95 of scores on rows that the scoring fit did not see.
    Up to the median it interpolates them; above, it is a generalised Pareto tail of shape 0.1 through the 50 % and
    95 % quantiles. A tail fitted to the largest scores would go blind when anomalies are in the training rows.
    """

    quantiles: Floats

    @classmethod
    def fit(cls, held_out_scores: Floats) -> Calibration:
        """Calibration from held-out scores (n,), n >= 2."""
        levels = np.append(LOWER_LEVELS, TAIL_LEVEL)
        return cls(np.quantile(held_out_scores, levels))

    def p_value(self, scores: Floats) -> Floats:
        """Share of ordinary rows that score as high or higher, in (0, 1]; falls strictly above the median."""
        median = self.quantiles[-2]
        spread = max(float(self.quantiles[-1] - median), _MIN_SPREAD)
        scale = TAIL_SHAPE * spread / (((1 - 0.5) / (1 - TAIL_LEVEL)) ** TAIL_SHAPE - 1)
        beyond = np.maximum(scores - median, 0.0)
        tail = 0.5 * (1.0 + TAIL_SHAPE * beyond / scale) ** (-1.0 / TAIL_SHAPE)
        below = 1.0 - np.interp(scores, self.quantiles[:-1], LOWER_LEVELS)
        return np.asarray(np.where(scores > median, tail, below))


def fold_slices(n_rows: int, n_folds: int = 5) -> list[slice]:
    """Contiguous folds that cover n_rows."""
    edges = np.linspace(0, n_rows, n_folds + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(edges)]


def training_rows(n_rows: int, fold: slice, gap: int) -> Bools:
    """Rows to fit on when `fold` is held out: all but the fold and `gap` rows on either side.

    Neighbouring rows share history; without the gap held-out scores would be too low.
    """
    rows = np.ones(n_rows, dtype=bool)
    rows[max(0, fold.start - gap) : fold.stop + gap] = False
    return rows


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
