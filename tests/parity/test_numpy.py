"""The compiled recursion against the one in numpy that says what it is."""

from dataclasses import fields

import numpy as np
import pytest
from scipy.special import betainc, ndtri

from segwatch.core import compiled, noise
from segwatch.core.baseline import Baseline, Recursion
from segwatch.core.bundle import Rules, write_bundle
from segwatch.core.decision import decide
from segwatch.core.features import CONTEXT, FeatureSet
from segwatch.core.groups import Groups
from segwatch.core.panel import Segments
from segwatch.core.training import Prepared, Rows, fit_prepared

from ..core.simulated import panel_of

KINDS = ("count", "ratio", "value")


def eventful(kind, grain, seed, n=60):
    """Series with all that a baseline reacts to: shifts, returns, patterns that change, spikes, runs, gaps, silence."""
    rng = np.random.default_rng(seed)
    season = 7 if grain == "day" else 168
    n_times = 420 if grain == "day" else 1400
    t = np.arange(n_times)
    week = np.exp(rng.normal(0.0, 0.3, (n, season)))
    level = np.exp(rng.uniform(np.log(0.3), np.log(3000.0), (n, 1)))
    mean = level * week[:, t % season] * np.exp(0.1 * rng.normal(size=(n, n_times)))
    for i in range(n):
        at = int(rng.integers(n_times // 3, n_times - 60))
        match i % 8:
            case 0:
                mean[i, at:] *= rng.choice([0.3, 2.5])
            case 1:
                mean[i, at : at + 20] *= 0.2
            case 2:
                mean[i, at:] = (level[i] * rng.permutation(week[i])[t % season])[at:]
            case 3:
                mean[i, at] *= 20.0
            case 4:
                mean[i, at : at + 16] = 0.0
            case 5:
                mean[i, at : at + 40] = np.nan
            case _:
                pass
    values = np.where(np.isnan(mean), np.nan, rng.poisson(np.nan_to_num(mean)))
    for i in range(7, n, 8):
        values[i, n_times // 2 : n_times // 2 + 12] = values[i, n_times // 2]
    values[rng.random(values.shape) < 0.02] = np.nan
    values[: n // 4, : n_times // 5] = np.nan
    exposure = None
    if kind == "ratio":
        exposure = np.where(np.isnan(values), np.nan, np.maximum(1.0, np.rint(level * rng.uniform(5, 9, values.shape))))
    if kind == "value":
        values = np.round(values - level * rng.uniform(0.0, 2.0, (n, 1)), 2)
    names = [(f"a{i % 4}", f"b{i // 4}") for i in range(n)]
    return panel_of(values, names, ("a", "b"), exposure, grain)


def gone_through(kind, grain, seed):
    prepared = Prepared.of(eventful(kind, grain, seed), Recursion(FeatureSet(grain, kind), 7 if grain == "day" else 48))
    return prepared, Rows.of(prepared, 200)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grain", ["day", "hour"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_compiled_recursion_makes_what_numpy_makes(monkeypatch, kind, grain, seed):
    prepared, rows = gone_through(kind, grain, seed)
    monkeypatch.setattr(compiled, "native", None)
    expected, theirs = gone_through(kind, grain, seed)
    for name in (f.name for f in fields(Baseline)):
        np.testing.assert_allclose(
            getattr(prepared.state, name), getattr(expected.state, name), rtol=1e-6, atol=1e-8, err_msg=name
        )
    np.testing.assert_allclose(prepared.shared.effects, expected.shared.effects, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(rows.is_complete, theirs.is_complete)
    for column, name in enumerate(CONTEXT):
        np.testing.assert_allclose(
            rows.contexts[..., column], theirs.contexts[..., column], rtol=1e-6, atol=1e-8, err_msg=name
        )
    np.testing.assert_allclose(rows.X, theirs.X, rtol=1e-6, atol=1e-7)
    has_shifted = ~np.isnan(theirs.contexts[..., CONTEXT.index("former")])
    assert np.nanmax(np.abs(theirs.X)) > 5 and has_shifted.any()


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_standardised_as_in_numpy(monkeypatch, kind):
    rng = np.random.default_rng(4)
    n = 4000
    contexts = rng.normal(size=(n, len(CONTEXT)))
    contexts[:, CONTEXT.index("unit")] = rng.choice([1.0, 0.25, 400.0], n)
    expected, former, sd = (CONTEXT.index(name) for name in ("expected", "former", "noise"))
    contexts[:, expected] = np.exp(rng.uniform(np.log(1e-3), np.log(1e5), n)) * (
        rng.choice([-1, 1], n) if kind == "value" else 1
    )
    contexts[:, former] = np.where(rng.random(n) < 0.5, np.nan, contexts[:, expected] * rng.uniform(0.3, 3.0, n))
    contexts[:, sd] = np.exp(rng.uniform(np.log(1e-3), np.log(20.0), n))
    contexts[:, CONTEXT.index("repeat_rate")] = rng.uniform(0.0, 1.0, n)
    contexts[:, CONTEXT.index("count_short")], contexts[:, CONTEXT.index("count_long")] = 2.0, 6.0
    contexts[:, CONTEXT.index("repeats")] = rng.integers(0, 20, n)
    values = contexts[:, expected] * np.exp(rng.normal(0.0, 1.0, n)) / contexts[:, 0]
    whole = rng.random(n) < 0.6
    values[whole] = np.rint(values[whole] * contexts[whole, 0]) / contexts[whole, 0]
    values[::50], values[1::97] = 0.0, np.nan
    contexts[::3, CONTEXT.index("previous")] = values[::3]
    features = FeatureSet("day", kind)
    own, X = features.own(values, contexts), features.features(values, contexts)
    many = features.features(np.stack([values, values + 1.0], axis=1), contexts[:, None, :])
    ongoing = features.is_ongoing(values, contexts)
    monkeypatch.setattr(compiled, "native", None)
    theirs = features.own(values, contexts)
    np.testing.assert_allclose(own.z, theirs.z, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(own.sd, theirs.sd, rtol=1e-12)
    np.testing.assert_array_equal(own.is_former, theirs.is_former)
    np.testing.assert_allclose(X, features.features(values, contexts), rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(many[:, 0], X)
    np.testing.assert_allclose(many[:, 1], features.features(values + 1.0, contexts), rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(ongoing, features.is_ongoing(values, contexts))


def test_small_counts_have_the_exact_probabilities_of_scipy():
    """Far into both tails, for whole and broken counts, beyond those that are summed one by one."""
    mu = np.repeat(np.exp(np.linspace(np.log(0.02), np.log(39.0), 25)), 240)
    counts = np.tile(np.concatenate([np.arange(200.0), np.linspace(0.0, 700.0, 40)]), 25)
    for sd in (1.0, 1.7, 9.0):
        contexts = np.zeros((len(mu), len(CONTEXT)))
        for name, column in {"unit": 1.0, "expected": mu, "noise": sd, "former": np.nan}.items():
            contexts[:, CONTEXT.index(name)] = column
        z = FeatureSet("day", "count").own(counts, contexts).z
        phi = np.maximum(sd * sd * (noise.PHI + 1.0 / mu) - 1.0 / mu, 1e-4)
        size, chance = 1.0 / phi, 1.0 / (1.0 + phi * mu)
        low = (
            betainc(size, counts + 1, chance) + np.where(counts > 0, betainc(size, np.maximum(counts, 1e-9), chance), 0)
        ) / 2
        inside = (low > 1e-12) & (low < 1.0 - 1e-7)
        assert inside.mean() > 0.05
        np.testing.assert_allclose(z[inside], ndtri(low[inside]), rtol=1e-6, atol=1e-9)


def test_what_groups_share_is_what_numpy_finds(monkeypatch):
    rng = np.random.default_rng(8)
    names = tuple((f"a{i % 5}", f"b{i % 7}", f"c{i}") for i in range(210))
    groups = Groups.of(Segments(("a", "b", "c"), names))
    found = []
    for _ in range(40):
        residuals, sd = 0.1 * rng.standard_t(3, 210), rng.uniform(0.05, 0.3, 210)
        residuals += rng.choice([0.0, -0.7]) * (np.arange(210) % 5 == 2) + rng.choice([0.0, 0.4])
        residuals[rng.random(210) < rng.choice([0.0, 0.2, 0.99])] = np.nan
        found.append((residuals, sd, groups.effects(residuals, sd)))
    monkeypatch.setattr(compiled, "native", None)
    for residuals, sd, effects in found:
        np.testing.assert_allclose(effects, groups.effects(residuals, sd), rtol=1e-9, atol=1e-12)
    assert sum(effects.any() for _, _, effects in found) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_decided_as_in_numpy(monkeypatch, tmp_path, kind):
    prepared = Prepared.of(eventful(kind, "day", 3, 40), Recursion(FeatureSet("day", kind)))
    bundle = write_bundle(tmp_path / "it", "m", prepared, Rules(0.01, 0.05, 90), fit_prepared(prepared, 90))
    rows = Rows.of(prepared, 150)
    at = np.argwhere(rows.is_complete & (np.array(bundle.status) == "ok")[:, None])
    i, j = np.random.default_rng(0).permutation(at).T
    ids = [prepared.panel.segments.ids[k] for k in i]
    arguments = (bundle, ids, j.astype(np.int64), rows.values[i, j], rows.contexts[i, j], rows.X[i, j])
    found = decide(*arguments)
    monkeypatch.setattr(compiled, "native", None)
    expected = decide(*arguments)
    # The compiled kernels are of single precision.
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-6)
    np.testing.assert_allclose(np.log(found.p_value), np.log(expected.p_value), rtol=1e-5)
    for name in ("is_anomaly", "is_ongoing", "is_pattern", "prediction"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in ("expected", "lower", "upper", "impact"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4, err_msg=name)
    assert expected.is_anomaly.sum() > 5 and (~np.isnan(expected.upper)).mean() > 0.5
