"""The flagged rows, for the page's script to filter and sort."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from segwatch.core.segment import ALL
from segwatch.core.window import Grain
from segwatch.report import text
from segwatch.report.columns import floats_of, impact_of, largest_first, times_of

MAX_TABLE_ROWS = 20_000


@dataclass(frozen=True)
class _Column:
    """kind: how the script writes a value. filter: whether it offers a choice of them."""

    name: str
    kind: Literal["text", "direction", "number", "signed", "p"]
    filter: bool = False


def table_data(flagged: pa.Table, dimensions: Sequence[str], grain: Grain) -> str:
    """The flagged rows of the largest impact as JSON that no value can break out of."""
    kept = flagged.take(pa.array(largest_first(impact_of(flagged))[:MAX_TABLE_ROWS]))
    columns, values = zip(*_columns(kept, dimensions, grain), strict=True)
    document = {
        "columns": [asdict(column) for column in columns],
        "rows": list(zip(*values, strict=True)),
        "total": flagged.num_rows,
    }
    # JSON has no NaN: one would keep the whole page from being read.
    return json.dumps(document, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _columns(kept: pa.Table, dimensions: Sequence[str], grain: Grain) -> Iterator[tuple[_Column, list[Any]]]:
    """When, how much and where come first, since a telephone shows three columns."""
    yield _Column(grain, "text", filter=True), [text.stamp(time, grain) for time in times_of(kept)]
    yield _Column("impact", "signed"), _rounded(impact_of(kept).tolist())
    for name in dimensions:
        # As in labels: a roll-up has all values of a dimension.
        yield _Column(name, "text", filter=True), kept[name].fill_null(ALL).to_pylist()
    yield _Column("direction", "direction", filter=True), kept["direction"].to_pylist()
    for name in ("value", "expected", "lower", "upper"):
        yield _Column(name, "number"), _rounded(floats_of(kept, name).tolist())
    yield _Column("p", "p"), _rounded(floats_of(kept, "p_value").tolist(), digits=2)


def _rounded(numbers: list[float], digits: int = 6) -> list[float | None]:
    """To significant digits, not decimals: a metric may be a rate."""
    return [float(f"{number:.{digits}g}") if math.isfinite(number) else None for number in numbers]
