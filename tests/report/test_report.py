"""The report: its numbers are those of `stats` and `likelihood`, its texts cannot become markup, its page is whole."""

import copy
import gzip
import hashlib
import html
import re
import shlex
import shutil
import subprocess
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from pvcbench.cli.main import main as command
from pvcbench.config import compose
from pvcbench.plots.style import LOOKS, OTHERS
from pvcbench.report import (
    command_again,
    html_page,
    leaderboard,
    needle_grid,
    packed,
    provenance,
    relative_times,
    samples,
    scores,
    write_page,
)
from pvcbench.runs import result
from pvcbench.runs.rows import load_table
from pvcbench.stats import perplexity, significance, summaries
from rows import EVIL, needle_rows, perplexity_rows, table, write_run

RESULTS = Path(__file__).parents[2] / "results"
METHODS, BUDGETS = ("full", "pvc", "h2o"), (0.1, 0.25, 0.55)
STORED = {"identity": {"methods": {name: {} for name in METHODS}, "budgets": [repr(one) for one in BUDGETS]}}


@pytest.fixture(scope="module")
def made():
    return needle_rows(repeats=2, methods=METHODS, budgets=BUDGETS)


@pytest.fixture
def rows(made):
    return table(copy.deepcopy(made))


def cell(run, method, budget, part=0):
    return next(one for one in run["parts"][part]["cells"] if (one["method"], one["budget"]) == (method, budget))


def said(capsys, *arguments):
    """The exit code and what was printed."""
    code = command(["report", *(str(argument) for argument in arguments)])
    return code, capsys.readouterr()


def data_of(text, kind="cells"):
    """The packed blocks of a page, as a browser unpacks them."""
    return [packed.unpacked(block) for block in re.findall(rf'id="{kind}-block-\d+">([^<]*)</script>', text)]


def lines_of(rows):
    """The leaderboard of some rows by method and budget."""
    compared = significance.compared(rows)
    lines = leaderboard.lines_of(scores.run_of(rows, compared), compared, relative_times.of(rows), {})
    return {(line["method"], line["budget"]): line for line in lines}


# ---------------------------------------------------------------------------------------------- numbers


def test_cells_are_the_summarys(rows):
    run, summary = scores.run_of(rows), summaries.summarize(rows)
    assert (run["metric"], run["scale"], run["bounded"], run["lower"]) == ("accuracy, %", 100, True, False)
    assert len(run["parts"][0]["cells"]) == len(summary)
    for line in summary.itertuples():
        one = cell(run, line.method, line.budget)
        for name in ("score", "low", "high", "difference", "difference_low", "difference_high"):
            expected = getattr(line, name)
            assert one[name] == (None if np.isnan(expected) else pytest.approx(100 * expected, abs=1e-6)), name
        assert (one["samples"], one["errors"], one["error"]) == (line.samples, line.errors, one["error"] or None)
    lost = cell(run, "pvc", "0.1")
    assert lost["score"] is None and lost["kept"] is None and lost["error"] == "below PvC's reach of 38.0%"
    own = rows[(rows["method"] == "h2o") & (rows["budget"] == "0.25")]["spans_kept"].map(lambda spans: spans["needle"])
    assert cell(run, "h2o", "0.25")["needle"] == pytest.approx((100 * np.mean(list(own), 0)).tolist(), abs=1e-4)


def test_methods_look_as_in_the_figures(rows):
    found = {method["name"]: method for method in scores.run_of(rows)["methods"]}
    assert list(found) == ["full", "h2o", "pvc"] and {name: one["colour"] for name, one in found.items()} == {
        name: LOOKS[name][0] for name in found
    }
    pvc = found["pvc"]
    assert (found["h2o"]["symbol"], found["h2o"]["dash"], pvc["reach_entries"]) == ("square", "dash", 38.0)
    assert pvc["reach"] == pytest.approx(38.0, abs=0.01)  # of bytes: entries are whole


