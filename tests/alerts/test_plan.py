import datetime as dt
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from segwatch.alerts.plan import Known, Told, digest_message, due, messages
from segwatch.core.incidents import Incident
from segwatch.core.labels import Label
from segwatch.settings import Alert

DIMENSIONS = ("country", "platform")
LAST = np.datetime64("2026-11-20")
NOW = dt.datetime(2026, 11, 21, 9, tzinfo=dt.UTC)


def day(before):
    return LAST - np.timedelta64(before, "D")


def incident(id_="a", status="new", ts=0, first=None, values=("it", None), direction="down", impact=-50.0, **more):
    first = ts if first is None else first
    facts = {
        "id": id_, "ts": day(ts), "first_seen": day(first), "last_seen": day(ts), "status": status,
        "direction": direction, "values": values, "impact": impact, "expected": 100.0, "share": 0.8,
        "total_impact": impact * (first - ts + 1), "peak": abs(impact), "n_segments": 7,
        "segments": ("s1",), "labels": ("it/app", "it/ios"),
    }  # fmt: skip
    return Incident(**facts | more)


def known(*said, labels=(), now=NOW, page=""):
    return Known("m", DIMENSIONS, "day", sorted(said, key=lambda one: one.ts), day(199), LAST, labels, now, page)


def rule(**options):
    return Alert(channels=("team",), **options)


def told(as_, before, id_="a"):
    return {id_: Told(id_, as_, day(before))}


def news(of, before=None, **options):
    return [(event.incident.id, event.as_) for event in due(rule(**options), of, before or {})]


def test_what_is_new_is_told_once():
    of = known(incident())
    assert news(of) == [("a", "new")]
    assert news(of, told("new", 0)) == []


def test_what_was_not_told_when_it_was_new_is_told_as_new_while_it_is_open():
    assert news(known(incident(ts=1), incident(status="ongoing", first=1))) == [("a", "new")]
    assert news(known(incident(ts=1))) == [("a", "new")]
    assert news(known(incident(ts=2))) == []
    assert news(known(incident(ts=3), incident(status="resolved", first=3))) == []


def test_worse_is_told_each_time_that_it_gets_worse_and_resolved_once():
    grown = [incident(ts=3), incident(status="worse", ts=2, first=3), incident(status="ongoing", ts=1, first=3)]
    assert news(known(*grown), told("new", 3)) == [("a", "worse")]
    assert news(known(*grown), told("worse", 1)) == []
    again = [*grown, incident(status="worse", first=3, impact=-90.0)]
    assert news(known(*again), told("worse", 1)) == [("a", "worse")]
    over = known(*grown, incident(status="resolved", first=3))
    assert news(over, told("worse", 1)) == [("a", "resolved")]
    assert news(over, told("resolved", 0)) == []
    assert news(over, told("worse", 1), also=("worse",)) == [] and news(known(*again), told("worse", 1), also=()) == []


def test_what_nobody_followed_to_its_end_is_told_to_be_over():
    stale = incident(ts=5)
    assert news(known(stale), told("new", 5)) == [("a", "resolved")]
    assert news(known(stale), told("resolved", 5)) == [] and news(known(stale)) == []
    [message] = messages("big", rule(), "team", known(stale), told("new", 5))
    assert message.title.endswith(": resolved") and message.is_good


@pytest.mark.parametrize(
    ("options", "is_told"),
    [
        ({"min_impact": 50}, True), ({"min_impact": 51}, False),
        ({"min_impact_share": 0.5}, True), ({"min_impact_share": 0.51}, False),
        ({"min_duration": 2}, True), ({"min_duration": 3}, False),
        ({"direction": "down"}, True), ({"direction": "up"}, False),
        ({"select": {"country": ("it", "fr")}}, True), ({"select": {"country": ("fr",)}}, False),
        ({"select": {"platform": ("ios",)}}, True), ({"select": {"device": ("ios",)}}, False),
        ({"select": {"country": ("it",), "platform": ("ios",)}}, True),
    ],
)  # fmt: skip
def test_a_rule_tells_of_what_is_large_enough_long_enough_and_selected(options, is_told):
    assert bool(news(known(incident(status="ongoing", first=1)), **options)) == is_told


def test_what_was_told_is_told_to_its_end_whatever_its_size_is_by_then():
    small = incident(status="resolved", first=3, impact=0.0, expected=np.nan, share=np.nan)
    assert news(known(incident(ts=3), small), told("new", 3), min_impact=10) == [("a", "resolved")]


def label(said, last=0, id_="a"):
    return Label(id_, said, NOW, "ann", ("it", None), day(3), day(last))


@pytest.mark.parametrize(
    ("labels", "is_told"),
    [
        ([label("snooze", 0)], False), ([label("snooze", 1)], True), ([label("snooze", -5)], False),
        ([label("false")], False), ([label("expected")], False), ([label("new-normal")], False),
        ([label("true")], True), ([label("false", id_="other")], True),
    ],
)  # fmt: skip
def test_what_is_snoozed_or_said_to_be_none_is_not_told(labels, is_told):
    assert bool(news(known(incident(), labels=labels))) == is_told


def test_an_incident_is_told_in_words():
    [message] = messages("big", rule(), "team", known(incident(status="ongoing", first=2), page="http://page/"), {})
    assert message.title == "m: it/* down 50 % (-50) since 2026-11-18, 7 segments: new"
    assert message.body.splitlines() == [
        "it/* down 50 % (-50) since 2026-11-18, 7 segments: new",
        "It accounts for 80 % of all that fell in this day.",
        "Since 2026-11-18 it is -150 in all.",
        "Most of it is in it/app, it/ios and 2 more.",
        "http://page/incidents/a?metric=m",
        "What was it? segwatch label --metric m a true, false, expected or new-normal",
    ]
    assert not message.is_good and message.told == (Told("a", "new", LAST),)


