"""Photographs the report of the committed results for the guide: docs/images/report_answer.png and report_sample.png.

    python scripts/report_screens.py

Needs Chromium with its driver, and selenium (extra `dev`). Pictures differ a little between versions of Chromium, so no
test compares them: run this after the report's page or the quickstart run has changed, and look at them.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from pvcbench.report.write_page import write

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
ARGUMENTS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
SETTING, PLACE, OTHER = "quickstart", "samples/quickstart/h2o/0.25", "snapkv at 25%"  # how the page names them


def opened(path: Path, size: str):
    """The page in a window of this size."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in [*ARGUMENTS.split(), f"--window-size={size}"]:
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.get(path.as_uri())
    return driver


def choose(driver, name: str, words: str) -> None:
    """Chooses the first option whose text holds the words."""
    chooser = Select(driver.find_element(By.ID, name))
    known = [one.text for one in chooser.options]
    chosen = next((text for text in known if words in text), None)
    if chosen is None:
        raise SystemExit(f"no option of {name} holds {words!r}: {known}")
    chooser.select_by_visible_text(chosen)
    time.sleep(1)


def photograph(path: Path) -> None:
    """Both pictures."""
    driver = opened(path, "1400,1000")
    try:
        choose(driver, "setting", SETTING)
        driver.save_screenshot(str(IMAGES / "report_answer.png"))
        driver.execute_script("location.hash = arguments[0]", PLACE)
        time.sleep(3)
        choose(driver, "right", OTHER)
        driver.execute_script("document.getElementById('samples').scrollIntoView()")
        time.sleep(1)
        driver.save_screenshot(str(IMAGES / "report_sample.png"))
    finally:
        driver.quit()


def main() -> None:
    """Makes the page in a folder of its own and photographs it."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, _ = write(ROOT / "results", Path(folder), 200)
        photograph(path)
    print("docs/images/report_answer.png docs/images/report_sample.png")


if __name__ == "__main__":
    main()
