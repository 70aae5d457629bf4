"""Warehouses: where a metric is read and predictions are written."""

from __future__ import annotations

from pathlib import Path

from segwatch.errors import SettingsError
from segwatch.warehouses.base import Warehouse

__all__ = ["Warehouse", "open_warehouse"]

_DUCKDB = "duckdb:///"


def open_warehouse(url: str) -> Warehouse:
    """The warehouse behind a URL; nothing is opened or made before its first use.

    Raises SettingsError if the URL is not of the form duckdb:///FILE.
    """
    if not url.startswith(_DUCKDB) or not url.removeprefix(_DUCKDB):
        raise SettingsError(f"the warehouse {url!r} is not known: write it as duckdb:///FILE")
    # DuckDB and ibis take half a second to import, which commands that read no data need not wait for.
    from segwatch.warehouses.duckdb import DuckdbWarehouse

    return DuckdbWarehouse(Path(url.removeprefix(_DUCKDB)))
