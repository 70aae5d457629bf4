"""What a page asks of the tables of predictions and incidents, written once: ibis expressions, and their parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc

from segwatch.core.window import Window

if TYPE_CHECKING:
    import ibis.expr.types as ir
    from sqlglot import exp

Cell = str | bool | None


@dataclass(frozen=True)
class Asked:
    """Rows of a table: those of a metric in a Window that are as asked.

    among: wanted values by column, None for NULL; any where a column is not named. without: a value that a column must
    not have. either: where there are any, at least one of them holds too, each read as `among` is. words: each of them
    is found, in either case, in one of the columns `searched`.
    """

    table: str
    metric: str
    window: Window
    among: Mapping[str, frozenset[Cell]] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    either: tuple[Mapping[str, frozenset[Cell]], ...] = ()
    words: tuple[str, ...] = ()
    searched: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that say which rows are asked for."""
        alternatives = (column for one in self.either for column in one)
        return ("metric", "ts", *self.among, *self.without, *alternatives, *(self.searched if self.words else ()))

    @property
    def texts(self) -> frozenset[str]:
        """The values, which reach a database as parameters."""
        wanted = [cell for one in (self.among, *self.either) for cells in one.values() for cell in cells]
        searched = (word.lower() for word in self.words)
        return frozenset([self.metric, *(c for c in wanted if isinstance(c, str)), *self.without.values(), *searched])


@dataclass(frozen=True)
class Order:
    """A column to sort by, what is missing last. how: upwards, downwards, or the largest size of either sign first."""

    column: str
    how: Literal["up", "down", "size"] = "up"


ABSENT = ": run `segwatch create`, which makes segwatch's tables"
"""What to do where a table is not there."""

Figure = Literal["n_rows", "n_anomalies", "weight", "value", "expected", "first", "last", "scored_at"]
"""What `prediction_sums` can say of rows."""

_ENDS = {"first": ("ts", "min"), "last": ("ts", "max"), "scored_at": ("scored_at", "max")}
_MADE_OF = {
    "n_rows": (),
    "n_anomalies": ("is_anomaly",),
    **dict.fromkeys(("weight", "value", "expected"), ("value", "expected", "denominator")),
    **{figure: (column,) for figure, (column, _) in _ENDS.items()},
}


def columns_of(figures: Sequence[Figure]) -> list[str]:
    """The columns that figures are made of."""
    return [column for figure in figures for column in _MADE_OF[figure]]


def words_of(text: str) -> tuple[str, ...]:
    """What a search text asks for: the parts of a name such as `it/ios`, or words apart."""
    return tuple(word for word in re.split(r"[\s/]+", text.replace("\0", " ")) if word and word != "*")


def rows(
    table: ir.Table, asked: Asked, columns: Sequence[str], order: Sequence[Order], limit: int | None, offset: int
) -> ir.Table:
    """The rows asked for, in order, from `offset` on and not more than `limit`; columns: all where empty."""
    import ibis

    found = table.filter(_is_asked(table, asked))
    keys = [found[one.column].abs() if one.how == "size" else found[one.column] for one in order]
    if keys:
        sorts = [
            ibis.asc(key, nulls_first=False) if one.how == "up" else ibis.desc(key, nulls_first=False)
            for key, one in zip(keys, order, strict=True)
        ]
        found = found.order_by(sorts)
    if limit is not None or offset:
        found = found.limit(limit, offset=offset)
    return found.select(*columns) if columns else found


def sums(table: ir.Table, asked: Asked, by: Sequence[str], figures: Sequence[Figure]) -> ir.Table:
    """One row for each combination of the columns `by` that the rows asked for have; see Warehouse.prediction_sums."""
    found = table.filter(_is_asked(table, asked))
    wanted = {figure: _figure(found, figure) for figure in figures}
    return found.group_by(list(by)).aggregate(**wanted) if by else found.aggregate(**wanted)


def _figure(rows: ir.Table, figure: Figure) -> ir.Value:
    if figure == "n_rows":
        return rows.count()
    if figure == "n_anomalies":
        return rows.count(where=rows["is_anomaly"])
    if figure in _ENDS:
        column, end = _ENDS[figure]
        return rows[column].min() if end == "min" else rows[column].max()
    is_whole = rows["value"].notnull() & rows["expected"].notnull()
    # Ratios add up by their numerators.
    weight = rows["denominator"].fill_null(1.0)
    return (weight if figure == "weight" else rows[figure] * weight).sum(where=is_whole)


def _is_asked(table: ir.Table, asked: Asked) -> ir.BooleanValue:
    from segwatch.warehouses.query import moment_like

    start, end = asked.window.as_datetimes()
    ts = table["ts"]
    is_asked = (table["metric"] == asked.metric) & (ts >= moment_like(ts, start)) & (ts < moment_like(ts, end))
    is_asked &= _is_all(table, asked.among)
    if asked.either:
        is_asked &= _any([_is_all(table, one) for one in asked.either])
    for column, unwanted in asked.without.items():
        is_asked &= table[column] != unwanted
    for word in asked.words:
        is_found = [table[column].lower().contains(word.lower()) for column in asked.searched]
        is_asked &= _any(is_found)
    return is_asked


def _is_all(table: ir.Table, among: Mapping[str, frozenset[Cell]]) -> ir.BooleanValue:
    """Whether every column has one of the values wanted of it; so it is where none is named."""
    import ibis

    conditions = [_is_among(table[column], wanted) for column, wanted in among.items()]
    return ibis.and_(*conditions) if conditions else ibis.literal(True)


def _is_among(column: ir.Value, wanted: frozenset[Cell]) -> ir.BooleanValue:
    known = sorted(cell for cell in wanted if cell is not None)
    # A list of one is not looked up in the statistics of a column, and an equality is.
    is_known = column == known[0] if len(known) == 1 else column.isin(known)
    if None not in wanted:
        return is_known
    return column.isnull() | is_known if known else column.isnull()


def _any(conditions: Sequence[ir.BooleanValue]) -> ir.BooleanValue:
    import ibis

    return ibis.or_(*conditions)


def parameterised(
    tree: exp.Expression, asked: Asked, parameter: Callable[[int], exp.Expression]
) -> tuple[exp.Expression, list[str]]:
    """The statement with parameters, numbered from 1, in place of the texts asked for, and their values."""
    from sqlglot import exp

    values: list[str] = []
    texts = asked.texts

    def replaced(node: exp.Expression) -> exp.Expression:
        if not (isinstance(node, exp.Literal) and node.is_string and node.this in texts):
            return node
        values.append(str(node.this))
        return parameter(len(values))

    return tree.transform(replaced), values


def in_order(table: pa.Table, order: Sequence[Order]) -> pa.Table:
    """The rows sorted as asked: a database's order does not outlive every way out of it."""
    if not order or table.num_rows < 2:
        return table
    keys = pa.table(
        {str(i): pc.abs(table[o.column]) if o.how == "size" else table[o.column] for i, o in enumerate(order)}
    )
    sorts = [(str(i), "ascending" if one.how == "up" else "descending") for i, one in enumerate(order)]
    return table.take(pc.sort_indices(keys, sort_keys=sorts))
