import datetime as dt
import os
import re
import shutil
import subprocess

import pyarrow as pa
import pytest

from segwatch.errors import DataError
from segwatch.report import render_report
from segwatch.report.events import rank_events
from segwatch.steps import predictions_table

NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
DIMENSIONS = ("country", "channel")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def predictions(segments, n_days=20, flagged=()):
    """flagged: (segment number, day number, value)."""
    schema = predictions_table(DIMENSIONS).arrow()
    special = {(s, d): v for s, d, v in flagged}
    rows = []
    for s, (country, channel) in enumerate(segments):
        for d in range(n_days):
            value = special.get((s, d), 100.0)
            row = {
                "metric": "m", "level": "country/channel", "country": country, "channel": channel,
                "segment_id": f"id{s}", "ts": NOW - dt.timedelta(days=n_days - d), "value": value, "expected": 100.0,
                "lower": 80.0, "upper": 120.0, "score": 1.0, "p_value": 0.001 if (s, d) in special else 0.5,
                "prediction": 1, "is_anomaly": (s, d) in special, "direction": None, "status": "ok", "reason": None,
                "model_version": "1", "run_id": "r", "scored_at": NOW,
            }  # fmt: skip
            if row["is_anomaly"]:
                row["direction"] = "up" if value > 100 else "down"
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema)


def render(rows):
    return render_report(rows, metric="m", dimensions=DIMENSIONS, grain="day", model=None, generated_at=NOW)


def dom(tmp_path, page, fragment=""):
    """The page's DOM after its script ran, in a real browser that can reach nothing."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("Chromium is not installed")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()
    finished = subprocess.run(
        [browser, *options, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", f"file://{tmp_path / 'page.html'}{fragment}"],
        capture_output=True, text=True, timeout=90, env={**os.environ, "TZ": "America/New_York"},
    )  # fmt: skip
    return finished.stdout


def test_flagged_days_in_a_row_are_one_event_and_the_largest_impact_ranks_first():
    rows = predictions(
        [("it", "a"), ("fr", "b")], flagged=[(0, 3, 50), (0, 4, 60), (0, 6, 70), (0, 12, 90), (1, 5, 300)]
    )
    ranked = rank_events(rows, DIMENSIONS, "day")
    assert [one.segment for one in ranked] == ["fr/b", "it/a"]
    assert [(event.n_periods, event.impact) for event in ranked[1].events] == [(3, -120.0), (1, -10.0)]


def test_the_page_loads_nothing_and_says_so_when_nothing_happened():
    page = render(predictions([("it", "a")]))
    assert "No anomaly in these days." in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert not re.findall(r"@import|url\(", page)


def test_no_predictions_are_an_error():
    with pytest.raises(DataError, match="segwatch infer"):
        render(predictions([]))


@pytest.mark.browser
def test_the_table_filters_by_dimension_in_a_browser(tmp_path):
    page = render(predictions([("it", "a"), ("fr", "a")], flagged=[(0, 3, 50), (0, 9, 500), (1, 5, 300)]))
    assert ">3 alerts<" in dom(tmp_path, page)
    assert ">2 alerts<" in dom(tmp_path, page, "#country=it")
    assert ">1 alerts<" in dom(tmp_path, page, "#country=it&direction=up")


@pytest.mark.browser
def test_values_of_the_data_are_text_whatever_they_hold(tmp_path):
    evil = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    page = render(predictions([(evil, "a'\"&b")], flagged=[(0, 3, 50)]))
    shown = dom(tmp_path, page)
    assert "<title>m · segwatch</title>" in shown
    assert ">1 alerts<" in shown
    assert "&lt;/script&gt;" in shown
