import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from segwatch.core.noise import PHI, chance_of, floored, relative_sd, stabilised, standardised, value_at

from .simulated import counts

KINDS = ("count", "ratio", "value")
NOISES = st.floats(1e-4, 10.0)
MEANS = st.floats(0.0, 1e5)


def z_of(values, expected, noise=1.0, kind="count"):
    values = np.asarray(values, dtype=float)
    return standardised(values, np.full(values.shape, float(expected)), np.full(values.shape, float(noise)), kind)


@pytest.mark.parametrize(
    ("value", "expected", "noise", "kind", "z"),
    [
        # Exact: the normal score of the mid-p.
        (0.0, 0.5, 1.0, "count", -0.51395),
        (4.0, 0.5, 1.0, "count", 3.087651),
        (3.0, 3.0, 1.0, "count", 0.09256),
        (12.0, 3.0, 1.0, "count", 3.83334),
        (0.0, 30.0, 2.0, "count", -4.473754),
        (60.0, 30.0, 1.0, "count", 4.122665),
        # Less noise than the least step of a count lets be.
        (6.0, 5.0, 0.1, "count", 1.598436),
        # Far out, where 1 less the probability of less has no digits.
        (40.0, 5.0, 1.0, "count", 9.278393),
        # Transformed.
        (1000.0, 1000.0, 1.0, "count", 0.0),
        (1300.0, 1000.0, 1.0, "count", 2.514591),
        (0.0, 1000.0, 1.0, "count", -36.150617),
        (1300.0, 1000.0, 2.0, "count", 1.257296),
        (1300.0, 1000.0, 1.0, "ratio", 2.514591),
        (-0.5, 1.0, 0.5, "value", -3.0),
    ],
)
def test_the_z_of_a_value_is_what_it_was(value, expected, noise, kind, z):
    assert z_of(value, expected, noise, kind) == pytest.approx(z, abs=1e-6), "raise FeatureSet.version if this is meant"


@pytest.mark.parametrize("noise", [1.0, 1.7, 4.0])
@pytest.mark.parametrize("mean", [0.5, 3.0, 10.0, 30.0])
def test_small_counts_have_the_normal_score_of_their_mid_p(mean, noise):
    phi = noise**2 * (PHI + 1.0 / mean) - 1.0 / mean
    law = stats.nbinom(1.0 / phi, 1.0 / (1.0 + phi * mean))
    x = np.arange(law.ppf(1e-5), law.ppf(1 - 1e-5))
    scores = stats.norm.ppf(law.cdf(x) - law.pmf(x) / 2.0)
    np.testing.assert_allclose(z_of(x, mean, noise), scores, atol=1e-6)


@pytest.mark.parametrize("noise", [1.0, 2.0, "poisson"])
@pytest.mark.parametrize("mean", [0.5, 3.0, 10.0, 30.0, 1000.0])
def test_as_many_counts_lie_far_from_their_mean_as_of_a_normal_distribution(mean, noise):
    rng, n = np.random.default_rng(0), 200_000
    if noise == "poisson":
        noise, x = 1.0 / np.sqrt(1.0 + PHI * mean), rng.poisson(mean, n).astype(float)
    else:
        x = counts(rng, np.full(n, mean), noise)
    z = z_of(x, mean, noise)
    assert abs(z.mean()) < 0.12
    for limit in (2.0, 3.0):
        both = 2.0 * stats.norm.sf(limit)
        # No few of few counts lie far below.
        least = 0.4 * both if mean >= 10 else 0.0
        assert least < (np.abs(z) > limit).mean() < 1.7 * both


@given(st.sampled_from(KINDS), MEANS, NOISES, st.lists(st.floats(0.0, 1e6), min_size=2, max_size=20))
def test_a_larger_value_never_has_a_smaller_z(kind, expected, noise, values):
    z = z_of(np.sort(values), expected, noise, kind)
    assert np.all(np.diff(z) >= -1e-9)
    assert np.isfinite(z).all()


@given(st.sampled_from(KINDS), st.floats(40.0, 1e5), NOISES, st.floats(0.0, 1e6))
def test_the_sign_of_z_is_that_of_the_difference(kind, expected, noise, value):
    assert np.sign(z_of(value, expected, noise, kind)) in (0.0, np.sign(value - expected))


