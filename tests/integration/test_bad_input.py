import duckdb
import pytest

from .conftest import END, SPLIT

TABLE = "new_users_metrics"


def change(folder, *statements):
    with duckdb.connect(folder / "segwatch.duckdb") as connection:
        for statement in statements:
            connection.execute(statement)


def settings(folder, old, new):
    path = folder / "segwatch.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def error(finished):
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: "), finished.stderr
    return lines[-1]


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
        ('"channel"]', '"value"]', "has the name of a column of the predictions table"),
        ("duckdb:///segwatch.duckdb", "oracle://x", "oracle://x"),
        ("sqlite:///mlflow.db", "${NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
    ],
)
def test_wrong_settings_name_the_key(tmp_path, segwatch, old, new, said):
    segwatch(tmp_path, "init")
    settings(tmp_path, old, new)
    assert said in error(segwatch(tmp_path, "create", code=2))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (f"drop table {TABLE}", TABLE),
        (f"alter table {TABLE} rename channel to chanel", "channel"),
        (f"alter table {TABLE} alter new_users type varchar", "new_users"),
        (f"alter table {TABLE} alter created_at type varchar", "created_at"),
        (f"insert into {TABLE} values ('2026-11-01', 'it', 'ios', 'paid', -3)", "negative"),
        (f"delete from {TABLE}", "no rows"),
    ],
)
def test_bad_tables_stop_train_and_infer_and_lose_nothing(trained, segwatch, statement, said):
    segwatch(trained, "infer", "--as-of", SPLIT)
    change(trained, statement)
    for command in (("train", "--as-of", END), ("infer", "--as-of", END)):
        assert said in error(segwatch(trained, *command, code=3))
    assert "version\t1" in segwatch(trained, "models", "show").stdout
    with duckdb.connect(trained / "segwatch.duckdb", read_only=True) as connection:
        assert connection.execute("select count(*) from predictions").fetchone() == (9,)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("infer", "--as-of", "2999-01-01"), 2, "future"),
        (("infer", "--as-of", "yesterday"), 2, "not a date"),
        (("infer", "--as-of", "2026-02-29"), 2, "not a date"),
        (("infer", "--start", SPLIT), 2, "both --start and --end"),
        (("infer", "--start", END, "--end", SPLIT), 2, "empty"),
        (("infer", "--as-of", "2001-01-01"), 3, "2001"),
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


def test_a_leap_day_is_a_day(trained, segwatch):
    rows = "created_at,country_code,platform,channel,new_users\n2024-02-29,it,ios,paid,5\n"
    (trained / "leap.csv").write_text(rows)
    segwatch(trained, "data", "insert", "--from", "leap.csv")
    segwatch(trained, "infer", "--start", "2024-02-29", "--end", "2024-03-01")


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
        ("created_at,country_code,platform,channel,new_users\n2026-11-01,it,ios,paid,\n", "NULL"),
        ("created_at,country_code,platform,channel,new_users\n2026-11-01,it,ios,paid,many\n", "many"),
        ("created_at,country_code,platform,channel,new_users\n2026-13-01,it,ios,paid,1\n", "2026-13-01"),
        ("created_at,country_code,platform,channel,new_users\n", "no rows"),
    ],
)
def test_files_that_do_not_fit_are_refused_whole(trained, segwatch, rows, said):
    (trained / "rows.csv").write_text(rows)
    assert said in error(segwatch(trained, "data", "insert", "--from", "rows.csv", code=3))


def test_segments_that_cannot_be_trained_are_named_and_the_others_are(tmp_path, segwatch):
    lines = ["created_at,country_code,platform,channel,new_users"]
    for i in range(150):
        day = str(__import__("datetime").date(2026, 11, 23) - __import__("datetime").timedelta(i))
        lines += [f"{day},it,constant,paid,5", f"{day},it,varied,paid,{50 + i % 9}"]
        lines += [f'{day},it,"quote\'s / ünï",,{20 + i % 7}']
        lines += [f"{day},it,gone,paid,{30 + i % 5}"] * (i >= 40)
        lines += [f"{day},NA,short,paid,{i % 5 + 1}"] * (i < 10)
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--from", "rows.csv")
    said = segwatch(tmp_path, "train", "--as-of", END).stderr
    assert "5, 3 fitted" in said
    segwatch(tmp_path, "infer", "--as-of", END)
    with duckdb.connect(tmp_path / "segwatch.duckdb", read_only=True) as connection:
        rows = dict(connection.execute("select platform, status from predictions").fetchall())
        channels = connection.execute("select channel from predictions where platform like 'quote%'").fetchall()
    assert rows == {
        "constant": "constant",
        "varied": "ok",
        "quote's / ünï": "ok",
        "short": "too_short",
        "gone": "ended",
    }
    assert channels == [("<null>",)]
