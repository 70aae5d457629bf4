import numpy as np
import pytest

from segwatch.core.bundle import Rules, write_bundle
from segwatch.core.evaluation import INJECTED, Gate, HeldOut, held_out, held_out_of, measure
from segwatch.core.features import FeatureSet
from segwatch.core.panel import History, Panel, Segments
from segwatch.core.training import fit_panel
from segwatch.core.window import Window

FEATURES, RULES, HOLDOUT = FeatureSet("day", True), Rules(0.01, 0.1, 90), 28
START = np.datetime64("2025-01-01")


def panel(n_days=300, n_segments=12, noise=0.05):
    """Segments of about 1,000 a day whose noise has the standard deviation given."""
    rng = np.random.default_rng(3)
    week = 1.0 + 0.1 * np.sin(2 * np.pi * np.arange(n_days) / 7)
    values = np.rint(1000.0 * week * np.exp(noise * rng.normal(size=(n_segments, n_days))))
    segments = Segments(("name",), tuple((f"s{i}",) for i in range(n_segments)))
    seen = [np.full(n_segments, day) for day in (START, START + np.timedelta64(n_days - 1, "D"))]
    return Panel(History(segments, *seen), Window(START, START + np.timedelta64(n_days, "D")), values)


def bundle_of(of, to, n_days):
    window = Window(START, START + np.timedelta64(n_days, "D"))
    part = Panel(of.history, window, of.values[:, :n_days])
    return write_bundle(to, "m", part, FEATURES, RULES, fit_panel(part, FEATURES, RULES.min_history))


def test_only_periods_after_its_training_judge_a_champion(tmp_path):
    data = panel()
    ours = held_out(data, FEATURES, RULES, HOLDOUT)
    assert set(ours.period) == set(range(272, 300))
    week_old = held_out_of(bundle_of(data, tmp_path / "a", 293), data, HOLDOUT)
    assert set(week_old.period) == set(range(293, 300))
    same_age = held_out_of(bundle_of(data, tmp_path / "b", 300), data, HOLDOUT)
    assert set(same_age.period) == set(range(272, 300))
    assert len(ours.same_as(week_old)) == len(week_old) == 7 * 12


def test_a_model_of_noisier_data_finds_less_and_the_gate_says_so(tmp_path):
    calm, wild = panel(), panel(noise=0.4)
    bundles = [bundle_of(data, tmp_path / name, 293) for name, data in (("calm", calm), ("wild", wild))]
    rows = [held_out_of(bundle, calm, HOLDOUT) for bundle in bundles]
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
    assert len(held_out(panel(28), FEATURES, RULES, HOLDOUT)) == 0
    assert measure(held_out(panel(28), FEATURES, RULES, HOLDOUT), RULES) == {}


def test_measure_counts_what_it_says():
    injected = {name: np.array([1e-9, 1e-9, 0.9, 0.9]) for name in INJECTED}
    rows = HeldOut(np.array([0, 0, 1, 1]), np.array([5, 6, 5, 6]), np.array([0.005, 0.5, 1e-9, 0.5]), injected)
    found = measure(rows, RULES)
    assert (found["evaluated_segments"], found["evaluated_rows"], found["prediction_rate"]) == (2, 4, 0.5)
    assert found["recall_drop_60"] == 0.5
