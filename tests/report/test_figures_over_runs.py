"""Pictures and tables over runs: what they show, what they are named, and that --check finds what is not fresh."""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from pvcbench.cli.main import main
from pvcbench.plots import drawn_from, experiment, published, run_figures
from pvcbench.report import figures_over_runs, markdown_latex, settings
from pvcbench.runs.rows import load_table
from pvcbench.stats import significance
from rows import PROTOCOL, needle_rows, table, write_run

METHODS, BUDGETS = ("full", "pvc", "h2o", "random"), (0.1, 0.55)
PICTURES = ("pareto", "differences")


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """The command in a folder of its own: exit code, lines on stdout, stderr."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        code = main(["figures", *arguments])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return run


@pytest.fixture(scope="module")
def rows():
    return table(needle_rows(repeats=4, methods=METHODS, budgets=BUDGETS))


@pytest.fixture(scope="module")
def compared(rows):
    return significance.compared(rows)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --------------------------------------------------------------------------------------------------- the whole folder


def test_everything_is_drawn_twice_the_same_and_checked(script, tmp_path):
    results = tmp_path / "results"
    own = results / "default" / "0123456789ab"
    made = needle_rows(repeats=2, methods=METHODS, budgets=BUDGETS)
    write_run(own, [row | {"sample_info": {}, "spans_kept": {}} for row in made])  # which gives the curve alone
    code, paths, _ = script("results")
    over = [f"results/figures/{name}_default.{ending}" for name in PICTURES for ending in ("png", "svg")]
    assert code == 0 and set(paths) >= {*over, "results/tables/default.md", "results/tables/default.tex"}
    before = {path: path.read_bytes() for path in sorted(results.rglob("*")) if path.is_file()}
    assert script("results/")[0] == 0
    assert before == {path: path.read_bytes() for path in sorted(results.rglob("*")) if path.is_file()}
    assert script("results", "--check") == (0, [], "")

    lines = (own / "rows.jsonl").read_text().splitlines()
    changed = [json.dumps(json.loads(lines[0]) | {"output": "another"}), *lines[1:]]
    (own / "rows.jsonl").write_text("\n".join(changed) + "\n")
    (own / "figures" / "curve.png").unlink()
    (results / "tables" / "old.md").write_text("x")
    code, found, said = script("results", "--check")
    assert code == 1 and "not fresh" in said and said.count("\n") == 1
    assert any(line.startswith("missing: results/default/0123456789ab/figures/curve.png") for line in found)
    for name in ("default/0123456789ab/figures/curve.svg", "figures/pareto_default.png", "tables/default.tex"):
        assert any(line.startswith(f"stale: results/{name}") for line in found), name
    assert any(line.startswith("orphaned: results/tables/old.md") for line in found)
    assert not (own / "figures" / "curve.png").exists()  # nothing was drawn

    code, found, _ = script("results/default", "--check")
    assert code == 1 and not [line for line in found if "results/figures/" in line]
    (results / "tables" / "old.md").unlink()
    assert script("results")[0] == script("results", "--check")[0] == 0


def test_runs_that_are_gone_leave_orphans_until_the_next_drawing(tmp_path):
    made = needle_rows(repeats=1, methods=("full", "h2o"), budgets=(0.55,))
    for name in ("one", "two"):
        write_run(tmp_path / name / "0123456789ab", made)
    assert list(figures_over_runs.draw(load_table(tmp_path), tmp_path))
    (tmp_path / "two" / "0123456789ab" / "rows.jsonl").unlink()
    rows = load_table(tmp_path)
    found = list(figures_over_runs.complaints(rows, tmp_path))
    assert found and all(line.startswith("orphaned: ") and "two" in line for line in found)
    assert list(figures_over_runs.draw(rows, tmp_path))
    assert list(figures_over_runs.complaints(rows, tmp_path)) == []
    assert not list(tmp_path.rglob("*two.*"))


def test_what_was_never_drawn_is_missing_only_where_something_was(tmp_path):
    made = needle_rows(repeats=1, methods=("full", "h2o"), budgets=(0.55,))
    write_run(tmp_path / "one" / "0123456789ab", made)
    assert list(figures_over_runs.complaints(load_table(tmp_path), tmp_path)) == []
    assert list(figures_over_runs.draw(load_table(tmp_path), tmp_path))
    write_run(tmp_path / "two" / "0123456789ab", made)
    found = list(figures_over_runs.complaints(load_table(tmp_path), tmp_path))
    names = ["figures/differences_two", "figures/pareto_two", "tables/two"]
    assert found == [f"missing: {tmp_path / name} (never drawn)" for name in names]


def test_a_folder_never_drawn_into_is_told_in_one_line_and_no_fault(script, tmp_path):
    """As in a fresh clone, where git holds rows and no pictures; one run's failures alone give no picture at all."""
    made = needle_rows(repeats=1, methods=("full", "h2o"), budgets=(0.55,))
    made = [row | {"sample_info": {}, "spans_kept": {}} for row in made]
    for name in ("one", "two"):
        write_run(tmp_path / "results" / name / "0123456789ab", made)
    write_run(tmp_path / "results" / "lost" / "0123456789ab", [row | {"score": None, "error": "x"} for row in made])
    line = "pvcbench: nothing has been drawn yet in {} of 4 folders; `pvcbench figures results` draws it\n".format
    assert script("results", "--check") == (0, [], line(4))
    assert script("results/one")[0] == 0
    assert script("results", "--check") == (0, [], line(3))
    assert script("results")[0] == 0 and script("results", "--check") == (0, [], "")


