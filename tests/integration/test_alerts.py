import base64
import contextlib
import datetime as dt
import json
import os
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ..servers.hooks import hook, mailbox
from .conftest import TABLE, ask, change, error, in_process

START, STOP = "2026-11-09", "2026-11-15"
OUTAGE = ("2026-11-12", "2026-11-14")
RULE = """
[channels.team]
url = "${TEAM_HOOK}"
[alerts.big]
channels = ["team"]
min_impact = 30
select = {platform = ["ios"]}
direction = "down"
"""
STATES = "SELECT channel, state, count(*) FROM deliveries GROUP BY ALL ORDER BY ALL"


@pytest.fixture
def team(monkeypatch):
    with hook() as state:
        monkeypatch.setenv("TEAM_HOOK", state.url)
        yield state


@pytest.fixture
def dark(trained):
    """Nothing of the platform ios for three days, and a rule that tells of it."""
    days = f"created_at BETWEEN '{OUTAGE[0]}' AND '{OUTAGE[1]}'"
    change(trained, f"UPDATE {TABLE} SET new_users = 0 WHERE platform = 'ios' AND {days}")
    add(trained, RULE)
    return trained


def add(folder, text):
    with (folder / "segwatch.toml").open("a") as file:
        file.write(text)


def of_ios(state):
    return [title for title in state.titles if "*/ios/* down" in title]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_incident_is_told_once_when_it_is_new_and_once_when_it_is_over(dark, segwatch, team):
    for day in range(12, 19):
        said = segwatch(dark, "infer", "--as-of", f"2026-11-{day + 1}").stderr
        segwatch(dark, "infer", "--as-of", f"2026-11-{day + 1}")
        segwatch(dark, "notify")
        if day == 12:
            assert "to team: new_users: */ios/* down" in " ".join(said.split())
    words = [title.rpartition(": ")[2] for title in of_ios(team)]
    assert words[0] == "new" and words[-1] == "resolved" and set(words[1:-1]) <= {"worse"}
    first = next(one for one in team.got if "*/ios/* down" in one["title"])
    assert first["type"] == "warning" and "What was it? segwatch label" in first["message"]
    assert "Most of it is in" in first["message"] and "/ios/" in first["message"]
    [row] = ask(dark, "SELECT count(*), count(DISTINCT delivery_id), min(state), max(state) FROM deliveries")
    assert row == (len(team.got), len(team.got), "delivered", "delivered")


def test_mail_arrives(dark, segwatch, monkeypatch):
    with mailbox(free_port()) as box:
        monkeypatch.setenv("TEAM_HOOK", box.url)
        segwatch(dark, "infer", "--start", START, "--end", STOP)
    [mail] = [one for one in box.got if "*/ios/* down" in one["Subject"]]
    assert mail["To"] == "ops@example.com" and mail["From"] == "segwatch@example.com"
    assert mail["Subject"].endswith("since 2026-11-12, 3 segments: new")
    assert "It accounts for" in mail.get_content()


def test_a_dead_channel_loses_no_prediction_and_is_told_by_the_next_run_once(dark, segwatch, team):
    add(dark, f'[channels.other]\nurl = "json://127.0.0.1:{free_port()}/"\n')
    text = (dark / "segwatch.toml").read_text().replace('channels = ["team"]', 'channels = ["other", "team"]')
    (dark / "segwatch.toml").write_text(text)
    said = " ".join(segwatch(dark, "infer", "--start", START, "--end", STOP).stderr.split())
    assert "NOT to other, the next run tries again: new_users: */ios/* down" in said
    assert "the channel other did not take it: A Connection error occurred" in said
    assert ask(dark, "SELECT count(*) > 0 FROM predictions") == [(True,)] and len(of_ios(team)) == 1
    n = len(team.got)
    assert ask(dark, STATES) == [("other", "failed", n), ("team", "delivered", n)]
    with hook() as other:
        (dark / "segwatch.toml").write_text(
            (dark / "segwatch.toml").read_text().replace(text.rpartition('url = "')[2].partition('"')[0], other.url)
        )
        segwatch(dark, "notify")
        segwatch(dark, "notify")
        assert len(of_ios(other)) == 1 and other.titles == team.titles and len(team.got) == n
    assert (("other", "delivered", n)) in ask(dark, STATES)


