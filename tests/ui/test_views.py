"""What each page says, asked over a real connection."""

import json
import subprocess
import sys
import urllib.parse

import duckdb
import numpy as np
import pytest

from segwatch.core.segment import segment_id
from segwatch.registries import open_registry
from segwatch.settings import load_settings
from segwatch.warehouses import duckdb as adapter

from .conftest import DIMENSIONS, LAST, NOW, OUTAGE, SEGMENTS, add_metric, outage, predict

IOS = segment_id(DIMENSIONS, (None, "ios", None))
RISEN = segment_id(DIMENSIONS, ("fr", "web", "ads"))


def test_the_page_opens_with_what_broke_the_open_incidents_first(ask):
    page = ask()
    assert "1 open incident" in page.words
    first, second = page.links("/incidents/")
    said = page.words
    assert said.index("country fr, platform web, channel ads") < said.index("platform ios")
    assert "Rose by 200 % on 23 Nov 2026: 200 more than expected, 100 % of that day’s whole rise." in said
    assert "Fell by 97 % on 12 Nov 2026: 582 less than expected in 6 segments, 100 % of that day’s whole fall." in said
    assert len(page.all("polyline")) >= 4
    assert ask(first) and ask(second)


@pytest.mark.parametrize(
    ("query", "n"),
    [
        ("status=open", 1), ("status=resolved", 1), ("direction=down", 1), ("direction=up&status=resolved", 0),
        ("q=IOS", 1), ("q=fr/web", 1), ("q=fr/ios", 0), ("d.platform=ios", 1), ("d.platform=nokia", 0),
        ("start=2026-11-20", 1), ("end=2026-11-14", 1), ("start=2026-01-01&end=2026-02-01", 0), ("page=7", 2),
    ],
)  # fmt: skip
def test_incidents_are_filtered_by_the_address(ask, query, n):
    page = ask(f"/?{query}")
    assert f"{n} incident{'s' * (n != 1)}" in page.words
    assert len(page.links("/incidents/")) == (0 if query == "page=7" else n)


def test_an_incident_shows_its_chart_its_segments_by_impact_and_its_days(ask):
    [link] = ask("/?d.platform=ios").links("/incidents/")
    page = ask(link)
    [chart] = [one for one in page.all("div") if one.get("role") == "img"]
    assert chart["aria-label"].startswith("platform ios, ") and "Alerts on 12 Nov 2026." in chart["aria-label"]
    assert len(page.all("svg")) >= 2
    assert "Where: its segments on 12 Nov 2026" in page.words
    assert len(page.links("/segments/")) == 6 + 1
    assert f"/segments/{IOS}" in page.links("/segments/")
    assert page.links(f"{link}?day=2026-11-12")
    [drill] = page.links("/drill?")
    assert "Where the change on 12 Nov 2026 comes from" in ask(drill).words


def test_a_cause_that_is_not_watched_is_charted_as_the_sum_of_its_segments(tmp_path, serve):
    add_metric(tmp_path)
    predict(tmp_path, special=lambda v, ts: 5.0 if v[:2] == ("it", "ios") and ts == OUTAGE else 100.0)
    with duckdb.connect(tmp_path / "segwatch.duckdb") as connection:
        connection.execute(
            "UPDATE incidents SET level = 'country/platform', country = 'it', platform = 'ios', channel = NULL"
        )
        connection.execute("UPDATE incidents SET segment_id = 'none'")
    ask = serve(tmp_path).client
    page = ask(ask().links("/incidents/")[0])
    assert "country it, platform ios" in page.words and len(page.all("svg")) == 2
    assert "range that would not alert" not in page.words
    assert len(page.links("/segments/")) == 2 + 1


