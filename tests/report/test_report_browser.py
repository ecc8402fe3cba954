"""The report in a real headless Chromium: loads in silence and without a network, and does what its controls say."""

import copy
import json
import shutil

import pytest

from pvcbench.report import html_page
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
    path.write_text(html_page.build(folder, 20)[0], encoding="utf-8")
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
    """What is drawn in a chart: x and y of every series' points by its name, as its marks tell them."""
    script = """
        return [...document.querySelectorAll(`#${arguments[0]} g[data-name]`)].map((group) => {
          const marks = [...group.querySelectorAll("[data-x]")];
          return [group.dataset.name, marks.map((one) => [Number(one.dataset.x), Number(one.dataset.y)])];
        });"""
    return dict(browser.execute_script(script, name))


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def choose(browser, name, text):
    Select(find(browser, f"#{name}")).select_by_visible_text(text)


def options(browser, name):
    return [option.text for option in Select(find(browser, f"#{name}")).options]


def until(browser, condition):
    """Waits until a condition holds: blocks unpack while the page goes on."""
    return WebDriverWait(browser, 20).until(condition)


def go(browser, place):
    """Follows a link of the page's own by its hash, and waits until the samples stand."""
    browser.execute_script("location.hash = arguments[0]", place)
    until(browser, lambda page: "samples" in find(page, "#sample-count").text)


def setting(browser, task):
    """Chooses the setting of a task."""
    chosen = next(one for one in Select(find(browser, "#setting")).options if one.text.startswith(task))
    Select(find(browser, "#setting")).select_by_value(chosen.get_attribute("value"))
    return chosen.get_attribute("value")


def at_width(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.refresh()


@pytest.fixture(params=[1400, 390], ids=["wide", "phone"])
def sized(opened, request):
    at_width(opened, request.param)
    yield opened, request.param
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_first_screen_is_the_answer(sized):
    page, width = sized
    assert Select(find(page, "#setting")).first_selected_option.text.startswith("perplexity")  # has most samples
    setting(page, "needle")
    verdicts = [one for one in page.find_elements(By.CSS_SELECTOR, ".verdict") if one.is_displayed()]
    assert [one.text.splitlines()[0] for one in verdicts] == [
        f"At {size} of the cache" for size in ("10%", "25%", "40%")
    ]
    assert all(one.rect["y"] + one.rect["height"] <= 900 for one in verdicts)  # without scrolling
    assert "h2o is the only method measured here" in verdicts[0].text and "Not measured" in verdicts[2].text
    table = next(one for one in page.find_elements(By.CSS_SELECTOR, ".leaders") if one.is_displayed())
    assert "not measured alone" in table.get_attribute("textContent")
    assert find(page, "#setting").rect["width"] > 0.5 * width - 40


def test_nothing_sticks_out(sized):
    page, width = sized
    go(page, "samples/quickstart/h2o/0.25")
    for part in page.find_elements(By.CSS_SELECTOR, "details"):
        page.execute_script("arguments[0].open = true", part)
    wide = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1] == width
    assert find(page, "#curve svg").rect["width"] <= width


def test_it_paints_before_a_second_and_unpacks_nothing_unasked(opened):
    paint = "return performance.getEntriesByType('paint').find(e => e.name === 'first-contentful-paint')?.startTime"
    assert until(opened, lambda page: page.execute_script(paint)) < 1000  # it is told some time after it was seen
    assert find(opened, "#curve").get_attribute("innerHTML") == "" or not opened.find_elements(
        By.CSS_SELECTOR, "#prompt dl"
    )


def test_another_setting_is_another_answer(opened):
    setting(opened, "needle")
    name = setting(opened, "perplexity")
    shown = [one for one in opened.find_elements(By.CSS_SELECTOR, ".answer") if one.is_displayed()]
    assert [one.get_attribute("data-setting") for one in shown] == [name]
    assert "lower is better" in shown[0].text
    go(opened, f"samples/{name}/h2o/0.25")
    assert set(chart(opened, "curve")) == {"full cache", "h2o"}
    assert "perplexity (lower is better)" in find(opened, "#curve .y-title").text
    assert not find(opened, "#grid-part").is_displayed() and not find(opened, "#survival").is_displayed()
    assert len(chart(opened, "likelihood")["h2o at 25%"]) == 2
    assert "prompt not stored by this run" in find(opened, "#prompt").text


