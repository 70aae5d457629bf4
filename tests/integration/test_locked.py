"""Another process holds the warehouse or the registry: exit code 4, try again, and nothing is lost."""

import json

import pytest

from segwatch.registries import mlflow_file
from segwatch.warehouses import duckdb

from .conftest import END, SPLIT, TABLE, ask, held, published

WAREHOUSE = "import duckdb; connection = duckdb.connect(path); print('held', flush=True)"
REGISTRY = """
import sqlite3
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("begin immediate")
print("held", flush=True)
"""


def told(said):
    return json.loads(said.stderr.splitlines()[-1])


@pytest.fixture
def project(trained, segwatch):
    segwatch(trained, "infer", "--as-of", SPLIT)
    return trained


def test_every_command_says_that_the_warehouse_is_in_use_and_leaves_it_as_it_was(project, segwatch, monkeypatch):
    monkeypatch.setattr(duckdb, "LOCK_WAIT_SECONDS", 0.1)
    rows = f"from {TABLE} order by all"
    before = published(project), ask(project, rows)
    (project / "rows.csv").write_text("created_at,country_code,platform,channel,new_users\n2026-11-01,it,ios,paid,5\n")
    with held(WAREHOUSE, project / "segwatch.duckdb"):
        for command in (
            ("create",),
            ("train", "--as-of", SPLIT),
            ("infer", "--as-of", SPLIT),
            ("run", "--as-of", SPLIT),
            ("report",),
            ("data", "insert"),
            ("data", "insert", "--from", "rows.csv"),
            ("data", "truncate", "--yes"),
            ("destroy", "--yes"),
        ):
            event = told(segwatch(project, "--log-format", "json", *command, code=4))
            assert "segwatch.duckdb is in use by another process" in event["message"]
            assert (event["event"], event["exit_code"], event["retryable"]) == ("error", 4, True)
    assert (published(project), ask(project, rows)) == before
    assert "version\t1" in segwatch(project, "models", "show").stdout
    segwatch(project, "infer", "--as-of", SPLIT)


def test_a_held_registry_stops_what_writes_to_it_and_the_champion_stands(tmp_path, segwatch, monkeypatch):
    monkeypatch.setattr(mlflow_file, "LOCK_WAIT_SECONDS", 0.1)
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "3", "--days", "150", "--end", END)
    for _ in range(2):
        segwatch(tmp_path, "train", "--as-of", SPLIT)
    with held(REGISTRY, tmp_path / "mlflow.db"):
        for command in (
            ("train", "--as-of", SPLIT),
            ("models", "promote", "1"),
            ("models", "rollback"),
            ("destroy", "--yes"),
        ):
            event = told(segwatch(tmp_path, "--log-format", "json", *command, code=4))
            assert "mlflow.db is held by another process" in event["message"]
            assert (event["exit_code"], event["retryable"]) == (4, True)
        segwatch(tmp_path, "infer", "--as-of", SPLIT)
    before = published(tmp_path)
    with held(REGISTRY.replace("immediate", "exclusive"), tmp_path / "mlflow.db"):
        for command in (("infer", "--as-of", SPLIT), ("models", "list"), ("report",)):
            event = told(segwatch(tmp_path, "--log-format", "json", *command, code=4))
            assert "mlflow.db is held by another process" in event["message"]
            assert (event["exit_code"], event["retryable"]) == (4, True)
    assert published(tmp_path) == before
    assert "version\t2" in segwatch(tmp_path, "models", "show").stdout
    segwatch(tmp_path, "models", "promote", "1")
    segwatch(tmp_path, "destroy", "--yes")
    assert not (tmp_path / "segwatch.duckdb").exists() and not (tmp_path / "mlflow.db").exists()
