"""Both pipelines on KFP's local runner: the same model and the same predictions as in process."""

import json
import sys

import duckdb
import pandas as pd
import pytest
import yaml

from segwatch.core.bundle import ModelBundle
from segwatch.registries import open_registry

from .conftest import END, SPLIT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:kfp", "ignore::FutureWarning:kfp")
SCORE = ("infer", "--start", SPLIT, "--end", END)


def predictions(folder):
    with duckdb.connect(folder / "segwatch.duckdb", read_only=True) as connection:
        columns = "* exclude (run_id, scored_at, model_version)"
        return connection.execute(f"from predictions select {columns} order by all").df()


def model(folder, version):
    registry = open_registry(f"sqlite:///{folder / 'mlflow.db'}")
    bundle = registry.download(registry.resolve("segwatch-new_users", version), folder / f"model-{version}")
    return json.loads((ModelBundle.open(bundle).path / "manifest.json").read_text())["digest"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, segwatch):
    """Version 1 was trained in process, version 2 on KFP in three shards."""
    folder = tmp_path_factory.mktemp("kfp")
    segwatch(folder, "init")
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--segments", "9", "--days", "200", "--end", END)
    segwatch(folder, "train", "--as-of", SPLIT)
    text = (folder / "segwatch.toml").read_text()
    (folder / "segwatch.toml").write_text(text.replace("[targets.dev]", "[targets.dev]\nshards = 3"))
    said = segwatch(folder, "train", "--as-of", SPLIT, "--runner", "kfp-local")
    assert "step register" in said.stderr
    assert said.stdout == ""
    return folder


def test_three_shards_on_kfp_make_the_model_that_one_process_makes(folder):
    assert model(folder, "2") == model(folder, "1")


def test_kfp_publishes_the_predictions_that_one_process_publishes(folder, segwatch):
    segwatch(folder, *SCORE)
    here = predictions(folder)
    segwatch(folder, *SCORE, "--runner", "kfp-local", "--fail-on", "any", code=5)
    pd.testing.assert_frame_equal(here, predictions(folder))
    with duckdb.connect(folder / "segwatch.duckdb", read_only=True) as connection:
        tables = [name for (name,) in connection.execute("select table_name from duckdb_tables()").fetchall()]
    assert not any(name.startswith("segwatch_features_") for name in tables)
    assert list((folder / ".segwatch" / "runs").iterdir()) == []


def test_an_error_of_a_step_is_the_commands_own(folder, segwatch):
    said = segwatch(folder, "train", "--as-of", "2001-01-01", "--runner", "kfp-local", code=3)
    assert said.stderr.splitlines()[-1].startswith("error: table new_users_metrics has no rows before 2001-01-01")
    assert "Traceback" not in said.stderr
    said = segwatch(folder, "infer", "--as-of", END, "--select", "channel=fax", "--runner", "kfp-local", code=3)
    assert "channel=fax" in said.stderr.splitlines()[-1]


def test_both_pipelines_compile_with_the_settings_as_parameters(folder, segwatch):
    text = (folder / "segwatch.toml").read_text()
    (folder / "more.toml").write_text(
        text.replace("[metrics", '[targets.dev.steps.train]\ncpu = "8"\nmemory = "32G"\nretries = 3\n[metrics', 1)
    )
    segwatch(folder, "--settings", "more.toml", "compile", "-o", "out")
    train, infer = (
        yaml.safe_load((folder / "out" / f"segwatch-{name}.yaml").read_text()) for name in ("train", "infer")
    )
    inputs = train["root"]["inputDefinitions"]["parameters"]
    assert inputs["shards"]["defaultValue"] == [0, 1, 2]
    assert inputs["metric"]["defaultValue"] == "new_users"
    assert json.loads(inputs["settings"]["defaultValue"])["default_target"] == "dev"
    container = train["deploymentSpec"]["executors"]["exec-train"]["container"]
    assert (container["resources"]["cpuLimit"], container["resources"]["memoryLimit"]) == (8, 32)
    (fan_out,) = (c for name, c in train["components"].items() if "for-loop" in name)
    assert fan_out["dag"]["tasks"]["train"]["retryPolicy"]["maxRetryCount"] == 3
    assert "pipelinechannel--image" in container["image"]
    # Windows come from the schedule's time, never from the day of compiling.
    for document in (train, infer):
        assert "{{$.pipeline_job_schedule_time_utc}}" in json.dumps(document)
        assert '"enableCache": true' not in json.dumps(document)


def test_compiling_without_kfp_names_the_extra_and_leaves_no_folder(tmp_path, segwatch, monkeypatch):
    segwatch(tmp_path, "init")
    monkeypatch.setitem(sys.modules, "kfp.compiler", None)
    assert "pip install 'segwatch[kfp]'" in segwatch(tmp_path, "compile", code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["segwatch.toml"]
