"""Nothing that a user can set or type is missing from the README."""

from pathlib import Path

import typer

from segwatch.cli import app
from segwatch.settings import Alert, Metric, Settings, Target

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(group, path=()):
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        yield from commands(command, (*path, name)) if inner else [" ".join(("segwatch", *path, name))]


def test_every_command_is_in_the_readme():
    missing = [name for name in commands(typer.main.get_command(app)) if f"`{name}`" not in README]
    assert missing == []


def test_every_setting_is_in_the_readme():
    tables = {"targets", "metrics", "channels", "alerts"}
    keys = {*Metric.model_fields, *Target.model_fields, *Settings.model_fields} - tables
    assert [key for key in sorted(keys) if not any(f"{quote}{key}`" in README for quote in ("`", "."))] == []


def test_every_key_of_a_rule_is_told_with_alerts():
    text = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
    assert [key for key in Alert.model_fields if f"| `{key}` |" not in text] == []


def test_no_module_is_over_40_kilobytes():
    assert [path.name for path in (ROOT / "src").rglob("*.py") if path.stat().st_size > 40_000] == []
