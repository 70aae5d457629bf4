"""What only a process of its own shows: signals, pipes, warnings, and the script of the data folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import END, ENVIRONMENT, SPLIT, TABLE, ask, change, in_process, published

MANAGE_DATA = Path(__file__).parents[2] / "data" / "manage_data.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory, segwatch):
    """A folder of its own with data, a champion and predictions."""
    folder = tmp_path_factory.mktemp("project")
    segwatch(folder, "init")
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--segments", "9", "--days", "300", "--end", END)
    segwatch(folder, "train", "--as-of", SPLIT)
    segwatch(folder, "infer", "--as-of", SPLIT)
    return folder


def obey_ctrl_c():
    # A shell starts what runs in its background with the signal ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("command", "step"),
    [
        (("train", "--as-of", SPLIT), "train"),
        (("train", "--as-of", SPLIT), "register"),
        (("infer", "--as-of", SPLIT), "featurize"),
    ],
)
def test_ctrl_c_ends_a_run_without_a_word_and_loses_nothing(project, segwatch, command, step):
    before = published(project)
    running = in_process(project, "--log-format", "json", *command, preexec_fn=obey_ctrl_c)
    assert any(f'"step": "{step}"' in line for line in running.stderr)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    assert (running.returncode, out) == (130, "")
    assert [line for line in err.splitlines() if '"event": "step"' not in line] == []
    assert published(project) == before
    assert "version\t1" in segwatch(project, "models", "show").stdout
    assert list((project / ".segwatch" / "runs").iterdir()) == []


def test_a_ctrl_c_that_python_would_forget_comes_again():
    code = """
import time, weakref
from segwatch.cli.main import interruptible

class Thing: pass

def callback(_):
    raise KeyboardInterrupt

with interruptible():
    thing = Thing()
    reference = weakref.ref(thing, callback)
    del thing
    for _ in range(1000):
        time.sleep(0.01)
    print("forgotten")
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=obey_ctrl_c)
    assert (finished.returncode, finished.stdout) == (-signal.SIGINT, "")
    assert "ignored" not in finished.stderr


def test_what_a_killed_run_left_behind_is_swept_a_day_later(project, segwatch):
    runs = project / ".segwatch" / "runs"
    for name, hours in (("old", 25), ("young", 23)):
        (runs / name / "bundle").mkdir(parents=True)
        os.utime(runs / name, times=(time.time() - hours * 3600,) * 2)
    segwatch(project, "infer", "--as-of", SPLIT)
    assert [path.name for path in runs.iterdir()] == ["young"]
    (runs / "young" / "bundle").rmdir()
    (runs / "young").rmdir()


@pytest.mark.parametrize("command", [("models", "list"), ("models", "show"), ("--help",), ("--version",)])
def test_a_reader_that_is_gone_is_no_traceback(project, command):
    read, write = os.pipe()
    os.close(read)
    writer = in_process(project, *command, stdout=write)
    os.close(write)
    _, err = writer.communicate()
    assert err == ""


def test_normal_commands_raise_no_warning(project):
    code = """
import sys
from segwatch.cli import main
for command in sys.argv[1:]:
    sys.argv = ["segwatch", "-q", *command.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
"""
    commands = [
        "create",
        f"train --as-of {SPLIT}",
        f"infer --as-of {SPLIT}",
        "report",
        "models list",
        "models promote 1",
    ]
    finished = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, *commands],
        cwd=project,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert (finished.returncode, finished.stderr) == (0, "")


def manage_data(folder, *arguments, answer=""):
    return subprocess.run(
        [sys.executable, MANAGE_DATA, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        input=answer,
        capture_output=True,
        text=True,
    )


def test_the_script_of_the_data_folder_inserts_and_truncates_what_segwatch_made(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    assert "segwatch create" in manage_data(tmp_path, "insert").stderr
    segwatch(tmp_path, "create")
    assert manage_data(tmp_path, "insert", "--segments", "3", "--days", "30", "--end", END).returncode == 0
    [(n_rows,)] = ask(tmp_path, f"select count(*) from {TABLE}")
    assert n_rows > 60
    refused = manage_data(tmp_path, "truncate", answer="n\n")
    assert refused.returncode == 2 and "nothing was removed" in refused.stderr
    assert ask(tmp_path, f"select count(*) from {TABLE}") == [(n_rows,)]
    assert manage_data(tmp_path, "truncate", answer="y\n").returncode == 0
    assert ask(tmp_path, f"select count(*) from {TABLE}") == [(0,)]


def test_the_script_of_the_data_folder_leaves_tables_of_anyone_else_alone(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    change(
        tmp_path,
        f"create table {TABLE} as select date '2026-11-01' as created_at, 'it' as country_code,"
        " 'ios' as platform, 'paid' as channel, 5::bigint as new_users",
    )
    segwatch(tmp_path, "create")
    for command in (("truncate", "--yes"), ("insert",)):
        refused = manage_data(tmp_path, *command)
        assert (refused.returncode, refused.stdout) == (3, "")
        assert refused.stderr.startswith(f"error: '{TABLE}' in ") and "was not made by segwatch" in refused.stderr
    assert ask(tmp_path, f"select count(*) from {TABLE}") == [(1,)]
