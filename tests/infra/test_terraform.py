import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segwatch.data import generated_schema, labels_schema
from segwatch.steps import predictions_table
from segwatch.warehouses import bigquery

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
ENVS = ["dev", "test", "prod"]


def load_check():
    spec = importlib.util.spec_from_file_location("infra_check", INFRA / "schema" / "check.py")
    module = importlib.util.module_from_spec(spec)
    # A frozen dataclass looks its module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CHECK = load_check()
SCHEMA = json.loads((INFRA / "schema" / "provider.json").read_text(encoding="utf-8"))


@pytest.fixture
def copy(tmp_path):
    """A copy of infra/ to break, and what the check then says."""
    shutil.copytree(INFRA, tmp_path / "infra", ignore=shutil.ignore_patterns(".terraform"))

    def broken(file: str, old: str, new: str) -> list[str]:
        path = tmp_path / "infra" / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{file} no longer holds {old!r}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return CHECK.problems(tmp_path / "infra", SCHEMA)

    return broken


def test_every_block_fits_the_provider_and_every_module_its_callers():
    assert CHECK.problems(INFRA, SCHEMA) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("modules/storage/main.tf", "force_destroy ", "force_destroyed ", "has no argument force_destroyed"),
        ("modules/storage/main.tf", "  location                    = var.location\n", "", "segwatch needs location"),
        ("modules/storage/main.tf", "versioning {", "versionning {", "has no block versionning"),
        ("modules/storage/main.tf", "    enabled = true", "    enable = true", "versioning has no argument enable"),
        ("modules/storage/main.tf", '"encryption" {', '"encrypted" {', "has no block encrypted"),
        ("modules/storage/main.tf", "age = 7", "age = [7]", "age must be a number"),
        ("modules/storage/main.tf", "versioning {", "versioning {\n  }\n  versioning {", "versioning can stand once"),
        ("modules/bigquery/main.tf", 'type  = "DAY"\n', "\n", "time_partitioning needs type"),
        (
            "modules/bigquery/main.tf",
            "google_bigquery_dataset.segwatch.dataset_id",
            "google_bigquery_dataset.segwatch.datasetid",
            "has no attribute datasetid",
        ),
        (
            "modules/bigquery/main.tf",
            "google_bigquery_dataset.segwatch.dataset_id",
            "google_bigquery_dataset.segwotch.dataset_id",
            "there is no google_bigquery_dataset.segwotch",
        ),
        (
            "modules/bigquery/main.tf",
            'resource "google_bigquery_table" "metric"',
            'resource "google_bigquery_tables" "metric"',
            "run extract.py",
        ),
        ("modules/bigquery/main.tf", "local.mark", "local.marks", "there is no local marks"),
        (
            "modules/segwatch/main.tf",
            "  editors           = { pipeline = module.iam.pipeline_member }\n",
            "",
            "bigquery needs the variable editors",
        ),
        (
            "modules/segwatch/main.tf",
            "  dataset_id        =",
            "  dataset           =",
            "bigquery has no variable dataset",
        ),
        (
            "modules/segwatch/main.tf",
            "module.iam.deployer_member",
            "module.iam.deploy_member",
            "iam has no output deploy_member",
        ),
        ("modules/segwatch/main.tf", 'source = "../storage"', 'source = "../store"', "holds no .tf file"),
        ("modules/segwatch/main.tf", "  extra_apis = var.extra_apis\n", "", "nothing uses the variable extra_apis"),
        (
            "modules/segwatch/outputs.tf",
            "module.storage.bucket",
            "module.storage.buckets",
            "storage has no output buckets",
        ),
        ("envs/prod/main.tf", "var.bucket_name", "var.bucket", "there is no variable bucket"),
        ("modules/iam/versions.tf", "~> 6.50", ">= 6", "does not pin hashicorp/google to ~> 6.50"),
    ],
)
def test_the_check_names_what_is_broken(copy, file, old, new, said):
    found = copy(file, old, new)
    assert any(said in problem and problem.startswith(str(Path(file).parent)) for problem in found), found


