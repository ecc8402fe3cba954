"""Writes docs/reference/rows.md, the keys of a row, from the class `Row` of pvcbench/evaluation/row.py.

    python scripts/row_reference.py            # writes the page; a test compares
    python scripts/row_reference.py --check    # says whether the page is current, and exits with 1 if not

Key, type and comment are read from the source: a key without a comment on its line is refused.
"""

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "pvcbench" / "evaluation" / "row.py"
PAGE = ROOT / "docs" / "reference" / "rows.md"
NAME = "Row"
HEAD = """# Rows: what one line of `rows.jsonl` says

This page is written by `scripts/row_reference.py` from `pvcbench/evaluation/row.py`. A row is one sample in one cell,
that is one method at one budget, as a JSON object on a line of `rows.jsonl` in the run's folder. All rows below a
folder are one table by `pvcbench.load(FOLDER)`. What was not measured is null, and where a cell gave no result, `error`
says why.
"""
OWN = "A key that only some tasks write names them first.\n"
LOADED = """## What the table adds

`pvcbench.load` adds columns that say where a row lies and how its run was set: `run` (its id), `model`, `seed`,
`experiment` and `folder`; and `leaks`, which says whether the method reads what follows the prompt: such a method is
never ranked.
"""


@dataclass(frozen=True)
class Key:
    """A key of a row."""

    name: str
    kind: str
    meaning: str


def comments(text: str) -> dict[int, str]:
    """The comment of every line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def assigned(tree: ast.Module, name: str) -> object:
    """The value of a constant of a module."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise LookupError(f"{SOURCE.name} has no {name}")


def keys(text: str) -> Iterator[Key]:
    """All keys of the class, in order."""
    told = comments(text)
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name == NAME:
            for line in node.body:
                if isinstance(line, ast.AnnAssign):
                    name = ast.unparse(line.target)
                    if line.end_lineno not in told:
                        raise LookupError(f"{SOURCE.name}, line {line.lineno}: the key {name} needs a comment")
                    yield Key(name, ast.unparse(line.annotation), told[line.end_lineno])


def page(text: str) -> str:
    """The whole page."""
    lines = ["| key | type | meaning |", "|---|---|---|"]
    for key in keys(text):
        kind, meaning = (part.replace("|", "\\|") for part in (key.kind.replace("None", "null"), key.meaning))
        lines.append(f"| `{key.name}` | {kind} | {meaning} |")
    schema = f"The version of this schema is {assigned(ast.parse(text), 'SCHEMA')}. {OWN}"
    return "\n".join([HEAD, schema, *lines, "", LOADED])


def main() -> int:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is current")
    options, text = parser.parse_args(), page(SOURCE.read_text(encoding="utf-8"))
    name = PAGE.relative_to(ROOT)
    if options.check:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{name} is current" if current else f"stale: {name}")
        return int(not current)
    PAGE.write_text(text, encoding="utf-8")
    print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