def write(results, name, seed, rows, lengths=1, **methods):
    """A run of the experiment `exp` with an identity of its own; returns its id."""
    identity = {"model": {"name": "m"}, "seed": seed, "task": {"lengths": lengths}, "budgets": [name]}
    return write_run(results / "exp" / name, rows, identity | {"methods": {"full": {}} | methods})


def test_seeds_are_joined_and_settings_are_not(tmp_path):
    made = needle_rows(repeats=1, methods=("full", "h2o"), budgets=(0.55,))
    runs = [
        write(tmp_path, name, seed, made, lengths, h2o={"normalize": False})
        for name, seed, lengths in (("aaaaaaaaaaaa", 0, 1), ("bbbbbbbbbbbb", 1, 1), ("cccccccccccc", 0, 2))
    ]
    found = dict(settings.groups(load_table(tmp_path)))
    assert set(found) == {f"exp-{runs[0]}", f"exp-{runs[2]}"}
    both, alone = found[f"exp-{runs[0]}"], found[f"exp-{runs[2]}"]
    assert both["sample"].nunique() == 2 * alone["sample"].nunique()
    assert both["cluster"].nunique() == alone["cluster"].nunique()  # the same documents
    assert significance.compared(both)["samples"].tolist() == [10, 10]
    names = {(one.folder, one.name) for one in figures_over_runs.drawings(load_table(tmp_path))}
    assert ("figures", f"curve_exp-{runs[0]}") in names and ("figures", f"curve_exp-{runs[2]}") not in names


def test_methods_of_several_runs_are_joined_unless_a_name_means_two(tmp_path):
    for name, method in (("aaaaaaaaaaaa", "h2o"), ("bbbbbbbbbbbb", "random")):
        write(tmp_path, name, 0, needle_rows(repeats=1, methods=("full", method), budgets=(0.55,)), **{method: {}})
    lost = needle_rows(repeats=1, methods=("full", "h2o"), budgets=(0.25,))
    lost = [row | ({"score": None, "error": "out of memory"} if row["reference"] else {}) for row in lost]
    first = write(tmp_path, "000000000000", 0, lost, h2o={})
    [(name, rows)] = settings.groups(load_table(tmp_path))
    assert name == "exp" and rows["error"].isna().all()  # the full cache of a run that has it
    found = significance.compared(rows)
    assert found[["method", "budget"]].values.tolist() == [
        ["full", "1.0"],
        ["h2o", "0.25"],
        ["h2o", "0.55"],
        ["random", "0.55"],
    ]
    assert set(found["samples"]) == {5}
    other = needle_rows(repeats=1, methods=("full", "h2o"), budgets=(0.75,))
    last = write(tmp_path, "cccccccccccc", 0, other, h2o={"normalize": True})
    assert {name for name, _ in settings.groups(load_table(tmp_path))} == {f"exp-{first}", f"exp-{last}"}


