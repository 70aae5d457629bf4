import csv
import datetime as dt
import json
import shutil

import numpy as np
import pytest

from segwatch import steps
from segwatch.console import QuietObserver
from segwatch.core.explanation import from_json
from segwatch.core.features import FEATURES
from segwatch.core.observations import Observations
from segwatch.core.window import Window
from segwatch.explanations import ScoredPeriod
from segwatch.run import open_run
from segwatch.settings import load_settings
from segwatch.warehouses import open_warehouse

from .conftest import END, OWN_RATIO, SPLIT, TABLE, ask, change, edit_settings, error, own_metric

START, STOP, DARK = "2026-11-09", "2026-11-15", "2026-11-13"


@pytest.fixture(scope="module")
def outage_template(tmp_path_factory, trained_template, segwatch):
    """Scored days on three of which the platform ios is dark, and what the models would notice."""
    folder = tmp_path_factory.mktemp("outage") / "project"
    shutil.copytree(trained_template, folder)
    registry = f'registry = "sqlite:///{trained_template / "mlflow.db"}"'
    edit_settings(folder, 'registry = "sqlite:///mlflow.db"', registry)
    days = "created_at BETWEEN '2026-11-12' AND '2026-11-14'"
    change(folder, f"UPDATE {TABLE} SET new_users = 0 WHERE platform = 'ios' AND {days}")
    segwatch(folder, "infer", "--start", START, "--end", STOP)
    segwatch(folder, "evaluate", "--as-of", SPLIT)
    return folder


