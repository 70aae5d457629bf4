"""What people say of incidents on the page."""

import pytest

from .conftest import LAST, OUTAGE, add_metric, outage, predict

EVIL = "</p><script>alert(1)</script>\u202e"


@pytest.fixture
def page(tmp_path, serve):
    add_metric(tmp_path)
    predict(tmp_path, special=outage)
    return serve(tmp_path)


def link_of(page, words):
    """The address of the incident whose card has these words."""
    body = page.client.get("/").body
    [card] = [one for one in body.split("<li class=") if words in one]
    return card.split('href="')[1].split('"')[0]


def act(page, name, link, **form):
    token = page.client.get(link).form_token
    return page.client.post(f"/actions/{name}", {"form_token": token, "incident": link.rsplit("/")[-1], **form})


def test_an_incident_is_labelled_and_the_label_is_shown_listed_audited_and_taken_back(page):
    link = link_of(page, "platform ios")
    done = act(page, "label", link, label="true", note=f"release 4.2 {EVIL}")
    assert done.status == 303
    shown = page.client.get(done.headers["location"])
    assert "Noted as an anomaly. The next training leaves these days out." in shown.words
    assert (
        "It was an anomaly ann, " in shown.words and "release 4.2 </p><script>alert(1)</script>\\u202e" in shown.words
    )
    assert "<script>" not in shown.body
    [card] = [one for one in page.client.get("/").body.split("<li class=") if "platform ios" in one]
    assert '<span class="badge label">It was an anomaly</span>' in card
    segment = next(one for one in shown.page.links("/segments/") if "ios" not in one)
    said = page.client(segment).words
    assert f"What people said It was an anomaly: */ios/*, {OUTAGE} (ann, " in said
    [row] = page.held("labels")
    assert (row["label"], row["author"], row["dimensions"]) == ("true", "ann", '{"platform": "ios"}')
    assert row["first_ts"] == row["last_ts"] and str(row["first_ts"].date()) == str(OUTAGE)
    assert page.audited == [("ann", "label", f"incident {row['label_id']}", f"true: release 4.2 {EVIL.strip()}")]
    audit = page.client.get("/audit")
    assert (
        "ann label incident" in audit.words and link in audit.page.links("/incidents/") and "<script>" not in audit.body
    )
    assert act(page, "label", link, label="none").status == 303
    assert "It was an anomaly ann" not in page.client.get(link).words
    assert [one["label"] for one in page.held("labels")] == ["true", "none"]


def test_what_is_expected_may_last_and_an_open_incident_may_be_snoozed(page):
    link = link_of(page, "platform ios")
    assert act(page, "label", link, label="expected", until="2026-11-23").status == 303
    assert str(page.held("labels")[0]["last_ts"].date()) == "2026-11-23"
    # Of what is over nothing is sent, and of another label an end says nothing.
    assert "Snooze" not in page.client.get(link).words
    rise = link_of(page, "channel ads")
    assert act(page, "label", rise, label="true", until="2026-11-23").status == 303
    done = act(page, "snooze", rise, until="2030-01-01")
    assert "No alert is sent of it until 2030-01-01 is over." in page.client.get(done.headers["location"]).words
    assert "Snoozed until 2030-01-01 is over ann" in page.client.get(rise).words
    assert [one[1] for one in page.audited] == ["label", "label", "snooze"]
    assert str(page.held("labels")[1]["last_ts"].date()) == str(LAST)


@pytest.mark.parametrize(
    ("name", "form", "status", "said"),
    [
        ("label", {"label": "perhaps"}, 400, "'perhaps' is no label"),
        ("label", {"label": ""}, 400, "'' is no label"),
        ("label", {"label": "none"}, 409, "0 labels of users begin with"),
        ("label", {"label": "expected", "until": "soon"}, 400, "'soon' is not a date"),
        ("label", {"label": "expected", "until": "2020-01-01"}, 400, "is before the incident"),
        ("label", {"label": "true", "incident": "ffffffffffffffffffff"}, 409, "has no incident"),
        ("label", {"label": "true", "incident": ""}, 400, "too short for an incident"),
        ("snooze", {"until": ""}, 400, ""),
        ("snooze", {}, 400, "say with --until"),
    ],
)
def test_what_cannot_be_said_is_told_and_nothing_is_written(page, name, form, status, said):
    link = link_of(page, "platform ios")
    token = page.client.get(link).form_token
    reply = page.client.post(f"/actions/{name}", {"form_token": token, "incident": link.rsplit("/")[-1], **form})
    assert reply.status == status and said in reply.words
    assert page.held("labels") == [] and page.audited == []


def test_nothing_is_said_without_the_forms_own_token(page):
    link = link_of(page, "platform ios")
    reply = page.client.post("/actions/label", {"incident": link.rsplit("/")[-1], "label": "true"})
    assert reply.status == 403 and page.held("labels") == []


def test_an_audit_of_nothing_says_so(page):
    assert "Nothing was done yet" in page.client.get("/audit").words
