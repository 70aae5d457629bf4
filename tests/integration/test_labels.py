import json

import numpy as np
import pytest

from .conftest import END, SPLIT, TABLE, ask, change, edit_settings, error

START, STOP = "2026-11-09", "2026-11-19"
OUTAGE = ("2026-11-12", "2026-11-14")


def project(folder, segwatch):
    """A trained project of its own: training and promoting would move the champion of the others' registry."""
    segwatch(folder, "init")
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--segments", "9", "--days", "300", "--end", END)
    segwatch(folder, "train", "--as-of", SPLIT)
    return folder


def darken(folder, segwatch):
    """Nothing of the platform ios for three days, scored."""
    days = f"created_at BETWEEN '{OUTAGE[0]}' AND '{OUTAGE[1]}'"
    change(folder, f"UPDATE {TABLE} SET new_users = 0 WHERE platform = 'ios' AND {days}")
    segwatch(folder, "infer", "--start", START, "--end", STOP)
    return folder


@pytest.fixture
def dark(tmp_path, segwatch):
    return darken(project(tmp_path, segwatch), segwatch)


@pytest.fixture(scope="module")
def always_dark(tmp_path_factory, segwatch):
    """The same for those that change nothing."""
    return darken(project(tmp_path_factory.mktemp("dark"), segwatch), segwatch)


def incident(folder, cause="*/ios/*", direction="down"):
    """The id of the incident of a cause."""
    values = [None if value == "*" else value for value in cause.split("/")]
    where = " AND ".join(
        f"{name} IS NOT DISTINCT FROM {'NULL' if value is None else repr(value)}"
        for name, value in zip(("country_code", "platform", "channel"), values, strict=True)
    )
    [(id_,)] = ask(folder, f"SELECT DISTINCT incident_id FROM incidents WHERE direction = '{direction}' AND {where}")
    return id_


def rows(folder, where):
    return ask(folder, f"SELECT ts::DATE::TEXT, status, reason, is_anomaly FROM predictions WHERE {where} ORDER BY ALL")


def shown(said):
    pairs = (line.strip().split(None, 1) for line in said.stderr.splitlines())
    return dict(pair for pair in pairs if len(pair) == 2)


def test_a_true_anomaly_leaves_the_training_data(dark, segwatch):
    said = segwatch(dark, "label", incident(dark)[:8], "true", "--by", "ann", "--note", "sign-up was down")
    assert shown(said)["cause"] == "*/ios/*" and shown(said)["note"] == "sign-up was down"
    trained = segwatch(dark, "train", "--as-of", "2026-11-19").stderr
    # Three segments on three days.
    assert "labels 9 values left out" in " ".join(trained.split())
    again = segwatch(dark, "label", incident(dark), "none")
    assert shown(again)["label"] == "none"
    assert "left out" not in segwatch(dark, "train", "--as-of", "2026-11-19").stderr


def test_what_is_expected_is_not_scored_and_not_alerted_in_its_days(dark, segwatch):
    id_ = incident(dark)
    segwatch(dark, "label", id_, "expected", "--by", "ann", "--until", "2026-11-15")
    segwatch(dark, "infer", "--start", START, "--end", STOP)
    ios = rows(dark, "platform = 'ios' AND country_code IS NOT NULL AND channel IS NOT NULL AND ts < '2026-11-16'")
    masked = {(day, status, reason) for day, status, reason, _ in ios if day >= OUTAGE[0]}
    assert masked == {(f"2026-11-{d}", "no_data", "expected by a label") for d in (12, 13, 14, 15)}
    assert not ask(dark, f"SELECT 1 FROM incidents WHERE incident_id = '{id_}'")
    # What sums them does not alert in their place.
    assert not ask(dark, f"FROM predictions WHERE platform IS NULL AND is_anomaly AND direction = 'down'"
                         f" AND ts BETWEEN '{OUTAGE[0]}' AND '{OUTAGE[1]}' AND channel IS NULL")  # fmt: skip
    assert "no data" not in segwatch(dark, "infer", "--start", START, "--end", STOP).stderr


