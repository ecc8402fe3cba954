"""The intervals in docs/results/analysis.md are those that the committed rows give."""

from pathlib import Path

import pytest

from scripts import analysis_numbers as numbers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def known():
    return [one for table in numbers.tables(ROOT / "results" / "analysis") for one in numbers.known(table)]


def test_every_interval_of_the_page_stands_in_a_table(known):
    text = (ROOT / "docs" / "results" / "analysis.md").read_text(encoding="utf-8")
    assert len(dict(numbers.told(text))) > 60 and list(numbers.complaints(text, known)) == []


@pytest.mark.parametrize("text", ["+0.024 [0.004, 0.044]", "28% [22, 35]", "+0.67 [0.22, 1.18]"])
def test_intervals_of_the_bootstrap_are_found_out(known, text):
    (line,) = numbers.complaints(f"the effect is {text} here", known)
    assert line.startswith(text) and "the mean has [" in line


def test_rounded_numbers_percentages_and_complements_fit():
    table = [numbers.Told((0.9812, 0.9731, 0.9868), (0.0, 0.0, 0.0))]
    assert not list(numbers.complaints("0.98 [0.97, 0.99]; 98.1% [97.3, 98.7]; 1.9% [1.3, 2.7]", table))
    assert len(list(numbers.complaints("0.98 [0.96, 0.99]; 98.1 [97.3, 98.7]", table))) == 2
