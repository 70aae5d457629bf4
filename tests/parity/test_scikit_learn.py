import numpy as np
from sklearn.svm import OneClassSVM

from segwatch.core.detector import Detector, Scaling, log_score
from segwatch.core.solver import NU, kernel_gamma, solve_one_class


def rows(n=400):
    return np.random.default_rng(0).standard_t(4, size=(n, 7))


def test_the_solution_is_scikit_learns():
    X = rows()
    model = OneClassSVM(nu=NU, gamma=kernel_gamma(7), tol=1e-6).fit(X)
    solution = solve_one_class(X, tolerance=1e-6)
    distances = ((X[:, None] - X[solution.support][None]) ** 2).sum(-1)
    ours = np.exp(-kernel_gamma(7) * distances) @ solution.alpha - solution.rho
    np.testing.assert_allclose(ours, model.decision_function(X), atol=2e-5)


def test_the_score_orders_rows_as_scikit_learns_decision_does():
    X = rows()
    detector = Detector.fit(X)
    scaled = Scaling.fit(X, 1.0).apply(X)
    model = OneClassSVM(nu=NU, gamma=kernel_gamma(7), tol=1e-3).fit(scaled.astype(float))
    raw = model.score_samples(scaled.astype(float)) / model.dual_coef_.sum()
    np.testing.assert_allclose(detector.score(X), -np.log(raw), rtol=1e-5)


def test_the_score_does_not_saturate_where_the_kernel_is_zero():
    vectors = np.zeros((3, 7), np.float32)
    far = log_score(np.full((2, 7), [[300.0], [600.0]]).astype(np.float32), vectors, np.full(3, 1 / 3))
    assert np.isfinite(far).all()
    assert far[1] > 3 * far[0]
