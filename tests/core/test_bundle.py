import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from segwatch.core import bundle as bundles
from segwatch.core.baseline import Baseline, Recursion
from segwatch.core.bundle import PROTOCOL, ModelBundle, Rules, write_bundle
from segwatch.core.calibration import Calibration, pooled
from segwatch.core.features import FEATURES, FeatureSet
from segwatch.core.groups import Groups
from segwatch.core.panel import Segments
from segwatch.core.training import Prepared, Rows, fit_prepared
from segwatch.errors import DataError, ModelError

from .simulated import counts, panel_of, weekly

DIMENSIONS, RULES = ("country", "platform"), Rules(0.02, 0.1, 90)
NAMES = (*((country, f"p{i}") for country in ("de", "fr", "it") for i in range(4)), ("at", "new"))
DAYS = 150


@pytest.fixture(scope="module")
def prepared():
    rng = np.random.default_rng(0)
    values = counts(rng, np.outer(np.geomspace(5.0, 900.0, len(NAMES)), weekly(DAYS, 1.0)))
    values[-1, :-30] = np.nan
    values[[name[0] == "it" for name in NAMES], 60:100:2] *= 0.5
    return Prepared.of(panel_of(np.rint(values), NAMES, DIMENSIONS), Recursion(FeatureSet("day", "count"), 9))


@pytest.fixture(scope="module")
def fitted(prepared):
    return list(fit_prepared(prepared, RULES.min_history))


