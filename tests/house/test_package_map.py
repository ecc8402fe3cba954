"""The packages and arrows of docs/reference/architecture.md are those of the imports."""

import re
from graphlib import CycleError

import pytest

import package_map

KNOWN = package_map.packages()


def test_the_page_and_its_picture_are_current():
    assert package_map.stale(KNOWN) == []


def test_a_new_import_makes_both_stale():
    changed = KNOWN | {"costs": KNOWN["costs"] | {"version"}}
    assert package_map.stale(changed) == ["docs/reference/architecture.md", "docs/images/packages.png"]


def test_every_arrow_points_down():
    heights = package_map.ranks(KNOWN)
    for name, others in KNOWN.items():
        assert all(heights[other] < heights[name] for other in others), name
    for chain in package_map.chains(KNOWN):
        levels = [level for _, _, level in chain]
        assert levels == list(range(levels[0], levels[-1] - 1, -1))


def test_packages_that_import_each_other_have_no_picture():
    with pytest.raises(CycleError):
        package_map.ranks({"a": {"b"}, "b": {"a"}, "pvcbench": set()})


def test_the_arrows_drawn_lead_to_everything_that_is_imported():
    arrows = package_map.drawn(KNOWN)
    for name, others in KNOWN.items():
        assert arrows[name] <= others <= package_map.below(arrows, name)


def test_imports_inside_functions_count():
    assert "runs" in KNOWN["pvcbench"]  # `load` and `evaluate` import when they are called
    assert KNOWN["methods"] == {"policy"}


def test_the_walk_of_a_sample_fits_on_a_page_and_names_files_that_exist():
    text = package_map.PAGE.read_text(encoding="utf-8")
    walk = text.partition("## The walk of a sample\n")[2].partition("\n## ")[0]
    assert 10 < len(walk.splitlines()) <= 60
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", text)
    assert named and not [name for name in named if not any((root / name).is_file() for root in ROOTS)]


ROOTS = (package_map.ROOT, package_map.ROOT / "pvcbench")