# ----------------------------------------------------------------------------------------------------------- the front


def test_the_front_is_what_nothing_beats():
    cost, value = [1, 2, 2, 3, 4, 1], [0.2, 0.5, 0.4, 0.5, 0.9, 0.2]
    assert experiment.front(cost, value).tolist() == [True, True, False, False, True, True]


def test_pareto_shows_every_cell_hollow_behind_the_front(rows, compared):
    figure = experiment.pareto(rows, compared, experiment.decode_times(rows, rows))
    [axes] = figure.axes
    scored = compared[compared["score"].notna()]
    stairs = next(line for line in axes.get_lines() if line.get_label() == "front")
    points = [line for line in axes.get_lines() if line is not stairs]
    assert len(points) == len(scored) == 6  # the full cache, pvc once, h2o and random twice
    best = experiment.front(scored["kept_bytes"].to_numpy(), scored["score"].to_numpy())
    filled = [to_rgba(line.get_markerfacecolor()) != to_rgba("white") for line in points]
    assert filled == best.tolist() and not all(filled)
    np.testing.assert_allclose(sorted(stairs.get_xdata()), sorted(100 * scored["kept_bytes"][best]))
    assert (
        axes.get_xlabel()
        == "KV cache kept:\nshare of the full cache's bytes, %\n(marks of one size stand side by side)"
    )
    assert axes.get_ylabel() == "accuracy (mean; 1 is the best)"
    assert "no steps of these cells were timed alone" in legend(figure)


def test_a_leaking_reference_is_on_no_front(rows, compared):
    """It is drawn, hollow, and neither the front nor who else stands on it changes with it."""
    leak = compared[compared["method"] == "h2o"].assign(method="oracle_answer", score=1.0, low=1.0, high=1.0)
    figure = experiment.pareto(
        pd.concat([rows, rows[rows["method"] == "h2o"].assign(method="oracle_answer", reads="answer")]),
        pd.concat([compared, leak], ignore_index=True),
        experiment.decode_times(rows, rows),
    )
    before = experiment.pareto(rows, compared, experiment.decode_times(rows, rows))
    stairs = [next(line for line in f.axes[0].get_lines() if line.get_label() == "front") for f in (before, figure)]
    np.testing.assert_array_equal(stairs[0].get_xydata(), stairs[1].get_xydata())
    crosses = [line for line in figure.axes[0].get_lines() if line.get_marker() == "x"]
    assert [tuple(line.get_ydata()) for line in crosses] == [(1.0,)] * len(leak) and len(leak) == 2


def speeds(model="SmolLM2-135M-Instruct"):
    """Rows of a throughput run: two prompt lengths, cells alone."""
    made = []
    for prompt in (64, 1000):
        for method, budget, speed in (("full", "1.0", 50.0), ("h2o", "0.1", 100.0), ("random", "0.55", 80.0)):
            lists = {"decode_tokens_per_s": [0.9 * speed, speed, 1.2 * speed]}
            row = {"task": "throughput", "sample": f"b2-p{prompt}-n8", "method": method, "budget": budget}
            row |= {"sample_info": {"batch": 2, "prompt": prompt, "new_tokens": 8}, "metrics": {"batch": 2}}
            made.append(row | {"repeats": lists, "error": None})
    return table(made).assign(model=model, run="fedcba987654")


def test_decode_times_are_those_of_cells_alone_in_the_nearest_setting(rows, compared):
    times = experiment.decode_times(pd.concat([rows, speeds()], ignore_index=True), rows)
    assert times["step_ms"].tolist() == pytest.approx([40.0, 20.0, 25.0])  # 2 rows a step
    assert set(times["setting"]) == {"batch 2, 1,000 prompt tokens, run fedcba987654"}
    figure = experiment.pareto(rows, compared, times)
    _, timed = figure.axes
    points = [line for line in timed.get_lines() if line.get_label() != "front"]
    assert sorted(line.get_xdata()[0] for line in points) == pytest.approx([20.0, 25.0, 40.0])
    assert "run fedcba987654" in timed.get_xlabel() and "ms" in timed.get_xlabel()
    assert experiment.decode_times(pd.concat([rows, speeds("another")], ignore_index=True), rows).empty


