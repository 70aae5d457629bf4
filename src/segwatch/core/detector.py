"""One segment's One-Class SVM with its scaling and calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from segwatch.core.calibration import KNEE, LEVELS, Calibration
from segwatch.core.panel import Bools, Floats, Ints
from segwatch.core.scaling import CLIP, Scaling
from segwatch.core.solver import fit_many, kernel_gamma, log_score
from segwatch.errors import DataError


def check_rows(X: Floats, n_features: int) -> None:
    """Nothing happens if X holds complete rows of so many features; raises DataError otherwise."""
    if X.ndim != 2 or X.shape[1] != n_features:
        raise DataError(f"expected rows of {n_features} features, got an array of shape {X.shape}")
    if not np.isfinite(X).all():
        raise DataError("the features hold NaN or infinite values: only complete rows can be scored")


Packed = tuple[npt.NDArray[np.float32], Floats, Ints, Floats, Floats, float, float, float, float]


def packed(vectors: npt.NDArray[np.float32], weights: Floats, offsets: Ints, scaling: Floats, tails: Floats) -> Packed:
    """The detectors of n segments for the compiled code.

    vectors, weights: of all, one segment's after the other's. offsets: (n + 1,), where each begins. scaling:
    (n, 2, n_features), centers and spreads. tails: (n, 3), location, scale and stretch of the pooled calibrations.
    """
    arrays = (np.ascontiguousarray(a) for a in (vectors, weights, offsets, scaling, tails))
    return *arrays, kernel_gamma(scaling.shape[2]), CLIP, LEVELS[0], KNEE  # type: ignore[return-value]


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
        """A detector of the rows of X (n_rows, n_features), n_rows >= 2, calibrated on their own scores."""
        (detector,) = cls.fit_many(X[None], np.ones((1, len(X)), dtype=np.bool_), len(X), 2)
        if detector is None:
            raise DataError(f"a detector needs 2 rows, got {len(X)}")
        return detector

    @classmethod
    def fit_many(cls, X: Floats, is_complete: Bools, most_rows: int, least_rows: int) -> Iterator[Detector | None]:
        """The detectors of segments, each of the last `most_rows` of its complete rows; None of less than `least_rows`.

        X: (n_segments, n_periods, n_features). is_complete: (n_segments, n_periods).
        """
        fits = fit_many(X, is_complete, most_rows, least_rows, LEVELS)
        # Of rows that are normal in every feature the score grows by gamma |x|^2: no tail is thinner than theirs.
        least = 2.0 * kernel_gamma(X.shape[2])
        for i, n in enumerate(fits.n_rows.tolist()):
            if n < least_rows:
                yield None
                continue
            support = np.flatnonzero(fits.alpha[i])
            alpha = fits.alpha[i, support]
            calibration = Calibration.of_quantiles(fits.quantiles[i], n, least)
            scaling = Scaling(fits.center[i].copy(), fits.spread[i].copy())
            yield cls(scaling, fits.scaled[i, support], alpha / alpha.sum(), calibration)

    def pooled(self, pool: Calibration) -> Detector:
        """The same detector, its calibration drawn to that of all segments."""
        return replace(self, calibration=self.calibration.towards(pool))

    @property
    def packed(self) -> Packed:
        """What the compiled code takes of one detector."""
        one, tail = self.scaling, self.calibration
        return packed(
            self.vectors,
            self.weights,
            np.array([0, len(self.weights)], dtype=np.int64),
            np.stack([one.center, one.spread])[None],
            np.array([[tail.location, tail.scale, tail.stretch]]),
        )

    def score(self, X: Floats) -> Floats:
        """Anomaly score of each row; higher is more anomalous.

        X: (n_rows, n_features), columns in FeatureSet order.
        Returns (n_rows,), unitless, comparable across segments only through p-values.
        Raises DataError if X holds NaN or another number of columns.
        Source: the one-class decision of Scholkopf et al. 2001 on a log scale, -ln(sum_i a_i K(x_i, x) / sum_i a_i),
        which does not saturate far from the data.
        """
        check_rows(X, len(self.scaling.center))
        return log_score(self.scaling.apply(X), self.vectors, self.weights)

    def similarity(self, x: Floats, X: Floats) -> Floats:
        """(n_rows,) in (0, 1], how alike rows X (n_rows, n_features) and a row x (n_features,) are to the kernel."""
        difference = self.scaling.apply(X).astype(np.float64) - self.scaling.apply(x)
        return np.asarray(np.exp(-kernel_gamma(len(x)) * (difference**2).sum(axis=1)))

    def p_value(self, X: Floats) -> Floats:
        """Share of ordinary rows that score as high or higher, (n_rows,) in (0, 1]."""
        return self.calibration.p_value(self.score(X))

    def predict(self, X: Floats, alpha: float) -> npt.NDArray[np.int64]:
        """+1 and -1 as in scikit-learn: -1 where the p-value is at most alpha."""
        return np.where(self.p_value(X) <= alpha, -1, 1)