def test_a_false_alarm_raises_the_bar_of_its_segments_from_then_on(dark, segwatch):
    outage = incident(dark)
    change(dark, f"UPDATE {TABLE} SET new_users = 0 WHERE platform = 'ios' AND created_at = '2026-11-21'")
    segwatch(dark, "infer", "--start", "2026-11-19", "--end", "2026-11-23")
    ios = "platform = 'ios' AND ts = '2026-11-21'"
    flagged = ask(dark, f"SELECT segment_id FROM predictions WHERE is_anomaly AND {ios}")
    assert flagged
    before = rows(dark, f"ts < '{STOP}'")
    segwatch(dark, "label", outage, "false", "--by", "ann")
    segwatch(dark, "infer", "--start", START, "--end", "2026-11-23")
    assert {
        row[1:] for row in rows(dark, f"{ios} AND segment_id IN ({', '.join(repr(one) for (one,) in flagged)})")
    } == {("ok", "labelled", False)}
    # What was said before is as it was, and bounds tell what would alert now.
    assert [row for row in rows(dark, f"ts < '{STOP}'") if row[0] <= OUTAGE[1]] == [
        row for row in before if row[0] <= OUTAGE[1]
    ]
    assert not ask(dark, f"FROM predictions WHERE {ios} AND reason = 'labelled' AND value < lower")


def test_a_new_normal_is_told_no_more_and_the_next_training_knows_its_level(tmp_path, segwatch):
    trained = project(tmp_path, segwatch)
    change(
        trained, f"UPDATE {TABLE} SET new_users = new_users // 4 WHERE platform = 'ios' AND created_at >= '2026-11-12'"
    )
    segwatch(trained, "infer", "--start", START, "--end", "2026-11-14")
    segwatch(trained, "label", incident(trained), "new-normal", "--by", "ann")
    segwatch(trained, "infer", "--start", "2026-11-14", "--end", "2026-11-16")
    down = "platform = 'ios' AND is_anomaly AND direction = 'down' AND channel IS NOT NULL"
    assert not ask(trained, f"FROM predictions WHERE {down} AND ts >= '2026-11-14'")
    said = segwatch(trained, "train", "--as-of", "2026-11-16", "--force").stderr
    assert "3 histories carried to a new level" in " ".join(said.split())
    segwatch(trained, "infer", "--start", "2026-11-16", "--end", "2026-11-19")
    [(value, expected)] = ask(trained, "SELECT sum(value), sum(expected) FROM predictions WHERE platform = 'ios'"
                                       " AND channel IS NOT NULL AND ts >= '2026-11-16'")  # fmt: skip
    assert expected == pytest.approx(value, rel=0.25)
    # A rise back to what it was is news.
    change(
        trained, f"UPDATE {TABLE} SET new_users = new_users * 4 WHERE platform = 'ios' AND created_at = '2026-11-19'"
    )
    segwatch(trained, "infer", "--as-of", "2026-11-20")
    assert ask(
        trained, "FROM predictions WHERE platform = 'ios' AND is_anomaly AND direction = 'up' AND ts >= '2026-11-19'"
    )


def test_the_label_of_an_incident_that_goes_on_goes_on_with_it(dark, segwatch):
    segwatch(dark, "infer", "--start", START, "--end", "2026-11-13")
    segwatch(dark, "label", incident(dark), "true", "--by", "ann")
    segwatch(dark, "infer", "--start", "2026-11-13", "--end", STOP)
    assert "9 values left out" in " ".join(segwatch(dark, "train", "--as-of", STOP).stderr.split())


