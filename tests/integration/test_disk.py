"""A disk that is full, or may not be written: exit code 4, one sentence, and the old predictions and champion stand."""

import contextlib
import re
import resource
import shutil
import subprocess

import pytest

from .conftest import END, SPLIT, ask, edit_settings, error, in_process, published

INSERT = ("data", "insert", "--segments", "3", "--days", "150", "--end", END)
TRAIN = ("train", "--as-of", SPLIT)
INFER = ("infer", "--start", SPLIT, "--end", END)
FULL = "the disk that holds .* is full: free some space|met a full disk; free some space"
LIMITED = r"may not grow: raise the limit on the size of files|met the limit on the size of files; raise it"


@pytest.fixture
def disk(tmp_path):
    """A folder with a small disk of its own; a plain folder where nothing may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True)
    yield folder
    if folder.is_mount():
        # Lazily: a memory-mapped model may still be open.
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def full(disk):
    """While the context is open the disk has no room for another byte."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def limited():
    """While the context is open no file of this process may grow, on whatever disk it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["full disk", "limit on the size of files"])
def test_a_refusal_of_bytes_stops_what_writes_loses_nothing_and_is_over_when_it_is_over(disk, tmp_path, segwatch, kind):
    # Run from home, only the warehouse and the registry are on the disk; run from the disk, the work directory too.
    home = tmp_path / "home"
    home.mkdir()
    segwatch(home, "init")
    for name in ("segwatch.duckdb", "mlflow.db"):
        edit_settings(home, f"///{name}", f"///{disk}/{name}")
    shutil.copy(home / "segwatch.toml", disk)
    for command in (("create",), INSERT, TRAIN, INFER, ("report",)):
        segwatch(disk, *command)
    before = (
        published(disk),
        ask(disk, "from new_users_metrics order by all"),
        (disk / "segwatch-report.html").read_text(),
    )

    is_disk = kind == "full disk" and disk.is_mount()
    with full(disk) if is_disk else limited():
        for folder, command in (
            (disk, TRAIN),
            (disk, INFER),
            (disk, ("report",)),
            (home, TRAIN),
            (home, INFER),
            (home, INSERT),
        ):
            assert re.search(FULL if is_disk else LIMITED, error(segwatch(folder, *command, code=4)))
    after = (
        published(disk),
        ask(disk, "from new_users_metrics order by all"),
        (disk / "segwatch-report.html").read_text(),
    )
    assert after == before
    assert [path.name for path in (disk / ".segwatch" / "runs").iterdir()] == []
    _, *listed = segwatch(home, "models", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in listed] == ["1"]
    for command in (INSERT, TRAIN, INFER, ("report",)):
        segwatch(disk, *command)
    assert "version\t2" in segwatch(home, "models", "show").stdout


@pytest.mark.parametrize(
    ("path", "mode", "command", "said"),
    [
        ("segwatch.duckdb", 0o400, ("infer", "--as-of", SPLIT), "segwatch.duckdb may not be written: grant the right"),
        (
            ".segwatch/runs",
            0o500,
            ("infer", "--as-of", SPLIT),
            "the work directory .* may not be used: grant the right",
        ),
        ("rows.csv", 0o000, ("data", "insert", "--from", "rows.csv"), "rows.csv may not be used: grant the right"),
        (".", 0o500, ("report",), "segwatch-report.html may not be used: grant the right"),
        (".", 0o500, ("--settings", "new.toml", "init"), "new.toml may not be used: grant the right"),
    ],
)
def test_what_may_not_be_read_or_written_is_named_and_the_old_predictions_stand(
    trained, segwatch, no_override, path, mode, command, said
):
    segwatch(trained, "infer", "--as-of", SPLIT)
    before = published(trained)
    (trained / "rows.csv").touch()
    usual = (trained / path).stat().st_mode
    (trained / path).chmod(mode)
    try:
        refused = in_process(trained, *command, before=no_override)
        out, err = refused.communicate()
    finally:
        (trained / path).chmod(usual)
    assert (refused.returncode, out) == (4, "")
    assert re.fullmatch(f"error: .*{said}.*\n", err)
    assert published(trained) == before
