"""What only BigQuery has: partitions, bytes billed, labels, expiry, regions, permissions.

The emulator takes partition filters, clustering, expiry and maximum_bytes_billed without effect, so these are
asserted on what is sent. What Google answers to a refusal is played by a strict fake.
"""

from __future__ import annotations

import datetime as dt
import http.server
import json
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import requests
import sqlglot
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from sqlglot import exp

from segwatch import runner
from segwatch.core.window import Window
from segwatch.data import generated_schema, metric_schema, predictions_schema
from segwatch.errors import BackendError, DataError, SegwatchError, SettingsError
from segwatch.settings import Endpoints, Google, Metric, Settings, Target
from segwatch.warehouses import Warehouse, bigquery_client, bigquery_sql, open_warehouse, query

NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
JANUARY = Window(np.datetime64("2024-01-01"), np.datetime64("2024-02-01"))
LOCATION = "europe-west8"
JOBS = r"//[^/]+/bigquery/.*/jobs(\?|$)"
LABELS = {"team": "growth"}
MARKED = {**LABELS, "segwatch": "1"}
USERS = Metric(table="users", time="created_at", value="new_users", dimensions=("country_code", "platform"))
KEYS = ["created_at", "country_code", "platform", "channel"]


class Project:
    """A project of its own in the emulator, segwatch's warehouse in it, and a client behind segwatch's back."""

    def __init__(self, emulator: Any) -> None:
        self.id = f"test-{secrets.token_hex(6)}"
        self.endpoints = Endpoints(bigquery=emulator.rest, bigquery_storage=emulator.storage)
        self.client = bigquery.Client(
            project=self.id,
            credentials=AnonymousCredentials(),
            client_options=ClientOptions(api_endpoint=emulator.rest),
        )
        self._opened: list[Warehouse] = []
        self.warehouse = self.open()

    def open(self, dataset: str = "main", **google: Any) -> Warehouse:
        settings = {"location": LOCATION, "labels": LABELS, "endpoints": self.endpoints, **google}
        self._opened.append(open_warehouse(f"bigquery://{self.id}/{dataset}", Google(**settings)))
        return self._opened[-1]

    def make_dataset(self, name: str, location: str = LOCATION) -> None:
        dataset = bigquery.Dataset(f"{self.id}.{name}")
        dataset.location = location
        self.client.create_dataset(dataset)

    def run(self, text: str) -> None:
        self.client.query(text).result()

    def tables(self, dataset: str = "main") -> list[str]:
        return sorted(item.table_id for item in self.client.list_tables(f"{self.id}.{dataset}"))

    def close(self) -> None:
        for warehouse in self._opened:
            warehouse.close()
        self.client.close()


@pytest.fixture
def project(bigquery_emulator: Any) -> Iterator[Project]:
    made = Project(bigquery_emulator)
    yield made
    made.close()


@pytest.fixture
def warehouse(project: Project) -> Warehouse:
    return project.warehouse


