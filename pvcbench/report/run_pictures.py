"""A run's own pictures as blocks of the page."""

import tempfile
from pathlib import Path

import pandas as pd

from pvcbench.plots import drawn_from
from pvcbench.report.packed import packed
from pvcbench.runs import result

KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


def of(rows: pd.DataFrame, folder: Path) -> list[dict]:
    """The pictures of a run: those in its folder where they show these rows, else drawn for the page alone."""
    own = folder / "figures"
    if drawn_from.fresh(own, drawn_from.data_of(rows)):
        return in_folder(own)
    with tempfile.TemporaryDirectory() as place:
        result.draw(rows, Path(place))
        return in_folder(Path(place))


def in_folder(folder: Path) -> list[dict]:
    """The pictures in a folder by name, each in the format that is smaller as a block."""
    found: dict[str, dict] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix in KINDS:
            made = {"name": path.stem.replace("_", " "), "kind": KINDS[path.suffix], "block": packed(path.read_bytes())}
            known = found.get(path.stem)
            if known is None or len(made["block"]) < len(known["block"]):
                found[path.stem] = made
    return list(found.values())
