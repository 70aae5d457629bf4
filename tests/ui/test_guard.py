"""Who is let in, and what a browser cannot be made to do."""

import pytest

from segwatch.ui.guard import Access, is_loopback

from .conftest import add_metric, predict
from .test_views import versions  # noqa: F401

TOKEN = "a token of sixteen letters"
PATHS = ("/", "/segments", "/drill", "/models", "/runs", "/backtest", "/health", "/incidents/x", "/segments/x")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    add_metric(folder)
    predict(folder, periods=2)
    return folder


def test_without_the_token_nothing_is_shown(folder, serve):
    ask = serve(folder, Access(TOKEN)).client
    for path in PATHS:
        reply = ask.get(path)
        assert (reply.status, reply.headers["location"][:12]) == (303, "/login?next="), path
        assert "users" not in reply.body
    login = ask.get("/login?next=/segments")
    assert login.status == 200 and "users" not in login.body and not login.page.all("nav")
    assert ask.get("/nowhere").status == 404 and "users" not in ask.get("/nowhere").body
    assert "set-cookie" not in login.headers


def test_the_token_opens_the_page_by_a_form_and_leads_on(folder, serve):
    ask = serve(folder, Access(TOKEN, default_name="ann")).client
    for wrong in ("", "a", TOKEN + "x", TOKEN[:-1], "ü" * 20):
        reply = ask.post("/login", {"token": wrong, "next": "/segments"})
        assert reply.status == 401 and "That is not the token." in reply.words
        assert ask.get("/segments").status == 303
    reply = ask.post("/login", {"token": TOKEN, "next": "/segments?q=it"})
    assert (reply.status, reply.headers["location"]) == (303, "/segments?q=it")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and TOKEN not in cookie
    assert ask("/segments?q=it")


def test_the_token_opens_the_page_by_a_header(folder, serve):
    ask = serve(folder, Access(TOKEN)).client
    assert ask.get("/segments", Authorization=f"Bearer {TOKEN}").status == 200
    for wrong in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", TOKEN):
        assert ask.get("/segments", Authorization=wrong).status == 303


@pytest.mark.parametrize("cookie", ["x", "x.y", ".", "a.b.c", "%00.%00", "segwatch" * 500])
def test_a_session_that_the_page_did_not_make_is_none(folder, serve, cookie):
    ask = serve(folder, Access(TOKEN)).client
    assert ask.get("/segments", Cookie=f"segwatch_session={cookie}").status == 303


def test_sessions_of_another_start_of_the_page_are_none(folder, serve):
    first, second = (serve(folder, Access(TOKEN)).client for _ in range(2))
    reply = first.post("/login", {"token": TOKEN})
    cookie = reply.headers["set-cookie"].partition(";")[0]
    assert first.get("/", Cookie=cookie).status == 200
    assert second.get("/", Cookie=cookie).status == 303


@pytest.mark.parametrize("elsewhere", ["//evil.example", "https://evil.example", "/\\evil.example",
                                       "javascript:alert(1)", "evil", "/a\r\nSet-Cookie: x=y", ""])  # fmt: skip
def test_a_login_leads_nowhere_else(folder, serve, elsewhere):
    ask = serve(folder, Access(TOKEN)).client
    reply = ask.post("/login", {"token": TOKEN, "next": elsewhere})
    assert reply.status == 303 and reply.headers["location"] == "/"


def test_a_link_of_another_site_is_asked_for_once_more_so_that_the_browser_shows_its_session(folder, serve):
    ask = serve(folder, Access(TOKEN)).client
    reply = ask.get("/segments?q=a&d.country=it", Sec_Fetch_Site="cross-site")
    [again] = [one for one in reply.page.all("meta") if one.get("http-equiv") == "refresh"]
    assert again["content"] == "0; url=/segments?q=a&d.country=it"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8090", 200), ("127.0.0.1:8090", 200), ("[::1]:8090", 200), ("10.1.2.3", 200),
        ("segwatch.example", 200), ("SEGWATCH.example:443", 200), ("evil.example", 400), ("evil.example:8090", 400),
        ("localhost.evil.example", 400), ("127.0.0.1.evil.example", 400), ("", 400), ("segwatch.example.evil", 400),
    ],
)  # fmt: skip
def test_the_page_answers_to_its_own_names_alone(folder, serve, host, status):
    ask = serve(folder, Access(hosts=frozenset({"segwatch.example"}))).client
    assert ask.get("/segments", Host=host).status == status


