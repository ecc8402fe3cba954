"""Draws the pictures that README.md and docs/ show into docs/images, or checks them against the data they show.

    python scripts/doc_images.py            # draws all of them
    python scripts/doc_images.py --check    # draws nothing, says what is stale or missing; 1 if anything is

docs/images/sources.json names for each picture the drawing below results/ that it is a copy of. What is not named there
(a screenshot) is made by hand.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from pvcbench.errors import UserError
from pvcbench.plots import drawn_from, run_figures
from pvcbench.report import figures_over_runs
from pvcbench.runs import result
from pvcbench.runs.rows import load_table
from scripts import coverage, methods_by_task, performance, scale

ROOT = Path(__file__).resolve().parent.parent
IMAGES = Path("docs/images")
SHOWN = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
BENCHES = {  # drawings of results/bench/figures: the file beside that folder which they show, and what draws it
    "scoring": ("scoring.json", performance.draw),
    "curve": ("curve.json", performance.draw),
    "decode": ("decode.json", performance.draw),
    "methods": ("methods.json", performance.draw),
    "costs_check": ("costs.json", scale.draw),
    "costs_lengths": ("costs.json", scale.draw),
    "coverage": ("coverage.json", coverage.draw),
}


class Drawings:
    """The drawings below a folder of results, each by its path below it: the hash of its data, and how it is drawn."""

    def __init__(self, results: Path) -> None:
        self.results = results

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The rows of all runs."""
        return load_table(self.results)

    @cached_property
    def over_runs(self) -> dict[str, figures_over_runs.Drawing]:
        """What is drawn over all runs, by name; the picture of methods by task is the documents' own."""
        made = [*figures_over_runs.drawings(self.rows), *methods_by_task.drawings(self.results)]
        return {drawing.name: drawing for drawing in made if drawing.folder == "figures"}

    def run(self, folder: PurePosixPath) -> pd.DataFrame:
        """The rows of the run that a folder of figures belongs to; none where it belongs to none."""
        return self.rows[self.rows["folder"] == str(self.results / folder.parent)]

    def bench(self, name: str) -> Path:
        """The file that a drawing of results/bench/figures shows."""
        return self.results / "bench" / BENCHES[name][0]

    def data(self, drawing: PurePosixPath) -> str | None:
        """The hash that a drawing carries; None where nothing is drawn under that path."""
        name = drawing.stem
        if drawing.parts[0] == "bench":
            known = name in BENCHES and self.bench(name).is_file()
            return drawn_from.fingerprint([json.loads(self.bench(name).read_text(encoding="utf-8"))]) if known else None
        if drawing.parts[0] == "figures":
            return self.over_runs[name].data if name in self.over_runs else None
        rows = self.run(drawing.parent)
        return None if rows.empty else drawn_from.data_of(rows)

    def draw(self, folder: PurePosixPath, names: set[str], into: Path) -> None:
        """Draws some pictures of one folder below results into another folder."""
        if folder.parts[0] == "bench":
            for name in names & set(BENCHES):
                BENCHES[name][1](self.bench(name), into)
        elif folder.parts[0] == "figures":
            for drawing in (self.over_runs[name] for name in names & set(self.over_runs)):
                run_figures.save(lambda drawing=drawing: [(drawing.name, drawing.make())], into, drawing.data)
        else:
            rows = self.run(folder)
            chosen = lambda: ((name, made) for name, made in result.pictures(rows) if name in names)  # noqa: E731
            run_figures.save(chosen, into, drawn_from.data_of(rows))


def sources(root: Path) -> dict[str, PurePosixPath]:
    """The drawing below results/ of each picture in docs/images."""
    path = root / IMAGES / "sources.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    return {image: PurePosixPath(drawing) for image, drawing in found.items()}


def shown(root: Path) -> dict[Path, Path]:
    """The pictures that the documents show, each with the first document that shows it; paths below the root."""
    found: dict[Path, Path] = {}
    for document in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        for link in SHOWN.findall(document.read_text(encoding="utf-8")):
            if "://" not in link:
                picture = (document.parent / link).resolve().relative_to(root.resolve())
                found.setdefault(picture, document.relative_to(root))
    return found


def complaints(root: Path) -> Iterator[str]:
    """What is wrong with the documents' pictures, in a line each; draws nothing."""
    used, drawings = shown(root), Drawings(root / "results")
    for picture, document in used.items():
        if picture.parent != IMAGES:
            yield f"elsewhere: {picture} ({document} shows it; pictures of documents lie in {IMAGES})"
        elif not (root / picture).is_file():
            yield f"missing: {picture} ({document} shows it)"
    for path in sorted((root / IMAGES).iterdir()):
        if path.suffix in (".png", ".svg") and IMAGES / path.name not in used:
            yield f"unused: {IMAGES / path.name} (no document shows it)"
    for image, drawing in sources(root).items():
        path, data = root / IMAGES / image, drawings.data(drawing)
        if data is None:
            yield f"orphaned: {IMAGES / image} (nothing is drawn as results/{drawing})"
        elif not path.is_file():
            yield f"missing: {IMAGES / image}"
        elif drawn_from.embedded(path) != data:
            yield f"stale: {IMAGES / image} (its data has changed since)"


def draw(root: Path) -> Iterator[Path]:
    """Draws every picture that sources.json names, by the folder of its drawing; yields the paths."""
    drawings, folders = Drawings(root / "results"), defaultdict(dict)
    for image, drawing in sources(root).items():
        if drawings.data(drawing) is None:
            raise UserError(f"{IMAGES / image} shows results/{drawing}, and nothing is drawn under that name")
        folders[drawing.parent][drawing.stem] = image
    for folder, images in folders.items():
        with tempfile.TemporaryDirectory() as place:
            drawings.draw(folder, set(images), Path(place))
            for name, image in images.items():
                made = Path(place) / f"{name}.png"
                if not made.is_file():
                    raise UserError(f"{IMAGES / image} shows results/{folder / name}.png, which these rows do not give")
                yield Path(shutil.copyfile(made, root / IMAGES / image))


def main() -> int:
    """Draws or checks; 1 where a check finds something, 2 where a picture has no drawing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="draw nothing, say what is stale or missing; 1 if any is")
    options, count = parser.parse_args(), 0
    try:
        for line in complaints(ROOT) if options.check else draw(ROOT):
            print(line)
            count += 1
    except UserError as error:
        print(f"doc_images: {error}", file=sys.stderr)
        return 2
    if options.check and count:
        print(f"doc_images: {count} not fresh; `python scripts/doc_images.py` draws them again", file=sys.stderr)
    return int(options.check and count > 0)


if __name__ == "__main__":
    from pvcbench.cli.exits import program

    sys.exit(program(main))