def test_likelihoods_are_perplexities(tmp_path):
    rows = table(perplexity_rows())
    run, shown = scores.run_of(rows), perplexity.shown(rows).set_index(["method", "budget"])
    assert run["lower"] and not run["bounded"] and run["metric"] == "perplexity"
    for key in (("h2o", "0.25"), ("h2o", "0.5")):
        one = cell(run, *key)
        assert one["score"] == pytest.approx(shown.loc[key, "perplexity"], abs=1e-6)
        assert one["difference"] == pytest.approx(shown.loc[key, "nll_difference"], abs=1e-6)
        assert one["difference_low"] < one["difference"] < one["difference_high"]
    entry = lines_of(rows)["h2o", "0.25"]
    assert entry["difference"] == f"{shown.loc[('h2o', '0.25'), 'nll_difference']:+.3f}"
    assert entry["sort"]["score"] == cell(run, "h2o", "0.25")["score"]
    one = samples.samples_of(rows, {}, 1)["samples"][0]["cells"]
    nll = rows[(rows["sample"] == "doc0#0") & (rows["budget"] == "0.25")]["token_nll"].iloc[0]
    assert one[1]["nll"]["nll"] == pytest.approx([np.mean(nll[:32]), np.mean(nll[32:])], abs=1e-6)
    assert one[1]["nll"]["position"] == [513 + 15.5, 513 + 47.5]


def test_every_data_set_has_its_part(rows):
    rows["stratum"] = np.where(rows["cluster"].str.endswith(("0", "2", "4", "6", "8")), "even", "odd")
    run = scores.run_of(rows)
    assert [part["name"] for part in run["parts"]] == ["all samples", "set even", "set odd"]
    own = rows[(rows["method"] == "h2o") & (rows["budget"] == "0.55") & (rows["stratum"] == "even")]
    assert cell(run, "h2o", "0.55", 1)["score"] == pytest.approx(100 * own["score"].astype(float).mean())


def test_the_board_says_sizes_and_why_not(rows):
    board = lines_of(rows)
    assert board["full", "1.0"]["difference"] == "" and board["full", "1.0"]["asked"] == "all"
    lost = board["pvc", "0.1"]
    assert lost["score"] is None and lost["why"] == "out of reach (below 38.0%)" and lost["sort"]["score"] is None
    own = board["h2o", "0.55"]
    assert (own["n"], own["size"], own["complete"]) == ("10", "55.0%", True) and own["mib"].startswith("12.")
    assert [line["sort"]["asked"] for line in board.values()] == [0, 1, 2, 3, 3, 1, 2]


def test_every_look_of_the_figures_is_one_of_the_page():
    for _, marker, line in (*LOOKS.values(), *OTHERS):
        assert scores.SYMBOLS[marker] and scores.DASHES[line]


def test_grids_hold_every_square(rows):
    grid = needle_grid.of(rows)
    panels = {panel["name"]: panel["cells"] for panel in grid["panels"]}
    assert {name: len(cells) for name, cells in panels.items()} == {"full cache": 1, "h2o": 3, "pvc": 3}
    assert grid["depths"] == ["0", "25", "50", "75", "100"] and grid["sizes"] == ["10%", "25%", "55%"]
    own = rows[(rows["method"] == "h2o") & (rows["budget"] == "0.55")]
    depth = own["sample_info"].map(lambda info: info["depth"])
    expected = [own[depth == one]["score"].astype(float).mean() for one in (0, 25, 50, 75, 100)]
    squares = panels["h2o"][2]["squares"]
    assert squares == [[[mean, f"{round(2 * mean)}/2"]] for mean in expected]
    assert panels["pvc"][:2] == [{"why": "out of reach (below 38%)"}] * 2
    assert needle_grid.of(table(perplexity_rows())) is None


# ---------------------------------------------------------------------------------------------- samples


