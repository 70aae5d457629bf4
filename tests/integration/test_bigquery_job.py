"""The main job from BigQuery to BigQuery, against the same one on DuckDB."""

import secrets

import numpy as np

from segwatch.core.window import Window
from segwatch.settings import load_settings
from segwatch.warehouses import open_warehouse

END, SPLIT = "2026-11-24", "2026-11-20"
WINDOW = Window(np.datetime64(SPLIT), np.datetime64(END))
OF_THE_RUN = ["run_id", "scored_at", "model_version"]


def run_main_job(segwatch, folder):
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--segments", "9", "--days", "140", "--end", END)
    segwatch(folder, "train", "--as-of", SPLIT)
    segwatch(folder, "infer", "--start", SPLIT, "--end", END)
    segwatch(folder, "report", "--output", "page.html")
    target = load_settings(folder / "segwatch.toml").target(None)
    warehouse = open_warehouse(target.warehouse, target.google)
    predictions = warehouse.predictions("predictions", "new_users", WINDOW)
    tables = warehouse.created_tables()
    warehouse.close()
    return predictions.drop_columns(OF_THE_RUN), tables


def test_bigquery_gives_the_predictions_that_duckdb_gives(tmp_path, segwatch, bigquery_emulator):
    folders = [tmp_path / name for name in ("bigquery", "duckdb")]
    for folder in folders:
        folder.mkdir()
        segwatch(folder, "init")
    path = folders[0] / "segwatch.toml"
    url = f"bigquery://test-{secrets.token_hex(6)}/watch"
    text = path.read_text().replace('"duckdb:///segwatch.duckdb"', f'"{url}"')
    endpoints = f'bigquery = "{bigquery_emulator.rest}"\nbigquery_storage = "{bigquery_emulator.storage}"\n'
    path.write_text(f"{text}\n[targets.dev.google.endpoints]\n{endpoints}")
    (found, tables), (expected, _) = (run_main_job(segwatch, folder) for folder in folders)
    assert found.num_rows == 9 * 4
    assert found.equals(expected)
    assert tables == ["new_users_metrics", "new_users_metrics_labels", "predictions"]
    plan = segwatch(folders[0], "train", "--as-of", SPLIT, "--dry-run").stderr
    assert "bytes at most" in plan
    segwatch(folders[0], "destroy", "--yes")
    segwatch(folders[0], "infer", "--start", SPLIT, "--end", END, code=3)
