"""Writes the page of all results to a folder."""

import importlib.util
from pathlib import Path

from pvcbench.config.extras import pip_install
from pvcbench.errors import UserError

NEEDED = ("jinja2",)


def write(results: Path, out: Path, samples: int) -> tuple[Path, int]:
    """Writes index.html; returns its path and how many runs it shows."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the report needs {' and '.join(missing)}: {pip_install('report')}")
    if samples < 0:
        raise UserError(f"--samples must be 0 or more, not {samples}")
    if not results.is_dir():
        raise UserError(f"there is no folder {results}: name one that runs wrote to")
    from pvcbench.report import html_page

    text, runs = html_page.build(results, samples)
    path, temporary = out / "index.html", out / "index.html.tmp"
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder with --out") from error
    return path, runs
