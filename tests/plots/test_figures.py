"""Figures from made-up rows: what is in the axes, what is marked as absent, and the same bytes every time."""

import copy
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from pvcbench.plots import canvas, needle, run_figures
from pvcbench.plots.style import LOOKS, OTHERS, asked, budgets_of, looks, methods_of, ordered, subject
from pvcbench.runs.rows import load_table
from pvcbench.stats import failures, summaries
from rows import needle_rows, table, write_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "figures.py"
METHODS, BUDGETS = ("full", "pvc", "h2o"), (0.1, 0.25, 0.55)
NAMES = ("curve", "needle_grid", "needle_survival", "survival_accuracy")


@pytest.fixture(scope="module")
def made():
    return needle_rows(repeats=2, methods=METHODS, budgets=BUDGETS)


@pytest.fixture
def rows(made):
    return table(copy.deepcopy(made))


def line(axes, label):
    return next(line for line in axes.get_lines() if line.get_label() == label)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def script(*arguments, cwd):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_two_drawings_and_the_script_give_the_same_bytes(made, tmp_path):
    run = tmp_path / "results" / "default" / "0123456789ab"
    write_run(run, made)
    rows = load_table(tmp_path / "results")
    first, second = run_figures.draw(rows, tmp_path / "a"), run_figures.draw(rows, tmp_path / "b")
    assert [path.name for path in first] == [f"{name}.{ending}" for name in NAMES for ending in ("png", "svg")]
    done = script("results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    own = [line for line in done.stdout.splitlines() if line.startswith("results/default/")]
    assert own == [str(Path("results/default/0123456789ab/figures") / path.name) for path in first]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes() == (run / "figures" / one.name).read_bytes(), one.name


def test_script_without_results_says_so_and_exits_with_2(tmp_path):
    done = script("nothing", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("pvcbench: there are no results under nothing")
    assert done.stderr.count("\n") == 1


def test_drawing_leaves_the_settings_of_matplotlib_alone(rows, tmp_path):
    import matplotlib

    matplotlib.rcParams["font.size"] = 17.5
    try:
        run_figures.draw(rows[rows["reference"]], tmp_path)
        assert matplotlib.rcParams["font.size"] == 17.5
    finally:
        matplotlib.rcdefaults()


def test_curve_shows_zeros_at_the_measured_size(rows):
    zero = (rows["method"] == "h2o") & (rows["budget"] == "0.1")
    rows.loc[zero, "score"] = 0.0
    rows.loc[zero, "kv_bytes"] = rows[rows["reference"]]["kv_bytes"].iloc[0] / 8  # measured; 0.1 was asked
    axes = run_figures.curve(rows).axes[0]
    drawn = line(axes, "h2o")
    summary = summaries.summarize(rows)
    expected = summary[summary["method"] == "h2o"].sort_values("kept_bytes")
    np.testing.assert_allclose(drawn.get_xdata(), 100 * expected["kept_bytes"])
    np.testing.assert_allclose(drawn.get_ydata(), expected["score"])
    assert drawn.get_xdata()[0] == pytest.approx(12.5, abs=0.02) and drawn.get_ydata()[0] == 0.0
    assert axes.get_ylim()[0] < 0 and axes.get_ylim()[1] > 1 and axes.get_xlim() == (0, 100)
    assert not drawn.get_clip_on()


def test_curve_has_the_full_cache_as_reference_and_a_size_axis(rows):
    figure = run_figures.curve(rows)
    axes, summary = figure.axes[0], summaries.summarize(rows)
    full = summary[summary["reference"]].iloc[0]
    assert list(line(axes, "full").get_ydata()) == [full["score"]] * 2
    assert f"full cache, {full['mib']:.1f} MiB" in legend(figure)
    figure.savefig(io.BytesIO())
    assert axes.child_axes[0].get_xlabel() == "KV cache, MiB"
    np.testing.assert_allclose(axes.child_axes[0].get_xlim(), (0, full["mib"]), atol=1e-3)  # entries are whole
    title = figure.legends[0].get_title().get_text()
    assert title == subject(rows)
    assert "needle, SmolLM2-135M-Instruct, 1,022 to 1,024 prompt tokens, 10 samples" in title


def test_curve_without_a_common_scale_has_no_size_axis(rows):
    odd = (rows["method"] == "h2o") & (rows["budget"] == "0.55")
    rows.loc[odd, "kv_bytes"] = rows.loc[odd, "kv_bytes"].astype(float) * 1.5
    rows = rows[~rows["reference"]]  # entries are then the axis, and bytes not in proportion
    assert not run_figures.curve(rows).axes[0].child_axes


def test_curve_marks_where_a_method_ends():
    figure = run_figures.curve(table(needle_rows(repeats=2, methods=METHODS, budgets=(0.25, 0.55, 0.75))))
    axes = figure.axes[0]
    assert list(line(axes, "pvc: reach").get_xdata()) == pytest.approx([38.0, 38.0], abs=0.01)  # entries are whole
    assert [text.get_text() for text in axes.texts] == ["pvc ends at 38%"]
    assert min(line(axes, "pvc").get_xdata()) > 38
    assert legend(figure) == ["full cache, 22.5 MiB", "pvc", "h2o", "95% interval"]


def test_marks_of_one_size_stand_beside_each_other_and_their_data_stays(rows):
    axes = run_figures.curve(rows).axes[0]
    axes.figure.draw_without_rendering()
    drawn = [line(axes, name) for name in ("pvc", "h2o")]
    assert drawn[0].get_xdata()[-1] == pytest.approx(drawn[1].get_xdata()[-1], abs=0.5)
    places = [one.get_transform().transform((55.0, 0.5))[0] for one in drawn]
    assert 3 < (places[1] - places[0]) * 72 / axes.figure.dpi < 8  # points


def test_curve_names_what_failed(rows):
    lost = rows[(rows["method"] == "h2o") & (rows["budget"] == "0.25")].index[:3]
    rows.loc[lost, "error"] = "CUDA out of memory"
    rows.loc[lost, ["score", "kept_fraction", "kv_bytes"]] = None
    figure = run_figures.curve(rows)
    assert "h2o at 25%: no score for 3 of 10" in legend(figure)
    assert len(line(figure.axes[0], "h2o").get_xdata()) == 3


def test_curve_of_negative_scores_keeps_its_own_scale(rows):
    rows["score"] = rows["score"].astype(float) - 3.5
    axes = run_figures.curve(rows).axes[0]
    assert axes.get_ylim()[1] < 0


def test_rows_without_scores_give_no_figure(rows, tmp_path):
    lost = rows[rows["method"] == "pvc"]
    lost = lost[lost["error"].notna()]
    assert run_figures.draw(lost[lost["sample_info"].map(len) == 0], tmp_path / "none") == []
    assert run_figures.curve(lost) is None


def test_grid_tells_zero_missing_and_out_of_reach_apart(rows):
    cell = rows[(rows["method"] == "h2o") & (rows["budget"] == "0.25")].copy()
    cell["depth"], cell["length"] = cell["sample_info"].map(lambda info: info["depth"]), 1024
    cell.loc[cell["depth"] == 0, "score"] = 0.0
    cell.loc[cell["depth"] == 25, "score"] = 1.0
    cell = cell[cell["depth"] != 50]
    far = cell["depth"] == 75
    cell.loc[far, "error"], cell.loc[far, "score"] = "below PvC's reach of 38.0%", None
    cell.loc[far, "reach"] = 0.38
    axes = Figure().add_subplot()
    needle.block(axes, 0, cell, ([0, 25, 50, 75], [1024]), "25%", None)
    zero, one, missing, beyond = axes.patches
    assert [text.get_text() for text in axes.texts] == ["\n6 of 8 samples", "0/2", "2/2", "", "reach"]
    assert zero.get_facecolor() == to_rgba(needle.SEQUENTIAL(0.0)) and not zero.get_hatch()
    assert one.get_facecolor() == to_rgba(needle.SEQUENTIAL(1.0)) and not one.get_hatch()
    assert missing.get_hatch() and missing.get_facecolor() == to_rgba("white")
    assert not beyond.get_hatch() and beyond.get_facecolor() not in (zero.get_facecolor(), missing.get_facecolor())


def test_grid_has_a_panel_per_method_and_a_block_per_budget(rows):
    figure = needle.needle_grid(rows)
    panels = figure.axes[:2]
    assert [axes.get_ylabel().split("\n")[0] for axes in panels] == ["pvc", "h2o"]
    pvc, h2o = ([text.get_text() for text in axes.texts] for axes in panels)
    assert [text for text in pvc if "%" in text and "(" not in text] == ["10%", "25%", "55%"] and "full cache" in pvc
    assert pvc.count("out of\nreach\n(38%)") == 2 and "full cache" not in h2o
    assert [len(axes.patches) for axes in panels] == [1 + 1 + 5 + 5, 4 * 5]
    good = rows[(rows["method"] == "h2o") & (rows["budget"] == "0.55")]
    deepest = good[good["sample_info"].map(lambda info: info["depth"] == 100)]
    of_budget = [text for text in h2o if "/" in text][10:15]
    assert of_budget[-1] == f"{deepest['score'].sum():g}/{len(deepest)}"


def test_a_block_says_what_was_kept_where_that_is_not_what_was_asked(rows):
    cell = rows[(rows["method"] == "h2o") & (rows["budget"] == "0.25")]
    assert needle.kept_of(cell, cell) == ""
    assert needle.kept_of(cell.assign(budget="256"), cell) == f"kept {100 * cell['kept_fraction'].mean():.1f}%"
    assert needle.kept_of(cell, cell.assign(kept_fraction=0.3).head(8)) == "kept 30.0%\n8 of 10 samples"


def test_tasks_without_depth_and_spans_get_the_curve_only(rows, tmp_path):
    rows["sample_info"] = [{} for _ in range(len(rows))]
    rows["spans_kept"] = [{} for _ in range(len(rows))]
    assert needle.needle_grid(rows) is None
    assert {path.stem for path in run_figures.draw(rows, tmp_path)} == {"curve"}


def test_survival_lines_are_means_over_samples_with_gaps_for_layers_that_keep_all(rows):
    rows["spans_kept"] = [{"needle": [1.0, None, (index % 2) / 2]} for index in range(len(rows))]
    figure = needle.needle_survival(rows)
    h2o = next(axes for axes in figure.axes if axes.get_title() == "h2o")
    drawn = line(h2o, "25%").get_ydata()
    numbers = np.flatnonzero((rows["method"] == "h2o") & (rows["budget"] == "0.25"))
    np.testing.assert_allclose(drawn, [100, np.nan, 100 * np.mean(numbers % 2) / 2])
    assert list(line(h2o, "full cache").get_ydata()) == [100, 100]
    assert any(axes.get_title() == "pvc (no value at 10%, 25%)" for axes in figure.axes)
    assert [text.get_text() for text in h2o.texts] == ["10, 25, 55%"]  # one place: one label
    mean = line(h2o, "mean of 25%")
    assert mean.get_ydata()[0] == pytest.approx(100 * np.mean((1 + numbers % 2 / 2) / 2))
    assert mean.get_xdata()[0] > len(drawn)


def survivors(rows):
    """Five h2o answers and one of pvc with a known survival."""
    h2o = rows[(rows["method"] == "h2o") & (rows["budget"] == "0.25")].head(5).copy()
    shares = ([0, 0], [0.1, 0.2], [0.2, 0.2], [0.9, None], [1, 1])
    h2o["spans_kept"] = [{"needle": list(share)} for share in shares]
    h2o["score"] = [0.0, 1.0, 0.5, 1.0, 1.0]
    other = h2o.head(1).assign(method="pvc", score=1.0)
    full = h2o.head(1).assign(method="full", reference=True, score=1.0)
    return full, h2o, other


def test_survival_table_counts_by_method_and_pooled(rows):
    counted = needle.survival_table(pd.concat(survivors(rows)))
    bins = (("0", 0), ("0-20", 1), ("20-40", 0), ("80-100", 1), ("100", 1))
    h2o = [("h2o", survival, 1, hits) for survival, hits in bins]
    pooled = [("all methods", *rest) for _, *rest in h2o]
    pooled[0] = ("all methods", "0", 2, 1)
    counts = counted[["method", "survival", "samples", "hits"]]
    assert list(counts.itertuples(index=False, name=None)) == [*pooled, ("pvc", "0", 1, 1), *h2o]


def test_survival_accuracy_has_intervals_over_prompts_and_counts(rows):
    figure = needle.survival_accuracy(pd.concat(survivors(rows)))
    pooled = figure.axes[0]
    assert pooled.get_title() == "all methods"
    assert [text.get_text() for text in pooled.texts] == ["1/2", "1/1", "0/1", "1/1", "1/1"]
    points, _, (bars,) = pooled.containers[0]
    np.testing.assert_allclose(points.get_ydata(), [0.5, 1, 0, np.nan, np.nan, 1, 1])
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], summaries.wilson(0.5, 1))  # two methods, one prompt


