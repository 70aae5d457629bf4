"""The page in a real Chromium: a person's ways through it, by mouse and by keyboard, and what axe finds."""

import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

from segwatch.ui.guard import Access  # noqa: E402

from .conftest import OUTAGE, add_metric, outage, predict  # noqa: E402
from .test_views import IOS, RISEN, versions  # noqa: E402, F401

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = {"desk": 1280, "telephone": 390}
PATHS = ("/", "/segments", f"/segments/{RISEN}", f"/segments/{IOS}", f"/drill?day={OUTAGE}", "/models", "/runs",
         "/backtest", "/health", "/audit", "/nowhere", "/segments?status=ended")  # fmt: skip


@pytest.fixture(scope="module")
def chromium():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens an address; whatever the page asks of anywhere else, or complains of, is an error at the end."""
    contexts, wrong = [], []

    def opened(url, path="/", width=WIDTHS["desk"], scheme="light"):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda one: wrong.append(one.url) if not one.url.startswith(url) else None)
        page.on("console", lambda one: wrong.append(one.text) if "404" not in one.text else None)
        page.on("pageerror", lambda one: wrong.append(str(one)))
        page.goto(url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def violations(page):
    """What axe finds wrong: the rule, and where."""
    found = axe.Axe().run(page).response["violations"]
    return [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=list(WIDTHS))
def test_every_page_fits_its_window_and_axe_finds_nothing(project, serve, open_page, width, scheme):
    url = serve(project).url
    page = open_page(url, "/", width, scheme)
    incidents = [one.get_attribute("href") for one in page.locator("ol.incidents h2 a").all()]
    for path in (*PATHS, *incidents):
        page.goto(url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert violations(page) == [], path


def test_the_outage_of_a_platform_is_understood_from_one_incident(project, serve, open_page):
    page = open_page(serve(project).url)
    page.get_by_role("link", name="platform ios").click()
    assert page.get_by_role("heading", level=1).inner_text().startswith("▼")
    assert "Fell by 97 % on 12 Nov 2026" in page.locator(".lead").inner_text().replace("\xa0", " ")
    assert page.get_by_role("img", name="platform ios").is_visible()
    rows = page.get_by_role("region", name="Segments of the incident").get_by_role("row")
    assert rows.count() == 1 + 6 and all("ios" in rows.nth(i).inner_text() for i in range(1, 7))
    page.get_by_role("link", name="Drill down into it").click()
    assert "Where the change on 12 Nov 2026 comes from" in page.get_by_role("heading", level=1).inner_text()


def test_segments_are_searched_and_the_address_can_be_shared(project, serve, open_page):
    url = serve(project).url
    page = open_page(url, "/segments")
    page.get_by_role("searchbox").fill("ios")
    page.get_by_label("country").select_option("it")
    page.get_by_role("button", name="Search").click()
    assert page.get_by_role("status").inner_text().startswith("2 found")
    shared = open_page(url, page.url.removeprefix(url))
    assert shared.get_by_role("status").inner_text() == page.get_by_role("status").inner_text()
    assert shared.get_by_role("searchbox").input_value() == "ios"
    assert shared.get_by_label("country").input_value() == "it"
    shared.get_by_role("link", name="it/ios/ads").click()
    assert shared.get_by_role("heading", level=1).inner_text() == "it/ios/ads"


def test_the_drill_down_is_clicked_through_to_a_segment_and_back(project, serve, open_page):
    page = open_page(serve(project).url, f"/drill?day={OUTAGE}&by=platform")
    page.get_by_role("link", name="ios", exact=True).click()
    page.get_by_role("link", name="it", exact=True).click()
    assert "platform ios" in page.locator(".crumbs").inner_text()
    page.get_by_role("link", name="Without platform ios").click()
    assert "platform" not in page.locator(".crumbs").inner_text()
    page.get_by_role("link", name="ios", exact=True).click()
    page.get_by_role("link", name="search", exact=True).click()
    assert page.get_by_role("heading", level=1).inner_text() == "it/ios/search"


def test_the_keyboard_reaches_everything_and_its_place_is_seen(project, serve, open_page):
    page = open_page(serve(project).url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.get_by_role("link", name="Skip to the content").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle; })()"
        )
        seen.append((page.evaluate("document.activeElement.tagName"), style))
        if page.evaluate("document.activeElement.closest('ol.incidents') !== null"):
            break
    assert all(style != "none" for _, style in seen), seen
    page.keyboard.press("Enter")
    page.wait_for_url("**/incidents/**")


def test_a_person_logs_in_promotes_and_is_named(versions, serve, open_page):  # noqa: F811
    folder, registry = versions
    served = serve(folder, Access("a token of sixteen letters"))
    page = open_page(served.url, "/models")
    assert violations(page) == []
    page.get_by_label("token").fill("a token of sixteen letters")
    page.get_by_role("button", name="Log in").click()
    assert page.url == served.url + "/models"
    page.get_by_label("You act as").fill("Zoë")
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("button", name="Make version 1 the champion").click()
    assert page.get_by_role("status").inner_text() == "Version 1 is the champion."
    assert violations(page) == []
    page.get_by_role("button", name="Roll back to the champion before").click()
    assert page.get_by_role("status").inner_text() == "Version 3 is the champion again."
    assert registry.resolve("segwatch-users").version == "3"
    assert [one[:2] for one in served.audited] == [("Zoë", "promote"), ("Zoë", "rollback")]


def test_an_open_incident_is_labelled_and_snoozed_and_the_effect_is_seen(tmp_path, serve, open_page):
    add_metric(tmp_path)
    predict(tmp_path, special=outage)
    page = open_page(serve(tmp_path).url)
    page.get_by_role("link", name="channel ads").click()
    assert violations(page) == []
    page.get_by_label("note").fill("the price was wrong")
    page.get_by_role("button", name="It was an anomaly").click()
    assert "The next training leaves these days out." in page.get_by_role("status").inner_text()
    assert "the price was wrong" in page.get_by_role("region", name="What was it?").inner_text()
    page.get_by_label("send no alerts until this is over").fill("2026-11-30")
    page.get_by_role("button", name="Snooze").click()
    assert "2026-11-30" in page.get_by_role("status").inner_text() and violations(page) == []
    page.reload()
    assert page.get_by_role("status").count() == 0
    page.get_by_role("link", name="Incidents", exact=True).first.click()
    said = page.locator("ol.incidents li").first.inner_text()
    assert "It was an anomaly" in said and "Snoozed" in said and violations(page) == []
    page.get_by_role("link", name="Audit").click()
    assert page.get_by_role("row").count() == 1 + 2 and violations(page) == []
    page.set_viewport_size({"width": WIDTHS["telephone"], "height": 900})
    page.go_back()
    page.get_by_role("link", name="channel ads").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS["telephone"]


def test_hostile_names_run_nothing(tmp_path, serve, open_page):
    add_metric(tmp_path, dimensions=("<b>", "x"))
    names = [
        "<script>document.title='x'</script>",
        "<img src=x onerror=document.title='x'>",
        "\u202egnp.exe",
        "a" * 300,
    ]
    segments = [(one, "y") for one in names]
    predict(tmp_path, segments=segments, periods=3, special=lambda values, _: 900.0 if values[0] != names[3] else 100.0)
    url = serve(tmp_path).url
    page = open_page(url, "/", WIDTHS["telephone"])
    links = [one.get_attribute("href") for one in page.locator("ol.incidents h2 a").all()]
    for path in (*links, "/segments?kind=all", "/drill", "/segments?q=%3Cimg+src%3Dx"):
        page.goto(url + path)
        assert page.title().endswith("· segwatch")
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS["telephone"], path
        assert violations(page) == [], path


def test_several_metrics_are_chosen_from(tmp_path, serve, open_page):
    for name in ("users", "orders"):
        add_metric(tmp_path, name)
        predict(tmp_path, name, periods=3, special=outage)
    page = open_page(serve(tmp_path).url)
    page.get_by_label("Metric").select_option("orders")
    page.get_by_role("banner").get_by_role("button", name="Show").click()
    assert "orders up to" in page.locator(".note").first.inner_text()
    page.get_by_role("link", name="Segments").click()
    assert "metric=orders" in page.url and violations(page) == []
