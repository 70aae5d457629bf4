import contextlib
import datetime as dt
import json
import sqlite3
import subprocess
import sys

import duckdb
import numpy as np
import pandas as pd
import pytest

from segwatch.console import QuietObserver
from segwatch.run import open_run, scoring_window
from segwatch.runner import infer, training_reason
from segwatch.settings import load_settings

from .conftest import END, ROLLUPS, SEGMENTS, SPLIT, WATCHED, ask

NOW = dt.datetime(2026, 11, 24, 6, tzinfo=dt.UTC)


def predictions(folder, columns="* exclude (run_id, scored_at)"):
    with duckdb.connect(folder / "segwatch.duckdb", read_only=True) as connection:
        return connection.execute(f"from predictions select {columns} order by segment_id, ts").df()


def test_every_segment_and_day_gets_one_row_and_a_second_run_leaves_the_same_table(trained, segwatch):
    segwatch(trained, "infer", "--start", SPLIT, "--end", END)
    first = predictions(trained)
    assert len(first) == WATCHED * 20
    segwatch(trained, "infer", "--start", SPLIT, "--end", END)
    pd.testing.assert_frame_equal(first, predictions(trained))


@pytest.mark.parametrize("floors", ["", "min_impact = 100", "min_impact_share = 0.02"])
def test_a_value_is_outside_its_bounds_exactly_where_it_is_an_anomaly(trained, segwatch, floors):
    path = trained / "segwatch.toml"
    path.write_text(path.read_text() + floors)
    segwatch(trained, "infer", "--start", SPLIT, "--end", END)
    rows = predictions(trained).query("status == 'ok'")
    np.testing.assert_allclose(rows["impact"], rows["value"] - rows["expected"])
    totals = rows[rows["level"] == "country_code/platform/channel"].groupby("ts")["expected"].sum()
    np.testing.assert_allclose(rows["impact_share"], rows["impact"] / rows["ts"].map(totals), rtol=1e-9)
    flagged = rows[rows["is_anomaly"]]
    floor = {"": 0.0, "min_impact = 100": 100, "min_impact_share = 0.02": 0.02}[floors]
    assert (flagged["impact_share" if "share" in floors else "impact"].abs() >= floor).all()
    assert rows["is_anomaly"].any()
    outside = (rows["value"] < rows["lower"]) | (rows["value"] > rows["upper"]) | (rows["reason"] == "pattern")
    pd.testing.assert_series_equal(outside, rows["is_anomaly"], check_names=False)
    assert rows[["score", "p_value", "expected"]].notna().all(axis=None)
    assert (rows["prediction"] == np.where(rows["p_value"] <= 0.01, -1, 1)).all()


def test_one_day_at_a_time_scores_as_many_days_at_once_do(trained, segwatch):
    segwatch(trained, "infer", "--start", SPLIT, "--end", "2026-11-08")
    together = predictions(trained)
    for day in ("2026-11-05", "2026-11-06", "2026-11-07", "2026-11-08"):
        segwatch(trained, "infer", "--as-of", day)
    apart = predictions(trained)
    pd.testing.assert_series_equal(apart["is_anomaly"], together["is_anomaly"])
    np.testing.assert_allclose(apart["score"].dropna(), together["score"].dropna(), rtol=1e-12)


def test_a_selection_replaces_only_its_own_rows(trained, segwatch):
    segwatch(trained, "infer", "--as-of", SPLIT)
    before = predictions(trained, "segment_id, channel, run_id").set_index("segment_id")
    segwatch(trained, "infer", "--as-of", SPLIT, "--select", "channel=paid")
    after = predictions(trained, "segment_id, channel, run_id").set_index("segment_id")
    changed = before["run_id"] != after["run_id"]
    assert (changed == (before["channel"] == "paid")).all()
    assert changed.any()


def test_a_new_segment_gets_a_row_with_its_status(trained, segwatch, tmp_path):
    rows = 'created_at,country_code,platform,channel,new_users\n2026-11-23,NA,"a/b\'c",paid,5\n'
    (tmp_path / "new.csv").write_text(rows)
    segwatch(trained, "data", "insert", "--from", str(tmp_path / "new.csv"))
    segwatch(trained, "infer", "--as-of", END)
    rows = predictions(trained).set_index(["country_code", "platform", "channel"])
    assert rows.loc[("NA", "a/b'c", "paid"), "status"] == "new_segment"
    assert not rows.query("status != 'ok'")["is_anomaly"].any()


