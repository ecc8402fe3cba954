"""What the scripts that write a page of the documentation share: a table, a page's place, writing and checking.

A script has a function `page()` that returns the whole text, and ends with `sys.exit(program(__doc__, PAGE, page))`.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def reference(name: str) -> Path:
    """The file of a page in docs/reference."""
    return ROOT / "docs" / "reference" / f"{name}.md"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is written so that it does not end the cell."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def current(path: Path, text: str) -> bool:
    """Whether a page has this text."""
    return path.is_file() and path.read_text(encoding="utf-8") == text


def program(about: str, path: Path, page: Callable[[], str]) -> int:
    """Writes a page, or with --check says whether it is current and returns 1 if it is not."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is current")
    options, text, name = parser.parse_args(), page(), path.relative_to(ROOT)
    if options.check:
        fresh = current(path, text)
        print(f"{name} is current" if fresh else f"stale: {name}", file=sys.stdout if fresh else sys.stderr)
        return int(not fresh)
    path.write_text(text, encoding="utf-8")
    print(name)
    return 0
