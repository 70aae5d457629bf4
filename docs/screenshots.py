"""Draws docs/ui-*.png and report.png: python docs/screenshots.py DEMO, the folder of `make demo`. Needs Chromium."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).parent
SIZES = {"desk": (1200, 800), "tall": (1200, 1000), "telephone": (390, 800), "report": (1250, 1541)}


@contextmanager
def page_of(demo: Path) -> Iterator[str]:
    """The address of the demo's page while the context is open."""
    command = [str(Path(sys.executable).with_name("segwatch")), "--settings", str(demo / "segwatch.toml")]
    options = ["--log-format", "json", "ui", "--port", "0"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield json.loads(process.stderr.readline())["listening"]
        finally:
            process.terminate()


def draw(browser: Browser, url: str, name: str, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(url)
    page.screenshot(path=DOCS / f"{name}.png")
    page.close()


def main(demo: Path) -> None:
    if not (demo / "segwatch.toml").exists():
        subprocess.run([sys.executable, DOCS.parent / "examples" / "demo.py", demo], check=True)
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        sys.exit("Chromium is not installed")
    with page_of(demo) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{url}/?q=ios")
        incident = url + str(page.locator("ol.incidents h2 a").first.get_attribute("href"))
        draw(browser, f"{url}/", "ui-incidents", "desk", "light")
        draw(browser, incident, "ui-incident", "tall", "light")
        draw(browser, f"{url}/segments", "ui-segments", "desk", "dark")
        draw(browser, incident, "ui-telephone", "telephone", "dark")
        draw(browser, f"file://{(demo / 'segwatch-report.html').absolute()}", "report", "report", "light")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
