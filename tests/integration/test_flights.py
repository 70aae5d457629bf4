"""The real example: flights out of New York in 2013, trained to the end of October."""

import runpy
import shutil
from pathlib import Path

import duckdb
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights"
THANKSGIVING, DAY_AFTER = "2013-11-28", "2013-11-29"
# Neither Thanksgiving, Christmas, the snow of 14 December nor one carrier's bad week before it.
ORDINARY_SATURDAYS = ("2013-11-02", "2013-11-09", "2013-11-16", "2013-11-23")
BLIZZARD = ("2013-02-08", "2013-02-09")


@pytest.fixture(scope="module")
def departures(tmp_path_factory):
    """The example's folder with departures.csv in it."""
    folder = tmp_path_factory.mktemp("flights")
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path("load.py")
    return folder


def flagged(folder, segwatch, drop=()):
    """Flagged segments by day in November and December, trained without the dropped days."""
    segwatch(folder, "create")
    segwatch(folder, "data", "insert", "--from", "departures.csv")
    with duckdb.connect(folder / "flights.duckdb") as connection:
        connection.executemany("delete from departures where day = ?", [[day] for day in drop or ("1900-01-01",)])
    segwatch(folder, "train", "--as-of", "2013-11-01")
    segwatch(folder, "infer", "--start", "2013-11-01", "--end", "2014-01-01")
    with duckdb.connect(folder / "flights.duckdb", read_only=True) as connection:
        rows = connection.execute(
            "select cast(ts::date as varchar), list(origin || '/' || carrier) filter (is_anomaly),"
            " count(*) filter (status = 'ok') from predictions where level = 'origin/carrier' group by 1"
        ).fetchall()
    return {day: set(segments or ()) for day, segments, _ in rows}, {day: n for day, _, n in rows}


def test_the_flights_name_thanksgiving_and_leave_ordinary_saturdays(tmp_path, departures, segwatch):
    folder = shutil.copytree(departures, tmp_path / "flights")
    found, scored = flagged(folder, segwatch)
    ranked = sorted(found, key=lambda day: -len(found[day]))
    assert {THANKSGIVING, DAY_AFTER} == set(ranked[:2])
    assert len(found[THANKSGIVING]) > scored[THANKSGIVING] / 2
    assert sum(len(found[day]) for day in ORDINARY_SATURDAYS) < 0.08 * sum(scored[day] for day in ORDINARY_SATURDAYS)
    assert all(len(found[day]) <= scored[day] / 8 for day in ORDINARY_SATURDAYS)

    without_blizzard, _ = flagged(shutil.copytree(departures, tmp_path / "without"), segwatch, BLIZZARD)
    for day in (THANKSGIVING, DAY_AFTER):
        assert len(found[day] & without_blizzard[day]) >= 0.8 * len(without_blizzard[day])