@pytest.fixture
def outage(tmp_path, outage_template):
    """A copy that may be changed."""
    shutil.copytree(outage_template, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def told(segwatch):
    """The explanation as a machine reads it."""

    def ask_for(folder, segment, at, *options):
        said = segwatch(folder, "--log-format", "json", "explain", segment, "--at", at, *options)
        return json.loads(said.stdout)

    return ask_for


def labels(folder, where):
    rows = ask(folder, f"SELECT country_code, platform, channel FROM predictions WHERE {where} ORDER BY segment_id")
    return ["/".join(row) for row in rows]


def test_an_outage_is_put_down_to_what_broke(outage_template, told):
    [segment, *_] = labels(outage_template, f"ts = '{DARK}' AND is_anomaly AND platform = 'ios' AND channel NOT NULL")
    one = told(outage_template, segment, DARK)
    assert (one["verdict"], one["suspect"]) == ("flagged", "*/ios/*")
    assert one["value"] == 0 < one["lower"] < one["expected"] < one["upper"]
    assert one["incident"]["cause"] == "*/ios/*"
    assert [row["segment"] for row in one["parents"]][-1] == "total"
    assert {row["segment"] for row in one["parents"]} == {"*/ios/*", f"*/*/{segment.split('/')[2]}", "total"}
    [channels] = [group for group in one["siblings"] if group["dimension"] == "channel"]
    assert channels["n"] == channels["n_fell"] == 2 and channels["of"] == segment.rsplit("/", 1)[0] + "/*"
    [platforms] = [group for group in one["siblings"] if group["dimension"] == "platform"]
    assert (platforms["n"], platforms["n_alerts"]) == (2, 0)
    assert one["notes"] == []
    assert len(one["said"]) > 8 and one["said"][0].startswith(f"{segment} had 0 new users on {DARK} where ")


def test_people_read_the_same_sentences(outage_template, segwatch, told):
    lines = segwatch(outage_template, "explain", "*/ios/*", "--at", DARK).stdout.splitlines()
    assert lines == told(outage_template, "*/ios/*", DARK)["said"]
    assert "This looks like a matter of */ios/* alone." in lines


def test_similar_days_are_earlier_ordinary_and_nearest_first(outage_template, told):
    one = told(outage_template, "*/web/*", DARK)
    days = one["similar"]
    assert len(days) == 3 and all(day["at"] < DARK for day in days)
    alike = [day["similarity"] for day in days]
    assert alike == sorted(alike, reverse=True) and 0 < alike[-1] <= alike[0] <= 1
    earliest = np.datetime64(DARK) - 56
    assert all(np.datetime64(day["at"]) > earliest for day in days)
    dark = told(outage_template, "*/ios/*", "2026-11-14")
    assert not {"2026-11-12", "2026-11-13"} & {day["at"] for day in dark["similar"]}


@pytest.mark.parametrize("weeks", [0, 4])
def test_the_features_of_one_segment_are_those_that_all_rows_are_scored_by(outage_template, tmp_path, weeks):
    settings = load_settings(outage_template / "segwatch.toml", None)
    now = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
    with open_run(settings, None, "new_users", {}, tmp_path, QuietObserver(), now) as run:
        _, bundle = steps.resolve(run.registry, "new_users", run.metric, tmp_path / "bundle")
        window = Window(bundle.window.end - 7 * weeks, np.datetime64(STOP))
        steps.extract(run.warehouse, run.metric, steps.reading_window(bundle, window), tmp_path / "observations")
        rows = steps.feature_rows(Observations.open(tmp_path / "observations"), run.metric, bundle, window, None)
        frame = rows.to_pandas().dropna(subset=["z"])
        for segment_id in (bundle.history.segments.ids[0], bundle.history.segments.ids[-1]):
            own = frame[frame["segment_id"] == segment_id].sort_values("ts")
            past = steps.past_of(run.warehouse, run.metric, bundle, window, segment_id, (), tmp_path)
            np.testing.assert_array_equal(past.X, own[list(FEATURES)].to_numpy())
            np.testing.assert_array_equal(past.values, own["value"])
            np.testing.assert_array_equal(past.times, own["ts"].to_numpy().astype("datetime64[D]"))
            assert len(own) > 5 and past.expected[0] > 0


def test_without_similar_days_the_rest_is_the_same_and_an_alert_needs_no_model(outage, told):
    for segment in ("*/web/*", "*/ios/*"):
        one, less = told(outage, segment, DARK), told(outage, segment, DARK, "--similar", "0")
        assert less["similar"] == [] and len(told(outage, segment, DARK, "--similar", "7")["similar"]) == 7
        pushed = [[(part["feature"], pytest.approx(part["part"])) for part in x["parts"]] for x in (one, less)]
        assert pushed[0] == pushed[1] and one["said"][:3] == less["said"][:3]
    change(outage, f"DELETE FROM {TABLE}", "UPDATE predictions SET model_version = '77'")
    assert told(outage, "*/ios/*", DARK, "--similar", "0")["notes"] == []


def test_an_alert_carries_its_parts_and_no_other_row_does(outage_template, told):
    rows = ask(outage_template, "SELECT contributions, is_anomaly, score FROM predictions WHERE score NOT NULL")
    assert all((text is not None) == is_anomaly for text, is_anomaly, _ in rows)
    flagged = [(from_json(text), score) for text, is_anomaly, score in rows if is_anomaly]
    assert flagged and all(len({part.feature for part in parts}) == 5 for parts, _ in flagged)
    one = told(outage_template, "*/ios/*", DARK)
    kept = ask(
        outage_template,
        f"SELECT contributions FROM predictions WHERE ts = '{DARK}' AND platform = 'ios' AND level = 'platform'",
    )
    assert [part["part"] for part in one["parts"]] == [part.part for part in from_json(kept[0][0])]


def test_the_model_says_of_an_alert_whose_parts_were_not_kept_the_same(outage, told):
    kept = told(outage, "*/ios/*", DARK)["parts"]
    change(outage, "UPDATE predictions SET contributions = NULL")
    again = told(outage, "*/ios/*", DARK)["parts"]
    assert [part["feature"] for part in again] == [part["feature"] for part in kept]
    np.testing.assert_allclose([part["part"] for part in again], [part["part"] for part in kept], atol=1e-5)


def test_a_row_that_did_not_alert_is_taken_apart_too(outage_template, told):
    one = told(outage_template, "*/web/*", "2026-11-10")
    assert one["verdict"] == "ordinary" and one["suspect"] is None and one["incident"] is None
    assert len(one["parts"]) == 5 and one["notes"] == []


def test_the_tables_alone_give_a_page_the_same_facts(outage_template):
    settings = load_settings(outage_template / "segwatch.toml", None)
    metric = settings.metric("new_users")
    warehouse = open_warehouse(settings.target(None).warehouse)
    try:
        day = np.datetime64(DARK)
        rows = warehouse.predictions("predictions", "new_users", Window(day, day + 1))
    finally:
        warehouse.close()
    scored = ScoredPeriod("new_users", metric, rows)
    alerts = [scored.explanation(int(i)) for i in np.flatnonzero(scored.period.is_anomaly)]
    assert alerts and all(one.parts and one.suspect is not None for one in alerts)
    ios = scored.explanation(scored.find("*/ios/*"))
    assert ios.row.change == -1 and ios.siblings[0].n == 2 and ios.similar == ()


def test_the_smallest_changes_stand_beside(outage, segwatch, told):
    one = told(outage, "*/ios/*", DARK)["detectable"]
    kept = ask(
        outage, "SELECT smallest_drop, smallest_rise FROM detectability WHERE platform = 'ios' AND level = 'platform'"
    )
    assert kept == [(one["smallest_drop"], one["smallest_rise"])] and one["as_of"] == SPLIT
    assert 0 < one["smallest_drop"] < 1
    change(outage, "DELETE FROM detectability")
    assert told(outage, "*/ios/*", DARK)["detectable"] is None
    assert "run `segwatch evaluate`" in segwatch(outage, "explain", "total", "--at", DARK).stdout


def test_a_second_evaluation_leaves_the_same_rows_and_one_of_some_segments_replaces_theirs(outage, segwatch):
    query = "SELECT * EXCLUDE (run_id, evaluated_at) FROM detectability ORDER BY segment_id"
    before = ask(outage, query)
    assert len(before) > 10
    segwatch(outage, "evaluate", "--as-of", SPLIT)
    assert ask(outage, query) == before
    segwatch(outage, "evaluate", "--as-of", "2026-11-01", "--select", "platform=ios")
    counted = (
        "SELECT ts::DATE::TEXT, count(*) FILTER (platform = 'ios'), count(*) FROM detectability GROUP BY 1 ORDER BY 1"
    )
    (first, n_ios, n), (second, no_ios, rest) = ask(outage, counted)
    assert (first, second, no_ios) == ("2026-11-01", SPLIT, 0) and n_ios == n and n + rest == len(before)


def test_a_project_of_before_is_evaluated_and_told_what_makes_the_table(outage, segwatch, told):
    change(outage, "DROP TABLE detectability", "DROP TABLE incidents")
    said = " ".join(segwatch(outage, "evaluate", "--as-of", SPLIT).stderr.split())
    assert "there is no table 'detectability'; `segwatch create` makes it" in said
    one = told(outage, "*/ios/*", DARK)
    assert one["detectable"] is None and one["incident"] is None and one["suspect"] == "*/ios/*"
    segwatch(outage, "create")
    segwatch(outage, "evaluate", "--as-of", SPLIT)
    assert told(outage, "*/ios/*", DARK)["detectable"]


def test_a_predictions_table_without_the_column_is_mended_by_create(outage, segwatch, told):
    change(outage, "ALTER TABLE predictions DROP COLUMN contributions")
    assert len(told(outage, "*/ios/*", DARK)["parts"]) == 5
    said = error(segwatch(outage, "infer", "--as-of", STOP, code=3))
    assert said == "error: table 'predictions' has no column 'contributions': run `segwatch create`, which adds it"
    segwatch(outage, "create")
    segwatch(outage, "infer", "--as-of", STOP)
    assert ask(outage, "SELECT count(*) FROM predictions WHERE contributions NOT NULL")[0][0] > 0


def test_a_segment_is_found_by_its_id_and_a_misspelt_one_is_answered_with_its_like(outage_template, segwatch, told):
    [(segment_id,)] = ask(
        outage_template, f"SELECT segment_id FROM predictions WHERE ts = '{DARK}' AND level = 'total'"
    )
    assert told(outage_template, segment_id, DARK) == told(outage_template, "total", DARK)
    assert told(outage_template, "*/*/*", DARK)["segment"] == "total"
    said = error(segwatch(outage_template, "explain", "*/iso/*", "--at", DARK, code=3))
    assert "no segment '*/iso/*' in the predictions of new_users at 2026-11-13" in said and "*/ios/*" in said
    said = error(segwatch(outage_template, "explain", "\x1b[31mx", "--at", DARK, code=3))
    assert "\x1b" not in said and "write it as country_code/platform/channel" in said


def test_a_day_that_was_not_scored_is_said_with_what_scores_it(outage_template, segwatch):
    said = error(segwatch(outage_template, "explain", "total", "--at", "2026-11-20", code=3))
    assert said == (
        "error: new_users was not scored at 2026-11-20, its predictions are of 2026-11-09 to 2026-11-14: run `segwatch"
        " infer --start 2026-11-20 --end 2026-11-21`"
    )
    assert "'soon' is not a date" in error(segwatch(outage_template, "explain", "total", "--at", "soon", code=2))


def test_nothing_scored_yet_is_said_so(trained, segwatch):
    assert "there are no predictions of it" in error(segwatch(trained, "explain", "total", "--at", DARK, code=3))


def test_a_new_segment_and_data_that_did_not_arrive_say_why(outage, segwatch, told):
    [(country,)] = ask(outage, "SELECT DISTINCT country_code FROM predictions WHERE country_code NOT NULL")
    change(
        outage,
        f"INSERT INTO {TABLE} SELECT created_at, country_code, platform, 'billboard', 7 FROM {TABLE}"
        f" WHERE channel = (SELECT min(channel) FROM {TABLE}) AND created_at >= '{START}'",
        f"DELETE FROM {TABLE} WHERE platform = 'web' AND created_at = '{DARK}'",
    )
    segwatch(outage, "infer", "--start", START, "--end", STOP)
    new = told(outage, f"{country}/ios/billboard", DARK)
    assert (new["verdict"], new["status"], new["parts"], new["similar"]) == ("unscored", "new_segment", [], [])
    assert "Nothing was expected of it: first seen" in new["said"][0]
    [web, *_] = labels(outage, f"ts = '{DARK}' AND platform = 'web' AND status = 'no_data' AND channel NOT NULL")
    gone = told(outage, web, DARK)
    assert gone["said"][0] == f"{web} has no value of new users on {DARK}: the data of this period did not arrive."
    assert gone["value"] is None and gone["parents"]


def test_a_model_that_the_registry_lost_leaves_what_the_tables_say(outage, told):
    change(outage, "UPDATE predictions SET model_version = '77'")
    one = told(outage, "*/ios/*", DARK)
    assert len(one["parts"]) == 5 and one["similar"] == [] and one["suspect"] == "*/ios/*"
    [note] = one["notes"]
    assert "similar days are not known" in note and "77" in note


def test_data_that_changed_since_are_said_so(outage, told):
    change(outage, f"UPDATE {TABLE} SET new_users = 2 * new_users WHERE platform = 'web' AND created_at = '{DARK}'")
    [note] = told(outage, "*/web/*", DARK)["notes"]
    assert "have changed since it was scored" in note
    change(outage, f"DELETE FROM {TABLE}")
    [note] = told(outage, "*/web/*", DARK)["notes"]
    assert "similar days are not known" in note


def rows_of(folder, header, rows):
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_an_hour_is_explained_in_hours(tmp_path, segwatch, told):
    own_metric(tmp_path, "zero", {}, days=0)
    edit_settings(tmp_path, 'missing = "zero"', 'missing = "zero"\ngrain = "hour"\nmin_history = 600')
    rng, hours = np.random.default_rng(2), 42 * 24
    first = dt.datetime.fromisoformat(END) - dt.timedelta(hours=hours)
    rows = [
        [first + dt.timedelta(hours=i), country, rng.poisson(200 + 50 * np.sin(i / 24 * 2 * np.pi))]
        for i in range(hours)
        for country in ("de", "it")
    ]
    rows[-1][2] = 3
    rows_of(tmp_path, ["day", "country", "eur"], rows)
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--from", "rows.csv")
    segwatch(tmp_path, "train", "--as-of", "2026-11-20")
    segwatch(tmp_path, "infer", "--as-of", END)
    one = told(tmp_path, "it", "2026-11-23T23:00")
    assert one["verdict"] == "flagged" and one["value"] == 3 and len(one["similar"]) == 3
    assert one["said"][0].startswith("it had 3 revenue at 2026-11-23 23:00 where ")
    assert "as one hour in" in one["said"][1] or "one hour in a million" in one["said"][1]
    inside = error(segwatch(tmp_path, "explain", "it", "--at", "2026-11-23T23:30", code=2))
    assert "'2026-11-23T23:30' falls inside a hour" in inside


def test_a_ratio_is_told_as_one_and_its_siblings_ranked_by_numerators(tmp_path, segwatch, told):
    rng, days = np.random.default_rng(0), 150
    rows = []
    for platform, rate, visits in (("app", 0.05, 4000), ("ios", 0.08, 3000), ("web", 0.5, 200)):
        for i in range(days):
            n = rng.poisson(visits)
            day = dt.date.fromisoformat(END) - dt.timedelta(days=days - i)
            rows.append([day, platform, rng.binomial(n, rate * (0.2 if platform == "ios" and i == days - 1 else 1)), n])
    rows_of(tmp_path, ["day", "platform", "orders", "visits"], rows)
    (tmp_path / "segwatch.toml").write_text(OWN_RATIO.replace("DIMENSIONS", '["platform"]'))
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--from", "rows.csv")
    segwatch(tmp_path, "train", "--as-of", "2026-11-17")
    segwatch(tmp_path, "infer", "--as-of", END)
    one = told(tmp_path, "ios", "2026-11-23")
    assert one["verdict"] == "flagged" and one["value"] < 0.03
    assert one["said"][0].startswith("conversion of ios was 0.0") and "lower)" in one["said"][0]
    assert one["impact"] == pytest.approx(3000 * -0.064, rel=0.2)


def test_values_with_slashes_quotes_and_line_breaks_are_only_values(tmp_path, segwatch, told):
    (tmp_path / "segwatch.toml").write_text(
        '[targets.dev]\nwarehouse = "duckdb:///segwatch.duckdb"\nregistry = "sqlite:///mlflow.db"\n'
        '[metrics.sales]\ntable = "sales"\ntime = "day"\nvalue = "eur"\ndimensions = ["shop", "till"]\n'
    )
    odd = [("a/b", "c"), ("a", "b/c"), ('it\'s "x"', "DROP\nTABLE"), ("*", "t")]
    rng = np.random.default_rng(1)
    end = dt.date.fromisoformat(END)
    rows = [[end - dt.timedelta(days=150 - i), *values, rng.poisson(100)] for i in range(150) for values in odd]
    rows_of(tmp_path, ["day", "shop", "till", "eur"], rows)
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--from", "rows.csv")
    segwatch(tmp_path, "train", "--as-of", "2026-11-17")
    segwatch(tmp_path, "infer", "--as-of", END)
    said = error(segwatch(tmp_path, "explain", "a/b/c", "--at", "2026-11-23", code=3))
    assert "'a/b/c' names 2 segments: give the id of one" in said and "(a/b, c)" in said and "(a, b/c)" in said
    segment_id = said.split("give the id of one: ")[1].split(" ")[0]
    assert told(tmp_path, segment_id, "2026-11-23")["segment"] == "a/b/c"
    quoted = odd[2][0] + "/" + odd[2][1]
    assert told(tmp_path, quoted, "2026-11-23")["segment"] == quoted
    lines = segwatch(tmp_path, "explain", quoted, "--at", "2026-11-23").stdout.splitlines()
    assert lines[0].startswith('it\'s "x"/DROP\\nTABLE had ')
