"""Whether a target can do its work: one finding for each thing that it needs, and what to run to mend it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow.compute as pc

from segwatch.alerts.channels import Channel
from segwatch.core.compiled import notice
from segwatch.core.segment import counted
from segwatch.core.solver import instruction_sets
from segwatch.errors import DataError, SegwatchError, SettingsError
from segwatch.google import account, disabled_apis, has_image, is_emulator
from segwatch.registries import open_registry
from segwatch.settings import Metric, Settings, Target
from segwatch.steps import model_name
from segwatch.storage import Storage
from segwatch.warehouses import Warehouse, open_warehouse


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it is well, and what was found or is to be done."""

    what: str
    is_well: bool
    said: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Findings about the settings' default target, one after the other, as each is looked at."""
    target = settings.target(None)
    warehouse = open_warehouse(target.warehouse, target.google)
    try:
        for what, look in _looks(settings, target, warehouse):
            yield _finding(what, look)
    finally:
        warehouse.close()


def _finding(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except SegwatchError as error:
        return Finding(what, False, str(error))


def _looks(settings: Settings, target: Target, warehouse: Warehouse) -> Iterator[tuple[str, Callable[[], str]]]:
    """What to look at, in the order in which one depends on the other."""
    yield "compiled code", _compiled
    yield "settings", lambda: f"target {settings.default_target}, metrics {', '.join(settings.metrics)}"
    if target.warehouse.startswith("bigquery:") or target.registry == "vertex" or target.bucket.startswith("gs:"):
        yield "credentials", lambda: _credentials(target)
        yield "APIs", lambda: _apis(settings, target)
    yield "warehouse", lambda: _tables(warehouse)
    for name, metric in settings.metrics.items():
        yield f"table of {name}", lambda metric=metric: _metric_table(warehouse, metric)  # type: ignore[misc]
        if metric.calendar:
            yield f"calendar of {name}", lambda metric=metric: _calendar(warehouse, metric)  # type: ignore[misc]
    yield "predictions", lambda: _predictions(warehouse, settings.predictions_table)
    if target.bucket:
        yield "bucket", lambda: _bucket(target)
    for name in settings.metrics:
        yield f"model of {name}", lambda name=name: _model(target, name)  # type: ignore[misc]
    for name in settings.channels:
        yield f"channel {name}", lambda name=name: _channel(settings, name)  # type: ignore[misc]
    if target.runner == "vertex":
        yield "image", lambda: _image(target)
        yield "pipelines", lambda: _pipelines(settings)


def _channel(settings: Settings, name: str) -> str:
    rules = [rule for rule, alert in settings.alerts.items() if name in alert.channels]
    if not rules:
        raise SettingsError(f"no rule names it: add it to the channels of one, as [alerts.NAME] channels = [{name!r}]")
    if settings.target(None).runner == "vertex" and "${" in settings.channels[name].url:
        raise SettingsError(
            "the containers of a pipeline have none of this machine's variables: keep its address in Secret Manager,"
            f" and write channels.{name}.url as secret://projects/P/secrets/S/versions/V"
        )
    return f"{Channel(settings, name).service}, by {', '.join(rules)}; `segwatch notify --test {name}` tries it"


def _compiled() -> str:
    return notice() or f"built, for {instruction_sets()[-1]}"


def _credentials(target: Target) -> str:
    if _is_emulated(target):
        return "none are sent to emulators"
    return f"accepted for {account(target.google)}"


def _apis(settings: Settings, target: Target) -> str:
    if _is_emulated(target) and not target.google.endpoints.service_usage:
        return "emulators have none"
    needed = ["storage.googleapis.com"] if target.bucket else []
    if target.warehouse.startswith("bigquery:"):
        needed += ["bigquery.googleapis.com", "bigquerystorage.googleapis.com"]
    if target.registry == "vertex" or target.runner == "vertex":
        needed += ["aiplatform.googleapis.com"]
    if any(channel.url.startswith("secret://") for channel in settings.channels.values()):
        needed += ["secretmanager.googleapis.com"]
    missing = disabled_apis(target.google, needed)
    if missing:
        project = target.google.project
        raise DataError(f"not enabled: run `gcloud services enable {' '.join(missing)} --project={project}`")
    return ", ".join(name.removesuffix(".googleapis.com") for name in needed)


def _is_emulated(target: Target) -> bool:
    endpoints = target.google.endpoints
    return any(map(is_emulator, (endpoints.bigquery, endpoints.vertex, endpoints.storage)))


def _tables(warehouse: Warehouse) -> str:
    made = warehouse.created_tables()
    return f"reached; segwatch made {', '.join(made)}" if made else "reached; segwatch made no table yet"


def _metric_table(warehouse: Warehouse, metric: Metric) -> str:
    held = warehouse.table_schema(metric.table)
    if held is None:
        raise DataError(f"there is no table {metric.table!r}: run `segwatch create`, or name yours in the settings")
    missing = [name for name in metric.columns if name not in held.names]
    if missing:
        raise DataError(f"table {metric.table!r} has no column {missing[0]!r}: it has {', '.join(held.names)}")
    span = warehouse.span(metric)
    if span is None:
        raise DataError(f"table {metric.table!r} has no rows: insert some with `segwatch data insert`")
    return f"{metric.table}, {span[0]} to {span[1]} (exclusive)"


def _calendar(warehouse: Warehouse, metric: Metric) -> str:
    days = warehouse.calendar(metric)
    if days is None or not days.num_rows:
        return f"{metric.calendar}, no rows yet"
    ends = pc.min(days["first_day"]).as_py(), pc.max(days["last_day"]).as_py()
    rows = f"{days.num_rows:,} row{'s' * (days.num_rows != 1)}"
    return f"{metric.calendar}, {rows}, {ends[0].date()} to {ends[1].date()}"


def _predictions(warehouse: Warehouse, table: str) -> str:
    if table not in warehouse.created_tables():
        raise DataError(f"segwatch has not made the table {table!r}: run `segwatch create`")
    return table


def _bucket(target: Target) -> str:
    Storage(target.google).require(target.bucket)
    return target.bucket


def _model(target: Target, metric: str) -> str:
    registry = open_registry(target.registry, target.bucket, target.google, target.image)
    champion = registry.resolve(model_name(metric))
    counts = [int(champion.metrics.get(name, 0)) for name in ("segments", "rollups")]
    return f"{champion.name} version {champion.version} is the champion, of {counted(*counts)}"


def _image(target: Target) -> str:
    if not has_image(target.image, target.google):
        raise DataError(f"there is no image {target.image}: run `make image`")
    return target.image


def _pipelines(settings: Settings) -> str:
    from segwatch.pipelines.vertex import VertexPipelines

    pipelines = VertexPipelines(settings)
    found = [one for metric in settings.metrics for one in pipelines.schedules(metric)]
    if not found:
        return f"reached at {dt.datetime.now(dt.UTC):%H:%M} UTC; nothing is scheduled: `segwatch schedule set` does"
    return "; ".join(f"{one.pipeline} of {one.metric} at {one.cron} ({one.state.lower()})" for one in found)
