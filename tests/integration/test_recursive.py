"""What the recursive baseline and the roll-ups promise, from the command line on made data."""

import csv
import datetime as dt

import duckdb
import numpy as np
import pandas as pd
import pytest

from .conftest import edit_settings

END = np.datetime64("2026-11-24")
SETTINGS = """
[targets.dev]
warehouse = "duckdb:///segwatch.duckdb"
registry = "sqlite:///mlflow.db"
[metrics.m]
table = "facts"
time = "at"
value = "n"
dimensions = ["country", "channel"]
retrain_every = 999
"""
HOURS = 'grain = "hour"\nmin_history = 504\n'
RATIO = 'denominator = "tried"\n'
# Columns that say which run wrote a row.
OF_THE_RUN = ["run_id", "scored_at", "model_version"]


def day(n):
    """The n-th day before END."""
    return str(END - n)


def project(folder, segwatch, rows, more=""):
    """A folder with the rows, (time, country, channel, n) and what else, in its table."""
    (folder / "segwatch.toml").write_text(SETTINGS + more)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["at", "country", "channel", "n", "tried"][: len(rows[0])])
        writer.writerows(rows)
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--from", "rows.csv")
    return folder


def counts(means, days=200, seed=1, change=lambda *_: 1.0):
    """Poisson counts by segment and day before END. change: factor of the mean, None for no row."""
    rng = np.random.default_rng(seed)
    rows = []
    for (country, channel), mean in means.items():
        for back in range(1, days + 1):
            factor = change(country, channel, back)
            if factor is not None:
                rows.append((END - back, country, channel, rng.poisson(mean * factor)))
    return rows


def predictions(folder, where="true"):
    with duckdb.connect(folder / "segwatch.duckdb", read_only=True) as connection:
        rows = connection.execute(
            f"from predictions select * replace (ts::timestamp as ts) where {where} order by segment_id, ts"
        ).df()
    names = rows[["country", "channel"]].astype(object).where(rows[["country", "channel"]].notna(), "*")
    return rows.assign(name=names["country"] + "/" + names["channel"])


def same(one, other):
    """The two hold the same predictions of the same rows, whichever run wrote them."""
    one, other = (rows.drop(columns=OF_THE_RUN).reset_index(drop=True) for rows in (one, other))
    pd.testing.assert_frame_equal(one, other, rtol=1e-9)


FOUR = {(country, channel): 100 for country in ("fr", "it") for channel in ("ads", "web")}


@pytest.fixture(scope="module")
def shop(tmp_path_factory, segwatch):
    """Four segments and their five roll-ups, trained to the 30th day before END; it falls on the fifth."""
    rows = counts(FOUR, change=lambda country, _, back: 0.3 if (country, back) == ("it", 5) else 1.0)
    folder = project(tmp_path_factory.mktemp("shop"), segwatch, rows)
    segwatch(folder, "train", "--as-of", day(30))
    return folder


def test_a_window_scored_at_once_and_day_by_day_is_the_same(shop, segwatch):
    segwatch(shop, "infer", "--start", day(8), "--end", day(0))
    together = predictions(shop)
    assert len(together) == 9 * 8 and together["is_anomaly"].any()
    for back in range(7, -1, -1):
        segwatch(shop, "infer", "--as-of", day(back))
    same(predictions(shop), together)


def test_a_window_before_the_end_of_training_is_scored_from_the_beginning_on(shop, segwatch):
    """The states that the bundle holds are those that a replay of the training arrives at."""
    segwatch(shop, "infer", "--start", day(31), "--end", day(28))
    across = predictions(shop, f"ts >= '{day(30)}' and ts < '{day(28)}'")
    segwatch(shop, "infer", "--start", day(30), "--end", day(28))
    same(predictions(shop, f"ts >= '{day(30)}' and ts < '{day(28)}'"), across)


