"""The compiled solver against scikit-learn's: the same job on the same rows, at a tolerance that leaves no doubt."""

import numpy as np
import pytest
import quality_data
from sklearn.svm import OneClassSVM

from segwatch.core import compiled, solver
from segwatch.core.baseline import Recursion
from segwatch.core.calibration import LEVELS, Calibration, pooled
from segwatch.core.detector import Detector
from segwatch.core.features import FeatureSet
from segwatch.core.scaling import Scaling
from segwatch.core.solver import NU, Fits, fit_many, instruction_sets, kernel_gamma, log_score, solve_one_class
from segwatch.core.training import Prepared, Rows
from segwatch.errors import DataError

SETS = instruction_sets()


def rows(n=400):
    return np.random.default_rng(0).standard_t(4, size=(n, 7))


def reference(X, is_complete, most_rows, least_rows):
    """The fits of scikit-learn at a tolerance of 1e-6."""
    fits = Fits.empty(len(X), min(most_rows, X.shape[1]), X.shape[2], len(LEVELS))
    assert solver.fit_each(X, is_complete, least_rows, LEVELS, 1e-6, fits) == -1
    return fits


def scores(fits, i):
    """The scores of a segment's training rows."""
    n, support = fits.n_rows[i], np.flatnonzero(fits.alpha[i])
    return log_score(fits.scaled[i, :n], fits.scaled[i, support], fits.alpha[i, support] / fits.alpha[i, support].sum())


def test_it_was_compiled_here():
    assert SETS and SETS[0] == "baseline"


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
    model = OneClassSVM(nu=NU, gamma=kernel_gamma(7), tol=1e-6).fit(scaled.astype(float))
    raw = model.score_samples(scaled.astype(float)) / model.dual_coef_.sum()
    np.testing.assert_allclose(detector.score(X), -np.log(raw), atol=1e-4)


def test_the_score_does_not_saturate_where_the_kernel_is_zero():
    vectors = np.zeros((3, 7), np.float32)
    far = log_score(np.full((2, 7), [[300.0], [600.0]]).astype(np.float32), vectors, np.full(3, 1 / 3))
    assert np.isfinite(far).all()
    assert far[1] > 3 * far[0]


@pytest.fixture(scope="module")
def generated():
    """The training rows of 2,000 segments of the generator, and scikit-learn's fits."""
    case = quality_data.generated(2000, seed=1, days=500, with_truth=False)
    trained = Rows.of(Prepared.of(case.panel, Recursion(FeatureSet("day", "count"))), 500)
    X, is_complete = np.ascontiguousarray(trained.X), np.ascontiguousarray(trained.is_complete)
    return X, is_complete, reference(X, is_complete, 400, 30)


def p_values(fits):
    """Of all training rows, under calibrations that are pooled as a model's are."""
    least = 2.0 * kernel_gamma(fits.scaled.shape[2])
    own = [Calibration.of_quantiles(q, n, least) for q, n in zip(fits.quantiles, fits.n_rows.tolist(), strict=True)]
    pool = pooled(own)
    return np.concatenate([one.towards(pool).p_value(scores(fits, i)) for i, one in enumerate(own)])


@pytest.mark.parametrize("name", SETS)
def test_decisions_on_2000_segments_are_scikit_learns(generated, name):
    X, is_complete, expected = generated
    found = fit_many(X, is_complete, 400, 30, LEVELS, instruction_set=name)
    np.testing.assert_array_equal(found.n_rows, expected.n_rows)
    np.testing.assert_array_equal(found.center, expected.center)
    np.testing.assert_array_equal(found.scaled, expected.scaled)
    np.testing.assert_allclose(found.spread, expected.spread, rtol=1e-12)
    assert (expected.n_rows >= 30).all()
    own, theirs = p_values(found), p_values(expected)
    difference = np.abs(np.log(own) - np.log(theirs))
    small = theirs < 0.04
    assert ((own < 0.002) == (theirs < 0.002)).all()
    assert np.quantile(difference, 0.99) <= 0.005
    assert np.quantile(difference[small], 0.99) <= 0.002


