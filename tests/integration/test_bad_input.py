import datetime as dt
import math

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from .conftest import END, SPLIT, TABLE, WATCHED, ask, change, edit_settings, error, own_metric

AS_DOUBLE = f"alter table {TABLE} alter new_users type double"
LOOSE = f"create or replace table {TABLE} as from {TABLE}"
HEADER = "created_at,country_code,platform,channel,new_users"


def day(i, end=END):
    """The i-th day before an end."""
    return str(dt.date.fromisoformat(end) - dt.timedelta(days=i + 1))


def test_no_settings_file(tmp_path, segwatch):
    assert "segwatch init" in error(segwatch(tmp_path, "train", code=2))


def test_init_does_not_replace_a_file(tmp_path, segwatch):
    (tmp_path / "segwatch.toml").write_text("mine")
    error(segwatch(tmp_path, "init", code=2))
    assert (tmp_path / "segwatch.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('grain = "day"', 'grain = "week"', "metrics.new_users.grain"),
        ('grain = "day"', "grian = 1", "unknown key 'metrics.new_users.grian'"),
        ('value = "new_users"', "", "'metrics.new_users.value' is missing"),
        ('grain = "day"', 'denominator = "New_Users"', "denominator and dimensions must be different columns"),
        ('grain = "day"', 'denominator = "created_at"', "denominator and dimensions must be different columns"),
        ('grain = "day"', 'denominator = "channel"', "denominator and dimensions must be different columns"),
        ('grain = "day"', 'denominator = ""', "metrics.new_users.denominator"),
        ('"channel"]', '"denominator"]', "has the name of a column of the predictions table"),
        ('"channel"]', '"value"]', "has the name of a column of the predictions table"),
        ("duckdb:///segwatch.duckdb", "oracle://x", "oracle://x"),
        ("sqlite:///mlflow.db", "${NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
    ],
)
def test_wrong_settings_name_the_key(tmp_path, segwatch, old, new, said):
    segwatch(tmp_path, "init")
    edit_settings(tmp_path, old, new)
    assert said in error(segwatch(tmp_path, "create", code=2))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (f"drop table {TABLE}", TABLE),
        (f"alter table {TABLE} rename channel to chanel", "channel"),
        (f"alter table {TABLE} alter new_users type varchar", "new_users"),
        (f"alter table {TABLE} alter created_at type varchar", "created_at"),
        (f"insert into {TABLE} values ('2026-11-05', 'it', 'ios', 'paid', -3)", "1 row has a negative number"),
        (f"{AS_DOUBLE}; insert into {TABLE} values ('2026-11-05', 'it', 'ios', 'paid', 'nan')", "1 row has NaN"),
        (f"{AS_DOUBLE}; insert into {TABLE} values ('2026-11-05', 'it', 'ios', 'paid', 'inf')", "an infinite number"),
        (f"{AS_DOUBLE}; insert into {TABLE} values ('2026-11-05', 'it', 'ios', 'paid', '-inf')", "an infinite number"),
        (f"{AS_DOUBLE}; insert into {TABLE} values ('2026-11-05', 'it', 'ios', 'paid', 1e101)", "past 1e+100"),
        (f"{LOOSE}; insert into {TABLE} values ('2026-11-05', 'it', 'ios', 'paid', null)", "1 row has NULL"),
        (f"{LOOSE}; insert into {TABLE} values (null, 'it', 'ios', 'paid', 5)", "(the time): 1 row has NULL"),
        (f"delete from {TABLE}", "no rows"),
    ],
)
def test_bad_tables_stop_train_and_infer_and_lose_nothing(trained, segwatch, statement, said):
    segwatch(trained, "infer", "--as-of", SPLIT)
    change(trained, statement)
    # Scoring reads what came since training.
    for command in (("train", "--as-of", END), ("infer", "--as-of", END)):
        assert said in error(segwatch(trained, *command, code=3))
    assert "version\t1" in segwatch(trained, "models", "show").stdout
    assert ask(trained, "select count(*) from predictions") == [(WATCHED,)]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("infer", "--as-of", "2999-01-01"), 2, "future"),
        (("infer", "--as-of", "yesterday"), 2, "not a date"),
        (("infer", "--as-of", "2026-02-29"), 2, "not a date"),
        (("infer", "--start", SPLIT), 2, "both --start and --end"),
        (("infer", "--start", END, "--end", SPLIT), 2, "empty"),
        (("infer", "--as-of", "2001-01-01"), 3, "2001"),
        (("infer", "--as-of", ""), 2, "not a date"),
        (("infer", "--as-of", "2026-11-03T10:00"), 2, "falls inside a day"),
        (("infer", "--start", END, "--end", END), 2, "is empty"),
        (("infer", "--start", "2001-01-01", "--end", "2001-02-01"), 3, "it holds 2026-01-28 to 2026-11-23"),
        (("infer", "--as-of", SPLIT, "--start", SPLIT, "--end", END), 2, "either --as-of, or both"),
        (("train", "--as-of", "2999-01-01"), 2, "future"),
        (("run", "--as-of", "2999-01-01"), 2, "future"),
        (("train", "--start", END, "--as-of", SPLIT), 2, "is empty"),
        (("train", "--start", "2001-01-01", "--as-of", "2001-02-01"), 3, "it holds 2026-01-28 to 2026-11-23"),
        (("report", "--start", END, "--end", END), 3, "segwatch infer"),
        (("report", "--output", "nowhere/page.html"), 2, "there is no folder nowhere"),
        (("report", "--output", "."), 2, "is a folder"),
        (("--settings", "nowhere/segwatch.toml", "init"), 2, "there is no folder nowhere"),
        (("train", "--as-of", "2001-01-01"), 3, "no rows before"),
        (("train", "--select", "planet=mars"), 2, "'planet'"),
        (("train", "--select", "channel"), 2, "dimension=value"),
        (("train", "--select", "channel=fax", "--as-of", SPLIT), 3, "channel=fax"),
        (("infer", "--select", "channel=fax", "--as-of", SPLIT), 3, "select"),
        (("train", "--metric", "revenue"), 2, "'revenue'"),
        (("models", "promote", "99"), 3, "99"),
        (("data", "insert", "--from", "rows.xls"), 2, "rows.xls"),
        (("data", "insert", "--from", "rows.csv"), 2, "no such file"),
        (("data", "insert", "--segments", "0"), 2, "--segments 0"),
    ],
)
def test_arguments_that_cannot_be_followed(trained, segwatch, arguments, code, said):
    assert said in error(segwatch(trained, *arguments, code=code))


