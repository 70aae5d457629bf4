"""A version says what it was made from."""

import subprocess

import pytest

from segwatch.cli.session import git_revision
from segwatch.registries import open_registry
from segwatch.settings import load_settings
from segwatch.steps import settings_digest


def tags(folder):
    return open_registry(f"sqlite:///{folder / 'mlflow.db'}").versions("segwatch-new_users")[0].tags


def git(folder, *arguments):
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.com"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_a_version_names_the_commit_and_the_settings_it_was_made_from(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "2", "--days", "130", "--end", "2026-11-24")
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    segwatch(tmp_path, "train", "--as-of", "2026-11-20")
    assert tags(tmp_path)["segwatch.git_revision"] == git(tmp_path, "rev-parse", "HEAD").strip()
    metric = load_settings(tmp_path / "segwatch.toml").metric("new_users")
    assert tags(tmp_path)["segwatch.settings_digest"] == settings_digest(metric)
    assert settings_digest(metric) != settings_digest(metric.model_copy(update={"alpha": 0.02}))


@pytest.mark.parametrize("where", ["in no repository", "before the first commit", "without git"])
def test_where_there_is_no_commit_there_is_no_revision(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    # Whatever repository the temporary directory may be in is not the project's.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if where == "before the first commit":
        git(tmp_path, "init", "-q")
    if where == "without git":
        monkeypatch.setenv("PATH", "")
    assert git_revision() == ""