def test_known_methods_keep_their_colour_and_others_get_one_of_their_own():
    assert looks(["h2o", "pvc"])["pvc"] == looks(["full", "pvc", "mine"])["pvc"] == LOOKS["pvc"]
    names = [f"method_{number}" for number in range(len(OTHERS) - len(LOOKS))]
    chosen = looks(["pvc", *names])
    assert chosen == looks([*reversed(names), "pvc"])
    assert len(set(chosen.values())) == len(chosen)
    few = looks(["pvc", "h2o", "full", "a", "b", "c"])
    assert len({colour for colour, *_ in few.values()}) == 6


def test_methods_have_one_order_everywhere(rows):
    """The known ones as LOOKS has them, others by name, then the floor, and what leaks under whatever name."""
    names = ["random", "zeta", "peek", "h2o", "alpha", "full", "pvc"]
    assert ordered(names, ["peek"]) == ["full", "pvc", "h2o", "alpha", "zeta", "random", "peek"]
    assert methods_of(rows) == ["pvc", "h2o"] == methods_of(summaries.summarize(rows))
    assert list(looks(["h2o", "pvc", "full"])) == ["full", "pvc", "h2o"]
    assert legend(run_figures.curve(rows))[1:3] == ["pvc", "h2o"]
    titles = [axes.get_title().split(" (")[0] for axes in needle.needle_survival(rows).axes]
    assert titles == [axes.get_ylabel().split("\n")[0] for axes in needle.needle_grid(rows).axes[:2]] == ["pvc", "h2o"]