def test_curves_and_filters_by_keyboard(opened):
    go(opened, "samples/quickstart/h2o/0.25")
    shares = chart(opened, "curve")
    assert set(shares) == {"full cache", "h2o", "pvc"}
    assert [x for x, _ in shares["h2o"]] == pytest.approx([10, 25, 55], abs=0.2)
    assert len(opened.find_elements(By.CSS_SELECTOR, "#curve g[data-name=h2o] .interval-bar")) == 3
    note = find(opened, "#curve-note").text
    assert "pvc at 10%: no score (below PvC's reach of 38.0%)" in note
    assert "pvc: nothing smaller" in find(opened, "#curve").text
    box = find(opened, "#methods input[value=h2o]")
    box.send_keys(Keys.SPACE)
    assert "h2o" not in chart(opened, "curve") and "pvc" in chart(opened, "curve")
    box.send_keys(Keys.SPACE)
    find(opened, "input[value=mib]").send_keys(Keys.SPACE)
    sizes = chart(opened, "curve")["h2o"]
    assert [y for _, y in sizes] == [y for _, y in shares["h2o"]]
    assert [x for x, _ in sizes] == pytest.approx([2.2477 * 0.75, 5.625 * 0.75, 12.37 * 0.75], rel=0.02)
    assert "MiB" in find(opened, "#curve .x-title").text
    find(opened, "input[value=prefill_s]").send_keys(Keys.SPACE)
    assert [x for x, _ in chart(opened, "curve")["h2o"]] == [4, 4, 4]
    assert not find(opened, "input[value=decode_s]").is_enabled()


def test_the_needle_grid_is_a_table(opened):
    go(opened, "samples/quickstart/h2o/0.25")
    heads = [one.text for one in opened.find_elements(By.CSS_SELECTOR, "#grid thead tr:first-child th")]
    assert heads == ["method", "depth, %", "full cache", "10%", "25%", "55%"]
    assert len(opened.find_elements(By.CSS_SELECTOR, "#grid tbody tr")) == 2 * 5
    assert "out of reach (below 38%)" in find(opened, "#grid").text


def test_a_number_leads_to_its_samples(opened):
    link = find(opened, "#board [data-setting=quickstart] tr[data-method=h2o][data-size='25%'] a[href^='#samples']")
    link.send_keys(Keys.ENTER)
    until(opened, lambda page: "samples" in find(page, "#sample-count").text)
    assert Select(find(opened, "#left")).first_selected_option.text == "h2o at 25%"
    assert opened.execute_script("return document.activeElement.id") == "samples-title"


def test_a_number_leads_to_its_command(opened):
    link = find(opened, "#board [data-setting=quickstart] tr[data-method=h2o] a[href^='#origin']")
    link.send_keys(Keys.ENTER)
    origin = find(opened, f"[id='{link.get_attribute('href').partition('#')[2]}']")
    until(opened, lambda page: origin.get_attribute("open") is not None)
    assert "quickstart/aaaa" in origin.text and "pvcbench verify" in origin.text


def test_a_drill_down_shows_both_sides(opened):
    go(opened, "samples/quickstart/h2o/0.25")
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
    mean = "mean of all samples"
    assert set(drawn) == {f"{side}: {what}" for side in ("h2o at 25%", "pvc at 55%") for what in ("needle", mean)}
    assert len(drawn["pvc at 55%: needle"]) == 30
    choose(opened, "right", "pvc at 10%")
    assert "below PvC's reach of 38.0%" in find(opened, "#right-panel").text
    assert "pvc at 55%: needle" not in chart(opened, "survival")


def test_samples_are_walked_and_filtered(opened):
    go(opened, "samples/quickstart/h2o/0.25")
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
    go(opened, "samples/quickstart/h2o/0.25")
    find(opened, "#map-part summary").send_keys(Keys.ENTER)
    until(opened, lambda page: find(page, "#map tbody"))  # drawn once the part is open
    heads = [one.get_attribute("textContent") for one in opened.find_elements(By.CSS_SELECTOR, "#map thead th")]
    cell = next(place for place, head in enumerate(heads) if head.startswith("h2o ") and "55" in head) - 1
    square = find(opened, f"#map td[data-sample='3'][data-cell='{cell}']")
    assert square.text in ("0", "100")
    square.click()
    assert Select(find(opened, "#sample")).first_selected_option.text.startswith("0-3,")
    assert Select(find(opened, "#left")).first_selected_option.text == "h2o at 55%"


def board(browser, cell):
    """The texts of a column of the leaderboard's visible rows, by setting."""
    script = """
        const shown = (one) => !one.hidden;
        const texts = (body) => [...body.rows].filter((row) => row.dataset.keys && shown(row))
          .map((row) => row.cells[arguments[0]]?.textContent.trim());
        return [...document.querySelectorAll("#board tbody")].filter(shown).map(texts);"""
    return browser.execute_script(script, cell)