class Sent:
    """Requests as they left, in order."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []

    def bodies(self, method: str, path: str) -> list[Any]:
        return [body for m, p, body in self.requests if m == method and re.search(path, p)]

    @property
    def jobs(self) -> list[Any]:
        return [body["configuration"] for body in self.bodies("POST", JOBS)]

    @property
    def queries(self) -> list[str]:
        return [job["query"]["query"] for job in self.jobs if "query" in job]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    recorded = Sent()
    send = requests.Session.send

    def send_and_record(session: Any, request: Any, **options: Any) -> Any:
        is_json = "json" in (request.headers.get("Content-Type") or "")
        recorded.requests.append((request.method, request.url, json.loads(request.body) if is_json else None))
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", send_and_record)
    return recorded


def user_rows(*days: str, users: int = 1) -> pa.Table:
    n = len(days)
    table = {
        "created_at": pa.array([dt.date.fromisoformat(day) for day in days], pa.date32()),
        **{name: pa.array(["x"] * n, pa.string()) for name in KEYS[1:]},
        "new_users": pa.array([users] * n, pa.int64()),
    }
    return generated_schema().conform(pa.table(table), "the test")


def prediction_rows(*days: str, value: float = 1.0) -> pa.Table:
    constant = {
        **dict.fromkeys(["metric", "level", "segment_id", "status", "model_version", "run_id"], "users"),
        "value": value,
        "is_anomaly": False,
        "scored_at": NOW,
    }
    rows = [{**constant, "ts": dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC)} for day in days]
    return pa.Table.from_pylist(rows, schema=predictions_schema().arrow())


def feature_rows() -> pa.Table:
    return pa.table({"segment_id": ["a"], "ts": pa.array([dt.datetime(2024, 1, 1)], pa.timestamp("us")), "e": [1.0]})


# Tables


def test_a_metric_is_partitioned_by_its_day_and_clustered_by_its_dimensions(warehouse: Warehouse, sent: Sent) -> None:
    warehouse.create_table("users", generated_schema())
    [made] = sent.bodies("POST", "/tables")
    assert made["timePartitioning"] == {"type": "DAY", "field": "created_at"}
    assert made["clustering"] == {"fields": ["country_code", "platform", "channel"]}
    assert "requirePartitionFilter" not in made
    assert made["labels"] == MARKED
    assert made["schema"]["fields"][0]["description"] == "Day on which the users were created"
    [dataset] = sent.bodies("POST", r"/datasets\?")
    assert (dataset["location"], dataset["labels"]) == (LOCATION, MARKED)


def test_predictions_are_partitioned_by_ts_and_refuse_queries_without_a_filter(
    warehouse: Warehouse, sent: Sent
) -> None:
    warehouse.create_table("predictions", predictions_schema().with_columns(["country_code", "platform"], "level"))
    [made] = sent.bodies("POST", "/tables")
    assert made["timePartitioning"] == {"type": "DAY", "field": "ts"}
    assert made["requirePartitionFilter"] is True
    assert made["clustering"] == {"fields": ["metric", "level", "country_code", "platform"]}


def is_filtered(table: exp.Table, time: str) -> bool:
    """Whether the statement that names the table compares its bare time with a constant from below."""
    statement = table.find_ancestor(exp.Select, exp.Delete)
    where = statement.args.get("where") if statement else None
    comparisons = where.find_all(exp.GTE) if where else []
    return any(isinstance(found.this, exp.Column) and found.this.name == time for found in comparisons)


def test_every_statement_on_a_partitioned_table_filters_its_bare_partition_column(
    warehouse: Warehouse, sent: Sent
) -> None:
    times = {"users": "created_at", "hourly": "at", "predictions": "ts"}
    warehouse.create_table("users", generated_schema())
    warehouse.create_table("predictions", predictions_schema())
    warehouse.insert("users", user_rows("2024-01-01", "2024-01-02").to_batches(), KEYS)
    warehouse.observations(USERS, JANUARY)
    with pytest.raises(DataError, match="it holds 2024-01-01 to 2024-01-02"):
        warehouse.observations(USERS, Window(np.datetime64("2025-01-01"), np.datetime64("2025-02-01")))
    warehouse.span(USERS)
    warehouse.bytes_to_read(USERS, JANUARY)
    warehouse.replace_predictions("predictions", "users", JANUARY, prediction_rows("2024-01-01"), {})
    warehouse.replace_predictions("predictions", "users", JANUARY, prediction_rows(), {"level": frozenset("ab")})
    warehouse.predictions("predictions", "users", JANUARY)
    warehouse.prediction_span("predictions", "users")
    warehouse.truncate("predictions")
    read = [
        (found, times[found.name])
        for text in sent.queries
        for tree in sqlglot.parse(text, dialect="bigquery")
        if isinstance(tree, exp.Select | exp.Create | exp.Delete | exp.Insert)
        for found in tree.find_all(exp.Table)
        if found.name in times and not isinstance(found.parent, exp.Insert | exp.Schema)
    ]
    assert len(read) >= 12
    assert [found.sql() for found, time in read if not is_filtered(found, time)] == []


@pytest.mark.parametrize("type_", ["TIMESTAMP", "DATETIME"])
def test_a_window_of_hours_compares_the_bare_column_too(project: Project, sent: Sent, type_: str) -> None:
    project.make_dataset("main")
    project.run(
        f"CREATE TABLE `{project.id}`.main.hourly AS SELECT {type_} '2024-01-01 05:30:00' AS at, 'a' AS d, 1 AS v"
    )
    sent.requests.clear()
    source = Metric(table="hourly", time="at", value="v", dimensions=("d",), grain="hour")
    found = project.warehouse.observations(
        source, Window(np.datetime64("2024-01-01T05"), np.datetime64("2024-01-01T06"), "hour")
    )
    assert found["ts"].to_pylist() == [dt.datetime(2024, 1, 1, 5)]
    for text in sent.queries:
        tables = [t for t in sqlglot.parse_one(text, dialect="bigquery").find_all(exp.Table) if t.name == "hourly"]
        assert tables and all(is_filtered(table, "at") for table in tables)


def test_an_insert_reads_no_partitions_but_those_that_it_writes(warehouse: Warehouse, sent: Sent) -> None:
    warehouse.create_table("users", generated_schema())
    warehouse.insert("users", user_rows("2024-01-05", "2024-01-02", "2024-01-03").to_batches(max_chunksize=1), KEYS)
    [job] = [job["query"] for job in sent.jobs if "DELETE" in job.get("query", {}).get("query", "")]
    assert "`held`.`created_at` >= @first AND `held`.`created_at` <= @last" in job["query"]
    values = {p["name"]: (p["parameterType"]["type"], p["parameterValue"]["value"]) for p in job["queryParameters"]}
    assert values == {"first": ("DATE", "2024-01-02"), "last": ("DATE", "2024-01-05")}


# Jobs


def test_every_job_is_labelled_in_the_region_and_bounded(project: Project, sent: Sent) -> None:
    warehouse = project.open(maximum_bytes_billed=123)
    warehouse.create_table("users", generated_schema())
    warehouse.insert("users", user_rows("2024-01-01").to_batches(), KEYS)
    warehouse.observations(USERS, JANUARY)
    assert len(sent.queries) == 3
    for job in sent.jobs:
        assert job["labels"] == MARKED
        assert job["query"]["maximumBytesBilled"] == "123"
    references = [body["jobReference"] for body in sent.bodies("POST", JOBS)]
    assert {reference["location"] for reference in references} == {LOCATION}
    assert all(reference["jobId"].startswith("segwatch_") for reference in references)
    [load] = [body for body in sent.bodies("POST", "upload") if body]
    assert load["configuration"]["labels"] == MARKED and load["jobReference"]["location"] == LOCATION


def test_no_bound_is_sent_where_any_number_of_bytes_is_allowed(project: Project, sent: Sent) -> None:
    warehouse = project.open(maximum_bytes_billed=0)
    warehouse.create_table("users", generated_schema())
    warehouse.span(USERS)
    assert ["maximumBytesBilled" in job["query"] for job in sent.jobs] == [False]


def test_jobs_run_in_another_project_where_the_settings_say_so(project: Project, sent: Sent) -> None:
    warehouse = project.open(project="payer-project")
    warehouse.create_table("users", generated_schema())
    warehouse.insert("users", user_rows("2024-01-01").to_batches(), KEYS)
    warehouse.observations(USERS, JANUARY)
    assert sent.jobs and all("/projects/payer-project/" in url for _, url, _ in sent.requests if "/jobs" in url)
    assert project.tables() == ["users"]


def test_bytes_to_read_are_asked_of_a_dry_run(project: Project, sent: Sent) -> None:
    project.warehouse.create_table("users", generated_schema())
    assert project.warehouse.bytes_to_read(USERS, JANUARY) is not None
    assert [job["dryRun"] for job in sent.jobs] == [True, True]


def test_bytes_to_read_are_those_of_the_denominator_too(project: Project, sent: Sent) -> None:
    ratio = USERS.model_copy(update={"denominator": "visits"})
    project.warehouse.create_table("users", metric_schema(ratio))
    assert project.warehouse.bytes_to_read(ratio, JANUARY) is not None
    assert [job["dryRun"] for job in sent.jobs] == [True, True]
    asked = [sqlglot.parse_one(text, dialect="bigquery") for text in sent.queries[-2:]]
    assert [any(column.name == "visits" for column in tree.find_all(exp.Column)) for tree in asked] == [True, True]


def test_bytes_to_read_are_those_of_the_calendar_too(project: Project, sent: Sent) -> None:
    project.warehouse.create_table("users", metric_schema(USERS))
    project.run("CREATE TABLE main.days AS SELECT DATE '2024-01-05' AS first_day, 'sale' AS event, 'mask' AS effect")
    assert project.warehouse.bytes_to_read(USERS.model_copy(update={"calendar": "days"}), JANUARY) is not None
    dry = [job for job in sent.jobs if job.get("dryRun")]
    assert len(dry) == 3 and "days" in dry[-1]["query"]["query"]


def test_a_calendar_is_read_by_a_filter_on_its_bare_first_day(project: Project, sent: Sent) -> None:
    project.make_dataset("main")
    project.run("CREATE TABLE main.days AS SELECT DATE '2024-01-05' AS first_day, 'sale' AS event, 'mask' AS effect")
    [row] = project.warehouse.calendar(USERS.model_copy(update={"calendar": "days"})).to_pylist()
    assert row["event"] == "sale"
    assert re.search(r"`first_day` >= (CAST\('0001-01-01' AS DATE\)|DATE\(1, 1, 1\))", sent.queries[-1])


# Temporary tables


def test_rows_are_read_from_a_named_table_that_would_expire_and_is_dropped(project: Project, sent: Sent) -> None:
    project.warehouse.create_table("users", generated_schema())
    project.warehouse.insert("users", user_rows("2024-01-01").to_batches(), KEYS)
    project.warehouse.observations(USERS, JANUARY)
    made = sent.queries[-1]
    pattern = (
        rf"CREATE TABLE `{project.id}`.`main`.`(segwatch_rows_\w+)` OPTIONS \(expiration_timestamp=TIMESTAMP_SECONDS"
    )
    found = re.match(pattern + r"\((\d+)\), labels=\[(.*)\]\) AS SELECT", made)
    assert found
    in_a_day = dt.datetime.now(dt.UTC).timestamp() + 86400
    assert int(found[2]) == pytest.approx(in_a_day, abs=60)
    assert found[3] == f"('team', 'growth'), ('segwatch', '1'), ('segwatch_expires', '{found[2]}')"
    assert project.tables() == ["users"]


def test_the_named_table_is_dropped_where_reading_it_fails(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.warehouse.create_table("users", generated_schema())
    project.warehouse.insert("users", user_rows("2024-01-01").to_batches(), KEYS)

    def fail(*_: Any) -> None:
        assert len(project.tables()) == 2
        raise BackendError("the line is cut")

    monkeypatch.setattr(bigquery_client.Session, "read", fail)
    with pytest.raises(BackendError, match="the line is cut"):
        project.warehouse.observations(USERS, JANUARY)
    assert project.tables() == ["users"]


def test_staged_rows_expire_and_are_dropped(project: Project, sent: Sent) -> None:
    project.warehouse.create_table("users", generated_schema())
    project.warehouse.insert("users", user_rows("2024-01-01").to_batches(), KEYS)
    stage = sent.bodies("POST", "/tables")[-1]
    assert stage["tableReference"]["tableId"].startswith("segwatch_stage_")
    assert int(stage["expirationTime"]) // 1000 == int(stage["labels"]["segwatch_expires"])
    assert project.tables() == ["users"]


def test_an_error_before_the_commit_leaves_the_old_rows_and_no_stage(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = project.warehouse
    warehouse.create_table("predictions", predictions_schema())
    warehouse.replace_predictions("predictions", "users", JANUARY, prediction_rows("2024-01-01"), {})
    plain = bigquery_sql.replace_predictions

    def failing(*arguments: Any) -> Any:
        made = plain(*arguments)
        return made._replace(text=made.text.replace("COMMIT", "SELECT CAST('x' AS INT64);\nCOMMIT"))

    monkeypatch.setattr(bigquery_sql, "replace_predictions", failing)
    with pytest.raises(DataError, match="BigQuery refused a query or rows"):
        warehouse.replace_predictions("predictions", "users", JANUARY, prediction_rows("2024-01-02", value=2.0), {})
    monkeypatch.undo()
    assert warehouse.predictions("predictions", "users", JANUARY)["value"].to_pylist() == [1.0]
    assert project.tables() == ["predictions"]


def test_values_with_quotes_are_only_values(project: Project) -> None:
    warehouse = project.warehouse
    odd = "it's \"`\\ ; DROP TABLE predictions; -- @metric"
    warehouse.create_table("predictions", predictions_schema().with_columns(["plan"], "level"))
    rows = prediction_rows("2024-01-01").append_column("plan", pa.array([odd]))
    rows = rows.set_column(0, "metric", pa.array([odd]))
    for _ in range(2):
        warehouse.replace_predictions("predictions", odd, JANUARY, rows, {"plan": frozenset({odd})})
    assert warehouse.predictions("predictions", odd, JANUARY)["plan"].to_pylist() == [odd]
    assert warehouse.prediction_span("predictions", odd) == (np.datetime64("2024-01-01"), np.datetime64("2024-01-01"))


def test_a_feature_table_expires_by_itself(project: Project, sent: Sent) -> None:
    project.warehouse.create_table("predictions", predictions_schema())
    project.warehouse.write_features("r", feature_rows(), NOW)
    made = sent.bodies("POST", "/tables")[-1]
    assert made["labels"] == {**MARKED, "segwatch_expires": str(int(NOW.timestamp()))}
    assert int(made["expirationTime"]) == NOW.timestamp() * 1000
    assert {field["name"]: field["type"] for field in made["schema"]["fields"]}["ts"] == "DATETIME"


def test_the_sweep_drops_what_a_killed_run_left_behind(project: Project) -> None:
    project.warehouse.create_table("predictions", predictions_schema())
    for name, expires in (("segwatch_rows_a", NOW), ("segwatch_stage_b", NOW), ("young", NOW + dt.timedelta(1))):
        table = bigquery.Table(f"{project.id}.main.{name}", [bigquery.SchemaField("x", "INTEGER")])
        table.labels = {"segwatch": "1", "segwatch_expires": str(int(expires.timestamp()))}
        project.client.create_table(table)
    assert project.warehouse.sweep_features(NOW) == ["segwatch_rows_a", "segwatch_stage_b"]
    assert project.tables() == ["predictions", "young"]


# Datasets and names


def test_destroy_removes_the_datasets_that_segwatch_made_and_no_others(project: Project) -> None:
    project.make_dataset("theirs")
    warehouse = project.warehouse
    for name in ("users", "sales.users", "theirs.users"):
        warehouse.create_table(name, generated_schema())
    project.run(f"CREATE TABLE `{project.id}`.sales.mine AS SELECT 1 AS x")
    assert warehouse.drop_created() == ["users", "sales.users", "theirs.users"]
    assert {d.dataset_id for d in project.client.list_datasets()} == {"sales", "theirs"}
    assert (project.tables("sales"), project.tables("theirs")) == (["mine"], [])


def test_a_description_or_a_label_of_anyone_else_is_no_mark(project: Project) -> None:
    project.make_dataset("main")
    table = bigquery.Table(f"{project.id}.main.a", [bigquery.SchemaField("x", "INTEGER")])
    table.labels, table.description = {"tool": "segwatch"}, "segwatch"
    project.client.create_table(table)
    assert project.warehouse.created_tables() == []
    assert project.warehouse.drop_created() == []
    assert project.tables() == ["a"]


def test_a_missing_dataset_is_named_with_those_there_are(project: Project) -> None:
    project.make_dataset("sales")
    calls: list[Callable[[], object]] = [
        project.warehouse.created_tables,
        lambda: project.warehouse.observations(USERS, JANUARY),
        lambda: project.warehouse.write_features("r", feature_rows(), NOW),
        lambda: project.warehouse.predictions("predictions", "users", JANUARY),
    ]
    for call in calls:
        with pytest.raises(
            DataError, match=rf"project {project.id} has no dataset 'main'; it holds sales: run `segwatch"
        ):
            call()
    assert [d.dataset_id for d in project.client.list_datasets()] == ["sales"]


def test_a_dataset_in_another_region_is_named_with_both(project: Project) -> None:
    project.make_dataset("main", "EU")
    for call in (project.warehouse.created_tables, lambda: project.warehouse.create_table("users", generated_schema())):
        with pytest.raises(SettingsError, match=rf"main is in EU, and google.location is {LOCATION}: set it to EU"):
            call()
    assert project.open(location="eu").created_tables() == []


@pytest.mark.parametrize("name", ["a`b", 'a"b', "a;b", "a/b", "a b ", "d-1.t", "`d`.t", "..t", ""])
def test_a_name_that_bigquery_does_not_allow_is_refused(project: Project, name: str) -> None:
    with pytest.raises(DataError, match=r"is not the name of a table: write it as table, dataset\.table"):
        project.warehouse.create_table(name, generated_schema())


def test_a_view_of_another_project_with_any_column_names(project: Project, bigquery_emulator: Any) -> None:
    project.make_dataset("main")
    other = Project(bigquery_emulator)
    other.make_dataset("sales")
    other.run(
        f"CREATE VIEW `{other.id}`.sales.`our-orders` AS SELECT DATE '2024-01-01' AS `Wann è`, 2.5 AS `n's`,"
        " 'x' AS `va lue`, [1] AS unused"
    )
    source = Metric(table=f"{other.id}.sales.our-orders", time="Wann è", value="n's", dimensions=("va lue",))
    found = project.warehouse.observations(source, JANUARY)
    other.close()
    assert found.to_pylist() == [{"ts": dt.datetime(2024, 1, 1), "va lue": "x", "value": 2.5, "n_rows": 1}]


@pytest.mark.parametrize("type_", ["INTERVAL", "JSON", "GEOGRAPHY", "RANGE"])
def test_a_value_of_a_type_that_segwatch_does_not_read_is_named(type_: str) -> None:
    types = {"created_at": "DATE", "new_users": type_, "country_code": "STRING", "platform": "STRING"}
    fields = [bigquery.SchemaField(name, kind) for name, kind in types.items()]
    columns = pa.schema([(field.name, bigquery_client._arrow_type(field)) for field in fields])
    with pytest.raises(DataError, match=r"'new_users' \(the value\) has the type UNKNOWN"):
        query.check_columns(query.bind(columns, "users", "main", "p"), USERS)


def test_opening_a_url_imports_nothing_of_googles() -> None:
    code = (
        "import sys; before = set(sys.modules);"
        "from segwatch.warehouses import open_warehouse; open_warehouse('bigquery://p/d');"
        "new = set(sys.modules) - before;"
        "assert not {m for m in new if m.startswith(('google.', 'ibis', 'grpc', 'requests', 'duckdb'))}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What Google says


class Fake(http.server.BaseHTTPRequestHandler):
    """Answers what `answers` holds for a method and path, in turn, and the last for good; refuses all else."""

    answers: dict[tuple[str, str], list[tuple[int, Any]]]
    seen: list[tuple[str, str]]

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        json.loads(self.rfile.read(length) or "{}")
        path = self.path.partition("?")[0].removeprefix("/bigquery/v2/projects/p")
        self.seen.append((self.command, path))
        prepared = self.answers.get((self.command, path))
        if prepared is None:
            status, body = 400, refusal(400, "invalid", f"the fake was not asked for {self.command} {path}")
        else:
            status, body = prepared.pop(0) if len(prepared) > 1 else prepared[0]
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = do_PATCH = answer

    def log_message(self, *_: Any) -> None:
        return None


def refusal(status: int, reason: str, message: str, name: str = "INVALID_ARGUMENT") -> tuple[int, Any]:
    errors = [{"message": message, "domain": "global", "reason": reason}]
    return status, {"error": {"code": status, "message": message, "errors": errors, "status": name}}


DATASET = (200, {"datasetReference": {"projectId": "p", "datasetId": "main"}, "location": LOCATION})
TABLE = (
    200,
    {
        "tableReference": {"projectId": "p", "datasetId": "main", "tableId": "users"},
        "type": "TABLE",
        "schema": {
            "fields": [
                {"name": "created_at", "type": "DATE", "mode": "REQUIRED"},
                {"name": "country_code", "type": "STRING"},
                {"name": "platform", "type": "STRING"},
                {"name": "new_users", "type": "INTEGER"},
            ]
        },
    },
)
AT_DATASET, AT_DATASETS = ("GET", "/datasets/main"), ("GET", "/datasets")
AT_TABLE, AT_JOBS = ("GET", "/datasets/main/tables/users"), ("POST", "/jobs")


@pytest.fixture
def fake() -> Iterator[tuple[type[Fake], Warehouse]]:
    handler = type("Prepared", (Fake,), {"seen": []})
    handler.answers = {AT_DATASET: [DATASET], AT_TABLE: [TABLE]}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    endpoints = Endpoints(bigquery=f"http://127.0.0.1:{server.server_port}")
    warehouse = open_warehouse("bigquery://p/main", Google(location=LOCATION, endpoints=endpoints))
    yield handler, warehouse
    warehouse.close()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("at", "answer", "kind", "retryable", "sentence"),
    [
        (
            AT_DATASET,
            refusal(
                403,
                "accessDenied",
                "Access Denied: Dataset p:main: Permission bigquery.datasets.get denied on dataset p:main (or it"
                " may not exist).",
                "PERMISSION_DENIED",
            ),
            BackendError,
            False,
            r"^BigQuery dataset p\.main: the permission bigquery\.datasets\.get is missing: grant a role",
        ),
        (
            AT_JOBS,
            refusal(
                403,
                "accessDenied",
                "Access Denied: Project p: User does not have bigquery.jobs.create permission in project p.",
                "PERMISSION_DENIED",
            ),
            BackendError,
            False,
            r"the permission bigquery\.jobs\.create is missing",
        ),
        (
            AT_DATASET,
            refusal(404, "notFound", "Not found: Project p", "NOT_FOUND"),
            BackendError,
            False,
            r"the project of dataset p\.main is not there, or has no BigQuery: check google\.project",
        ),
        (
            AT_DATASET,
            refusal(
                401,
                "authError",
                "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or"
                " other valid authentication credential.",
                "UNAUTHENTICATED",
            ),
            BackendError,
            False,
            "credentials .*: run `gcloud auth application-default login`",
        ),
        (
            AT_JOBS,
            refusal(
                403,
                "quotaExceeded",
                "Quota exceeded: Your project exceeded quota for concurrent queries. For more information, see"
                " https://cloud.google.com/bigquery/docs/troubleshoot-quotas",
                "PERMISSION_DENIED",
            ),
            BackendError,
            True,
            "a quota is used up: try again later",
        ),
        (
            AT_JOBS,
            refusal(429, "quotaExceeded", "Quota exceeded: too many requests", "RESOURCE_EXHAUSTED"),
            BackendError,
            True,
            "a quota is used up: try again later",
        ),
        (
            AT_JOBS,
            refusal(404, "notFound", f"Not found: Dataset p:other was not found in location {LOCATION}", "NOT_FOUND"),
            DataError,
            False,
            f"a dataset that dataset p.main needs is not in {LOCATION}, where its jobs run: set google.location",
        ),
        (
            AT_JOBS,
            refusal(
                400,
                "bytesBilledLimitExceeded",
                "Query exceeded limit for bytes billed: 1000000. 10485760 or higher required.",
            ),
            SettingsError,
            False,
            "would read more than google.maximum_bytes_billed allows: narrow the Window, or raise that setting",
        ),
        (
            AT_JOBS,
            refusal(
                400,
                "invalidQuery",
                "Cannot query over table 'p.main.users' without a filter over column(s) 'day' that can be used for"
                " partition elimination",
            ),
            DataError,
            False,
            "refuses queries without a filter on its partition column: name that column as the metric's time",
        ),
        (
            AT_JOBS,
            refusal(
                400,
                "invalidQuery",
                "Transaction is aborted due to concurrent update against table p:main.users. Transaction ID: 1",
            ),
            BackendError,
            True,
            r"another job changed the same rows of dataset p\.main: try again",
        ),
    ],
)
def test_what_google_refuses_is_said_in_one_sentence(
    fake: tuple[type[Fake], Warehouse],
    at: tuple[str, str],
    answer: tuple[int, Any],
    kind: type[SegwatchError],
    retryable: bool,
    sentence: str,
) -> None:
    handler, warehouse = fake
    handler.answers[at] = [answer]
    with pytest.raises(kind, match=sentence) as caught:
        warehouse.span(USERS)
    assert type(caught.value) is kind and caught.value.retryable is retryable
    assert "\n" not in str(caught.value)


def test_a_dataset_that_google_does_not_find_is_named(fake: tuple[type[Fake], Warehouse]) -> None:
    handler, warehouse = fake
    handler.answers[AT_DATASET] = [refusal(404, "notFound", "Not found: Dataset p:main", "NOT_FOUND")]
    listed = {"datasets": [{"datasetReference": {"projectId": "p", "datasetId": name}} for name in ("b", "a")]}
    handler.answers[AT_DATASETS] = [(200, listed)]
    with pytest.raises(DataError, match="project p has no dataset 'main'; it holds a, b: run `segwatch create`"):
        warehouse.span(USERS)


def test_a_job_that_fails_over_the_bound_after_it_was_taken_is_said_the_same(
    fake: tuple[type[Fake], Warehouse],
) -> None:
    handler, warehouse = fake
    problem = {
        "reason": "bytesBilledLimitExceeded",
        "message": "Query exceeded limit for bytes billed: 10. 20971520 or higher required.",
    }
    done = {"state": "DONE", "errorResult": problem, "errors": [problem]}
    job = {"configuration": {"query": {"query": "x"}}, "jobReference": {"projectId": "p", "jobId": "j"}, "status": done}
    handler.answers[AT_JOBS] = [(200, job)]
    with pytest.raises(SettingsError, match=r"more than google\.maximum_bytes_billed allows"):
        warehouse.span(USERS)


def test_an_answer_that_fails_once_is_asked_for_again(fake: tuple[type[Fake], Warehouse]) -> None:
    handler, warehouse = fake
    handler.answers[AT_DATASET] = [
        refusal(503, "backendError", "Error encountered during execution.", "UNAVAILABLE"),
        DATASET,
    ]
    assert warehouse.table_schema("users") is not None
    assert handler.seen.count(AT_DATASET) == 2


def test_a_dry_run_says_what_google_would_bill_and_reads_nothing(
    fake: tuple[type[Fake], Warehouse], tmp_path: Path
) -> None:
    handler, warehouse = fake
    statistics = {"totalBytesProcessed": "1500000", "query": {"totalBytesProcessed": "1500000"}}
    job = {
        "configuration": {"query": {"query": "x"}, "dryRun": True},
        "jobReference": {"projectId": "p"},
        "statistics": statistics,
        "status": {"state": "DONE"},
    }
    handler.answers[AT_JOBS] = [(200, job)]
    unused: Any = None
    target = Target(warehouse="bigquery://p/d", registry="vertex")
    settings = Settings(targets={"dev": target}, metrics={"new_users": USERS})
    run = runner.Run("r", NOW, "new_users", USERS, warehouse, unused, settings, tmp_path, unused)
    plan = runner.plan_training(run, JANUARY)
    assert plan["bills"] == "3,000,000 bytes at most"
    assert list(plan) == ["reads", "bills", "writes"]
    assert [path for method, path in handler.seen if method == "POST"] == ["/jobs", "/jobs"]
