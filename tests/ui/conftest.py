"""Projects whose tables are written as `segwatch infer` writes them, and the page of one over real connections."""

import datetime as dt
import http.cookiejar
import itertools
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
import uvicorn

from segwatch.core.segment import level, segment_id
from segwatch.core.window import Window, length
from segwatch.data import audit_schema, backtests_schema, incident_labels_schema
from segwatch.incidents import incidents_table, update_incidents
from segwatch.settings import Settings, load_settings
from segwatch.steps import predictions_table
from segwatch.ui.app import application
from segwatch.ui.guard import Access
from segwatch.ui.visit import Project
from segwatch.warehouses import open_warehouse
from segwatch.warehouses.asked import Asked, Order

NOW = dt.datetime(2026, 11, 24, 6, tzinfo=dt.UTC)
LAST = np.datetime64("2026-11-23")
SETTINGS = """
[targets.dev]
warehouse = "duckdb:///segwatch.duckdb"
registry = "sqlite:///mlflow.db"
"""
METRIC = """
[metrics.NAME]
table = "NAME_table"
time = "ts"
value = "n"
dimensions = DIMENSIONS
"""
DIMENSIONS = ("country", "platform", "channel")
COUNTRIES, PLATFORMS, CHANNELS = ("de", "fr", "it"), ("android", "ios", "web"), ("ads", "search")
SEGMENTS = tuple(itertools.product(COUNTRIES, PLATFORMS, CHANNELS))
OUTAGE = np.datetime64("2026-11-12")
SECONDS = 60


def add_metric(folder, name="users", dimensions=DIMENSIONS, more=""):
    """The settings have the metric."""
    path = folder / "segwatch.toml"
    before = path.read_text() if path.exists() else SETTINGS
    listed = "[" + ", ".join(f'"{one}"' for one in dimensions) + "]"
    path.write_text(before + METRIC.replace("NAME", name).replace("DIMENSIONS", listed) + more)


def rolled_up(segments, dimensions):
    """The total and the sums by each dimension's values."""
    if len(dimensions) > 1:
        for d in range(len(dimensions)):
            for value in dict.fromkeys(one[d] for one in segments):
                yield tuple(value if i == d else None for i in range(len(dimensions)))
    yield (None,) * len(dimensions)


def predict(folder, name="users", segments=SEGMENTS, periods=40, last=LAST, special=None, **columns):
    """The tables hold what a scoring of so many periods up to the last would have written, and its incidents.

    Every segment has 100 where 100 are expected, except for special(values, ts), which says what it has instead, None
    where nothing arrived. columns: in place of those made here, for every row of a segment.
    """
    settings = load_settings(folder / "segwatch.toml")
    metric, target = settings.metric(name), settings.target(None)
    dimensions, grain = metric.dimensions, metric.grain
    times = np.arange(last - length(periods - 1, grain), last + length(1, grain))
    rows = []
    for ts in times:
        values = {one: 100.0 if special is None else special(one, ts) for one in segments}
        for one in (*segments, *rolled_up(segments, dimensions)):
            inside = [v for v in segments if all(a is None or a == b for a, b in zip(one, v, strict=True))]
            held = [values[v] for v in inside]
            is_sum = None in one
            known = [100.0 if v is None else v for v in held] if is_sum and not all(v is None for v in held) else held
            value = None if any(v is None for v in known) else sum(known)
            expected = 100.0 * len(inside)
            is_anomaly = value is not None and abs(value - expected) > 0.25 * expected
            rows.append(
                {
                    "metric": name, "level": level(dimensions, one), **dict(zip(dimensions, one, strict=True)),
                    "segment_id": segment_id(dimensions, one), "ts": utc(ts), "value": value, "denominator": None,
                    "expected": expected, "lower": 0.8 * expected, "upper": 1.2 * expected,
                    "impact": None if value is None else value - expected, "impact_share": None, "score": 1.0,
                    "p_value": None if value is None else 1e-6 if is_anomaly else 0.5, "prediction": 1,
                    "is_anomaly": is_anomaly,
                    "direction": ("up" if value > expected else "down") if is_anomaly else None,
                    "status": "no_data" if value is None else "ok",
                    "reason": "the data of this period did not arrive" if value is None else None,
                    "model_version": "1", "run_id": "run1", "scored_at": NOW, **({} if is_sum else columns),
                }
            )  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=predictions_table(dimensions).arrow())
    warehouse = open_warehouse(target.warehouse)
    warehouse.create_table("predictions", predictions_table(settings.dimensions))
    warehouse.create_table("incidents", incidents_table(settings.dimensions))
    warehouse.create_table("backtests", backtests_schema())
    warehouse.create_table("labels", incident_labels_schema())
    warehouse.create_table("audit", audit_schema())
    window = Window(times[0], times[-1] + length(1, grain), grain)
    warehouse.replace_predictions("predictions", name, window, table, {})
    update_incidents(warehouse, "incidents", name, metric, window, table)
    warehouse.close()


