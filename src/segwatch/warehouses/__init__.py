"""Warehouses: where a metric is read and predictions are written."""

from __future__ import annotations

import re
from pathlib import Path

from segwatch.errors import SettingsError
from segwatch.settings import Google
from segwatch.warehouses import postgres_url
from segwatch.warehouses.base import Warehouse

__all__ = ["Warehouse", "open_reader", "open_warehouse"]

_DUCKDB = "duckdb:///"
_POSTGRES = ("postgresql://", "postgres://")
_BIGQUERY = re.compile(r"bigquery://([a-z0-9.:\-]+)/(\w+)")


def open_warehouse(url: str, google: Google = Google()) -> Warehouse:
    """The warehouse behind a URL; nothing is opened or made before its first use.

    Raises SettingsError if the URL is of no form that is known, or what it needs is not installed.
    """
    if url.startswith(_POSTGRES):
        return _open_postgres(url)
    if match := _BIGQUERY.fullmatch(url):
        from segwatch.warehouses.bigquery import BigqueryWarehouse

        return BigqueryWarehouse(match[1], match[2], google)
    if not url.startswith(_DUCKDB) or not url.removeprefix(_DUCKDB):
        raise SettingsError(
            f"the warehouse {postgres_url.masked(url)!r} is not known: write it as duckdb:///FILE,"
            f" bigquery://PROJECT/DATASET or {postgres_url.FORM}"
        )
    # DuckDB and ibis take half a second to import, which commands that read no data need not wait for.
    from segwatch.warehouses.duckdb import DuckdbWarehouse

    return DuckdbWarehouse(Path(url.removeprefix(_DUCKDB)))


def open_reader(url: str, google: Google = Google()) -> Warehouse:
    """The warehouse behind a URL for reading alone: a database file can be read by several processes at a time.

    Raises SettingsError as `open_warehouse` does.
    """
    if not url.startswith(_DUCKDB) or not url.removeprefix(_DUCKDB):
        return open_warehouse(url, google)
    from segwatch.warehouses.duckdb import DuckdbReader

    return DuckdbReader(Path(url.removeprefix(_DUCKDB)))


def _open_postgres(url: str) -> Warehouse:
    try:
        from segwatch.warehouses.postgres import PostgresWarehouse
    except ModuleNotFoundError as error:
        raise SettingsError(f"the module {error.name} is missing: pip install 'segwatch[postgres]'") from error
    return PostgresWarehouse(url)