def test_the_leaderboard_sorts_within_each_setting_by_keyboard(opened):
    button = find(opened, "#board button[data-sort=score]")
    head = button.find_element(By.XPATH, "..")
    assert head.get_attribute("aria-sort") == "none" and len(board(opened, 0)) == 2
    for direction, sign in (("descending", -1), ("ascending", 1)):
        button.send_keys(Keys.ENTER)
        assert head.get_attribute("aria-sort") == direction
        for texts in board(opened, 2):
            values = [float(text.split()[0]) for text in texts if text and text[0].isdigit()]
            assert values == sorted(values, key=lambda one, sign=sign: sign * one) and len(values) > 2
        assert board(opened, 2)[1][-2:] == ["out of reach (below 38.0%)"] * 2  # last both times
    for name in ("method", "asked", "kept", "mib", "difference", "p", "n", "prefill", "decode"):
        find(opened, f"#board button[data-sort={name}]").send_keys(Keys.ENTER)
    assert (
        len(opened.find_elements(By.CSS_SELECTOR, "#board th[aria-sort=ascending], #board th[aria-sort=descending]"))
        == 1
    )


def test_the_leaderboard_filters(opened):
    assert find(opened, "#board-count").text == "10 of 10 cells shown"
    choose(opened, "board-size", "55%")
    assert board(opened, 1) == [["all", "55%", "55%"]]
    choose(opened, "board-size", "all")
    choose(opened, "board-task", "perplexity")
    assert board(opened, 1) == [["all", "25%", "50%"]]
    choose(opened, "board-task", "all")
    choose(opened, "board-protocol", "the question is seen before the cache is cut; later tokens are all kept")
    assert len(board(opened, 1)) == 1 and find(opened, "#board-count").text == "7 of 10 cells shown"


# ---------------------------------------------------------------------------------------------- for everybody

CHECKS = """
    const lacking = [];
    const say = (what, one) => lacking.push(`${what}: ${one.outerHTML.slice(0, 80)}`);
    const visible = (one) => one.getClientRects().length > 0;
    for (const one of document.querySelectorAll("select, input, button, a[href]")) {
      const own = one.tagName === "SELECT" ? "" : one.textContent.trim() || one.getAttribute("aria-label");
      if (!own && !(one.labels && one.labels.length)) say("no name", one);
    }
    for (const one of document.querySelectorAll("table")) if (visible(one) && !one.caption) say("no caption", one);
    for (const one of document.querySelectorAll("th")) if (!one.scope) say("no scope", one);
    for (const one of document.querySelectorAll("img")) if (!one.alt) say("no alt", one);
    let level = 0;
    for (const one of document.querySelectorAll("h1, h2, h3, h4")) {
      const own = Number(one.tagName[1]);
      if (own > level + 1) lacking.push(`heading skips: ${one.textContent}`);
      level = own;
    }
    const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
    if (new Set(ids).size !== ids.length) lacking.push("an id twice");
    return lacking;"""
CONTRAST = """
    const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const behind = (one) => {
      for (; one; one = one.parentElement) {
        const colour = numbers(getComputedStyle(one).backgroundColor);
        if (colour.length === 3 || colour[3] > 0) return colour;
      }
      return [255, 255, 255];
    };
    const low = [];
    for (const one of document.querySelectorAll("body *")) {
      const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!own || !one.getClientRects().length || one.closest("svg, :disabled, script")) continue;
      const [a, b] = [light(numbers(getComputedStyle(one).color)), light(behind(one))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) low.push(`${ratio.toFixed(2)}: ${one.outerHTML.slice(0, 120)}`);
    }
    return low;"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_headings_and_contrast(opened, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        go(opened, "samples/quickstart/h2o/0.25")
        for part in opened.find_elements(By.CSS_SELECTOR, "details"):
            opened.execute_script("arguments[0].open = true", part)
        until(opened, lambda page: page.find_elements(By.CSS_SELECTOR, "#map td"))
        assert opened.execute_script(CHECKS) == []
        assert opened.execute_script(CONTRAST) == []
        paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_first_tab_stop_skips_to_the_answer(opened):
    find(opened, "body").send_keys(Keys.TAB)
    first = opened.switch_to.active_element
    assert first.text == "Skip to the answer" and first.rect["x"] >= 0
    assert opened.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    first.send_keys(Keys.ENTER)
    assert opened.execute_script("return document.activeElement.id") == "main"


def test_printed_it_has_its_tables_and_no_controls(opened):
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert find(opened, "#board").is_displayed() and find(opened, ".verdict").is_displayed()
        assert not any(one.is_displayed() for one in opened.find_elements(By.CSS_SELECTOR, ".controls, nav, .bar"))
        assert find(opened, ".tall").value_of_css_property("overflow-x") == "visible"
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_without_a_script_every_answer_is_shown(opened, report):
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened.get(report.as_uri())
        assert len([one for one in opened.find_elements(By.CSS_SELECTOR, ".answer") if one.is_displayed()]) == 2
        assert not find(opened, "#setting").is_displayed() and find(opened, "#board").is_displayed()
    finally:
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
