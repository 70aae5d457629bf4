import datetime as dt
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from report import predictions as many_predictions

from segwatch.core.incidents import Incident
from segwatch.core.segment import segment_id
from segwatch.errors import DataError
from segwatch.report import ModelFacts, render_report, table
from segwatch.report.events import rank_events
from segwatch.steps import predictions_table

NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
ROOT = Path(__file__).parents[2]
DIMENSIONS = ("country", "channel")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MODEL = ModelFacts(
    "segwatch-m",
    "3",
    "2026-01-01",
    "2026-11-01",
    NOW - dt.timedelta(hours=30),
    "2 segments and 1 roll-up",
    3,
    {"alert_rate": 0.04},
)


def predictions(segments, n_periods=20, flagged=(), dimensions=DIMENSIONS, step=dt.timedelta(days=1), **columns):
    """flagged: (segment number, period number, value). columns: in place of those made here, for every row."""
    schema = predictions_table(dimensions).arrow()
    special = {(s, d): v for s, d, v in flagged}
    rows = []
    for s, values in enumerate(segments):
        for d in range(n_periods):
            value = special.get((s, d), 100.0)
            row = {
                "metric": "m", "level": "/".join(dimensions), **dict(zip(dimensions, values, strict=True)),
                "segment_id": f"id{s}", "ts": NOW - step * (n_periods - d), "value": value, "expected": 100.0,
                "lower": 80.0, "upper": 120.0, "score": 1.0, "p_value": 0.001 if (s, d) in special else 0.5,
                "prediction": 1, "is_anomaly": (s, d) in special, "direction": None, "status": "ok", "reason": None,
                "model_version": "1", "run_id": "r", "scored_at": NOW,
            }  # fmt: skip
            if row["is_anomaly"]:
                row["direction"] = "up" if value > 100 else "down"
            rows.append({**row, **columns})
    return pa.Table.from_pylist(rows, schema=schema)


def times_as_large(rows, factor):
    """The rows with their numbers times a factor."""
    columns = rows.to_pydict()
    for name in ("value", "expected", "lower", "upper"):
        columns[name] = [factor * number for number in columns[name]]
    if factor < 0:
        columns["lower"], columns["upper"] = columns["upper"], columns["lower"]
    return pa.table(columns, schema=rows.schema)


def render(rows, dimensions=DIMENSIONS, grain="day", model=None, incidents=()):
    return render_report(
        rows, metric="m", dimensions=dimensions, grain=grain, model=model, generated_at=NOW, incidents=incidents
    )