def test_perplexities_are_better_below(compared, rows):
    lower = compared.assign(perplexity=10 - compared["score"], score=10 - compared["score"])
    figure = experiment.pareto(rows, lower, experiment.decode_times(rows, rows))
    first = experiment.pareto(rows, compared, experiment.decode_times(rows, rows))
    faces = [[line.get_markerfacecolor() for line in one.axes[0].get_lines()] for one in (figure, first)]
    assert faces[0] == faces[1] and figure.axes[0].get_ylabel() == "perplexity (lower is better)"


# ----------------------------------------------------------------------------------------------------- the differences


def test_differences_are_filled_where_holm_leaves_them(rows, compared):
    figure = experiment.differences(rows, compared)
    assert [axes.get_title() for axes in figure.axes] == ["pvc", "h2o", "random"]
    seen = 0
    for axes in figure.axes:
        cells = compared[(compared["method"] == axes.get_title()) & compared["score"].notna()].sort_values(
            "kept_fraction"
        )
        points = [line for line in axes.get_lines() if len(line.get_xdata()) == 1]
        np.testing.assert_allclose([line.get_ydata()[0] for line in points], 100 * cells["difference"])
        np.testing.assert_allclose([line.get_xdata()[0] for line in points], 100 * cells["kept_bytes"])
        filled = [to_rgba(line.get_markerfacecolor()) != to_rgba("white") for line in points]
        assert filled == (cells["p_holm"] < 0.05).tolist()
        seen += sum(filled)
    assert seen > 0 and "differs (Holm, 5 tests, 5%)" in legend(figure)


def test_too_few_clusters_are_marked_and_no_pairs_give_no_picture(rows):
    few = rows[rows["sample"].isin(rows["sample"].unique()[:5])]
    assert "too few clusters for a test" in legend(experiment.differences(few, significance.compared(few)))
    alone = rows[~rows["reference"]]
    assert experiment.differences(alone, significance.compared(alone)) is None


# ---------------------------------------------------------------------------------------------------------- the tables


def test_the_table_has_every_cell_with_intervals_and_marks(rows, compared):
    frame, notes = markdown_latex.scores(rows, compared, published.beside(rows))
    assert list(frame.columns[:6]) == ["method", "asked", "bytes, %", "entries, %", "MiB", "n"]
    assert len(frame) == len(compared)
    random = frame[(frame["method"] == "random") & (frame["asked"] == "10%")].iloc[0]
    line = compared[(compared["method"] == "random") & (compared["budget"] == "0.1")].iloc[0]
    assert random["accuracy, %"] == f"{100 * line.score:.1f} [{100 * line.low:.1f}, {100 * line.high:.1f}]"
    assert random["minus full"].startswith(f"{100 * line.difference:+.1f} [") and random["minus full"].endswith("]*")
    assert line.p_holm < 0.05 and random["p (Holm)"] == (f"{line.p_holm:.3f}" if line.p_holm >= 0.001 else "<0.001")
    lost = frame[(frame["method"] == "pvc") & (frame["asked"] == "10%")].iloc[0]
    assert (lost["bytes, %"], lost["accuracy, %"], lost["n"]) == ("-", "-", "0")
    assert any("pvc at 10%: 20 of 20" in note and "reach" in note for note in notes)
    assert any("5 comparisons" in note for note in notes)