@pytest.fixture(scope="module", params=[500, 5])
def bundle(request, prepared, fitted, tmp_path_factory):
    """In one shard, and in several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "SHARD", request.param)
        yield write_bundle(tmp_path_factory.mktemp("bundle") / "it", "orders", prepared, RULES, fitted, 1)


def rows_of(prepared):
    """Segment ids and rows (n_rows, n_features) of the last days of the fitted segments, in no order."""
    X = Rows.of(prepared, 5).X[:-1]
    ids = np.repeat(np.array(prepared.panel.segments.ids[:-1]), 5)
    order = np.random.default_rng(0).permutation(len(ids))
    return ids[order].tolist(), X.reshape(-1, len(FEATURES))[order]


def test_a_bundle_holds_what_was_trained(bundle, prepared, fitted):
    again = ModelBundle.open(bundle.path)
    assert again.dimensions == DIMENSIONS and again.window == prepared.panel.window and again.rules == RULES
    assert again.recursion == prepared.recursion and again.feature_set == prepared.recursion.features
    assert again.history.segments == prepared.panel.segments
    np.testing.assert_array_equal(again.history.first_seen, prepared.panel.history.first_seen)
    assert again.manifest["counts"] == {"segments": 13, "ok": 12, "too_short": 1}
    assert again.manifest["max_rollup_order"] == 1
    for position, one in enumerate(fitted):
        other = again.fitted(position)
        assert (other.n_observations, other.status, other.reason) == (one.n_observations, one.status, one.reason)
        if one.detector:
            np.testing.assert_array_equal(other.detector.vectors, one.detector.vectors)
            np.testing.assert_array_equal(other.detector.weights, one.detector.weights)
            np.testing.assert_array_equal(other.detector.scaling.center, one.detector.scaling.center)
            np.testing.assert_array_equal(other.detector.scaling.spread, one.detector.scaling.spread)
            assert other.detector.calibration == one.detector.calibration


def test_a_bundle_holds_the_states_to_the_last_bit_and_gives_copies(bundle, prepared):
    state = bundle.state()
    for f in fields(Baseline):
        np.testing.assert_array_equal(getattr(state, f.name), getattr(prepared.state, f.name), err_msg=f.name)
        getattr(state, f.name)[...] = 7.0
    np.testing.assert_array_equal(bundle.state().level, prepared.state.level)


def test_the_pool_of_all_calibrations_is_in_the_manifest_and_draws_each_segments(bundle, fitted):
    pool = pooled([one.detector.calibration for one in fitted if one.detector])
    assert Calibration(**bundle.manifest["pool"]) == pool
    for position, one in enumerate(fitted[:-1]):
        assert bundle.detector(position).calibration == one.detector.calibration.towards(pool)


def test_rows_are_scored_by_their_own_segments_detector_in_any_order(bundle, prepared, fitted):
    ids, X = rows_of(prepared)
    scores, p_values = bundle.score(ids, X)
    places = prepared.panel.segments.position
    expected = [fitted[places[id_]].detector.score(row[None])[0] for id_, row in zip(ids, X, strict=True)]
    # The compiled kernels are of single precision.
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    prediction, _, again = bundle.predict(ids, X)
    np.testing.assert_array_equal(again, p_values)
    np.testing.assert_array_equal(prediction == -1, p_values <= RULES.alpha)


def test_a_frame_is_predicted_as_its_rows_are(bundle, prepared):
    ids, X = rows_of(prepared)
    frame = pd.DataFrame(X, columns=list(FEATURES), index=range(100, 100 + len(X))).assign(segment_id=ids)
    found = bundle.predict_frame(frame[["segment_id", *reversed(FEATURES)]])
    np.testing.assert_array_equal(found["p_value"], bundle.score(ids, X)[1])
    assert found.index[0] == 100
    with pytest.raises(DataError, match="no column 'flat'; needed: segment_id, z, short, long, flat, shared"):
        bundle.predict_frame(frame.drop(columns="flat"))


def test_threads_share_a_bundle(bundle, prepared):
    ids, X = rows_of(prepared)
    alone = bundle.score(ids, X)
    shared = ModelBundle.open(bundle.path)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: shared.score(ids, X), range(16)):
            np.testing.assert_array_equal(found, alone)


def test_a_segment_without_a_model_and_an_unknown_one_are_refused(bundle, prepared):
    X = np.zeros((1, len(FEATURES)))
    with pytest.raises(ModelError, match="segment at/new has no model: 30 periods, needs 90"):
        bundle.score([prepared.panel.segments.ids[-1]], X)
    with pytest.raises(DataError, match="segment id nobody is not in this model: train again"):
        bundle.score(["nobody"], X)


def test_groups_are_known_by_their_keys_and_new_ones_are_not_known_yet(bundle, prepared):
    known = prepared.shared.groups
    assert (0, "it") in known.keys
    scales = bundle.pools(known).scales
    np.testing.assert_array_equal(scales.scale, prepared.pools.scales.scale)
    np.testing.assert_array_equal(scales.n_seen, prepared.pools.scales.n_seen)
    assert scales.n_seen.max() >= 14
    names = tuple((country, f"p{i}") for country in ("be", "it") for i in range(4))
    other = Groups.of(Segments(DIMENSIONS, names))
    assert other.keys[1:] == ((0, "be"), (0, "it"))
    found = bundle.pools(other).scales
    assert np.isnan(found.scale[1]) and found.n_seen[1] == 0
    at = known.keys.index((0, "it"))
    assert (found.scale[2], found.n_seen[2]) == (prepared.pools.scales.scale[at], prepared.pools.scales.n_seen[at])
    found.update(np.ones(3))
    np.testing.assert_array_equal(bundle.pools(known).scales.n_seen, prepared.pools.scales.n_seen)


def test_shift_says_how_far_half_of_the_rows_lie_from_training(bundle, prepared):
    ids, X = rows_of(prepared)
    assert max(abs(value) for value in bundle.shift(ids, X).values()) < 1
    moved = bundle.shift(ids, X + np.array([0.0, 50.0, 0.0, 0.0, 0.0]))
    assert moved["short"] > 10 and abs(moved["z"]) < 1
    assert bundle.shift([], X[:0]) == {}


def test_the_same_data_give_the_same_bundle(tmp_path, prepared, fitted):
    made = [write_bundle(tmp_path / name, "orders", prepared, RULES, fitted, 1) for name in "ab"]
    assert made[0].manifest == made[1].manifest


def test_a_bundle_of_segments_without_a_model_has_a_pool_too(tmp_path, prepared, fitted):
    one = write_bundle(tmp_path / "it", "orders", prepared.take([12]), RULES, fitted[12:])
    assert one.status == ("too_short",)
    assert one.manifest["pool"] == {"location": 0.0, "scale": 1.0, "stretch": 1.0}


@pytest.fixture
def copied(bundle, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "it")
    return tmp_path / "it"


@pytest.mark.parametrize("name", ["segments.arrow", "groups.arrow", "vectors.arrow"])
def test_a_file_that_was_changed_is_named_and_one_that_is_missing_refused(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} of the model in .* was changed: download the model again"):
        ModelBundle.open(copied)
    (copied / name).unlink()
    with pytest.raises(ModelError, match=r"holds no whole model .*No such file"):
        ModelBundle.open(copied)


def changed(copied, **entries):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, **entries}))


def test_a_manifest_that_was_changed_is_refused(copied):
    changed(copied, rules={"alpha": 0.5, "fdr": 0.5, "min_history": 1})
    with pytest.raises(ModelError, match=r"manifest\.json of the model in .* was changed"):
        ModelBundle.open(copied)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"protocol": 2}', '{"protocol": 2, "files": {}}', "\ufeff{"])
def test_what_is_no_manifest_is_refused(copied, text):
    (copied / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="holds no whole model"):
        ModelBundle.open(copied)


@pytest.mark.parametrize("protocol", [1, 3])
def test_a_bundle_of_another_protocol_is_refused_in_one_sentence(copied, protocol):
    changed(copied, protocol=protocol)
    with pytest.raises(ModelError) as refused:
        ModelBundle.open(copied)
    assert PROTOCOL == 2
    assert (
        str(refused.value) == f"the model in {copied} is of protocol {protocol}, this segwatch reads 2: train it anew"
    )


def test_features_that_are_defined_otherwise_now_are_refused(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["feature_set"] |= {"version": 2}
    del manifest["digest"]
    manifest["digest"] = bundles._manifest_digest(manifest)
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ModelError, match="features recursive v2, which this segwatch does not define so: train it anew"
    ):
        _ = ModelBundle.open(copied).feature_set
