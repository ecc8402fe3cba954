"""docs/results/performance.md: its tables come from the committed files, and what is missing is told in one line."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from scripts import performance

ROOT = Path(__file__).parents[2]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are drawn by the committed run; here only the tables count."""
    monkeypatch.setattr(performance, "save", lambda *what: [])


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["performance.py", *map(str, options)])
    return performance.main()


def test_the_tables_come_from_the_committed_files(tmp_path, monkeypatch, undrawn):
    """Emptied markers are filled with exactly what is committed."""
    committed = (ROOT / "docs/results/performance.md").read_text(encoding="utf-8")
    emptied = re.sub(r"(<!-- (\w+) -->\n).*?(<!-- end \2 -->)", r"\1\3", committed, flags=re.DOTALL)
    assert committed.count("| --- |") and "| --- |" not in emptied  # no table is left
    (tmp_path / "performance.md").write_text(emptied, encoding="utf-8")
    assert run(monkeypatch, "--doc", tmp_path / "performance.md") == 0
    assert (tmp_path / "performance.md").read_text(encoding="utf-8") == committed


def test_another_number_is_another_table(tmp_path, monkeypatch, undrawn):
    """A changed measurement shows, so the tables are not written by hand."""
    shutil.copytree(ROOT / "results/bench", tmp_path / "bench")
    shutil.copytree(ROOT / "results/pyramidinfer_throughput", tmp_path / "pyramidinfer_throughput")
    shutil.copy(ROOT / "docs/results/performance.md", tmp_path / "performance.md")
    path = tmp_path / "bench/decode.json"
    found = json.loads(path.read_text())
    found["cells"][0]["over_floor"] = 77.25
    path.write_text(json.dumps(found))
    assert run(monkeypatch, "--results", tmp_path, "--doc", tmp_path / "performance.md") == 0
    assert "| 77.25 |" in (tmp_path / "performance.md").read_text(encoding="utf-8")


def test_a_missing_file_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "--results", tmp_path) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "scoring.json" in said[0] and "--out" in said[0]


def test_bytes_of_a_step_by_hand():
    """Llama-2-13B at batch 32: the weights a step reads, and the cache of 512 tokens and half of the 256 after them."""
    layer = 4 * 5120 * 5120 + 3 * 5120 * 13824
    weights = 2 * (40 * layer + 32000 * 5120)
    entry = 40 * 2 * 40 * 128 * 2
    full, claimed = (weights + 32 * (share * 512 + 128) * entry for share in (1.0, 0.454))
    rows = [line.split(" | ") for line in performance.bound().splitlines()[2:]]
    assert rows[0][2:4] == [f"{full / 2**30:.1f}", "1.00"]
    assert rows[2][3] == f"{full / claimed:.2f}"