def test_samples_show_their_own_prompt_only(rows):
    sha = rows[rows["sample"] == "0-1"]["prompt_sha256"].iloc[0]
    known = {"question": "What?", "excerpt": [{"from": 0, "to": 3, "text": "The", "span": None}]}
    prompts = {"0-0": known | {"prompt_sha256": "another"}, "0-1": known | {"prompt_sha256": sha}}
    found = samples.samples_of(rows, prompts, 3)
    assert (len(found["samples"]), found["total"]) == (3, 10)
    assert [one["prompt"] is None for one in found["samples"]] == [True, False, True]
    assert found["samples"][1]["prompt"] == {"question": "What?", "pieces": known["excerpt"]}
    keys = [(one["method"], one["budget"]) for one in found["cells"]]
    assert keys[0] == ("full", "1.0") and len(keys) == 7
    row = rows[(rows["sample"] == "0-1") & (rows["method"] == "h2o") & (rows["budget"] == "0.25")].iloc[0]
    own = found["samples"][1]["cells"][keys.index(("h2o", "0.25"))]
    assert own["spans"]["needle"] == pytest.approx([100 * share for share in row["spans_kept"]["needle"]])
    assert (own["score"], own["output"], own["mib"]) == (row["score"], row["output"], round(row["kv_bytes"] / 2**20, 6))
    lost = found["samples"][1]["cells"][keys.index(("pvc", "0.1"))]
    assert lost["error"] == "below PvC's reach of 38.0%" and lost["output"] is None and lost["kept"] is None


def test_long_outputs_are_cut_and_missing_rows_are_none(rows):
    rows.loc[(rows["sample"] == "0-0") & (rows["method"] == "full"), "output"] = "x" * 5000
    rows = rows[~((rows["sample"] == "0-0") & (rows["method"] == "h2o"))]
    found = samples.samples_of(rows, {}, 1)
    cells = found["samples"][0]["cells"]
    assert len(cells[0]["output"]) == 2000 and cells[0]["cut"]
    lost = [cell for key, cell in zip(found["cells"], cells, strict=True) if key["method"] == "h2o"]
    assert lost == [None] * 3 and cells.count(None) == 3


# ---------------------------------------------------------------------------------------------- where from, what not


def test_absences_are_named(rows):
    found = provenance.absences(rows, STORED, [])
    assert found == [
        f"pvc at {budget}: 10 of 10 rows have no score: below PvC's reach of 38.0%" for budget in ("10%", "25%")
    ]
    rows = rows[(rows["method"] != "pvc") & ~((rows["method"] == "h2o") & (rows["budget"] == "0.25"))]
    rows = rows[~((rows["sample"] == "0-3") & (rows["method"] == "h2o"))]
    stored = STORED | {"config": {"limit": 30}}
    assert provenance.absences(rows, stored, [f"0-{number}" for number in range(14)]) == [
        "pvc: no row at all",
        "h2o: no row at 25%",
        "1 of 10 samples lack rows of some of the 3 cells: 0-3",
        "4 of 14 samples asked for are not measured yet",
        "limit=30 asked for more samples than the 10 measured (or than the task has)",
    ]


def test_runs_without_rows_are_found(made, tmp_path):
    write_run(tmp_path / "default" / "aaaa", made)
    write_run(tmp_path / "default" / "bbbb", [])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("a: b: c")  # nobody's run
    assert provenance.without_rows(tmp_path) == ["default/bbbb"]
    assert "default/bbbb" in html_page.build(tmp_path, 1)[0].split('id="absent"')[1].split('id="origins"')[0]


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.rglob("config.yaml")), ids=lambda p: p.name)
@pytest.mark.sampled(7)
def test_commands_ask_for_the_same_again(folder):
    stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    found, problem = command_again.command(stored)
    assert problem is None
    words = shlex.split(found)
    assert words[:3] == ["python", "-m", "pvcbench"]
    again = OmegaConf.to_container(compose.composed(words[3:]))
    assert again["experiment"] == stored["config"]["experiment"]
    for name in ("model", "task", "methods", "budgets", "seed", "query_aware", "decode", "engine"):
        left, right = (
            dict(command_again.leaves({name: stored["config"][name]})),
            dict(command_again.leaves({name: again[name]})),
        )
        assert left.items() <= right.items(), name


def test_the_quickstarts_command_is_the_readmes():
    stored = yaml.safe_load((RESULTS / "quickstart" / "a9b99b9e9929" / "config.yaml").read_text(encoding="utf-8"))
    words = shlex.split(command_again.command(stored)[0])[3:]
    assert words == [
        "task=needle",
        "method=[pvc,h2o,streaming_llm,snapkv,random]",
        "task.repeats=6",
        "experiment=quickstart",
    ]


