"""Finds an installed kvpress and imports modules of it one by one, without running its `__init__`.

That start imports a pipeline written for an older transformers, and wraps every attention function of transformers; a
press needs neither. The package is put among the imported ones with its place alone: `kvpress.presses.snapkv_press` is
imported from there as it stands, and `from kvpress import SnapKVPress` finds the module that defines the name.
"""

import ast
import hashlib
import importlib
import importlib.util
import sys
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

from pvcbench.policy import UserError

NAME = "kvpress"
INSTALL = "install it by `pip install --no-deps kvpress`, or name its folder by methods.kvpress.path=FOLDER"


def package(path: str | None = None) -> ModuleType:
    """kvpress with its modules ready to be imported: from `path`, its folder or the one around it, or as installed."""
    known = sys.modules.get(NAME)
    if known is None:
        known = importlib.util.module_from_spec(_spec(path))
        known.__getattr__ = _defined
        sys.modules[NAME] = known
    elif path is not None and folder() not in _places(path):
        raise UserError(f"methods.kvpress.path: kvpress was imported from {folder()} already: one program reads one")
    return known


def _spec(path: str | None):
    """What Python knows of kvpress before importing it."""
    if path is None:
        found = importlib.util.find_spec(NAME)
    else:
        found = next((PathFinder.find_spec(NAME, [str(place.parent)]) for place in _places(path) if _is(place)), None)
    if found is None or found.submodule_search_locations is None or not _is(Path(found.origin or "").parent):
        where = "no kvpress can be imported" if path is None else f"methods.kvpress.path: there is no kvpress in {path}"
        raise UserError(f"{where}: {INSTALL}")
    return found


def _places(path: str) -> list[Path]:
    """The folders that a path to kvpress may mean: the package's own, and the one in a checkout or environment."""
    root = Path(path).expanduser().resolve()
    return [root, root / NAME]


def _is(place: Path) -> bool:
    return place.name == NAME and (place / "presses").is_dir()


def folder() -> Path:
    """The package's folder."""
    return Path(sys.modules[NAME].__file__).resolve().parent


def version() -> str:
    """The version that is installed, "unknown" of a folder that no installer has written."""
    found = next(iter(distributions(name=NAME, path=[str(folder().parent)])), None)
    return "unknown" if found is None else found.version


@cache
def _defining(place: Path) -> dict[str, str]:
    """The classes and functions of kvpress by name, each with the module that defines it."""
    found = {}
    for file in sorted(place.rglob("*.py"), reverse=True):
        parts = file.relative_to(place).with_suffix("").parts
        if file.name != "__init__.py":
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    found[node.name] = ".".join((NAME, *parts))
    return found


def presses() -> list[str]:
    """The names of kvpress' classes that are called presses."""
    return sorted(name for name, home in _defining(folder()).items() if name.endswith("Press") and ".presses." in home)


def _defined(name: str):
    """A name that kvpress' own start would have imported, from where it is defined."""
    home = _defining(folder()).get(name)
    if home is None:
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def load(name: str) -> type:
    """A press by its name in kvpress, or by module and name; raises UserError."""
    home, _, own = name.rpartition(".")
    home = home or _defining(folder()).get(name, "")
    if not home:
        raise UserError(f"kvpress {version()} has no press {name!r}: choose from {', '.join(presses())}")
    try:
        found = getattr(importlib.import_module(home), own, None)
    except ModuleNotFoundError as error:
        advice = f"pip install {error.name}" if not home.startswith(str(error.name)) else "put its folder on the path"
        raise UserError(f"{name} cannot be imported: there is no module {error.name} ({advice})") from error
    except ImportError as error:
        raise UserError(f"{name} cannot be imported beside this transformers: {error}") from error
    if not isinstance(found, type):
        raise UserError(f"{home} has no class {own!r}")
    return found


def code_of(kinds: list[type]) -> str:
    """The hash of all modules of kvpress that some classes need: their syntax trees, without docstrings."""
    waiting = [base.__module__ for kind in kinds for base in kind.__mro__]
    done: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in done or module is None or not name.startswith(f"{NAME}."):
            continue
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            if hasattr(node, "body") and isinstance(node.body, list):
                node.body = [one for one in node.body if not _says_nothing(one)]
        done[name] = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    return hashlib.sha256("".join(sorted(done.values())).encode()).hexdigest()


def _says_nothing(node: ast.AST) -> bool:
    """Whether a statement is a text alone, such as a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
