"""The board in a real headless Chromium: it sorts, filters, fits a phone, and asks for nothing over the network."""

import shutil

import pytest

from pvcbench.board import make, pack
from pvcbench.board.verifying import Asked

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs Debian's chromium and chromium-driver"),
]
ARGUMENTS = """--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run
--disable-background-networking --disable-component-update --disable-extensions --window-size=1400,1000"""
LONG = "W" * 120


@pytest.fixture(scope="module")
def site(measured, original, tmp_path_factory):
    """A board with two submissions, one of them by somebody with a name that does not break."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "one.zip").write_bytes(original)
    (folder / "two.zip").write_bytes(pack.pack(measured, LONG, note=LONG, partial=True, excerpts=False).content)
    rows = (folder / "one.zip", folder / "two.zip")
    made = [make.make([path], folder / path.stem, Asked(samples=0), say=lambda line: None) for path in rows]
    return [board.page for board in made]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in [*ARGUMENTS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def shown(browser, column):
    """The texts of a column in the lines that are shown."""
    rows = browser.find_elements(By.CSS_SELECTOR, "#board tbody tr")
    return [row.find_elements(By.CSS_SELECTOR, "td, th")[column].text for row in rows if row.is_displayed()]


def test_it_sorts_and_filters_in_silence(site, browser):
    browser.get(site[0].as_uri())
    assert browser.find_element(By.ID, "count").text == "5 of 5 lines"
    head = browser.find_elements(By.CSS_SELECTOR, "#board thead th button")[4]
    head.click()
    sizes = [float(text.partition("%")[0]) for text in shown(browser, 4)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 100.0
    head.click()
    assert [float(text.partition("%")[0]) for text in shown(browser, 4)] == sorted(sizes, reverse=True)
    assert browser.find_elements(By.CSS_SELECTOR, "th[aria-sort=descending]")[0].text.startswith("Size kept")
    Select(browser.find_element(By.CSS_SELECTOR, "select[data-filter=method]")).select_by_visible_text("h2o")
    assert shown(browser, 3) == ["h2o", "h2o"] and browser.find_element(By.ID, "count").text == "2 of 5 lines"
    browser.find_element(By.ID, "words").send_keys("60%")
    assert browser.find_element(By.ID, "count").text == "1 of 5 lines"
    assert browser.get_log("browser") == []
    requests = [
        one["message"] for one in browser.get_log("performance") if 'Network.requestWillBeSent"' in one["message"]
    ]
    assert all("http://" not in one.replace("http://www.w3.org", "") for one in requests)


@pytest.mark.parametrize("width", [390, 1400])
def test_no_page_scrolls_sideways(site, browser, width):
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for page in [path for one in site for path in (one, *one.parent.glob("runs/*.html"))]:
        browser.get(page.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