def test_what_no_command_can_say():
    stored = yaml.safe_load((RESULTS / "quickstart" / "a9b99b9e9929" / "config.yaml").read_text(encoding="utf-8"))
    own = copy.deepcopy(stored)
    own["identity"]["task"]["name"] = "mine"
    assert command_again.command(own) == (None, "measured from Python with a task of its own")
    old = copy.deepcopy(stored)
    old["config"]["methods"]["pvc"]["gone"] = 1
    assert command_again.command(old)[0] is None and "gone" in command_again.command(old)[1]
    assert command_again.command({"config": {}, "identity": {"task": {"name": "x"}}})[0] is None


# ---------------------------------------------------------------------------------------------- the page


def test_texts_of_models_stay_texts(made, tmp_path):
    hostile = copy.deepcopy(made)
    for row in hostile:
        row["output"] = None if row["output"] is None else EVIL
        row["answers"], row["method"] = [EVIL], row["method"].replace("h2o", "h2o<script>")
        row["error"] = row["error"] and EVIL
    write_run(tmp_path / "x<script>y" / "aaaa", hostile)
    text, runs = html_page.build(tmp_path, 10)
    assert runs == 1 and "<script>window" not in text and "<img src=x" not in text
    assert re.findall(r"<script\b[^>]*>", text) == [
        '<script type="text/plain" id="curves-block-0">',
        '<script type="text/plain" id="cells-block-0">',
        '<script type="module">',
    ]  # of which a browser runs the last alone
    [run] = data_of(text)
    outputs = {cell["output"] for one in run["samples"] for cell in one["cells"] if cell["output"]}
    assert outputs == {EVIL} and run["samples"][0]["answers"] == [EVIL]
    assert "h2o&lt;script&gt;" in text and html.escape("x<script>y", quote=False) in text


def test_the_policy_names_our_script_and_nothing_else(made, tmp_path):
    write_run(tmp_path / "default" / "aaaa", made)
    text, _ = html_page.build(tmp_path, 10)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    [script] = re.findall(r'<script type="module">(.*?)</script>', text, re.S)
    [allowed] = re.findall(r"'sha256-([^']+)'", policy)
    assert allowed == b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and "http" not in policy and "connect" not in policy
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", outside)


def test_every_number_leads_to_samples_and_to_a_command(made, tmp_path):
    write_run(tmp_path / "default" / "aaaa", made)
    text, _ = html_page.build(tmp_path, 10)
    anchors, ids = set(re.findall(r'href="#([^"]+)"', text)), set(re.findall(r'\bid="([^"]+)"', text))
    samples_ = {anchor for anchor in anchors if anchor.startswith("samples/")}
    keys = {(row["method"], row["budget"]) for row in made if row["score"] is not None}
    asked = {tuple(anchor.split("/")[2:]) for anchor in samples_ if anchor.startswith("samples/default/")}
    assert keys <= asked | {("pvc", "0.1"), ("pvc", "0.25")} and asked == keys | {("pvc", "0.1"), ("pvc", "0.25")}
    assert anchors - samples_ <= ids
    for row in re.findall(r"<tr[^>]*data-keys=.*?</tr>", text, re.S):
        assert 'href="#origin-' in row


def test_a_page_says_where_the_full_cache_fails(made, tmp_path):
    rows = [row | ({"score": 0.0} if row["reference"] else {}) for row in copy.deepcopy(made)]
    write_run(tmp_path / "default" / "aaaa", rows)
    text, _ = html_page.build(tmp_path, 10)
    first = text.split('id="leaderboard"')[0]
    assert "This comparison means little." in first and "answers none of 10" in first


def test_runs_of_one_setting_are_one_answer(made, tmp_path):
    """Each method in a run of its own, as two commands leave them: they stand in one table, and share their samples."""
    for place, names in (("aaaa", ("full", "h2o")), ("bbbb", ("full", "pvc"))):
        write_run(tmp_path / "default" / place, [row for row in made if row["method"] in names])
    text, runs = html_page.build(tmp_path, 10)
    assert runs == 2 and text.count('class="answer"') == 1
    [cells] = data_of(text)
    assert {cell["method"] for cell in cells["cells"]} == {"full", "h2o", "pvc"} and cells["total"] == 10
    row = next(row for row in re.findall(r"<tr[^>]*data-keys=.*?</tr>", text, re.S) if 'data-method="pvc"' in row)
    assert "bbbb" in row and "aaaa" not in row