def promotes(ask, token, **headers):
    return ask.post("/actions/promote", {"form_token": token, "version": "1"}, **headers).status


def test_a_form_of_anyone_elses_changes_nothing(versions, serve):  # noqa: F811
    folder, registry = versions
    page = serve(folder)
    ask, other = page.client, serve(folder).client
    own = ask.get("/models").form_token
    for wrong in ("", "x", own[:-1], other.get("/models").form_token):
        assert promotes(ask, wrong) == 403
    for origin in ("https://evil.example", "null", ask.url.replace("127.0.0.1", "localhost"), ask.url + "1"):
        assert promotes(ask, own, Origin=origin) == 403
    for site in ("cross-site", "same-site"):
        assert promotes(ask, own, Sec_Fetch_Site=site) == 403
    # The right form without its session, as another site would send it.
    ask.jar.clear()
    assert promotes(ask, own) == 403
    assert ask.get("/actions/promote").status == 405 and ask.get("/name").status == 405
    assert registry.resolve("segwatch-users").version == "3" and page.audited == []


def test_a_form_of_the_page_itself_is_followed(versions, serve):  # noqa: F811
    folder, registry = versions
    ask = serve(folder).client
    assert promotes(ask, ask.get("/models").form_token, Origin=ask.url, Sec_Fetch_Site="same-origin") == 303
    assert registry.resolve("segwatch-users").version == "1"


def test_a_program_with_the_token_needs_no_form(versions, serve):  # noqa: F811
    folder, _ = versions
    page = serve(folder, Access(TOKEN, default_name="ann"))
    assert promotes(page.client, "", Authorization=f"Bearer {TOKEN}") == 303
    assert promotes(page.client, "") == 401
    assert len(page.audited) == 1


def test_an_action_names_who_did_it_and_is_refused_where_nobody_says(versions, serve):  # noqa: F811
    folder, registry = versions
    page = serve(folder, Access())
    ask = page.client
    token = ask.get("/models").form_token
    reply = ask.post("/actions/promote", {"form_token": token, "version": "1"})
    assert reply.status == 400 and "say who you are" in reply.words
    named = ask.post("/name", {"form_token": token, "name": "  Zoë\n<b>;, \u202e ", "next": "/models?x=1"})
    assert (named.status, named.headers["location"]) == (303, "/models?x=1")
    assert 'value="Zoë &lt;b&gt;;, \\u202e"' in ask.get("/models").body
    assert promotes(ask, token) == 303
    assert page.audited[0][0] == "Zoë <b>;, \u202e" and registry.resolve("segwatch-users").version == "1"
    assert ask.post("/name", {"name": "eve"}).status == 403


def test_a_proxy_in_front_says_who_acts_and_nobody_else_does(versions, serve):  # noqa: F811
    folder, _ = versions
    page = serve(folder, Access(name_header="X-Forwarded-User"))
    ask = page.client
    reply = ask.get("/models", X_Forwarded_User="bob")
    assert "You act as bob" in reply.words and not [one for one in reply.page.all("input") if one.get("id") == "who"]
    cookie = "segwatch_name=eve"
    assert promotes(ask, reply.form_token, X_Forwarded_User="bob") == 303
    session = next(iter(ask.jar))
    assert promotes(ask, reply.form_token, Cookie=f"{session.name}={session.value}; {cookie}") == 400
    assert [one[0] for one in page.audited] == ["bob"]


def test_a_form_that_is_too_large_is_refused(folder, serve):
    ask = serve(folder).client
    assert ask.post("/name", {"name": "x" * 100_000}).status == 413


def test_every_answer_is_protected(folder, serve):
    ask = serve(folder, Access(TOKEN)).client
    replies = [ask.get(path) for path in ("/", "/login", "/nowhere", "/static/icon.svg", "/actions/x")]
    replies += [ask.get("/login", Host="evil.example"), ask.post("/login"), ask.post("/name", {"name": "x" * 100_000})]
    for reply in replies:
        assert reply.headers["x-frame-options"] == "DENY" and reply.headers["x-content-type-options"] == "nosniff"
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
        assert reply.headers["referrer-policy"] == "same-origin"


def test_the_token_is_in_no_representation():
    access = Access(TOKEN)
    assert access.secret.hex() not in repr(access) and TOKEN not in repr(access)


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.9.1", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("example.org", False), ("localhost.example", False)],
)  # fmt: skip
def test_only_this_machine_reaches_a_loopback_address(host, is_own):
    assert is_loopback(host) is is_own
