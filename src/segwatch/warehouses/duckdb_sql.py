"""SQL that the DuckDB warehouse sends, built as syntax trees: no name or value is ever pasted into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlglot
from sqlglot import exp

from segwatch.core.schema import Column

TYPES = {
    "STRING": "VARCHAR",
    "INTEGER": "BIGINT",
    "FLOAT": "DOUBLE",
    "BOOLEAN": "BOOLEAN",
    "DATE": "DATE",
    # Without a zone, and UTC: a day's ts then equals its DATE whatever a session's TimeZone.
    "TIMESTAMP": "TIMESTAMP",
}
MAIN = "main"


class Name(NamedTuple):
    """Where a table or view is; the schema of what is named by `table` alone is main."""

    schema: str
    table: str

    def __str__(self) -> str:
        return self.table if self.schema == MAIN else f"{self.schema}.{self.table}"


class Query(NamedTuple):
    """A statement and the values of its parameters, in order."""

    text: str
    values: list[Any]


def table(name: Name) -> exp.Table:
    return exp.table_(name.table, db=name.schema, quoted=True)


def create(name: Name, columns: Iterable[Column]) -> str:
    body = exp.Schema(this=table(name), expressions=[_definition(column) for column in columns])
    return _render(exp.Create(this=body, kind="TABLE"))


def create_from(name: Name, source: Name) -> str:
    """Makes a table of what a registered view holds."""
    return _render(exp.Create(this=table(name), kind="TABLE", expression=_select(["*"], source)))


def create_stage(name: Name, source: Name) -> str:
    """Makes a temporary table of what a registered view holds."""
    return _render(
        exp.Create(
            this=table(name),
            kind="TABLE",
            expression=_select(["*"], source),
            properties=exp.Properties(expressions=[exp.TemporaryProperty()]),
        )
    )


def create_schema(name: str) -> str:
    return _fill("CREATE SCHEMA filled", exp.table_("", db=name, quoted=True))


def add_column(name: Name, column: Column) -> str:
    return _render(exp.Alter(this=table(name), kind="TABLE", actions=[_definition(column)]))


def comment(name: Name, text: str) -> str:
    return _render(exp.Comment(this=table(name), kind="TABLE", expression=exp.Literal.string(text)))


def describe(name: Name, column: Column) -> str:
    target = exp.column(column.name, table=name.table, db=name.schema, quoted=True)
    return _render(exp.Comment(this=target, kind="COLUMN", expression=exp.Literal.string(column.description)))


def drop(name: Name) -> str:
    return _fill("DROP TABLE filled", table(name))


def drop_schema(name: str) -> str:
    return _fill("DROP SCHEMA filled", exp.table_("", db=name, quoted=True))


def delete_all(name: Name) -> str:
    return _render(exp.delete(table(name)))


def delete_matching(name: Name, stage: Name, keys: Sequence[str]) -> str:
    """Deletes the rows whose keys are those of a staged row, where NULL equals NULL."""
    same = exp.and_(*(exp.NullSafeEQ(this=_column(key, "old"), expression=_column(key, "new")) for key in keys))
    staged = exp.select("1").from_(exp.alias_(table(stage), "new", table=True, quoted=True)).where(same)
    old = exp.alias_(table(name), "old", table=True, quoted=True)
    return _render(exp.delete(old).where(exp.Exists(this=staged)))


def insert_from(name: Name, source: Name, columns: Sequence[str]) -> str:
    """Inserts all rows of the source, matched by the names of the columns."""
    targets = [exp.to_identifier(column, quoted=True) for column in columns]
    return _render(exp.insert(_select(columns, source), table(name), columns=targets))


def select(name: Name, columns: Sequence[str], order: Sequence[str] = ()) -> str:
    return _render(_select(columns, name).order_by(*(_column(column) for column in order)))


def select_no_rows(name: Name, columns: Sequence[str] = ("*",)) -> str:
    """Gives the columns' types."""
    return _render(_select(columns, name).limit(0))


def delete_predictions(name: Name, metric: str, start: Any, end: Any, selection: Mapping[str, Iterable[str]]) -> Query:
    where, values = _prediction_filter(metric, start, end)
    for dimension, wanted in selection.items():
        texts = sorted(wanted)
        where.append(_column(dimension).isin(*(exp.Placeholder() for _ in texts)))
        values.extend(texts)
    return Query(_render(exp.delete(table(name)).where(exp.and_(*where))), values)


def select_predictions(name: Name, metric: str, start: Any, end: Any, order: Sequence[str]) -> Query:
    where, values = _prediction_filter(metric, start, end)
    query = _select(["*"], name).where(exp.and_(*where)).order_by(*(_column(column) for column in order))
    return Query(_render(query), values)


def select_prediction_span(name: Name, metric: str) -> Query:
    ends = [exp.Min(this=_column("ts")), exp.Max(this=_column("ts"))]
    where = _column("metric").eq(exp.Placeholder())
    return Query(_render(exp.select(*ends).from_(table(name)).where(where)), [metric])


def _prediction_filter(metric: str, start: Any, end: Any) -> tuple[list[exp.Expression], list[Any]]:
    time, value = _column("ts"), exp.Placeholder()
    where = [_column("metric").eq(value), time >= value.copy(), time.copy() < value.copy()]
    return where, [metric, start, end]


def _definition(column: Column) -> exp.ColumnDef:
    refuse_null = [exp.ColumnConstraint(kind=exp.NotNullColumnConstraint())] if column.required else []
    return exp.ColumnDef(
        this=exp.to_identifier(column.name, quoted=True),
        kind=exp.DataType.build(TYPES[column.type], dialect="duckdb"),
        constraints=refuse_null,
    )


def _select(columns: Sequence[str], name: Name) -> exp.Select:
    wanted = [exp.Star() if column == "*" else _column(column) for column in columns]
    return exp.select(*wanted).from_(table(name))


def _column(name: str, of: str | None = None) -> exp.Column:
    return exp.column(name, table=of, quoted=True)


def _fill(template: str, target: exp.Table) -> str:
    """The template with its table replaced: the node that holds it differs between sqlglot's versions."""
    tree = sqlglot.parse_one(template, dialect="duckdb")
    found = tree.find(exp.Table)
    assert found is not None
    found.replace(target)
    return _render(tree)


def _render(tree: exp.Expression) -> str:
    return str(tree.sql(dialect="duckdb"))
