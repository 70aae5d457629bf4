"""Settings that are wrong, in the file or in a variable: exit code 2, and the thing is named."""

import pytest

from .conftest import edit_settings, error, in_process


@pytest.fixture
def project(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SEGWATCH_FOO", "1", "SEGWATCH_FOO sets no key"),
        ("segwatch_foo", "1", "segwatch_foo sets no key"),
        ("SEGWATCH_", "1", "SEGWATCH_ sets no key"),
        ("SEGWATCH_DEFAULT_TARGET__X", "1", "SEGWATCH_DEFAULT_TARGET__X sets no key"),
        ("SEGWATCH_DEFAULT_TARGET", "nowhere", "no target 'nowhere'"),
        ("SEGWATCH_METRICS__NEW_USERS__ALHPA", "1", "unknown key 'metrics.new_users.alhpa' (set by SEGWATCH_METRICS__"),
        ("SEGWATCH_METRICS__NEW_USERS__ALPHA", "much", "(set by SEGWATCH_METRICS__NEW_USERS__ALPHA)"),
        ("SEGWATCH_METRICS__NEW_USERS__ALPHA", "", "(set by SEGWATCH_METRICS__NEW_USERS__ALPHA)"),
        ("SEGWATCH_METRICS__NEW_USERS__ALPHA__X", "1", "(set by SEGWATCH_METRICS__NEW_USERS__ALPHA__X)"),
        ("SEGWATCH_METRICS__NEW__ALPHA", "0.1", "'metrics.new.table' is missing (set by SEGWATCH_METRICS__NEW__ALPHA)"),
        ("SEGWATCH_METRICS__NEW_USERS__DIMENSIONS", "a,b", "SEGWATCH_METRICS__NEW_USERS__DIMENSIONS is not JSON"),
        ("SEGWATCH_METRICS", "new_users", "SEGWATCH_METRICS is not JSON"),
        (
            "SEGWATCH_TARGETS__DEV__BUCKETS",
            "b",
            "unknown key 'targets.dev.buckets' (set by SEGWATCH_TARGETS__DEV__BUCKETS)",
        ),
    ],
)
def test_a_variable_that_cannot_be_followed_is_named(project, segwatch, monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    assert said in error(segwatch(project, "create", code=2))
    assert sorted(path.name for path in project.iterdir()) == ["segwatch.toml"]


def test_a_variable_of_each_kind_is_followed(project, segwatch, monkeypatch):
    monkeypatch.setenv("SEGWATCH_PREDICTIONS_TABLE", "scores")
    monkeypatch.setenv("SEGWATCH_METRICS__NEW_USERS__ALPHA", "0.02")
    monkeypatch.setenv("SEGWATCH_METRICS__NEW_USERS__DIMENSIONS", '["country_code", "platform"]')
    monkeypatch.setenv("segwatch_targets__dev__warehouse", "duckdb:///other.duckdb")
    said = " ".join(segwatch(project, "create").stderr.split())
    assert "scores, incidents, detectability, labels, deliveries, audit, backtests, new_users_metrics" in said
    assert (project / "other.duckdb").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'default_target = "d\xff"', "is not UTF-8 at byte 19: save it as UTF-8"),
        (b"a = [", "is not TOML: Invalid value (at end of document); mend that line"),
        (b"a = 1\na = 2\n", "is not TOML: Cannot overwrite a value (at line 2, column 6)"),
        (b"", "the key 'targets' is missing; the key 'metrics' is missing"),
        (b"\x00\x01\x02", "is not TOML"),
    ],
)
def test_a_file_that_is_no_settings_is_named(project, segwatch, content, said):
    (project / "segwatch.toml").write_bytes(content)
    for command in ("create", "train", "infer", "report", "destroy"):
        told = error(segwatch(project, command, code=2))
        assert "segwatch.toml" in told and said in told


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("CALENDAR", "New_users_metrics", "calendar is 'New_users_metrics', the metric's own table: name the table of"),
        ("DIMENSIONS", '["country_code", "Event"]', "the dimension 'Event' has the name of a column of the calendar"),
    ],
)
def test_a_calendar_that_cannot_be_one_is_named(project, segwatch, monkeypatch, key, value, said):
    monkeypatch.setenv("SEGWATCH_METRICS__NEW_USERS__CALENDAR", "days")
    monkeypatch.setenv(f"SEGWATCH_METRICS__NEW_USERS__{key}", value)
    assert said in error(segwatch(project, "create", code=2))


def test_only_a_metric_with_a_calendar_refuses_the_names_of_its_columns(project, segwatch, monkeypatch):
    monkeypatch.setenv("SEGWATCH_METRICS__NEW_USERS__DIMENSIONS", '["country_code", "event"]')
    segwatch(project, "create")


def test_a_folder_in_place_of_the_settings_file_is_named(tmp_path, segwatch):
    (tmp_path / "segwatch.toml").mkdir()
    assert "segwatch.toml is a folder: name a file in it" in error(segwatch(tmp_path, "train", code=2))
    assert "segwatch.toml is a folder: name a file in it" in error(segwatch(tmp_path, "init", "--force", code=2))


def test_a_settings_file_that_may_not_be_read_is_named(project, no_override):
    (project / "segwatch.toml").chmod(0)
    reader = in_process(project, "train", before=no_override)
    out, err = reader.communicate()
    assert (reader.returncode, out) == (2, "")
    assert err == (
        "error: the settings file segwatch.toml cannot be read (Permission denied): grant the right to read it, or"
        " name another with --settings\n"
    )


def test_a_warehouse_or_registry_in_a_folder_that_is_not_there_is_named(project, segwatch):
    segwatch(project, "create")
    edit_settings(project, "sqlite:///mlflow.db", "sqlite:///nowhere/mlflow.db")
    for command in (("create",), ("models", "list"), ("destroy", "--yes")):
        assert "nowhere of the registry" in error(segwatch(project, *command, code=4))
    edit_settings(project, "duckdb:///segwatch.duckdb", "duckdb:///nowhere/segwatch.duckdb")
    assert "there is no folder" in error(segwatch(project, "create", code=4))
    for command in (("train",), ("infer",), ("report",), ("data", "insert")):
        assert "segwatch.duckdb: run `segwatch create`" in error(segwatch(project, *command, code=4))
    assert not (project / "nowhere").exists()


def test_a_target_that_is_not_used_asks_for_no_variables(tmp_path, segwatch, monkeypatch):
    for name in ("PROJECT_ID", "BUCKET_NAME", "ENV", "REGION", "TAG"):
        monkeypatch.delenv(name, raising=False)
    segwatch(tmp_path, "init")
    assert "${PROJECT_ID}" in (tmp_path / "segwatch.toml").read_text()
    segwatch(tmp_path, "create")
    said = segwatch(tmp_path, "--target", "prod", "create", code=2)
    assert "no variable PROJECT_ID" in said.stderr