def test_segments_are_searched_filtered_ordered_and_paged(ask):
    page = ask("/segments")
    assert f"{len(SEGMENTS)} found, 1 of them alerting" in page.words
    assert page.links("/segments/")[0] == f"/segments/{RISEN}"
    assert "6 found" in ask("/segments?q=ios").words
    assert "2 found" in ask("/segments?q=IT/iOS").words
    assert "2 found" in ask("/segments?d.country=it&d.platform=ios").words
    assert "9 found" in ask("/segments?kind=rollups").words
    assert "27 found" in ask("/segments?kind=all").words
    assert "1 found" in ask("/segments?flagged=yes").words
    assert "7 found, 7 of them" in ask("/segments?flagged=yes&day=2026-11-12&kind=all&q=ios").words
    assert "No segment is like that" in ask("/segments?status=ended").words
    assert "No segment is like that" in ask("/segments?page=9").words


def test_a_list_of_many_goes_on_page_by_page(tmp_path, serve):
    add_metric(tmp_path, dimensions=("shop",))
    predict(tmp_path, segments=[(f"shop {i}",) for i in range(120)], periods=2)
    ask = serve(tmp_path).client
    seen, path = [], "/segments?q=shop&order=value"
    for number in (1, 2, 3):
        page = ask(path)
        assert f"Page {number} of 3" in page.words
        seen += page.links("/segments/")
        path = next((one["href"] for one in page.all("a") if one.get("rel") == "next"), None)
    assert path is None and len(seen) == len(set(seen)) == 120


def test_a_segment_shows_its_chart_its_flagged_days_and_what_is_around_it(ask):
    page = ask(f"/segments/{RISEN}")
    assert "300 on 23 Nov 2026, 100 expected: +200 (+200 %). ▲ up It alerts." in page.words
    assert "1 in 13 Oct – 23 Nov 2026" in page.words and "2026-11-23" in page.words
    around = page.words[page.words.index("Around it") :]
    for name in ("total", "fr/*/*", "*/web/*", "*/*/ads", "de/web/ads", "fr/ios/ads", "fr/web/search"):
        assert name in around
    rollup = ask(f"/segments/{IOS}")
    assert "*/ios/*" in rollup.words and "Its segments, those that changed most" in rollup.words
    assert "3 on 12 Nov" not in rollup.words and "2026-11-12" in rollup.words


def test_a_segment_that_has_ended_is_found_in_the_days_that_it_had(tmp_path, serve):
    add_metric(tmp_path)
    predict(tmp_path, last=LAST - 10, periods=20)
    predict(tmp_path, segments=SEGMENTS[:3], periods=5)
    gone = segment_id(DIMENSIONS, SEGMENTS[7])
    ask = serve(tmp_path).client
    assert "100 on 13 Nov 2026" in ask(f"/segments/{gone}").words
    assert "has no segment" in ask.get(f"/segments/{gone}?end=2026-11-24&periods=3").words


def test_an_alert_is_explained_where_the_table_says_what_made_it(tmp_path, serve):
    add_metric(tmp_path)
    predict(tmp_path, special=outage)
    with duckdb.connect(tmp_path / "segwatch.duckdb") as connection:
        connection.execute("ALTER TABLE predictions ADD COLUMN IF NOT EXISTS contributions VARCHAR")
        parts = json.dumps([["z", 9.0, 0.75], ["long", 3.1, 0.25]])
        connection.execute("UPDATE predictions SET contributions = ? WHERE is_anomaly", [parts])
    page = serve(tmp_path).client(f"/segments/{RISEN}")
    because = "the value itself, higher than expected: 75 %; the last 7 days together, higher than expected: 25 %"
    assert because in page.words
    # In words, with its incident.
    assert "fr/web/ads had 300 users on 2026-11-23 where 100 were expected (200 % more)." in page.words
    assert "What sets it apart from a typical day: the value itself, higher than expected (75 %)" in page.words
    assert len(page.links("/incidents/")) == 1


def test_any_day_of_a_segment_is_told_in_words(ask):
    page = ask(f"/segments/{RISEN}?day={OUTAGE}")
    assert f"fr/web/ads had 100 users on {OUTAGE} where 100 were expected" in page.words
    assert "It was not flagged" in page.words and not page.links("/incidents/")
    assert "in words" not in ask(f"/segments/{RISEN}?day=2020-01-01").words


