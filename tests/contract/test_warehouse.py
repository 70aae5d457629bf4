"""The contract of every Warehouse; what only DuckDB or PostgreSQL has (files, locks, death) is at the end."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import datetime as dt
import importlib.resources
import io
import math
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import adbc_driver_manager
import duckdb
import numpy as np
import pyarrow as pa
import pytest
import sqlglot
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from segwatch import detectability
from segwatch.core.explanation import Part, from_json, to_json
from segwatch.core.injection import Found
from segwatch.core.panel import Segments
from segwatch.core.schema import Column, TableSchema, calendar_schema, observations_schema
from segwatch.core.window import Window
from segwatch.data import deliveries_schema
from segwatch.errors import BackendError, DataError, SettingsError
from segwatch.settings import Endpoints, Google, Metric
from segwatch.warehouses import Warehouse, calendar, open_reader, open_warehouse
from segwatch.warehouses.asked import Asked, Order, words_of
from segwatch.warehouses.duckdb_errors import explain, translated

KEYS = ["created_at", "country_code", "platform", "channel"]
DIMENSIONS = ("country_code", "platform")
METRIC_SCHEMA = TableSchema.from_json((importlib.resources.files("segwatch.data") / "schema.json").read_text())
PREDICTIONS_SCHEMA = TableSchema.from_json(
    (importlib.resources.files("segwatch.data") / "predictions_schema.json").read_text()
)
NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)


class DuckdbBackend:
    """A DuckDB file, and ways to put things into it behind segwatch's back."""

    needs: tuple[str, ...] = ()
    disorder = ("SET GLOBAL preserve_insertion_order = false",)
    holds_nul = True

    def __init__(self, folder: Path) -> None:
        self.path = folder / "test.duckdb"
        self.url = f"duckdb:///{self.path}"
        self._opened: list[Warehouse] = []

    def open(self) -> Warehouse:
        warehouse = open_warehouse(self.url)
        self._opened.append(warehouse)
        return warehouse

    def run(self, *statements: str) -> None:
        with duckdb.connect(str(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)

    def load(self, name: str, rows: pa.Table) -> None:
        """Makes a table that segwatch did not make; name: as it stands in SQL."""
        with duckdb.connect(str(self.path)) as connection:
            connection.register("rows_to_load", rows)
            connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM rows_to_load")

    def close(self) -> None:
        for warehouse in self._opened:
            warehouse.close()


class PostgresBackend:
    """A database of a real server, and ways to put things into it behind segwatch's back."""

    needs = ("postgres_server",)
    disorder = ()
    holds_nul = False  # its text refuses U+0000
    _WORDS = (
        ("TIMESTAMP_S", "TIMESTAMP(0)"),
        ("TIMESTAMP_MS", "TIMESTAMP(3)"),
        ("TIMESTAMP_NS", "TIMESTAMP(6)"),  # it holds no nanoseconds
        ("HUGEINT", "NUMERIC(38)"),
        ("UBIGINT", "NUMERIC(20)"),
        ("ENUM ('z', 'a')", "letters"),
    )
    _MADE = (
        "CREATE TYPE letters AS ENUM ('z', 'a')",
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    )

    def __init__(self, folder: Path, server: Any) -> None:  # noqa: ARG002
        self.server = server
        self.url = server.url()
        self._opened: list[Warehouse] = []
        server.empty()
        server.run(*self._MADE)

    def open(self, options: str = "") -> Warehouse:
        warehouse = open_warehouse(self.url + options)
        self._opened.append(warehouse)
        return warehouse

    def run(self, *statements: str) -> None:
        """Runs statements of DuckDB's SQL, as PostgreSQL writes them."""
        for statement in statements:
            for word, own in self._WORDS:
                statement = statement.replace(word, own)
            self.server.run(*sqlglot.transpile(statement, read="duckdb", write="postgres"))

    def load(self, name: str, rows: pa.Table) -> None:
        with self.server.session.cursor() as cursor:
            cursor.adbc_ingest(name, rows, mode="replace")

    def close(self) -> None:
        for warehouse in self._opened:
            warehouse.close()


class BigqueryBackend:
    """A project of its own in the emulator, and ways to put things into it behind segwatch's back."""

    needs = ("bigquery_emulator",)
    disorder = ()
    holds_nul = True

    def __init__(self, folder: Path, emulator: Any) -> None:  # noqa: ARG002
        self.project = f"test-{secrets.token_hex(6)}"
        self.url = f"bigquery://{self.project}/main"
        self.google = Google(
            location="europe-west8",
            labels={"team": "growth"},
            endpoints=Endpoints(bigquery=emulator.rest, bigquery_storage=emulator.storage),
        )
        self.client = bigquery.Client(
            project=self.project,
            credentials=AnonymousCredentials(),
            client_options=ClientOptions(api_endpoint=emulator.rest),
        )
        self._opened: list[Warehouse] = []

    def open(self) -> Warehouse:
        warehouse = open_warehouse(self.url, self.google)
        self._opened.append(warehouse)
        return warehouse

    def run(self, *statements: str) -> None:
        """Runs DuckDB's SQL, in BigQuery's words."""
        self._make_dataset()
        config = bigquery.QueryJobConfig(default_dataset=f"{self.project}.main")
        for statement in statements:
            [text] = sqlglot.transpile(statement, read="duckdb", write="bigquery")
            self.client.query(text, job_config=config).result()

    def load(self, name: str, rows: pa.Table) -> None:
        self._make_dataset()
        types = {pa.string(): "STRING", pa.int64(): "INTEGER", pa.date32(): "DATE", pa.timestamp("us"): "DATETIME"}
        table = bigquery.Table(
            f"{self.project}.main.{name}",
            schema=[bigquery.SchemaField(field.name, types[field.type]) for field in rows.schema],
        )
        self.client.delete_table(table, not_found_ok=True)
        self.client.create_table(table)
        file = io.BytesIO()
        parquet.write_table(rows, file)
        file.seek(0)
        config = bigquery.LoadJobConfig(source_format="PARQUET")
        self.client.load_table_from_file(file, table, job_config=config).result()

    def _make_dataset(self) -> None:
        dataset = bigquery.Dataset(f"{self.project}.main")
        dataset.location = self.google.location
        self.client.create_dataset(dataset, exists_ok=True)

    def close(self) -> None:
        for warehouse in self._opened:
            warehouse.close()
        self.client.close()


Backend = DuckdbBackend | PostgresBackend | BigqueryBackend
BACKENDS: dict[str, Any] = {"duckdb": DuckdbBackend, "postgres": PostgresBackend, "bigquery": BigqueryBackend}


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    kind = BACKENDS[request.param]
    made = kind(tmp_path, *(request.getfixturevalue(name) for name in kind.needs))
    yield made
    made.close()


except_bigquery = pytest.mark.parametrize("backend", ["duckdb", "postgres"], indirect=True)
"""What BigQuery cannot hold or be told; tests/contract/test_bigquery.py has what only it can."""


def on_backends(names: str, cases: list[Any], not_bigquery: list[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test by cases for all backends, and by those that BigQuery cannot hold."""
    listed = [(name, case) for name in ("duckdb", "postgres") for case in [*cases, *not_bigquery]]
    listed += [("bigquery", case) for case in cases]
    several = "," in names
    return pytest.mark.parametrize(
        f"backend,{names}",
        [(name, *case) if several else (name, case) for name, case in listed],
        indirect=["backend"],
    )


@pytest.fixture
def warehouse(backend: Backend) -> Warehouse:
    return backend.open()


def metric_rows(*rows: tuple[str, str | None, str | None, int]) -> pa.Table:
    """(day, country, platform, users), of the channel web."""
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    days, countries, platforms, users = (list(column) for column in columns)
    table = pa.table(
        {
            "created_at": pa.array([dt.date.fromisoformat(day) for day in days], pa.date32()),
            "country_code": pa.array(countries, pa.string()),
            "platform": pa.array(platforms, pa.string()),
            "channel": pa.array(["web"] * len(days), pa.string()),
            "new_users": pa.array(users, pa.int64()),
        }
    )
    return METRIC_SCHEMA.conform(table, "the test")


def metric(**changes: Any) -> Metric:
    fields = {"table": "users", "time": "created_at", "value": "new_users", "dimensions": DIMENSIONS}
    return Metric(**{**fields, **changes})


def window(start: str, end: str, grain: Any = "day") -> Window:
    return Window(np.datetime64(start), np.datetime64(end), grain)


JANUARY = window("2024-01-01", "2024-02-01")


def prediction_rows(metric_name: str, days: list[str], value: float = 1.0, **columns: list[Any]) -> pa.Table:
    """One prediction for each day and each of the columns' values."""
    n_values = len(next(iter(columns.values()))) if columns else 1
    n = len(days) * n_values
    times = [dt.datetime.fromisoformat(day) for day in days for _ in range(n_values)]
    constant = {
        "metric": metric_name,
        "level": "country_code/platform",
        "value": value,
        "is_anomaly": False,
        "status": "ok",
        "model_version": "1",
        "run_id": "r",
    }
    data: dict[str, Any] = {
        name: pa.array([constant.get(name)] * n, PREDICTIONS_SCHEMA.arrow().field(name).type)
        for name in PREDICTIONS_SCHEMA.names
    }
    data["ts"] = pa.array(times, pa.timestamp("us", "UTC"))
    data["scored_at"] = pa.array([NOW] * n, pa.timestamp("us", "UTC"))
    data["segment_id"] = pa.array([f"s{i}" for _ in days for i in range(n_values)])
    return pa.table({**data, **{name: pa.array(values * len(days)) for name, values in columns.items()}})


def create_predictions(warehouse: Warehouse, *dimensions: str) -> None:
    warehouse.create_table("predictions", PREDICTIONS_SCHEMA.with_columns(dimensions, "level"))


def keyed(rows: pa.Table) -> list[tuple[str, str, float]]:
    return [(str(r["ts"].date()), r["segment_id"], r["value"]) for r in rows.to_pylist()]


# Tables


def test_create_makes_the_table_once(warehouse: Warehouse) -> None:
    assert warehouse.create_table("users", METRIC_SCHEMA) is True
    assert warehouse.create_table("users", METRIC_SCHEMA) is False
    assert warehouse.created_tables() == ["users"]
    held = warehouse.table_schema("users")
    assert held is not None
    assert [(f.name, f.type) for f in held] == [(f.name, f.type) for f in METRIC_SCHEMA.arrow()]


def test_create_makes_every_type(warehouse: Warehouse) -> None:
    warehouse.create_table("predictions", PREDICTIONS_SCHEMA)
    held = warehouse.table_schema("predictions")
    assert held is not None
    assert [(f.name, f.type) for f in held] == [(f.name, f.type) for f in PREDICTIONS_SCHEMA.arrow()]
    assert warehouse.create_table("predictions", PREDICTIONS_SCHEMA) is False


def test_create_in_a_schema_makes_the_schema(warehouse: Warehouse) -> None:
    assert warehouse.create_table("sales.users", METRIC_SCHEMA) is True
    assert warehouse.create_table("sales.users", METRIC_SCHEMA) is False
    assert warehouse.created_tables() == ["sales.users"]
    assert warehouse.insert("sales.users", metric_rows(("2024-01-01", "it", "ios", 1)).to_batches(), KEYS) == 1


@pytest.mark.parametrize("name", [".users", "sales.", "."])
def test_create_refuses_a_name_with_an_empty_part(warehouse: Warehouse, name: str) -> None:
    with pytest.raises(DataError, match="is not the name of a table"):
        warehouse.create_table(name, METRIC_SCHEMA)


def test_create_gives_an_earlier_predictions_table_the_columns_it_lacks(warehouse: Warehouse) -> None:
    create_predictions(warehouse, "country_code")
    rows = prediction_rows("users", ["2024-01-01"], country_code=["it"])
    warehouse.replace_predictions("predictions", "users", JANUARY, rows, {})
    wider = PREDICTIONS_SCHEMA.with_columns(["country_code", "plan"], "level")
    assert warehouse.create_table("predictions", wider) is False
    assert warehouse.created_tables() == ["predictions"]
    held = warehouse.predictions("predictions", "users", JANUARY)
    assert held["country_code"].to_pylist() == ["it"]
    assert held["plan"].to_pylist() == [None]


def test_create_keeps_a_column_that_the_settings_no_longer_name(warehouse: Warehouse) -> None:
    create_predictions(warehouse, "country_code", "platform")
    assert warehouse.create_table("predictions", PREDICTIONS_SCHEMA) is False
    held = warehouse.table_schema("predictions")
    assert held is not None and "platform" in held.names


def test_create_refuses_other_columns(warehouse: Warehouse) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    other = TableSchema(tuple(c for c in METRIC_SCHEMA.columns if c.name != "new_users"))
    retyped = TableSchema((*other.columns, Column("new_users", "FLOAT", True)))
    longer = TableSchema((*METRIC_SCHEMA.columns, Column("revenue", "FLOAT", True)))
    with pytest.raises(DataError, match="'new_users' must be FLOAT"):
        warehouse.create_table("users", retyped)
    with pytest.raises(DataError, match=r"'revenue' must be FLOAT.*missing"):
        warehouse.create_table("users", longer)


@except_bigquery  # BigQuery allows no quotes in names.
def test_names_and_descriptions_with_quotes_are_only_names(warehouse: Warehouse) -> None:
    name = "a\"b'c; DROP TABLE x --è\\"
    columns = (Column("x\"; --'y", "STRING", False, "it's \"\\ a\nname"), Column("è t", "TIMESTAMP", True))
    assert warehouse.create_table(name, TableSchema(columns)) is True
    assert warehouse.created_tables() == [name]
    rows = pa.record_batch(
        {"x\"; --'y": ["v'; --"], "è t": pa.array([NOW], pa.timestamp("us", "UTC"))},
    )
    assert warehouse.insert(name, [rows], ["x\"; --'y"]) == 1
    assert warehouse.insert(name, [rows], ["x\"; --'y"]) == 1
    assert warehouse.truncate(name) == 1


def test_a_table_of_anyone_else_is_refused_and_survives(backend: Backend, warehouse: Warehouse) -> None:
    backend.load("users", metric_rows(("2024-01-01", "it", "ios", 5)))
    batches = metric_rows(("2024-01-01", "it", "ios", 6)).to_batches()
    calls: list[Callable[[], object]] = [
        lambda: warehouse.create_table("users", METRIC_SCHEMA),
        lambda: warehouse.truncate("users"),
        lambda: warehouse.insert("users", batches, KEYS),
        lambda: warehouse.replace_predictions("users", "m", JANUARY, prediction_rows("m", []), {}),
    ]
    for call in calls:
        with pytest.raises(DataError, match=r"'users' in .* was not made by segwatch"):
            call()
    warehouse.create_table("predictions", PREDICTIONS_SCHEMA)
    assert warehouse.drop_created() == ["predictions"]
    assert warehouse.observations(metric(), JANUARY)["value"].to_pylist() == [5.0]


@except_bigquery
def test_a_comment_of_anyone_else_is_no_mark(backend: Backend, warehouse: Warehouse) -> None:
    backend.run("CREATE TABLE a (x INT)", "CREATE TABLE b (x INT)", "CREATE TABLE c (x INT)")
    backend.run("COMMENT ON TABLE a IS 'segwatch'", "COMMENT ON TABLE b IS '[1]'", "COMMENT ON TABLE c IS '{}'")
    assert warehouse.created_tables() == []
    assert warehouse.drop_created() == []


def test_truncate_empties_the_table(warehouse: Warehouse) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    rows = metric_rows(("2024-01-01", "it", "ios", 5), ("2024-01-02", "it", "ios", 5))
    warehouse.insert("users", rows.to_batches(), KEYS)
    assert warehouse.truncate("users") == 2
    assert warehouse.truncate("users") == 0


def test_a_missing_table_is_named_with_those_there_are(backend: Backend, warehouse: Warehouse) -> None:
    backend.run("CREATE TABLE orders (x INT)", "CREATE SCHEMA sales", "CREATE VIEW sales.v AS SELECT 1 AS x")
    # A BigQuery project may hold thousands of datasets: only the one asked for is listed.
    listed = "orders" if isinstance(backend, BigqueryBackend) else "orders, sales.v"
    for call in (
        lambda: warehouse.truncate("users"),
        lambda: warehouse.observations(metric(), JANUARY),
        lambda: warehouse.span(metric()),
        lambda: warehouse.predictions("users", "m", JANUARY),
    ):
        with pytest.raises(DataError, match=f"has no table 'users'; it holds {re.escape(listed)}$"):
            call()
    assert warehouse.table_schema("users") is None
    assert warehouse.table_schema("sales.v") is not None


# Inserting


def test_inserting_twice_does_not_double(warehouse: Warehouse) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    rows = metric_rows(*((f"2024-01-{d:02d}", c, "ios", d) for d in range(1, 31) for c in ("it", "de")))
    assert warehouse.insert("users", rows.to_batches(max_chunksize=7), KEYS) == 60
    assert warehouse.insert("users", rows.to_batches(), KEYS) == 60
    assert sum(warehouse.observations(metric(), JANUARY)["n_rows"].to_pylist()) == 60


def test_insert_replaces_rows_whose_dimension_is_null(warehouse: Warehouse) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    first = metric_rows(("2024-01-01", None, "ios", 1), ("2024-01-01", "it", None, 2), ("2024-01-01", None, None, 3))
    warehouse.insert("users", first.to_batches(), KEYS)
    warehouse.insert("users", metric_rows(("2024-01-01", None, "ios", 10)).to_batches(), KEYS)
    rows = warehouse.observations(metric(), JANUARY).to_pylist()
    assert [(r["country_code"], r["platform"], r["value"]) for r in rows] == [
        ("<null>", "<null>", 3.0),
        ("<null>", "ios", 10.0),
        ("it", "<null>", 2.0),
    ]


def test_insert_keeps_duplicate_rows_of_one_load(warehouse: Warehouse) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    rows = metric_rows(("2024-01-01", "it", "ios", 1), ("2024-01-01", "it", "ios", 2))
    for _ in range(2):
        assert warehouse.insert("users", rows.to_batches(), KEYS) == 2
    assert warehouse.observations(metric(), JANUARY)["value"].to_pylist() == [3.0]


def test_inserting_nothing_is_no_error(warehouse: Warehouse) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    assert warehouse.insert("users", [], KEYS) == 0
    assert warehouse.insert("users", metric_rows().to_batches(), KEYS) == 0


def test_insert_of_an_unknown_column_is_refused(warehouse: Warehouse) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    rows = metric_rows(("2024-01-01", "it", "ios", 1)).append_column("extra", pa.array([1]))
    with pytest.raises(DataError, match="no column 'extra'; it has created_at"):
        warehouse.insert("users", rows.to_batches(), KEYS)
    with pytest.raises(DataError, match="no column 'key'"):
        warehouse.insert("users", metric_rows(("2024-01-01", "it", "ios", 1)).to_batches(), ["key"])


def test_an_error_amid_the_batches_leaves_the_table_as_it_was(warehouse: Warehouse) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    old = metric_rows(("2024-01-01", "it", "ios", 1))
    warehouse.insert("users", old.to_batches(), KEYS)

    def batches() -> Iterator[pa.RecordBatch]:
        for day in range(1, 20):
            yield from metric_rows((f"2024-01-{day:02d}", "it", "ios", 9)).to_batches()
        raise DataError("the file ends in the middle of a row")

    with pytest.raises(DataError, match="middle of a row"):
        warehouse.insert("users", batches(), KEYS)
    assert warehouse.observations(metric(), JANUARY)["value"].to_pylist() == [1.0]
    assert warehouse.insert("users", old.to_batches(), KEYS) == 1


def test_a_null_in_a_required_column_leaves_the_table_as_it_was(warehouse: Warehouse) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    rows = metric_rows(("2024-01-01", "it", "ios", 1))
    warehouse.insert("users", rows.to_batches(), KEYS)
    bad = rows.set_column(4, "new_users", pa.array([None], pa.int64()))
    with pytest.raises(DataError, match="new_users"):
        warehouse.insert("users", bad.to_batches(), KEYS)
    assert warehouse.observations(metric(), JANUARY)["value"].to_pylist() == [1.0]


# Observations


def test_observations_sum_duplicates_in_the_promised_form(backend: Backend, warehouse: Warehouse) -> None:
    rows = metric_rows(
        ("2024-01-02", "it", "ios", 1),
        ("2024-01-01", "it", "web", 4),
        ("2024-01-02", "it", "ios", 2),
        ("2024-01-01", None, "ios", 8),
        ("2024-01-01", "it", "ios", 16),
    )
    backend.load("users", rows)
    found = warehouse.observations(metric(), JANUARY)
    assert found.schema == observations_schema(DIMENSIONS)
    day = [dt.datetime(2024, 1, d) for d in (1, 2)]
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (day[0], "<null>", "ios", 8.0, 1),
        (day[0], "it", "ios", 16.0, 1),
        (day[1], "it", "ios", 3.0, 2),
        (day[0], "it", "web", 4.0, 1),
    ]


def test_the_parts_of_the_observations_are_their_rows_in_any_order(backend: Backend, warehouse: Warehouse) -> None:
    days = [f"2024-01-{d:02}" for d in range(1, 29)]
    rows = [(day, c, p, k + 1) for k, day in enumerate(days) for c in ("it", None) for p in ("ios", "web", "web")]
    backend.load("users", metric_rows(*rows))
    parts = list(warehouse.observation_parts(metric(), JANUARY))
    assert all(part.schema == observations_schema(DIMENSIONS) for part in parts)
    together = pa.concat_tables(parts).sort_by([(name, "ascending") for name in (*DIMENSIONS, "ts")])
    assert together.equals(warehouse.observations(metric(), JANUARY).combine_chunks())
    with pytest.raises(DataError, match="no rows"):
        list(warehouse.observation_parts(metric(), Window(np.datetime64("2030-01-01"), np.datetime64("2030-01-02"))))


RATE = {"value": "orders", "denominator": "visits"}


def visit_rows(*rows: tuple[str, str, str, int, int]) -> str:
    """SQL of a table of rows (day, country, platform, orders, visits)."""
    names = ("created_at", "country_code", "platform", "orders", "visits")
    selects = [
        f"SELECT DATE '{day}' AS {names[0]}, '{country}' AS {names[1]}, '{platform}' AS {names[2]},"
        f" {orders}::INTEGER AS {names[3]}, {visits}::DOUBLE AS {names[4]}"
        for day, country, platform, orders, visits in rows
    ]
    return f"CREATE TABLE users AS {' UNION ALL '.join(selects)}"


@pytest.mark.parametrize("missing", ["zero", "gap"])
def test_numerator_and_denominator_of_a_ratio_are_summed_apart(
    backend: Backend, warehouse: Warehouse, missing: str
) -> None:
    backend.run(
        visit_rows(
            ("2024-01-02", "it", "ios", 1, 10),
            ("2024-01-01", "it", "web", 4, 8),
            ("2024-01-02", "it", "ios", 2, 90),
            ("2024-01-01", "it", "ios", 0, 5),
        )
    )
    source = metric(**RATE, missing=missing)
    found = warehouse.observations(source, JANUARY)
    assert found.schema == observations_schema(DIMENSIONS, ("value", "denominator"))
    day = [dt.datetime(2024, 1, d) for d in (1, 2)]
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (day[0], "it", "ios", 0.0, 5.0, 1),
        (day[1], "it", "ios", 3.0, 100.0, 2),
        (day[0], "it", "web", 4.0, 8.0, 1),
    ]
    assert warehouse.span(source) == (np.datetime64("2024-01-01"), np.datetime64("2024-01-03"))


def test_a_denominator_of_zero_is_read_as_it_is(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(visit_rows(("2024-01-01", "it", "ios", 0, 0), ("2024-01-02", "it", "ios", 3, 0)))
    found = warehouse.observations(metric(**RATE), JANUARY)
    assert found["value"].to_pylist() == [0.0, 3.0]
    assert found["denominator"].to_pylist() == [0.0, 0.0]


TEXTS = [
    "NA",
    "null",
    "None",
    "",
    " ",
    "è",
    "日本",
    "it's",
    'a"b',
    "a/b",
    "a\\b",
    "%",
    "a\nb",
    "\u0301",
    "😀",
]


def test_every_text_survives(backend: Backend, warehouse: Warehouse) -> None:
    backend.load("users", metric_rows(*(("2024-01-01", text, "NO", 1) for text in TEXTS)))
    found = warehouse.observations(metric(), JANUARY)
    assert found["country_code"].to_pylist() == sorted(TEXTS, key=str.encode)


def test_the_window_is_half_open(backend: Backend, warehouse: Warehouse) -> None:
    backend.load("users", metric_rows(*((f"2024-01-{d:02d}", "it", "ios", d) for d in range(1, 11))))
    found = warehouse.observations(metric(), window("2024-01-03", "2024-01-05"))
    assert found["value"].to_pylist() == [3.0, 4.0]
    assert warehouse.span(metric()) == (np.datetime64("2024-01-01"), np.datetime64("2024-01-11"))


TIMES = [
    "2024-01-01 00:00:00",
    "2024-01-01 00:59:59.999999",
    "2024-01-01 01:00:00",
    "2024-01-02 23:59:59.999999",
]


@on_backends("type_", ["TIMESTAMP", "TIMESTAMPTZ"], not_bigquery=["TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"])
def test_times_are_truncated_to_the_grain(backend: Backend, warehouse: Warehouse, type_: str) -> None:
    whole = type_ in ("TIMESTAMP_S", "TIMESTAMP_MS")
    times = [t.partition(".")[0] if whole else t for t in TIMES]
    zone = "+00" if type_ == "TIMESTAMPTZ" else ""
    backend.run(
        f"CREATE TABLE users (created_at {type_}, country_code VARCHAR, platform VARCHAR, new_users INT)",
        *(f"INSERT INTO users VALUES ('{t}{zone}', 'it', 'ios', 1)" for t in times),
    )
    days = warehouse.observations(metric(), JANUARY)
    assert days["ts"].to_pylist() == [dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 2)]
    assert days["n_rows"].to_pylist() == [3, 1]
    hourly = metric(grain="hour")
    hours = warehouse.observations(hourly, window("2024-01-01T00", "2024-01-02T23", "hour"))
    assert hours["ts"].to_pylist() == [dt.datetime(2024, 1, 1, 0), dt.datetime(2024, 1, 1, 1)]
    assert warehouse.span(hourly) == (np.datetime64("2024-01-01T00"), np.datetime64("2024-01-03T00"))


@except_bigquery
def test_zoned_times_are_read_as_utc_in_any_environment(backend: Backend) -> None:
    backend.run(
        "CREATE TABLE users (created_at TIMESTAMPTZ, country_code VARCHAR, platform VARCHAR, new_users INT)",
        "INSERT INTO users VALUES ('2024-01-02 01:30:00+03', 'it', 'ios', 1)",
    )
    code = (
        "import sys, numpy as np; from segwatch.warehouses import open_warehouse;"
        "from segwatch.settings import Metric; from segwatch.core.window import Window;"
        "m = Metric(table='users', time='created_at', value='new_users', dimensions=('country_code',));"
        "w = Window(np.datetime64('2024-01-01'), np.datetime64('2024-02-01'));"
        "print(open_warehouse(sys.argv[1]).observations(m, w)['ts'][0])"
    )
    environment = {**os.environ, "TZ": "Asia/Tokyo", "PGTZ": "Asia/Tokyo"}
    done = subprocess.run(
        [sys.executable, "-c", code, backend.url], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "2024-01-01 00:00:00"


def test_times_before_1970_are_truncated_downwards(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(
        "CREATE TABLE users AS SELECT TIMESTAMP '1969-12-30 13:00:00' AS created_at, 'it' AS country_code,"
        " 'ios' AS platform, 1 AS new_users"
    )
    assert warehouse.span(metric()) == (np.datetime64("1969-12-30"), np.datetime64("1969-12-31"))
    found = warehouse.observations(metric(), window("1969-12-01", "1970-01-01"))
    assert found["ts"].to_pylist() == [dt.datetime(1969, 12, 30)]


@except_bigquery
def test_any_column_names_and_a_view_in_a_schema(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(
        'CREATE SCHEMA "my sales"',
        'CREATE VIEW "my sales"."o\'r""ders" AS SELECT DATE \'2024-01-01\' AS "Wann? è", 2.5 AS "n""_rows",'
        " 'x' AS \"va lue\", 'y' AS \"VALUES\", [1] AS unused, INTERVAL 1 DAY AS i",
    )
    found = warehouse.observations(
        Metric(table="my sales.o'r\"ders", time="Wann? è", value='n"_rows', dimensions=("va lue", "VALUES")),
        JANUARY,
    )
    assert found.to_pylist() == [
        {"ts": dt.datetime(2024, 1, 1), "va lue": "x", "VALUES": "y", "value": 2.5, "n_rows": 1}
    ]


def test_columns_named_like_the_output_do_not_clash(backend: Backend, warehouse: Warehouse) -> None:
    backend.run("CREATE TABLE users AS SELECT DATE '2024-01-01' AS value, 3 AS ts, 'a' AS d1, 'b' AS \"D0\"")
    found = warehouse.observations(metric(time="value", value="ts", dimensions=("d1", "D0")), JANUARY)
    assert [tuple(row.values()) for row in found.to_pylist()] == [(dt.datetime(2024, 1, 1), "a", "b", 3.0, 1)]


def test_a_denominator_named_like_the_output_does_not_clash(backend: Backend, warehouse: Warehouse) -> None:
    backend.run("CREATE TABLE users AS SELECT DATE '2024-01-01' AS n_rows, 3 AS denominator, 7 AS value, 'a' AS d")
    swapped = metric(time="n_rows", value="denominator", denominator="value", dimensions=("d",))
    [row] = warehouse.observations(swapped, JANUARY).to_pylist()
    assert tuple(row.values()) == (dt.datetime(2024, 1, 1), "a", 3.0, 7.0, 1)


@on_backends(
    "type_,values,texts",
    [
        ("INTEGER", ["10", "9", "NULL"], ["10", "9", "<null>"]),
        ("BOOLEAN", ["true", "false", "NULL"], ["<null>", "false", "true"]),
        ("DATE", ["'2024-02-01'", "NULL"], ["2024-02-01", "<null>"]),
    ],
    not_bigquery=[
        ("ENUM ('z', 'a')", ["'z'", "'a'", "NULL"], ["<null>", "a", "z"]),
        ("VARCHAR COLLATE NOCASE", ["'b'", "'C'", "'a'"], ["C", "a", "b"]),
    ],
)
def test_dimensions_of_any_type_become_text_in_byte_order(
    backend: Backend, warehouse: Warehouse, type_: str, values: list[str], texts: list[str]
) -> None:
    backend.run(
        f"CREATE TABLE users (created_at DATE, country_code {type_}, new_users INT)",
        *(f"INSERT INTO users VALUES ('2024-01-01', {value}, 1)" for value in values),
    )
    found = warehouse.observations(metric(dimensions=("country_code",)), JANUARY)
    assert found["country_code"].to_pylist() == sorted(texts)


@on_backends("type_", ["INTEGER", "DECIMAL(18, 3)", "DOUBLE"], not_bigquery=["HUGEINT", "UBIGINT", "FLOAT", "TINYINT"])
def test_values_of_any_numeric_type_become_floats(backend: Backend, warehouse: Warehouse, type_: str) -> None:
    backend.run(
        f"CREATE TABLE users AS SELECT DATE '2024-01-01' AS created_at, 'it' AS country_code,"
        f" 'ios' AS platform, 100::{type_} AS new_users FROM range(3)"
    )
    assert warehouse.observations(metric(), JANUARY)["value"].to_pylist() == [300.0]


def test_whole_numbers_add_up_exactly_whatever_the_order(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(
        "CREATE TABLE users AS SELECT DATE '2024-01-01' AS created_at, 'it' AS country_code,"
        " 'ios' AS platform, unnest([9007199254740993, 1, -9007199254740993, 1]) AS new_users"
    )
    assert warehouse.observations(metric(missing="gap"), JANUARY)["value"].to_pylist() == [2.0]


@except_bigquery
def test_order_is_held_where_the_database_does_not_keep_it(backend: Backend, warehouse: Warehouse) -> None:
    warehouse.create_table("predictions", PREDICTIONS_SCHEMA)
    backend.run(
        *backend.disorder,
        "CREATE TABLE users AS SELECT DATE '2024-01-01' + (i % 31)::INT AS created_at,"
        " (i // 31)::VARCHAR AS country_code, 'ios' AS platform, 1 AS new_users FROM range(31 * 10000) r(i)",
    )
    found = warehouse.observations(metric(), JANUARY)
    keys = list(zip(found["country_code"].to_pylist(), found["ts"].to_pylist(), strict=True))
    assert keys == sorted(keys) and len(keys) == 310_000


SAFE_TEXT = st.one_of(st.none(), st.sampled_from(["a", "A", "<null>", "é", "'", "/"]), st.text(max_size=3))
ROWS = st.lists(
    st.tuples(
        st.datetimes(dt.datetime(2023, 12, 31), dt.datetime(2024, 1, 4)),
        SAFE_TEXT,
        SAFE_TEXT,
        st.integers(0, 2**40),
    ),
    max_size=12,
)


@except_bigquery
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, grain=st.sampled_from(["day", "hour"]))
def test_observations_equal_a_plain_group_by(
    backend: Backend, warehouse: Warehouse, rows: list[Any], grain: Any
) -> None:
    assume(backend.holds_nul or not any("\0" in (text or "") for row in rows for text in row[1:3]))
    check_plain_group_by(backend, warehouse, rows, grain)


@pytest.mark.parametrize("backend", ["bigquery"], indirect=True)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, grain=st.sampled_from(["day", "hour"]))
def test_observations_equal_a_plain_group_by_in_bigquery(
    backend: Backend, warehouse: Warehouse, rows: list[Any], grain: Any
) -> None:
    check_plain_group_by(backend, warehouse, rows, grain)


def check_plain_group_by(backend: Backend, warehouse: Warehouse, rows: list[Any], grain: Any) -> None:
    inside = (dt.datetime(2024, 1, 1, 0), dt.datetime(2024, 1, 3, 0))
    times, countries, platforms, users = ([row[i] for row in rows] for i in range(4))
    backend.load(
        "users",
        pa.table(
            {
                "created_at": pa.array(times, pa.timestamp("us")),
                "country_code": pa.array(countries, pa.string()),
                "platform": pa.array(platforms, pa.string()),
                "new_users": pa.array(users, pa.int64()),
            }
        ),
    )
    expected: collections.Counter[Any] = collections.Counter()
    for moment, country, platform, count in rows:
        if inside[0] <= moment < inside[1]:
            period = moment.replace(minute=0, second=0, microsecond=0, hour=moment.hour * (grain == "hour"))
            texts = ("<null>" if text is None else text for text in (country, platform))
            expected[*texts, period] += count
    asked = Window(np.datetime64(inside[0]), np.datetime64(inside[1]), grain)
    if not expected:
        with pytest.raises(DataError):
            warehouse.observations(metric(grain=grain), asked)
        return
    found = warehouse.observations(metric(grain=grain), asked)
    order = sorted(expected, key=lambda key: (key[0].encode(), key[1].encode(), key[2]))
    got = [tuple(row.values()) for row in found.drop_columns(["n_rows"]).to_pylist()]
    assert got == [(ts, country, platform, float(expected[country, platform, ts])) for country, platform, ts in order]


# Data that cannot be watched


def one_row(**changes: str) -> str:
    """SQL of a table of one good row, with columns changed."""
    columns = {
        "created_at": "TIMESTAMP '2024-01-05 10:00:00'",
        "country_code": "'it'",
        "platform": "NULL::VARCHAR",
        "new_users": "1.5::DOUBLE",
    }
    wanted = ", ".join(f"{value} AS {name}" for name, value in {**columns, **changes}.items() if value)
    return f"CREATE TABLE users AS SELECT {wanted}"


@on_backends(
    "table,changes,message",
    [
        (
            one_row(new_users=""),
            {},
            "'users' .* no column 'new_users'; it has created_at, country_code, platform",
        ),
        (one_row(platform=""), {}, "no column 'platform'"),
        (one_row(created_at=""), {}, "no column 'created_at'"),
        (one_row(created_at="'2024-01-05'"), {}, r"'created_at' \(the time\) has the type STRING"),
        (one_row(created_at="20240105"), {}, r"'created_at' \(the time\) has the type INT(32|64)"),
        (one_row(created_at="TIME '10:00:00'"), {}, r"'created_at' \(the time\) has the type TIME"),
        (one_row(created_at="DATE '2024-01-05'"), {"grain": "hour"}, "is a DATE, which cannot hold hours"),
        (one_row(new_users="'12'"), {}, r"'new_users' \(the value\) has the type STRING.* must be a number"),
        (one_row(new_users="true"), {}, "has the type BOOLEAN"),
        (one_row(platform="[1, 2]"), {}, r"'platform' \(a dimension\) has the type ARRAY"),
        (one_row(platform="'a'::BLOB"), {}, r"'platform' \(a dimension\) has the type BINARY"),
        (
            one_row(new_users="NULL::DOUBLE"),
            {},
            r"'new_users' \(the value\): 1 row has NULL in the Window \[2024-01-01, 2024-02-01\), the first"
            r" at 2024-01-05T10:00:00 in segment it/<null>; mend",
        ),
        (one_row(new_users="'nan'::DOUBLE"), {}, "1 row has NaN"),
        (one_row(new_users="'nan'::FLOAT"), {"missing": "gap"}, "1 row has NaN"),
        (one_row(new_users="'inf'::DOUBLE"), {}, "1 row has an infinite number"),
        (one_row(new_users="'-inf'::DOUBLE"), {"missing": "gap"}, "1 row has an infinite number"),
        (one_row(new_users="-1"), {}, '1 row has a negative number .* or set missing = "gap"'),
        (one_row(), {"denominator": "visits"}, "no column 'visits'"),
        (
            one_row(visits="'12'"),
            {"denominator": "visits"},
            r"'visits' \(the denominator\) has the type STRING.* must be a number",
        ),
        (
            one_row(visits="NULL::DOUBLE"),
            {"denominator": "visits"},
            r"'visits' \(the denominator\): 1 row has NULL in the Window \[2024-01-01, 2024-02-01\), the first"
            r" at 2024-01-05T10:00:00 in segment it/<null>; mend",
        ),
        (one_row(visits="'nan'::DOUBLE"), {"denominator": "visits"}, r"\(the denominator\): 1 row has NaN"),
        (one_row(visits="'inf'::DOUBLE"), {"denominator": "visits"}, r"\(the denominator\): 1 row has an infinite"),
        (
            one_row(visits="-1"),
            {"denominator": "visits", "missing": "gap"},
            r"'visits' \(the denominator\): 1 row has a negative number in .*; mend the rows or leave them out in a"
            " view$",
        ),
        (
            one_row(new_users="NULL::DOUBLE", visits="NULL::DOUBLE"),
            {"denominator": "visits"},
            r"'new_users' \(the value\): 1 row has NULL",
        ),
        (
            one_row(visits="1e101::DOUBLE"),
            {"denominator": "visits"},
            r"'visits' \(the denominator\): the rows of segment it/<null> at 2024-01-05.* past 1e\+100",
        ),
        (
            one_row(created_at="NULL::DATE"),
            {},
            r"'created_at' \(the time\): 1 row has NULL .* segment it/<null>",
        ),
    ],
    not_bigquery=[
        # BigQuery has intervals too, but the emulator says that they are texts.
        (one_row(new_users="INTERVAL 1 DAY"), {}, "has the type UNKNOWN"),
        (one_row(created_at="'infinity'::TIMESTAMP"), {}, "no date of the years 1 to 9999"),
        (one_row(created_at="'-infinity'::DATE"), {}, "no date of the years 1 to 9999"),
    ],
)
def test_bad_data_is_named(
    backend: Backend, warehouse: Warehouse, table: str, changes: dict[str, Any], message: str
) -> None:
    backend.run(table)
    source = metric(**changes)
    asked = window("2024-01-01", "2024-02-01", source.grain)
    with pytest.raises(DataError, match=message):
        warehouse.observations(source, asked)


def test_negative_values_are_fine_where_the_metric_is_no_count(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(one_row(new_users="-1"))
    assert warehouse.observations(metric(missing="gap"), JANUARY)["value"].to_pylist() == [-1.0]


def test_a_ratio_may_be_negative_where_its_value_is_no_count(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(one_row(new_users="-1", visits="4"))
    ratio = metric(missing="gap", denominator="visits")
    [row] = warehouse.observations(ratio, JANUARY).to_pylist()
    assert (row["value"], row["denominator"]) == (-1.0, 4.0)
    with pytest.raises(DataError, match=r"\(the value\): 1 row has a negative number"):
        warehouse.observations(metric(denominator="visits"), JANUARY)


def test_bad_values_outside_of_the_window_do_not_matter(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(
        one_row(),
        one_row(created_at="TIMESTAMP '2024-02-01'", new_users="NULL").replace(
            "CREATE TABLE users AS", "INSERT INTO users"
        ),
    )
    assert warehouse.observations(metric(), JANUARY).num_rows == 1


@pytest.mark.parametrize("value", ["1e308", "6e99", "-6e99"])
def test_a_sum_that_the_features_cannot_hold_is_refused(backend: Backend, warehouse: Warehouse, value: str) -> None:
    backend.run(one_row(new_users=f"{value}::DOUBLE"), "INSERT INTO users FROM users")
    # PostgreSQL itself refuses what overflows a double.
    with pytest.raises(DataError, match=r"segment it/<null> at 2024-01-05.* past 1e\+100|value out of range"):
        warehouse.observations(metric(missing="gap"), JANUARY)


def test_an_empty_window_is_named_with_what_the_table_holds(backend: Backend, warehouse: Warehouse) -> None:
    backend.load("users", metric_rows(("2024-01-01", "it", "ios", 5), ("2026-11-23", "it", "ios", 5)))
    with pytest.raises(DataError, match=r"\[2025-01-01, 2025-02-01\); it holds 2024-01-01 to 2026-11-23"):
        warehouse.observations(metric(), window("2025-01-01", "2025-02-01"))


def test_an_empty_table_has_no_span(backend: Backend, warehouse: Warehouse) -> None:
    backend.load("users", metric_rows())
    assert warehouse.span(metric()) is None
    with pytest.raises(DataError, match="holds no rows"):
        warehouse.observations(metric(), JANUARY)


@pytest.mark.parametrize("backend", ["duckdb", "bigquery"], indirect=True)
def test_a_view_that_is_broken_is_named(backend: Backend, warehouse: Warehouse) -> None:
    # PostgreSQL refuses to drop what a view needs.
    backend.run(one_row().replace("users", "base", 1), "CREATE VIEW users AS SELECT * FROM base", "DROP TABLE base")
    with pytest.raises(DataError, match=r"view 'users' .*cannot be read"):
        warehouse.observations(metric(), JANUARY)


def test_a_view_whose_rows_do_not_convert_is_a_data_error(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(one_row(new_users="'many'").replace("users", "raw", 1))
    backend.run("CREATE VIEW users AS SELECT created_at, country_code, platform, new_users::INT AS new_users FROM raw")
    # BigQuery says the value too; the emulator says another sentence.
    with pytest.raises(DataError, match=r"many|the view 'users' cannot be read"):
        warehouse.observations(metric(), JANUARY)


# Calendars


def days_table(*rows: str, **columns: str) -> str:
    """SQL of a calendar with one good row, with columns changed; rows: the WHERE of it, as FALSE."""
    held = {
        "first_day": "DATE '2024-01-05'",
        "last_day": "DATE '2024-01-07'",
        "event": "'sale'",
        "effect": "'mask'",
    }
    wanted = ", ".join(f"{value} AS {name}" for name, value in {**held, **columns}.items() if value)
    return f"CREATE TABLE days AS SELECT {wanted}" + "".join(f" FROM range(1) WHERE {row}" for row in rows)


def with_calendar(**changes: Any) -> Metric:
    return metric(calendar="days", **changes)


def test_a_metric_without_a_calendar_has_none(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(days_table())
    assert warehouse.calendar(metric()) is None


@on_backends("type_", ["DATE", "TIMESTAMP", "TIMESTAMPTZ"], not_bigquery=["TIMESTAMP_S", "TIMESTAMP_MS"])
def test_a_calendar_is_read_in_the_promised_form(backend: Backend, warehouse: Warehouse, type_: str) -> None:
    zone = "+00" if type_ == "TIMESTAMPTZ" else ""
    midnight = "" if type_ == "DATE" else f" 00:00:00{zone}"
    backend.run(
        f"CREATE TABLE days (note INT, platform VARCHAR, effect VARCHAR, event VARCHAR, last_day {type_},"
        f" first_day {type_})",
        f"INSERT INTO days VALUES (1, NULL, 'mask', NULL, NULL, '2024-02-01{midnight}')",
        f"INSERT INTO days VALUES (2, '<null>', 'expect', 'b''s', '2024-01-09{midnight}', '1969-12-30{midnight}')",
        f"INSERT INTO days VALUES (3, 'nobody', 'expect', 'a', '2024-02-01{midnight}', '2024-02-01{midnight}')",
        f"INSERT INTO days VALUES (4, 'ios', 'expect', 'a', '2024-02-01{midnight}', '2024-02-01{midnight}')",
        f"INSERT INTO days VALUES (5, NULL, 'expect', 'a', '2024-02-01{midnight}', '2024-02-01{midnight}')",
    )
    found = warehouse.calendar(with_calendar())
    assert found is not None and found.schema == calendar_schema(DIMENSIONS)
    old, january, february = dt.datetime(1969, 12, 30), dt.datetime(2024, 1, 9), dt.datetime(2024, 2, 1)
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (old, january, "b's", "expect", None, "<null>"),
        (february, february, "a", "expect", None, "ios"),
        (february, february, "a", "expect", None, "nobody"),
        (february, february, "a", "expect", None, None),
        (february, february, "event", "mask", None, None),
    ]


def test_a_calendar_needs_neither_last_days_nor_dimensions(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(days_table(last_day=""))
    day = dt.datetime(2024, 1, 5)
    assert warehouse.calendar(with_calendar()).to_pylist() == [
        {
            "first_day": day,
            "last_day": day,
            "event": "sale",
            "effect": "mask",
            "country_code": None,
            "platform": None,
        }
    ]


def test_an_empty_calendar_has_its_columns(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(days_table("FALSE"))
    assert warehouse.calendar(with_calendar()) == calendar_schema(DIMENSIONS).empty_table()


def test_the_hours_of_a_calendar_are_kept(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(days_table(first_day="TIMESTAMP '2024-01-05 10:00:00'", last_day="TIMESTAMP '2024-01-05 12:30:00'"))
    [row] = warehouse.calendar(with_calendar(grain="hour")).to_pylist()
    assert (row["first_day"], row["last_day"]) == (dt.datetime(2024, 1, 5, 10), dt.datetime(2024, 1, 5, 12, 30))


def test_a_day_ends_after_a_time_of_it(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(days_table(first_day="TIMESTAMP '2024-01-05 10:00:00'", last_day="DATE '2024-01-05'"))
    [row] = warehouse.calendar(with_calendar()).to_pylist()
    assert row["last_day"] == dt.datetime(2024, 1, 5)


@on_backends(
    "type_,value",
    [("INTEGER", "10"), ("BOOLEAN", "true"), ("DATE", "'2024-02-01'"), ("TIMESTAMP", "'2024-02-01 10:00:00'")],
    not_bigquery=[("ENUM ('z', 'a')", "'z'"), ("DOUBLE", "1"), ("DECIMAL(9, 2)", "1.5"), ("UUID", f"'{'ab' * 16}'")],
)
def test_a_calendar_tells_dimensions_as_observations_do(
    backend: Backend, warehouse: Warehouse, type_: str, value: str
) -> None:
    backend.run(
        f"CREATE TABLE users (created_at DATE, country_code {type_}, new_users INT)",
        f"INSERT INTO users VALUES ('2024-01-01', {value}, 1)",
        f"CREATE TABLE days (first_day DATE, event VARCHAR, effect VARCHAR, country_code {type_})",
        f"INSERT INTO days VALUES ('2024-01-01', 'sale', 'mask', {value})",
    )
    source = with_calendar(dimensions=("country_code",))
    observed = warehouse.observations(source, JANUARY)["country_code"]
    assert warehouse.calendar(source)["country_code"].to_pylist() == observed.to_pylist()


def test_every_text_of_a_calendar_survives(backend: Backend, warehouse: Warehouse) -> None:
    n = len(TEXTS)
    rows = {
        "first_day": pa.array([dt.date(2024, 1, 1)] * n, pa.date32()),
        "event": pa.array(TEXTS),
        "effect": pa.array(["mask"] * n),
        "country_code": pa.array(TEXTS),
    }
    backend.load("days", pa.table(rows))
    found = warehouse.calendar(with_calendar())
    assert found["event"].to_pylist() == found["country_code"].to_pylist() == sorted(TEXTS, key=str.encode)


@except_bigquery  # BigQuery tells no columns apart by case, and allows no quotes in names.
def test_a_calendar_with_any_names_in_a_schema(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(
        'CREATE SCHEMA "my sales"',
        'CREATE VIEW "my sales"."o\'r""days" AS SELECT DATE \'2024-01-05\' AS "First_Day", \'sale\' AS "EVENT",'
        " 'mask' AS effect, 'x' AS \"va\"\"lue\", 'y' AS \"VALUES\", [1] AS unused, INTERVAL 1 DAY AS i",
    )
    source = metric(calendar="my sales.o'r\"days", dimensions=('va"lue', "values", "is_endless", "first"))
    [row] = warehouse.calendar(source).to_pylist()
    assert list(row.values())[2:] == ["sale", "mask", "x", "y", None, None]


@on_backends(
    "table,message",
    [
        ("CREATE TABLE other (x INT)", "no table 'days'; it holds other: make the calendar, or take it out of the"),
        (days_table(first_day=""), "'days' .* no column 'first_day'; it has last_day, event, effect: add it, or name"),
        (days_table(event=""), "'days' .* no column 'event'; it has .*: add it, or name a view"),
        (days_table(effect=""), "'days' .* no column 'effect'; it has .*: add it, or name a view"),
        (
            days_table(first_day="'next week'"),
            "'days' .* type STRING in column 'first_day'; it must be DATE, DATETIME or TIMESTAMP: name a view that",
        ),
        (days_table(last_day="20240105"), "'days' .* type INT(32|64) in column 'last_day'; it must be DATE.*: name a"),
        (days_table(effect="[1]"), "'days' .* type ARRAY.* in column 'effect'; it must be text.*: name a view"),
        (days_table(event="'a'::BLOB"), "'days' .* type BINARY in column 'event'; it must be text.*: name a view"),
        (days_table(platform="[1]"), "'days' .* type ARRAY.* in column 'platform'; it must be text.*: name a view"),
        (
            days_table(first_day="NULL::DATE", platform="'ios'"),
            r"table 'days' \(the calendar\): 1 row has NULL or no date of the years 1 to 9999 in first_day, the first"
            " is last_day 2024-01-07, event 'sale', effect 'mask', platform 'ios'; mend first_day, or leave the row",
        ),
        (
            days_table(last_day="DATE '2024-01-04'"),
            r"table 'days' \(the calendar\): 1 row has a last_day before first_day, the first is first_day 2024-01-05,"
            " last_day 2024-01-04, event 'sale', effect 'mask'; swap them, or make last_day NULL",
        ),
        (
            days_table(
                first_day="TIMESTAMP '2024-01-05 10:00:00'", last_day="TIMESTAMP '2024-01-05 09:59:59'", event="NULL"
            ),
            "first_day 2024-01-05T10:00:00, last_day 2024-01-05T09:59:59, event 'event', effect",
        ),
        (
            days_table(effect="'Mask'"),
            "1 row has an effect that is not mask or expect, the first is first_day .* effect 'Mask'; write mask for",
        ),
        (days_table(effect="NULL"), "1 row has an effect that is not mask or expect, .* event 'sale'; write mask for"),
        (days_table(effect="1"), "1 row has an effect that is not mask or expect, .* effect '1'; write mask for"),
    ],
    not_bigquery=[
        (
            days_table(first_day="'infinity'::TIMESTAMP"),
            "1 row has NULL or no date of the years 1 to 9999 in first_day",
        ),
        (days_table(first_day="'-infinity'::DATE"), "1 row has NULL or no date of the years 1 to 9999 in first_day"),
        (
            days_table(last_day="'infinity'::DATE"),
            "1 row has no date of the years 1 to 9999 in last_day, the first is first_day 2024-01-05, event .*; mend"
            " last_day, or make it NULL",
        ),
        (days_table(last_day="'infinity'::TIMESTAMPTZ"), "no date of the years 1 to 9999 in last_day"),
    ],
)
def test_a_bad_calendar_is_named(backend: Backend, warehouse: Warehouse, table: str, message: str) -> None:
    backend.run(table)
    with pytest.raises(DataError, match=message):
        warehouse.calendar(with_calendar())


def test_the_first_bad_row_is_the_same_every_time(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(
        days_table(),
        *(
            f"INSERT INTO days VALUES (DATE '2024-01-{day:02d}', NULL, '{day}', 'maks')"
            for day in random.Random(0).sample(range(1, 29), 28)
        ),
    )
    with pytest.raises(DataError, match=r"28 rows have an effect .*, the first is first_day 2024-01-01, "):
        warehouse.calendar(with_calendar())


def test_a_calendar_of_too_many_rows_is_refused(
    backend: Backend, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calendar, "MOST_ROWS", 3)
    backend.run(days_table().replace("AS effect", "AS effect FROM range(3)"))
    assert warehouse.calendar(with_calendar()).num_rows == 3
    backend.run(f"INSERT INTO days {days_table().partition('AS ')[2]}")
    with pytest.raises(DataError, match=r"table 'days' .* has more than 3 rows: leave out in a view what is long past"):
        warehouse.calendar(with_calendar())


@pytest.mark.parametrize("backend", ["duckdb", "bigquery"], indirect=True)
def test_a_view_that_is_a_broken_calendar_is_named(backend: Backend, warehouse: Warehouse) -> None:
    backend.run(days_table().replace("days", "base", 1), "CREATE VIEW days AS SELECT * FROM base", "DROP TABLE base")
    with pytest.raises(DataError, match=r"view 'days' .*cannot be read"):
        warehouse.calendar(with_calendar())


# Feature tables


def feature_rows() -> pa.Table:
    return pa.table(
        {
            "segment_id": ["b", "a", "a"],
            "ts": pa.array([dt.datetime(2024, 1, d) for d in (1, 2, 1)], pa.timestamp("us")),
            "e": pa.array([1.0, math.nan, None], pa.float64()),
            "strange 'näme": ["<null>", None, "x"],
        }
    )


def test_features_come_back_as_they_went_in_ordered(warehouse: Warehouse) -> None:
    warehouse.create_table("predictions", PREDICTIONS_SCHEMA)
    name = warehouse.write_features("20261124_ab12", feature_rows(), NOW)
    assert name == "segwatch_features_20261124_ab12"
    assert name in warehouse.created_tables()
    found = warehouse.read_features(name)
    assert found.schema == feature_rows().schema
    assert str(found.to_pylist()) == str(feature_rows().take([2, 1, 0]).to_pylist())


def test_writing_features_again_replaces_them(warehouse: Warehouse) -> None:
    warehouse.create_table("predictions", PREDICTIONS_SCHEMA)
    name = warehouse.write_features("r", feature_rows(), NOW)
    assert warehouse.write_features("r", feature_rows().slice(0, 1), NOW) == name
    assert warehouse.read_features(name).num_rows == 1


def test_features_are_dropped_once_or_twice(warehouse: Warehouse) -> None:
    warehouse.create_table("predictions", PREDICTIONS_SCHEMA)
    name = warehouse.write_features("r", feature_rows(), NOW)
    warehouse.drop_features(name)
    warehouse.drop_features(name)
    with pytest.raises(DataError, match="no table 'segwatch_features_r'"):
        warehouse.read_features(name)


def test_only_feature_tables_are_read_or_dropped_as_such(backend: Backend, warehouse: Warehouse) -> None:
    warehouse.create_table("predictions", PREDICTIONS_SCHEMA)
    backend.run("CREATE TABLE segwatch_features_mine (x INT)")
    with pytest.raises(DataError, match="not a feature table"):
        warehouse.drop_features("predictions")
    with pytest.raises(DataError, match="not made by segwatch"):
        warehouse.drop_features("segwatch_features_mine")
    with pytest.raises(DataError, match="not made by segwatch"):
        warehouse.write_features("mine", feature_rows(), NOW)


def test_the_sweep_drops_expired_feature_tables_only(warehouse: Warehouse) -> None:
    warehouse.create_table("predictions", PREDICTIONS_SCHEMA)
    hour = dt.timedelta(hours=1)
    rome = dt.timezone(hour)
    expired = warehouse.write_features("old", feature_rows(), NOW - hour)
    warehouse.write_features("young", feature_rows(), NOW + hour)
    warehouse.write_features("zoned", feature_rows(), (NOW + hour).astimezone(rome))
    assert warehouse.sweep_features(NOW) == [expired]
    assert warehouse.sweep_features(NOW) == []
    naive = (NOW + hour).replace(tzinfo=None)
    assert len(warehouse.sweep_features(naive)) == 2
    assert warehouse.created_tables() == ["predictions"]


# Predictions


def test_only_the_metric_window_and_selection_are_replaced(warehouse: Warehouse) -> None:
    create_predictions(warehouse, "country_code", "platform")
    days = ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"]
    segments = {"country_code": ["it", "it", "de", "<null>"], "platform": ["ios", "web", "ios", None]}
    for name in ("users", "orders"):
        old = prediction_rows(name, days, 1.0, **segments)
        assert warehouse.replace_predictions("predictions", name, JANUARY, old, {}) == 16
    asked = window("2024-01-02", "2024-01-04")
    new = prediction_rows("users", days[1:3], 2.0, country_code=["it", "<null>"], platform=["ios", "ios"])
    selection = {"country_code": frozenset({"it", "<null>"}), "platform": frozenset({"ios"})}
    for _ in range(2):
        assert warehouse.replace_predictions("predictions", "users", asked, new, selection) == 4
        held = warehouse.predictions("predictions", "users", JANUARY)
        changed = [
            (str(r["ts"].date()), r["country_code"], r["platform"]) for r in held.to_pylist() if r["value"] == 2.0
        ]
        assert sorted(changed) == [
            ("2024-01-02", "<null>", "ios"),
            ("2024-01-02", "it", "ios"),
            ("2024-01-03", "<null>", "ios"),
            ("2024-01-03", "it", "ios"),
        ]
        # it/ios of two days is gone; <null> of no platform was not selected.
        assert held.num_rows == 16 - 2 + 4
        assert warehouse.predictions("predictions", "orders", JANUARY)["value"].to_pylist() == [1.0] * 16


def test_a_rerun_replaces_the_predictions_of_the_same_window(warehouse: Warehouse) -> None:
    create_predictions(warehouse, "country_code")
    rows = prediction_rows("users", ["2024-01-01", "2024-01-02"], country_code=["it", "de"])
    for _ in range(3):
        warehouse.replace_predictions("predictions", "users", JANUARY, rows, {})
    found = warehouse.predictions("predictions", "users", JANUARY)
    assert found.num_rows == 4
    schema = PREDICTIONS_SCHEMA.with_columns(["country_code"], "level")
    assert found.select(rows.column_names).equals(rows.sort_by([("ts", "ascending"), ("segment_id", "ascending")]))
    assert schema.conform(found, "predictions").num_rows == 4


def test_replacing_with_no_rows_removes_those_there_were(warehouse: Warehouse) -> None:
    create_predictions(warehouse)
    warehouse.replace_predictions("predictions", "users", JANUARY, prediction_rows("users", ["2024-01-01"]), {})
    assert warehouse.replace_predictions("predictions", "users", JANUARY, prediction_rows("users", []), {}) == 0
    assert warehouse.predictions("predictions", "users", JANUARY).num_rows == 0


def test_the_last_evaluation_replaces_whatever_was_known_of_a_metric(warehouse: Warehouse) -> None:
    values = (("it", "ios"), ("it", None), ("de", "ios"), (None, None))
    segments = Segments(DIMENSIONS, values)
    stamp = {"run_id": "r", "evaluated_at": NOW}
    found = [Found(i, 10.0 * i, 28, 0, {}, 0.1 * i if i else math.nan, math.nan) for i in range(4)]
    warehouse.create_table("found", detectability.detectability_table(DIMENSIONS))

    def keep(metric: str, day: str, those: list[Found], **selection: frozenset[str]) -> int:
        as_of = np.datetime64(day)
        return detectability.keep(warehouse, "found", metric, segments, those, as_of, stamp, selection)

    assert keep("orders", "2023-05-01", found) == keep("users", "2024-01-01", found) == 4
    assert keep("users", "2024-02-01", found) == 4
    assert keep("users", "2024-01-20", found[:2], country_code=frozenset({"it"})) == 2
    known = [detectability.detectable_of(warehouse, "found", "users", "day", id_) for id_ in segments.ids]
    assert [str(one.as_of) for one in known] == ["2024-01-20"] * 2 + ["2024-02-01"] * 2
    assert math.isnan(known[0].smallest_drop) and math.isnan(known[3].smallest_rise)
    assert known[3].smallest_drop == 0.1 * 3
    of_orders = [detectability.detectable_of(warehouse, "found", "orders", "day", id_) for id_ in segments.ids]
    assert {str(one.as_of) for one in of_orders} == {"2023-05-01"}
    assert detectability.detectable_of(warehouse, "found", "users", "day", "unknown") is None
    assert detectability.detectable_of(warehouse, "absent", "users", "day", segments.ids[0]) is None


def test_what_an_alert_is_made_of_is_kept_as_text_and_no_text_as_null(warehouse: Warehouse) -> None:
    create_predictions(warehouse)
    rows = prediction_rows("users", ["2024-01-01", "2024-01-02"])
    kept = [to_json([Part("z", -7.25, 3.5), Part("flat", 0.0, 0.1)]), None]
    at = rows.column_names.index("contributions")
    rows = rows.set_column(at, "contributions", pa.array(kept, pa.string()))
    warehouse.replace_predictions("predictions", "users", JANUARY, rows, {})
    found = warehouse.predictions("predictions", "users", JANUARY)
    assert found["contributions"].to_pylist() == kept
    assert from_json(kept[0]) == (Part("z", -7.25, 3.5), Part("flat", 0.0, 0.1))


def test_a_bad_row_fails_the_whole_and_the_old_rows_stand(warehouse: Warehouse) -> None:
    create_predictions(warehouse)
    old = prediction_rows("users", ["2024-01-01", "2024-01-02"], 1.0)
    warehouse.replace_predictions("predictions", "users", JANUARY, old, {})
    new = prediction_rows("users", ["2024-01-01", "2024-01-02"], 2.0)
    at = new.column_names.index("status")
    bad = new.set_column(at, "status", pa.array(["ok", None], pa.string()))
    with pytest.raises(DataError, match="status"):
        warehouse.replace_predictions("predictions", "users", JANUARY, bad, {})
    assert keyed(warehouse.predictions("predictions", "users", JANUARY)) == [
        ("2024-01-01", "s0", 1.0),
        ("2024-01-02", "s0", 1.0),
    ]
    assert warehouse.replace_predictions("predictions", "users", JANUARY, new, {}) == 2


@pytest.mark.parametrize(
    ("name", "day", "country", "what"),
    [
        ("orders", "2024-01-01", "it", "metric users"),
        ("users", "2024-02-01", "it", "Window"),
        ("users", "2023-12-31", "it", "Window"),
        ("users", "2024-01-01", "de", "selection country_code = it"),
    ],
)
def test_rows_outside_of_what_is_replaced_are_refused(
    warehouse: Warehouse, name: str, day: str, country: str, what: str
) -> None:
    create_predictions(warehouse, "country_code")
    rows = prediction_rows(name, [day], country_code=[country])
    with pytest.raises(DataError, match=f"outside of the {what}"):
        warehouse.replace_predictions("predictions", "users", JANUARY, rows, {"country_code": frozenset({"it"})})


def test_predictions_with_an_unknown_dimension_are_refused(warehouse: Warehouse) -> None:
    create_predictions(warehouse, "country_code")
    rows = prediction_rows("users", ["2024-01-01"], plan=["free"])
    with pytest.raises(DataError, match="no column 'plan'"):
        warehouse.replace_predictions("predictions", "users", JANUARY, rows, {})
    with pytest.raises(DataError, match="predictions have no column 'plan'"):
        warehouse.replace_predictions(
            "predictions", "users", JANUARY, rows.drop_columns(["plan"]), {"plan": frozenset({"free"})}
        )


def test_predictions_of_a_metric_with_other_dimensions_leave_the_rest_null(warehouse: Warehouse) -> None:
    create_predictions(warehouse, "country_code", "plan")
    rows = prediction_rows("orders", ["2024-01-01"], plan=["free"])
    warehouse.replace_predictions("predictions", "orders", JANUARY, rows, {})
    found = warehouse.predictions("predictions", "orders", JANUARY)
    assert (found["plan"].to_pylist(), found["country_code"].to_pylist()) == (["free"], [None])


def test_predictions_of_a_window_are_half_open_and_ordered(warehouse: Warehouse) -> None:
    create_predictions(warehouse)
    days = [f"2024-01-0{d}" for d in (4, 1, 3, 2)]
    rows = pa.concat_tables([prediction_rows("users", [day]) for day in days])
    warehouse.replace_predictions("predictions", "users", JANUARY, rows, {})
    found = warehouse.predictions("predictions", "users", window("2024-01-02", "2024-01-04"))
    assert [day for day, _, _ in keyed(found)] == ["2024-01-02", "2024-01-03"]
    assert found.schema.field("ts").type == pa.timestamp("us", "UTC")


def test_records_of_a_metric_are_replaced_by_their_keys_and_read_by_time_and_key(warehouse: Warehouse) -> None:
    def rows(*given: tuple[int, str, str, str | None]) -> list[pa.RecordBatch]:
        columns = ("ts", "delivery_id", "state", "error")
        others = {"metric": "m", "rule": "r", "channel": "c", "title": 'it\'s "down"', "incidents": "{}", "run_id": "1"}
        at = [{**others, **dict(zip(columns, row, strict=True))} for row in given]
        for row in at:
            row["ts"] = NOW + dt.timedelta(minutes=int(row["ts"]))
        return pa.Table.from_pylist(at, schema=deliveries_schema().arrow()).to_batches()

    keys = ["metric", "delivery_id", "run_id"]
    window = Window(np.datetime64("1970-01-01"), np.datetime64(NOW.replace(tzinfo=None), "D") + np.timedelta64(2, "D"))
    warehouse.create_table("sent", deliveries_schema())
    order = [Order("ts"), Order("delivery_id")]
    assert warehouse.asked_rows(Asked("sent", "m", window), order=order).num_rows == 0
    warehouse.insert("sent", rows((1, "b", "sending", None), (1, "a", "sending", None), (0, "z", "failed", "no")), keys)
    warehouse.insert("sent", rows((1, "b", "delivered", None)), keys)
    found = warehouse.asked_rows(Asked("sent", "m", window), order=order)
    assert list(zip(*(found[name].to_pylist() for name in ("delivery_id", "state", "error")), strict=True)) == [
        ("z", "failed", "no"), ("a", "sending", None), ("b", "delivered", None),
    ]  # fmt: skip
    assert found["ts"].to_pylist()[0] == NOW and found["title"].to_pylist()[0] == 'it\'s "down"'
    assert warehouse.asked_rows(Asked("sent", "other", window), order=order).num_rows == 0
    with pytest.raises(DataError, match="has no column 'segment_id'"):
        warehouse.predictions("sent", "m", window)


def test_the_span_of_predictions_is_their_first_and_last_time(warehouse: Warehouse) -> None:
    create_predictions(warehouse)
    assert warehouse.prediction_span("predictions", "users") is None
    rows = prediction_rows("users", ["2024-01-03", "2024-01-01T07:00"])
    warehouse.replace_predictions("predictions", "users", JANUARY, rows, {})
    first, last = warehouse.prediction_span("predictions", "users") or pytest.fail()
    assert (first, last) == (np.datetime64("2024-01-01T07:00"), np.datetime64("2024-01-03"))
    assert first.dtype == last.dtype == np.dtype("datetime64[us]")
    assert warehouse.prediction_span("predictions", "orders") is None


ODD = ["it", "O'Brien", 'a"b', "back\\slash", "<script>", "line\nbreak", "ünï\u202ecode", "100%_$1", "@asked1"]


@pytest.fixture
def predicted(warehouse: Warehouse) -> Warehouse:
    """Predictions of users on three days by odd countries, values 0, 1, 2, ... against 4, and of orders on the same."""
    create_predictions(warehouse, "country_code", "platform")
    days = ["2024-01-01", "2024-01-02", "2024-01-03"]
    rows = prediction_rows("users", days, country_code=ODD, platform=["ios"] * len(ODD))
    n = rows.num_rows
    value = [float(i % len(ODD)) for i in range(n)]
    impact = [one - 4.0 for one in value]
    columns = {
        "value": value,
        "expected": [4.0] * n,
        "impact": [None if i % len(ODD) == 8 else one for i, one in enumerate(impact)],
        "is_anomaly": [one == 0.0 for one in value],
    }
    for name, column in columns.items():
        at = rows.column_names.index(name)
        rows = rows.set_column(at, name, pa.array(column, rows.schema.field(name).type))
    warehouse.replace_predictions("predictions", "users", JANUARY, rows, {})
    other = prediction_rows("orders", days, country_code=["it", None], platform=["web", "web"])
    warehouse.replace_predictions("predictions", "orders", JANUARY, other, {})
    return warehouse


def countries(rows: pa.Table) -> list[Any]:
    return list(rows["country_code"].to_pylist())


def test_rows_are_asked_for_by_values_whatever_they_hold(predicted: Warehouse) -> None:
    for value in ODD:
        asked = Asked("predictions", "users", JANUARY, {"country_code": frozenset({value})})
        assert countries(predicted.asked_rows(asked)) == [value] * 3
    two = Asked("predictions", "users", JANUARY, {"country_code": frozenset({ODD[1], ODD[3]})})
    assert sorted(countries(predicted.asked_rows(two, ("country_code",)))) == sorted([ODD[1], ODD[3]] * 3)
    other = Asked("predictions", "orders", JANUARY)
    assert sorted(countries(predicted.asked_rows(other)), key=str) == [None] * 3 + ["it"] * 3
    nothing = replace(other, among={"country_code": frozenset({None})})
    assert countries(predicted.asked_rows(nothing)) == [None] * 3
    either = replace(other, among={"country_code": frozenset({None, "it"}), "platform": frozenset({"web"})})
    assert predicted.asked_rows(either).num_rows == 6
    assert predicted.asked_rows(replace(other, without={"platform": "web"})).num_rows == 0
    some = [
        {"country_code": frozenset({ODD[1]}), "platform": frozenset({"ios"})},
        {"country_code": frozenset({ODD[2]})},
    ]
    day = Asked(
        "predictions", "users", window("2024-01-02", "2024-01-03"), either=(*some, {"country_code": frozenset()})
    )
    assert sorted(countries(predicted.asked_rows(day))) == sorted(ODD[1:3])
    flagged = Asked("predictions", "users", JANUARY, {"is_anomaly": frozenset({True})})
    assert countries(predicted.asked_rows(flagged)) == ["it"] * 3


def test_words_are_searched_in_either_case_and_as_they_stand(predicted: Warehouse) -> None:
    def found(text: str) -> list[Any]:
        day = window("2024-01-02", "2024-01-03")
        searched = ("country_code", "platform")
        asked = Asked("predictions", "users", day, words=words_of(text), searched=searched)
        return countries(predicted.asked_rows(asked, order=[Order("value")]))

    assert found("IT/ios") == ["it"]
    assert found("o'brien") == ["O'Brien"]
    assert found("Script> iOS") == ["<script>"]
    assert found("%") == found("_") == found("$1") == ["100%_$1"]
    assert found("\\") == ["back\\slash"]
    assert found('a"B') == ['a"b']
    assert found("ios") == found("") == ODD
    assert found("it nowhere") == []


def test_rows_come_in_order_and_page_by_page_with_what_is_missing_last(predicted: Warehouse) -> None:
    day = Asked("predictions", "users", window("2024-01-02", "2024-01-03"))
    order = [Order("impact", "size"), Order("value")]
    ranked = countries(predicted.asked_rows(day, order=order))
    assert ranked == [ODD[i] for i in (0, 1, 7, 2, 6, 3, 5, 4, 8)]
    pages = [predicted.asked_rows(day, ("country_code", "impact", "value"), order, 4, 4 * page) for page in range(3)]
    assert [one for page in pages for one in countries(page)] == ranked
    assert pages[0].column_names == ["country_code", "impact", "value"]
    assert countries(predicted.asked_rows(day, order=[Order("value", "down")], limit=1)) == [ODD[8]]
    times = predicted.asked_rows(Asked("predictions", "users", JANUARY), order=[Order("ts", "down")], limit=1)
    assert times["ts"][0].as_py() == dt.datetime(2024, 1, 3, tzinfo=dt.UTC)
    assert times.schema.field("ts").type == pa.timestamp("us", "UTC")


def test_predictions_add_up_by_columns(predicted: Warehouse) -> None:
    users = Asked("predictions", "users", window("2024-01-01", "2024-01-03"))
    figures: list[Any] = ["n_rows", "n_anomalies", "value", "expected", "weight", "first", "last", "scored_at"]
    [whole] = predicted.prediction_sums(users, (), figures).to_pylist()
    assert whole == {
        "n_rows": 18,
        "n_anomalies": 2,
        "value": 72.0,
        "expected": 72.0,
        "weight": 18.0,
        "first": dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
        "last": dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
        "scored_at": NOW,
    }
    by_country = predicted.prediction_sums(users, ("country_code",), ("n_rows", "value")).to_pylist()
    assert {row["country_code"]: (row["n_rows"], row["value"]) for row in by_country} == {
        name: (2, 2.0 * i) for i, name in enumerate(ODD)
    }
    days = predicted.prediction_sums(replace(users, among={"country_code": frozenset({"it"})}), ("ts",), ("n_rows",))
    assert sorted(days["ts"].to_pylist()) == [dt.datetime(2024, 1, day, tzinfo=dt.UTC) for day in (1, 2)]
    # Nothing is expected of them: nothing is summed.
    [orders] = predicted.prediction_sums(replace(users, metric="orders"), (), ("n_rows", "value")).to_pylist()
    assert orders == {"n_rows": 4, "value": None}
    assert predicted.prediction_sums(replace(users, metric="visits"), ("platform",), ("n_rows",)).num_rows == 0


def test_ratios_add_up_by_their_numerators(warehouse: Warehouse) -> None:
    create_predictions(warehouse, "country_code")
    rows = prediction_rows("rate", ["2024-01-01"], country_code=["it", "de"])
    for name, column in {"value": [0.5, 0.1], "expected": [0.4, 0.2], "denominator": [10.0, 90.0]}.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(column))
    warehouse.replace_predictions("predictions", "rate", JANUARY, rows, {})
    asked = Asked("predictions", "rate", JANUARY)
    [summed] = warehouse.prediction_sums(asked, (), ("value", "expected", "weight")).to_pylist()
    assert summed == {"value": pytest.approx(14.0), "expected": pytest.approx(22.0), "weight": 100.0}


def test_what_is_asked_of_a_missing_table_or_column_is_said(predicted: Warehouse) -> None:
    with pytest.raises(DataError, match="has no table 'incidents'; it holds predictions: run `segwatch create`"):
        predicted.asked_rows(Asked("incidents", "users", JANUARY))
    for call in (
        lambda: predicted.asked_rows(Asked("predictions", "users", JANUARY, {"plan": frozenset({"free"})})),
        lambda: predicted.asked_rows(Asked("predictions", "users", JANUARY), ("plan",)),
        lambda: predicted.prediction_sums(Asked("predictions", "users", JANUARY), ("plan",), ("n_rows",)),
    ):
        with pytest.raises(DataError, match=r"'predictions' in .* has no column 'plan'"):
            call()


def test_a_closed_warehouse_opens_again(warehouse: Warehouse) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    warehouse.close()
    warehouse.close()
    assert warehouse.created_tables() == ["users"]


# URLs


@pytest.mark.parametrize("url", ["", "duckdb:", "duckdb:///", "duckdb://x.duckdb", "bigquery://p", "/a.duckdb"])
def test_an_unknown_url_is_named_with_the_form_expected(url: str) -> None:
    with pytest.raises(SettingsError, match="duckdb:///FILE, bigquery://PROJECT/DATASET or postgresql://") as caught:
        open_warehouse(url)
    assert repr(url) in str(caught.value)


def test_opening_a_url_imports_a_database_only_where_it_is_used() -> None:
    code = (
        "import sys, segwatch.warehouses;"
        "assert not {'duckdb', 'adbc_driver_postgresql', 'adbc_driver_manager', 'ibis'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# DuckDB: the file


@pytest.fixture
def local(tmp_path: Path) -> Iterator[DuckdbBackend]:
    made = DuckdbBackend(tmp_path)
    yield made
    made.close()


def test_only_create_makes_the_file(local: DuckdbBackend) -> None:
    warehouse = local.open()
    rows = prediction_rows("users", ["2024-01-01"])
    calls: list[Callable[[], object]] = [
        warehouse.created_tables,
        warehouse.drop_created,
        lambda: warehouse.truncate("users"),
        lambda: warehouse.insert("users", metric_rows(("2024-01-01", "it", "ios", 1)).to_batches(), KEYS),
        lambda: warehouse.table_schema("users"),
        lambda: warehouse.observations(metric(), JANUARY),
        lambda: warehouse.span(metric()),
        lambda: warehouse.write_features("r", feature_rows(), NOW),
        lambda: warehouse.read_features("segwatch_features_r"),
        lambda: warehouse.drop_features("segwatch_features_r"),
        lambda: warehouse.sweep_features(NOW),
        lambda: warehouse.replace_predictions("predictions", "users", JANUARY, rows, {}),
        lambda: warehouse.predictions("predictions", "users", JANUARY),
        lambda: warehouse.prediction_span("predictions", "users"),
    ]
    for call in calls:
        with pytest.raises(BackendError, match=r"there is no database .*test\.duckdb: run `segwatch create`"):
            call()
    assert not local.path.exists()


def test_a_create_that_fails_leaves_no_new_file(local: DuckdbBackend) -> None:
    with pytest.raises(DataError):
        local.open().create_table("users.", METRIC_SCHEMA)
    assert list(local.path.parent.iterdir()) == []


def test_drop_created_removes_the_file_that_segwatch_made(local: DuckdbBackend) -> None:
    local.open().create_table("users", METRIC_SCHEMA)
    local.close()
    warehouse = local.open()
    warehouse.create_table("sales.predictions", PREDICTIONS_SCHEMA)
    warehouse.write_features("r", feature_rows(), NOW)
    assert warehouse.drop_created() == ["segwatch_features_r", "users", "sales.predictions"]
    assert list(local.path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [
        "CREATE TABLE mine (x INT)",
        "CREATE VIEW mine AS SELECT 1 AS x",
        "CREATE SCHEMA mine",
        "CREATE SEQUENCE mine",
        "CREATE MACRO mine(x) AS x + 1",
        "CREATE TYPE mine AS ENUM ('a')",
        "CREATE TABLE sales.mine (x INT)",
    ],
)
def test_drop_created_keeps_a_file_that_holds_anything_else(local: DuckdbBackend, other: str) -> None:
    warehouse = local.open()
    warehouse.create_table("users", METRIC_SCHEMA)
    warehouse.create_table("sales.users", METRIC_SCHEMA)
    local.run(other)
    assert warehouse.drop_created() == ["users", "sales.users"]
    assert local.path.exists()
    assert warehouse.created_tables() == []
    with duckdb.connect(str(local.path)) as connection:
        schemas = {row[0] for row in connection.execute("SELECT schema_name FROM duckdb_schemas()").fetchall()}
    assert ("sales" in schemas) == ("sales" in other)


def test_drop_created_keeps_a_file_that_segwatch_did_not_make(local: DuckdbBackend) -> None:
    local.run("SELECT 1")
    warehouse = local.open()
    warehouse.create_table("users", METRIC_SCHEMA)
    assert warehouse.drop_created() == ["users"]
    assert local.path.exists()


def test_the_file_is_locked_by_another_process(local: DuckdbBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segwatch.warehouses.duckdb.LOCK_WAIT_SECONDS", 0.1)
    local.open().create_table("users", METRIC_SCHEMA)
    local.close()
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(local.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin and holder.stdout
    try:
        assert holder.stdout.readline() == "ready\n"
        warehouse = local.open()
        with pytest.raises(BackendError, match=r"test\.duckdb is in use by another process") as caught:
            warehouse.created_tables()
        assert caught.value.retryable
    finally:
        holder.communicate()
    assert warehouse.created_tables() == ["users"]


def test_a_file_that_another_process_has_for_a_moment_is_waited_for(local: DuckdbBackend) -> None:
    local.open().create_table("users", METRIC_SCHEMA)
    local.close()
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('ready', flush=True); sys.stdin.read(1)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(local.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin and holder.stdout and holder.stdout.readline() == "ready\n"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(local.open().created_tables)
        assert not asked.done()
        holder.communicate("x")
        assert asked.result(60) == ["users"]


def test_readers_share_the_file_change_nothing_and_let_go_of_it(local: DuckdbBackend) -> None:
    local.open().create_table("users", METRIC_SCHEMA)
    local.close()
    readers = [open_reader(local.url) for _ in range(2)]
    assert [reader.created_tables() for reader in readers] == [["users"]] * 2
    code = "import duckdb, sys; print(duckdb.connect(sys.argv[1], read_only=True).execute('from users').fetchall())"
    other = subprocess.run([sys.executable, "-c", code, str(local.path)], capture_output=True, text=True)
    assert other.stdout == "[]\n"
    with pytest.raises(DataError, match="read-only mode"):
        readers[0].truncate("users")
    for reader in readers:
        reader.close()
    assert local.open().truncate("users") == 0


def test_a_reader_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="there is no database"):
        open_reader(f"duckdb:///{tmp_path / 'none.duckdb'}").created_tables()
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_database_is_named_and_kept(local: DuckdbBackend) -> None:
    local.path.write_text("a,b\n" * 5000)
    for call in (local.open().created_tables, lambda: local.open().create_table("users", METRIC_SCHEMA)):
        with pytest.raises(BackendError, match=r"test\.duckdb is not a DuckDB database") as caught:
            call()
        assert not caught.value.retryable
    assert local.path.read_text() == "a,b\n" * 5000


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"there is no folder .*nowhere"):
        open_warehouse(f"duckdb:///{tmp_path}/nowhere/x.duckdb").create_table("users", METRIC_SCHEMA)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match=r"there is no folder .*file"):
        open_warehouse(f"duckdb:///{tmp_path}/file/x.duckdb").create_table("users", METRIC_SCHEMA)


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="is a folder"):
        open_warehouse(f"duckdb:///{tmp_path}").created_tables()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder that refuses everyone's files")
def test_a_folder_that_refuses_files_is_named() -> None:
    with pytest.raises(BackendError, match=r"/proc/x\.duckdb"):
        open_warehouse("duckdb:////proc/x.duckdb").create_table("users", METRIC_SCHEMA)


def test_a_read_only_file_is_named(local: DuckdbBackend, no_override: list[str]) -> None:
    local.open().create_table("users", METRIC_SCHEMA)
    local.close()
    local.path.chmod(0o400)
    code = "import sys; from segwatch.warehouses import open_warehouse; open_warehouse(sys.argv[1]).truncate('users')"
    finished = subprocess.run([*no_override, sys.executable, "-c", code, local.url], capture_output=True, text=True)
    assert re.search(r"BackendError: .*test\.duckdb may not be written: grant the right", finished.stderr)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            duckdb.IOException("IO Error: Could not write file: No space left on device"),
            "disk that holds x is full",
        ),
        (
            duckdb.OutOfMemoryException("failed to offload, max_temp_directory_size"),
            "disk that holds x is full",
        ),
        (duckdb.OutOfMemoryException("Out of Memory Error: failed to allocate"), "needs more memory"),
        (duckdb.IOException('IO Error: Cannot open file "x": Permission denied'), "may not be written"),
        (OSError(30, "Read-only file system"), "may not be written"),
        (
            duckdb.IOException("Trying to read a database file with version number 99"),
            "another version of DuckDB",
        ),
        (duckdb.InternalException("INTERNAL Error: no"), "x could not be used"),
    ],
)
def test_what_the_disk_refuses_is_said_in_one_line(error: Any, words: str) -> None:
    said = explain(error, Path("x"))
    assert isinstance(said, BackendError) and not said.retryable
    assert words in str(said) and "\n" not in str(said)


@pytest.mark.parametrize(
    "error", [RuntimeError("Query interrupted"), duckdb.InterruptException("INTERRUPT Error: Interrupted!")]
)
def test_ctrl_c_amid_a_query_is_ctrl_c(error: Exception) -> None:
    # What DuckDB makes of the signal. When it looks for one is chance, so none is sent here.
    with pytest.raises(KeyboardInterrupt), translated(Path("x")):
        raise error


def test_two_connections_of_one_process_share_the_file(local: DuckdbBackend) -> None:
    with duckdb.connect(str(local.path)) as connection:
        connection.execute(one_row())
        warehouse = local.open()
        assert warehouse.observations(metric(), JANUARY).num_rows == 1
        with duckdb.connect(str(local.path)) as second:
            assert second.execute("SELECT count(*) FROM users").fetchone() == (1,)


def test_a_variable_or_a_file_is_never_taken_for_a_table(local: DuckdbBackend, monkeypatch: Any) -> None:
    monkeypatch.chdir(local.path.parent)
    users = metric_rows(("2024-01-01", "it", "ios", 5))
    Path("users.csv").write_text("created_at,country_code,platform,new_users\n2024-01-01,it,ios,1\n")
    local.run("CREATE TABLE other (x INT)")
    for name in ("users", "users.csv"):
        with pytest.raises(DataError, match="has no table"):
            local.open().observations(metric(table=name), JANUARY)
    assert users.num_rows == 1


def test_no_extension_is_downloaded(local: DuckdbBackend) -> None:
    warehouse = local.open()
    warehouse.create_table("users", METRIC_SCHEMA)
    with duckdb.connect(str(local.path)) as connection:
        names = ["autoinstall_known_extensions", "autoload_known_extensions"]
        for name in names:
            assert connection.execute("SELECT current_setting(?)", [name]).fetchone() == (False,)


def test_a_million_rows_are_inserted_twice_in_seconds(local: DuckdbBackend) -> None:
    check_many_rows(local.open(), n_segments=2000)


def check_many_rows(warehouse: Warehouse, n_segments: int) -> None:
    warehouse.create_table("users", METRIC_SCHEMA)
    n_days = 500
    day = np.datetime64("2023-01-01") + np.arange(n_days)
    countries = pa.array([f"c{i}" for i in range(n_segments)])

    def batches() -> Iterator[pa.RecordBatch]:
        for created_at in day:
            yield pa.record_batch(
                [
                    pa.array(np.full(n_segments, created_at)),
                    countries,
                    pa.nulls(n_segments, pa.string()),
                    pa.array(["web"] * n_segments),
                    pa.array(np.arange(n_segments)),
                ],
                schema=METRIC_SCHEMA.arrow(),
            )

    started = time.monotonic()
    for _ in range(2):
        assert warehouse.insert("users", batches(), KEYS) == n_days * n_segments
    found = warehouse.observations(metric(), window("2023-01-01", "2025-01-01"))
    assert found.num_rows == n_days * n_segments
    assert found["n_rows"].to_numpy().max() == 1
    assert time.monotonic() - started < 30


# DuckDB: sudden death

_REPLACE_FOREVER = """
import importlib.util, itertools, sys
spec = importlib.util.spec_from_file_location("contract", sys.argv[2])
contract = importlib.util.module_from_spec(spec)
sys.modules["contract"] = contract
spec.loader.exec_module(contract)
warehouse = contract.open_warehouse(sys.argv[1])
for value in itertools.count(1):
    rows = contract.many_predictions(float(value))
    print(value, flush=True)
    warehouse.replace_predictions("predictions", "users", contract.JANUARY, rows, {})
"""
_DAYS = [f"2024-01-{day:02d}" for day in range(1, 32)]


def many_predictions(value: float) -> pa.Table:
    return prediction_rows("users", _DAYS, value, country_code=[f"c{i}" for i in range(600)])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
@pytest.mark.parametrize("seed", range(6))
def test_death_amid_replace_leaves_the_old_table_or_the_new_one(local: DuckdbBackend, seed: int) -> None:
    warehouse = local.open()
    create_predictions(warehouse, "country_code")
    warehouse.replace_predictions("predictions", "users", JANUARY, many_predictions(0.0), {})
    local.close()
    writer = subprocess.Popen(
        [sys.executable, "-c", _REPLACE_FOREVER, local.url, __file__], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    try:
        begun = int(writer.stdout.readline())
        time.sleep(random.Random(seed).uniform(0, 0.6))
    finally:
        writer.kill()
        rest, _ = writer.communicate()
    begun = max([begun, *map(int, rest.split())])
    found = local.open().predictions("predictions", "users", JANUARY)
    values = set(found["value"].to_pylist())
    assert found.num_rows == 31 * 600
    assert len(values) == 1 and values <= {begun - 1.0, float(begun)}


# PostgreSQL


@pytest.fixture
def postgres(postgres_server: Any, tmp_path: Path) -> Iterator[PostgresBackend]:
    made = PostgresBackend(tmp_path, postgres_server)
    yield made
    made.close()


@contextlib.contextmanager
def held(backend: PostgresBackend, statement: str) -> Iterator[None]:
    """Another session has executed the statement and has not ended its transaction."""
    with backend.server.connect() as other, other.cursor() as cursor:
        other.adbc_connection.set_autocommit(False)
        cursor.execute(statement)
        yield
        other.rollback()


def test_a_lock_of_another_session_is_waited_for_within_bounds(postgres: PostgresBackend) -> None:
    warehouse = postgres.open("?options=-c%20lock_timeout%3D300ms")
    create_predictions(warehouse)
    rows = prediction_rows("users", ["2024-01-01"])
    warehouse.replace_predictions("predictions", "users", JANUARY, rows, {})
    started = time.monotonic()
    with held(postgres, "LOCK TABLE predictions IN EXCLUSIVE MODE"):
        with pytest.raises(BackendError, match="is locked by another session: try again") as caught:
            warehouse.replace_predictions("predictions", "users", JANUARY, prediction_rows("users", []), {})
        assert caught.value.retryable
        assert warehouse.predictions("predictions", "users", JANUARY).num_rows == 1
    assert time.monotonic() - started < 10
    assert warehouse.replace_predictions("predictions", "users", JANUARY, rows, {}) == 1


def test_a_view_that_takes_too_long_is_given_up(postgres: PostgresBackend) -> None:
    warehouse = postgres.open("?options=-c%20statement_timeout%3D300ms")
    postgres.server.run(
        "CREATE VIEW users AS SELECT now() AS created_at, pg_sleep(9)::text AS country_code, 1 AS new_users"
    )
    with pytest.raises(BackendError, match="took too long") as caught:
        warehouse.observations(metric(dimensions=("country_code",)), window("2020-01-01", "2100-01-01"))
    assert caught.value.retryable


def test_a_statement_that_someone_cancels_is_not_to_be_retried(postgres: PostgresBackend) -> None:
    warehouse = postgres.open()
    create_predictions(warehouse)
    cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with held(postgres, "LOCK TABLE predictions"), concurrent.futures.ThreadPoolExecutor() as threads:
        waiting = threads.submit(warehouse.truncate, "predictions")
        while not postgres.server.run(cancel):
            time.sleep(0.02)
        with pytest.raises(BackendError, match="was cancelled") as caught:
            waiting.result(20)
    assert not caught.value.retryable


def test_a_reader_amid_an_insert_sees_the_old_rows(postgres: PostgresBackend) -> None:
    writer, reader = postgres.open(), postgres.open()
    writer.create_table("users", METRIC_SCHEMA)
    writer.insert("users", metric_rows(("2024-01-01", "it", "ios", 1)).to_batches(), KEYS)
    seen = []

    def batches() -> Iterator[pa.RecordBatch]:
        yield from metric_rows(("2024-01-01", "it", "ios", 2)).to_batches()
        seen.extend(reader.observations(metric(), JANUARY)["value"].to_pylist())
        yield from metric_rows(("2024-01-02", "it", "ios", 2)).to_batches()

    writer.insert("users", batches(), KEYS)
    assert seen == [1.0]
    assert reader.observations(metric(), JANUARY)["value"].to_pylist() == [2.0, 2.0]


def test_of_two_writers_one_waits_and_neither_is_lost_or_mixed(postgres: PostgresBackend) -> None:
    create_predictions(postgres.open(), "country_code")
    writers = [postgres.open() for _ in range(2)]

    def replace(value: int) -> list[int]:
        rows = many_predictions(float(value))
        return [writers[value].replace_predictions("predictions", "users", JANUARY, rows, {}) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor() as threads:
        assert list(threads.map(replace, range(2))) == [[31 * 600] * 3] * 2
    found = writers[0].predictions("predictions", "users", JANUARY)
    assert found.num_rows == 31 * 600
    assert len(set(found["value"].to_pylist())) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
@pytest.mark.parametrize("seed", range(4))
def test_a_server_killed_amid_replace_leaves_the_old_rows_or_the_new_ones(postgres: PostgresBackend, seed: int) -> None:
    warehouse = postgres.open()
    create_predictions(warehouse, "country_code")
    warehouse.replace_predictions("predictions", "users", JANUARY, many_predictions(0.0), {})
    ((process,),) = postgres.server.run("SELECT pid FROM pg_stat_activity WHERE application_name = 'segwatch'")
    begun, is_killed = 0, threading.Event()

    def replace_until_killed() -> None:
        """A session that was killed between two of its calls is opened anew, so that not every kill is noticed."""
        nonlocal begun
        is_last = False
        while not is_last:
            is_last = is_killed.is_set()
            begun += 1
            warehouse.replace_predictions("predictions", "users", JANUARY, many_predictions(float(begun)), {})

    with concurrent.futures.ThreadPoolExecutor() as threads:
        writing = threads.submit(replace_until_killed)
        time.sleep(random.Random(seed).uniform(0.05, 0.6))
        times_ready = postgres.server.times_ready
        os.kill(process, signal.SIGKILL)
        is_killed.set()
        try:
            writing.result(60)
        except BackendError as error:
            assert error.retryable, error
    postgres.server.wait(times_ready=times_ready + 1)
    found = warehouse.predictions("predictions", "users", JANUARY)
    values = set(found["value"].to_pylist())
    assert found.num_rows == 31 * 600
    assert len(values) == 1 and values <= {begun - 1.0, float(begun)}


def test_a_session_that_the_server_ended_while_idle_is_opened_anew(postgres: PostgresBackend) -> None:
    warehouse = postgres.open()
    create_predictions(warehouse)
    ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'segwatch'"
    assert postgres.server.run(ended) == [(True,)]
    rows = prediction_rows("users", ["2024-01-01"])
    assert warehouse.replace_predictions("predictions", "users", JANUARY, rows, {}) == 1


@pytest.mark.parametrize(
    ("user", "change", "message", "retryable"),
    [
        ("guest", {}, "did not accept the user or the password: set PGPASSWORD", False),
        ("nobody_knows", {}, "did not accept the user or the password", False),
        ("segwatch", {"/metrics": "/nowhere"}, 'there is no such database .* "nowhere"', False),
        ("segwatch", {"/metrics": "/metrics?sslmode=require"}, "do not agree on encryption: mend sslmode", False),
        ("segwatch", {"@127.0.0.1": "@127.0.0.2"}, "there is no PostgreSQL server at .*: start it", True),
        ("segwatch", {"@127.0.0.1": "@no-host.invalid"}, "there is no PostgreSQL server at .*: start it", True),
    ],
)
def test_a_database_that_cannot_be_reached_is_named_with_the_mend(
    postgres: PostgresBackend, monkeypatch: Any, user: str, change: dict[str, str], message: str, retryable: bool
) -> None:
    monkeypatch.setenv("PGPASSWORD", "wr0ng")
    url = postgres.url.replace("segwatch@", f"{user}@")
    for old, new in change.items():
        url = url.replace(old, new)
    with pytest.raises(BackendError, match=message) as caught:
        open_warehouse(url).created_tables()
    assert caught.value.retryable is retryable
    assert url in str(caught.value)
    assert "wr0ng" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named_with_its_extra(monkeypatch: Any) -> None:
    monkeypatch.delitem(sys.modules, "segwatch.warehouses.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql", None)
    with pytest.raises(SettingsError, match=r"adbc_driver_postgresql is missing: pip install 'segwatch\[postgres\]'"):
        open_warehouse("postgresql://segwatch@127.0.0.1/metrics")


def test_a_password_in_the_url_works_and_is_never_shown(postgres: PostgresBackend) -> None:
    server = postgres.server
    quoted = urllib.parse.quote(server.password, safe="")
    url = server.url().replace("segwatch@", f"{server.guest}:{quoted}@")
    warehouse = open_warehouse(url)
    assert warehouse.created_tables() == []
    with pytest.raises(DataError, match=r"postgresql://guest:\*\*\*@127") as caught:
        warehouse.truncate("users")
    assert quoted not in str(caught.value)
    warehouse.close()
    for wrong in (url.replace(quoted, server.password), url.replace(quoted, "s3cret") + "/x", url.replace("q", "q:")):
        for secret in ("postgresql", "bigquery"):
            with pytest.raises(SettingsError) as refused:
                open_warehouse(wrong.replace("postgresql", secret, 1) + "/x")
            assert not {quoted, server.password, "p@ss", "s3cret"} & set(re.split(r"[:/@']", str(refused.value)))


def test_a_right_that_is_missing_is_named_with_its_table(postgres: PostgresBackend, monkeypatch: Any) -> None:
    server = postgres.server
    monkeypatch.setenv("PGPASSWORD", server.password)
    postgres.run(one_row())
    postgres.open().create_table("predictions", PREDICTIONS_SCHEMA)
    guest = open_warehouse(server.url().replace("segwatch@", f"{server.guest}@"))
    rows = prediction_rows("users", ["2024-01-01"])
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: guest.observations(metric(), JANUARY), "permission denied for schema public"),
        (lambda: guest.create_table("mine", METRIC_SCHEMA), "permission denied for schema public"),
        (lambda: guest.observations(metric(), JANUARY), "permission denied for table users"),
        (lambda: guest.replace_predictions("predictions", "users", JANUARY, rows, {}), "for table predictions"),
        (guest.drop_created, "must be owner of table predictions"),
    ]
    for number, (call, message) in enumerate(calls):
        if number == 2:
            server.run(f"GRANT USAGE ON SCHEMA public TO {server.guest}")
        with pytest.raises(BackendError, match=f"does not grant a right .*{message}") as caught:
            call()
        assert not caught.value.retryable
    guest.close()
    assert postgres.open().created_tables() == ["predictions"]


@pytest.mark.parametrize(
    "other",
    ["TABLE sales.mine (x INT)", "VIEW sales.mine AS SELECT 1 AS x", "TYPE sales.mine AS ENUM ('a')", ""],
)
def test_drop_created_leaves_a_schema_that_holds_anything_else(postgres: PostgresBackend, other: str) -> None:
    warehouse = postgres.open()
    warehouse.create_table("sales.users", METRIC_SCHEMA)
    postgres.server.run(f"CREATE {other}" if other else "SELECT 1")
    assert warehouse.drop_created() == ["sales.users"]
    schemas = postgres.server.run("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'")
    assert (("sales",) in schemas) == bool(other)


def test_a_table_that_a_view_needs_is_not_dropped(postgres: PostgresBackend) -> None:
    warehouse = postgres.open()
    warehouse.create_table("predictions", PREDICTIONS_SCHEMA)
    postgres.server.run("CREATE VIEW mine AS SELECT ts FROM predictions")
    with pytest.raises(BackendError, match=r"something else in .* depends on what is to be dropped"):
        warehouse.drop_created()
    assert warehouse.created_tables() == ["predictions"]


def test_tables_are_marked_and_described_where_others_look(postgres: PostgresBackend) -> None:
    postgres.open().create_table("users", METRIC_SCHEMA)
    said = "SELECT obj_description('users'::regclass), col_description('users'::regclass, 1)"
    ((mark, description),) = postgres.server.run(said)
    assert "segwatch" in mark
    assert description == METRIC_SCHEMA.columns[0].description


def test_a_materialized_view_and_types_of_postgresql_are_read(postgres: PostgresBackend) -> None:
    postgres.server.run(
        "CREATE DOMAIN how_many AS NUMERIC CHECK (value > -10)",
        "CREATE DOMAIN how_many_more AS how_many",
        "CREATE MATERIALIZED VIEW users AS SELECT '2024-01-02 01:30:00+03'::timestamptz AS created_at,"
        " '6f1e1c9e-57e5-4b3a-8a53-0c9d3d1f0a11'::uuid AS country_code, 'ios'::char(5) AS platform,"
        " 1.25::how_many_more AS new_users, point(1, 2) AS at, '{}'::jsonb AS more",
    )
    warehouse = postgres.open()
    found = warehouse.observations(metric(), JANUARY)
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (dt.datetime(2024, 1, 1), "6f1e1c9e-57e5-4b3a-8a53-0c9d3d1f0a11", "ios", 1.25, 1)
    ]
    for name in ("at", "more"):
        with pytest.raises(DataError, match=f"'{name}' .* has the type UNKNOWN"):
            warehouse.observations(metric(dimensions=(name,)), JANUARY)
        with pytest.raises(DataError, match=f"'{name}' .* has the type UNKNOWN"):
            warehouse.observations(metric(value=name), JANUARY)


@pytest.mark.parametrize(("value", "what"), [("NaN", "NaN"), ("Infinity", "an infinite number")])
def test_decimals_that_are_no_numbers_are_named(postgres: PostgresBackend, value: str, what: str) -> None:
    postgres.server.run(
        "CREATE TABLE users AS SELECT date '2024-01-05' AS created_at, 'it' AS country_code, 'ios' AS platform,"
        f" '{value}'::numeric AS new_users"
    )
    with pytest.raises(DataError, match=f"1 row has {what}"):
        postgres.open().observations(metric(), JANUARY)


def test_texts_that_a_collation_takes_for_equal_are_told_apart(postgres: PostgresBackend) -> None:
    postgres.server.run(
        "CREATE TABLE users AS SELECT date '2024-01-05' AS created_at, c COLLATE nocase AS country_code, 1 AS new_users"
        " FROM unnest(ARRAY['it', 'IT', 'de']) AS c"
    )
    found = postgres.open().observations(metric(dimensions=("country_code",)), JANUARY)
    assert found["country_code"].to_pylist() == ["IT", "de", "it"]


def test_names_that_differ_in_case_alone_are_told_apart(postgres: PostgresBackend) -> None:
    for name, users in (("users", 1), ("Users", 2)):
        postgres.load(name, metric_rows(("2024-01-01", "it", "ios", users)))
    for name, users in (("users", 1.0), ("Users", 2.0), ("public.Users", 2.0)):
        assert postgres.open().observations(metric(table=name), JANUARY)["value"].to_pylist() == [users]


def test_names_that_postgresql_would_cut_are_refused(postgres: PostgresBackend) -> None:
    warehouse = postgres.open()
    long = TableSchema((*METRIC_SCHEMA.columns, Column("è" * 32, "STRING")))
    for call in (lambda: warehouse.create_table("x" * 64, METRIC_SCHEMA), lambda: warehouse.create_table("x", long)):
        with pytest.raises(DataError, match="is too long: PostgreSQL keeps 63 bytes"):
            call()
    assert warehouse.created_tables() == []
    assert warehouse.create_table("x" * 63, METRIC_SCHEMA)


def test_text_that_postgresql_cannot_hold_is_a_data_error(postgres: PostgresBackend) -> None:
    warehouse = postgres.open()
    warehouse.create_table("users", METRIC_SCHEMA)
    with pytest.raises(DataError, match="invalid byte sequence"):
        warehouse.insert("users", metric_rows(("2024-01-01", "a\0b", "ios", 1)).to_batches(), KEYS)
    assert warehouse.truncate("users") == 0


def test_a_search_path_says_where_short_names_are(postgres: PostgresBackend) -> None:
    postgres.server.run("CREATE SCHEMA sales")
    warehouse = postgres.open("?options=-c%20search_path%3Dsales")
    warehouse.create_table("users", METRIC_SCHEMA)
    assert warehouse.created_tables() == ["users"]
    assert postgres.open().created_tables() == ["sales.users"]


@pytest.mark.parametrize(
    ("state", "words", "retryable"),
    [
        ("53100", "the disk of x is full", False),
        ("53300", "too many connections", True),
        ("57P03", "x is starting or stopping", True),
        ("40P01", "another session changed the same rows", True),
        ("40001", "another session changed the same rows", True),
        ("57014", "took too long", True),
        ("25006", "x is read-only: name the primary", False),
        ("08006", "the connection to x broke", True),
        ("42P07", "another session has just made the same table", True),
        ("XX000", "x could not be used", False),
    ],
)
def test_what_postgresql_refuses_is_said_in_one_line(
    postgres: PostgresBackend, state: str, words: str, retryable: bool
) -> None:
    from segwatch.warehouses.postgres_errors import explain

    raised = f"DO $$ BEGIN RAISE EXCEPTION 'so it is' USING ERRCODE = '{state}'; END $$"
    with pytest.raises(adbc_driver_manager.Error) as caught:
        postgres.server.run(raised)
    said = explain(caught.value, "x")
    assert isinstance(said, BackendError) and said.retryable is retryable
    assert words in str(said) and str(said).endswith("(so it is)") and "\n" not in str(said)


def test_many_rows_are_not_each_compared_with_every_other(postgres: PostgresBackend) -> None:
    check_many_rows(postgres.open(), n_segments=200)
