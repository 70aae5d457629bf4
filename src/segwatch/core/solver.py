"""The one-class dual of one segment. scikit-learn (libsvm) solves it; a faster solver can take its place here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segwatch.core.panel import Floats

NU = 0.2
TOLERANCE = 1e-3


def kernel_gamma(n_features: int) -> float:
    """Width of the RBF kernel, 0.1 / n_features for features scaled to unit spread."""
    return 0.1 / n_features


@dataclass(frozen=True)
class OneClassSolution:
    """Solution of the one-class dual (Scholkopf et al. 2001), scaled as in libsvm: alphas in (0, 1], sum nu n.

    support: (n_support,) rows of X. alpha: (n_support,). rho: offset; sum_i alpha_i K(x_i, x) - rho is the decision.
    """

    support: npt.NDArray[np.int64]
    alpha: Floats
    rho: float


def solve_one_class(X: Floats, nu: float = NU, tolerance: float = TOLERANCE) -> OneClassSolution:
    """The support vectors of one segment's rows under the RBF kernel of `kernel_gamma`.

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