def test_the_same_results_give_the_same_page(made, tmp_path):
    for place in ("one/results", "two/results"):
        write_run(tmp_path / place / "default" / "aaaa", made)
    assert html_page.build(tmp_path / "one" / "results", 5) == html_page.build(tmp_path / "two" / "results", 5)
    assert str(tmp_path) not in html_page.build(tmp_path / "one" / "results", 5)[0]


def test_speeds_have_their_table_and_figures(tmp_path):
    source = RESULTS / "pyramidinfer_throughput"
    shutil.copytree(source, tmp_path / source.name)
    drawn = result.draw(load_table(source), tmp_path / "drawn")
    shutil.rmtree(tmp_path / source.name / "c850763c70fe" / "figures", ignore_errors=True)  # as in a fresh clone
    text, _ = html_page.build(tmp_path, 10)
    assert not (tmp_path / source.name / "c850763c70fe" / "figures").exists()
    part = text.split('id="speed"')[1].split('id="absent"')[0]
    assert "batch 4, 512 + 24 tokens" in part and "<td>1.05 [1.02, 1.07]</td>" in part and "tok/s" in part
    pictures = re.findall(r'<img data-block="([^"]+)" data-kind="image/([a-z+]+)" alt="([^":]+):', part)
    assert [name for *_, name in pictures] == ["decode speed", "paper speed", "peak memory"]
    for block, kind, name in pictures:
        coded = re.search(rf'id="{re.escape(block)}">([^<]*)<', text)[1]
        both = {path.suffix: path.read_bytes() for path in drawn if path.stem == name.replace(" ", "_")}
        assert len(both) == 2 and gzip.decompress(b64decode(coded)) == both["." + kind.removesuffix("+xml")]
        assert len(coded) == min(len(packed.packed(content)) for content in both.values())
    assert "paper_speedup" not in part and 'id="leaderboard"' not in text


# ---------------------------------------------------------------------------------------------- the command


def test_the_command_writes_one_file(made, tmp_path):
    write_run(tmp_path / "results" / "default" / "aaaa", made)
    words, env = [sys.executable, "-m", "pvcbench", "report", "results", "--out", "deep/report"], {"PATH": ""}
    env["PYTHONPATH"] = str(RESULTS.parent)
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert re.fullmatch(r"deep/report/index.html: 1 run, \d\.\d MB\n", done.stdout)
    assert [path.name for path in (tmp_path / "deep" / "report").iterdir()] == ["index.html"]
    assert load_table(tmp_path / "results").shape[0] == len(made)


def test_mistakes_are_one_line(made, tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "good" / "default" / "aaaa", made)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, expected in (
        ([tmp_path / "none"], "there is no folder"),
        ([tmp_path / "empty"], "there are no results"),
        ([tmp_path / "good", "--out", tmp_path / "file" / "x"], "choose another folder with --out"),
        ([tmp_path / "good", "--samples", -1], "--samples must be 0 or more"),
    ):
        code, printed = said(capsys, *arguments)
        assert code == 2 and expected in printed.err and printed.err.count("\n") == 1, printed.err
    monkeypatch.setattr(write_page.importlib.util, "find_spec", lambda name: None)
    code, printed = said(capsys, tmp_path / "good", "--out", tmp_path / "out")
    assert code == 2 and "pip install 'jinja2>=3.1'" in printed.err and not (tmp_path / "out").exists()


def test_failures_are_one_line_too(made, tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "default" / "aaaa", made)

    def broken(*_):
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(html_page, "build", broken)
    code, printed = said(capsys, tmp_path, "--out", tmp_path / "out")
    assert code == 1 and printed.err == "pvcbench: RuntimeError: no luck (PVCBENCH_DEBUG=1 shows where)\n"
