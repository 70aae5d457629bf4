"""The whole of both pipelines as in the cloud, on stand-ins: BigQuery, Cloud Storage, Vertex AI's registry, KFP."""

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from segwatch.core.window import Window
from segwatch.settings import load_settings
from segwatch.warehouses import open_warehouse

from ..fakes.pipelines import PipelinesFake
from ..fakes.vertex import VertexFake
from ..servers.hooks import hook
from .conftest import WATCHED

END, SPLIT = "2026-11-24", "2026-11-20"
LAST = np.datetime64(END) - 1
WINDOW = Window(np.datetime64(SPLIT), np.datetime64(END))
OF_THE_RUN = ["run_id", "scored_at", "model_version"]
CLOUD = """
default_target = "cloud"
[targets.cloud]
warehouse = "{warehouse}"
registry = "vertex"
runner = "{runner}"
shards = 2
bucket = "{bucket}/segwatch"
image = "{image}"
[targets.cloud.google]
project = "test-project"
location = "europe-west1"
[targets.cloud.google.endpoints]
bigquery = "{bigquery}"
bigquery_storage = "{bigquery_storage}"
storage = "{storage}"
vertex = "{vertex}"
service_usage = "{service_usage}"
"""


@pytest.fixture
def vertex():
    fake = VertexFake()
    PipelinesFake(fake)
    yield fake
    fake.close()


@pytest.fixture
def image():
    """An image in a registry on this machine, which says of the project's APIs too that all but one are enabled."""

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlsplit(self.path)
            assert url.path == "/v1/projects/test-project/services:batchGet"
            names = parse_qs(url.query)["names"]
            states = ["DISABLED" if "bigquerystorage" in name else "ENABLED" for name in names]
            services = [{"name": name, "state": state} for name, state in zip(names, states, strict=True)]
            body = json.dumps({"services": services}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self):
            self.send_response(200 if self.path == "/v2/team/segwatch/manifests/1" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}/team/segwatch:1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cloud(tmp_path, segwatch, bigquery_emulator, bucket, vertex, image):
    """A folder whose default target is all in stand-ins; `write` changes parts of the settings."""
    folder = tmp_path / "cloud"
    folder.mkdir()
    segwatch(folder, "init")
    metrics = (folder / "segwatch.toml").read_text().partition("# A metric")[2].partition("\n")[2]
    parts = {
        "warehouse": f"bigquery://test-{secrets.token_hex(6)}/watch",
        "runner": "kfp-local",
        "bucket": bucket.uri,
        "image": image,
        "bigquery": bigquery_emulator.rest,
        "bigquery_storage": bigquery_emulator.storage,
        "storage": bucket.door.url,
        "vertex": vertex.url,
        "service_usage": "",
    }

    def write(**changes):
        (folder / "segwatch.toml").write_text(CLOUD.format(**{**parts, **changes}) + metrics)
        return folder

    write()
    return write


def darken(segwatch, folder):
    """An outage on the last day, for there to be an incident."""
    dark = [f"{LAST},it,ios,{channel},0" for channel in ("organic", "paid", "referral")]
    rows = folder / "dark.csv"
    rows.write_text("\n".join(["created_at,country_code,platform,channel,new_users", *dark]))
    segwatch(folder, "data", "insert", "--from", str(rows))


def run_main_job(segwatch, folder):
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--segments", "9", "--days", "140", "--end", END)
    darken(segwatch, folder)
    segwatch(folder, "train", "--as-of", SPLIT)
    segwatch(folder, "infer", "--start", SPLIT, "--end", END)
    segwatch(folder, "report", "--output", "page.html")
    segwatch(folder, "evaluate", "--as-of", SPLIT)
    explained = json.loads(segwatch(folder, "--log-format", "json", "explain", "*/ios/*", "--at", str(LAST)).stdout)
    assert explained["detectable"] and explained["similar"] and explained["parts"]
    target = load_settings(folder / "segwatch.toml").target(None)
    warehouse = open_warehouse(target.warehouse, target.google)
    predictions = warehouse.predictions("predictions", "new_users", WINDOW)
    incidents = warehouse.predictions("incidents", "new_users", WINDOW)
    tables = warehouse.created_tables()
    warehouse.close()
    assert incidents.num_rows
    del explained["model_version"]
    return predictions.drop_columns(OF_THE_RUN), incidents.drop_columns(["run_id", "updated_at"]), tables, explained


