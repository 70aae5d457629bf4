import contextlib
import csv
import datetime as dt
import io
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

from segwatch.cli import main

END = "2026-11-24"
SPLIT = "2026-11-04"
TABLE = "new_users_metrics"
COMMAND = Path(sys.executable).with_name("segwatch")
OWN_METRIC = """
[targets.dev]
warehouse = "duckdb:///segwatch.duckdb"
registry = "sqlite:///mlflow.db"
[metrics.revenue]
table = "revenue"
time = "day"
value = "eur"
dimensions = ["country"]
missing = "MISSING"
"""
OWN_RATIO = """
[targets.dev]
warehouse = "duckdb:///segwatch.duckdb"
registry = "sqlite:///mlflow.db"
[metrics.conversion]
table = "shop"
time = "day"
value = "orders"
denominator = "visits"
dimensions = DIMENSIONS
"""
# The generator's nine segments have seven roll-ups: the total, three platforms and three channels of one country.
SEGMENTS, ROLLUPS = 9, 7
WATCHED = SEGMENTS + ROLLUPS
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SEGWATCH_")}


@dataclass(frozen=True)
class Said:
    """What a command printed."""

    stdout: str
    stderr: str


def change(folder, *statements):
    """Changes the database behind segwatch's back."""
    with duckdb.connect(folder / "segwatch.duckdb") as connection:
        for statement in statements:
            connection.execute(statement)


def ask(folder, query):
    with duckdb.connect(folder / "segwatch.duckdb", read_only=True) as connection:
        return connection.execute(query).fetchall()


def published(folder):
    return ask(folder, "from predictions order by all")


def edit_settings(folder, old, new):
    path = folder / "segwatch.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def error(said):
    """The error that a command told, which must be its only line."""
    lines = [line for line in said.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), said.stderr
    return lines[0]


def own_metric(folder, missing, values, days=150):
    """Settings of a metric of the user's own, one dimension and a FLOAT, and rows.csv with days of it before END.

    values: what each country has on the i-th day before END.
    """
    (folder / "segwatch.toml").write_text(OWN_METRIC.replace("MISSING", missing))
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["day", "country", "eur"])
        for i in range(days):
            day = dt.date.fromisoformat(END) - dt.timedelta(days=i + 1)
            writer.writerows([day, country, value(i)] for country, value in values.items())


def in_process(folder, *arguments, before=(), **options):
    """The command as a process of its own, to be waited for."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [*before, COMMAND, *arguments], cwd=folder, text=True, **{"env": ENVIRONMENT, **pipes, **options}
    )


@contextlib.contextmanager
def held(code, path):
    """While the context is open another process holds a file, as the code says: it prints a line when it does."""
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import sys\npath = sys.argv[1]\n{code}\nsys.stdin.read()", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.communicate()


@pytest.fixture(scope="session")
def segwatch():
    """Runs the command line in a folder and holds it to its exit code. In this process, as importing takes seconds."""

    def run(folder: Path, *arguments: str, code: int = 0) -> Said:
        out, err = io.StringIO(), io.StringIO()
        exit_code: int | str | None = 0
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["segwatch", *arguments])
            patch.setattr(sys, "stdin", io.StringIO())
            try:
                main()
            except SystemExit as stop:
                exit_code = stop.code
        assert (exit_code or 0) == code, err.getvalue() + out.getvalue()
        return Said(out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def trained_template(tmp_path_factory, segwatch):
    """A folder with data and a champion trained to SPLIT."""
    folder = tmp_path_factory.mktemp("trained")
    segwatch(folder, "init")
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--segments", "9", "--days", "300", "--end", END)
    segwatch(folder, "train", "--as-of", SPLIT)
    return folder


@pytest.fixture
def trained(tmp_path, trained_template):
    """A copy of the trained folder. The registry holds absolute paths, so the model is registered in place."""
    folder = tmp_path / "project"
    shutil.copytree(trained_template, folder)
    text = (folder / "segwatch.toml").read_text()
    registry = f'registry = "sqlite:///{trained_template / "mlflow.db"}"'
    (folder / "segwatch.toml").write_text(text.replace('registry = "sqlite:///mlflow.db"', registry))
    return folder