def test_labels_and_who_gave_them_are_listed_and_kept(dark, segwatch):
    id_ = incident(dark)
    segwatch(dark, "label", id_, "false", "--by", "bob")
    segwatch(dark, "label", id_, "true", "--by", "ann", "--note", "no, it was one")
    segwatch(dark, "snooze", id_, "--until", "2026-11-30", "--by", "eve")
    lines = [line.split("\t") for line in segwatch(dark, "labels", "list").stdout.splitlines()]
    assert [(line[0], line[1], line[5]) for line in lines] == [(id_, "snooze", "eve"), (id_, "true", "ann")]
    facts = [json.loads(line) for line in segwatch(dark, "--log-format", "json", "labels", "list").stdout.splitlines()]
    assert facts[1]["note"] == "no, it was one" and facts[0]["last"] == "2026-11-30" and facts[1]["cause"] == "*/ios/*"
    segwatch(dark, "models", "promote", "1", "--by", "kim")
    done = [line.split("\t")[1:] for line in segwatch(dark, "labels", "audit").stdout.splitlines()]
    assert done == [
        ["kim", "promote", "version 1", "champion before: 1"],
        ["eve", "snooze", f"incident {id_}", "snooze to 2026-11-30"],
        ["ann", "label", f"incident {id_}", "true: no, it was one"],
        ["bob", "label", f"incident {id_}", "false"],
    ]
    assert ask(dark, "SELECT count(*) FROM labels") == [(3,)]


def test_a_note_of_several_lines_stays_on_its_line(dark, segwatch):
    segwatch(dark, "label", incident(dark), "true", "--by", "ann", "--note", "one\ttwo\nthree\x1b[2J")
    for command in ("list", "audit"):
        [line] = segwatch(dark, "labels", command).stdout.splitlines()
        assert line.split("\t")[-1].endswith(r"one\ttwo\nthree\x1b[2J")


def test_a_snooze_is_not_taken_back_as_if_it_were_a_label(dark, segwatch):
    id_ = incident(dark)
    segwatch(dark, "snooze", id_, "--until", "2026-11-30", "--by", "eve")
    assert "0 labels of new_users begin with" in error(segwatch(dark, "label", id_, "none", code=3))
    segwatch(dark, "label", id_, "true", "--by", "ann")
    segwatch(dark, "label", id_, "none", "--by", "ann")
    assert [line.split("\t")[1] for line in segwatch(dark, "labels", "list").stdout.splitlines()] == ["snooze"]


def test_nobody_moves_the_champion_unnamed(dark, segwatch):
    segwatch(dark, "train", "--as-of", "2026-11-10", "--force")
    before = segwatch(dark, "models", "list").stdout
    error(segwatch(dark, "models", "promote", "1", "--by", " ", code=2))
    assert segwatch(dark, "models", "list").stdout == before


def test_past_events_come_from_a_file_and_the_same_file_again_changes_nothing(dark, segwatch):
    (dark / "events.csv").write_text(
        "first_day,last_day,label,platform,note\n"
        '2026-10-01,2026-10-03,outage,ios,"payments, down"\n'
        "2026-10-20,,campaign,,Sale\n"
        "2026-10-25,2026-10-25,new-normal,web,\n"
    )
    assert "3" in segwatch(dark, "labels", "import", "events.csv", "--by", "ann").stderr
    assert shown(segwatch(dark, "labels", "import", "events.csv", "--by", "bob"))["new"] == "0"
    assert ask(dark, "SELECT DISTINCT author FROM labels") == [("ann",)]
    assert ask(dark, "SELECT label, dimensions, note FROM labels ORDER BY first_ts") == [
        ("true", '{"platform": "ios"}', "payments, down"), ("expected", "{}", "Sale"),
        ("new-normal", '{"platform": "web"}', None),
    ]  # fmt: skip
    said = " ".join(segwatch(dark, "train", "--as-of", "2026-11-19").stderr.split())
    # Three days of three segments, and one day of all nine.
    assert "18 values left out, 3 histories carried to a new level" in said
    first = ask(dark, "SELECT label_id FROM labels WHERE label = 'true'")[0][0]
    segwatch(dark, "label", first[:6], "none", "--by", "ann")
    assert "9 values left out" in " ".join(segwatch(dark, "train", "--as-of", "2026-11-19").stderr.split())
    assert shown(segwatch(dark, "labels", "import", "events.csv", "--by", "eve"))["new"] == "1"
    assert ask(dark, f"SELECT label, author FROM labels WHERE label_id = '{first}' ORDER BY ts") == [
        ("true", "ann"), ("none", "ann"), ("true", "eve"),
    ]  # fmt: skip


