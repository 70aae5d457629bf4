"""One segment's One-Class SVM with its scaling and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segwatch.core.calibration import Calibration, fold_slices, training_rows
from segwatch.core.panel import Floats
from segwatch.core.solver import kernel_gamma, solve_one_class
from segwatch.errors import DataError

_CLIP = 30.0
_IQR_TO_SD = 1.349
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Scaling:
    """Median and spread (IQR / 1.349) of each feature; scaled features are clipped at +-30."""

    center: Floats
    spread: Floats

    @classmethod
    def fit(cls, X: Floats, least_spread: Floats | float = 0.0) -> Scaling:
        """Scaling of X (n_rows, n_features). A feature whose IQR is 0 takes its standard deviation, or 1.

        least_spread: (n_features,) or one for all, what a spread is raised to.
        """
        low, center, high = np.quantile(X, [0.25, 0.5, 0.75], axis=0)
        spread = (high - low) / _IQR_TO_SD
        deviation = X.std(axis=0)
        tiny = 1e-9 * np.maximum(1.0, np.abs(center))
        spread = np.maximum(np.where(spread > tiny, spread, deviation), least_spread)
        return cls(center, np.where(spread > tiny, spread, 1.0))

    def apply(self, X: Floats) -> npt.NDArray[np.float32]:
        """(n_rows, n_features) float32, the precision in which support vectors are kept."""
        return np.clip((X - self.center) / self.spread, -_CLIP, _CLIP).astype(np.float32)


@dataclass(frozen=True)
class Detector:
    """One segment's One-Class SVM.

    vectors: (n_support, n_features) float32, scaled. weights: (n_support,) float64, alphas divided by their sum, so
    that fits on different numbers of rows compare.
    """

    scaling: Scaling
    vectors: npt.NDArray[np.float32]
    weights: Floats
    calibration: Calibration

    @classmethod
    def fit(cls, X: Floats, gap: int, least_spread: Floats | float = 0.0) -> Detector:
        """A detector of the rows of X (n_rows, n_features), in order of time, calibrated on held-out folds.

        gap: rows left out on either side of a fold, one season. least_spread: as in Scaling.fit.
        """
        scaling = Scaling.fit(X, least_spread)
        scaled = scaling.apply(X)
        held_out = np.concatenate([_held_out_scores(scaled, fold, gap) for fold in fold_slices(len(X))])
        vectors, weights = _fit_vectors(scaled)
        return cls(scaling, vectors, weights, Calibration.fit(held_out))

    def score(self, X: Floats) -> Floats:
        """Anomaly score of each row; higher is more anomalous.

        X: (n_rows, n_features), columns in FeatureSet order.
        Returns (n_rows,), unitless, comparable across segments only through p-values.
        Raises DataError if X holds NaN or another number of columns.
        Source: the one-class decision of Scholkopf et al. 2001 on a log scale, -ln(sum_i a_i K(x_i, x) / sum_i a_i),
        which does not saturate far from the data.
        """
        if X.ndim != 2 or X.shape[1] != len(self.scaling.center):
            raise DataError(f"expected rows of {len(self.scaling.center)} features, got an array of shape {X.shape}")
        if not np.isfinite(X).all():
            raise DataError("the features hold NaN or infinite values: only complete rows can be scored")
        return log_score(self.scaling.apply(X), self.vectors, self.weights)

    def p_value(self, X: Floats) -> Floats:
        """Share of ordinary rows that score as high or higher, (n_rows,) in (0, 1]."""
        return self.calibration.p_value(self.score(X))

    def predict(self, X: Floats, alpha: float) -> npt.NDArray[np.int64]:
        """+1 and -1 as in scikit-learn: -1 where the p-value is at most alpha."""
        return np.where(self.p_value(X) <= alpha, -1, 1)


def _fit_vectors(scaled: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], Floats]:
    solution = solve_one_class(scaled.astype(np.float64))
    return scaled[solution.support], solution.alpha / solution.alpha.sum()


def _held_out_scores(scaled: npt.NDArray[np.float32], fold: slice, gap: int) -> Floats:
    vectors, weights = _fit_vectors(scaled[training_rows(len(scaled), fold, gap)])
    return log_score(scaled[fold], vectors, weights)


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