def test_states_do_not_depend_on_when_training_ended(shop, segwatch, tmp_path):
    """A model trained later expects the same; only its detectors have seen more."""
    rows = counts(FOUR, change=lambda country, _, back: 0.3 if (country, back) == ("it", 5) else 1.0)
    later = project(tmp_path, segwatch, rows)
    segwatch(later, "train", "--as-of", day(10))
    for folder in (shop, later):
        segwatch(folder, "infer", "--start", day(8), "--end", day(0))
    one, other = (predictions(folder, f"ts >= '{day(8)}'") for folder in (shop, later))
    for name in ("value", "expected", "impact", "impact_share"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-9)
    assert one["is_anomaly"].any() and (one["score"] != other["score"]).any()


@pytest.mark.parametrize(
    ("select", "n"), [(["country=it"], 3), (["country=it", "channel=web"], 1), (["channel=ads", "channel=web"], 6)]
)
def test_a_selection_is_written_as_it_is_without_one_and_replaces_itself_alone(shop, segwatch, select, n):
    segwatch(shop, "infer", "--start", day(6), "--end", day(3))
    whole = predictions(shop, f"ts >= '{day(6)}' and ts < '{day(3)}'")
    options = [text for one in select for text in ("--select", one)]
    segwatch(shop, "infer", "--start", day(6), "--end", day(3), *options)
    after = predictions(shop, f"ts >= '{day(6)}' and ts < '{day(3)}'")
    same(after, whole)
    assert (after["run_id"] != whole["run_id"]).sum() == 3 * n
    wanted = {name: [t.partition("=")[2] for t in select if t.startswith(name)] for name in ("country", "channel")}
    chosen = np.logical_and.reduce([whole[name].isin(values) for name, values in wanted.items() if values])
    np.testing.assert_array_equal(after["run_id"] != whole["run_id"], chosen)


def test_a_fall_spread_thin_over_many_segments_is_found_in_their_total(tmp_path, segwatch):
    means = {(f"c{i}", channel): 20 for i in range(15) for channel in ("ads", "web")}
    folder = project(tmp_path, segwatch, counts(means, change=lambda *at: 0.75 if at[2] == 3 else 1.0))
    segwatch(folder, "train", "--as-of", day(20))
    segwatch(folder, "infer", "--start", day(5), "--end", day(0))
    total = predictions(folder, "level = 'total' and is_anomaly")
    assert total["ts"].tolist() == [pd.Timestamp(day(3))] and total["direction"].tolist() == ["down"]
    assert total["p_value"].iloc[0] < 1e-4


def test_one_segment_that_falls_by_as_little_says_nothing(tmp_path, segwatch):
    means = {(f"c{i}", channel): 20 for i in range(15) for channel in ("ads", "web")}
    change = lambda country, channel, back: 0.75 if (country, channel, back) == ("c0", "ads", 3) else 1.0  # noqa: E731
    folder = project(tmp_path, segwatch, counts(means, change=change))
    segwatch(folder, "train", "--as-of", day(20))
    segwatch(folder, "infer", "--start", day(5), "--end", day(0))
    found = predictions(folder, f"ts = '{day(3)}'")
    assert not found["is_anomaly"][found["level"] != "country/channel"].any()
    assert not found["is_anomaly"][found["name"] == "c0/ads"].any()


def test_without_roll_ups_only_segments_are_scored(tmp_path, segwatch):
    folder = project(tmp_path, segwatch, counts(FOUR), "max_rollup_order = -1")
    segwatch(folder, "train", "--as-of", day(20))
    said = segwatch(folder, "infer", "--as-of", day(0)).stderr
    assert set(predictions(folder)["level"]) == {"country/channel"}
    assert "4 segments" in said and "roll-up" not in said


