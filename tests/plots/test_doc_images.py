"""The pictures of README.md and docs/: fresh by the hash that they carry, and what a check finds."""

import json
import shutil
from pathlib import Path

import pytest

import doc_images
from pvcbench.errors import UserError
from pvcbench.plots import drawn_from
from rows import needle_rows, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def house(tmp_path):
    """A small repository: one run, one benchmark, and a README that shows a picture of each and one over runs."""
    made = needle_rows(repeats=1, methods=("full", "h2o"), budgets=(0.55,))
    write_run(tmp_path / "results/one/0123456789ab", [row | {"sample_info": {}, "spans_kept": {}} for row in made])
    (tmp_path / "results/bench").mkdir()
    shutil.copy(ROOT / "results/bench/scoring.json", tmp_path / "results/bench")
    sources = {"curve.png": "one/0123456789ab/figures/curve.png", "pareto.png": "figures/pareto_one.png"}
    sources |= {"scoring.png": "bench/figures/scoring.png"}
    (tmp_path / "docs/images").mkdir(parents=True)
    (tmp_path / "docs/images/sources.json").write_text(json.dumps(sources))
    (tmp_path / "README.md").write_text("".join(f"![x](docs/images/{name})\n" for name in sources))
    return tmp_path


def found(house):
    """What a check finds, without the reasons."""
    return [line.split(" (")[0] for line in doc_images.complaints(house)]


def test_every_picture_of_our_documents_is_fresh():
    assert list(doc_images.complaints(ROOT)) == []
    assert len(doc_images.sources(ROOT)) > 10


def test_what_is_drawn_is_fresh_and_lies_nowhere_else(house):
    names = ["curve.png", "pareto.png", "scoring.png"]
    assert set(found(house)) == {f"missing: docs/images/{name}" for name in names}
    assert sorted(path.name for path in doc_images.draw(house)) == names
    assert found(house) == [] and not list((house / "results").rglob("figures"))
    hashes = [drawn_from.embedded(house / "docs/images" / name) for name in names]
    assert all(hashes) and hashes[0] == hashes[1] != hashes[2]  # the first two show the same rows


def test_changed_data_makes_its_own_pictures_stale(house):
    assert list(doc_images.draw(house))
    bench = house / "results/bench/scoring.json"
    bench.write_text(json.dumps(json.loads(bench.read_text()) | {"more": 1}))
    assert found(house) == ["stale: docs/images/scoring.png"]
    rows = house / "results/one/0123456789ab/rows.jsonl"
    rows.write_text("".join(f"{line}\n" for line in rows.read_text().splitlines()[:-1]))
    assert found(house) == [f"stale: docs/images/{name}.png" for name in ("curve", "pareto", "scoring")]


def test_links_and_names_that_lead_nowhere_are_found(house):
    assert list(doc_images.draw(house))
    text = (house / "README.md").read_text().replace("docs/images/pareto.png", "results/figures/pareto_one.png")
    (house / "README.md").write_text(text + "![x](docs/images/none.png) ![x](https://example.org/badge.svg)\n")
    lines = ["elsewhere: results/figures/pareto_one.png", "missing: docs/images/none.png"]
    lines += ["unused: docs/images/pareto.png"]
    assert found(house) == lines
    sources = {"pareto.png": "figures/pareto_two.png"}
    (house / "docs/images/sources.json").write_text(json.dumps(sources))
    assert found(house) == [*lines, "orphaned: docs/images/pareto.png"]
    with pytest.raises(UserError, match="nothing is drawn under that name"):
        list(doc_images.draw(house))
    sources = {"pareto.png": "one/0123456789ab/figures/likelihood.png"}
    (house / "docs/images/sources.json").write_text(json.dumps(sources))
    with pytest.raises(UserError, match="which these rows do not give"):
        list(doc_images.draw(house))