def utc(ts):
    return ts.astype("datetime64[us]").item().replace(tzinfo=dt.UTC)


def outage(values, ts):
    """ios is dark on a day, and one segment rises on the last."""
    if values[1] == "ios" and ts == OUTAGE:
        return 3.0
    return 300.0 if values == ("fr", "web", "ads") and ts == LAST else 100.0


class Outline(HTMLParser):
    """Text of a document, its links, and what would run or load something in it."""

    INLINE = ("a", "bdi", "code", "wbr")

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.text += "" if tag in self.INLINE else " "

    def handle_data(self, data):
        self.text += data

    @property
    def words(self):
        return " ".join(self.text.split())

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]

    def links(self, start):
        return [one["href"] for one in self.all("a") if one.get("href", "").startswith(start)]


@dataclass
class Reply:
    status: int
    headers: dict
    body: str
    address: str

    @property
    def page(self):
        return Outline(self.body)

    @property
    def words(self):
        return self.page.words

    @property
    def form_token(self):
        return re.search(r'name="form_token" value="(\w+)"', self.body).group(1)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


@dataclass
class Client:
    """A browser of its own as far as cookies go; it follows no redirect by itself."""

    url: str
    jar: http.cookiejar.CookieJar = field(default_factory=http.cookiejar.CookieJar)

    def get(self, path="/", **headers):
        return self.ask(path, None, headers)

    def post(self, path, form=None, **headers):
        return self.ask(path, urllib.parse.urlencode(form or {}).encode(), headers)

    def ask(self, path, body, headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, named)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar), _NoRedirect)
        try:
            reply = opener.open(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            return Reply(
                reply.status,
                {name.lower(): value for name, value in reply.headers.items()},
                reply.read().decode(),
                path,
            )

    def __call__(self, path="/", **headers):
        reply = self.get(path, **headers)
        assert reply.status == 200, (path, reply.status, reply.words)
        return reply.page


class Seen:
    """What an observer was told."""

    def __init__(self):
        self.failures, self.answers = [], []

    def answered(self, *answer):
        self.answers.append(answer)

    def failed(self, message):
        self.failures.append(message)


@dataclass
class Served:
    """A page that is served: a client of it, and what it was told to observe."""

    client: Client
    settings: Settings
    seen: Seen

    @property
    def url(self):
        return self.client.url

    def held(self, table):
        """The rows of a table of the project."""
        warehouse = open_warehouse(self.settings.target(None).warehouse)
        window = Window(np.datetime64("1970-01-01"), np.datetime64("2100-01-01"))
        try:
            return warehouse.asked_rows(Asked(table, "users", window), order=[Order("ts")]).to_pylist()
        finally:
            warehouse.close()

    @property
    def audited(self):
        """Who did what, in the order of time."""
        return [(row["author"], row["action"], row["subject"], row["detail"]) for row in self.held("audit")]


@pytest.fixture
def serve():
    """Serves the page of a folder's project."""
    running = []

    def start(folder, access=None, now=NOW):
        seen = Seen()
        settings = load_settings(folder / "segwatch.toml").for_target(None)
        ticks = itertools.count()
        project = Project(settings, lambda: now + dt.timedelta(microseconds=next(ticks)))
        app = application(project, access or Access(default_name="ann"), seen)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        running.append((server, thread, listener, seen))
        deadline = time.monotonic() + SECONDS
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        return Served(client, settings, seen)

    yield start
    for server, thread, listener, seen in running:
        server.should_exit = True
        thread.join(SECONDS)
        listener.close()
        assert seen.failures == []


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A platform's outage that is over, and a segment that rises on the last day."""
    folder = tmp_path_factory.mktemp("project")
    add_metric(folder)
    predict(folder, special=outage)
    return folder


@pytest.fixture
def ask(project, serve):
    """Asks the page of that project; a page that is not there is an error."""
    return serve(project).client
