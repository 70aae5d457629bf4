"""The generated metric and the schemas of the tables."""

from __future__ import annotations

from importlib import resources

from segwatch.core.schema import TableSchema


def generated_schema() -> TableSchema:
    """Columns of the generated metric's table."""
    return _schema("schema.json")


def labels_schema() -> TableSchema:
    """Columns of the table that names the generated metric's planted anomalies."""
    return _schema("labels_schema.json")


def predictions_schema() -> TableSchema:
    """Fixed columns of the predictions table."""
    return _schema("predictions_schema.json")


def _schema(name: str) -> TableSchema:
    return TableSchema.from_json(resources.files(__name__).joinpath(name).read_text(encoding="utf-8"))
