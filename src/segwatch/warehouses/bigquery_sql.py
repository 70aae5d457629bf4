"""SQL that the BigQuery warehouse sends, built as syntax trees: values travel as parameters, names as identifiers.

Every statement that reads or changes a partitioned table compares its bare partition column, so that BigQuery
reads no other partitions and a table that requires such a filter is satisfied.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlglot import exp

from segwatch.core.schema import Column

FIRST_TIME = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
"""Nothing in BigQuery is earlier: a filter from here on is one that holds for every row with a time."""


_SQL_TYPES = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL"}


class Name(NamedTuple):
    """Where a table or view is."""

    project: str
    dataset: str
    table: str


class Value(NamedTuple):
    """A parameter's value; type: a type of BigQuery's. A tuple is an array of that type."""

    type: str
    value: Any


class Query(NamedTuple):
    """A statement, or several, and the values of their parameters by name."""

    text: str
    values: Mapping[str, Value]


class Key(NamedTuple):
    """A column in which rows are compared; NULL can only equal NULL where it is nullable."""

    column: str
    nullable: bool


def table(name: Name) -> exp.Table:
    return exp.table_(name.table, db=name.dataset, catalog=name.project, quoted=True)


def create_from(name: Name, query: Query, expires_at: dt.datetime, labels: Mapping[str, str]) -> Query:
    """Makes a table of the query's rows, that BigQuery drops by itself when it expires."""
    pairs = [exp.Tuple(expressions=[exp.Literal.string(key), exp.Literal.string(labels[key])]) for key in labels]
    options = {
        "expiration_timestamp": exp.func("TIMESTAMP_SECONDS", exp.Literal.number(int(expires_at.timestamp()))),
        "labels": exp.array(*pairs),
    }
    head = exp.Create(
        this=table(name),
        kind="TABLE",
        properties=exp.Properties(
            expressions=[exp.Property(this=exp.var(option), value=value) for option, value in options.items()]
        ),
    )
    return Query(f"{_render(head)} AS {query.text}", query.values)


def add_columns(name: Name, columns: Sequence[Column]) -> Query:
    """Nullable columns at the table's end; one that anyone else added in between is left."""
    actions = [
        exp.ColumnDef(
            this=exp.to_identifier(column.name, quoted=True),
            kind=exp.DataType.build(_SQL_TYPES.get(column.type, column.type), dialect="bigquery"),
            constraints=[_description(column.description)] if column.description else [],
            exists=True,
        )
        for column in columns
    ]
    return Query(_render(exp.Alter(this=table(name), kind="TABLE", actions=actions)), {})


def truncate(name: Name) -> Query:
    return Query(_render(exp.TruncateTable(expressions=[table(name)])), {})


def count(name: Name, time: str | None, type_: str) -> Query:
    """The number of rows; time: the partition column, if there is one."""
    query = exp.select(exp.alias_(exp.Count(this=exp.Star()), "n")).from_(table(name))
    if time is None:
        return Query(_render(query), {})
    column = _column(time)
    query = query.where(exp.or_(column >= _value("since"), column.copy().is_(exp.null())))
    return Query(_render(query), {"since": Value(type_, FIRST_TIME.date() if type_ == "DATE" else FIRST_TIME)})


def replace_matching(
    name: Name, stage: Name, keys: Sequence[Key], columns: Sequence[str], bounds: tuple[str, Value, Value] | None
) -> Query:
    """In one transaction: rows whose keys are those of a staged row go, and all staged rows come.

    bounds: a column and the first and last value of it that is staged, so that other partitions are not read.
    """
    same = [condition for key in keys for condition in _same(key)]
    staged = exp.select("1").from_(exp.alias_(table(stage), "staged", table=True, quoted=True)).where(exp.and_(*same))
    where: list[exp.Expression] = [exp.Exists(this=staged)]
    values = {}
    if bounds is not None:
        column, values["first"], values["last"] = bounds
        time = _column(column, "held")
        where = [time >= _value("first"), time.copy() <= _value("last"), *where]
    held = exp.alias_(table(name), "held", table=True, quoted=True)
    removal = exp.delete(held).where(exp.and_(*where))
    return _transaction([removal, _insert(name, stage, columns)], values)


