"""Writes the measured numbers in README.md and in the pages of docs/ from committed rows.

    python scripts/page_numbers.py            # writes them; CI compares
    python scripts/page_numbers.py --check    # says what is stale, and exits with 1 if anything is

A page marks where they stand by two comments, `<!-- NAME -->` and `<!-- end NAME -->`, each on a line of its own. The
tables of performance.md and scale.md are written in the same way by scripts of their own.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcbench.costs.scale_page import filled
from pvcbench.errors import UserError
from scripts.numbers_answers import answers, longest
from scripts.numbers_bench import drafts, speed
from scripts.numbers_committed import committed
from scripts.numbers_cost import evidence
from scripts.numbers_methods import needed, overview, published, sure, tested
from scripts.numbers_quickstart import Quickstart, coverage
from scripts.numbers_ruler import by_set
from scripts.written_page import ROOT

quickstart = cache(Quickstart)
PAGES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {"quickstart": lambda: quickstart().shown()},
    "docs/index.md": {"speed": speed},
    "docs/guide/first_run.md": {
        "quickstart": lambda: quickstart().shown(),
        "answers": lambda: quickstart().answers(),
        "survival": lambda: quickstart().survival(),
    },
    "docs/guide/intervals.md": {
        "one": lambda: quickstart().one(),
        "pair": lambda: quickstart().pair(),
        "many": lambda: quickstart().many(),
        "needed": needed,
        "coverage": coverage,
    },
    "docs/guide/experiments.md": {"committed": committed, "cost": evidence},
    "docs/log.md": {"drafts": drafts, "long": longest},
    "docs/results/long_answers.md": {"answers": answers, "long": longest},
    "docs/results/which_method.md": {
        "overview": overview,
        "ruler": by_set,
        "tested": tested,
        "published": published,
        "sure": sure,
    },
}


def page(name: str) -> str:
    """The whole text of a page, with the numbers of today's rows in their places."""
    path = ROOT / name
    return filled(path.read_text(encoding="utf-8"), {part: made() for part, made in PAGES[name].items()}, path.name)


def main() -> int:
    """Writes or checks all pages; 1 where a check finds one stale, 2 where one has other marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say which pages are stale")
    options, stale = parser.parse_args(), []
    try:
        for name in PAGES:
            path, text = ROOT / name, page(name)
            if path.read_text(encoding="utf-8") != text:
                stale.append(name)
                if not options.check:
                    path.write_text(text, encoding="utf-8")
    except UserError as error:
        print(f"page_numbers: {error}", file=sys.stderr)
        return 2
    for name in stale:
        print(f"stale: {name}" if options.check else name)
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