def table_of(page):
    """Rows of the table's data, each by the names of its columns."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))
    return [dict(zip([c["name"] for c in data["columns"]], row, strict=True)) for row in data["rows"]]


def dom(tmp_path, page, fragment="", script=""):
    """The page's DOM after its script, and one that drives it, ran in a real browser that can reach nothing."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("Chromium is not installed")
    page = page.replace("</html>", f"<script>{script}</script></html>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()
    finished = subprocess.run(
        [browser, *options, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", f"file://{tmp_path / 'page.html'}{fragment}"],
        capture_output=True, text=True, timeout=90, env={**os.environ, "TZ": "America/New_York"},
    )  # fmt: skip
    return finished.stdout


class Outline(HTMLParser):
    """Tags of a document with their attributes and the tags they are in, and the text outside of scripts."""

    VOID = ("meta", "input", "link", "br", "img")

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), list(self.open)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if not any(tag in ("script", "style") for tag, _ in self.open):
            self.text += data

    def all(self, *names):
        return [one for one in self.tags if one[0] in names]


def test_flagged_days_in_a_row_are_one_event_and_the_largest_impact_ranks_first():
    rows = predictions(
        [("it", "a"), ("fr", "b")], flagged=[(0, 3, 50), (0, 4, 60), (0, 6, 70), (0, 12, 90), (1, 5, 300)]
    )
    ranked = rank_events(rows, DIMENSIONS, "day")
    assert [one.segment for one in ranked] == ["fr/b", "it/a"]
    assert [(event.n_periods, event.impact) for event in ranked[1].events] == [(3, -120.0), (1, -10.0)]


def test_the_page_loads_nothing_and_says_so_when_nothing_happened():
    page = render(predictions([("it", "a")]))
    assert "No anomalies in 4–23 Nov 2026." in page
    assert '<section id="alerts" hidden>' in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert not re.findall(r"@import|url\(", page)


def test_no_predictions_are_an_error():
    with pytest.raises(DataError, match="segwatch infer"):
        render(predictions([]))


def test_the_alerts_of_the_last_day_come_before_all_else():
    page = render(predictions([("it", "a"), ("fr", "b")], flagged=[(0, 3, 5000), (0, 19, 50), (1, 19, 300)]))
    section = page[page.index("<h2>Alerts on 23 Nov 2026</h2>") : page.index("<h2>Day by day</h2>")]
    assert re.findall(r"fr/b|it/a|\+200 \(\+200\s%\)|−50 \(−50\s%\)", section) == [
        "fr/b", "+200 (+200\xa0%)", "it/a", "−50 (−50\xa0%)",
    ]  # fmt: skip
    assert 'href="#segment-id0"' in section and 'id="segment-id0"' in page


def test_health_says_status_version_and_age():
    rows = predictions([("it", "a")])
    silent = predictions([("fr", "b")], value=None, expected=None, status="no_data", reason="nothing arrived")
    text = Outline(render(pa.concat_tables([rows, silent]), model=MODEL)).text
    assert "model version 3, 30 hours old" in text
    assert "statuslast day20 daysscored120no data120" in text
    assert "1 Jan – 31 Oct 2026" in text
    assert "fr/b no data: nothing arrived" in text
    assert "no longer in the registry" in Outline(render(rows)).text


LONG = "x" * 200
FLAGGED = [(0, 3, 50), (0, 4, 500)]
UNUSUAL = {
    "one dimension": {"rows": predictions([("it",)], flagged=FLAGGED, dimensions=("c",)), "dimensions": ("c",)},
    "six dimensions": {"rows": predictions([tuple("abcdef")], flagged=FLAGGED, dimensions=tuple("uvwxyz")),
                       "dimensions": tuple("uvwxyz")},
    "hours": {"rows": predictions([("it", "a")], flagged=FLAGGED, step=dt.timedelta(hours=1)), "grain": "hour"},
    "negative values": {"rows": times_as_large(predictions([("it", "a")], flagged=FLAGGED), -1)},
    "a huge value": {"rows": predictions([("it", "a")], flagged=[(0, 3, 1e12)])},
    "huge values": {"rows": times_as_large(predictions([("it", "a")], flagged=FLAGGED), 1e300)},
    "a long name": {"rows": predictions([(LONG, LONG)], flagged=FLAGGED)},
    "no value": {"rows": predictions([("it", "a")], flagged=FLAGGED, value=None)},
    "nothing expected": {"rows": predictions([("it", "a")], flagged=FLAGGED, expected=None, p_value=None)},
    "NaN expected": {"rows": predictions([("it", "a")], flagged=FLAGGED, expected=float("nan"), p_value=float("nan"))},
    "zero expected": {"rows": predictions([("it", "a")], flagged=FLAGGED, expected=0.0)},
    "open intervals": {"rows": predictions([("it", "a")], flagged=FLAGGED, lower=None, upper=None)},
    "nothing scored": {"rows": predictions([("it", "a")], value=None, expected=None, status="too_short")},
    "a single period": {"rows": predictions([("it", "a")], n_periods=1, flagged=[(0, 0, 50)])},
    "no direction": {"rows": predictions([("it", "a")], flagged=FLAGGED, direction=None)},
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSUAL)
def test_a_page_of_unusual_rows_is_whole(case):
    page = render(**UNUSUAL[case])
    assert not re.search(r"\b(NaN|nan|None|null|inf|Infinity|undefined)\b", Outline(page).text)
    assert "NaN" not in "".join(re.findall(r"<svg.*?</svg>", page))
    n_flagged = sum(UNUSUAL[case]["rows"]["is_anomaly"].to_pylist())
    assert len(table_of(page)) == n_flagged


def test_nothing_scored_is_said_in_place_of_an_empty_chart():
    page = render(UNUSUAL["nothing scored"]["rows"])
    assert "No segment was scored in these days" in page
    assert "<svg" not in page


def test_a_rate_keeps_its_digits_in_the_table():
    rows = times_as_large(predictions([("it", "a")], flagged=[(0, 3, 50)]), 1e-4)
    assert [(row["value"], row["impact"]) for row in table_of(render(rows))] == [(0.005, -0.005)]


def test_a_day_without_a_scored_row_breaks_the_lines_of_the_totals():
    rows = predictions([("it", "a")]).to_pylist()
    rows[7] |= {"value": None, "expected": None, "status": "no_data"}
    page = render(pa.Table.from_pylist(rows, schema=predictions_table(DIMENSIONS).arrow()))
    value_line = re.search(r'<path d="([^"]*)" stroke="var\(--ink\)"', page).group(1)
    assert value_line.count("M") == 2


def test_charts_do_not_depend_on_the_time_zone_of_the_machine():
    page = render(predictions([("it", "a")], flagged=[(0, 3, 50)], step=dt.timedelta(hours=1)), grain="hour")
    draw = (
        "import test_page as t; import datetime as dt;"
        "print(t.render(t.predictions([('it', 'a')], flagged=[(0, 3, 50)], step=dt.timedelta(hours=1)), grain='hour'))"
    )
    folders = os.pathsep.join(str(ROOT / folder) for folder in ("tests/report", "benchmarks", "src"))
    environment = {**os.environ, "TZ": "Asia/Kolkata", "PYTHONPATH": folders, "PYTHONDONTWRITEBYTECODE": "1"}
    elsewhere = subprocess.run(
        [sys.executable, "-c", draw], env=environment, capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == page.strip()


@pytest.mark.browser
def test_thousands_of_segments_get_few_charts_and_few_table_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "MAX_TABLE_ROWS", 1500)
    rows = many_predictions(4000, 20, flagged=0.03)
    dimensions = ("country", "platform", "channel")
    page = render_report(rows, metric="m", dimensions=dimensions, grain="day", model=None, generated_at=NOW)
    n_flagged = int(np.sum(rows["is_anomaly"].to_numpy()))
    assert page.count("<article") == 20
    assert page.count("<svg") == 20 + 2
    assert re.search(r"The 20 worst of \d,\d{3} segments with alerts", page)
    shown = dom(tmp_path, page)
    assert f">1,500 alerts, of the 1,500 worst of {n_flagged:,}, the first 500 shown<" in shown
    assert len(re.findall("<tr>", shown[shown.index('id="alerts"') : shown.index("<h2>Health")])) == 1 + 500
    assert re.search(r">\d+ alerts, of the 1,500 worst of [\d,]+<", dom(tmp_path, page, "#country=c1"))


@pytest.mark.browser
def test_the_table_filters_by_dimension_in_a_browser(tmp_path):
    page = render(predictions([("it", "a"), ("fr", "a")], flagged=[(0, 3, 50), (0, 9, 500), (1, 5, 300)]))
    assert ">3 alerts<" in dom(tmp_path, page)
    assert ">2 alerts<" in dom(tmp_path, page, "#country=it")
    assert ">1 alert<" in dom(tmp_path, page, "#country=it&direction=up")
    assert ">1 alert<" in dom(tmp_path, page, "#day=2026-11-13")
    assert ">0 alerts<" in dom(tmp_path, page, "#search=nowhere")


@pytest.mark.browser
def test_dimensions_called_as_other_columns_filter_on_their_own(tmp_path):
    names = ("day", "search", "change")
    page = render(
        predictions([("a", "b", "c"), ("d", "e", "f")], flagged=[(0, 3, 50), (1, 4, 50)], dimensions=names), names
    )
    assert ">1 alert<" in dom(tmp_path, page, "#day=2026-11-07")
    choose = (
        "const select = document.querySelectorAll('#filters select')[1]; select.value = 'd'; select.onchange();"
        "document.title = location.hash"
    )
    shown = dom(tmp_path, page, script=choose)
    assert ">1 alert<" in shown and "<title>#day2=d</title>" in shown


@pytest.mark.browser
def test_the_table_sorts_by_keyboard_and_keeps_the_focus(tmp_path):
    page = render(predictions([("it", "a"), ("fr", "b")], flagged=[(0, 3, 20), (0, 9, 500), (1, 5, 110)]))
    first = "document.querySelector('#alerts tbody tr').innerText.split(/\\s+/)[2]"
    press = (
        f"const seen = [{first}], button = document.querySelectorAll('#alerts th button')[2]; button.focus();"
        f"for (const _ of [1, 2]) {{ button.click(); seen.push({first}); }}"
        "seen.push(document.activeElement === button, button.parentElement.ariaSort);"
        "document.title = seen.join(' ')"
    )
    assert "<title>it fr it true descending</title>" in dom(tmp_path, page, script=press)


@pytest.mark.browser
def test_a_screen_reader_is_told_what_there_is(tmp_path):
    rows = predictions([("it", "a"), ("fr", "b")], flagged=[(0, 3, 50), (0, 19, 500)])
    outline = Outline(dom(tmp_path, render(rows, model=MODEL)))
    assert outline.all("html")[0][1]["lang"] == "en"
    levels = [int(tag[1]) for tag, *_ in outline.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for _, _, parents in outline.all("svg"):
        assert any(a.get("role") == "img" and "Nov 2026" in a["aria-label"] for _, a in parents)
    for _, attributes, parents in outline.all("select", "input"):
        assert "label" in [tag for tag, _ in parents], attributes
    assert {attributes["scope"] for _, attributes, _ in outline.all("th")} == {"col", "row"}
    assert [a["aria-sort"] for _, a, _ in outline.all("th") if "aria-sort" in a] == ["descending"]


def incident(values, status="ongoing", labels=("it/a", "it/b")):
    day = np.datetime64("2026-11-23")
    return Incident(
        "id", day, day, day, status, "down", values, -50.0, 100.0, 0.5, -50.0, 50.0, 9, ("id0", "id1"), labels
    )  # fmt: skip


def test_incidents_come_first_in_words_and_lead_to_their_chart():
    rows = predictions([("it", "a")], flagged=[(0, 19, 50)])
    rows = rows.set_column(rows.column_names.index("segment_id"), "segment_id",
                           pa.repeat(segment_id(DIMENSIONS, ("it", "a")), rows.num_rows))  # fmt: skip
    page = render(rows, incidents=[incident(("it", "a")), incident(("<b>", None), "resolved")])
    text = " ".join(Outline(page).text.split())
    assert "Incidents▼it/a down 50 % (-50) on 2026-11-23, 9 segments: ongoingmost of it in it/a, it/b" in text
    assert "and 5 more" in text and "&lt;b&gt;/* down (-50 in all)" in page
    [link] = re.findall(r'href="#(segment-[0-9a-f]+)">it/a down', page)
    assert f'id="{link}"' in page
    assert "Incidents" not in Outline(render(rows)).text


@pytest.mark.browser
def test_values_of_the_data_are_text_whatever_they_hold(tmp_path):
    evil = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    page = render(predictions([(evil, "a'\"&b")], flagged=[(0, 3, 50), (0, 19, 50)]))
    shown = dom(tmp_path, page)
    assert "<title>m · segwatch</title>" in shown
    assert ">2 alerts<" in shown
    assert "&lt;/script&gt;" in shown


def with_rollups():
    """Two segments, the roll-up of both, all flagged on the last day, where a third segment has no data."""
    segments = predictions([("it", "a"), ("it", "b")], flagged=[(0, 19, 50), (1, 19, 60)])
    total = predictions(
        [(None, None)], flagged=[(0, 19, 110)], level="total", segment_id="id9", value=110.0, expected=200.0
    )
    silent = predictions([("fr", "a")], n_periods=1, status="no_data", value=None, segment_id="id7")
    country = predictions([("fr", None)], n_periods=1, level="country", status="no_data", value=None, segment_id="id8")
    return pa.concat_tables([silent, segments, country, total])


def test_totals_are_those_of_the_total_and_roll_ups_are_counted_apart():
    text = " ".join(Outline(render(with_rollups(), model=MODEL)).text.split())
    assert "110total on 23 Nov 2026, −45 % against expected" in text
    assert "of 4 segments scored" not in text and "of 3 segments scored on 23 Nov 2026" in text
    assert "alerts per 1,000 scored rows" in text and "3of 3 segments and 2 roll-ups with alerts" in text
    assert "Segments by status" in text and "Roll-ups by status" in text
    assert "3 fitted of 2 segments and 1 roll-up" in text
    assert "*/* 23 Nov" not in text and "total" in text
    # What explains the others comes first.
    silent = text[text.index("Not scored on the last day") :]
    assert silent.index("fr/* no data") < silent.index("fr/a no data")


def test_a_dimension_that_is_summed_out_is_a_star_in_the_table_and_its_filter(tmp_path):
    page = render(with_rollups())
    assert {(row["country"], row["channel"]) for row in table_of(page)} == {("it", "a"), ("it", "b"), ("*", "*")}
    shown = Outline(dom(tmp_path, page, "#country=*"))
    assert "1 alert" in shown.text and "null" not in shown.text
