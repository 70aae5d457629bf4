"""Installing where there is no compiler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_without_a_compiler_the_installation_succeeds_and_says_what_is_missing(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "CHANGELOG.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    install = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--quiet"]
    environment = {**os.environ, "CC": "no-such-compiler", "CXX": "no-such-compiler"}
    done = subprocess.run(
        [*install, "--target", str(target), str(source)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(target.rglob("*.so")) and (target / "segwatch" / "report" / "page.html").exists()
    for name in ("report/palette.css", "ui/templates/base.html", "ui/static/page.css", "data/backtests_schema.json"):
        assert (target / "segwatch" / name).exists()
    program = "from segwatch.core import compiled, solver; print(solver.instruction_sets(), compiled.notice())"
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert said.startswith("() segwatch was installed without its compiled code") and "C++ compiler" in said


def test_training_without_the_compiled_code_says_so_once(tmp_path, segwatch):
    segwatch(tmp_path, "init")
    segwatch(tmp_path, "create")
    segwatch(tmp_path, "data", "insert", "--segments", "4", "--days", "120")
    program = """
import sys
sys.modules["segwatch.core._native"] = None
sys.argv = ["segwatch", *sys.argv[1:]]
from segwatch.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "train"], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stderr.split()).count("installed without its compiled code") == 1