@given(st.floats(0.0, 40.0, exclude_max=True), st.floats(1e-4, 2.0), st.integers(0, 400))
def test_of_few_counts_only_those_between_median_and_mean_have_the_other_sign(expected, noise, value):
    z = z_of(value, expected, noise)
    assert np.sign(z) in (0.0, np.sign(value - max(expected, 0.02))) or abs(z) < 0.6


@pytest.mark.parametrize("noise", [0.3, 0.5, 1.0, 2.0])
def test_the_exact_and_the_transformed_meet(noise):
    x = np.arange(800.0)
    below, above = (z_of(x, mean, noise) for mean in (39.9999, 40.0))
    assert np.abs(below - above)[np.abs(above) < 3].max() < 0.25
    # Where nothing but the order counts any more.
    assert np.abs(below - above)[(np.abs(above) >= 3) & (np.abs(above) < 6)].max() < 0.8


@given(st.sampled_from(KINDS), MEANS, NOISES)
def test_a_value_at_no_distance_is_the_expected_one(kind, expected, noise):
    at = value_at(np.zeros(1), np.full(1, expected), np.full(1, noise), kind)
    assert at == pytest.approx(expected if kind == "value" else max(expected, 0.02), rel=1e-9, abs=1e-9)


@given(st.sampled_from(KINDS), st.floats(40.0, 1e5), st.floats(1e-3, 2.0), st.floats(-3.0, 20.0))
def test_value_at_is_the_inverse_of_large_counts_and_of_values(kind, expected, noise, z):
    at = value_at(np.full(1, z), np.full(1, expected), np.full(1, noise), kind)
    if kind == "value" or at > 0:
        assert z_of(at, expected, noise, kind) == pytest.approx(z, abs=1e-6)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("mean", [3.0, 10.0, 30.0])
def test_value_at_is_about_the_inverse_of_small_counts(mean, noise):
    # Farther out a normal distribution says little of small counts.
    z = np.array([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    at = value_at(z, np.full(7, mean), np.full(7, noise), "count")
    np.testing.assert_allclose(z_of(at, mean, noise), z, atol=0.4, rtol=0.26)


@given(MEANS, NOISES)
def test_a_count_is_never_nearer_than_a_step_or_than_chance_brings_it(expected, noise):
    mu = max(expected, 0.02)
    chance = np.sqrt(mu + PHI * mu * mu)
    sd = floored(np.full(1, noise), np.full(1, expected), "count")[0] * chance
    assert sd >= min(0.7, chance) * (1 - 1e-12)
    assert sd == pytest.approx(max(noise * chance, min(0.7, chance)))


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.1, 0.3])
def test_counts_where_there_were_hardly_any_are_as_far_off_as_they_are_rare(mean):
    one, two, nine = z_of([1.0, 2.0, 9.0], mean)
    assert one < 2.5 and 2 < two < 4 and nine > 6


def test_the_relative_noise_of_counts_falls_to_that_of_large_ones():
    sd = relative_sd(np.ones(4), np.array([10.0, 100.0, 1e4, 1e8]), "count")
    assert np.all(np.diff(sd) < 0)
    assert sd[-1] == pytest.approx(np.sqrt(PHI), rel=1e-3)
    x = np.array([1e4, 1.01e4])
    assert np.diff(stabilised(x))[0] * sd[2] == pytest.approx(np.log(1.01), rel=0.01)


@pytest.mark.parametrize("mean", [0.5, 3.0, 10.0, 100.0])
def test_the_chance_of_a_count_is_about_its_probability(mean):
    x = np.array([0.0, np.rint(mean)])
    phi = PHI
    law = stats.nbinom(1.0 / phi, 1.0 / (1.0 + phi * mean))
    chance = chance_of(x, np.full(2, mean), np.ones(2))
    assert chance[1] == pytest.approx(law.pmf(x[1]), rel=0.35)
    assert np.all((chance > 0) & (chance <= 1))
    if mean < 10:
        assert chance[0] == pytest.approx(law.pmf(0), rel=0.35)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_observed_or_is_not_expected_has_no_z(kind):
    nan = np.array([np.nan, 1.0])
    assert np.isnan(standardised(nan, nan[::-1], np.ones(2), kind)).all()
