"""Names and messages are text: no bracket is a style, no dollar sign a formula, no character a command of LaTeX."""

import io
import re
from types import SimpleNamespace

import pandas as pd
import pytest

from cells import rows_of
from pvcbench.cli import compare, run_table
from pvcbench.plots import published, run_figures
from pvcbench.report import markdown_latex, scores
from pvcbench.stats import perplexity, significance, summaries

NAMES = ("h2o[/red]", "[bold]", "h2o[red]", ":smile:", "a$b$c", r"x\y{z}~^", "[link=file:///etc/passwd]h[/link]", "a|b")


def rows_named(name, why="no [/memory] [red]left[/]"):
    """Rows in which a method, its error and the model carry a name."""
    cells = {"full": [1.0] * 12, name: [1.0] * 10 + [None] * 2, "lost": [None] * 12}
    rows = rows_of(cells, [100] * 12, why=why, stratum=["a[/x]"] * 6 + ["[b]"] * 6)
    return rows.assign(model=f"models/{name}", task=name)


@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_a_run_prints_names_as_they_are(name, tmp_path, capsys):
    rows = rows_named(name)
    summary, parts = perplexity.shown(rows), summaries.breakdown(rows)
    known = {"rows": rows, "summary": summary, "parts": parts, "note": None, "figures": [tmp_path / "[x]" / "a.png"]}
    run_table.show(SimpleNamespace(**known, tracked="[/y]", folder=tmp_path / "[/results]", measured=0, more=0))
    said = capsys.readouterr().out
    plain = re.sub(r"\s+", "", said)
    for text in (name, "no[/memory][red]left[/]", "a[/x]", "[b]", "[x]/a.png", "[/y]", "[/results]"):
        assert text in plain, text


def test_a_note_of_a_shard_is_text(capsys):
    run_table.show(SimpleNamespace(note="Shard 1/2 of [/results] :smile: is finished"))
    assert capsys.readouterr().out.strip() == "Shard 1/2 of [/results] :smile: is finished"


@pytest.mark.parametrize("name", NAMES)
def test_pictures_write_names_as_they_are(name, tmp_path):
    """A name with two dollar signs was a formula: letters in italics, or an error that ended the drawing."""
    rows = rows_named(name)
    run_figures.save(lambda: [("curve", run_figures.curve(rows))], tmp_path, "0" * 64)
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        made = run_figures.curve(rows)
        run_figures._literal(made)
        drawn = io.StringIO()
        made.savefig(drawn, format="svg")
    from html import unescape

    assert f">{name}</text>" in unescape(drawn.getvalue())


def test_a_broken_formula_does_not_end_the_drawing(tmp_path):
    rows = rows_named(r"$\frac$ and $x_$")
    assert run_figures.save(lambda: [("curve", run_figures.curve(rows))], tmp_path, "0" * 64)


def test_powers_of_ten_stay_formulas(tmp_path):
    figure = run_figures.Figure()
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot([1, 1000], [1, 2])
    figure.draw_without_rendering()
    run_figures._literal(figure)
    ticks = [label for label in axes.get_xticklabels() if "mathdefault" in label.get_text()]
    assert ticks and all(label.get_parse_math() for label in ticks)


@pytest.mark.parametrize("name", NAMES)
def test_latex_has_no_bare_command(name):
    rows = rows_named(name)
    frame, notes = markdown_latex.scores(rows, significance.compared(rows), published.beside(rows))
    text = markdown_latex.latex(frame, notes, name, "0" * 64)
    caption = next(line for line in text.splitlines() if line.startswith(r"\caption"))
    inside = caption.removeprefix(r"\caption{").rsplit("}", 1)[0]
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textless|infty)\b(\{\})?|\\[_%&#${}]", "", inside)
    assert not re.search(r"[\\{}~^$%&#_]", bare.replace("$$", "")), bare
    body = markdown_latex.markdown(frame, notes, name, "0" * 64)
    lines = [line for line in body.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_the_comparison_prints_names_as_they_are(capsys):
    rows = rows_of({"full": [1.0] * 12, "h2o[/red]": [1.0] * 12, "[b]": [0.0] * 12}, [100] * 12)
    line = significance.versus(rows, "h2o[/red]", "[b]", "0.4")
    compare.show(pd.DataFrame([{"run": "x[/y]", **line}]).assign(p_holm=line["p"]))
    said = capsys.readouterr().out
    assert "h2o[/red]" in said and "[b]" in said and "x[/y]" in said


def test_the_report_holds_them_as_data():
    run = scores.run_of(rows_named("<b>[/x]"))
    assert {method["name"] for method in run["methods"]} == {"full", "<b>[/x]", "lost"}
