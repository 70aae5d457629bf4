import numpy as np
import pytest

from segwatch.core.detector import Detector
from segwatch.core.features import FEATURES
from segwatch.core.scaling import Scaling
from segwatch.errors import DataError

D = len(FEATURES)


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(400, D))


@pytest.fixture(scope="module")
def detector(X):
    return Detector.fit(X)


def test_a_row_further_out_scores_higher(detector):
    far = np.outer([0.0, 2.0, 4.0, 8.0, 16.0, 29.0], np.ones(D))
    assert np.all(np.diff(detector.score(far)) > 0)
    assert np.all(np.diff(detector.p_value(far)) < 0)


def test_features_that_are_odd_only_together_are_found(detector):
    together = np.array([[2.5, -2.5, 2.5, 0.0, 0.0]])
    alone = np.array([[2.5, 0.0, 0.0, 0.0, 0.0]])
    assert detector.p_value(together)[0] < 0.01 < detector.p_value(alone)[0]


def test_a_feature_that_hardly_moves_is_not_made_more_of_than_it_is(X):
    still = X * np.array([1.0, 0.01, 0.0, 1.0, 1.0])
    assert Scaling.fit(still, 1.0).spread[1:3].tolist() == [1.0, 1.0]
    detector = Detector.fit(still)
    moved = np.zeros((1, D))
    moved[0, 1] = 1.0
    assert detector.p_value(moved)[0] > 0.05


def test_scaled_features_are_clipped():
    scaling = Scaling.fit(np.array([[0.0], [1.0], [2.0], [3.0]]))
    assert scaling.apply(np.array([[1e300], [-1e300]])).tolist() == [[30.0], [-30.0]]


def test_scores_do_not_depend_on_what_they_are_asked_with(detector, X):
    together = detector.score(X)
    apart = np.concatenate([detector.score(X[i : i + 1]) for i in range(50)])
    np.testing.assert_allclose(apart, together[:50], rtol=1e-9, atol=1e-12)


def test_predict_is_minus_one_where_the_p_value_is_at_most_alpha(detector, X):
    np.testing.assert_array_equal(detector.predict(X, 0.05) == -1, detector.p_value(X) <= 0.05)


@pytest.mark.parametrize("bad", [np.zeros((2, D + 1)), np.zeros(D), np.full((1, D), np.nan), np.full((1, D), np.inf)])
def test_rows_that_are_none_of_the_model_are_refused(detector, bad):
    with pytest.raises(DataError, match=r"expected rows of 5 features|NaN or infinite"):
        detector.score(bad)


def test_a_fit_on_anomalies_too_is_not_blind(X):
    spoiled = X.copy()
    spoiled[::100] = 12.0
    assert Detector.fit(spoiled).p_value(np.full((1, D), 6.0))[0] < 1e-3


def test_similarity_is_the_kernel_one_of_a_row_with_itself_and_less_the_farther_away():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(300, 5)) * [1.0, 2.0, 3.0, 4.0, 5.0]
    detector = Detector.fit(X)
    alike = detector.similarity(X[0], X)
    assert alike[0] == 1 and ((alike > 0) & (alike <= 1)).all()
    scaled = (X - detector.scaling.center) / detector.scaling.spread
    distance = ((scaled - scaled[0]) ** 2).sum(axis=1)
    np.testing.assert_allclose(alike, np.exp(-0.1 / 5 * distance), rtol=1e-5)
    far = detector.similarity(X[0] + 1e6, X)
    assert (far > 0).all()