def test_markdown_and_latex_hold_the_same_cells(rows, compared):
    frame, notes = markdown_latex.scores(rows, compared, published.beside(rows))
    made = markdown_latex.texts(frame, notes, "needle_test", "ab" * 32)
    body = [line for line in made["md"].splitlines() if line.startswith("| ")]
    assert len(body) == 2 + len(frame) and {line.count(" | ") for line in body} == {len(frame.columns) - 1}
    tex = made["tex"]
    assert tex.startswith(f"% {drawn_from.KEY}: {'ab' * 32}\n")
    assert all(
        rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{", r"\label{tab:needle-test}")
    )
    lines = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + len(frame) and {line.count(" & ") for line in lines} == {len(frame.columns) - 1}
    for line in lines:
        assert "%" not in line.replace(r"\%", "") and "_" not in line.replace(r"\_", "")
    caption = next(line for line in tex.splitlines() if line.startswith(r"\caption"))
    assert "_" not in caption.replace(r"\_", "") and "%" not in caption.replace(r"\%", "")


# ------------------------------------------------------------------------------------------------------ published ones


def longbench_rows(model="meta-llama/Meta-Llama-3-8B-Instruct", sets=16):
    made = []
    for row in needle_rows(lengths=(4200,), repeats=4, methods=("full", "h2o"), budgets=(0.5,)):
        for number in range(sets):
            own = row | {"task": "longbench", "stratum": f"set{number}", "sample": f"{row['sample']}-{number}"}
            own |= {"cluster": own["sample"], "budget": "1.0" if row["reference"] else "2048", "spans_kept": {}}
            made.append(own | {"sample_info": {"set": f"set{number}"}})
    return table(made).assign(model=model)


def test_published_scores_stand_beside_the_same_setting_only():
    rows = longbench_rows()
    found = published.beside(rows)
    assert len(found) == 13 and set(found["scale"]) == {100} and found["source"].str.contains("2406.02069").all()
    full = found[found["method"] == "full"]
    assert full["score"].tolist() == [41.46]
    agnostic = rows.assign(protocol=[PROTOCOL | {"query_aware": False}] * len(rows))
    for other in (longbench_rows(model="Qwen/Qwen3-8B"), longbench_rows(sets=1), agnostic):
        assert published.beside(other).empty
    assert published.beside(rows.assign(prompt_tokens=9000)).empty
    assert published.beside(table(needle_rows(repeats=1))).empty


def test_published_scores_are_drawn_hollow_and_in_the_table():
    rows = longbench_rows()
    figure = run_figures.curve(rows)
    axes = figure.axes[0]
    theirs = {line.get_label(): line for line in axes.get_lines() if line.get_label().endswith(", published")}
    assert set(theirs) == {
        f"{name}, published" for name in ("full cache", "SnapKV", "H2O", "StreamingLLM", "PyramidKV")
    }
    mine = theirs["H2O, published"]
    assert mine.get_markerfacecolor() == "none" and mine.get_linestyle() == "None"
    np.testing.assert_allclose(mine.get_ydata(), [0.3389, 0.3537, 0.3935])
    tokens = rows["prompt_tokens"].mean()
    np.testing.assert_allclose(mine.get_xdata(), [100 * size / tokens for size in (64, 128, 2048)])
    assert list(theirs["full cache, published"].get_ydata()) == [0.4146] * 2
    assert any("2406.02069" in text for text in legend(figure))
    frame, notes = markdown_latex.scores(rows, significance.compared(rows), published.beside(rows))
    assert frame["published"].tolist() == ["41.46", "39.35"] and "2406.02069" in notes[-1]
    sets, _ = markdown_latex.by_set(rows)
    assert list(sets.columns) == ["method", "asked", *(f"set{number}" for number in range(16)), "mean"]
    score = rows[(rows["method"] == "h2o") & (rows["stratum"] == "set3")]["score"].mean()
    assert sets.iloc[1][["method", "set3"]].tolist() == ["h2o", f"{100 * score:.1f}"]
    assert drawn_from.data_of(rows) != drawn_from.fingerprint(rows) and not published.mark(
        axes, rows.assign(model="m"), {}
    )


def test_every_published_number_has_a_source():
    paths = sorted(published.FOLDER.glob("*.csv"))
    assert len(paths) >= 6
    for path in paths:
        lines = pd.read_csv(path)
        assert lines["source"].notna().all() and (lines["source"].str.len() > 10).all(), path.name
    known = published.numbers()
    assert {"longbench", "ruler", "perplexity"} == set(known["task"])
    assert all(isinstance(budget, str) for budget in known["budget"])
    ruler = known[(known["task"] == "ruler") & (known["system"] == "random")].set_index("budget")["score"]
    assert ruler.to_dict() == {"0.9": 91.2, "0.75": 63.0, "0.5": 7.7, "0.25": 0.5, "0.1": 0.2}