def test_a_label_of_a_dimension_that_is_gone_is_not_one_of_all_segments(dark, segwatch):
    (dark / "events.csv").write_text("first_day,label,channel,platform\n2026-10-01,outage,paid,\n"
                                     "2026-10-02,outage,,ios\n")  # fmt: skip
    segwatch(dark, "labels", "import", "events.csv")
    edit_settings(dark, '["country_code", "platform", "channel"]', '["country_code", "platform"]')
    lines = segwatch(dark, "labels", "list").stdout.splitlines()
    assert [line.split("\t")[3] for line in lines] == ["2026-10-02"]
    # One day of the one segment of its platform.
    assert "labels 1 values left out" in " ".join(segwatch(dark, "train", "--as-of", "2026-11-19").stderr.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds nothing"),
        ("first_day\n2026-10-01\n", "has no column 'label': it holds first_day"),
        ("first_day,label,colour\n2026-10-01,outage,red\n", "has the column 'colour', which is none of"),
        ("first_day,label\n", "holds no rows"),
        ("first_day,label\n01.10.2026,outage\n", "row 1: first_day '01.10.2026' is not a date: write it as YYYY-MM-DD"),
        ("first_day,label\n2026-10-01,oops\n", "row 1: the label 'oops' is none of true, expected, new-normal"),
        ("first_day,label\n2026-10-01,false\n", "a false alarm is said of an incident"),
        ("first_day,last_day,label\n2026-10-02,2026-10-01,outage\n", "row 1: last_day 2026-10-01 is before first_day"),
        ("first_day,label,note\n2026-10-01,outage,a,b\n", "row 1 has not as many fields as the header"),
        ("first_day,label,note\n2026-10-01,outage\n", "row 1 has not as many fields as the header"),
    ],
)
def test_a_file_that_is_none_of_events_is_told_so_and_nothing_is_written(always_dark, segwatch, text, said):
    dark = always_dark
    (dark / "events.csv").write_text(text)
    assert said in error(segwatch(dark, "labels", "import", "events.csv", code=3))
    assert ask(dark, "SELECT count(*) FROM labels") == [(0,)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("label", "ffffffff", "true"), 3, "has no incident 'ffffffff': `segwatch incidents` lists them"),
        (("label", "ff", "true"), 2, "is too short for an incident"),
        (("label", "ID", "perhaps"), 2, "'perhaps' is no label: say one of true, false, expected, new-normal, none"),
        (("label", "ID", "true", "--until", "2026-12-01"), 2, "--until says how long something is snoozed or expected"),
        (("label", "ID", "expected", "--until", "2026-11-01"), 2, "is before the incident, which began at 2026-11-12"),
        (("label", "ID", "expected", "--until", "soon"), 2, "--until 'soon' is not a date"),
        (("label", "ID", "true", "--by", " "), 2, "say with --by who says it"),
        (("label", "ID", "none"), 3, "0 labels of new_users begin with"),
        (("labels", "import", "none.csv"), 2, "none.csv: there is no such file"),
        (("models", "promote", "99"), 3, "99"),
        (("models", "promote", "1", "--by", " "), 2, "say with --by who says it"),
        (("models", "rollback", "--by", " "), 2, "say with --by who says it"),
    ],
)
def test_what_cannot_be_said_is_one_sentence_and_nothing_is_written(always_dark, segwatch, arguments, code, said):
    dark = always_dark
    given = [incident(dark) if one == "ID" else one for one in arguments]
    assert said in error(segwatch(dark, *given, code=code))
    assert ask(dark, "SELECT count(*) FROM labels") == [(0,)] and ask(dark, "SELECT count(*) FROM audit") == [(0,)]


