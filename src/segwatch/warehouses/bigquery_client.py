"""Google's BigQuery clients behind a few plain calls. The only module that imports them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import pyarrow as pa
from google.api_core import exceptions as api
from google.api_core.client_options import ClientOptions
from google.cloud import bigquery
from google.cloud.bigquery.retry import DEFAULT_RETRY

from segwatch.google import credentials, is_emulator
from segwatch.settings import Google
from segwatch.warehouses.bigquery_errors import translated
from segwatch.warehouses.bigquery_sql import Name, Query, Value
from segwatch.warehouses.checks import plain

_JOB_PREFIX = "segwatch_"
# Asked first: whether BigQuery can be reached at all is known soon, not after the client's ten minutes.
_FIRST_RETRY = DEFAULT_RETRY.with_timeout(30)
_UTC = pa.timestamp("us", tz="UTC")
_ARROW: dict[str, pa.DataType] = {
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "INTEGER": pa.int64(),
    "FLOAT": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "DATETIME": pa.timestamp("us"),
    "TIMESTAMP": _UTC,
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
}
_STANDARD_SQL = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "DECIMAL": "NUMERIC", "STRUCT": "RECORD"}


@dataclass(frozen=True)
class Field:
    """A column of a table to be made; type: BigQuery's name of it."""

    name: str
    type: str
    required: bool = False
    description: str = ""


@dataclass(frozen=True)
class Layout:
    """How a table is kept. time: the column whose days are its partitions."""

    time: str | None = None
    clustering: tuple[str, ...] = ()
    require_filter: bool = False


@dataclass(frozen=True)
class Held:
    """A table or view as BigQuery describes it.

    columns: their Arrow types; opaque where segwatch reads none of that type. required: columns that refuse NULL.
    time: the column it is partitioned by, if there is one.
    """

    name: Name
    columns: pa.Schema
    required: frozenset[str]
    labels: Mapping[str, str]
    is_view: bool
    time: str | None


@dataclass(frozen=True)
class Listed:
    """An entry of a dataset's list of tables."""

    name: Name
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Dataset:
    """A dataset: its id, its region (empty in lists) and its labels."""

    id: str
    location: str
    labels: Mapping[str, str]


