import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segwatch.core.features import CONTEXT, FEATURES, FeatureSet

from .simulated import counts, gone_through, weekly

SETS = [FeatureSet(grain, kind) for grain in ("day", "hour") for kind in ("count", "ratio", "value")]
REMEDY = "the definition of the features has changed: raise FeatureSet.version, then hold the new values here"


def fixed(kind):
    """(1, 120) values that no generator makes, with two days missing, a spike and a run of equal ones."""
    t = np.arange(120)
    values = 20.0 + 10.0 * np.sin(t * 2.0 * np.pi / 7.0) + t * 7 % 5 - (15.0 if kind == "value" else 0.0)
    values = np.round(values, 1) if kind == "value" else np.rint(values)
    values[[50, 51]], values[100], values[115:] = np.nan, 60.0, values[115]
    exposure = np.where(np.isnan(values), np.nan, 400.0 + t * 13 % 7)
    return values[None, :], exposure[None, :] if kind == "ratio" else None


@pytest.mark.parametrize("kind", ["count", "ratio", "value"])
def test_the_definition_of_the_features_has_not_changed_under_its_version(kind):
    values, exposure = fixed(kind)
    gone = gone_through(values, kind, exposure=exposure)
    assert gone.features.version == 5, REMEDY
    for day, held in GOLDEN[kind].items():
        np.testing.assert_allclose(gone.X[0, day], held, rtol=1e-7, atol=1e-9, err_msg=REMEDY)


GOLDEN = {
    "count": {
        30: [-0.0650457368, -0.1007408669, -0.1007408669, 0.0, 0.0],
        60: [-0.8637050934, -0.1786281447, -0.1454451773, 0.0, 0.0],
        100: [10.5221626845, 1.5, 2.6906081334, 0.0, 0.0],
        101: [0.2318281156, 1.0151606999, 0.5920154646, 0.0, 0.0],
        119: [0.7861431257, 1.6085804836, 1.9548007066, 4.9256800148, 0.0],
    },
    "ratio": {
        30: [-0.0669598044, -0.0920900837, -0.0920900837, 0.0, 0.0],
        60: [-0.8665706224, -0.1816258146, -0.1437234388, 0.0, 0.0],
        100: [10.5267229098, 1.5, 2.6927131602, 0.0, 0.0],
        101: [0.2307989036, 1.0148354286, 0.594133302, 0.0, 0.0],
        119: [0.7934943985, 1.6128247429, 1.9564617491, 0.0, 0.0],
    },
    "value": {
        30: [-0.3511178405, -0.4869257456, -0.4869257456, 0.0, 0.0],
        60: [-1.1787028975, -0.2915719519, -0.3888143796, 0.0, 0.0],
        100: [12.0, 1.5, 2.4163445822, 0.0, 0.0],
        101: [0.2354402651, 0.9934718918, 0.2885669788, 0.0, 0.0],
        119: [1.0784081641, 1.7773197822, 1.1809752848, 5.2013357902, 0.0],
    },
}


def test_every_set_of_features_has_a_fingerprint_of_its_own():
    assert len({features.fingerprint for features in SETS}) == len(SETS)
    assert SETS[0].fingerprint == FeatureSet("day", "count").fingerprint
    assert dataclasses.replace(SETS[0], version=SETS[0].version + 1).fingerprint != SETS[0].fingerprint


def ordinary(kind, n=6, n_times=90):
    rng = np.random.default_rng(0)
    values = counts(rng, np.tile(weekly(n_times, 50.0), (n, 1))) - (45.0 if kind == "value" else 0.0)
    exposure = rng.integers(300, 900, values.shape).astype(float) if kind == "ratio" else None
    return gone_through(values, kind, exposure=exposure)


ORDINARY = {kind: ordinary(kind) for kind in ("count", "ratio", "value")}


@pytest.mark.parametrize("kind", ["count", "ratio", "value"])
def test_a_row_needs_its_value_and_its_context_alone(kind):
    gone = ORDINARY[kind]
    at = np.array([3, 0, 5]), np.array([60, 40, 89])
    alone = gone.features.features(gone.values[at], gone.contexts[at])
    np.testing.assert_array_equal(alone, gone.X[at])
    both = gone.features.features(np.array([[1.0], [2.0]]), gone.contexts[at])
    assert both.shape == (2, 3, len(FEATURES))
    np.testing.assert_array_equal(both[1], gone.features.features(np.full(3, 2.0), gone.contexts[at]))


