import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from segwatch.cli import main

END = "2026-11-24"
SPLIT = "2026-11-04"


@dataclass(frozen=True)
class Said:
    """What a command printed."""

    stdout: str
    stderr: str


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
    import shutil

    folder = tmp_path / "project"
    shutil.copytree(trained_template, folder)
    text = (folder / "segwatch.toml").read_text()
    registry = f'registry = "sqlite:///{trained_template / "mlflow.db"}"'
    (folder / "segwatch.toml").write_text(text.replace('registry = "sqlite:///mlflow.db"', registry))
    return folder
