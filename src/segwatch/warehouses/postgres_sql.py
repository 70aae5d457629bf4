"""SQL that only the PostgreSQL warehouse sends, and the types that its catalog names."""

from __future__ import annotations

import re

import pyarrow as pa
from sqlglot import exp

from segwatch.core.schema import Column
from segwatch.errors import DataError
from segwatch.warehouses.sql import Dialect, Name, table

HOME = "SELECT COALESCE(current_schema(), 'public')"
HAS_SCHEMA = "SELECT 1 FROM pg_namespace WHERE nspname = $1"
READ = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
WRITE = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
# Limits that the role, the database or the URL sets stand.
SESSION = """
    SELECT set_config('client_encoding', 'UTF8', false), set_config('TimeZone', 'UTC', false),
      set_config('DateStyle', 'ISO, YMD', false), set_config('standard_conforming_strings', 'on', false),
      set_config('lock_timeout', COALESCE(NULLIF(current_setting('lock_timeout'), '0'), '30s'), false),
      set_config('statement_timeout', COALESCE(NULLIF(current_setting('statement_timeout'), '0'), '1h'), false)
"""
RELATIONS = """
    SELECT n.nspname::text, c.relname::text, CASE WHEN c.relkind IN ('r', 'p') THEN d.description END,
      n.nspname = COALESCE(current_schema(), 'public')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
      AND n.nspname !~ '^pg_(toast|temp)'
    ORDER BY n.nspname::text COLLATE "C", c.relname::text COLLATE "C"
"""
# A domain is what it is made of.
COLUMNS = """
    WITH RECURSIVE held AS (
      SELECT a.attnum, a.attname, a.attnotnull, a.atttypid AS type
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped
      UNION ALL
      SELECT h.attnum, h.attname, h.attnotnull, t.typbasetype
      FROM held h JOIN pg_type t ON t.oid = h.type WHERE t.typtype = 'd'
    )
    SELECT h.attname::text, t.typname::text, t.typtype::text || t.typcategory::text, h.attnotnull
    FROM held h JOIN pg_type t ON t.oid = h.type WHERE t.typtype <> 'd' ORDER BY h.attnum
"""

_LONGEST_NAME = 63
_TYPES = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    # Which precision does not matter: sums are made by the server.
    "numeric": pa.decimal128(38, 9),
    "text": pa.string(),
    "varchar": pa.string(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
}
_TEXT_LIKE = ("uuid", "inet", "cidr", "macaddr")


class PostgresDialect(Dialect):
    """SQL as PostgreSQL writes it."""

    def lock(self, name: Name) -> str:
        """Keeps other sessions from changing the table; they can read it."""
        return f"LOCK TABLE {self._render(table(name))} IN SHARE ROW EXCLUSIVE MODE"

    def _same(self, old: exp.Expression, new: exp.Expression) -> exp.Expression:
        # Arrays of one element: in them NULL equals NULL, and unlike IS NOT DISTINCT FROM they can be hashed.
        # Without a hash every row would be compared with every other.
        return exp.EQ(this=exp.Array(expressions=[old]), expression=exp.Array(expressions=[new]))

    def _definition(self, column: Column) -> exp.ColumnDef:
        check_length(column.name)
        return super()._definition(column)


POSTGRES = PostgresDialect(
    "postgres",
    {
        "STRING": "TEXT",
        "INTEGER": "BIGINT",
        "FLOAT": "DOUBLE PRECISION",
        "BOOLEAN": "BOOLEAN",
        "DATE": "DATE",
        # Without a zone, and UTC: a day's ts then equals its DATE whatever a session's TimeZone.
        "TIMESTAMP": "TIMESTAMP",
    },
)


def check_length(name: str) -> None:
    """Raises DataError if PostgreSQL would cut the name."""
    if len(name.encode()) > _LONGEST_NAME:
        raise DataError(f"the name {name!r} is too long: PostgreSQL keeps {_LONGEST_NAME} bytes of it; choose another")


def arrow_type(name: str, kind: str) -> pa.DataType:
    """The Arrow type of a type in PostgreSQL's catalog.

    name: typname; kind: typtype and typcategory. What segwatch cannot read is opaque: of text where its values are
    words that can be compared (enums, uuids), of bytes otherwise.
    """
    if kind[1] == "A":
        return pa.list_(pa.string())
    is_text = kind[0] == "e" or kind[1] == "S" or name in _TEXT_LIKE
    return _TYPES.get(name) or pa.opaque(pa.string() if is_text else pa.binary(), name, "PostgreSQL")


def is_text_like(type_: pa.DataType) -> bool:
    """Whether a type is no text, but is to be read as text."""
    return isinstance(type_, pa.OpaqueType) and type_.storage_type == pa.string()


def in_byte_order(tree: exp.Expression) -> exp.Expression:
    """The statement with the dimensions' texts compared as bytes: faster, and the same whatever the collation."""
    for alias in tree.find_all(exp.Alias):
        if isinstance(alias.this, exp.Coalesce) and re.fullmatch(r"d\d+", alias.alias):
            alias.set("this", exp.Collate(this=alias.this, expression=exp.to_identifier("C", quoted=True)))
    return tree