@pytest.mark.parametrize("kind", ["count", "ratio", "value"])
def test_the_expected_value_is_about_none_away_and_values_at_are_as_far_as_they_say(kind):
    gone = ORDINARY[kind]
    contexts = gone.contexts[:, 60]
    expected = gone.features.expected(contexts)
    np.testing.assert_allclose(gone.features.values_at(np.zeros(6), contexts), expected, rtol=1e-9)
    assert np.abs(gone.features.features(expected, contexts)[:, 0]).max() < 0.2
    steps = np.array([-2.0, -1.0, 1.0, 2.0, 4.0])
    values = gone.features.values_at(steps, contexts[:, None])
    assert values.shape == (6, 5)
    z = gone.features.features(values, contexts[:, None])[..., 0]
    np.testing.assert_allclose(z, np.tile(steps, (6, 1)), rtol=0.25)
    assert np.all(np.diff(values, axis=1) > 0)


@pytest.mark.parametrize("kind", ["count", "ratio", "value"])
def test_what_groups_shared_is_half_taken_from_z_and_half_told_beside_it(kind):
    gone = ORDINARY[kind]
    contexts = gone.contexts[:, 60].copy()
    values = gone.features.values_at(np.full(6, 4.0), contexts)
    own = gone.features.own(values, contexts)
    contexts[:, CONTEXT.index("common")] = own.z * own.sd
    contexts[:, CONTEXT.index("common_z")] = 5.0
    X = gone.features.features(values, contexts)
    np.testing.assert_allclose(X[:, 0], own.z / 2)
    np.testing.assert_allclose(X[:, FEATURES.index("shared")], 2.5)


@given(st.sampled_from(SETS[:3]), st.floats(-1e100, 1e100), st.integers(0, 5), st.integers(28, 89))
def test_features_of_any_value_are_bounded(features, value, segment, day):
    gone = ORDINARY[features.kind]
    if features.is_count:
        value = abs(value)
    X = features.features(np.array(value), gone.contexts[segment, day])
    assert np.isfinite(X).all()
    assert np.abs(X).max() <= 12.0


def test_a_window_says_little_against_a_day_that_is_in_order():
    values = counts(np.random.default_rng(0), np.tile(weekly(120, 300.0), (40, 1)))
    values[:, 100:104] = np.rint(values[:, 100:104] * 0.8)
    gone = gone_through(values)
    down = np.median(gone["long"][:, 98:108], axis=0)
    assert down[5] < -2
    in_order = np.abs(gone["z"][:, 105]) < 0.5
    assert in_order.any()
    assert np.abs(gone["long"][in_order, 105]).max() <= 1.5


def test_a_change_of_many_days_is_clearer_in_the_windows_than_in_any_day():
    values = counts(np.random.default_rng(0), np.tile(weekly(120, 300.0), (40, 1)))
    values[:, 100:107] = np.rint(values[:, 100:107] * 0.8)
    gone = gone_through(values)
    z, short, long = (np.median(gone[name][:, 104]) for name in ("z", "short", "long"))
    assert long < short < z < -1


@pytest.mark.parametrize("features", SETS)
def test_nothing_is_complete_before_the_burn_in(features):
    values = np.full((2, features.burn_in + 3), 5.0)
    values[1, 10] = np.nan
    gone = gone_through(values, features.kind, features.grain, values if features.kind == "ratio" else None)
    complete = features.is_complete(gone.contexts)
    assert complete.argmax(axis=1).tolist() == [features.burn_in, features.burn_in + 1]
    assert np.isnan(gone.X[~complete][:, 0]).all()


def test_the_scale_of_values_is_twice_their_median_size_and_counts_have_none():
    values = np.array([[1.0, -3.0, np.nan, 5.0], [0.0, 0.0, 0.0, 0.0], [np.nan] * 4])
    assert FeatureSet("day", "value").segment_scale(values).tolist() == [6.0, 2.0, 2.0]
    assert FeatureSet("day", "count").segment_scale(values).tolist() == [1.0, 1.0, 1.0]


@given(st.sampled_from(["count", "ratio", "value"]), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_from_scale_is_the_inverse_of_to_scale(kind, value, unit):
    features = FeatureSet("day", kind)
    there = features.to_scale(np.array(value), np.array(unit))
    assert features.from_scale(there, np.array(unit)) == pytest.approx(value, rel=1e-9)


def test_ongoing_is_a_value_in_order_after_a_change_that_was_clear():
    gone = ORDINARY["count"]
    contexts = gone.contexts[:, 60].copy()
    in_order, far = (gone.features.values_at(np.full(6, z), contexts) for z in (1.0, 5.0))
    assert not gone.features.is_ongoing(in_order, contexts).any()
    contexts[:, CONTEXT.index("peak")] = 4.5
    assert gone.features.is_ongoing(in_order, contexts).all()
    assert not gone.features.is_ongoing(far, contexts).any()
