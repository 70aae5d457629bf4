"""The commands with a target whose registry is Vertex AI; its server and its bucket are stand-ins on this machine."""

import json

import pytest

from ..fakes.vertex import VertexFake
from .conftest import END, SPLIT

TARGET = """
default_target = "cloud"
[targets.cloud]
warehouse = "duckdb:///segwatch.duckdb"
registry = "vertex"
bucket = "{bucket}/segwatch"
image = "europe-docker.pkg.dev/p/r/segwatch:1"
[targets.cloud.google]
project = "test-project"
location = "europe-west1"
endpoints = {{ storage = "{storage}", vertex = "{vertex}" }}
[metrics.new_users]
table = "new_users_metrics"
time = "created_at"
value = "new_users"
dimensions = ["country_code", "platform", "channel"]
"""


@pytest.fixture
def vertex():
    fake = VertexFake()
    yield fake
    fake.close()


def test_train_score_roll_back_and_destroy(tmp_path, segwatch, bucket, vertex):
    (tmp_path / "segwatch.toml").write_text(
        TARGET.format(bucket=bucket.uri, storage=bucket.door.url, vertex=vertex.url)
    )
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "3", "--days", "150", "--end", END)
    segwatch(tmp_path, "infer", "--as-of", SPLIT, code=3)
    segwatch(tmp_path, "train", "--as-of", SPLIT)
    segwatch(tmp_path, "train", "--as-of", "2026-11-06")
    said = segwatch(tmp_path, "--log-format", "json", "infer", "--start", SPLIT, "--end", END)
    assert json.loads(said.stderr.splitlines()[-1] if said.stderr else said.stdout.splitlines()[-1])
    segwatch(tmp_path, "models", "rollback")
    _, *listed = segwatch(tmp_path, "models", "list").stdout.splitlines()
    assert [line.split("\t")[0] + line.split("\t")[3] for line in listed] == ["2", "1champion"]
    assert f", {SPLIT})" in listed[1]
    shown = segwatch(tmp_path, "models", "show").stdout
    assert f"window_end\t{SPLIT}" in shown
    segwatch(tmp_path, "run", "--as-of", END)
    segwatch(tmp_path, "report")
    segwatch(tmp_path, "destroy", "--yes")
    assert (vertex.models, bucket.door.names(bucket.uri)) == ({}, [])


@pytest.mark.parametrize("key", ["project", "bucket", "image"])
def test_a_missing_setting_is_exit_code_2(tmp_path, segwatch, bucket, vertex, key):
    text = TARGET.format(bucket=bucket.uri, storage=bucket.door.url, vertex=vertex.url)
    lines = [line for line in text.splitlines() if not line.startswith(f"{key} =")]
    (tmp_path / "segwatch.toml").write_text("\n".join(lines))
    assert f"{key}` of the target" in segwatch(tmp_path, "create", code=2).stderr
