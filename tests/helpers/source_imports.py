"""What modules import, read from their source, imports inside functions included."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pvcbench"


def modules():
    """Every module of the package by its dotted name; not the former names of commands, nor `__main__`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if "former" not in path.parts and path.name != "__main__.py":
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def names(tree):
    """The names of all modules that a syntax tree imports, at any depth of it; of ours the modules themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module or ""


@cache
def imports(path):
    return frozenset(names(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def top(path):
    """What a module imports when it is imported itself."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return frozenset(names(ast.Module([node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], [])))