def test_every_resource_that_can_bear_labels_bears_them():
    modules = (CHECK.read_module(path) for path in sorted((INFRA / "modules").iterdir()))
    bare = [
        f"{type_}.{name}"
        for module in modules
        for type_, name, block in module.typed("resource")
        if "labels" in SCHEMA["resource"][type_]["arguments"] and "labels" not in block
    ]
    assert bare == []


def test_no_account_has_a_role_of_an_owner_editor_or_administrator_of_a_project():
    text = "".join(path.read_text(encoding="utf-8") for path in INFRA.rglob("*.tf"))
    roles = set(re.findall(r'"(roles/[\w.]+)"', text))
    assert len(roles) > 10
    # Of the one bucket's objects only: held by the next assertion.
    assert [r for r in sorted(roles) if re.search(r"owner|editor$|admin", r, re.IGNORECASE)] == [
        "roles/bigquery.dataEditor",
        "roles/cloudbuild.builds.editor",
        "roles/storage.objectAdmin",
    ]
    iam = (INFRA / "modules" / "iam" / "main.tf").read_text(encoding="utf-8")
    assert not [role for role in ("dataEditor", "objectAdmin", "artifactregistry") if f"{role}" in iam]


@pytest.mark.parametrize("env", ENVS)
def test_environments_differ_only_in_their_name(env):
    folder, first = INFRA / "envs" / env, INFRA / "envs" / "dev"
    for path in sorted(first.glob("*.tf*")):
        expected = path.read_text(encoding="utf-8").replace('= "dev"', f'= "{env}"')
        assert (folder / path.name).read_text(encoding="utf-8") == expected


def test_the_readme_gives_a_reason_for_every_role_and_names_every_variable():
    readme = (INFRA / "README.md").read_text(encoding="utf-8")
    text = "".join(path.read_text(encoding="utf-8") for path in INFRA.rglob("*.tf"))
    roles = set(re.findall(r'"roles/([\w.]+)"', text))
    variables = CHECK.read_module(INFRA / "envs" / "dev").named("variable")
    assert [name for name in sorted({*roles, *variables}) if f"`{name}`" not in readme] == []


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """What Terraform itself makes of tables.tf for the dimensions b and a."""
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")
    root = tmp_path_factory.mktemp("tables")
    shutil.copytree(ROOT / "src" / "segwatch" / "data", root / "src" / "segwatch" / "data")
    folder = root / "infra" / "modules" / "bigquery"
    folder.mkdir(parents=True)
    # Without the resources no provider is asked for.
    (folder / "tables.tf").write_bytes((INFRA / "modules" / "bigquery" / "tables.tf").read_bytes())
    (folder / "variables.tf").write_text(
        'variable "dimensions" { default = ["b", "a"] }\nvariable "metric_table" { default = "m" }\n', encoding="utf-8"
    )
    said = subprocess.run(
        ["terraform", "console"],
        input="jsonencode([local.mark, local.predictions_schema, local.metric_tables])",
        cwd=folder,
        env={key: value for key, value in os.environ.items() if not key.startswith("TF_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(json.loads(said.stdout))


def fields(schema):
    return [(field["name"], field["type"], field["mode"]) for field in json.loads(schema.to_json())]


def planned(columns):
    return [(column["name"], column["type"], column["mode"]) for column in columns]


def test_terraform_makes_the_predictions_table_that_segwatch_makes(tables):
    assert planned(tables[1]) == fields(predictions_table(("b", "a")))


def test_terraform_makes_the_metric_tables_that_segwatch_makes(tables):
    assert planned(tables[2]["m"]["schema"]) == fields(generated_schema())
    assert planned(tables[2]["m_labels"]["schema"]) == fields(labels_schema())


def test_segwatch_takes_a_table_of_terraforms_for_its_own(tables):
    assert tables[0] == {bigquery.MARK: bigquery.VERSION}


def test_terraform_files_are_formatted():
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed")
    said = subprocess.run(
        ["terraform", "fmt", "-check", "-recursive", str(INFRA)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (said.returncode, said.stdout) == (0, "")
