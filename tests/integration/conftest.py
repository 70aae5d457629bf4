import os
import subprocess
import sys
from pathlib import Path

import pytest

END = "2026-11-24"
SPLIT = "2026-11-04"


@pytest.fixture(scope="session")
def segwatch():
    """Runs the installed command line in a folder, as a user would."""

    def run(folder: Path, *arguments: str, code: int = 0, environment=None) -> subprocess.CompletedProcess[str]:
        finished = subprocess.run(
            [sys.executable, "-c", "from segwatch.cli import main; main()", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, **(environment or {})},
            timeout=120,
        )
        assert "Traceback" not in finished.stderr, finished.stderr
        assert finished.returncode == code, finished.stderr + finished.stdout
        return finished

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