def test_the_temporary_table_goes_unless_it_is_kept(trained, segwatch):
    def tables():
        with duckdb.connect(trained / "segwatch.duckdb", read_only=True) as connection:
            names = [row[0] for row in connection.execute("select table_name from duckdb_tables()").fetchall()]
        return [name for name in names if name.startswith("segwatch_features_")]

    segwatch(trained, "infer", "--as-of", SPLIT)
    assert tables() == []
    segwatch(trained, "infer", "--as-of", SPLIT, "--keep-features")
    assert len(tables()) == 1


def test_dry_runs_change_nothing(trained, segwatch):
    before = (trained / "segwatch.duckdb").read_bytes()
    said = segwatch(trained, "--log-format", "json", "train", "--as-of", SPLIT, "--dry-run").stderr
    assert "9 of 9 segments have the 90 periods, 7 roll-ups besides" in said
    said = segwatch(trained, "infer", "--as-of", SPLIT, "--dry-run").stderr
    assert "(16 fitted of 9 segments and 7 roll-ups)" in " ".join(said.split())
    assert (trained / "segwatch.duckdb").read_bytes() == before


def test_the_daily_job_trains_only_when_the_champion_is_missing_or_old(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "3", "--days", "200", "--end", END)

    def chose(as_of):
        lines = segwatch(tmp_path, "--log-format", "json", "run", "--as-of", as_of).stderr.splitlines()
        return next(e["trains"] for e in map(json.loads, lines) if e["event"] == "run")

    assert chose("2026-11-16") == "there is no champion"
    assert chose("2026-11-17").startswith("no:")
    assert "7 days ago" in chose("2026-11-23")
    header, *listed = segwatch(tmp_path, "models", "list").stdout.splitlines()
    assert header.split("\t") == ["version", "registered", "trained on", "alias", "gate"]
    assert [line.split("\t")[0] for line in listed] == ["2", "1"]
    assert listed[0].endswith("passed")
    segwatch(tmp_path, "models", "rollback")
    assert "version\t1" in segwatch(tmp_path, "models", "show").stdout
    segwatch(tmp_path, "report")
    assert "new_users" in (tmp_path / "segwatch-report.html").read_text()
    segwatch(tmp_path, "destroy", "--yes")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".segwatch",
        "segwatch-report.html",
        "segwatch.toml",
    ]


def test_a_version_says_what_it_watches_and_how(trained, segwatch):
    shown = segwatch(trained, "models", "show", "1").stdout.splitlines()
    for line in (
        "kind\tcount",
        "adapt_after\t7",
        "max_rollup_order\t1",
        f"segments\t{SEGMENTS}",
        f"rollups\t{ROLLUPS}",
    ):
        assert line in shown
    assert "of 9 segments and 7 roll-ups" in segwatch(trained, "doctor").stdout


def test_training_a_selection_does_not_move_the_champion(trained_template, segwatch):
    segwatch(trained_template, "train", "--as-of", SPLIT, "--select", "channel=paid")
    assert "version\t1" in segwatch(trained_template, "models", "show").stdout