def test_a_country_without_a_row_is_a_gap_named_once(tmp_path, segwatch):
    def change(country, channel, back):
        lone = (country, channel) == ("it", "web") and back == 6
        return None if (country == "it" and back in (3, 2)) or lone or back == 9 else 1.0

    means = {(c, channel): 100 for c in ("de", "fr", "it") for channel in ("ads", "mail", "web")}
    folder = project(tmp_path, segwatch, counts(means, change=change))
    segwatch(folder, "train", "--as-of", day(20))
    said = segwatch(folder, "infer", "--start", day(10), "--end", day(0)).stderr
    told = [line.strip() for line in said.partition("no data  ")[2].splitlines()[:3]]
    assert told[:2] == [f"total on {day(9)} (9 segments)", f"it/* from {day(3)} to {day(2)} (3 segments)"]
    assert told[2].startswith("seconds")
    rows = predictions(folder, f"ts = '{day(3)}'").set_index("name")
    absent = rows[rows["value"].isna()]
    assert set(absent.index) == {"it/ads", "it/mail", "it/web", "it/*"}
    assert set(absent["status"]) == {"no_data"} and not absent["is_anomaly"].any()
    assert not rows[rows["level"].isin(["total", "channel"])]["is_anomaly"].any()
    assert set(absent["reason"]) == {"the data of this period did not arrive"}
    # What is left of the sums is made whole by what was expected.
    assert rows.loc["*/*", "value"] == pytest.approx(900, rel=0.1)
    # A lone absent row is a zero.
    lone = predictions(folder, f"ts = '{day(6)}' and country = 'it' and channel = 'web'").iloc[0]
    assert (lone["value"], lone["is_anomaly"], lone["direction"]) == (0.0, True, "down")


def test_a_segment_that_ended_and_one_that_is_new_have_their_status_and_no_alarm(tmp_path, segwatch):
    def change(country, channel, back):
        if (country, channel) == ("it", "old"):
            return None if back <= 60 else 1.0
        if (country, channel) == ("it", "new"):
            return None if back > 10 else 1.0
        return 1.0

    means = FOUR | {("it", "old"): 100, ("it", "new"): 100, ("fr", "mail"): 50}
    folder = project(tmp_path, segwatch, counts(means, change=change))
    segwatch(folder, "train", "--as-of", day(20))
    said = segwatch(folder, "infer", "--start", day(5), "--end", day(0)).stderr
    rows = predictions(folder)
    for name, status, reason in (
        ("it/old", "ended", f"no row since {day(61)}"),
        ("it/new", "new_segment", f"first seen {day(10)}, after the model was trained"),
    ):
        found = rows[rows["name"] == name]
        assert len(found) == 5 and set(found["status"]) == {status} and set(found["reason"]) == {reason}
        assert not found["is_anomaly"].any()
        # What has ended can be scored still; what is new cannot yet.
        assert found["score"].isna().all() == (status == "new_segment")
    assert "no data" not in said


def rates(seed=3, days=200, broken=("it", "web"), since=4):
    """Orders of visits: one in ten of 400 to 4,000 visits, and of one segment one in twenty in the last days."""
    rng = np.random.default_rng(seed)
    rows = []
    for country, channel in FOUR:
        for back in range(1, days + 1):
            visits = int(rng.integers(400, 4000))
            rate = 0.05 if (country, channel) == broken and back <= since else 0.1
            rows.append((END - back, country, channel, rng.binomial(visits, rate), visits))
    return rows


def test_a_rate_that_falls_in_one_segment_is_found_and_the_number_tried_is_not(tmp_path, segwatch):
    folder = project(tmp_path, segwatch, rates(), RATIO)
    segwatch(folder, "train", "--as-of", day(30))
    segwatch(folder, "infer", "--start", day(24), "--end", day(0))
    rows = predictions(folder)
    broken = rows[(rows["name"] == "it/web") & (rows["ts"] >= day(4))]
    assert broken["is_anomaly"].iloc[0] and (broken["direction"].dropna() == "down").all()
    assert broken["expected"].iloc[0] == pytest.approx(0.1, rel=0.1)
    assert broken["value"].iloc[0] == pytest.approx(0.05, rel=0.25)
    assert broken["upper"].iloc[0] < 1 and broken["lower"].iloc[0] > broken["value"].iloc[0]
    # Visits vary tenfold from day to day, rates do not.
    before = rows[rows["ts"] < day(4)]
    assert before["is_anomaly"].mean() < 0.05 and len(before) == 9 * 20
    after = rows[rows["ts"] >= day(4)]
    assert not after[after["name"].str.startswith("fr/")]["is_anomaly"].any()
    segwatch(folder, "report")


