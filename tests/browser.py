"""Headless Chromium for tests of pages: skipped where there is none."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium; what it downloads lies in `browser.downloads`."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found: Any = webdriver.Chrome(options=options, service=Service(DRIVER))
    found.downloads = tmp_path_factory.mktemp("downloads")
    where = {"behavior": "allow", "downloadPath": str(found.downloads)}
    found.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    yield found
    found.quit()


def visit(browser: Any, page: Path, anchor: str = "") -> None:
    """Open a page from the disk; its scripts have run."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get("about:blank")
    browser.get(page.as_uri() + anchor)
    # On a busy machine `get` may return at the load of the blank page.
    there = "return location.protocol === 'file:' && document.readyState === 'complete'"
    WebDriverWait(browser, 60).until(lambda it: it.execute_script(there))


def width(browser: Any, pixels: int, height: int = 900) -> None:
    """Lay out for a screen of so many pixels; below 600 as a phone."""
    size = {"width": pixels, "height": height, "deviceScaleFactor": 1, "mobile": pixels < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def one(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def texts(browser: Any, selector: str) -> list[str]:
    return [e.get_property("textContent") for e in browser.find_elements("css selector", selector)]
