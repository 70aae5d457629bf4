"""Features in units in which they can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segwatch.core.panel import Floats

CLIP = 30.0
_IQR_TO_SD = 1.349


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
        return np.clip((X - self.center) / self.spread, -CLIP, CLIP).astype(np.float32)