def test_messages_are_one_for_each_incident_run_or_value_and_the_rest_are_named_in_one_more():
    of = known(
        *(incident(f"i{k}", values=("it" if k % 2 else "fr", "ios"), impact=-100.0 + k) for k in range(5)),
        incident("total", values=(None, "ios"), impact=-10.0),
    )
    each = messages("big", rule(), "team", of, {})
    assert [one.told[0].incident_id for one in each] == ["i0", "i1", "i2", "i3", "i4", "total"]
    [whole] = messages("big", rule(group_by="run"), "team", of, {})
    assert whole.title == "m: 6 incidents" and len(whole.told) == 6 == len(whole.body.splitlines())
    by_country = messages("big", rule(group_by="country"), "team", of, {})
    assert [one.title for one in by_country[:2]] == ["m: 3 incidents of country fr", "m: 2 incidents of country it"]
    assert by_country[2].told[0].incident_id == "total"
    capped = messages("big", rule(max_messages=2), "team", of, {})
    assert [len(one.told) for one in capped] == [1, 1, 4] and capped[2].title == "m: and 4 more incidents"
    everything = {told.incident_id: told for one in capped for told in one.told}
    assert messages("big", rule(max_messages=2), "team", of, everything) == []


def test_what_was_told_and_is_no_incident_any_more_is_withdrawn_once_unless_a_label_says_what_it_was():
    before = {id_: Told(id_, "new", day(3), f"it/{id_} down") for id_ in ("gone", "too")}
    [message] = messages("big", rule(max_messages=1), "team", known(), before)
    assert message.title == "m: 2 incidents: withdrawn" and message.is_good
    assert message.body.splitlines()[:2] == ["it/gone down", "it/too down"]
    after = {told.incident_id: told for told in message.told}
    assert messages("big", rule(), "team", known(), after) == []
    [message] = messages("big", rule(), "team", known(labels=[label("expected", id_="too")]), before)
    assert message.title == "m: it/gone down: withdrawn"
    assert messages("big", rule(also=("worse",)), "team", known(), before) == []
    assert messages("big", rule(), "team", known(), {"old": Told("old", "new", day(300))}) == []


def test_a_message_has_the_same_id_for_the_same_news_alone():
    [one] = messages("big", rule(), "team", known(incident()), {})
    [same] = messages("big", rule(), "team", known(incident(impact=-60.0)), {})
    [later] = messages("big", rule(), "team", known(incident(ts=1)), {})
    [elsewhere] = messages("big", rule(), "mail", known(incident()), {})
    assert one.id == same.id and len({one.id, later.id, elsewhere.id}) == 3


@pytest.mark.parametrize(
    ("hours", "zone", "now", "is_quiet"),
    [
        ("22:00-07:00", "UTC", "23:30", True), ("22:00-07:00", "UTC", "06:59", True),
        ("22:00-07:00", "UTC", "07:00", False), ("22:00-07:00", "UTC", "12:00", False),
        ("12:00-13:00", "UTC", "12:30", True), ("12:00-13:00", "UTC", "13:00", False),
        ("22:00-07:00", "Europe/Rome", "21:30", True), ("22:00-07:00", "Europe/Rome", "06:30", False),
        ("", "UTC", "03:00", False),
    ],
)  # fmt: skip
def test_quiet_hours_are_those_of_a_place_and_may_hold_midnight(hours, zone, now, is_quiet):
    moment = dt.datetime.fromisoformat(f"2026-11-20T{now}:00+00:00")
    assert rule(quiet_hours=hours, timezone=zone).is_quiet(moment) == is_quiet


def digest(of, sent=(), **options):
    return digest_message("daily", rule(digest_at="08:00", **options), "team", of, sent)


def test_a_digest_tells_once_a_day_what_is_open_and_what_was_resolved_since_yesterday():
    of = known(
        incident("a", status="ongoing", first=4, impact=-90.0),
        incident("b", status="resolved", first=4),
        incident("old", status="resolved", ts=2, first=9),
    )
    message = digest(of)
    assert message.title == "m, 2026-11-21: 1 open, 1 resolved" and message.day == dt.date(2026, 11, 21)
    assert [line.rpartition(": ")[2] for line in message.body.splitlines()] == ["ongoing", "resolved"]
    assert digest(of, [message.day]) is None and digest(of, [dt.date(2026, 11, 20)]) is not None
    assert digest(of, direction="up").told == () == digest(known()).told


def test_a_digest_whose_hour_no_run_came_after_is_sent_by_the_first_run_of_the_next_day():
    early = replace(known(incident()), now=NOW.replace(hour=7))
    before = dt.date(2026, 11, 20)
    assert digest(early).day == before and digest(early, [before]) is None
    assert digest(early, [before], timezone="Europe/Rome").day == dt.date(2026, 11, 21)


@pytest.mark.parametrize(
    "wrong",
    [
        {"quiet_hours": "22-7"}, {"quiet_hours": "22:00-25:00"}, {"digest_at": "8"}, {"timezone": "Rome"},
        {"direction": "sideways"}, {"min_impact": -1}, {"max_messages": 0}, {"also": ["new"]}, {"colour": "red"},
    ],
)  # fmt: skip
def test_a_rule_that_is_none_is_refused(wrong):
    with pytest.raises(ValidationError):
        rule(**wrong)