class Session:
    """An open client of one project's BigQuery. Every call raises segwatch's errors only.

    place: the default dataset, for messages. labels: those of every job and of all that is made.
    """

    def __init__(self, google: Google, project: str, place: str, labels: Mapping[str, str]) -> None:
        self._google, self._project, self._place, self._labels = google, project, place, dict(labels)
        endpoint = google.endpoints.bigquery
        with self._errors():
            self._client = bigquery.Client(
                project=google.project or project,
                credentials=credentials(google, endpoint),
                location=google.location,
                client_options=ClientOptions(api_endpoint=endpoint) if endpoint else None,
            )

    def dataset(self, id_: str, project: str | None = None) -> Dataset | None:
        with self._errors():
            try:
                reference = bigquery.DatasetReference(project or self._project, id_)
                found = self._client.get_dataset(reference, retry=_FIRST_RETRY)
            except api.NotFound as error:
                if "not found: project" in str(error).lower():
                    raise
                return None
            return Dataset(id_, found.location or "", dict(found.labels))

    def datasets(self) -> list[Dataset]:
        """Every dataset of the warehouse's project that these credentials see, sorted by id."""
        with self._errors():
            found = [Dataset(d.dataset_id, "", dict(d.labels)) for d in self._client.list_datasets(self._project)]
        return sorted(found, key=lambda dataset: dataset.id)

    def create_dataset(self, id_: str, labels: Mapping[str, str]) -> None:
        dataset = bigquery.Dataset(bigquery.DatasetReference(self._project, id_))
        dataset.location = self._google.location
        dataset.labels = {**self._labels, **labels}
        with self._errors():
            self._client.create_dataset(dataset, exists_ok=True)

    def drop_dataset_if_empty(self, id_: str) -> None:
        reference = bigquery.DatasetReference(self._project, id_)
        with self._errors():
            holds = (self._client.list_tables, self._client.list_routines, self._client.list_models)
            if any(True for listed in holds for _ in listed(reference)):
                return
            try:
                self._client.delete_dataset(reference, not_found_ok=True)
            except api.BadRequest:
                # Anyone else may have put something into it since.
                return

    def find(self, name: Name) -> Held | None:
        with self._errors():
            try:
                return _held(self._client.get_table(_reference(name)))
            except api.NotFound:
                return None

    def tables(self, dataset: str) -> list[Listed]:
        """Tables and views of a dataset of the warehouse's project."""
        with self._errors():
            return self._list(dataset, self._project)

    def tables_if_allowed(self, dataset: str, project: str) -> list[Listed]:
        """Tables and views of a dataset; none of one that is not there or whose list is withheld."""
        with self._errors():
            try:
                return self._list(dataset, project)
            except (api.NotFound, api.Forbidden):
                return []

    def _list(self, dataset: str, project: str) -> list[Listed]:
        return [_listed(item) for item in self._client.list_tables(bigquery.DatasetReference(project, dataset))]

    def create_table(
        self,
        name: Name,
        fields: Iterable[Field],
        labels: Mapping[str, str],
        layout: Layout = Layout(),
        description: str = "",
        expires_at: dt.datetime | None = None,
    ) -> None:
        made = bigquery.Table(_reference(name), schema=[_schema_field(field) for field in fields])
        made.labels = {**self._labels, **labels}
        made.description = description or None
        made.expires = expires_at
        if layout.time is not None:
            made.time_partitioning = bigquery.TimePartitioning(field=layout.time)
        if layout.require_filter:
            made.require_partition_filter = True
        if layout.clustering:
            made.clustering_fields = list(layout.clustering)
        with self._errors():
            self._client.create_table(made)

    def drop_table(self, name: Name) -> None:
        with self._errors():
            self._client.delete_table(_reference(name), not_found_ok=True)

    def load(self, name: Name, parquet: IO[bytes]) -> int:
        """The table holds the file's rows alone. Returns how many."""
        config = bigquery.LoadJobConfig(
            source_format=bigquery.SourceFormat.PARQUET,
            # Loading once more after a lost answer gives the same table.
            write_disposition=bigquery.WriteDisposition.WRITE_TRUNCATE,
            create_disposition=bigquery.CreateDisposition.CREATE_NEVER,
            # Column names beyond letters, digits and underscores stay as they are.
            column_name_character_map="V2",
            labels=self._labels,
        )
        with self._errors():
            job = self._client.load_table_from_file(
                parquet,
                _reference(name),
                job_id_prefix=_JOB_PREFIX,
                location=self._google.location,
                job_config=config,
            )
            return int(job.result().output_rows or 0)

    def execute(self, query: Query) -> None:
        """The statements have run."""
        with self._errors():
            self._start(query).result()

    def fetch(self, query: Query) -> pa.Table:
        """The few rows of a query."""
        with self._errors():
            return self._start(query).result().to_arrow(create_bqstorage_client=False)

    def bytes_of(self, query: Query) -> int:
        """Bytes that the query would be billed for at most; nothing runs."""
        with self._errors():
            return int(self._start(query, dry_run=True).total_bytes_processed or 0)

    def read(self, name: Name) -> pa.Table:
        """All rows of a table, in no order, through the Storage Read API."""
        with self._errors():
            rows = self._client.list_rows(_reference(name)).to_arrow(bqstorage_client=self._storage)
        return plain(rows)

    def stream(self, name: Name) -> Iterator[pa.Table]:
        """The rows of `read` in tables of some of them."""
        with self._errors():
            for batch in self._client.list_rows(_reference(name)).to_arrow_iterable(bqstorage_client=self._storage):
                yield plain(pa.Table.from_batches([batch]))

    def close(self) -> None:
        self._client.close()
        if "_storage" in self.__dict__:
            self._storage.transport.close()
            del self._storage

    def _start(self, query: Query, dry_run: bool = False) -> Any:
        config = bigquery.QueryJobConfig(
            labels=self._labels,
            query_parameters=[_parameter(name, value) for name, value in query.values.items()],
            # Another run of the same query must see rows that came in between, and be billed as --dry-run says.
            use_query_cache=False,
        )
        if dry_run:
            config.dry_run = True
        elif self._google.maximum_bytes_billed:
            config.maximum_bytes_billed = self._google.maximum_bytes_billed
        # Without a job_id of ours: the client makes one, sends it again after a lost answer, and so runs the query
        # once; and it may run a job that failed on Google's side anew, which every statement here allows.
        return self._client.query(query.text, job_config=config, job_id_prefix=_JOB_PREFIX)

    @cached_property
    def _storage(self) -> Any:
        # Half a second to import, which commands that read no rows need not wait for.
        from google.cloud import bigquery_storage

        endpoint = self._google.endpoints.bigquery_storage
        if is_emulator(endpoint):
            import grpc
            from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

            channel = grpc.insecure_channel(endpoint.removeprefix("http://"))
            return bigquery_storage.BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))
        return bigquery_storage.BigQueryReadClient(
            credentials=credentials(self._google, endpoint),
            client_options=ClientOptions(api_endpoint=endpoint) if endpoint else None,
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with translated(self._place, self._google.location):
            yield


def _reference(name: Name) -> bigquery.TableReference:
    return bigquery.TableReference(bigquery.DatasetReference(name.project, name.dataset), name.table)


def _listed(item: Any) -> Listed:
    return Listed(Name(item.project, item.dataset_id, item.table_id), dict(item.labels))


def _held(table: Any) -> Held:
    partitioning = table.time_partitioning
    return Held(
        Name(table.project, table.dataset_id, table.table_id),
        pa.schema([pa.field(field.name, _arrow_type(field)) for field in table.schema]),
        frozenset(field.name for field in table.schema if field.mode == "REQUIRED"),
        dict(table.labels),
        table.table_type not in ("TABLE", "SNAPSHOT", "CLONE"),
        partitioning.field if partitioning else None,
    )


def _arrow_type(field: Any) -> pa.DataType:
    name = _STANDARD_SQL.get(field.field_type, field.field_type)
    if name == "RECORD":
        type_ = pa.struct([pa.field(inner.name, _arrow_type(inner)) for inner in field.fields])
    else:
        type_ = _ARROW.get(name) or pa.opaque(pa.binary(), name, "bigquery")
    return pa.list_(type_) if field.mode == "REPEATED" else type_


def _schema_field(field: Field) -> Any:
    mode = "REQUIRED" if field.required else "NULLABLE"
    return bigquery.SchemaField(field.name, field.type, mode, description=field.description or None)


def _parameter(name: str, value: Value) -> Any:
    if isinstance(value.value, tuple):
        return bigquery.ArrayQueryParameter(name, value.type, list(value.value))
    return bigquery.ScalarQueryParameter(name, value.type, value.value)