def test_the_drill_down_goes_from_dimension_to_dimension_to_a_segment(ask):
    page = ask(f"/drill?day={OUTAGE}&by=platform")
    assert page.words.index("ios") < page.words.index("android") and "−582 (−97 %)" in page.words
    rows = [link for link in page.links("/drill?") if "d.platform" in link]
    assert len(rows) == 3 and "d.platform=ios" in rows[0] and "by=country" in rows[0]
    page = ask(rows[0])
    assert "everything › platform ios" in page.words
    rows = [link for link in page.links("/drill?") if "d.country" in link]
    assert len(rows) == 3 and all("d.platform=ios" in link and "by=channel" in link for link in rows)
    [*_, leaf] = ask(rows[0]).links("/segments/")
    assert "de/ios/search" in ask(leaf).words


def test_a_drill_down_that_says_everything_leads_to_the_segment(ask):
    path = "/drill?d.country=fr&d.platform=web&d.channel=ads"
    assert ask(path).links("/segments/") == [f"/segments/{RISEN}"]
    assert "No segment is like that" in ask("/drill?d.country=nowhere").words


def test_ratios_are_drilled_by_their_numerators_and_means_are_said_to_be_means(tmp_path, serve):
    add_metric(tmp_path, "rate", more='denominator = "d"\n')
    add_metric(tmp_path, "heat", more='missing = "gap"\n')
    predict(tmp_path, "rate", segments=SEGMENTS[:2], periods=2, value=0.5, expected=0.4, denominator=10.0)
    predict(tmp_path, "heat", segments=SEGMENTS[:2], periods=2, value=-20.0, expected=-10.0)
    ask = serve(tmp_path).client
    ratio = ask("/drill?metric=rate&by=platform").words
    assert "+2 in all against what was expected, in the numerator" in ratio and "0.5 0.4" in ratio
    mean = ask("/drill?metric=heat&by=platform").words
    assert "these values cannot be added up" in mean and "−20 −10" in mean


def test_runs_are_listed_with_what_they_wrote(ask):
    page = ask("/runs")
    assert "run1 2026-11-24 06:00 20 Oct – 23 Nov 2026 version 1" in page.words
    assert "No run wrote any of them" in ask("/runs?version=9").words


def test_backtests_stand_side_by_side_and_are_asked_for_where_there_are_none(tmp_path, serve):
    add_metric(tmp_path)
    predict(tmp_path, periods=3)
    ask = serve(tmp_path).client
    assert "segwatch backtest --start 2026-10-27 --end 2026-11-24" in ask("/backtest").words
    with duckdb.connect(tmp_path / "segwatch.duckdb") as connection:
        for run, made, n in (("a", "2026-11-20", 3), ("b", "2026-11-21", 8)):
            for start, stop in (("2026-10-01", "2026-10-08"), ("2026-10-08", "2026-10-15")):
                connection.execute(
                    "INSERT INTO backtests VALUES ('users', ?, ?, ?, NULL, 7, ?, ?, 100, ?, ?)",
                    [run, made, f"{run}.toml", start, stop, n, json.dumps([["it/<b>", n, -12.5]])],
                )
    page = ask("/backtest")
    assert page.words.index("b.toml") < page.words.index("a.toml")
    assert "in all 16 alerts, 80.0 of 1,000 rows 6 alerts, 30.0 of 1,000 rows" in page.words
    assert "2026-10-01 to 2026-10-08 8 alerts it/<b> −12.5 3 alerts" in page.words and not page.all("b")[2:]
    with duckdb.connect(tmp_path / "segwatch.duckdb") as connection:
        connection.execute("DROP TABLE backtests")
    assert "segwatch create" in ask("/backtest").words


def test_health_names_data_that_did_not_arrive_once_and_says_how_old_all_is(tmp_path, serve):
    add_metric(tmp_path)
    predict(tmp_path, special=lambda values, ts: None if values[0] == "it" and ts == OUTAGE else 100.0)
    ask = serve(tmp_path).client
    page = ask("/health")
    assert "23 Nov 2026 last scored day, it ended 6 hours ago no champion run segwatch train" in page.words
    assert "Every segment was scored." in page.words
    of_gap = ask(next(link for link in page.links("/health?") if "2026-11-12" in link)).words
    assert "Data that did not arrive it/*/* (6 segments) Not scored 7 segments and sums" in of_gap


