"""The generated metric and the schemas of the tables."""

from __future__ import annotations

from importlib import resources

from segwatch.core.schema import Column, TableSchema
from segwatch.settings import Metric


def generated_schema() -> TableSchema:
    """Columns of the generated metric's table."""
    return _schema("schema.json")


def labels_schema() -> TableSchema:
    """Columns of the table that names the generated metric's planted anomalies."""
    return _schema("labels_schema.json")


def predictions_schema() -> TableSchema:
    """Fixed columns of the predictions table."""
    return _schema("predictions_schema.json")


def incidents_schema() -> TableSchema:
    """Fixed columns of the incidents table."""
    return _schema("incidents_schema.json")


def incident_labels_schema() -> TableSchema:
    """Columns of the labels table: what people say of incidents and of days."""
    return _schema("incident_labels_schema.json")


def deliveries_schema() -> TableSchema:
    """Columns of the deliveries table: which alerts were sent."""
    return _schema("deliveries_schema.json")


def audit_schema() -> TableSchema:
    """Columns of the audit table: who did what, and when."""
    return _schema("audit_schema.json")


def detectability_schema() -> TableSchema:
    """Fixed columns of the detectability table."""
    return _schema("detectability_schema.json")


def backtests_schema() -> TableSchema:
    """Columns of the backtests table."""
    return _schema("backtests_schema.json")


def _schema(name: str) -> TableSchema:
    return TableSchema.from_json(resources.files(__name__).joinpath(name).read_text(encoding="utf-8"))


def metric_schema(metric: Metric) -> TableSchema:
    """Columns of a metric's table, as `segwatch create` makes it and `segwatch data insert` checks it."""
    generated = generated_schema()
    if generated.names == metric.columns:
        return generated
    time = Column(metric.time, "DATE" if metric.grain == "day" else "TIMESTAMP", required=True)
    dimensions = (Column(name, "STRING") for name in metric.dimensions)
    sums = (Column(name, "FLOAT", required=True) for name in metric.sums.values())
    return TableSchema((time, *dimensions, *sums))
