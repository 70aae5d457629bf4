"""The One-Class SVMs of many segments at once.

Compiled code (native/) solves them; where it was not built, scikit-learn (libsvm) does the same, one segment after the
other and tens of times slower. Both scale the features, solve the dual and take quantiles of the training scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segwatch.core import compiled
from segwatch.core.panel import Bools, Floats, Ints
from segwatch.core.scaling import CLIP, Scaling
from segwatch.errors import DataError

NU = 0.2
TOLERANCE = 1e-5
# Features are z-values: none is made more of than it is by a spread under 1.
LEAST_SPREAD = 1.0
_BLOCK = 4_000_000


def kernel_gamma(n_features: int) -> float:
    """Width of the RBF kernel, 0.1 / n_features for features scaled to unit spread."""
    return 0.1 / n_features


@dataclass(frozen=True)
class Fits:
    """The One-Class SVMs of n segments, row by row.

    n_rows: (n,), the rows that each has to train on; where they are too few, all else is 0.
    center, spread: (n, n_features), its `Scaling`. scaled: (n, most_rows, n_features) float32, the training rows.
    alpha: (n, most_rows), 0 of rows that are no support vectors. quantiles: (n, n_levels), of the training scores.
    """

    n_rows: Ints
    center: Floats
    spread: Floats
    scaled: npt.NDArray[np.float32]
    alpha: Floats
    quantiles: Floats

    @classmethod
    def empty(cls, n: int, most_rows: int, n_features: int, n_levels: int) -> Fits:
        return cls(
            np.zeros(n, np.int64),
            np.zeros((n, n_features)),
            np.zeros((n, n_features)),
            np.zeros((n, most_rows, n_features), np.float32),
            np.zeros((n, most_rows)),
            np.zeros((n, n_levels)),
        )


def fit_many(
    X: Floats,
    is_complete: Bools,
    most_rows: int,
    least_rows: int,
    levels: Sequence[float],
    tolerance: float = TOLERANCE,
    instruction_set: str | None = None,
) -> Fits:
    """The fits of the segments, each on the last `most_rows` of its complete rows where there are `least_rows`.

    X: (n, n_periods, n_features). is_complete: (n, n_periods). levels: of the quantiles, between 0 and 1. tolerance: of
    the optimality conditions on the scale of libsvm. instruction_set: one of `instruction_sets`, in place of the best.
    Raises DataError if a complete row holds NaN or infinite values.
    """
    n, n_periods, n_features = X.shape
    most_rows = min(most_rows, n_periods)
    fits = Fits.empty(n, most_rows, n_features, len(levels))
    if n_periods < least_rows:
        return fits
    if compiled.native is None:
        broken = fit_each(X, is_complete, least_rows, levels, tolerance, fits)
    else:
        broken = compiled.native.fit(
            instruction_set or instruction_sets()[-1],
            np.ascontiguousarray(X, dtype=np.float64),
            np.ascontiguousarray(is_complete, dtype=np.bool_),
            X.shape,
            most_rows,
            least_rows,
            NU,
            kernel_gamma(n_features),
            tolerance,
            LEAST_SPREAD,
            CLIP,
            np.asarray(levels, dtype=np.float64),
            fits.n_rows,
            fits.center,
            fits.spread,
            fits.scaled,
            fits.alpha,
            fits.quantiles,
        )
    if broken >= 0:
        raise DataError("the features hold NaN or infinite values: only complete rows can train a segment")
    return fits


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets of this processor that the compiled code has a version for; none where it was not built."""
    return compiled.native.instruction_sets() if compiled.native is not None else ()


def fit_each(
    X: Floats, is_complete: Bools, least_rows: int, levels: Sequence[float], tolerance: float, fits: Fits
) -> int:
    """The fits, in place, by scikit-learn. Returns the first segment with NaN or infinite values, or -1."""
    for i in range(len(X)):
        rows = X[i, is_complete[i]][-fits.alpha.shape[1] :]
        if not np.isfinite(rows).all():
            return i
        fits.n_rows[i] = n = len(rows)
        if n < least_rows:
            continue
        scaling = Scaling.fit(rows, LEAST_SPREAD)
        scaled = scaling.apply(rows)
        solution = solve_one_class(scaled.astype(np.float64), tolerance=tolerance)
        scores = log_score(scaled, scaled[solution.support], solution.alpha / solution.alpha.sum())
        fits.center[i], fits.spread[i], fits.scaled[i, :n] = scaling.center, scaling.spread, scaled
        fits.alpha[i, solution.support] = solution.alpha
        fits.quantiles[i] = np.quantile(scores, levels)
    return -1


@dataclass(frozen=True)
class OneClassSolution:
    """Solution of the one-class dual (Scholkopf et al. 2001), scaled as in libsvm: alphas in (0, 1], sum nu n.

    support: (n_support,) rows of X. alpha: (n_support,). rho: offset; sum_i alpha_i K(x_i, x) - rho is the decision.
    """

    support: npt.NDArray[np.int64]
    alpha: Floats
    rho: float


def solve_one_class(X: Floats, nu: float = NU, tolerance: float = TOLERANCE) -> OneClassSolution:
    """The support vectors of one segment's rows under the RBF kernel of `kernel_gamma`, by scikit-learn.

    X: (n_rows, n_features), scaled, finite, n_rows >= 2.
    """
    from sklearn.svm import OneClassSVM  # 1.5 s to import, so only where something is fitted

    model = OneClassSVM(kernel="rbf", nu=nu, gamma=kernel_gamma(X.shape[1]), tol=tolerance)
    model.fit(X)
    return OneClassSolution(
        support=model.support_.astype(np.int64),
        alpha=model.dual_coef_[0].copy(),
        rho=float(-model.intercept_[0]),
    )


def log_score(scaled: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], weights: Floats) -> Floats:
    """-ln sum_i w_i exp(-gamma |x_i - x|^2) of scaled rows, by log-sum-exp, in blocks that bound memory."""
    support = vectors.astype(np.float64)
    gamma = kernel_gamma(support.shape[1])
    norms = (support**2).sum(axis=1)
    logs = np.log(weights)
    scores = np.empty(len(scaled))
    step = max(1, _BLOCK // max(1, len(support)))
    for start in range(0, len(scaled), step):
        rows = scaled[start : start + step].astype(np.float64)
        distances = np.maximum((rows**2).sum(axis=1)[:, None] + norms - 2.0 * rows @ support.T, 0.0)
        exponents = logs - gamma * distances
        peak = exponents.max(axis=1)
        scores[start : start + step] = -(peak + np.log(np.exp(exponents - peak[:, None]).sum(axis=1)))
    return scores
