import json

import duckdb
import numpy as np
import pandas as pd
import pytest

from .conftest import END, OWN_RATIO, TABLE, ask, change, edit_settings, error

START, STOP = "2026-11-09", "2026-11-19"
OUTAGE = ("2026-11-12", "2026-11-14")


@pytest.fixture
def dark(trained):
    """Nothing of the platform ios for three days."""
    days = f"created_at BETWEEN '{OUTAGE[0]}' AND '{OUTAGE[1]}'"
    change(trained, f"UPDATE {TABLE} SET new_users = 0 WHERE platform = 'ios' AND {days}")
    return trained


def table(folder):
    with duckdb.connect(folder / "segwatch.duckdb", read_only=True) as connection:
        columns = "* exclude (run_id, updated_at)"
        return connection.execute(f"from incidents select {columns} order by incident_id, ts").df()


def test_a_platform_that_went_dark_is_one_incident_that_is_resolved(dark, segwatch):
    said = segwatch(dark, "infer", "--start", START, "--end", STOP).stderr
    rows = table(dark)
    ios = rows[(rows["platform"] == "ios") & rows["channel"].isna() & rows["country_code"].isna()]
    assert ios["incident_id"].nunique() == 1 and ios["status"].iloc[[0, -1]].tolist() == ["new", "resolved"]
    assert (ios["first_seen"].iloc[0], ios["last_seen"].iloc[-1]) == tuple(map(pd.Timestamp, OUTAGE))
    assert (ios["impact_share"].iloc[:3] < -0.9).all() and (ios["change_share"].iloc[:3] > 0.6).all()
    assert ios["level"].iloc[0] == "platform" and ios["n_segments"].iloc[0] == 3
    assert ios["total_impact"].iloc[-1] == pytest.approx(ios["impact"].sum())
    named = json.loads(ios["segments"].iloc[0])
    assert all(label.split("/")[1] == "ios" for _, label in named)
    assert "ios/* down (" in said and f"from {OUTAGE[0]} to {OUTAGE[1]}, 3 segments: resolved" in " ".join(said.split())
    # Whatever else alerted on those days is another platform's.
    others = rows.query("@OUTAGE[0] <= ts <= @OUTAGE[1] and direction == 'down' and status != 'resolved'")
    assert set(others[others["incident_id"] != ios["incident_id"].iloc[0]]["platform"].dropna()) <= {"android", "web"}


def test_one_day_at_a_time_says_what_many_days_at_once_do_and_a_second_run_the_same(dark, segwatch):
    segwatch(dark, "infer", "--start", START, "--end", STOP)
    together = table(dark)
    segwatch(dark, "infer", "--start", START, "--end", STOP)
    pd.testing.assert_frame_equal(table(dark), together)
    for day in np.arange(START, np.datetime64(STOP) + 1, dtype="datetime64[D]")[1:]:
        segwatch(dark, "infer", "--as-of", str(day))
    pd.testing.assert_frame_equal(table(dark), together, rtol=1e-9)
    assert together.groupby("incident_id")["ts"].nunique().max() > 2


def test_incidents_are_listed_for_people_and_for_machines(dark, segwatch):
    segwatch(dark, "infer", "--start", START, "--end", "2026-11-15")
    lines = segwatch(dark, "incidents").stdout.splitlines()
    [ios] = [line.split("\t") for line in lines if "*/ios/* down" in line]
    assert ios[1:3] == list(OUTAGE) and ios[3].endswith("since 2026-11-12, 3 segments: ongoing")
    facts = [json.loads(line) for line in segwatch(dark, "--log-format", "json", "incidents").stdout.splitlines()]
    assert {one["id"] for one in facts} == {line.split("\t")[0] for line in lines}
    [one] = [one for one in facts if one["id"] == ios[0]]
    assert one["cause"] == "*/ios/*" and one["total_impact"] < one["impact"] < 0 and len(one["segments"]) == 3
    segwatch(dark, "infer", "--start", "2026-11-15", "--end", STOP)
    is_open = segwatch(dark, "incidents", "--open").stdout
    assert ios[0] not in is_open and ios[0] in segwatch(dark, "incidents").stdout
    change(dark, "UPDATE incidents SET status = 'resolved'")
    said = segwatch(dark, "incidents", "--open")
    assert (said.stdout, said.stderr) == ("", "no open incident\n")


def test_some_of_the_segments_say_nothing_of_incidents(dark, segwatch):
    segwatch(dark, "infer", "--start", START, "--end", STOP)
    before = table(dark)
    segwatch(dark, "infer", "--start", START, "--end", STOP, "--select", "platform=web")
    pd.testing.assert_frame_equal(table(dark), before)


def test_a_project_without_the_table_is_told_to_make_it_before_anything_is_written(dark, segwatch):
    change(dark, "DROP TABLE incidents")
    said = segwatch(dark, "infer", "--start", START, "--end", STOP, code=3)
    assert error(said) == "error: there is no table 'incidents': run `segwatch create`, which makes it"
    assert ask(dark, "SELECT count(*) FROM predictions") == [(0,)]
    segwatch(dark, "create")
    segwatch(dark, "infer", "--start", START, "--end", STOP)
    assert len(table(dark))


