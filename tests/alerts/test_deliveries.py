import datetime as dt

import numpy as np
import pytest

from segwatch.alerts.deliveries import Deliveries, digests_by, told_by
from segwatch.alerts.plan import Message, Told
from segwatch.data import deliveries_schema
from segwatch.warehouses import open_warehouse

NOW = dt.datetime(2026, 11, 21, 9, tzinfo=dt.UTC)


@pytest.fixture
def of_run(tmp_path):
    """The deliveries as a run has them, whose clock shows so many minutes past nine."""
    warehouse = open_warehouse(f"duckdb:///{tmp_path}/test.duckdb")
    warehouse.create_table("deliveries", deliveries_schema())
    yield lambda run_id, minutes: Deliveries(
        warehouse, "deliveries", "m", "day", run_id, lambda: NOW + dt.timedelta(minutes=minutes)
    )
    warehouse.close()


def message(as_="new", as_of="2026-11-20", day=None):
    told = (Told("a", as_, np.datetime64(as_of)),)
    return Message("big", "team", "m: it/* down", "", told, day)


@pytest.mark.parametrize(("first", "second"), [(1, 0), (0, 1), (0, 0)])
def test_what_a_run_is_sending_no_other_sends_whichever_of_them_began_before(of_run, first, second):
    assert of_run("a", first).begin(message()) is not None
    assert of_run("b", second).begin(message()) is None
    assert [one.run_id for one in of_run("b", 9).read()] == ["a"]


@pytest.mark.parametrize("as_", ["new", "resolved"])
def test_what_is_told_once_is_not_told_by_another_run_that_knows_of_a_later_period(of_run, as_):
    assert of_run("a", 0).begin(message(as_, "2026-11-19")) is not None
    assert of_run("b", 1).begin(message(as_, "2026-11-20")) is None


def test_each_time_that_it_gets_worse_and_each_day_of_a_digest_is_news(of_run):
    day = dt.date(2026, 11, 20)
    for run_id, minutes, news in [
        ("a", 0, message("worse", "2026-11-19")), ("b", 1, message("worse", "2026-11-20")),
        ("c", 2, message(day=day)), ("d", 3, message(day=day + dt.timedelta(1))), ("e", 4, message()),
    ]:  # fmt: skip
        assert of_run(run_id, minutes).begin(news) is not None
    assert of_run("f", 5).begin(message(day=day)) is None


def test_a_run_of_which_two_write_at_the_same_moment_gives_way(of_run, monkeypatch):
    ours, other = of_run("b", 0), of_run("a", 0)
    read, others = ours.read, iter([other])

    def read_late():
        found = read()
        for one in others:
            one.begin(message())
        return found

    monkeypatch.setattr(ours, "read", read_late)
    assert ours.begin(message()) is None
    assert {one.run_id: one.state for one in read()} == {"a": "sending", "b": "withdrawn"}


def test_a_run_that_began_to_send_a_moment_ago_is_not_taken_for_dead(of_run):
    deliveries = of_run("a", 0)
    begun = deliveries.begin(message())
    assert of_run("b", 14).settle(deliveries.read()) == []
    assert [one.run_id for one in of_run("b", 16).settle(deliveries.read())] == ["a"]
    assert told_by(deliveries.read(), "big", "team")["a"].as_ == "new"
    deliveries.end(begun, None)
    assert [(one.state, one.at) for one in deliveries.read()] == [("delivered", NOW)]


def test_a_digest_that_had_nothing_to_tell_is_done_with_for_its_day(of_run):
    day = dt.date(2026, 11, 20)
    deliveries = of_run("a", 0)
    deliveries.skip(Message("daily", "team", "m: 0 open", "", (), day))
    assert digests_by(deliveries.read(), "daily", "team") == [day] and deliveries.settle(deliveries.read()) == []