def test_nothing_is_removed_where_nobody_answers(trained, segwatch):
    for command in (("destroy",), ("data", "truncate")):
        said = segwatch(trained, *command, code=2).stderr.splitlines()
        assert said[-1] == "error: nothing was removed: answer y, or give --yes"
    assert ask(trained, f"select count(*) > 0 from {TABLE}") == [(True,)]


def test_what_is_left_is_removed_where_the_database_is_gone_already(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    (tmp_path / "segwatch.duckdb").unlink()
    said = segwatch(tmp_path, "destroy", code=2).stderr
    assert f"there is no database {tmp_path / 'segwatch.duckdb'}, so no table is removed" in said
    assert (tmp_path / "mlflow.db").exists()
    assert "0 table, 0 model" in segwatch(tmp_path, "destroy", "--yes").stderr
    assert [path.name for path in tmp_path.iterdir()] == ["segwatch.toml"]
    segwatch(tmp_path, "destroy", "--yes")


def test_data_that_segwatch_did_not_make_is_not_truncated_nor_replaced(trained, segwatch):
    change(trained, f"create or replace table {TABLE} as from {TABLE}")
    before = ask(trained, f"from {TABLE} order by all")
    (trained / "rows.csv").write_text(f"{HEADER}\n2026-11-01,it,ios,paid,5\n")
    for command in (("data", "truncate", "--yes"), ("data", "insert", "--from", "rows.csv"), ("data", "insert")):
        assert "was not made by segwatch" in error(segwatch(trained, *command, code=3))
    assert ask(trained, f"from {TABLE} order by all") == before


def test_a_leap_day_is_a_day_between_its_neighbours(tmp_path, segwatch):
    (tmp_path / "rows.csv").write_text(
        "\n".join([HEADER, *(f"{day(i, '2024-03-11')},it,ios,paid,{50 + i % 9}" for i in range(150))])
    )
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--from", "rows.csv")
    segwatch(tmp_path, "train", "--as-of", "2024-02-29")
    assert "[2023-10-13, 2024-02-29)" in segwatch(tmp_path, "models", "list").stdout
    segwatch(tmp_path, "infer", "--start", "2024-02-28", "--end", "2024-03-02")
    segwatch(tmp_path, "infer", "--as-of", "2024-03-01")
    rows = ask(tmp_path, "select ts::date::varchar, value, status from predictions order by ts")
    assert rows == [
        ("2024-02-28", 52.0, "ok"),
        ("2024-02-29", 51.0, "ok"),
        ("2024-03-01", 50.0, "ok"),
    ]


def test_rows_of_the_same_day_and_segment_are_summed_where_the_metric_is_a_count(trained, segwatch):
    where = "where created_at = '2026-11-03' and (country_code, platform, channel) = ('it', 'ios', 'paid')"
    [(value,)] = ask(trained, f"select new_users from {TABLE} {where}")
    change(trained, f"insert into {TABLE} values ('2026-11-03', 'it', 'ios', 'paid', 1000)")
    segwatch(trained, "infer", "--as-of", SPLIT)
    scored = "where (country_code, platform, channel) = ('it', 'ios', 'paid')"
    assert ask(trained, f"select value from predictions {scored}") == [(value + 1000.0,)]


@pytest.fixture(scope="module")
def gap_metric(tmp_path_factory, segwatch):
    """A trained metric that is no count, of negative values too."""
    folder = tmp_path_factory.mktemp("gap")
    own_metric(folder, "gap", {"it": lambda i: i * 7 % 13 - 6.5, "fr": lambda i: -40.0 - i * 5 % 11})
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--from", "rows.csv")
    segwatch(folder, "train", "--as-of", SPLIT)
    return folder


def test_negative_values_are_fine_where_the_metric_is_no_count(gap_metric, segwatch):
    segwatch(gap_metric, "infer", "--start", SPLIT, "--end", END)
    segwatch(gap_metric, "report")
    assert ask(gap_metric, "select count(*), min(value) < 0 from predictions where status = 'ok'") == [(40, True)]
    assert ask(gap_metric, "select distinct level from predictions") == [("country",)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("('2026-11-01', 'it', 'nan')", "1 row has NaN"),
        ("('2026-11-01', 'it', 'inf')", "1 row has an infinite number"),
        ("('2026-11-01', 'it', '-inf')", "1 row has an infinite number"),
        ("('2026-11-01', 'de', -1e101)", "segment de at 2026-11-01 00:00:00 add up to a number past 1e+100"),
        ("('2026-11-01', 'it', null)", "1 row has NULL"),
        ("(null, 'it', 5)", "(the time): 1 row has NULL"),
        ("('infinity', 'it', 5)", "(the time): 1 row has NULL or no date"),
        ("('2026-11-01', 'it', 5)", "segment it has 2 rows at 2026-11-01"),
    ],
)
def test_bad_rows_of_a_metric_that_is_no_count_stop_train_and_infer(gap_metric, segwatch, row, said):
    change(
        gap_metric,
        "alter table revenue rename to whole",
        "create table revenue as from whole",
        f"insert into revenue values {row}",
    )
    try:
        for command in (("train", "--as-of", END), ("infer", "--as-of", "2026-11-02")):
            assert said in error(segwatch(gap_metric, *command, code=3))
    finally:
        change(gap_metric, "drop table revenue", "alter table whole rename to revenue")


