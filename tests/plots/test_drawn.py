"""Hashes of data: what changes them and what does not, that files carry them, and what a check finds."""

import json

import pandas as pd
import pytest
from matplotlib.figure import Figure

from pvcbench.errors import UserError
from pvcbench.plots import drawn_from, run_figures
from pvcbench.runs.rows import load_table
from rows import needle_rows, table, write_run

MADE = needle_rows(repeats=1, methods=("full", "h2o"), budgets=(0.25,))
DATA = "ab" * 32


def picture():
    figure = Figure()
    figure.subplots().plot([1, 2])
    return figure


def saved(folder, *names, data=DATA, sources=()):
    return run_figures.save(lambda: ((name, picture()) for name in names), folder, data, sources)


def test_order_places_and_empty_columns_do_not_count():
    rows = table(MADE)
    data = drawn_from.fingerprint(rows)
    assert drawn_from.fingerprint(rows.sample(frac=1, random_state=0)) == data
    assert drawn_from.fingerprint(rows.assign(folder="elsewhere", experiment="other", nothing=None)) == data
    assert drawn_from.fingerprint(rows[list(reversed(rows.columns))]) == data


def test_every_value_counts():
    rows = table(MADE)
    found = {drawn_from.fingerprint(rows), drawn_from.fingerprint(rows.iloc[1:]), drawn_from.fingerprint(rows, rows)}
    for column, value in (("score", 0.5), ("output", "other"), ("model", "m"), ("seed", 1), ("budget", "64")):
        changed = rows.copy()
        changed.loc[changed.index[0], column] = value
        found.add(drawn_from.fingerprint(changed))
    nested = rows.copy()
    nested.at[nested.index[1], "spans_kept"] = {"needle": [0.5]}
    assert len(found | {drawn_from.fingerprint(nested)}) == 9


def test_a_run_has_the_same_hash_alone_and_among_others(tmp_path):
    """Among others pandas turns whole numbers into floats and fills columns that a run lacks."""
    write_run(tmp_path / "a" / "111111111111", MADE)
    other = [row | {"extra": 1, "budget_entries": None} for row in MADE]
    write_run(tmp_path / "b" / "222222222222", other)
    alone = load_table(tmp_path / "a")
    together = load_table(tmp_path)
    among = together[together["folder"] == str(tmp_path / "a" / "111111111111")]
    assert list(among["budget_entries"].dropna()) == list(alone["budget_entries"].dropna())
    assert drawn_from.fingerprint(among) == drawn_from.fingerprint(alone) == drawn_from.data_of(alone)


def test_figures_carry_their_hash_and_are_listed(tmp_path):
    paths = saved(tmp_path, "one", "two")
    assert [drawn_from.embedded(path) for path in paths] == [DATA] * 4
    assert json.loads((tmp_path / drawn_from.LIST).read_text()) == {path.name: [] for path in sorted(paths)}
    plain = tmp_path / "plain.png"
    picture().savefig(plain)
    assert drawn_from.embedded(plain) is None


def test_a_table_carries_it_in_a_comment(tmp_path):
    path = tmp_path / "table.tex"
    path.write_text(f"% {drawn_from.KEY}: {DATA}\nx", encoding="utf-8")
    assert drawn_from.embedded(path) == DATA


def test_a_check_names_what_is_stale_missing_and_orphaned(tmp_path):
    saved(tmp_path, "fresh", "gone", "unknown")
    saved(tmp_path, "old", data="cd" * 32)
    expected = dict.fromkeys(("fresh", "gone", "old"), DATA).get
    (tmp_path / "gone.png").unlink()
    (tmp_path / "stray.png").write_bytes(b"")
    found = [line.split(" (")[0].replace(f"{tmp_path}/", "") for line in drawn_from.complaints(tmp_path, expected)]
    names = ["missing: gone.png", "stale: old.png", "stale: old.svg", "orphaned: unknown.png", "orphaned: unknown.svg"]
    assert found == [*names, "orphaned: stray.png"]
    assert list(drawn_from.complaints(tmp_path / "nowhere", expected)) == []


def test_tidying_removes_what_was_drawn_and_nothing_else(tmp_path):
    saved(tmp_path, "old")
    paths = saved(tmp_path, "new")
    (tmp_path / "mine.txt").write_text("x")
    drawn_from.tidy(tmp_path, paths)
    assert {path.name for path in tmp_path.iterdir()} == {"new.png", "new.svg", "mine.txt", drawn_from.LIST}
    assert set(drawn_from.listed(tmp_path)) == {"new.png", "new.svg"}


def test_pictures_of_json_files_are_checked_against_them(tmp_path):
    source, folder = tmp_path / "costs.json", tmp_path / "figures"
    source.write_text('{"b": 1.5, "a": [1]}')
    saved(folder, "costs", data=drawn_from.fingerprint([{"a": [1], "b": 1.5}]), sources=["costs.json"])
    assert drawn_from.source_hash(folder, "costs.png") == drawn_from.embedded(folder / "costs.svg")
    source.write_text('{"b": 1.25, "a": [1]}')
    assert drawn_from.source_hash(folder, "costs.png") != drawn_from.embedded(folder / "costs.svg")
    source.unlink()
    assert drawn_from.source_hash(folder, "costs.png") is None


def test_a_broken_list_is_told_in_one_line(tmp_path):
    (tmp_path / drawn_from.LIST).write_text("[")
    with pytest.raises(UserError, match="delete it"):
        drawn_from.listed(tmp_path)


def test_numbers_that_pandas_widens_are_the_same():
    narrow, wide = pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1.0, 2.0]})
    assert (
        drawn_from.fingerprint(narrow)
        == drawn_from.fingerprint(wide)
        != drawn_from.fingerprint(narrow.assign(a=[1, 3]))
    )