def test_an_incident_is_resolved_although_some_days_were_not_scored(dark, segwatch):
    segwatch(dark, "infer", "--start", START, "--end", "2026-11-15")
    segwatch(dark, "infer", "--as-of", "2026-11-24")
    [(status, ts, last)] = ask(dark, "SELECT status, ts::DATE::TEXT, last_seen::DATE::TEXT FROM incidents WHERE"
                                     " platform = 'ios' AND country_code IS NULL AND channel IS NULL AND direction ="
                                     " 'down' ORDER BY ts DESC LIMIT 1")  # fmt: skip
    assert (status, ts, last) == ("resolved", "2026-11-23", OUTAGE[1])


def test_nothing_predicted_yet_is_said_so(trained, segwatch):
    assert "there are no predictions of new_users" in error(segwatch(trained, "incidents", code=3))


def test_a_ratio_is_judged_and_its_impact_told_in_its_numerator(tmp_path, segwatch):
    rng = np.random.default_rng(0)
    days = np.arange(np.datetime64(END) - 150, np.datetime64(END))
    rows = []
    for country, size in zip(("de", "es", "fr", "it"), (8000, 2000, 5000, 3000), strict=True):
        for platform, rate in zip(("app", "ios", "web"), (0.05, 0.08, 0.03), strict=True):
            visits = rng.poisson(size, len(days))
            broken = np.where(days == days[-1], 0.3 if platform == "ios" else 1.0, 1.0)
            # Three times the traffic, which is nobody's fault.
            visits[-1] *= 3 if platform == "web" else 1
            orders = rng.binomial(visits, rate * broken)
            rows.append(
                pd.DataFrame(
                    {"day": days, "country": country, "platform": platform, "orders": orders, "visits": visits}
                )
            )
    pd.concat(rows).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "segwatch.toml").write_text(OWN_RATIO.replace("DIMENSIONS", '["country", "platform"]'))
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--from", "rows.csv")
    segwatch(tmp_path, "train", "--as-of", str(days[-7]))
    segwatch(tmp_path, "infer", "--as-of", END)
    [one] = table(tmp_path).query("status == 'new' and direction == 'down'").to_dict("records")
    assert (one["level"], one["platform"], one["n_segments"]) == ("platform", "ios", 4)
    usual = 0.08 * sum((8000, 2000, 5000, 3000))
    assert one["impact"] == pytest.approx(-0.7 * usual, rel=0.1) and one["impact_share"] == pytest.approx(
        -0.7, abs=0.05
    )
    kept = ask(
        tmp_path, "SELECT sum(value * denominator) FROM predictions WHERE platform = 'ios' AND country IS NOT NULL"
    )
    assert kept[0][0] == pytest.approx(0.3 * usual, rel=0.1)
    assert ask(tmp_path, "SELECT count(*) FROM incidents WHERE direction = 'up'") == [(0,)]


def test_cron_is_told_of_what_is_new_or_worse_and_large_enough(dark, segwatch):
    for fail_on, code in (("any", 5), ("impact=3000", 5), ("impact=1e9", 0)):
        segwatch(dark, "infer", "--as-of", "2026-11-13", "--fail-on", fail_on, code=code)
    # It goes on, and was told yesterday.
    segwatch(dark, "infer", "--as-of", "2026-11-14", "--fail-on", "any")
    # Of some of the segments alone, their anomalies are told.
    segwatch(dark, "infer", "--as-of", "2026-11-14", "--fail-on", "any", "--select", "platform=ios", code=5)
    segwatch(dark, "infer", "--as-of", "2026-11-14", "--fail-on", "any", "--select", "platform=web")


def test_what_was_told_of_a_period_is_no_reason_to_fail_when_late_rows_are_scored_again(dark, segwatch):
    edit_settings(dark, 'missing = "zero"', 'missing = "zero"\nrescore = 2')
    segwatch(dark, "infer", "--as-of", "2026-11-13", "--fail-on", "any", code=5)
    # A job that is run again ends the same, and the next day has nothing new.
    segwatch(dark, "infer", "--as-of", "2026-11-13", "--fail-on", "any", code=5)
    assert ask(dark, "SELECT count(*) FROM incidents WHERE ts = '2026-11-12' AND status = 'new'") != [(0,)]
    segwatch(dark, "infer", "--as-of", "2026-11-14", "--fail-on", "any")


@pytest.mark.parametrize("fail_on", ["some", "impact", "any=3", "impact=x", "impact=-1", "impact=nan", "impact=inf"])
def test_what_to_fail_on_is_any_or_an_impact(trained, segwatch, fail_on):
    said = error(segwatch(trained, "infer", "--fail-on", fail_on, code=2))
    assert said == f"error: --fail-on '{fail_on}': write any, or impact=N with a number of the metric's unit"