def test_a_project_of_several_metrics_has_a_picker_and_keeps_to_the_one_chosen(tmp_path, serve):
    for name in ("users", "orders"):
        add_metric(tmp_path, name)
        predict(tmp_path, name, periods=3, special=outage)
    ask = serve(tmp_path).client
    page = ask("/?metric=orders")
    assert [one for one in page.all("option") if "selected" in one]
    assert all("metric=orders" in link for link in page.links("/") if not link.startswith("/static"))
    assert "orders up to 23 Nov 2026" in page.words
    assert ask(page.links("/incidents/")[0]).words.count("orders") >= 1
    assert ask.get("/?metric=visits").status == 404


def test_hours_are_told_by_the_hour(tmp_path, serve):
    add_metric(tmp_path, more='grain = "hour"\n')
    last = np.datetime64("2026-11-23T07", "h")
    predict(tmp_path, last=last, periods=72, special=lambda v, ts: 5.0 if v[1] == "ios" and ts == last - 5 else 100.0)
    ask = serve(tmp_path, now=NOW).client
    page = ask("/?start=2026-11-23T00:00&end=2026-11-23T08:00")
    assert "Fell by 95 % on 23 Nov 2026 02:00" in page.words
    incident = ask(page.links("/incidents/")[0])
    assert "Where: its segments on 23 Nov 2026 02:00" in incident.words
    assert ask(incident.links("/drill?")[0]) and ask("/segments?day=2026-11-23+02:00&flagged=yes")
    assert ask("/health?day=2026-11-23T03:00")
    assert ask(f"/segments/{IOS}")


@pytest.mark.parametrize("path", ["/segments?day=soon", "/segments?day=2026-11-23T07", "/segments?day=9999-01-01",
                                  "/segments?day=2026-02-30", "/segments?page=0", "/segments?page=x", "/?page=-1",
                                  "/segments?page=9999999999999", "/?start=2026-11-02&end=2026-11-01",
                                  f"/segments/{IOS}?periods=0", f"/segments/{IOS}?periods=1001",
                                  f"/segments/{IOS}?end=x",
                                  "/health?day=%00", "/drill?day=%F0%9F%92%A5"])  # fmt: skip
def test_an_address_that_cannot_be_followed_is_refused_in_a_sentence(ask, path):
    reply = ask.get(path)
    assert reply.status == 400 or (path == "/health?day=%00" and reply.status == 200)
    assert "Traceback" not in reply.body


@pytest.mark.parametrize("path", ["/nowhere", "/incidents/nothing", "/segments/nothing", "/segments/..%2f..%2fetc",
                                  "/incidents/%00", "/static/../app.py", "/static/%2e%2e/app.py",
                                  "/?metric=%3Cscript%3E"])  # fmt: skip
def test_what_is_not_there_is_said_so(ask, path):
    assert ask.get(path).status == 404


def test_an_empty_project_says_what_to_run(tmp_path, serve):
    add_metric(tmp_path)
    ask = serve(tmp_path).client
    for path in ("/", "/segments", "/drill", "/runs", "/health"):
        reply = ask.get(path)
        assert reply.status == 503 and "run `segwatch create` to make it" in reply.words
    assert "run segwatch train" in ask("/models").words
    assert not (tmp_path / "segwatch.duckdb").exists()
    predict(tmp_path, periods=1)
    with duckdb.connect(tmp_path / "segwatch.duckdb") as connection:
        connection.execute("DELETE FROM predictions")
    reply = ask.get("/")
    assert reply.status == 409 and "run `segwatch run`" in reply.words


