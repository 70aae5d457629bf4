import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLOUD = ["PROJECT_ID=my-project", "BUCKET_NAME=my-bucket"]
RECORD = '#!/bin/sh\necho "$(basename "$0") $* [$PROJECT_ID $BUCKET_NAME $ENV]" >> "$RECORD"\n'


@dataclass(frozen=True)
class Made:
    code: int
    output: str
    calls: list[str]


@pytest.fixture
def make(tmp_path):
    """Runs make on a committed copy; terraform, gcloud and segwatch are stubs that write down how they were called."""
    project, programs, record = tmp_path / "project", tmp_path / "programs", tmp_path / "calls"
    for name in ("dev", "test", "prod"):
        (project / "infra" / "envs" / name).mkdir(parents=True)
        (project / "infra" / "envs" / name / "main.tf").touch()
    shutil.copy(ROOT / "Makefile", project)
    (project / "segwatch.toml").write_text("default_target = 'dev'\n", encoding="utf-8")
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        (project / name).touch()
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-C", str(project)]
    for arguments in (
        ["init", "-q"],
        ["add", "pyproject.toml", "setup.py", "constraints.txt"],
        ["commit", "-qm", "first"],
    ):
        subprocess.run([*git, *arguments], check=True, timeout=30)
    for path in (programs / "terraform", programs / "gcloud", project / ".venv" / "bin" / "segwatch"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORD, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    for name in ("installed-base", "installed-cloud"):
        (project / ".venv" / name).touch()

    def run(*arguments: str) -> Made:
        record.write_text("", encoding="utf-8")
        clean = {
            k: v
            for k, v in os.environ.items()
            if k not in {"PROJECT_ID", "BUCKET_NAME", "ENV", "REGION", "TAG", "MAKEFLAGS"}
        }
        environment = clean | {"PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record)}
        said = subprocess.run(
            ["make", "--no-print-directory", *arguments],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Made(said.returncode, said.stdout + said.stderr, record.read_text(encoding="utf-8").splitlines())

    run.project = project
    return run


def programs_and_verbs(made):
    return [
        next(" ".join([call.split()[0], word]) for word in call.split()[1:] if not word.startswith(("-", "segwatch.t")))
        for call in made.calls
    ]


def test_a_plan_is_of_the_environment_and_its_state(make):
    made = make("infra-plan", *CLOUD, "ENV=test", "REGION=europe-west8")
    assert made.code == 0, made.output
    assert made.calls == [
        "terraform -chdir=infra/envs/test init -input=false -reconfigure -backend-config=bucket=my-bucket-tfstate"
        " -backend-config=prefix=segwatch/test [my-project my-bucket test]",
        "terraform -chdir=infra/envs/test plan -var project_id=my-project -var bucket_name=my-bucket"
        " -var region=europe-west8 [my-project my-bucket test]",
    ]


def test_an_image_is_tagged_with_the_revision_and_built_as_the_deployer(make):
    made = make("image", *CLOUD, "ENV=prod")
    assert made.code == 0, made.output
    (call,) = made.calls
    tag = subprocess.run(
        ["git", "-C", make.project, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert f"_IMAGE=us-central1-docker.pkg.dev/my-project/segwatch-prod/segwatch:{tag},_REVISION={tag}" in call
    assert "_DEPLOYER=segwatch-deployer-prod@my-project.iam.gserviceaccount.com" in call
    assert "--gcs-source-staging-dir=gs://my-bucket-prod/builds" in call


def test_an_image_of_uncommitted_code_is_refused(make):
    (make.project / "pyproject.toml").write_text("changed", encoding="utf-8")
    made = make("image", *CLOUD)
    assert made.code == 2
    assert "commit the changes" in made.output
    assert made.calls == []


def test_create_in_prod_makes_the_infrastructure_the_image_the_tables_and_the_pipelines(make):
    made = make("create", "TARGET=prod", *CLOUD)
    assert made.code == 0, made.output
    assert programs_and_verbs(made) == [
        "terraform init",
        "terraform apply",
        "gcloud builds",
        "segwatch prod",
        "segwatch prod",
    ]
    segwatch = "segwatch --settings segwatch.toml --target prod"
    assert made.calls[-2:] == [
        f"{segwatch} create [my-project my-bucket dev]",
        f"{segwatch} compile --upload [my-project my-bucket dev]",
    ]


def test_destroy_in_prod_removes_what_segwatch_made_before_what_it_stands_on(make):
    made = make("destroy", "TARGET=prod", *CLOUD)
    assert made.code == 0, made.output
    assert programs_and_verbs(made) == ["segwatch prod", "terraform init", "terraform destroy"]
    assert not [call for call in made.calls if "approve" in call or "--yes" in call]


def test_nothing_is_destroyed_when_segwatch_was_told_not_to(make):
    (make.project / ".venv" / "bin" / "segwatch").write_text("#!/bin/sh\nexit 2\n", encoding="utf-8")
    made = make("destroy", "TARGET=prod", *CLOUD)
    assert made.code == 2
    assert made.calls == []


@pytest.mark.parametrize("command", ["create", "destroy"])
def test_the_local_target_needs_no_cloud(make, command):
    made = make(command)
    assert made.code == 0, made.output
    assert made.calls == [f"segwatch --settings segwatch.toml --target dev {command} [  dev]"]


def test_data_of_prod_does_not_apply_the_infrastructure_again(make):
    made = make("data", "TARGET=prod", *CLOUD)
    assert programs_and_verbs(made) == ["segwatch prod"], made.output


@pytest.mark.parametrize("goal", ["infra-init", "infra-plan", "infra-apply", "infra-destroy", "image"])
@pytest.mark.parametrize(("arguments", "said"), [
    (["BUCKET_NAME=b"], "PROJECT_ID is empty"),
    (["PROJECT_ID=p"], "BUCKET_NAME is empty"),
    ([*CLOUD, "ENV=qa"], "ENV is qa, it must be dev, test or prod"),
    ([*CLOUD, "TERRAFORM=no-terraform", "GCLOUD=no-gcloud"], "is not installed: install it or name it with"),
])  # fmt: skip
def test_a_cloud_target_refuses_with_one_sentence(make, goal, arguments, said):
    made = make(goal, *arguments)
    assert made.code == 2
    assert said in made.output
    assert len(made.output.splitlines()) == 1
    assert made.calls == []


@pytest.mark.parametrize("goal", ["create", "destroy"])
def test_prod_is_refused_before_anything_is_made(make, goal):
    made = make(goal, "TARGET=prod")
    assert (made.code, made.calls) == (2, [])
    assert "PROJECT_ID is empty: make " + goal in made.output


def test_a_dry_run_shows_the_whole_chain_and_runs_none_of_it(make):
    made = make("-n", "create", "TARGET=prod", *CLOUD)
    assert (made.code, made.calls) == (0, [])
    order = [made.output.index(part) for part in (" apply ", "builds submit", "segwatch --settings")]
    assert order == sorted(order)


def test_help_names_every_target_once(make):
    lines = [line.split()[0] for line in make("help").output.splitlines() if line and not line.startswith("Variables")]
    assert len(lines) == len(set(lines))
    assert {"infra-init", "infra-plan", "infra-apply", "infra-destroy", "image", "create", "destroy"} <= set(lines)