def test_what_goes_on_is_expected_to_an_end_that_is_said(dark, segwatch):
    change(dark, "DELETE FROM incidents WHERE ts >= '2026-11-14'")
    id_ = incident(dark)
    said = error(segwatch(dark, "label", id_, "expected", code=2))
    assert said == "error: the incident goes on: say with --until to which period it is expected"
    segwatch(dark, "label", id_, "expected", "--until", "2026-11-14")


def test_a_campaign_that_is_still_to_come_is_no_obstacle(dark, segwatch):
    (dark / "events.csv").write_text("first_day,last_day,label\n2027-03-01,2027-03-05,campaign\n")
    segwatch(dark, "labels", "import", "events.csv")
    assert "2027-03-01" in segwatch(dark, "labels", "list").stdout
    segwatch(dark, "infer", "--start", START, "--end", STOP)


def test_values_that_no_segment_has_are_told_when_events_are_imported(dark, segwatch):
    (dark / "events.csv").write_text("first_day,label,platform\n2026-10-01,outage,IOS\n2026-10-02,outage,ios\n")
    said = segwatch(dark, "labels", "import", "events.csv").stderr
    assert "no segment has platform IOS now: mend the file if that is a slip" in said
    assert ask(dark, "SELECT count(*) FROM labels") == [(2,)]
    assert "no segment" not in segwatch(dark, "labels", "import", "events.csv").stderr


def test_a_project_of_before_works_without_labels_and_is_told_to_make_the_table(dark, segwatch):
    change(dark, "DROP TABLE labels", "DROP TABLE audit")
    segwatch(dark, "infer", "--start", START, "--end", STOP)
    said = error(segwatch(dark, "label", incident(dark), "true", code=3))
    assert said == "error: there is no table 'labels': run `segwatch create`, which makes it"
    segwatch(dark, "create")
    segwatch(dark, "label", incident(dark), "true")
    assert ask(dark, "SELECT count(*) FROM labels") == [(1,)]


def test_hours_are_labelled_by_the_hour(tmp_path, segwatch):
    hours = np.arange(np.datetime64(END, "h") - 1500, np.datetime64(END, "h"))
    rng = np.random.default_rng(0)
    lines = ["hour,country,eur", *(f"{h.item():%Y-%m-%dT%H:%M:%S},{c},{rng.poisson(50)}" for h in hours for c in "ab")]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    (tmp_path / "segwatch.toml").write_text(
        '[targets.dev]\nwarehouse = "duckdb:///segwatch.duckdb"\nregistry = "sqlite:///mlflow.db"\n[metrics.m]\n'
        'table = "t"\ntime = "hour"\nvalue = "eur"\ndimensions = ["country"]\ngrain = "hour"\n'
    )
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--from", "rows.csv")
    (tmp_path / "events.csv").write_text(
        "first_day,last_day,label,country\n2026-11-01T10:00,2026-11-01T12:00,outage,a\n 2026-11-02 , ,campaign,b\n"
    )
    segwatch(tmp_path, "labels", "import", "events.csv")
    # Three hours and a whole day.
    assert "27 values left out" in " ".join(segwatch(tmp_path, "train", "--as-of", END).stderr.split())
    change(tmp_path, "UPDATE t SET eur = 0 WHERE hour BETWEEN '2026-11-23 10:00' AND '2026-11-23 14:00'")
    segwatch(tmp_path, "infer", "--start", "2026-11-23T00:00", "--end", "2026-11-23T16:00")
    id_ = ask(tmp_path, "SELECT incident_id FROM incidents ORDER BY total_impact LIMIT 1")[0][0]
    assert shown(segwatch(tmp_path, "snooze", id_, "--until", "2026-11-24"))["last"] == "2026-11-24T23"
    assert shown(segwatch(tmp_path, "snooze", id_, "--until", "2026-11-24T05:00"))["last"] == "2026-11-24T05"