def test_a_channel_that_refuses_is_tried_again(dark, segwatch, team):
    team.status = 500
    said = segwatch(dark, "infer", "--start", START, "--end", STOP).stderr
    assert "Internal server error" in " ".join(said.split())
    assert "NOT to team" in " ".join(segwatch(dark, "notify", code=4).stderr.split())
    team.status = 200
    segwatch(dark, "notify")
    assert len(of_ios(team)) == 1


def test_a_run_that_is_killed_while_it_sends_does_not_send_again_and_the_next_one_says_so(dark, segwatch, team):
    team.is_held = True
    process = in_process(dark, "infer", "--start", START, "--end", STOP, env=os.environ)
    deadline = time.monotonic() + 60
    while not team.got and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [first] = team.titles
    team.is_held = False
    team.released.set()
    assert ask(dark, "SELECT state FROM deliveries") == [("sending",)]
    # What it told is not told again; what it had not come to is told now.
    segwatch(dark, "notify")
    assert team.titles.count(first) == 1 and len(of_ios(team)) == 1
    change(dark, "UPDATE deliveries SET ts = ts - INTERVAL 1 HOUR")
    assert f"perhaps to team, as the run that sent it died: {first}" in " ".join(
        segwatch(dark, "notify").stderr.split()
    )
    assert "perhaps" not in segwatch(dark, "notify").stderr
    assert team.titles.count(first) == 1


def test_a_dry_run_prints_what_would_go_where_and_sends_nothing(dark, segwatch, team, monkeypatch):
    team.status = 500
    segwatch(dark, "infer", "--start", START, "--end", STOP)
    team.status = 200
    before = ask(dark, "FROM deliveries ORDER BY ALL")
    monkeypatch.delenv("TEAM_HOOK")
    lines = segwatch(dark, "notify", "--dry-run").stdout.splitlines()
    assert any(line.startswith("to team, by big: new_users: */ios/* down") for line in lines)
    assert "    It accounts for" in "\n".join(lines)
    assert team.got == [] and ask(dark, "FROM deliveries ORDER BY ALL") == before


def test_a_snoozed_incident_is_told_when_the_snooze_is_over(dark, segwatch, team):
    add_rule = (dark / "segwatch.toml").read_text()
    (dark / "segwatch.toml").write_text(add_rule.replace(RULE, ""))
    segwatch(dark, "infer", "--start", START, "--end", "2026-11-13")
    [(id_,)] = ask(dark, "SELECT DISTINCT incident_id FROM incidents WHERE platform = 'ios' AND country_code IS NULL"
                         " AND channel IS NULL AND direction = 'down'")  # fmt: skip
    segwatch(dark, "snooze", id_, "--until", "2026-11-13", "--by", "ann")
    (dark / "segwatch.toml").write_text(add_rule)
    segwatch(dark, "infer", "--as-of", "2026-11-14")
    assert of_ios(team) == []
    segwatch(dark, "infer", "--as-of", "2026-11-15")
    assert [title.rpartition(": ")[2] for title in of_ios(team)] == ["new"]


def test_what_late_rows_take_back_is_withdrawn_once(dark, segwatch, team):
    segwatch(dark, "infer", "--start", START, "--end", "2026-11-13")
    [title] = of_ios(team)
    change(dark, f"UPDATE {TABLE} SET new_users = expected FROM predictions p WHERE p.ts = created_at"
                 f" AND p.country_code = {TABLE}.country_code AND p.platform = {TABLE}.platform"
                 f" AND p.channel = {TABLE}.channel AND created_at = '2026-11-12'")  # fmt: skip
    segwatch(dark, "infer", "--start", START, "--end", "2026-11-13")
    segwatch(dark, "infer", "--start", START, "--end", "2026-11-13")
    assert of_ios(team) == [title, "new_users: */ios/* down since 2026-11-12: withdrawn"]
    assert team.got[-1]["type"] == "success"