def test_a_rate_of_nothing_tried_is_a_gap_and_its_roll_ups_are_those_of_the_others(tmp_path, segwatch):
    rows = [(at, c, ch, 0, 0) if (at, c, ch) == (END - 2, "it", "web") else (at, c, ch, n, tried)
            for at, c, ch, n, tried in rates(since=0)]  # fmt: skip
    folder = project(tmp_path, segwatch, rows, RATIO)
    segwatch(folder, "train", "--as-of", day(20))
    said = segwatch(folder, "infer", "--start", day(3), "--end", day(0)).stderr
    assert f"it/web on {day(2)}" in said
    found = predictions(folder, f"ts = '{day(2)}'").set_index("name")
    assert found.loc["it/web", "status"] == "no_data" and np.isnan(found.loc["it/web", "value"])
    tried = {c: sum(r[4] for r in rows if r[0] == END - 2 and r[1] == c) for c in ("it", "fr")}
    orders = {c: sum(r[3] for r in rows if r[0] == END - 2 and r[1] == c) for c in ("it", "fr")}
    assert found.loc["it/*", "value"] == pytest.approx(orders["it"] / tried["it"])
    assert found.loc["*/*", "value"] == pytest.approx(sum(orders.values()) / sum(tried.values()))


def test_hours_are_scored_end_to_end_and_an_hour_that_breaks_is_named(tmp_path, segwatch):
    rng = np.random.default_rng(5)
    end = END.astype("datetime64[h]")
    rows = []
    for country, channel in FOUR:
        for back in range(1, 24 * 49 + 1):
            at = end - back
            hour = int(at.astype(np.int64) % 24)
            mean = 100 * (1 + 0.8 * np.sin(2 * np.pi * hour / 24))
            factor = 0.2 if (country, back) == ("it", 30) else 1.0
            rows.append((at.astype(dt.datetime), country, channel, rng.poisson(mean * factor)))
    folder = project(tmp_path, segwatch, rows, HOURS)
    segwatch(folder, "train", "--as-of", day(3))
    segwatch(folder, "infer", "--start", day(2), "--end", day(0))
    found = predictions(folder)
    assert len(found) == 9 * 48 and set(found["status"]) == {"ok"}
    broken = found[found["ts"] == pd.Timestamp(end - 30)].set_index("name")
    assert broken.loc[["it/ads", "it/web", "it/*", "*/*"], "is_anomaly"].all()
    assert not broken.loc[["fr/ads", "fr/web", "fr/*"], "is_anomaly"].any()
    assert found["is_anomaly"].sum() < 12
    segwatch(folder, "infer", "--as-of", f"{day(1)}T00:00")
    same(predictions(folder), found)


def test_an_hour_that_did_not_arrive_is_a_gap_named_once_and_one_that_arrived_twice_is_found(tmp_path, segwatch):
    rng = np.random.default_rng(6)
    end = END.astype("datetime64[h]")
    rows = []
    for country, channel in FOUR:
        for back in range(1, 24 * 40 + 1):
            row = ((end - back).astype(dt.datetime), country, channel, rng.poisson(100))
            rows += [row] * {40: 0, 20: 2}.get(back, 1)
    folder = project(tmp_path, segwatch, rows, HOURS)
    segwatch(folder, "train", "--as-of", day(2))
    said = segwatch(folder, "infer", "--start", day(2), "--end", day(0)).stderr
    found = predictions(folder)
    missing = found[found["ts"] == pd.Timestamp(end - 40)]
    assert len(missing) == 9 and set(missing["status"]) == {"no_data"} and missing["value"].isna().all()
    assert said.count("2026-11-22T08") == 1
    doubled = found[found["ts"] == pd.Timestamp(end - 20)]
    assert doubled["is_anomaly"].all() and (doubled["value"] > 1.6 * doubled["expected"]).all()
    others = found.drop(missing.index).drop(doubled.index)
    assert set(others["status"]) == {"ok"} and others["is_anomaly"].sum() < 8


