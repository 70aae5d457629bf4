"""kill -9 at seeded random moments of train and infer: the old predictions and the old champion stand."""

import multiprocessing
import os
import random
import signal
import sys
import time

import duckdb
import pytest

from segwatch.core.bundle import ModelBundle
from segwatch.registries import open_registry

from .conftest import END, SPLIT, WATCHED

MOMENTS = 25


def run(folder, arguments):
    from segwatch.cli import main

    os.chdir(folder)
    sys.argv = ["segwatch", "-q", *arguments]
    main()


def forked(folder, *arguments):
    """The command in a process of its own, with the slow imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["segwatch.cli", "segwatch.runner", "segwatch.registries.mlflow", "segwatch.warehouses.duckdb", "sklearn.svm"]
    )
    process = context.Process(target=run, args=(str(folder), arguments))
    process.start()
    return process


def seconds(process):
    """How long a process takes to end well."""
    start = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - start


def published(folder):
    with duckdb.connect(folder / "segwatch.duckdb", read_only=True) as connection:
        return connection.execute("select run_id, count(*) from predictions group by all").fetchall()


@pytest.mark.parametrize("command", ["train", "infer"])
def test_killed_at_any_moment_it_leaves_old_or_new_and_the_next_run_ends_right(tmp_path, segwatch, command):
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "9", "--days", "200", "--end", END)
    segwatch(tmp_path, "train", "--as-of", SPLIT)
    score = ("infer", "--start", SPLIT, "--end", END)
    segwatch(tmp_path, *score)
    arguments = ("train", "--as-of", SPLIT) if command == "train" else score
    usual_seconds = seconds(forked(tmp_path, *arguments))
    registry = open_registry(f"sqlite:///{tmp_path / 'mlflow.db'}")
    moments = random.Random(7)
    killed = 0
    for i in range(4 * MOMENTS):
        process = forked(tmp_path, *arguments)
        start = time.monotonic()
        process.join(moments.uniform(0.02, 1.0) * usual_seconds)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        else:
            # Machines are not evenly fast: the moments follow the fastest run seen.
            usual_seconds = min(usual_seconds, time.monotonic() - start)
        assert [count for _, count in published(tmp_path)] == [WATCHED * 20]
        champion = registry.resolve("segwatch-new_users")
        ModelBundle.open(registry.download(champion, tmp_path / f"model-{i}"))
        if killed == MOMENTS:
            break
    assert killed == MOMENTS
    segwatch(tmp_path, *arguments)
    segwatch(tmp_path, *score)
    assert [count for _, count in published(tmp_path)] == [WATCHED * 20]
    with duckdb.connect(tmp_path / "segwatch.duckdb", read_only=True) as connection:
        newest = connection.execute("select distinct model_version from predictions").fetchall()
    assert newest == [(registry.resolve("segwatch-new_users").version,)]
