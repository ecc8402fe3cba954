"""README.md and docs/: links lead somewhere, pages that scripts write are current, numbers are those of the rows."""

import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pvcbench.errors import UserError
from pvcbench.runs.rows import load_table
from scripts import (
    command_reference,
    data_sets,
    experiment_list,
    method_cards,
    numbers_committed,
    numbers_quickstart,
    page_numbers,
    press_table,
    settings_reference,
    written_page,
)

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s#]+)(?:#[^)]*)?\)")
WRITTEN = {
    module.__name__.rpartition(".")[2]: module
    for module in (data_sets, experiment_list, method_cards, press_table, settings_reference)
}
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    links = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).is_file()]


def test_the_readme_is_short_and_names_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= set(LINK.findall(text))


def test_the_site_has_every_page():
    def names(nav):
        for entry in nav:
            for value in entry.values():
                yield from names(value) if isinstance(value, list) else [value]

    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(names(yaml.safe_load(text)["nav"])) == pages


@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_page_is_current(name):
    assert written_page.current(WRITTEN[name].PAGE, WRITTEN[name].page()), f"run scripts/{name}.py"


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="other versions of Python lay out a command's help otherwise"
)
def test_the_page_of_commands_is_current():
    assert written_page.current(command_reference.PAGE, command_reference.page()), "run scripts/command_reference.py"


def test_a_setting_without_a_comment_is_refused(tmp_path):
    line = next(settings_reference.written(settings_reference.compose.CONF / "task" / "needle.yaml"))
    assert line == ("lengths", "[1024]", "prompt tokens, template and question included")
    (tmp_path / "one.yaml").write_text("seed: 0  # drawn\nlimit: null\n")
    with pytest.raises(LookupError, match="the setting limit needs a comment"):
        settings_reference.told(tmp_path / "one.yaml")


def test_numbers_are_those_of_the_rows():
    stale = [
        name for name in page_numbers.PAGES if (ROOT / name).read_text(encoding="utf-8") != page_numbers.page(name)
    ]
    assert not stale, "run scripts/page_numbers.py"


def test_a_run_of_ones_own_is_in_no_page(tmp_path):
    """Pages are of what is committed: a demo that was run before the tests changes none of them."""
    for name in ("quickstart", "demo"):
        shutil.copytree(ROOT / "results" / "quickstart", tmp_path / name, ignore=shutil.ignore_patterns("figures"))
    told = numbers_committed.committed(tmp_path)
    assert "`quickstart`" in told and "`demo`" not in told


def test_another_row_is_another_number(monkeypatch):
    """A changed score shows in what is said of the run, so the numbers are not written by hand."""
    found = numbers_quickstart.Quickstart()
    changed = load_table(found.folder)
    lost = changed["reference"].astype(bool) & (changed["sample"] == changed["sample"].iloc[0])
    changed.loc[lost, "score"] = 0.0
    monkeypatch.setattr(numbers_quickstart.pvcbench, "load", lambda folder: changed)
    other, count = numbers_quickstart.Quickstart(), found.samples
    assert f"answers {count} of {count}" in " ".join(found.shown().split())
    assert f"answers {count - 1} of {count}" in " ".join(other.shown().split())


def test_a_run_with_another_method_is_told_too(monkeypatch):
    """A method more is a line more in the table and a count more in the sentence."""
    found = numbers_quickstart.Quickstart()
    rows = load_table(found.folder)
    more = rows[rows["method"] == "h2o"].assign(method="tova")
    monkeypatch.setattr(numbers_quickstart.pvcbench, "load", lambda folder: pd.concat([rows, more], ignore_index=True))
    other = numbers_quickstart.Quickstart()
    assert "tova" in other.shown().lower() and "tova" not in found.shown().lower()
    assert other.answers().count("\n") == found.answers().count("\n") + 1


def test_the_newest_run_is_taken(tmp_path):
    for name, day in (("a", "2026-01-02"), ("b", "2026-01-03"), ("c", "2026-01-01")):
        (tmp_path / "quickstart" / name).mkdir(parents=True)
        (tmp_path / "quickstart" / name / "environment.json").write_text(f'{{"started": "{day}"}}')
    assert numbers_quickstart.newest(tmp_path).name == "b"
    with pytest.raises(UserError, match="has no run"):
        numbers_quickstart.newest(tmp_path, "none")


def test_a_page_with_other_marks_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(page_numbers, "PAGES", {"README.md": {"nothing": str}})
    monkeypatch.setattr(sys, "argv", ["page_numbers.py", "--check"])
    assert page_numbers.main() == 2
    assert "README.md must have exactly the markers nothing" in capsys.readouterr().err


def test_a_stale_page_is_named(monkeypatch, capsys):
    monkeypatch.setattr(page_numbers, "PAGES", {"README.md": {"quickstart": lambda: "no number"}})
    monkeypatch.setattr(sys, "argv", ["page_numbers.py", "--check"])
    before = (ROOT / "README.md").read_bytes()
    assert page_numbers.main() == 1 and capsys.readouterr().out == "stale: README.md\n"
    assert (ROOT / "README.md").read_bytes() == before