def test_the_model_loads_by_its_uri_and_predicts(trained_template):
    code = f"""
import mlflow, numpy as np, pandas as pd
from segwatch.core.bundle import ModelBundle
from segwatch.core.features import FEATURES
mlflow.set_tracking_uri("sqlite:///{trained_template}/mlflow.db")
model = mlflow.pyfunc.load_model("models:/segwatch-new_users/1")
import sys; sys.stdout.write(str(type(model.unwrap_python_model() if 0 else model)))
from segwatch.core.segment import segment_id
id_ = segment_id(("country_code", "platform", "channel"), ("it", "ios", "paid"))
frame = pd.DataFrame(np.vstack([np.zeros(5), np.full(5, 50.0)]), columns=list(FEATURES)).assign(segment_id=id_)
out = model.predict(frame)
assert out["prediction"].tolist() == [1, -1], out
assert out["score"].is_monotonic_increasing and out["p_value"].is_monotonic_decreasing
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=trained_template)
    assert finished.returncode == 0, finished.stderr


def test_the_registry_holds_the_window_metrics_and_the_alias(trained_template):
    with contextlib.closing(sqlite3.connect(trained_template / "mlflow.db")) as connection:
        metrics = dict(connection.execute("select key, value from metrics"))
        alias = connection.execute("select alias, version from registered_model_aliases").fetchall()
    assert {"alert_rate", "recall_drop_30", "recall_drop_60", "recall_spike_30", "recall_spike_60"} <= set(metrics)
    assert ("champion", 1) in alias


def test_an_alias_that_moves_during_a_run_changes_nothing_for_it(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "3", "--days", "150", "--end", END)
    segwatch(tmp_path, "train", "--as-of", END)
    segwatch(tmp_path, "train", "--as-of", SPLIT)

    class Meddler(QuietObserver):
        """Makes version 1 the champion while features are made for version 2."""

        @contextlib.contextmanager
        def step(self, name, total=None):
            if name == "featurize":
                run.registry.promote("segwatch-new_users", "1")
            with super().step(name, total) as progress:
                yield progress

    settings = load_settings(tmp_path / "segwatch.toml")
    with open_run(settings, None, "new_users", {}, tmp_path / "runs", Meddler(), NOW) as run:
        summary = infer(run, scoring_window(run))
    assert summary.version.version == "2"
    assert predictions(tmp_path)["model_version"].unique().tolist() == ["2"]
    assert "version\t1" in segwatch(tmp_path, "models", "show").stdout


def test_late_rows_are_waited_for_and_scored_again(trained, segwatch):
    path = trained / "segwatch.toml"
    path.write_text(path.read_text().replace("# settle = 0 ", "settle = 2 ").replace("# rescore = 0 ", "rescore = 3 "))
    segwatch(trained, "infer", "--as-of", "2026-11-20")
    first = predictions(trained)
    days = first["ts"].dt.strftime("%Y-%m-%d")
    assert sorted(days.unique()) == ["2026-11-14", "2026-11-15", "2026-11-16", "2026-11-17"]
    (trained / "late.csv").write_text(
        "created_at,country_code,platform,channel,new_users\n2026-11-16,it,ios,paid,123456\n"
    )
    segwatch(trained, "data", "insert", "--from", "late.csv")
    segwatch(trained, "infer", "--as-of", "2026-11-21")
    again = predictions(trained)
    assert len(again) == len(first) + WATCHED
    late = again.query("value == 123456")
    assert late["is_anomaly"].tolist() == [True]
    assert late["ts"].dt.strftime("%Y-%m-%d").tolist() == ["2026-11-16"]
    totals = again.query("level == 'total' and is_anomaly")
    assert totals["ts"].dt.strftime("%Y-%m-%d").tolist() == ["2026-11-16"]


def test_a_period_that_is_not_over_is_not_scored(trained, segwatch):
    today = dt.datetime.now(dt.UTC).date()
    tomorrow = str(today + dt.timedelta(days=1))
    said = segwatch(trained, "infer", "--start", SPLIT, "--end", tomorrow, code=2).stderr
    assert f"--end {tomorrow}: the day before it is not over; the last complete day ends at {today}" in said


def test_a_predictions_table_of_an_earlier_segwatch_is_mended_by_create(trained, segwatch):
    with duckdb.connect(trained / "segwatch.duckdb") as connection:
        connection.execute("alter table predictions drop impact_share")
    said = segwatch(trained, "infer", "--as-of", END, code=3).stderr
    assert "no column 'impact_share': run `segwatch create`" in said
    segwatch(trained, "create")
    segwatch(trained, "infer", "--as-of", END)


def test_evaluate_says_what_would_have_been_found_and_keeps_that_alone(trained, segwatch):
    tables = ("new_users_metrics", "predictions", "incidents")
    before = [ask(trained, f"FROM {table} ORDER BY ALL") for table in tables]
    said = " ".join(segwatch(trained, "evaluate", "--as-of", END, "--output", "found.csv").stderr.split())
    assert "alerts per 1,000 rows; smallest drop" in said
    assert "zero out" in said and "drift down" in said
    table = pd.read_csv(trained / "found.csv")
    assert len(table) == WATCHED and (table["smallest_drop"].dropna() < 1).all()
    assert [ask(trained, f"FROM {table} ORDER BY ALL") for table in tables] == before
    kept = ask(trained, "SELECT round(smallest_drop, 4) FROM detectability WHERE smallest_drop NOT NULL ORDER BY 1")
    assert [drop for (drop,) in kept] == sorted(table["smallest_drop"].dropna())
    assert "widen --start" in segwatch(trained, "evaluate", "--as-of", END, "--start", "2026-11-10", code=3).stderr
    assert "version\t1" in segwatch(trained, "models", "show").stdout


def test_a_backtest_alerts_as_training_and_scoring_then_would_have(trained, segwatch):
    tables = ("new_users_metrics", "predictions", "incidents", "labels", "audit", "detectability")
    before = [ask(trained, f"FROM {table} ORDER BY ALL") for table in tables]
    (trained / "wide.toml").write_text((trained / "segwatch.toml").read_text() + "min_impact = 1000000\n")
    said = segwatch(
        trained, "--log-format", "json", "backtest", "--start", SPLIT, "--end", "2026-11-13", "--against", "wide.toml"
    )
    told = json.loads(said.stderr.splitlines()[-1])
    assert [ask(trained, f"FROM {table} ORDER BY ALL") for table in tables] == before
    segwatch(trained, "infer", "--start", SPLIT, "--end", "2026-11-11")
    alerts = int(predictions(trained)["is_anomaly"].sum())
    assert told[f"[{SPLIT}, 2026-11-11)"].startswith(f"segwatch.toml: {alerts} alerts")
    assert "wide.toml: 0 alerts" in told[f"[{SPLIT}, 2026-11-11)"]
    assert "[2026-11-11, 2026-11-13)" in told
    assert told["in all, wide.toml"].startswith("0 alerts")


def test_thresholds_take_effect_without_training_anew(trained, segwatch, monkeypatch):
    segwatch(trained, "infer", "--start", SPLIT, "--end", END)
    usual = predictions(trained)
    monkeypatch.setenv("SEGWATCH_METRICS__NEW_USERS__ALPHA", "0.2")
    monkeypatch.setenv("SEGWATCH_METRICS__NEW_USERS__FDR", "0.9")
    segwatch(trained, "infer", "--start", SPLIT, "--end", END)
    loose = predictions(trained)
    assert (loose["prediction"].dropna() == np.where(loose["p_value"].dropna() <= 0.2, -1, 1)).all()
    assert loose["is_anomaly"].sum() > usual["is_anomaly"].sum()
    pd.testing.assert_series_equal(loose["p_value"], usual["p_value"])


def test_the_daily_job_trains_where_the_champion_has_other_dimensions(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "9", "--days", "150", "--end", END)
    segwatch(tmp_path, "train", "--as-of", END)
    path = tmp_path / "segwatch.toml"
    path.write_text(path.read_text().replace(', "channel"]', "]"))
    segwatch(tmp_path, "run", "--as-of", END)
    assert set(predictions(tmp_path)["level"]) == {"country_code/platform", "total"}


@pytest.mark.parametrize(
    ("setting", "said"),
    [("adapt_after = 14", "adapt_after 7, now it is 14"), ("max_rollup_order = 0", "max_rollup_order 1, now it is 0")],
)
def test_the_daily_job_trains_where_the_champion_was_made_otherwise(trained, setting, said):
    (trained / "segwatch.toml").write_text((trained / "segwatch.toml").read_text() + setting)
    settings = load_settings(trained / "segwatch.toml")
    with open_run(settings, None, "new_users", {}, trained / "runs", QuietObserver(), NOW) as run:
        assert said in training_reason(run, np.datetime64(SPLIT))


def test_a_model_of_counts_scores_no_values_of_any_sign(trained, segwatch):
    path = trained / "segwatch.toml"
    path.write_text(path.read_text().replace('missing = "zero" ', 'missing = "gap" '))
    said = segwatch(trained, "infer", "--as-of", SPLIT, code=3).stderr
    assert "grain day, counts) than these" in said and "values of any sign" in said
