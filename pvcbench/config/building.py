"""Objects from a configuration: models, tasks and methods by `_target_`, whose modules are made importable here."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pvcbench.config import settings
from pvcbench.config.moved import today
from pvcbench.errors import UserError

MISSING = "???"  # in YAML: a value that the user must give
PACKAGE = Path(__file__).parent.parent
# of a wheel, of the sources
METHODS = PACKAGE / "methods" if (PACKAGE / "methods").is_dir() else PACKAGE.parent / "methods"


def load_methods_package() -> None:
    """Makes `methods` mean ours, by its place, whatever folder the user runs in."""
    known = sys.modules.get("methods")
    if known is not None and Path(getattr(known, "__file__", None) or "").parent == METHODS:
        return
    for name in [name for name in sys.modules if name == "methods" or name.startswith("methods.")]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        "methods", METHODS / "__init__.py", submodule_search_locations=[str(METHODS)]
    )
    if spec is None or not (METHODS / "__init__.py").is_file():
        raise UserError(f"there are no methods in {METHODS}: install pvcbench again")
    module = importlib.util.module_from_spec(spec)
    sys.modules["methods"] = module
    spec.loader.exec_module(module)


def add_folder(folder: Path) -> None:
    """Makes the modules in a folder of configuration importable, those in its `methods` beside ours."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    own = folder / "methods"
    if own.is_dir() and own != METHODS:
        for path in own.glob("*.py"):
            refuse_shadow(path, METHODS / path.name)
        load_methods_package()
        places = sys.modules["methods"].__path__
        if str(own) not in places:
            places.append(str(own))


def refuse_shadow(path: Path, ours: Path) -> None:
    """Refuses a file that would be passed over for one of pvcbench's own of the same name."""
    if path.name != "__init__.py" and ours.is_file() and ours.read_bytes() != path.read_bytes():
        raise UserError(f"{path} has the name of a file of pvcbench's own, which would be used instead: rename it")


def build(node: Any, name: str, **runtime) -> Any:
    """The object a configuration node describes by `_target_`; a wrong argument becomes a user's error."""
    key = {"the task": "task", "the model": "model"}.get(name) or name.replace("method ", "methods.", 1)
    try:
        plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        node = {name: value for name, value in today(plain).items() if value != MISSING}  # the class says what it wants
        refuse_misfits(node, key)
        return instantiate(node, _convert_="all", **runtime)
    except (HydraException, OmegaConfBaseException, TypeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        text = " ".join(str(cause).split())
        kind = "" if isinstance(cause, HydraException | TypeError) else f"{type(cause).__name__}: "
        target = node.get("_target_") if isinstance(node, Mapping) else None
        raise UserError(f"cannot build {name} ({key}, {target}): {kind}{text}") from error


def refuse_misfits(node: Mapping, key: str) -> None:
    """Refuses text where the class or function that a node names takes only numbers, or true and false.

    Other values are left to the class, which may take more than its annotations say.
    """
    for name, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            refuse_misfits(value, f"{key}.{name}")
    if not any(isinstance(value, str) for name, value in node.items() if name != "_target_"):
        return
    try:
        made = get_object(node["_target_"])
        hints = get_type_hints(made.__init__ if isinstance(made, type) else made)
    except (HydraException, ImportError, AttributeError, KeyError, NameError, TypeError, ValueError):
        return  # no such class, or hints that cannot be read: building says what is wrong
    for name, value in node.items():
        hint = hints.get(name)
        kinds = set(get_args(hint)) if isinstance(hint, UnionType) or get_origin(hint) is Union else {hint}
        if isinstance(value, str) and value != MISSING and kinds <= {int, float, bool, type(None)}:
            words = " or ".join(settings.WORDS[kind] for kind in (bool, int, float) if kind in kinds)
            empty = ", or null" if type(None) in kinds else ""
            if words:
                raise UserError(f"{key}.{name} must be {words}{empty}, not {value!r} ({node['_target_']})")


def build_methods(nodes: Any) -> dict[str, Any]:
    """The methods of a run by name."""
    load_methods_package()
    return {name: build(node, f"method {name}") for name, node in nodes.items()}
