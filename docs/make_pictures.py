"""The pictures of the documentation, from the report of the demonstration: `python docs/make_pictures.py RUN`."""

import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from leftover.report.page import write_report_page

HERE = Path(__file__).parent
SIZES = {"desktop": (1280, 900, 1), "phone": (390, 844, 2)}
PLACES = {"report": "", "report_completions": "#run-1-completions"}


def main(run: str) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-prefers-reduced-motion"):
        options.add_argument(argument)
    with tempfile.TemporaryDirectory() as folder:
        page = write_report_page([run], Path(folder) / "report.html")
        browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            for size, (width, height, factor) in SIZES.items():
                metrics = {"width": width, "height": height, "deviceScaleFactor": factor, "mobile": width < 600}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
                for name, anchor in PLACES.items():
                    browser.get("about:blank")
                    browser.get(page.as_uri() + anchor)
                    browser.save_screenshot(str(HERE / f"{name}_{size}.png"))
        finally:
            browser.quit()


if __name__ == "__main__":
    main(sys.argv[1])