def test_a_registry_without_a_champion(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "3", "--days", "100", "--end", END)
    assert "segwatch train" in error(segwatch(tmp_path, "infer", "--as-of", END, code=3))


def test_a_bundle_with_one_byte_changed_is_refused(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "3", "--days", "150", "--end", END)
    segwatch(tmp_path, "train", "--as-of", END)
    for name in ("vectors.arrow", "segments.arrow", "manifest.json"):
        path = next((tmp_path / "mlartifacts").rglob(name))
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        error(segwatch(tmp_path, "infer", "--as-of", END, code=3))
        path.write_bytes(whole)
    segwatch(tmp_path, "infer", "--as-of", END)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("created_at,country_code,platform,channel\n2026-11-01,it,ios,paid\n", "'new_users'"),
        (f"{HEADER},price\n2026-11-01,it,ios,paid,1,2\n", "'price'"),
        (f"{HEADER},platform\n2026-11-01,it,ios,paid,1,ios\n", "the column 'platform' 2 times"),
        (f"{HEADER}\n2026-11-01,it,ios,paid,1\n2026-11-02,it,ios,paid,\n", "NULL in column 'new_users' (row 2)"),
        (f"{HEADER}\n,it,ios,paid,1\n", "NULL in column 'created_at' (row 1)"),
        (
            f"{HEADER}\n2026-11-01,it,ios,paid,1\n2026-11-02,it,ios,paid,many\n",
            "'new_users' (row 2): invalid value 'many'",
        ),
        (f"{HEADER}\n2026-11-01,it,ios,paid,1.5\n", "'new_users' (row 1): invalid value '1.5'; it must be INTEGER"),
        (f"{HEADER}\n2026-11-01,it,ios,paid,nan\n", "'new_users' (row 1): invalid value 'nan'"),
        (
            f"{HEADER}\n2026-11-01,it,ios,paid,1\n2026-11-02,it,ios,paid,-3\n",
            "negative number in column 'new_users' (row 2)",
        ),
        (f"{HEADER}\n2026-13-01,it,ios,paid,1\n", "'created_at' (row 1): invalid value '2026-13-01'; it must be DATE"),
        (f"{HEADER}\n2026-02-29,it,ios,paid,1\n", "'created_at' (row 1): invalid value '2026-02-29'"),
        (f"{HEADER}\n0000-01-01,it,ios,paid,1\n", "years 1 to 9999 in column 'created_at' (row 1)"),
        (f"{HEADER}\n2026-11-01,it,ios,paid,1\n2026-11-02,it,ios\n", "row 2: Expected 5 columns, got 3"),
        (f"{HEADER}\n", "no rows"),
        ("", "Empty CSV file"),
    ],
)
def test_files_that_do_not_fit_are_refused_whole(trained, segwatch, rows, said):
    before = ask(trained, f"from {TABLE} order by all")
    (trained / "rows.csv").write_text(rows)
    assert said in error(segwatch(trained, "data", "insert", "--from", "rows.csv", code=3))
    assert ask(trained, f"from {TABLE} order by all") == before


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("value", "missing", "said"),
    [
        (math.nan, "zero", "NaN"),
        (math.nan, "gap", "NaN"),
        (math.inf, "zero", "a number past 1e+100"),
        (-math.inf, "gap", "a number past 1e+100"),
        (-1.0, "zero", "a negative number"),
        (None, "gap", "NULL"),
    ],
)
def test_values_that_cannot_be_watched_are_refused_at_insert(gap_metric, segwatch, value, missing, said, suffix):
    before = ask(gap_metric, "from revenue order by all")
    days = [dt.date(2026, 11, 1), dt.date(2026, 11, 2)]
    rows = pa.table({"day": days, "country": ["it", "it"], "eur": pa.array([1.0, value])})
    write = pyarrow.csv.write_csv if suffix == "csv" else pyarrow.parquet.write_table
    write(rows, gap_metric / f"bad.{suffix}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGWATCH_METRICS__REVENUE__MISSING", missing)
        said_at = error(segwatch(gap_metric, "data", "insert", "--from", f"bad.{suffix}", code=3))
    assert f"{said} in column 'eur' (row 2)" in said_at
    assert ask(gap_metric, "from revenue order by all") == before