def test_labels_that_would_touch_are_moved_apart():
    assert canvas.apart([5, 1, 1.5], 1) == [5, 0.75, 1.75]
    assert canvas.apart([0, 0, 0], 2, low=0) == [0, 2, 4] and canvas.apart([9, 10], 2, high=10) == [8, 10]
    assert canvas.columns_of(["a", "b"], 7.2) == 2 and canvas.columns_of(["long " * 20] * 3, 7.2) == 1


def test_an_axis_holds_all_values_in_its_scale():
    axes = Figure().add_subplot()
    axes.set_yscale("log")
    canvas.show_all(axes, [1.0, 100.0], [np.nan, np.inf])
    np.testing.assert_allclose(axes.get_ylim(), [10**-0.1, 10**2.1])


def test_budgets_are_ordered_by_size_and_named_in_words(rows):
    rows["budget"] = rows["budget"].replace({"0.1": "512", "0.25": "r=0.9"})
    assert budgets_of(rows) == ["r=0.9", "512", "0.55"]  # measured 25%, half of 1,024 tokens, 55%
    words = {"512": "512 entries", "r=0.9": "r=0.9", "0.55": "55%", "0.005": "0.5%", "1e-05": "0.001%"}
    assert {budget: asked(budget) for budget in words} == words


def test_reach_is_read_from_the_errors():
    found = [["below PvC's reach of 38.0%", None, "below PvC's reach of 40.0%"], [None, "CUDA out of memory"]]
    typed = [failures.typed(pd.DataFrame({"error": errors})) for errors in found]
    assert [failures.reach(rows) for rows in typed] == [39.0, None]
