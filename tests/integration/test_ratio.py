"""The table of a ratio, from its settings and a file to what a training would read."""

import datetime as dt
import math

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from .conftest import END, OWN_RATIO, ask, change, edit_settings, error

SETTINGS = OWN_RATIO.replace("DIMENSIONS", '["country"]')
DAYS = [dt.date.fromisoformat(END) - dt.timedelta(days=i + 1) for i in range(100)]


def write(folder, orders, visits, country="it", suffix="csv"):
    """rows.csv of a country on the last days before END."""
    n = len(orders)
    table = pa.table({"day": DAYS[:n], "country": [country] * n, "orders": orders, "visits": visits})
    kind = pyarrow.csv.write_csv if suffix == "csv" else pyarrow.parquet.write_table
    kind(table, folder / f"rows.{suffix}")


@pytest.fixture
def shop(tmp_path, segwatch):
    (tmp_path / "segwatch.toml").write_text(SETTINGS)
    segwatch(tmp_path, "create")
    return tmp_path


def test_create_makes_the_table_with_its_denominator_and_data_insert_fills_it(shop, segwatch):
    columns = ask(shop, "select column_name, data_type from duckdb_columns() where table_name = 'shop'")
    assert columns == [("day", "DATE"), ("country", "VARCHAR"), ("orders", "DOUBLE"), ("visits", "DOUBLE")]
    write(shop, [3, 0], [40, 0])
    segwatch(shop, "data", "insert", "--from", "rows.csv")
    segwatch(shop, "data", "insert", "--from", "rows.csv")
    assert ask(shop, "select orders, visits from shop order by day desc") == [(3.0, 40.0), (0.0, 0.0)]
    assert "use --from FILE" in error(segwatch(shop, "data", "insert", code=2))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("visits", "said"),
    [
        (math.nan, "NaN"),
        (math.inf, "a number past 1e+100"),
        (-1.0, "a negative number"),
        (None, "NULL"),
    ],
)
@pytest.mark.parametrize("missing", ["zero", "gap"])
def test_denominators_that_cannot_be_watched_are_refused_at_insert(shop, segwatch, visits, said, suffix, missing):
    edit_settings(shop, 'value = "orders"', f'value = "orders"\nmissing = "{missing}"')
    write(shop, [3.0, 4.0], [40.0, visits], suffix=suffix)
    told = error(segwatch(shop, "data", "insert", "--from", f"rows.{suffix}", code=3))
    assert f"{said} in column 'visits' (row 2)" in told and "missing" not in told
    assert ask(shop, "from shop") == []


def test_a_file_without_the_denominator_is_refused(shop, segwatch):
    (shop / "rows.csv").write_text("day,country,orders\n2026-11-01,it,3\n")
    assert "no column 'visits'" in error(segwatch(shop, "data", "insert", "--from", "rows.csv", code=3))


def test_only_periods_with_a_denominator_above_zero_are_counted_as_history(shop, segwatch):
    write(shop, [3.0] * 100, [40.0] * 100)
    segwatch(shop, "data", "insert", "--from", "rows.csv")
    write(shop, [3.0] * 100, [40.0] * 89 + [0.0] * 11, country="fr")
    segwatch(shop, "data", "insert", "--from", "rows.csv")
    said = segwatch(shop, "train", "--dry-run", "--as-of", END).stderr
    assert "200 observations" in said and "1 of 2 segments have the 90 periods" in said
    change(shop, "update shop set visits = 0")
    assert "every denominator in the Window" in error(segwatch(shop, "train", "--dry-run", "--as-of", END, code=3))


def test_doctor_names_a_table_without_the_denominator(shop, segwatch):
    write(shop, [3.0], [40.0])
    segwatch(shop, "data", "insert", "--from", "rows.csv")
    assert "ok    table of conversion: shop" in segwatch(shop, "doctor", code=4).stdout
    change(shop, "alter table shop drop column visits")
    said = segwatch(shop, "doctor", code=4).stdout
    assert "FAIL  table of conversion: table 'shop' has no column 'visits'" in said
