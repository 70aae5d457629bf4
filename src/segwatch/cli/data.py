"""Commands of the metric's table."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segwatch.cli.session import MetricOption, Yes, ask, metric_of, opened_warehouse
from segwatch.errors import UsageError

if TYPE_CHECKING:
    from segwatch.settings import Metric
    from segwatch.warehouses.base import Warehouse


data_app = typer.Typer(no_args_is_help=True, help="Insert rows of the metric into its table, or remove them.")


def is_generated(metric: Metric) -> bool:
    from segwatch.data import generated_schema

    return generated_schema().names == metric.columns


def labels_table(metric: Metric) -> str:
    return f"{metric.table}_labels"


@data_app.command("insert")
def data_insert(
    context: typer.Context,
    metric: MetricOption = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A .csv or .parquet file of your own rows.", readable=False)
    ] = None,
    segments: Annotated[int, typer.Option(help="Segments to generate.")] = 27,
    days: Annotated[int, typer.Option(help="Days to generate.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the generator.")] = 7,
    end: Annotated[str | None, typer.Option(help="Day after the last one; default: today (UTC).")] = None,
) -> None:
    """Insert generated rows, or those of a file, in place of rows of the same time and segment."""
    settings = context.obj.settings()
    _, chosen = metric_of(settings, metric)
    keys = [chosen.time, *chosen.dimensions]
    with opened_warehouse(context.obj, settings) as warehouse:
        if source is not None:
            from segwatch.data.files import read_rows

            rows = read_rows(source, chosen)
            n_rows = warehouse.insert(chosen.table, rows.to_batches(), keys)
        else:
            n_rows = _insert_generated(warehouse, chosen, segments, days, seed, end)
    context.obj.say("data insert", table=chosen.table, rows=n_rows)


def _insert_generated(
    warehouse: Warehouse, metric: Metric, segments: int, days: int, seed: int, end: str | None
) -> int:
    import numpy as np

    from segwatch.core.window import parse_time
    from segwatch.data.generate import GeneratorSettings, generate

    if not is_generated(metric):
        raise UsageError(f"the generator writes the columns of new_users, not those of {metric.table}: use --from FILE")
    last = np.datetime64(dt.datetime.now(dt.UTC).date()) if end is None else parse_time(end, "day", "--end")
    labels = []

    def observations() -> Iterator[Any]:
        for batch in generate(GeneratorSettings(segments=segments, days=days, seed=seed, end=last)):
            labels.append(batch.labels)
            yield batch.observations

    n_rows = warehouse.insert(metric.table, observations(), [metric.time, *metric.dimensions])
    warehouse.truncate(labels_table(metric))
    warehouse.insert(labels_table(metric), labels, ["created_at", *metric.dimensions, "event_id"])
    return n_rows


@data_app.command("truncate")
def data_truncate(context: typer.Context, metric: MetricOption = None, yes: Yes = False) -> None:
    """Remove every row of the metric's table, if segwatch made it."""
    settings = context.obj.settings()
    _, chosen = metric_of(settings, metric)
    with opened_warehouse(context.obj, settings) as warehouse:
        ask(f"Remove every row of {chosen.table}?", yes)
        n_rows = warehouse.truncate(chosen.table)
        if is_generated(chosen):
            warehouse.truncate(labels_table(chosen))
    context.obj.say("data truncate", table=chosen.table, rows_removed=n_rows)
