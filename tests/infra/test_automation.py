import html
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
BUILD = yaml.safe_load((ROOT / "infra" / "cloudbuild.yaml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_workflow_runs_checks_and_tests_on_each_python_that_is_supported():
    job = WORKFLOW["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert any("make check test" in step.get("run", "") for step in job["steps"])


def test_the_workflow_can_only_read_and_never_runs_twice_for_one_branch():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    assert "secrets." not in json.dumps(WORKFLOW)


def test_every_action_is_pinned_to_a_major_version_or_a_revision():
    actions = [step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step]
    assert actions
    assert [action for action in actions if not re.search(r"@(v\d+|[0-9a-f]{40})$", action)] == []


def test_every_make_target_of_the_workflow_exists():
    steps = (step.get("run", "") for job in WORKFLOW["jobs"].values() for step in job["steps"])
    goals = {word for run in steps for line in re.findall(r"make ([^\n]+)", run) for word in line.split()}
    assert [goal for goal in sorted(goals) if "=" not in goal and not re.search(f"^{goal}:", MAKEFILE, re.M)] == []


def test_every_job_of_the_workflow_ends():
    assert [name for name, job in WORKFLOW["jobs"].items() if "timeout-minutes" not in job] == []


def test_the_build_uses_each_substitution_that_make_passes_and_no_other():
    text = json.dumps({key: value for key, value in BUILD.items() if key != "substitutions"})
    used = set(re.findall(r"\$\{(_\w+)\}", text))
    passed = set(re.findall(r"(_[A-Z]+)=", MAKEFILE.split("--substitutions=", 1)[1].splitlines()[0]))
    assert used == passed == set(BUILD["substitutions"])


def test_the_build_script_is_valid_shell():
    (step,) = BUILD["steps"]
    said = subprocess.run(["sh", "-n"], input=step["args"][-1], text=True, capture_output=True, timeout=10, check=False)
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("name", ["BUILD", "WORKFLOW"])
def test_nothing_is_pushed_under_a_tag_that_moves(name):
    assert "latest" not in json.dumps(globals()[name]).replace("ubuntu-latest", "")


def test_the_image_is_pinned_has_no_root_and_takes_only_what_it_is_made_of():
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    builder, last = re.findall(r"^FROM (\S+)", dockerfile, re.M)
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", last)
    # The same Python, with a compiler.
    assert builder == last.replace("-slim", "")
    assert re.findall(r"^USER (.+)", dockerfile, re.M) == ["${RUN_AS}"]
    assert re.findall(r"^ARG RUN_AS=(\d+)", dockerfile, re.M) != ["0"]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.M))
    assert {f"!{name}" for names in copied for name in names.split()} <= set(ignored)
    assert "*" in ignored


def test_the_drawing_was_drawn_from_its_source():
    source = (ROOT / "docs" / "infrastructure.dot").read_text(encoding="utf-8")
    lines = {line.strip() for label in re.findall(r'label="([^"]+)"', source) for line in label.split(r"\n")}
    drawn = (ROOT / "docs" / "infrastructure.svg").read_text(encoding="utf-8")
    texts = {
        html.unescape(text).replace("\xa0", " ").strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    }
    assert lines == texts
