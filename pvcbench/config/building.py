"""Objects from a configuration: models, tasks and methods by `_target_`, whose modules are made importable here."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from pvcbench.config.moved import target_now
from pvcbench.errors import UserError

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
    target = node.get("_target_")
    if isinstance(target, str) and target_now(target) != target:
        node = {**node, "_target_": target_now(target)}
    try:
        return instantiate(node, _convert_="all", **runtime)
    except (HydraException, TypeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"cannot build {name}: {' '.join(str(cause).split())}") from error


def build_methods(nodes: Any) -> dict[str, Any]:
    """The methods of a run by name."""
    load_methods_package()
    return {name: build(node, f"method {name}") for name, node in nodes.items()}
