"""`pvcbench compare`: one method against another at the same measured size, one family of tests per call."""

import copy

import numpy as np
import pandas as pd
import pytest

from pvcbench.cli.main import main as command
from pvcbench.runs.rows import load_table
from pvcbench.stats import significance
from rows import needle_rows, table, write_run


@pytest.fixture(scope="module")
def made():
    rows = needle_rows(repeats=4, methods=("full", "h2o", "random"), budgets=(0.1, 0.55))
    for number, row in enumerate(rows):
        if row["method"] == "h2o":
            row["score"] = float(number % 7 > 0)
        elif row["method"] == "random":
            row["score"] = float(number % 3 == 0)
        row["kept_fraction"] = 1.0 if row["method"] == "full" else float(row["budget"])
    return rows


def test_a_line_is_the_paired_difference_of_what_both_answered(made):
    rows = table(copy.deepcopy(made))
    lost = rows.index[(rows["method"] == "random") & (rows["budget"] == "0.1")][:2]
    rows.loc[lost, "score"] = np.nan
    rows.loc[lost, "error"] = "gone"
    line = significance.versus(rows, "h2o", "random", "0.1")
    scores = rows[rows["budget"] == "0.1"].pivot_table(index="sample", columns="method", values="score").dropna()
    difference = scores["h2o"] - scores["random"]
    assert line["samples"] == 18 and line["difference"] == pytest.approx(difference.mean())
    assert line["low"] < line["difference"] < line["high"] and line["entries"] == pytest.approx(0.1)
    assert line["kept"] == pytest.approx(102 / 1024) and line["lost"] == 2  # of the bytes: entries are whole
    assert np.isnan(line["p"])  # what failed on some samples is in no test
    whole = table(copy.deepcopy(made))
    line, back = (significance.versus(whole, *pair, "0.1") for pair in (("h2o", "random"), ("random", "h2o")))
    assert (line["low"] > 0 or line["high"] < 0) == (line["p"] < 0.05) and line["lost"] == 0
    assert back["difference"] == pytest.approx(-line["difference"]) and back["p"] == pytest.approx(line["p"])


def test_the_script_corrects_over_all_folders(made, tmp_path, capsys):
    for name in ("one", "two"):
        write_run(tmp_path / "results" / name / "0123456789ab", made)
    folders = [str(tmp_path / "results" / name) for name in ("one", "two")]
    out = tmp_path / "lines.csv"
    arguments = ["--method", "h2o", "--against", "random@0.1", "random@0.55", "--out", str(out)]
    assert command(["compare", *folders, *arguments]) == 0
    lines = pd.read_csv(out)
    assert lines["run"].tolist() == ["one", "one", "two", "two"] and len(lines) == 4
    np.testing.assert_allclose(lines["p_holm"], significance.holm(lines["p"]), rtol=1e-5)  # six digits written
    assert "p (Holm)" in capsys.readouterr().out


@pytest.mark.parametrize("against, said", [
    ("h2p@0.1", "no method h2p here"),
    ("full@0.1", "full is the full cache"),
    ("full", "full is the full cache"),
    ("random", "write METHOD@BUDGET"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line(made, tmp_path, capsys, against, said):
    write_run(tmp_path / "0123456789ab", made)
    assert command(["compare", str(tmp_path), "--method", "h2o", "--against", against]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_sizes_that_differ_are_refused(made, tmp_path, capsys):
    rows = copy.deepcopy(made)
    for row in rows:
        row["kept_fraction"] += 0.05 * (row["method"] == "random")
    write_run(tmp_path / "0123456789ab", rows)
    assert len(load_table(tmp_path)) == len(rows)
    assert command(["compare", str(tmp_path), "--method", "h2o", "--against", "random@0.55"]) == 2
    assert "55.0% and 60.0%" in capsys.readouterr().err
