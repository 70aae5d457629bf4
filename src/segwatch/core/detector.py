"""One segment's One-Class SVM with its scaling and calibration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from segwatch.core.calibration import Calibration
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
    def fit(cls, X: Floats) -> Detector:
        """A detector of the rows of X (n_rows, n_features), n_rows >= 2, calibrated on their own scores.

        Features are z-values, so that none is made more of than it is by a spread under 1.
        """
        scaling = Scaling.fit(X, 1.0)
        scaled = scaling.apply(X)
        solution = solve_one_class(scaled.astype(np.float64))
        vectors, weights = scaled[solution.support], solution.alpha / solution.alpha.sum()
        # Of rows that are normal in every feature the score grows by gamma |x|^2: no tail is thinner than theirs.
        least = 2.0 * kernel_gamma(X.shape[1])
        return cls(scaling, vectors, weights, Calibration.fit(log_score(scaled, vectors, weights), least))

    def pooled(self, pool: Calibration) -> Detector:
        """The same detector, its calibration drawn to that of all segments."""
        return replace(self, calibration=self.calibration.towards(pool))

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
