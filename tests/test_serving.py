"""`segwatch serve` as a process of its own, asked over real connections."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from segwatch import serving
from segwatch.console import TextServingObserver
from segwatch.core.baseline import Recursion
from segwatch.core.bundle import ModelBundle, Rules, write_bundle
from segwatch.core.features import FEATURES, FeatureSet
from segwatch.core.panel import build_panel
from segwatch.core.rollup import with_rollups
from segwatch.core.segment import NULL, segment_id
from segwatch.core.training import Prepared, fit_prepared
from segwatch.core.window import Window
from segwatch.errors import SettingsError
from segwatch.registries import open_registry
from segwatch.settings import load_serving
from segwatch.storage import Storage

DIMENSIONS = ("country", "channel")
FITTED = [("it", "ads"), ("it", NULL), ("de", "ads"), ("fr", "ads")]
SHORT, CONSTANT = ("at", "ads"), ("at", "mail")
TOTAL, COUNTRY = (None, None), ("it", None)
DAYS = 200
SECONDS = 30


def observations(end):
    rng = np.random.default_rng(5)
    rows = []
    for values in (*FITTED, SHORT, CONSTANT):
        for day in range(20 if values == SHORT else DAYS):
            value = 7.0 if values == CONSTANT else float(rng.poisson(200))
            rows.append(
                {"ts": end - 1 - day, **dict(zip(DIMENSIONS, values, strict=True)), "value": value, "n_rows": 1}
            )
    table = pd.DataFrame(rows)
    table["ts"] = table["ts"].astype("datetime64[us]")
    return pa.Table.from_pandas(table, preserve_index=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A bundle of four fitted segments and one that is constant, one too short, and their roll-ups."""
    end = np.datetime64("2026-11-24")
    panel = build_panel(observations(end), DIMENSIONS, Window(end - DAYS, end), "zero")
    prepared = Prepared.of(with_rollups(panel, 1), Recursion(FeatureSet("day", "count"), 7))
    path = tmp_path_factory.mktemp("model") / "bundle"
    write_bundle(path, "visits", prepared, Rules(0.01, 0.1, 90), fit_prepared(prepared, 90), 1)
    return path


