"""SQL for relational databases, built as syntax trees: no name or value is ever pasted into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlglot
from sqlglot import exp

from segwatch.core.schema import Column


class Name(NamedTuple):
    """Where a table or view is. is_short: whether its schema goes without saying."""

    schema: str
    table: str
    is_short: bool = False

    @property
    def full(self) -> str:
        return f"{self.schema}.{self.table}"

    def __str__(self) -> str:
        return self.table if self.is_short else self.full


class Query(NamedTuple):
    """A statement and the values of its parameters, which it has as $1, $2, ..."""

    text: str
    values: Sequence[Any] = ()


@dataclass(frozen=True)
class Dialect:
    """SQL as one kind of database writes it.

    name: what sqlglot calls it. types: the database's type for each that a schema file can hold.
    """

    name: str
    types: Mapping[str, str]

    def create(self, name: Name, columns: Iterable[Column]) -> str:
        body = exp.Schema(this=table(name), expressions=[self._definition(column) for column in columns])
        return self._render(exp.Create(this=body, kind="TABLE"))

    def create_from(self, name: Name, source: Name) -> str:
        """Makes a table of what another holds."""
        return self._render(exp.Create(this=table(name), kind="TABLE", expression=_select(["*"], source)))

    def create_stage(self, name: Name, source: Name) -> str:
        """Makes a temporary table of what another holds."""
        return self._render(
            exp.Create(
                this=table(name),
                kind="TABLE",
                expression=_select(["*"], source),
                properties=exp.Properties(expressions=[exp.TemporaryProperty()]),
            )
        )

    def create_schema(self, name: str) -> str:
        return self._fill("CREATE SCHEMA filled", exp.table_("", db=name, quoted=True))

    def add_column(self, name: Name, column: Column) -> str:
        return self._render(exp.Alter(this=table(name), kind="TABLE", actions=[self._definition(column)]))

    def comment(self, name: Name, text: str) -> str:
        return self._render(exp.Comment(this=table(name), kind="TABLE", expression=exp.Literal.string(text)))

    def describe(self, name: Name, column: Column) -> str:
        target = exp.column(column.name, table=name.table, db=name.schema, quoted=True)
        return self._render(exp.Comment(this=target, kind="COLUMN", expression=exp.Literal.string(column.description)))

    def drop(self, name: Name) -> str:
        return self._fill("DROP TABLE filled", table(name))

    def drop_schema(self, name: str) -> str:
        return self._fill("DROP SCHEMA filled", exp.table_("", db=name, quoted=True))

    def delete_all(self, name: Name) -> str:
        return self._render(exp.delete(table(name)))

    def delete_matching(self, name: Name, stage: Name, keys: Sequence[str]) -> str:
        """Deletes the rows whose keys are those of a staged row, where NULL equals NULL."""
        same = exp.and_(*(self._same(_column(key, "old"), _column(key, "new")) for key in keys))
        staged = exp.select("1").from_(exp.alias_(table(stage), "new", table=True, quoted=True)).where(same)
        old = exp.alias_(table(name), "old", table=True, quoted=True)
        return self._render(exp.delete(old).where(exp.Exists(this=staged)))

    def insert_from(self, name: Name, source: Name, columns: Sequence[str]) -> str:
        """Inserts all rows of the source, matched by the names of the columns."""
        targets = [exp.to_identifier(column, quoted=True) for column in columns]
        return self._render(exp.insert(_select(columns, source), table(name), columns=targets))

    def select(self, name: Name, columns: Sequence[str], order: Sequence[str] = ()) -> str:
        return self._render(_select(columns, name).order_by(*(_column(column) for column in order)))

    def select_no_rows(self, name: Name, columns: Sequence[str] = ("*",)) -> str:
        """Gives the columns' types."""
        return self._render(_select(columns, name).limit(0))

    def delete_predictions(
        self, name: Name, metric: str, start: Any, end: Any, selection: Mapping[str, Iterable[str]]
    ) -> Query:
        where, values = _prediction_filter(metric, start, end)
        for dimension, wanted in selection.items():
            texts = sorted(wanted)
            where.append(_column(dimension).isin(*(numbered(len(values) + n) for n in range(1, len(texts) + 1))))
            values.extend(texts)
        return Query(self._render(exp.delete(table(name)).where(exp.and_(*where))), values)

    def select_predictions(self, name: Name, metric: str, start: Any, end: Any, order: Sequence[str]) -> Query:
        where, values = _prediction_filter(metric, start, end)
        query = _select(["*"], name).where(exp.and_(*where)).order_by(*(_column(column) for column in order))
        return Query(self._render(query), values)

    def select_prediction_span(self, name: Name, metric: str) -> Query:
        ends = [exp.Min(this=_column("ts")), exp.Max(this=_column("ts"))]
        where = _column("metric").eq(numbered(1))
        return Query(self._render(exp.select(*ends).from_(table(name)).where(where)), [metric])

    def _same(self, old: exp.Expression, new: exp.Expression) -> exp.Expression:
        """Whether two values of a key are the same, where NULL equals NULL."""
        return exp.NullSafeEQ(this=old, expression=new)

    def _definition(self, column: Column) -> exp.ColumnDef:
        refuse_null = [exp.ColumnConstraint(kind=exp.NotNullColumnConstraint())] if column.required else []
        return exp.ColumnDef(
            this=exp.to_identifier(column.name, quoted=True),
            kind=exp.DataType.build(self.types[column.type], dialect=self.name),
            constraints=refuse_null,
        )

    def _fill(self, template: str, target: exp.Table) -> str:
        """The template with its table replaced: the node that holds it differs between sqlglot's versions."""
        tree = sqlglot.parse_one(template, dialect=self.name)
        found = tree.find(exp.Table)
        assert found is not None
        found.replace(target)
        return self._render(tree)

    def _render(self, tree: exp.Expression) -> str:
        return str(tree.sql(dialect=self.name))


def table(name: Name) -> exp.Table:
    return exp.table_(name.table, db=name.schema, quoted=True)


def _prediction_filter(metric: str, start: Any, end: Any) -> tuple[list[exp.Expression], list[Any]]:
    where = [
        _column("metric").eq(numbered(1)),
        _column("ts") >= numbered(2),
        _column("ts") < numbered(3),
    ]
    return where, [metric, start, end]


def _select(columns: Sequence[str], name: Name) -> exp.Select:
    wanted = [exp.Star() if column == "*" else _column(column) for column in columns]
    return exp.select(*wanted).from_(table(name))


def _column(name: str, of: str | None = None) -> exp.Column:
    return exp.column(name, table=of, quoted=True)


def numbered(number: int) -> exp.Parameter:
    """The parameter that holds the value of that number, from 1."""
    return exp.Parameter(this=exp.Literal.number(number))