def test_holidays_of_a_country_that_is_none_are_said_once_and_the_others_go_on(tmp_path, segwatch):
    countries = {("it", "web"): 100, ("it", "ads"): 100, ("atlantis", "web"): 100, ("atlantis", "ads"): 100}
    folder = project(tmp_path, segwatch, counts(countries, days=120), 'holidays = {dimension = "country"}\n')
    said = segwatch(folder, "train", "--as-of", day(10)).stderr
    assert said.count("no public holidays are known for country atlantis") == 1 and "holidays.countries" in said
    segwatch(folder, "infer", "--start", day(10), "--end", day(0))
    found = predictions(folder)
    assert set(found["status"]) == {"ok"} and len(found) == 10 * 9


def test_a_change_that_stays_is_told_until_it_is_the_new_normal(tmp_path, segwatch):
    fallen = lambda country, channel, back: 0.4 if (country, channel) == ("it", "web") and back <= 20 else 1.0  # noqa: E731
    folder = project(tmp_path, segwatch, counts(FOUR, change=fallen))
    segwatch(folder, "train", "--as-of", day(30))
    segwatch(folder, "infer", "--start", day(22), "--end", day(0))
    rows = predictions(folder, "country = 'it' and channel = 'web'")
    flagged = rows["is_anomaly"].to_numpy()
    # Of the twenty days of the change the first seven teach it.
    assert not flagged[:2].any() and flagged[2:9].all() and flagged[9:].sum() <= 2
    assert rows["expected"].iloc[2:9].min() > 90 and rows["expected"].iloc[10:].max() < 60
    edit_settings(folder, "retrain_every", "adapt_after = 3\nretrain_every")
    segwatch(folder, "run", "--as-of", day(0))
    assert len(segwatch(folder, "models", "list").stdout.splitlines()) == 1 + 2


def test_a_masked_week_is_not_scored_and_teaches_nothing_and_a_campaign_that_comes_back_is_no_alarm(tmp_path, segwatch):
    def change(country, channel, back):
        campaign = country == "it" and back in (120, 90, 60, 31, 2)
        broken = (country, channel) == ("fr", "web") and 20 <= back <= 26
        return 3.0 if campaign else 0.1 if broken else 1.0

    folder = project(tmp_path, segwatch, counts(FOUR, change=change), 'calendar = "days"\n')
    days = [(day(n), day(n), "sale", "expect", "it", None) for n in (120, 90, 60, 31, 2)]
    days.append((day(26), day(20), "tracking broke", "mask", "fr", "web"))
    with duckdb.connect(folder / "segwatch.duckdb") as connection:
        connection.execute(
            "create table days (first_day date, last_day date, event varchar, effect varchar, country varchar,"
            " channel varchar)"
        )
        connection.executemany("insert into days values (?, ?, ?, ?, ?, ?)", days)
    segwatch(folder, "train", "--as-of", day(30))
    said = segwatch(folder, "infer", "--start", day(28), "--end", day(0)).stderr
    rows = predictions(folder, "level = 'country/channel'")
    masked = rows[(rows["name"] == "fr/web") & (rows["ts"] >= day(26)) & (rows["ts"] <= day(20))]
    assert set(masked["status"]) == {"no_data"} and set(masked["reason"]) == {"left out by the calendar"}
    assert len(masked) == 7 and "fr/web" not in said
    after = rows[(rows["name"] == "fr/web") & (rows["ts"] > day(20))]
    assert set(after["status"]) == {"ok"} and not after["is_anomaly"][:5].any()
    sale = rows[(rows["ts"] == day(2)) & (rows["country"] == "it")]
    assert not sale["is_anomaly"].any() and sale["expected"].between(200, 400).all()