def test_a_large_file_of_values_with_newlines_is_read_whole(trained, segwatch):
    rows = [f'{day(i)},"two\nlines",ios,paid,{i}' for i in range(60_000)]
    (trained / "rows.csv").write_text("\n".join([HEADER, *rows]))
    segwatch(trained, "data", "insert", "--from", "rows.csv")
    assert ask(trained, f"select count(*) from {TABLE} where country_code = 'two\nlines'") == [(60_000,)]


def test_an_error_is_one_line_whatever_the_data_holds(trained, segwatch):
    change(trained, f"insert into {TABLE} values ('2026-11-01', 'two\nlines\x1b[31m', 'ios', 'paid', -3)")
    assert r"two\nlines\x1b[31m/ios/paid" in error(segwatch(trained, "train", "--as-of", END, code=3))


def test_segments_that_cannot_be_trained_are_named_and_the_others_are(tmp_path, segwatch):
    lines = [HEADER]
    for i in range(150):
        lines += [f"{day(i)},it,constant,paid,5", f"{day(i)},it,varied,paid,{50 + i % 9}"]
        lines += [f'{day(i)},it,"quote\'s / ünï",,{20 + i % 7}']
        lines += [f"{day(i)},it,gone,paid,{30 + i % 5}"] * (i >= 40)
        lines += [f"{day(i)},NA,short,paid,{i % 5 + 1}"] * (i < 10)
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--from", "rows.csv")
    said = segwatch(tmp_path, "train", "--as-of", END).stderr
    assert "5 segments and 3 roll-ups, 7 fitted, 1 too_short" in " ".join(said.split())
    segwatch(tmp_path, "infer", "--as-of", END)
    segments = "select platform, status from predictions where channel is not null and platform is not null"
    assert dict(ask(tmp_path, f"{segments} and country_code is not null")) == {
        "constant": "ok",
        "varied": "ok",
        "quote's / ünï": "ok",
        "short": "too_short",
        "gone": "ended",
    }
    assert ask(tmp_path, "select distinct channel from predictions where channel like '<%'") == [("<null>",)]


