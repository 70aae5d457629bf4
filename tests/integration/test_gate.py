"""A candidate becomes champion only if it is not clearly worse on the same rows."""

import duckdb
import pytest

from .conftest import END, SPLIT, WATCHED


@pytest.fixture
def folder(tmp_path, segwatch):
    """Version 1 is champion, trained to SPLIT."""
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "9", "--days", "300", "--end", END)
    segwatch(tmp_path, "train", "--as-of", SPLIT)
    return tmp_path


def champion(folder, segwatch):
    return segwatch(folder, "models", "show").stdout.split("version\t")[1].split("\n")[0]


def spoil(folder):
    """A bug upstream: every value of the training Window is multiplied at random, up to tenfold."""
    with duckdb.connect(folder / "segwatch.duckdb") as connection:
        connection.execute("select setseed(0.5)")
        connection.execute(
            "update new_users_metrics set new_users = new_users * (1 + 9 * random())::int"
            " where created_at < date '2026-11-12'"
        )


def gate_tag(folder, version):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return connection.execute(
            "select value from model_version_tags where key = 'segwatch.gate' and version = ?", [version]
        ).fetchone()[0]


def test_training_again_on_new_days_makes_a_champion(folder, segwatch):
    segwatch(folder, "train", "--as-of", END)
    assert champion(folder, segwatch) == "2"
    segwatch(folder, "train", "--as-of", END)
    assert champion(folder, segwatch) == "3"
    assert gate_tag(folder, 3) == "passed"


@pytest.mark.parametrize("runner", ["local", "kfp-local"])
def test_a_model_of_spoilt_data_is_registered_and_not_promoted_unless_forced(folder, segwatch, runner):
    spoil(folder)
    said = segwatch(folder, "train", "--as-of", END, "--runner", runner).stderr
    assert "not promoted: it finds" in " ".join(said.split())
    assert champion(folder, segwatch) == "1"
    assert gate_tag(folder, 2).startswith("not promoted: it finds")
    segwatch(folder, "infer", "--as-of", END)
    segwatch(folder, "train", "--as-of", END, "--force", "--runner", runner)
    assert champion(folder, segwatch) == "3"
    assert gate_tag(folder, 3).startswith("forced, although it finds")


def test_a_model_that_is_too_old_scores_nothing(folder, segwatch):
    path = folder / "segwatch.toml"
    path.write_text(path.read_text().replace("# max_model_age = 0", "max_model_age = 7"))
    segwatch(folder, "infer", "--as-of", "2026-11-12")
    said = segwatch(folder, "infer", "--as-of", "2026-11-13", code=3).stderr
    assert "trained to 2026-11-04, 8 days before 2026-11-12, and max_model_age is 7" in said
    with duckdb.connect(folder / "segwatch.duckdb", read_only=True) as connection:
        assert connection.execute("select count(*) from predictions").fetchone() == (WATCHED,)
        tables = [name for (name,) in connection.execute("select table_name from duckdb_tables()").fetchall()]
    assert not any(name.startswith("segwatch_features_") for name in tables)


def test_infer_warns_where_the_data_are_no_longer_what_they_were(folder, segwatch):
    # A week in which nothing else happens, and before the change is the new normal.
    score = ("infer", "--start", "2026-11-14", "--end", "2026-11-21")
    assert "warning" not in segwatch(folder, *score).stderr
    with duckdb.connect(folder / "segwatch.duckdb") as connection:
        connection.execute(
            "update new_users_metrics set new_users = (new_users * 0.4)::int where created_at >= date '2026-11-14'"
        )
    for runner in ("local", "kfp-local"):
        said = " ".join(segwatch(folder, *score, "--runner", runner).stderr.split())
        assert "spreads from training's in the feature long" in said
        assert "of 1,000 rows alert where" in said