def shaped(kind, n, d, rng):
    """Rows (n, d) of awkward kinds."""
    match kind:
        case "ordinary":
            return rng.standard_t(3, size=(n, d))
        case "constant":
            return np.full((n, d), 7.25)
        case "zero":
            return np.zeros((n, d))
        case "tied":
            return rng.poisson(0.3, size=(n, d)).astype(float)
        case "huge":
            return rng.normal(size=(n, d)) * 1e150
        case "tiny":
            return rng.normal(size=(n, d)) * 1e-200
        case "far":
            X = rng.normal(size=(n, d))
            X[:: max(2, n // 7)] = 1e6
            return X
        case "one in a hundred":
            return np.where(rng.random((n, d)) < 0.01, 1.0, 0.0)


KINDS = ("ordinary", "constant", "zero", "tied", "huge", "tiny", "far", "one in a hundred")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("n, d", [(30, 1), (31, 5), (97, 32), (400, 5), (1000, 8), (5000, 3)])
def test_awkward_rows_are_fitted_as_by_scikit_learn(name, n, d):
    rng = np.random.default_rng(n + d)
    X = np.stack([shaped(kind, n, d, rng) for kind in KINDS])
    complete = np.ones((len(X), n), dtype=bool)
    found, expected = fit_many(X, complete, n, 30, LEVELS, 1e-5, name), reference(X, complete, n, 30)
    np.testing.assert_array_equal(found.scaled, expected.scaled)
    np.testing.assert_allclose(found.alpha.sum(axis=1), NU * n, rtol=1e-9)
    assert (found.alpha >= 0).all() and (found.alpha <= 1).all()
    for i, kind in enumerate(KINDS):
        np.testing.assert_allclose(scores(found, i), scores(expected, i), atol=2e-4, err_msg=kind)
        np.testing.assert_allclose(found.quantiles[i], expected.quantiles[i], atol=2e-4, err_msg=kind)


@pytest.mark.parametrize("name", SETS)
def test_rows_past_the_cache_of_columns_make_no_difference(name):
    """Of 9,000 rows, 64 MB hold fewer kernel columns than the solver asks for."""
    X = np.random.default_rng(2).standard_t(3, size=(1, 9000, 4))
    complete = np.ones((1, 9000), dtype=bool)
    found = fit_many(X, complete, 9000, 30, LEVELS, instruction_set=name)
    np.testing.assert_allclose(found.quantiles, reference(X, complete, 9000, 30).quantiles, atol=1e-3)


def test_only_the_last_complete_rows_train_and_too_few_are_none():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(3, 60, 2))
    complete = np.ones((3, 60), dtype=bool)
    complete[0, [5, 41]], complete[1, 29:] = False, False
    X[0, [5, 41]], X[1, 29:] = np.nan, np.inf
    found = fit_many(X, complete, 40, 30, LEVELS)
    assert found.n_rows.tolist() == [40, 29, 40]
    assert not found.alpha[1].any() and not found.center[1].any()
    np.testing.assert_array_equal(
        found.scaled[0], Scaling.fit(X[0, complete[0]][-40:], 1.0).apply(X[0, complete[0]][-40:])
    )
    np.testing.assert_array_equal(found.alpha[2], fit_many(X[2:], complete[2:], 40, 30, LEVELS).alpha[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(bad):
    X = np.zeros((2, 40, 3))
    X[1, 7, 2] = bad
    with pytest.raises(DataError, match="NaN or infinite"):
        fit_many(X, np.ones((2, 40), dtype=bool), 40, 30, LEVELS)
    with pytest.raises(DataError, match="NaN or infinite"):
        Detector.fit(X[1])


def test_without_the_compiled_code_the_detectors_are_the_same_to_the_tolerance(monkeypatch):
    X = rows()
    fast = Detector.fit(X)
    monkeypatch.setattr(compiled, "native", None)
    assert solver.instruction_sets() == ()
    plain = Detector.fit(X)
    np.testing.assert_array_equal(plain.scaling.center, fast.scaling.center)
    np.testing.assert_allclose(np.log(plain.p_value(X)), np.log(fast.p_value(X)), atol=2e-3)