def test_a_project_of_before_incidents_says_what_to_run_and_shows_the_rest(tmp_path, serve):
    add_metric(tmp_path)
    predict(tmp_path, periods=3)
    with duckdb.connect(tmp_path / "segwatch.duckdb") as connection:
        connection.execute("DROP TABLE incidents")
    ask = serve(tmp_path).client
    reply = ask.get("/")
    assert reply.status == 409 and "segwatch create" in reply.words
    assert ask("/segments")


def test_a_quiet_project_says_so(tmp_path, serve):
    add_metric(tmp_path)
    predict(tmp_path, periods=3)
    assert "No open incident" in serve(tmp_path).client().words


HELD = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read(1)"


def test_while_another_process_writes_the_page_says_so_and_comes_back_by_itself(project, serve, monkeypatch):
    monkeypatch.setattr(adapter, "LOCK_WAIT_SECONDS", 0.2)
    ask = serve(project).client
    path = project / "segwatch.duckdb"
    with subprocess.Popen([sys.executable, "-c", HELD, path], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        reply = ask.get("/segments?q=ios")
        assert (
            reply.status == 503 and reply.headers["retry-after"] == "2" and "in use by another process" in reply.words
        )
        assert [one for one in reply.page.all("meta") if one.get("http-equiv") == "refresh" and one["content"] == "2"]
        holder.communicate("x")
    assert ask("/segments?q=ios")


def test_nothing_is_held_open_once_a_page_was_answered(project, serve):
    ask = serve(project).client
    for path in ("/", "/segments", f"/segments/{IOS}", "/drill", "/runs", "/backtest", "/health", "/nowhere"):
        ask.get(path)
        writes = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('CREATE OR REPLACE TEMP TABLE x AS SELECT 1')"
        subprocess.run([sys.executable, "-c", writes, project / "segwatch.duckdb"], check=True)


ODD = (
    "<script>alert(1)</script>", "' onmouseover='alert(1)", '"><img src=x onerror=alert(1)>', "javascript:alert(1)",
    "line\nbreak\ttab", "\u202eevil\u2066", "a/b", "*", "{{ 7*7 }}", "%3Cb%3E", "&amp;", "été 💥", "x" * 200, "O'Brien",
    "back\\slash", "a+b c", "#hash?query=1&d.country=it", "<null>", " ",
)  # fmt: skip


def test_names_of_segments_are_text_wherever_they_stand(tmp_path, serve):
    add_metric(tmp_path, dimensions=("country c", "window"))
    segments = [(one, "w") for one in ODD]
    predict(tmp_path, segments=segments, periods=5, special=lambda _, ts: 900.0 if ts == LAST else 100.0)
    ask = serve(tmp_path).client
    pages = ["/", "/segments", "/drill", "/health", "/runs", "/segments?q=%3Cscript%3E", "/drill?by=window"]
    pages += ask().links("/incidents/") + ask("/segments?kind=all").links("/segments/") + ask("/drill").links("/drill?")
    hostile = "/segments?" + urllib.parse.urlencode({"q": ODD[2], "d.window": ODD[0], "done": ODD[2], "day": str(LAST)})
    for path in [*pages, hostile]:
        page = ask(path)
        tags = {tag for tag, _ in page.tags}
        assert not tags & {"script", "img", "iframe", "object", "embed", "b" if "drill" in path else "iframe"}
        for _, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            for link in (attributes.get("href"), attributes.get("action")):
                assert link is None or link.startswith(("/", "#"))
        assert "\u202e" not in page.text and "49" not in page.text.replace("2049", "").split()
    for name in ODD:
        found = ask("/segments?" + urllib.parse.urlencode({"d.country c": name}))
        if name.strip():
            assert "1 found" in found.words, name


def test_every_link_of_every_page_leads_somewhere(ask):
    seen, todo = set(), ["/"]
    while todo:
        path = todo.pop()
        if path in seen or len(seen) > 150:
            continue
        seen.add(path)
        page = ask(path)
        assert len(page.all("h1")) == 1 and len(page.all("main")) == 1
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        todo += [link.partition("#")[0] for link in page.links("/") if link.partition("#")[0]]
    assert len(seen) > 60


def test_nothing_of_any_page_is_loaded_from_elsewhere(ask):
    for path in ("/", "/segments", f"/segments/{IOS}", "/drill", "/models", "/runs", "/backtest", "/health"):
        reply = ask.get(path)
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "unsafe" not in reply.headers["content-security-policy"]
        for one in reply.page.all("link", "img", "script", "source"):
            assert one.get("href", one.get("src")).startswith("/static/")
            assert ask(one["href"]) is not None


def test_the_style_is_kept_by_the_browser_until_it_changes(ask):
    style = next(one["href"] for one in ask().all("link") if one["rel"] == "stylesheet")
    reply = ask.get(style)
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert "prefers-color-scheme: dark" in reply.body and reply.headers["content-type"].startswith("text/css")
    assert ask.get("/").headers["cache-control"] == "no-store"


@pytest.fixture
def versions(tmp_path):
    """A project with three versions, the last one being the champion, promoted in their order."""
    add_metric(tmp_path)
    predict(tmp_path, periods=3)
    target = load_settings(tmp_path / "segwatch.toml").target(None)
    registry = open_registry(target.registry, "", target.google, "")
    registry.create()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    for i in range(3):
        made = registry.register(
            "segwatch-users",
            tmp_path / "bundle",
            parameters={"window_start": "2026-01-01", "window_end": f"2026-11-0{i + 1}"},
            metrics={"alert_rate": 0.0123, "segments_ok": 27},
            tags={"segwatch.run_id": f"r{i}", "segwatch.gate": "passed <b>"},
        )
        registry.promote("segwatch-users", made.version)
    return tmp_path, registry


def test_versions_are_listed_promoted_and_rolled_back_and_all_is_audited(versions, serve):
    folder, registry = versions
    page = serve(folder)
    ask = page.client
    reply = ask.get("/models")
    assert "3 champion" in reply.words and "1.2 %" in reply.words and "passed <b>" in reply.words
    assert len([one for one in reply.page.all("button") if "aria-label" in one]) == 2
    done = ask.post("/actions/promote", {"form_token": reply.form_token, "version": "1"})
    assert done.status == 303 and registry.resolve("segwatch-users").version == "1"
    assert "Version 1 is the champion." in ask(done.headers["location"]).words
    done = ask.post("/actions/rollback", {"form_token": reply.form_token})
    assert done.status == 303 and registry.resolve("segwatch-users").version == "3"
    assert page.audited == [
        ("ann", "promote", "version 1", "champion before: 3"),
        ("ann", "rollback", "version 3", "champion before: 1"),
    ]


def test_a_version_that_is_not_there_is_told_and_nothing_changes(versions, serve):
    folder, registry = versions
    page = serve(folder)
    token = page.client.get("/models").form_token
    for version in ("9", "", "x'; DROP"):
        reply = page.client.post("/actions/promote", {"form_token": token, "version": version})
        assert reply.status == 409, version
    assert registry.resolve("segwatch-users").version == "3" and page.audited == []
    assert page.client.post("/actions/delete", {"form_token": token}).status == 404


def test_times_do_not_depend_on_rows_of_other_metrics(tmp_path, serve):
    add_metric(tmp_path, "users")
    add_metric(tmp_path, "orders")
    predict(tmp_path, "users", periods=3)
    predict(tmp_path, "orders", periods=3, last=LAST - 100)
    ask = serve(tmp_path).client
    assert "users up to 23 Nov 2026" in ask("/?metric=users").words
    assert "orders up to 15 Aug 2026" in ask("/?metric=orders").words


def test_rows_written_while_the_page_is_open_are_seen(tmp_path, serve):
    add_metric(tmp_path)
    predict(tmp_path, periods=3, last=LAST - 1)
    ask = serve(tmp_path).client
    assert "Segments on 22 Nov 2026" in ask("/segments").words
    predict(tmp_path, periods=1, segments=[*SEGMENTS, ("xx", "new", "ads")])
    page = ask("/segments")
    assert "Segments on 23 Nov 2026" in page.words
    assert {"value": "xx"} in [one for one in page.all("option")]