def replace_predictions(
    name: Name,
    stage: Name | None,
    columns: Sequence[str],
    metric: str,
    start: dt.datetime,
    end: dt.datetime,
    selection: Mapping[str, frozenset[str]],
) -> Query:
    """In one transaction: predictions of (metric, Window, selection) go, and all staged rows come, if any."""
    where, values = _of_window(metric, start, end)
    for i, (dimension, wanted) in enumerate(selection.items()):
        where.append(_column(dimension).isin(unnest=_value(f"wanted{i}")))
        values[f"wanted{i}"] = Value("STRING", tuple(sorted(wanted)))
    removal = exp.delete(table(name)).where(exp.and_(*where))
    return _transaction([removal, *([_insert(name, stage, columns)] if stage else [])], values)


def select_predictions(name: Name, metric: str, start: dt.datetime, end: dt.datetime) -> Query:
    where, values = _of_window(metric, start, end)
    return Query(_render(exp.select("*").from_(table(name)).where(exp.and_(*where))), values)


def select_prediction_span(name: Name, metric: str) -> Query:
    ts = _column("ts")
    ends = [exp.alias_(exp.Min(this=ts), "first"), exp.alias_(exp.Max(this=ts.copy()), "last")]
    where = [_column("metric").eq(_value("metric")), ts.copy() >= _value("since")]
    values = {"metric": Value("STRING", metric), "since": Value("TIMESTAMP", FIRST_TIME)}
    return Query(_render(exp.select(*ends).from_(table(name)).where(exp.and_(*where))), values)


def _of_window(metric: str, start: dt.datetime, end: dt.datetime) -> tuple[list[exp.Expression], dict[str, Value]]:
    """start, end: naive, and UTC."""
    ts = _column("ts")
    where = [_column("metric").eq(_value("metric")), ts >= _value("start"), ts.copy() < _value("end")]
    values = {
        "metric": Value("STRING", metric),
        "start": Value("TIMESTAMP", start.replace(tzinfo=dt.UTC)),
        "end": Value("TIMESTAMP", end.replace(tzinfo=dt.UTC)),
    }
    return where, values


def _transaction(statements: Sequence[exp.Expression], values: Mapping[str, Value]) -> Query:
    """All statements or none: BigQuery rolls back a transaction whose script fails."""
    texts = ["BEGIN TRANSACTION", *(_render(statement) for statement in statements), "COMMIT TRANSACTION"]
    return Query(";\n".join(texts) + ";", values)


def _insert(name: Name, stage: Name, columns: Sequence[str]) -> exp.Insert:
    wanted = exp.select(*(_column(column) for column in columns)).from_(table(stage))
    targets = [exp.to_identifier(column, quoted=True) for column in columns]
    return exp.insert(wanted, table(name), columns=targets)


def _same(key: Key) -> list[exp.Expression]:
    """Equalities only, since BigQuery cannot join a correlated EXISTS on IS NOT DISTINCT FROM."""
    held, staged = _column(key.column, "held"), _column(key.column, "staged")
    if not key.nullable:
        return [held.eq(staged)]
    texts = [
        exp.func("COALESCE", exp.cast(c, "STRING", dialect="bigquery"), exp.Literal.string("")) for c in (held, staged)
    ]
    nulls = [exp.Paren(this=c.copy().is_(exp.null())) for c in (held, staged)]
    return [texts[0].eq(texts[1]), nulls[0].eq(nulls[1])]


def _description(text: str) -> exp.ColumnConstraint:
    option = exp.Property(this=exp.var("description"), value=exp.Literal.string(text))
    return exp.ColumnConstraint(kind=exp.Properties(expressions=[option]))


def numbered(number: int) -> exp.Parameter:
    """The parameter that holds the value of that number."""
    return _value(f"asked{number}")


def _value(name: str) -> exp.Parameter:
    return exp.Parameter(this=exp.var(name))


def _column(name: str, of: str | None = None) -> exp.Column:
    return exp.column(name, table=of, quoted=True)


def _render(tree: exp.Expression) -> str:
    return str(tree.sql(dialect="bigquery"))