def test_a_digest_is_sent_once_and_nothing_in_quiet_hours(dark, segwatch, team):
    before, after = (f"{dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours):%H:%M}" for hours in (-1, 2))
    rule = (dark / "segwatch.toml").read_text()
    (dark / "segwatch.toml").write_text(rule.replace("min_impact = 30", f'quiet_hours = "{before}-{after}"'))
    segwatch(dark, "infer", "--start", START, "--end", STOP)
    digest = rule.replace("min_impact = 30", f'digest_at = "{after}"')
    (dark / "segwatch.toml").write_text(f'{digest}quiet_hours = "{before}-{after}"\n')
    segwatch(dark, "notify")
    assert not team.got and ask(dark, "SELECT count(*) FROM deliveries") == [(0,)]
    (dark / "segwatch.toml").write_text(digest)
    assert "open" in segwatch(dark, "notify", "--dry-run").stdout
    segwatch(dark, "notify")
    segwatch(dark, "notify")
    [title] = team.titles
    assert title.startswith("new_users, 20") and "*/ios/* down" in team.got[0]["message"]


def test_the_doctor_looks_at_channels_without_sending(dark, segwatch, team, monkeypatch):
    add(dark, '[channels.spare]\nurl = "json://localhost/"\n')
    said = segwatch(dark, "doctor", code=4).stdout
    assert "ok    channel team: JSON, by big; `segwatch notify --test team` tries it" in said
    assert "FAIL  channel spare: no rule names it: add it to the channels of one" in said and not team.got
    monkeypatch.setenv("SEGWATCH_TARGETS__DEV__RUNNER", "vertex")
    said = segwatch(dark, "doctor", code=4).stdout
    assert "FAIL  channel team: the containers of a pipeline have none of this machine's variables" in said
    monkeypatch.delenv("SEGWATCH_TARGETS__DEV__RUNNER")
    monkeypatch.delenv("TEAM_HOOK")
    said = segwatch(dark, "doctor", code=4).stdout
    assert "FAIL  channel team: channels.team.url uses ${TEAM_HOOK}, but the environment has no variable" in said


def test_a_channel_can_be_tried_and_one_that_is_none_is_told_so(dark, segwatch, team, monkeypatch):
    segwatch(dark, "notify", "--test", "team")
    assert team.titles == ["segwatch: a test"]
    said = error(segwatch(dark, "notify", "--test", "nobody", code=2))
    assert said == "error: the settings have no channel 'nobody'; they have team"
    monkeypatch.setenv("TEAM_HOOK", "https-but-wrong")
    said = error(segwatch(dark, "notify", "--test", "team", code=2))
    assert "channels.team.url is no address that Apprise knows" in said and "https-but-wrong" not in said
    monkeypatch.delenv("TEAM_HOOK")
    said = error(segwatch(dark, "notify", "--test", "team", code=2))
    assert "channels.team.url uses ${TEAM_HOOK}, but the environment has no variable TEAM_HOOK: export it" in said
    # Scoring goes on without it.
    said = " ".join(segwatch(dark, "infer", "--start", START, "--end", STOP).stderr.split())
    assert "NOT to team" in said and "no variable TEAM_HOOK" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('channels = ["team"]', 'channels = ["tema"]', "alerts.big.channels names 'tema', which is none of team"),
        (
            '{platform = ["ios"]}',
            '{platfrom = ["ios"]}',
            "alerts.big.select names 'platfrom', which is none of country",
        ),
        (
            "min_impact = 30",
            'group_by = "device"',
            "alerts.big.group_by names 'device', which is none of incident, run",
        ),
        ("min_impact = 30", 'metrics = ["sales"]', "alerts.big.metrics names 'sales', which is none of new_users"),
        ("min_impact = 30", 'quiet_hours = "10pm-7am"', "alerts.big.quiet_hours"),
        ("min_impact = 30", 'timezone = "Rome"', "timezone 'Rome' is no time zone"),
    ],
)
def test_a_wrong_rule_is_named(dark, segwatch, old, new, said):
    text = (dark / "segwatch.toml").read_text()
    assert old in text
    (dark / "segwatch.toml").write_text(text.replace(old, new))
    assert said in error(segwatch(dark, "notify", code=2))


def test_a_project_of_before_is_told_to_make_the_table_before_anything_is_written(dark, segwatch, team):
    change(dark, "DROP TABLE deliveries")
    said = error(segwatch(dark, "infer", "--start", START, "--end", STOP, code=3))
    assert said == "error: there is no table 'deliveries': run `segwatch create`, which makes it"
    assert ask(dark, "SELECT count(*) FROM predictions") == [(0,)] and not team.got
    (dark / "segwatch.toml").write_text((dark / "segwatch.toml").read_text().replace(RULE, ""))
    segwatch(dark, "infer", "--start", START, "--end", STOP)