@dataclass(frozen=True)
class Server:
    """A running `segwatch serve`."""

    process: subprocess.Popen
    log: Path

    def lines(self):
        """Its JSON lines; what else it said would fail here."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @property
    def port(self):
        until(lambda: self.lines() or self.process.poll() is not None)
        return int(self.lines()[0]["listening"].rpartition(":")[2])

    def ask(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, dict(headers))
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read() or "null"), reply.headers
        finally:
            connection.close()

    def predict(self, body):
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        return self.ask("POST", "/predict", text)[:2]

    def ready(self):
        until(lambda: self.process.poll() is not None or self.ask("GET", "/health")[0] == 200)
        return self

    def ends(self):
        """Its exit code."""
        return self.process.wait(SECONDS)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.ends()


def until(is_so):
    """Returns once it is so."""
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def serve(folder, *arguments, environment=(), before=("--log-format", "json")):
    """The command in a folder; killed at the end if it is still there."""
    log = folder / "log"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AIP_")}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", "from segwatch.cli import main; main()", *before, "serve", *arguments],
            cwd=folder,
            env={**variables, **dict(environment)},
            stderr=stderr,
        )
    try:
        yield Server(process, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server"), "--model", str(model), "--port", "0") as running:
        yield running.ready()
        assert running.stop() == 0


def row(seed=0, spread=1.0):
    return dict(zip(FEATURES, np.random.default_rng(seed).normal(scale=spread, size=len(FEATURES)), strict=True))


def instance(values=FITTED[0], seed=0, **changes):
    return {"segment_id": segment_id(DIMENSIONS, values), **row(seed), **changes}


def expected(model, instances):
    frame = ModelBundle.open(model).predict_frame(pd.DataFrame(instances))
    ids = [{"segment_id": one["segment_id"]} for one in instances]
    return [{**row, **id_} for row, id_ in zip(frame.to_dict("records"), ids, strict=True)]


def test_predictions_are_those_of_the_bundle(server, model):
    instances = [instance(FITTED[k % 4], k, **row(k, 0.2 * k)) for k in range(40)]
    status, reply = server.predict({"instances": instances, "parameters": None})
    assert (status, reply) == (200, {"predictions": expected(model, instances)})
    assert {one["prediction"] for one in reply["predictions"]} == {1, -1}


def test_a_segment_is_named_by_its_dimensions_too_and_null_is_a_value(server, model):
    by_id = [instance(values, k) for k, values in enumerate(FITTED)]
    by_name = [{"country": c, "channel": None if n == NULL else n, **row(k)} for k, (c, n) in enumerate(FITTED)]
    assert server.predict({"instances": by_name, "parameters": {}}) == (200, {"predictions": expected(model, by_id)})


def test_a_segment_without_a_model_has_a_reason_and_the_others_their_predictions(server, model):
    unknown = {"country": "xx", "channel": "ads", **row()}
    status, reply = server.predict({"instances": [instance(SHORT), unknown, instance(), instance(CONSTANT)]})
    short, new, fitted, constant = reply["predictions"]
    assert status == 200 and [fitted, constant] == expected(model, [instance(), instance(CONSTANT)])
    assert [one["status"] for one in (short, new)] == ["too_short", "new_segment"]
    assert "needs 90" in short["reason"] and "trained" in new["reason"]
    assert new["segment_id"] == segment_id(DIMENSIONS, ("xx", "ads"))
    assert {one[key] for one in (short, new) for key in ("prediction", "score", "p_value")} == {None}


def test_a_roll_up_is_named_by_its_id_alone(server, model):
    rollups = [instance(TOTAL), instance(COUNTRY, 1)]
    assert server.predict({"instances": rollups}) == (200, {"predictions": expected(model, rollups)})
    status, reply = server.predict({"instances": [{"country": "it", **row()}]})
    assert status == 400 and "by its segment_id alone" in reply["error"]


def test_a_request_of_unknown_segments_alone_is_answered(server):
    status, reply = server.predict({"instances": [instance(segment_id="\ud800")]})
    assert status == 200 and reply["predictions"][0]["status"] == "new_segment"


def without(key, **changes):
    return {name: value for name, value in instance(**changes).items() if name != key}


def with_instances(*instances):
    return {"instances": list(instances)}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        ("[" * 100_000, "the body is not JSON"),
        ("[1]", "the body must be"),
        ({"instances": [instance()], "instance": 1}, "instance: is unknown"),
        ({"instances": [instance()], "parameters": 1}, "parameters: must be an object, not a number"),
        ({"instances": [instance()], "parameters": {"alpha": 1}}, "parameters.alpha: is unknown"),
        ({}, "instances: must be a list"),
        ({"instances": []}, "instances: must be a list of at least one"),
        ({"instances": {"z": 1}}, "instances: must be a list"),
        (with_instances(*[1] * 5001), "instances: 5001 are too many, at most 5000"),
        (with_instances(instance(), 3), "instances[1]: must be an object, not a number"),
        (with_instances(instance(), instance(), instance(), without("z")), "instances[3].z: is missing"),
        (with_instances(instance(long="1")), "instances[0].long: must be a number, not text"),
        (with_instances(instance(long=None)), "instances[0].long: must be a number, not null"),
        (with_instances(instance(long=True)), "instances[0].long: must be a number, not true or false"),
        (with_instances(instance(long=[])), "instances[0].long: must be a number, not a list"),
        (with_instances(instance(flat=float("nan"))), "instances[0].flat: must be a finite number, not nan"),
        (with_instances(instance(flat=10**400)), "instances[0].flat: must be a finite number, not inf"),
        (with_instances(instance(Z=1)), "instances[0].Z: is unknown"),
        (with_instances(instance(**{"k" * 10_000: 1})), "instances[0].kkk"),
        (with_instances(row()), "instances[0].segment_id: is missing, or name the segment by country, channel"),
        (with_instances({"country": "it", **row()}), "instances[0].channel: is missing"),
        (with_instances({"country": 1, "channel": "ads", **row()}), "instances[0].country: must be text"),
        (with_instances(instance(segment_id=None)), "instances[0].segment_id: must be text, not null"),
        (with_instances(instance(country="it")), "instances[0].country: the segment is named by segment_id already"),
    ],
)
def test_bad_input_is_refused_with_a_sentence_that_names_the_field(server, body, said):
    status, reply = server.predict(body)
    assert status == 400 and list(reply) == ["error"]
    assert reply["error"].startswith(said) and len(reply["error"]) < 300


def test_a_body_over_the_limit_is_refused_and_its_connection_goes_on(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    for size, status in ((serving.MAX_BODY + 1, 413), (20_000_000, 413), (serving.MAX_BODY, 400)):
        connection.request("POST", "/predict", b" " * size)
        reply = connection.getresponse()
        assert (reply.status, list(json.loads(reply.read()))) == (status, ["error"])
    pieces = (b" " * 100_000 for _ in range(20))
    connection.request("POST", "/predict", pieces, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert connection.getresponse().status == 413
    connection.close()


def test_the_largest_answer_is_one_that_vertex_takes(server):
    status, reply = server.predict({"instances": [instance(SHORT)] * serving.MAX_INSTANCES})
    assert status == 200 and len(json.dumps(reply)) < serving.MAX_BODY


def test_other_paths_and_methods_are_refused(server):
    assert [server.ask("GET", path)[0] for path in ("/", "/health/", "/predict/x")] == [404] * 3
    status, reply, headers = server.ask("GET", "/predict")
    assert (status, headers["allow"]) == (405, "POST") and "POST" in reply["error"]
    assert server.ask("POST", "/health", "{}")[0] == 405
    assert server.ask("HEAD", "/health")[0] == 200


def test_eight_clients_at_once_all_get_their_own_answers(server, model):
    def client(number):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
        for k in range(50):
            instances = [instance(FITTED[(number + j) % 4], 1000 * number + 10 * k + j) for j in range(5)]
            connection.request("POST", "/predict", json.dumps({"instances": instances}))
            answers.append((instances, json.loads(connection.getresponse().read())["predictions"]))
        connection.close()

    answers = []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))
    assert len(answers) == 8 * 50
    asked = [one for instances, _ in answers for one in instances]
    got, wanted = [one for _, predictions in answers for one in predictions], expected(model, asked)
    for key in ("segment_id", "prediction"):
        assert [one[key] for one in got] == [one[key] for one in wanted]
    for key in ("score", "p_value"):
        # A matrix product among other rows may round otherwise.
        assert [one[key] for one in got] == pytest.approx([one[key] for one in wanted], rel=1e-9)


def test_an_answer_does_not_wait_for_the_client_to_acknowledge_its_head(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    seconds = []
    for _ in range(40):
        start = time.monotonic()
        connection.request("POST", "/predict", json.dumps({"instances": [instance()]}))
        connection.getresponse().read()
        seconds.append(time.monotonic() - start)
    connection.close()
    # A kernel acknowledges the first segments at once and then waits 40 ms with each.
    assert min(seconds[20:]) < 0.035


def test_health_is_answered_while_large_requests_are_scored(server):
    body = json.dumps({"instances": [{k: 0 if k in FEATURES else v for k, v in instance().items()}] * 5000})
    waits, stop = [], threading.Event()

    def health():
        while not stop.is_set():
            start = time.monotonic()
            assert server.ask("GET", "/health")[0] == 200
            waits.append(time.monotonic() - start)

    with ThreadPoolExecutor(3) as pool:
        checks = pool.submit(health)
        replies = list(pool.map(lambda _: server.predict(body)[0], range(6)))
        stop.set()
        checks.result()
    assert replies == [200] * 6 and len(waits) > 6 and max(waits) < 5


def test_json_lines_name_the_requests_and_text_does_not(server, model, tmp_path):
    server.ask("GET", "/nothing/of/this/name")
    # The answer comes before the line about it.
    until(lambda: any(line.get("path") == "/nothing/of/this/name" for line in server.lines()))
    [line] = [line for line in server.lines() if line.get("path") == "/nothing/of/this/name"]
    assert (line["event"], line["method"], line["status"]) == ("request", "GET", 404) and line["milliseconds"] > 0
    with serve(tmp_path, "--model", str(model), "--port", "0", before=()) as talks:
        until(lambda: "ready after" in talks.log.read_text())
        port = int(talks.log.read_text().partition("127.0.0.1:")[2].split()[0])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
        assert talks.stop() == 0
    assert "visits" in talks.log.read_text() and "/health" not in talks.log.read_text()


def fill(pipe, text):
    with open(pipe, "w") as file:
        file.write(text)


@pytest.fixture
def slow(model, tmp_path):
    """A model whose manifest is not there until the pipe that stands for it is filled."""
    copy = tmp_path / "slow"
    shutil.copytree(model, copy)
    (copy / "manifest.json").unlink()
    os.mkfifo(copy / "manifest.json")
    return copy


def test_until_the_model_is_loaded_health_and_predictions_say_503(slow, model, tmp_path):
    with serve(tmp_path, "--model", str(slow), "--port", "0") as running:
        assert running.ask("GET", "/health")[0] == 503
        status, reply = running.predict({"instances": [instance()]})
        assert status == 503 and "being loaded" in reply["error"]
        fill(slow / "manifest.json", (model / "manifest.json").read_text())
        assert running.ready().predict({"instances": [instance()]})[0] == 200
        assert [line["event"] for line in running.lines() if line["event"] != "request"] == ["serve", "serve"]
        assert running.stop() == 0


def test_sigterm_while_the_model_is_loaded_ends_with_0(slow, tmp_path):
    with serve(tmp_path, "--model", str(slow), "--port", "0") as running:
        assert running.ask("GET", "/health")[0] == 503
        assert running.stop() == 0


def test_sigterm_lets_an_open_request_finish_and_takes_no_other(model, tmp_path):
    with serve(tmp_path, "--model", str(model), "--port", "0") as running:
        port = running.ready().port
        body = json.dumps({"instances": [instance()]}).encode()
        with (
            socket.create_connection(("127.0.0.1", port), SECONDS) as idle,
            socket.create_connection(("127.0.0.1", port), SECONDS) as open_,
        ):
            open_.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:20])
            until(lambda: running.ask("GET", "/health")[0] == 200)
            running.process.send_signal(signal.SIGTERM)
            assert idle.recv(1) == b""
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), SECONDS)
            assert running.process.poll() is None
            open_.sendall(body[20:])
            reply = http.client.HTTPResponse(open_)
            reply.begin()
            assert (reply.status, json.loads(reply.read())["predictions"]) == (200, expected(model, [instance()]))
        assert running.ends() == 0


def test_vertex_says_by_variables_where_to_listen_and_what_to_serve(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "AIP_HTTP_PORT": str(port),
        "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2",
        "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict",
        "AIP_STORAGE_URI": str(model),
        "AIP_MODE": "PREDICTION",
    }
    with serve(tmp_path, environment=environment) as running:
        until(lambda: running.lines())
        assert running.lines()[0]["listening"] == f"http://0.0.0.0:{port}"
        until(lambda: running.ask("GET", environment["AIP_HEALTH_ROUTE"])[0] == 200)
        status, reply, _ = running.ask(
            "POST", environment["AIP_PREDICT_ROUTE"], json.dumps({"instances": [instance()]})
        )
        assert (status, reply["predictions"]) == (200, expected(model, [instance()]))
        assert [running.ask("GET", path)[0] for path in ("/health", "/predict")] == [404, 404]
        assert running.stop() == 0


def said(running, code):
    """The one line that the command ended with."""
    assert running.ends() == code, running.log.read_text()
    [line] = [line for line in running.lines() if line["event"] == "error"]
    assert line["exit_code"] == code
    return line["message"]


@pytest.mark.parametrize("file", ["manifest.json", "vectors.arrow", "segments.arrow"])
def test_a_damaged_bundle_ends_it_with_a_sentence(model, tmp_path, file):
    copy = tmp_path / "damaged"
    shutil.copytree(model, copy)
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with serve(tmp_path, "--model", str(copy), "--port", "0") as running:
        message = said(running, 3)
    assert str(copy) in message and "download" in message and "\n" not in message


def test_a_folder_without_a_bundle_ends_it_with_a_sentence(tmp_path):
    with serve(tmp_path, "--model", "./nothing", "--port", "0") as running:
        assert "nothing holds no whole model" in said(running, 3)


def test_a_port_that_is_taken_ends_it_with_exit_code_4(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve(tmp_path, "--model", str(model), "--port", str(port)) as running:
            message = said(running, 4)
    assert f"127.0.0.1 port {port}" in message and "--port" in message


def test_without_a_model_the_settings_are_asked_for(tmp_path):
    with serve(tmp_path) as running:
        assert "segwatch init" in said(running, 2)


def test_a_bug_is_a_500_and_one_line_and_other_requests_go_on(model, tmp_path):
    # Whole by its digests and wrong inside: one segment claims vectors that are not there.
    copy = tmp_path / "wrong"
    shutil.copytree(model, copy)
    vectors = pa.ipc.open_file(str(copy / "vectors.arrow")).read_all()
    with pa.ipc.new_file(str(copy / "vectors.arrow"), vectors.schema) as file:
        file.write_batch(vectors.slice(0, len(vectors) - 1).combine_chunks().to_batches()[0])
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["vectors.arrow"] = hashlib.sha256((copy / "vectors.arrow").read_bytes()).hexdigest()
    del manifest["digest"]
    manifest["digest"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    bundle = ModelBundle.open(model)
    *others, last = (id_ for id_, s in zip(bundle.history.segments.ids, bundle.status, strict=True) if s == "ok")
    with serve(tmp_path, "--model", str(copy), "--port", "0") as running:
        status, reply = running.ready().predict({"instances": [instance(segment_id=last)]})
        assert (status, list(reply)) == (500, ["error"]) and "Error" not in reply["error"]
        assert running.predict({"instances": [instance(segment_id=others[0])]})[0] == 200
        [line] = [line for line in running.lines() if line["event"] == "error"]
        assert "bundle.py:" in line["message"] and "ValueError" in line["message"]
        assert running.stop() == 0


def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(serving, "BODY_SECONDS", 0.05)
    sent = []

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    observer = TextServingObserver(lambda *_, **__: None)
    with ThreadPoolExecutor(1) as pool:
        application = serving.Application("/health", "/predict", observer, pool, bundle=object())
        asyncio.run(application(scope, receive, send))
    assert sent[0]["status"] == 408 and b"did not arrive" in sent[1]["body"]


def test_open_requests_are_bounded(model, tmp_path):
    with serve(tmp_path, "--model", str(model), "--port", "0") as running:
        port = running.ready().port
        with contextlib.ExitStack() as stack:
            for _ in range(serving.MAX_OPEN):
                held = stack.enter_context(socket.create_connection(("127.0.0.1", port), SECONDS))
                held.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            until(lambda: running.predict({"instances": [instance()]})[0] == 503)
            assert running.ask("GET", "/health")[0] == 200
        until(lambda: running.predict({"instances": [instance()]})[0] == 200)
        assert running.stop() == 0


def test_the_champion_of_the_settings_is_served_by_default_and_a_version_by_its_number(model, tmp_path):
    from segwatch.settings import TEMPLATE

    (tmp_path / "segwatch.toml").write_text(TEMPLATE)
    registry = open_registry(f"sqlite:///{tmp_path / 'mlflow.db'}")
    version = registry.register("segwatch-new_users", model, parameters={}, metrics={}, tags={})
    registry.promote(version.name, version.version)
    for arguments in ((), ("--model", version.version)):
        with serve(tmp_path, "--port", "0", *arguments) as running:
            reply = running.ready().predict({"instances": [instance()]})
            assert reply == (200, {"predictions": expected(model, [instance()])})
            assert running.stop() == 0


def test_a_model_in_cloud_storage_is_downloaded_first(model, tmp_path, bucket):
    uri = Storage(bucket.google).upload(model, f"{bucket.uri}/models")
    bundle = serving.open_model(uri, tmp_path / "to", bucket.google)
    assert bundle.path == tmp_path / "to"
    assert bundle.manifest == ModelBundle.open(model).manifest


@pytest.mark.parametrize(
    ("name", "value"),
    [("AIP_HTTP_PORT", "eighty"), ("AIP_HTTP_PORT", "70000"), ("AIP_HEALTH_ROUTE", "health")],
)
def test_a_wrong_variable_is_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name} is '{value}'"):
        load_serving()


def test_one_route_cannot_be_both(monkeypatch):
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/predict")
    with pytest.raises(SettingsError, match="must differ"):
        load_serving()


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch):
    monkeypatch.setenv("AIP_STORAGE_URI", "")
    monkeypatch.setenv("AIP_HTTP_PORT", "")
    assert (load_serving().storage_uri, load_serving().http_port) == ("", None)


def test_where_a_dimension_is_named_like_a_feature_only_the_id_names_a_segment():
    body = json.dumps({"instances": [{"segment_id": "x", **row()}]}).encode()
    assert serving.read_instances(body, ("e", "channel"))[0] == ["x"]