def test_times_of_a_file_are_utc_with_and_without_a_zone(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    path = tmp_path / "segwatch.toml"
    head = path.read_text().partition("[metrics.new_users]")[0]
    path.write_text(
        head
        + '[metrics.temperature]\ntable = "temperatures"\ntime = "at"\nvalue = "degrees"\ndimensions = ["sensor"]\n'
        + 'grain = "hour"\nmissing = "gap"\n'
    )
    segwatch(tmp_path, "create")
    (tmp_path / "plain.csv").write_text("at,sensor,degrees\n2026-09-15 01:00:00,a,-2.5\n2026-09-15T02:00:00,a,3\n")
    segwatch(tmp_path, "data", "insert", "--from", "plain.csv")
    (tmp_path / "zoned.csv").write_text("at,sensor,degrees\n2026-09-15 05:00:00+02:00,a,4\n2026-09-15T04:00:00Z,a,5\n")
    segwatch(tmp_path, "data", "insert", "--from", "zoned.csv")
    with duckdb.connect(tmp_path / "segwatch.duckdb", read_only=True) as connection:
        hours = connection.execute('select hour("at"), degrees from temperatures order by 1').fetchall()
    assert hours == [(1, -2.5), (2, 3.0), (3, 4.0), (4, 5.0)]
    (tmp_path / "mixed.csv").write_text("at,sensor,degrees\n2026-09-15 05:00:00,a,4\n2026-09-15 06:00:00Z,a,4\n")
    said = segwatch(tmp_path, "data", "insert", "--from", "mixed.csv", code=3).stderr
    assert "column 'at' (row 1)" in said
