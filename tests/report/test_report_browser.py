"""The report in a real headless Chromium: loads in silence and without a network, and does what its controls say."""

import copy
import json
import shutil

import pytest

from pvcbench.report import page
from rows import EVIL, needle_rows, perplexity_rows, write_run

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs Debian's chromium and chromium-driver"),
]
ARGUMENTS = """--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-sync
--disable-background-networking --disable-component-update --disable-extensions --window-size=1400,1000"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of a needle run with a hostile answer, and of a perplexity run; the needle run stores its prompts."""
    folder = tmp_path_factory.mktemp("results")
    rows = needle_rows(lengths=(512, 1024), repeats=1, methods=("full", "pvc", "h2o"), budgets=(0.1, 0.25, 0.55))
    rows = copy.deepcopy(rows)
    for row in rows:
        if (row["sample"], row["method"], row["budget"]) == ("0-1", "h2o", "0.25"):
            row["output"] = EVIL
    write_run(folder / "quickstart" / "aaaa", rows)
    write_run(folder / "text" / "bbbb", perplexity_rows())
    shas = {row["sample"]: row["prompt_sha256"] for row in rows}
    pieces = [{"from": 0, "to": 40, "text": "It was the best of times.", "span": None}]
    pieces += [{"from": 300, "to": 320, "text": "The magic word is river.", "span": "needle"}]
    lines = [
        {"sample": name, "prompt_sha256": sha, "question": "Which word?", "excerpt": pieces}
        for name, sha in shas.items()
        if name != "0-2"
    ]
    (folder / "quickstart" / "aaaa" / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path_factory.mktemp("report") / "index.html"
    path.write_text(page.build(folder, 20)[0], encoding="utf-8")
    return path


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


@pytest.fixture
def opened(browser, report):
    """The page, loaded anew; whatever a test does, nothing may have gone wrong or out on the way."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(report.as_uri())
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    outside = [url for url in asked if not url.startswith((report.as_uri(), "data:", "blob:"))]
    assert outside == [] and report.as_uri() in [url.partition("#")[0] for url in asked]
    assert browser.execute_script("return window.owned") is None


def chart(browser, name):
    """What Plotly has drawn: names, x and y of every trace."""
    script = f"return document.getElementById('{name}').data.map(t => ({{name: t.name, x: t.x, y: t.y, mode: t.mode}}))"
    return {trace["name"]: trace for trace in browser.execute_script(script)}


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def choose(browser, name, text):
    Select(find(browser, f"#{name}")).select_by_visible_text(text)


def options(browser, name):
    return [option.text for option in Select(find(browser, f"#{name}")).options]


def test_it_loads_with_everything_drawn(opened):
    assert "pvcbench" in opened.title
    assert set(chart(opened, "curve")) == {"full", "full cache, 16.9 MiB", "h2o", "pvc"}
    assert len(opened.find_elements(By.CSS_SELECTOR, "#curve svg.main-svg")) > 0
    assert len(opened.find_elements(By.CSS_SELECTOR, "#grid .heatmaplayer image")) > 4
    axes = "const l = document.getElementById('grid')._fullLayout; return [l.yaxis, l.yaxis2, l.yaxis6, l.yaxis8]"
    assert (
        opened.execute_script(axes + ".map(axis => axis.range)") == [[4.5, -0.5]] * 4
    )  # five depths in every panel, whatever stands in it
    assert len(opened.find_elements(By.CSS_SELECTOR, ".board")) == 2
    assert options(opened, "model") == ["SmolLM2-135M-Instruct"] and len(options(opened, "run")) == 2


def test_a_filter_changes_the_curve_by_keyboard(opened):
    box = find(opened, "#methods input[value=h2o]")
    box.send_keys(Keys.SPACE)
    assert "h2o" not in chart(opened, "curve") and "pvc" in chart(opened, "curve")
    assert "h2o" not in find(opened, "#curve .legend").text
    box.send_keys(Keys.SPACE)
    assert len(chart(opened, "curve")["h2o"]["x"]) == 3


def test_another_axis_is_other_data(opened):
    shares = chart(opened, "curve")["h2o"]
    find(opened, "input[value=mib]").click()
    sizes = chart(opened, "curve")["h2o"]
    assert shares["y"] == sizes["y"] and shares["x"] == pytest.approx([10, 25, 55], abs=0.2)
    assert sizes["x"] == pytest.approx([2.2477 * 0.75, 5.625 * 0.75, 12.37 * 0.75], rel=0.02)
    assert "MiB" in find(opened, "#curve .xtitle").text
    find(opened, "input[value=prefill_s]").click()
    assert chart(opened, "curve")["h2o"]["x"] == [4, 4, 4]
    assert not find(opened, "input[value=decode_s]").is_enabled()


def test_intervals_are_error_bars_and_absences_are_said(opened):
    drawn = opened.execute_script("return document.getElementById('curve').data.find(t => t.name === 'h2o').error_y")
    assert len(drawn["array"]) == 3 and min(drawn["array"] + drawn["arrayminus"]) >= 0 and max(drawn["array"]) > 5
    note = find(opened, "#curve-note").text
    assert "pvc at 10%: no score (below PvC's reach of 38.0%)" in note
    assert "pvc: nothing smaller" in find(opened, "#curve").text


def test_another_run_is_another_curve(opened):
    Select(find(opened, "#run")).select_by_index(1)
    assert set(chart(opened, "curve")) == {"full", "full cache, 0.5 MiB", "h2o"}
    assert "perplexity (lower is better)" in find(opened, "#curve .ytitle").text
    assert not find(opened, "#grid-part").is_displayed() and not find(opened, "#survival").is_displayed()
    assert len(chart(opened, "likelihood")["h2o at 25%"]["y"]) == 2
    assert "prompt not stored by this run" in find(opened, "#prompt").text


def test_a_drill_down_shows_both_sides(opened):
    Select(find(opened, "#sample")).select_by_value("1")
    choose(opened, "left", "h2o at 25%")
    choose(opened, "right", "pvc at 55%")
    prompt = find(opened, "#prompt").text
    assert "Which word?" in prompt and "river" in prompt and "[... 260 tokens ...]" in prompt
    assert find(opened, "#prompt mark").text == "The magic word is river."
    assert find(opened, "#left-panel .output").get_attribute("textContent") == EVIL
    assert opened.find_elements(By.CSS_SELECTOR, ".panel img, .panel script") == []
    assert find(opened, "#right-panel .output").text in ("river", "I do not know")
    drawn = chart(opened, "survival")
    assert set(drawn) == {
        "h2o at 25%: needle",
        "h2o at 25%: mean of all samples",
        "pvc at 55%: needle",
        "pvc at 55%: mean of all samples",
    }
    assert len(drawn["pvc at 55%: needle"]["y"]) == 30
    choose(opened, "right", "pvc at 10%")
    assert "below PvC's reach of 38.0%" in find(opened, "#right-panel").text
    assert "pvc at 55%: needle" not in chart(opened, "survival")


def test_samples_are_walked_and_filtered(opened):
    assert options(opened, "sample")[0].startswith("0-0, depth 0%, 512 tokens") and len(options(opened, "sample")) == 10
    assert not find(opened, "#previous").is_enabled()
    find(opened, "#next").send_keys(Keys.ENTER)
    find(opened, "#next").send_keys(Keys.ENTER)
    assert Select(find(opened, "#sample")).first_selected_option.text.startswith("0-2,")
    assert "prompt not stored by this run" in find(opened, "#prompt").text
    choose(opened, "left", "pvc at 10%")
    choose(opened, "which", "left has an error")
    assert len(options(opened, "sample")) == 10
    choose(opened, "left", "h2o at 55%")
    assert "No sample is like that" in find(opened, "#prompt").text and not find(opened, "#survival").is_displayed()
    choose(opened, "which", "left and right differ")
    shown = options(opened, "sample")
    assert 0 < len(shown) < 10
    scores = {find(opened, f"#{side}-panel").text.partition("accuracy ")[2][:1] for side in ("left", "right")}
    assert scores == {"0", "1"}


def test_the_map_leads_to_a_sample(opened):
    find(opened, "#map-part summary").click()
    WebDriverWait(opened, 10).until(lambda page: page.execute_script("return !!document.getElementById('map').data"))
    square = opened.execute_script(
        "const map = document.getElementById('map'); map.emit('plotly_click', {points: [{x: 2, y: 3}]});"
        "return map.data[0].z[3][2]"
    )
    assert square in (0, 1)
    assert Select(find(opened, "#sample")).first_selected_option.text.startswith("0-3,")
    assert Select(find(opened, "#left")).first_selected_option.get_attribute("value") == "2"


def test_the_leaderboard_filters_and_sorts(opened):
    def shown(selector):
        return [one.text for one in opened.find_elements(By.CSS_SELECTOR, selector) if one.is_displayed()]

    board = ".board[data-run='0'] "
    assert shown(board + "thead th") == ["method", "10%", "25%", "55%"]
    choose(opened, "board-size", "55%")
    assert shown(board + "thead th") == ["method", "55%"]
    values = [float(text) for text in shown(board + ".score")]
    assert shown(board + "tbody th")[0] == "full" and values[1:] == sorted(values[1:], reverse=True)
    assert [one.is_displayed() for one in opened.find_elements(By.CSS_SELECTOR, ".board")] == [True, False]
    choose(opened, "board-size", "all")
    choose(opened, "board-task", "perplexity")
    assert [one.is_displayed() for one in opened.find_elements(By.CSS_SELECTOR, ".board")] == [False, True]


def test_a_number_leads_to_where_it_came_from(opened):
    link = find(opened, ".board a")
    link.send_keys(Keys.ENTER)
    origin = find(opened, f"[id='{link.get_attribute('href').partition('#')[2]}']")
    assert origin.get_attribute("open") is not None and "quickstart/aaaa" in origin.text


@pytest.mark.parametrize("width", [1400, 500])
def test_nothing_sticks_out(opened, width):
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened.refresh()
        wide = opened.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1] == width
        assert (
            opened.execute_script("return document.querySelector('#curve .main-svg').clientWidth") > 0.85 * width - 40
        )
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