def test_a_compiled_pipeline_holds_no_secret(dark, segwatch, team):
    segwatch(dark, "compile", "--output", "pipelines")
    text = "".join(path.read_text() for path in (dark / "pipelines").iterdir())
    assert "TEAM_HOOK" in text and team.url not in text and str(team.port) not in text


def test_a_pipeline_tells_what_one_process_would_have_told_and_acts_on_labels(dark, segwatch, team):
    score = ("infer", "--start", START, "--end", STOP)
    segwatch(dark, *score)
    told = list(team.got)
    change(dark, "DELETE FROM deliveries", "DELETE FROM incidents", "DELETE FROM predictions")
    said = segwatch(dark, *score, "--runner", "kfp-local").stderr
    assert team.got[len(told) :] == told and "to team: new_users: */ios/* down" in " ".join(said.split())
    [(id_,)] = ask(dark, "SELECT DISTINCT incident_id FROM incidents WHERE platform = 'ios' AND channel IS NULL"
                         " AND country_code IS NULL AND direction = 'down'")  # fmt: skip
    segwatch(dark, "label", id_, "expected", "--by", "ann", "--until", OUTAGE[1])
    segwatch(dark, *score, "--runner", "kfp-local")
    masked = "FROM predictions WHERE reason = 'expected by a label'"
    # Three segments and their platform, three days.
    assert ask(dark, f"SELECT count(*) {masked}") == [(12,)]
    together = ask(dark, "SELECT * EXCLUDE (run_id, scored_at) FROM predictions ORDER BY ALL")
    segwatch(dark, *score)
    assert ask(dark, "SELECT * EXCLUDE (run_id, scored_at) FROM predictions ORDER BY ALL") == together


def test_an_address_is_not_taken_into_the_settings_by_a_variable(dark, segwatch, team, monkeypatch):
    monkeypatch.setenv("SEGWATCH_CHANNELS__TEAM__URL", team.url)
    said = error(segwatch(dark, "notify", "--dry-run", code=2))
    assert "the variable SEGWATCH_CHANNELS__TEAM__URL would put a channel's address into the settings" in said
    assert team.url not in said
    monkeypatch.delenv("SEGWATCH_CHANNELS__TEAM__URL")
    monkeypatch.setenv("CHANNELS", "none of segwatch's")
    segwatch(dark, "notify", "--dry-run", code=0)


@contextlib.contextmanager
def secret_manager(held):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/v1/projects/p/secrets/hook/versions/latest:access"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            data = {"payload": {"data": base64.b64encode(held).decode()}}
            self.wfile.write(
                json.dumps(data if found else {"error": {"code": 404, "message": "no such secret"}}).encode()
            )

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_an_address_comes_from_secret_manager(dark, segwatch, team, monkeypatch):
    with secret_manager(f"{team.url}\n".encode()) as endpoint:
        monkeypatch.setenv("SEGWATCH_TARGETS__DEV__GOOGLE__ENDPOINTS__SECRET_MANAGER", endpoint)
        monkeypatch.setenv("TEAM_HOOK", "secret://projects/p/secrets/hook/versions/latest")
        segwatch(dark, "notify", "--test", "team")
        assert team.titles == ["segwatch: a test"]
        monkeypatch.setenv("TEAM_HOOK", "secret://projects/p/secrets/gone/versions/1")
        assert "Secret Manager, projects/p/secrets/gone" in error(segwatch(dark, "notify", "--test", "team", code=4))
        monkeypatch.setenv("TEAM_HOOK", "secret://hook")
        assert "names no secret: write it as secret://projects" in error(
            segwatch(dark, "notify", "--test", "team", code=2)
        )


@pytest.mark.parametrize("held", [b"", b"\xff\xfe"])
def test_a_secret_that_holds_no_text_is_told_so(dark, segwatch, monkeypatch, held):
    with secret_manager(held) as endpoint:
        monkeypatch.setenv("SEGWATCH_TARGETS__DEV__GOOGLE__ENDPOINTS__SECRET_MANAGER", endpoint)
        monkeypatch.setenv("TEAM_HOOK", "secret://projects/p/secrets/hook/versions/latest")
        said = error(segwatch(dark, "notify", "--test", "team", code=2))
        assert said.endswith("versions/latest holds no text: add a version that does")
