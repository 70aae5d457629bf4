"""`segwatch ui` as a process of its own: its address, its token, its end, and infer beside it."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import END, ENVIRONMENT, SPLIT, WATCHED, ask, change, error, in_process
from .test_labels import darken, project

SECONDS = 60
PATHS = ("/", "/segments", "/segments?q=ios", "/drill", "/runs", "/health", "/models", "/backtest")


@contextlib.contextmanager
def page(folder, *options, before=("--log-format", "json"), **environment):
    """A running page: the process, its port, and what it said before it listened."""
    process = in_process(folder, *before, "ui", "--port", "0", *options, env={**ENVIRONMENT, **environment})
    try:
        said = []
        while True:
            line = process.stderr.readline()
            assert line, said
            if "listening" in line:
                break
            said.append(line)
        yield process, int(re.search(r":(\d+)\W*$", line)[1]), said
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)


def get(port, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def test_infer_runs_beside_a_page_that_is_asked_all_the_time(trained, segwatch):
    segwatch(trained, "infer", "--start", "2026-11-01", "--end", SPLIT)
    answers, stop = [], threading.Event()

    def ask_on(port):
        while not stop.is_set():
            for path in PATHS:
                answers.append(get(port, path)[0])

    with page(trained) as (_, port, _), ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask_on, port)
        try:
            inferred = in_process(trained, "infer", "--start", SPLIT, "--end", END)
            said = inferred.communicate(timeout=SECONDS)[1]
        finally:
            stop.set()
        assert inferred.returncode == 0, said
        pool.shutdown()
        status, shown = get(port, "/segments")
    assert status == 200 and "Segments on 23 Nov 2026" in shown
    assert set(answers) <= {200, 503} and answers.count(200) > 20
    assert ask(trained, "SELECT count(*) FROM predictions")[0][0] == 23 * WATCHED


def test_the_page_says_where_it_is_and_ends_when_it_is_told_to(trained):
    with page(trained, before=()) as (process, port, said):
        assert "token" not in "".join(said)
        assert get(port, "/")[0] == 409
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    with pytest.raises(OSError):
        get(port, "/")


def test_on_another_address_a_token_is_made_and_printed_once(trained):
    with page(trained, "--host", "0.0.0.0") as (_, port, said):
        [token] = [line.removeprefix("token ").strip() for line in said]
        assert len(token) >= 32
        assert get(port, "/")[0] == 303
        assert get(port, "/models", Authorization=f"Bearer {token}")[0] == 200


def test_the_token_of_the_environment_is_asked_for_everywhere_and_never_printed(trained):
    token = "sixteen letters or more"
    with page(trained, SEGWATCH_UI_TOKEN=token) as (process, port, said):
        assert get(port, "/")[0] == 303 and said == []
        assert get(port, f"/models?token={token.replace(' ', '+')}")[0] == 303
        assert get(port, "/models", Authorization=f"Bearer {token}")[0] == 200
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=SECONDS)
    assert token not in "".join(rest) and token.replace(" ", "+") not in "".join(rest)


def test_a_token_that_is_easy_to_guess_is_refused(trained, segwatch, monkeypatch):
    monkeypatch.setenv("SEGWATCH_UI_TOKEN", "short")
    said = error(segwatch(trained, "ui", code=2))
    assert (
        said.startswith("error: the variable SEGWATCH_UI_TOKEN is wrong") and "short" not in said.partition("wrong")[2]
    )


def test_other_commands_do_not_mind_the_page_s_variables(trained, segwatch, monkeypatch):
    monkeypatch.setenv("SEGWATCH_UI_TOKEN", "sixteen letters or more")
    assert segwatch(trained, "models", "list")


def test_a_port_that_is_taken_is_said_so(trained, segwatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = error(segwatch(trained, "ui", "--port", str(taken.getsockname()[1]), code=4))
    assert "cannot listen on 127.0.0.1 port" in said


@pytest.mark.parametrize("module", ["starlette", "jinja2", "uvicorn"])
def test_without_the_extra_it_is_said_what_to_install(trained, module):
    code = f"import sys; sys.modules[{module!r}] = None; from segwatch.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "ui"], cwd=trained, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 2 and f"{module}: pip install 'segwatch[ui]'" in done.stderr


def test_requests_are_logged_without_what_they_ask(trained):
    with page(trained) as (process, port, _):
        get(port, "/segments?q=secret")
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in process.communicate(timeout=SECONDS)[1].splitlines()]
    [asked] = [one for one in lines if one["event"] == "request"]
    assert (asked["method"], asked["path"], asked["status"]) == ("GET", "/segments", 409)
    assert "secret" not in json.dumps(lines)


def test_a_backtest_is_kept_for_the_page_where_its_table_is_there(trained, segwatch):
    options = ("backtest", "--start", SPLIT, "--end", "2026-11-16", "--select", "platform=ios")
    segwatch(trained, *options)
    kept = ask(trained, "SELECT start, stop, settings, selection, every, n_scored > 0 FROM backtests ORDER BY start")
    assert [(str(start)[:10], str(stop)[:10]) for start, stop, *_ in kept] == [
        ("2026-11-04", "2026-11-11"), ("2026-11-11", "2026-11-16"),
    ]  # fmt: skip
    assert kept[0][2:] == ("segwatch.toml", "platform=ios", 7, True)
    change(trained, "DROP TABLE backtests")
    said = segwatch(trained, *options).stderr
    assert "not kept, as there is no table 'backtests': `segwatch create` makes it" in said and "in all" in said


def post(port, path, fields, cookie):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        headers = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", path, urllib.parse.urlencode(fields), headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_an_outage_that_was_labelled_on_the_page_leaves_the_next_training(tmp_path, segwatch):
    dark = darken(project(tmp_path, segwatch), segwatch)
    with page(dark) as (_, port, _):
        shown = get(port, "/?q=ios&direction=down")[1]
        said = " ".join(re.sub("<[^>]*>", " ", shown).split())
        assert "down platform ios" in said and "segments" in said
        id_ = re.search(r"/incidents/(\w+)", shown)[1]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        connection.request("GET", f"/incidents/{id_}")
        reply = connection.getresponse()
        cookie = reply.getheader("set-cookie").partition(";")[0]
        token = re.search(r'name="form_token" value="(\w+)"', reply.read().decode())[1]
        connection.close()
        fields = {"incident": id_, "label": "true", "note": "sign-up was down", "form_token": token}
        assert post(port, "/actions/label", {**fields, "form_token": "x"}, cookie) == 403
        assert post(port, "/actions/label", fields, cookie) == 303
        trained = segwatch(dark, "train", "--as-of", "2026-11-19").stderr
        # Three segments on three days.
        assert "labels 9 values left out" in " ".join(trained.split())
        assert "version 2" in get(port, "/health")[1]
        assert "sign-up was down" in get(port, "/audit")[1]
