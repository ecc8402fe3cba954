"""Draws the packages of pvcbench with their imports, and writes the list of both into docs/reference/architecture.md.

    python scripts/package_map.py            # writes the list and draws docs/images/packages.png
    python scripts/package_map.py --check    # writes nothing, says what is stale, and exits with 1 if anything is

Everything is read from the source: imports at any depth of a module, those inside functions included, and the first
sentence of each package's docstring. An arrow goes from a package to one that it imports. A package stands above all
that it imports, so every arrow points down; where packages import each other there is no such picture, and this fails.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.figure import Figure

from pvcbench.plots import drawn_from

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "architecture.md"
PICTURE = ROOT / "docs" / "images" / "packages.png"
MARKS = ("<!-- packages -->\n", "<!-- end packages -->\n")
DOOR, METHODS = "pvcbench", "methods"  # the public API, `pvcbench/__init__.py`; the methods, which import one module
LEFT_OUT = ("former", "__main__.py")  # commands under former names; they call `cli`
Map = dict[str, set[str]]  # of each package those that it imports


def files() -> Iterator[tuple[str, Path]]:
    """Every module with the package that it belongs to; a module at the top is a package of its own."""
    for path in sorted((ROOT / "pvcbench").rglob("*.py")):
        parts = path.relative_to(ROOT / "pvcbench").parts
        if not set(LEFT_OUT) & set(parts):
            yield (DOOR if parts == ("__init__.py",) else parts[0].removesuffix(".py")), path
    for path in sorted((ROOT / METHODS).glob("*.py")):
        yield METHODS, path


@cache
def tree(path: Path) -> ast.Module:
    """A file as a syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """The packages of pvcbench that a module imports."""
    for node in ast.walk(tree(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "pvcbench" and rest:
                yield rest[0]


def packages() -> Map:
    """Of each package those that it imports."""
    found: Map = {}
    for package, path in files():
        found.setdefault(package, set()).update(imported(path))
    return {name: (others & found.keys()) - {name} for name, others in sorted(found.items())}


def ranks(known: Map) -> dict[str, int]:
    """How high a package stands: above all that it imports, the public API at the top.

    Raises CycleError where packages import each other.
    """
    found: dict[str, int] = {}
    for name in TopologicalSorter(known).static_order():
        found[name] = max((found[other] + 1 for other in known[name]), default=0)
    return found | {DOOR: max(found.values())}


def below(known: Map, name: str) -> set[str]:
    """All packages that a package imports, also through others."""
    return known[name].union(*(below(known, other) for other in known[name]))


def drawn(known: Map) -> Map:
    """The arrows that no longer way through other packages implies."""
    return {
        name: {one for one in others if not any(one in below(known, other) for other in others)}
        for name, others in known.items()
    }


def chains(known: Map) -> list[list[tuple[str, str, int]]]:
    """Every arrow as the points that it goes through, one at each rank: both packages, and the bends between them."""
    heights = ranks(known)
    return [
        [(name, name, heights[name])]
        + [(name, other, rank) for rank in range(heights[name] - 1, heights[other], -1)]
        + [(other, other, heights[other])]
        for name, others in drawn(known).items()
        for other in sorted(others)
    ]


def places(known: Map, sweeps: int = 8) -> dict[tuple[str, str, int], float]:
    """Where every point of every arrow lies from left to right: in an order that lets few arrows cross."""
    found = chains(known)
    beside: dict[tuple, list[tuple]] = {(name, name, rank): [] for name, rank in ranks(known).items()}
    for chain in found:
        for upper, lower in pairwise(chain):
            beside.setdefault(upper, []).append(lower)
            beside.setdefault(lower, []).append(upper)
    levels = sorted({rank for _, _, rank in beside})
    where = {}
    for level in levels:
        where |= spread(sorted(point for point in beside if point[2] == level))
    for _ in range(sweeps):
        for step, order in ((1, levels[::-1]), (-1, levels)):  # by what is above, then by what is below
            for level in order:
                wish = {}
                for point in (point for point in where if point[2] == level):
                    near = [where[one] for one in beside[point] if one[2] == level + step] or [where[point]]
                    wish[point] = sum(near) / len(near)
                where |= spread(sorted(wish, key=lambda point: (wish[point], point)))
    return where


def spread(points: list) -> dict:
    """Points of one rank, evenly from left to right."""
    return {point: (number + 1) / (len(points) + 1) for number, point in enumerate(points)}


def picture(known: Map) -> Figure:
    """Boxes and arrows."""
    where, figure = places(known), Figure(figsize=(8, 8), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(-0.6, max(ranks(known).values()) + 0.6))
    axes.axis("off")
    for chain in chains(known):
        *bends, last = [(where[point], point[2]) for point in chain]
        end, line = (last[0], last[1] + 0.18), {"color": "#7F7F7F", "linewidth": 1, "zorder": 1}
        axes.plot(*zip(*bends, strict=True), **line)
        head = {"arrowstyle": "-|>", "color": "#7F7F7F", "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", end, bends[-1], arrowprops=head, zorder=1)
    box = {"boxstyle": "round,pad=0.45", "edgecolor": "#0072B2", "linewidth": 1}
    for name, rank in ranks(known).items():
        look = box | {"facecolor": "#FFF3DC" if name in (DOOR, METHODS, "cli") else "#E5F1FA"}
        place = (where[name, name, rank], rank)
        axes.text(*place, name, ha="center", va="center", family="DejaVu Sans", size=10, bbox=look, zorder=2)
    return figure


def about(package: str) -> str:
    """The first sentence of a package's docstring."""
    paths = [path for name, path in files() if name == package]
    text = ast.get_docstring(tree(next((path for path in paths if path.name == "__init__.py"), paths[0]))) or ""
    return re.split(r"(?<=\.)\s", " ".join(text.split("\n\n")[0].split()))[0]


def listed(known: Map) -> str:
    """The list for the page: packages from the top down, what each is and what it imports."""
    heights = ranks(known)
    lines = ["| package | what it is | imports |", "|---|---|---|"]
    for name in sorted(known, key=lambda name: (-heights[name], name)):
        place = {DOOR: "pvcbench/__init__.py", METHODS: "methods/"}.get(name, f"pvcbench/{name}")
        place += {True: "", False: "/" if (ROOT / place).is_dir() else ".py"}[name in (DOOR, METHODS)]
        imports = ", ".join(f"`{one}`" for one in sorted(known[name], key=lambda one: (-heights[one], one)))
        lines.append(f"| `{place}` | {about(name)} | {imports} |")
    return "\n".join(lines) + "\n"


def page(known: Map, text: str) -> str:
    """The page with the list in its place."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return before + MARKS[0] + listed(known) + MARKS[1] + after


def hash_of(known: Map) -> str:
    """What the picture carries of the packages and arrows that it shows."""
    return drawn_from.fingerprint([{name: sorted(others) for name, others in known.items()}])


def stale(known: Mapping) -> list[str]:
    """What does not say what the imports say."""
    text = PAGE.read_text(encoding="utf-8")
    fresh = {PAGE: page(known, text) == text, PICTURE: PICTURE.is_file()}
    fresh[PICTURE] = fresh[PICTURE] and drawn_from.embedded(PICTURE) == hash_of(known)
    return [str(path.relative_to(ROOT)) for path, good in fresh.items() if not good]


def main() -> int:
    """Writes or checks the page's list and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    options, known = parser.parse_args(), packages()
    if options.check:
        wrong = stale(known)
        print("\n".join(f"stale: {name}" for name in wrong) or "the package map is current")
        return int(bool(wrong))
    PAGE.write_text(page(known, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    picture(known).savefig(PICTURE, metadata=drawn_from.metadata("png", hash_of(known)))
    print(PAGE.relative_to(ROOT), PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