def test_the_cloud_gives_the_predictions_that_one_laptop_gives(tmp_path, segwatch, cloud, vertex, bucket):
    found, said, tables, explained = run_main_job(segwatch, cloud())
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    segwatch(laptop, "init")
    expected, expected_said, _, expected_explained = run_main_job(segwatch, laptop)
    assert found.num_rows == WATCHED * 4
    assert found.equals(expected) and said.equals(expected_said) and explained == expected_explained
    own = ["audit", "backtests", "deliveries", "detectability", "incidents", "labels"]
    assert tables == [*own, "new_users_metrics", "new_users_metrics_labels", "predictions"]

    assert "bytes at most" in segwatch(cloud(), "train", "--as-of", SPLIT, "--dry-run").stderr
    healthy = segwatch(cloud(runner="vertex"), "doctor").stdout.splitlines()
    assert [line.split(":")[0] for line in healthy] == [
        "ok    compiled code",
        "ok    settings",
        "ok    credentials",
        "ok    APIs",
        "ok    warehouse",
        "ok    table of new_users",
        "ok    predictions",
        "ok    bucket",
        "ok    model of new_users",
        "ok    image",
        "ok    pipelines",
    ]
    uploaded = segwatch(cloud(), "--log-format", "json", "compile", "--upload").stderr
    folder = cloud(runner="vertex")
    segwatch(folder, "schedule", "set", "infer", "--cron", "0 5 * * *")
    removed = segwatch(folder, "destroy", "--yes").stdout.splitlines()
    assert json.loads(uploaded)["wrote"] == next(line for line in removed if "compiled" in line).split()[-1]
    assert "schedule infer of new_users" in removed
    assert (vertex.models, bucket.door.names(bucket.uri)) == ({}, [])
    segwatch(cloud(), "infer", "--start", SPLIT, "--end", END, code=3)


def test_labels_and_alerts_are_kept_in_bigquery(segwatch, cloud):
    folder = cloud(runner="local")
    with hook() as team, (folder / "segwatch.toml").open("a") as settings:
        settings.write(f'[channels.team]\nurl = "{team.url}"\n[alerts.all]\nchannels = ["team"]\n')
        settings.flush()
        segwatch(folder, "create")
        segwatch(folder, "data", "insert", "--segments", "9", "--days", "140", "--end", END)
        darken(segwatch, folder)
        segwatch(folder, "train", "--as-of", SPLIT)
        for _ in range(2):
            segwatch(folder, "infer", "--start", SPLIT, "--end", END)
        assert team.titles and len(team.titles) == len(set(team.titles))
        found = segwatch(folder, "--log-format", "json", "incidents").stdout.splitlines()
        worst = json.loads(found[0])
        segwatch(folder, "label", worst["id"][:8], "false", "--by", "ann")
        (folder / "events.csv").write_text("first_day,label,platform\n2026-08-20,outage,ios\n")
        for _ in range(2):
            segwatch(folder, "labels", "import", "events.csv", "--by", "ann")
        lines = [line.split("\t") for line in segwatch(folder, "labels", "list").stdout.splitlines()]
        assert [line[1:3] for line in lines] == [["true", "*/ios/*"], ["false", worst["cause"]]]
        assert len(segwatch(folder, "labels", "audit").stdout.splitlines()) == 3
        assert "labels 3 values left out" in " ".join(
            segwatch(folder, "train", "--as-of", SPLIT, "--force").stderr.split()
        )


def test_the_doctor_says_what_to_run_for_each_thing_that_is_missing(segwatch, cloud, image):
    missing_bucket = f"gs://missing-{secrets.token_hex(4)}"
    usage = f"http://{image.partition('/')[0]}"
    folder = cloud(runner="vertex", bucket=missing_bucket, image=image.replace(":1", ":2"), service_usage=usage)
    lines = segwatch(folder, "doctor", code=4).stdout.splitlines()
    said = dict(line[6:].split(": ", 1) for line in lines if line.startswith("FAIL"))
    assert list(said) == [
        "APIs",
        "warehouse",
        "table of new_users",
        "predictions",
        "bucket",
        "model of new_users",
        "image",
    ]
    for what in ("warehouse", "table of new_users", "predictions"):
        assert "segwatch create" in said[what]
    assert said["APIs"].endswith("`gcloud services enable bigquerystorage.googleapis.com --project=test-project`")
    assert missing_bucket.removeprefix("gs://") in said["bucket"]
    assert "segwatch train" in said["model of new_users"]
    assert "make image" in said["image"]
