"""Jobs and schedules on Vertex AI: the real client against a fake that holds requests to the real messages."""

import json

import pytest

from ..fakes.pipelines import PipelinesFake
from ..fakes.vertex import running

PROD = """
[targets.cloud]
warehouse = "bigquery://my-project/anomalies"
registry = "vertex"
runner = "vertex"
bucket = "gs://models/segwatch"
image = "us-docker.pkg.dev/my-project/segwatch/segwatch:1"
shards = 2
[targets.cloud.google]
project = "my-project"
location = "europe-west1"
service_account = "pipeline@my-project.iam.gserviceaccount.com"
network = "projects/1/global/networks/private"
encryption_key = "projects/my-project/locations/europe-west1/keyRings/r/cryptoKeys/k"
labels = {team = "growth"}
endpoints = {vertex = "URL"}
"""


@pytest.fixture
def vertex():
    for fake in running():
        pipelines = PipelinesFake(fake)
        pipelines.url = fake.url
        pipelines.server = fake
        yield pipelines


@pytest.fixture
def folder(tmp_path, segwatch, vertex, monkeypatch):
    from segwatch.pipelines import vertex as product

    monkeypatch.setattr(product, "POLL_SECONDS", 0.01)
    segwatch(tmp_path, "init")
    with (tmp_path / "segwatch.toml").open("a") as file:
        file.write(PROD.replace("URL", vertex.url))
    return tmp_path


def on_prod(segwatch, folder, *arguments, code=0):
    return segwatch(folder, "--target", "cloud", *arguments, code=code)


def test_train_submits_the_compiled_pipeline_with_what_the_settings_name(folder, segwatch, vertex):
    said = on_prod(segwatch, folder, "train", "--as-of", "2026-11-01", "--select", "country_code=it")
    (job,) = vertex.jobs.values()
    assert job.name in said.stderr.replace("\n", "").replace(" ", "")
    assert job.service_account == "pipeline@my-project.iam.gserviceaccount.com"
    assert job.network == "projects/1/global/networks/private"
    assert job.encryption_spec.kms_key_name.endswith("/cryptoKeys/k")
    assert dict(job.labels) == {"segwatch": "train", "team": "growth"}
    assert job.runtime_config.gcs_output_directory == "gs://models/tmp/pipelines"
    values = dict(job.runtime_config.parameter_values)
    assert values["as_of"] == "2026-11-01"
    assert list(values["shards"]) == [0, 1]
    assert list(values["select"]) == ["country_code=it"]
    settings = json.loads(values["settings"])
    assert list(settings["targets"]) == ["cloud"]


def test_wait_follows_a_job_to_its_end(folder, segwatch, vertex):
    vertex.states = ["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]
    said = on_prod(segwatch, folder, "infer", "--wait")
    assert [line for line in said.stderr.splitlines() if line.startswith("step ")] == ["step running", "step succeeded"]


@pytest.mark.parametrize("end", ["FAILED", "CANCELLED"])
def test_a_job_that_fails_half_way_is_the_commands_failure(folder, segwatch, vertex, end):
    vertex.states, vertex.failed_task = ["RUNNING", end], "publish"
    said = on_prod(segwatch, folder, "infer", "--wait", code=4).stderr.splitlines()[-1]
    assert f"ended as {end}" in said
    assert ("publish" in said) == (end == "FAILED")
    assert "console.cloud.google.com" in said


def test_a_schedule_is_set_changed_paused_resumed_and_deleted(folder, segwatch, vertex):
    on_prod(segwatch, folder, "schedule", "set", "infer", "--cron", "0 5 * * *", "--time-zone", "Europe/Rome")
    on_prod(segwatch, folder, "schedule", "set", "train", "--cron", "0 4 * * 1")
    on_prod(segwatch, folder, "schedule", "set", "infer", "--cron", "30 6 * * *", "--time-zone", "Europe/Rome")
    listed = on_prod(segwatch, folder, "schedule", "list").stdout.splitlines()
    assert listed == [
        "train\tnew_users\tTZ=Etc/UTC 0 4 * * 1\tACTIVE\t2030-01-01T05:00+00:00",
        "infer\tnew_users\tTZ=Europe/Rome 30 6 * * *\tACTIVE\t2030-01-01T05:00+00:00",
    ]
    # No as-of: each run takes the time that it was scheduled for.
    for schedule in vertex.schedules.values():
        job = schedule.create_pipeline_job_request.pipeline_job
        assert "as_of" not in job.runtime_config.parameter_values
        assert "{{$.pipeline_job_schedule_time_utc}}" in str(job)
    on_prod(segwatch, folder, "schedule", "pause", "infer")
    assert "PAUSED" in on_prod(segwatch, folder, "schedule", "list").stdout
    on_prod(segwatch, folder, "schedule", "resume", "infer")
    on_prod(segwatch, folder, "schedule", "delete", "infer")
    assert len(on_prod(segwatch, folder, "schedule", "list").stdout.splitlines()) == 1
    assert "has no schedule" in on_prod(segwatch, folder, "schedule", "pause", "infer", code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cron", "daily"), "'daily' is no cron expression"),
        (("--cron", "0 5 * *"), "five fields"),
        (("--cron", "0 5 * * *", "--time-zone", "Mars/Olympus"), "'Mars/Olympus' is not known"),
    ],
)
def test_a_time_that_is_none_is_refused(folder, segwatch, vertex, arguments, said):
    assert said in on_prod(segwatch, folder, "schedule", "set", "train", *arguments, code=2).stderr
    assert vertex.schedules == {}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('bucket = "gs://models/segwatch"', "", "`bucket`"),
        ("image = ", "# image = ", "`image`"),
        ('project = "my-project"', "", "google.project"),
        ("bigquery://my-project/anomalies", "duckdb:///x.duckdb", "cannot reach"),
    ],
)
def test_a_target_that_vertex_cannot_use_is_refused(folder, segwatch, vertex, old, new, said):
    path = folder / "segwatch.toml"
    path.write_text(path.read_text().replace(old, new))
    assert said in on_prod(segwatch, folder, "train", code=2).stderr
    assert vertex.jobs == {}


@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        (403, "Permission 'aiplatform.pipelineJobs.create' denied on resource", "aiplatform.pipelineJobs.create"),
        (403, "Vertex AI API has not been used in project 1 before or it is disabled.", "enable it"),
        (404, "Project my-project not found", "check project, location and names"),
        (401, "Request had invalid authentication credentials.", "gcloud auth application-default login"),
        (429, "Quota exceeded for aiplatform.googleapis.com/pipeline_jobs", "quota"),
        (503, "The service is currently unavailable.", "try again"),
    ],
)
def test_what_vertex_refuses_is_one_sentence(folder, segwatch, vertex, code, message, said):
    vertex.server.fail(r"POST .*/pipelineJobs", 1, code, message)
    lines = on_prod(segwatch, folder, "train", code=4).stderr.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
