import json

import pytest

from segwatch.core.window import Window, parse_time
from segwatch.warehouses import open_warehouse

from ..servers.hooks import hook
from .conftest import END

SPLIT = "2026-11-14"
RUN = ["metric", "level", "segment_id", "ts", "country_code", "platform", "channel"]
DECIDED = ["prediction", "is_anomaly", "direction", "status", "reason"]
SCORED = ["value", "expected", "lower", "upper", "score", "p_value"]


def run_all(folder, segwatch, warehouse=None):
    """The predictions of the same data, by way of a warehouse: the template's DuckDB file if none is named."""
    segwatch(folder, "init")
    settings = folder / "segwatch.toml"
    url = f"duckdb:///{folder}/segwatch.duckdb"
    if warehouse is not None:
        settings.write_text(settings.read_text().replace("duckdb:///segwatch.duckdb", warehouse))
        url = warehouse
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--segments", "3", "--days", "150", "--end", END)
    segwatch(folder, "train", "--as-of", SPLIT)
    for _ in range(2):
        segwatch(folder, "infer", "--start", SPLIT, "--end", END)
    opened = open_warehouse(url)
    window = Window(parse_time(SPLIT, "day", ""), parse_time(END, "day", ""))
    rows = opened.predictions("predictions", "new_users", window)
    opened.close()
    return rows


def test_postgresql_and_duckdb_lead_to_the_same_predictions(tmp_path, segwatch, postgres_server):
    postgres_server.empty()
    (tmp_path / "duckdb").mkdir()
    (tmp_path / "postgres").mkdir()
    expected = run_all(tmp_path / "duckdb", segwatch)
    found = run_all(tmp_path / "postgres", segwatch, postgres_server.url())
    assert found.num_rows == (3 + 1) * 10
    assert found.schema.names == expected.schema.names
    for name in (*RUN, *DECIDED):
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    for name in SCORED:
        assert found[name].to_pylist() == pytest.approx(expected[name].to_pylist(), rel=1e-9, abs=1e-9), name


def test_incidents_are_told_labelled_and_explained_by_way_of_postgresql(
    tmp_path, segwatch, postgres_server, monkeypatch
):
    postgres_server.empty()
    run_all(tmp_path, segwatch, postgres_server.url())
    rule = '[channels.team]\nurl = "${TEAM_HOOK}"\n[alerts.all]\nchannels = ["team"]\n'
    (tmp_path / "segwatch.toml").write_text((tmp_path / "segwatch.toml").read_text() + rule)
    postgres_server.run("UPDATE new_users_metrics SET new_users = 0 WHERE created_at = '2026-11-23'")
    with hook() as team:
        monkeypatch.setenv("TEAM_HOOK", team.url)
        for _ in range(2):
            segwatch(tmp_path, "infer", "--as-of", END)
        assert [title for title in team.titles if " down 100 %" in title and title.endswith(": new")] == team.titles[:1]
        told = len(team.titles)
        [id_] = [line.split("\t")[0] for line in segwatch(tmp_path, "incidents", "--open").stdout.splitlines()
                 if " down 100 %" in line]  # fmt: skip
        segwatch(tmp_path, "label", id_, "true", "--by", "ann", "--note", "it's 'down'")
        segwatch(tmp_path, "notify")
        assert len(team.titles) == told
    said = " ".join(segwatch(tmp_path, "train", "--as-of", END).stderr.split())
    assert "labels 3 values left out" in said
    assert "ann\tlabel\tincident" in segwatch(tmp_path, "labels", "audit").stdout
    assert "It was flagged" in segwatch(tmp_path, "explain", "total", "--at", "2026-11-23").stdout
    segwatch(tmp_path, "label", id_, "false", "--by", "ann")
    [(alarms,)] = postgres_server.run("SELECT alarms FROM labels WHERE label = 'false'")
    assert len(json.loads(alarms)) >= 1


def test_destroy_leaves_a_database_as_it_was(tmp_path, segwatch, postgres_server):
    postgres_server.empty()
    postgres_server.run("CREATE TABLE mine AS SELECT 1 AS x")
    segwatch(tmp_path, "init")
    settings = tmp_path / "segwatch.toml"
    settings.write_text(settings.read_text().replace("duckdb:///segwatch.duckdb", postgres_server.url()))
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "destroy", "--yes")
    tables = "SELECT json_agg(relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    assert json.loads(postgres_server.run(tables)[0][0]) == ["mine"]


def test_labels_and_alerts_are_kept_in_postgresql(tmp_path, segwatch, postgres_server, monkeypatch):
    postgres_server.empty()
    with hook() as team:
        monkeypatch.setenv("TEAM_HOOK", team.url)
        segwatch(tmp_path, "init")
        settings = tmp_path / "segwatch.toml"
        text = settings.read_text().replace("duckdb:///segwatch.duckdb", postgres_server.url())
        settings.write_text(f'{text}[channels.team]\nurl = "${{TEAM_HOOK}}"\n[alerts.all]\nchannels = ["team"]\n')
        segwatch(tmp_path, "create")
        segwatch(tmp_path, "data", "insert", "--segments", "3", "--days", "150", "--end", END)
        segwatch(tmp_path, "train", "--as-of", SPLIT)
        postgres_server.run("UPDATE new_users_metrics SET new_users = 0 WHERE created_at = '2026-11-20'")
        for _ in range(2):
            segwatch(tmp_path, "infer", "--start", SPLIT, "--end", "2026-11-21")
        [title] = [title for title in team.titles if "total down 100 %" in title]
        assert len(team.titles) == len(set(team.titles)) and title.endswith(": new")
        found = segwatch(tmp_path, "--log-format", "json", "incidents").stdout.splitlines()
        [id_] = [one["id"] for one in map(json.loads, found) if "total down" in one["said"]]
        segwatch(tmp_path, "label", id_[:8], "false", "--by", "ann")
        (tmp_path / "events.csv").write_text("first_day,label,platform\n2026-08-20,outage,\n2026-08-20,outage,\n")
        for _ in range(2):
            segwatch(tmp_path, "labels", "import", "events.csv", "--by", "ann")
        lines = [line.split("\t") for line in segwatch(tmp_path, "labels", "list").stdout.splitlines()]
        assert [line[1:3] for line in lines] == [["true", "total"], ["false", "total"]]
        [[alarms]] = postgres_server.run("SELECT alarms::json FROM labels WHERE label = 'false'")
        assert len(alarms if isinstance(alarms, list) else json.loads(alarms)) > 1
        assert len(segwatch(tmp_path, "labels", "audit").stdout.splitlines()) == 3
        assert "3 values left out" in " ".join(segwatch(tmp_path, "train", "--as-of", SPLIT, "--force").stderr.split())
