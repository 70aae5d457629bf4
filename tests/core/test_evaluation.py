from functools import cache

import numpy as np
import pytest

from segwatch.core.baseline import Recursion
from segwatch.core.bundle import Rules, write_bundle
from segwatch.core.evaluation import (
    INJECTED,
    SAMPLE,
    Gate,
    HeldOut,
    budget_threshold,
    held_out,
    held_out_of,
    measure,
)
from segwatch.core.features import FeatureSet
from segwatch.core.training import Prepared, fit_prepared
from segwatch.errors import ModelError

from .simulated import panel_of, weekly

RECURSION, RULES, HOLDOUT = Recursion(FeatureSet("day", "count")), Rules(0.01, 0.1, 90), 28


def values(n_days=300, n_segments=12, noise=0.05):
    """Segments of about 1,000 a day whose noise has the standard deviation given."""
    rng = np.random.default_rng(3)
    return np.rint(weekly(n_days, 1000.0) * np.exp(noise * rng.normal(size=(n_segments, n_days))))


@cache
def prepared(n_days=300, n_segments=12, noise=0.05):
    return Prepared.of(panel_of(values(n_days, n_segments, noise)), RECURSION)


def bundle_of(values, to, n_days, rules=RULES):
    """The bundle of the first days."""
    part = Prepared.of(panel_of(values[:, :n_days]), RECURSION)
    return write_bundle(to, "m", part, rules, fit_prepared(part, rules.min_history))


@pytest.fixture(scope="module")
def week_old(tmp_path_factory):
    return bundle_of(values(), tmp_path_factory.mktemp("bundle") / "it", 293)


def test_only_periods_after_its_training_judge_a_champion(tmp_path, week_old):
    data = prepared()
    ours = held_out(data, RULES, HOLDOUT)
    assert set(ours.period) == set(range(272, 300))
    theirs = held_out_of(week_old, data, HOLDOUT)
    assert set(theirs.period) == set(range(293, 300))
    same_age = held_out_of(bundle_of(values(), tmp_path / "b", 300), data, HOLDOUT)
    assert set(same_age.period) == set(range(272, 300))
    assert len(ours.same_as(theirs)) == len(theirs) == 7 * 12


def test_held_out_periods_are_judged_as_a_model_of_before_them_would(tmp_path):
    ours = held_out(prepared(), RULES, HOLDOUT)
    theirs = held_out_of(bundle_of(values(), tmp_path / "it", 300 - HOLDOUT), prepared(), HOLDOUT)
    np.testing.assert_array_equal(ours.segment, theirs.segment)
    np.testing.assert_array_equal(ours.period, theirs.period)
    np.testing.assert_allclose(ours.observed, theirs.observed, rtol=1e-6)
    for name in INJECTED:
        np.testing.assert_allclose(ours.injected[name], theirs.injected[name], rtol=1e-6)


def test_segments_that_a_champion_does_not_know_do_not_judge_it(tmp_path):
    bundle = bundle_of(values()[:5], tmp_path / "it", 293)
    rows = held_out_of(bundle, prepared(), HOLDOUT)
    assert len(np.unique(rows.segment)) == 5
    assert len(held_out(prepared(), RULES, HOLDOUT).same_as(rows)) == len(rows) == 7 * 5


def test_at_most_so_many_segments_are_evaluated_the_same_ones_each_time():
    many = prepared(150, SAMPLE + 20)
    done = []
    rows = held_out(many, RULES, HOLDOUT, done.append)
    assert sum(done) == len(np.unique(rows.segment)) == SAMPLE
    order = np.random.default_rng(0).permutation(len(many))
    again = held_out(many.take(order), RULES, HOLDOUT)
    np.testing.assert_array_equal(again.observed, rows.observed)


def test_a_model_of_restless_data_finds_less_and_the_gate_says_so(tmp_path, week_old):
    restless = values()
    rng = np.random.default_rng(0)
    some = rng.random(restless.shape) < 0.25
    restless[some] = np.rint(restless[some] * np.exp(rng.normal(size=some.sum())))
    bundles = week_old, bundle_of(restless, tmp_path / "it", 293)
    rows = [held_out_of(bundle, prepared(), HOLDOUT) for bundle in bundles]
    champion, candidate = (measure(one, RULES) for one in rows)
    assert candidate["recall_drop_30"] < champion["recall_drop_30"] - 0.3
    objection = Gate(20, 0.1).objection(candidate, champion)
    assert "max_recall_loss" in objection
    assert Gate(20, 0.1).objection(champion, candidate) is None
    assert Gate(20, 1.0).objection(candidate, champion) is None


@pytest.mark.parametrize(("rate", "objects"), [(0.031, True), (0.029, False)])
def test_the_gate_counts_alerts_of_a_thousand_rows(rate, objects):
    recalls = {f"recall_{name}": 0.5 for name in INJECTED}
    champion = {"evaluated_rows": 1000.0, "alert_rate": 0.01, **recalls}
    objection = Gate(20, 0.1).objection({**champion, "alert_rate": rate}, champion)
    assert (objection is not None) == objects
    few = {**champion, "evaluated_rows": 49.0}
    assert Gate(0, 0).objection({**few, "alert_rate": 1.0}, few) is None


def test_nothing_is_held_out_of_a_window_that_is_no_longer_than_that():
    assert len(held_out(prepared(28), RULES, HOLDOUT)) == 0
    assert measure(held_out(prepared(28), RULES, HOLDOUT), RULES) == {}


def test_measure_counts_what_it_says():
    injected = {name: np.array([1e-9, 1e-9, 0.9, 0.9]) for name in INJECTED}
    rows = HeldOut(np.array([0, 0, 1, 1]), np.array([5, 6, 5, 6]), np.array([0.005, 0.5, 1e-9, 0.5]), injected)
    found = measure(rows, RULES)
    assert (found["evaluated_segments"], found["evaluated_rows"], found["prediction_rate"]) == (2, 4, 0.5)
    assert found["recall_drop_60"] == 0.5


@pytest.mark.parametrize("budget", [0.2, 2, 10])
def test_the_threshold_of_a_budget_lets_so_many_rows_a_week_alert(tmp_path, budget):
    rules = Rules(0.5, 0.1, 90, budget)
    bundle = bundle_of(values(), tmp_path / "a", 300, rules)
    threshold = budget_threshold(bundle, prepared(), HOLDOUT, budget)
    rows = held_out_of(bundle, prepared(), HOLDOUT)
    assert int((rows.observed <= threshold).sum()) == int(4 * budget)
    known = bundle.with_threshold(threshold)
    assert known.rules_for(Rules(0.5, 0.1, 90, budget)).threshold == threshold
    assert set(known.rules.thresholds(rows.observed, rows.period)) == {threshold}
    with pytest.raises(ModelError, match="segwatch train"):
        known.rules_for(Rules(0.5, 0.1, 90, budget + 1))
