"""`pvcbench new method|task|data NAME`: writes a working, tested example into a folder of the user's."""

import importlib.util
import keyword
import re
import shlex
import shutil
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from string import Template

from pvcbench.cli.exits import Parser, printing
from pvcbench.errors import UserError
from pvcbench.places import user_path

MORE = """
examples:
  pvcbench new method mine
  pvcbench new task lockers --dir ~/study
  pvcbench new data questions

Three files are written: NAME.py (data: data/NAME.jsonl), method/NAME.yaml (task/NAME.yaml, data/NAME.yaml) and
test_NAME.py. The commands to run next are printed. One rule says where pvcbench looks for your own files: in the
folders that you name by --config-dir DIR, YAML files in DIR/method, DIR/task, DIR/data, DIR/model and DIR/experiment,
and modules beside these. Nothing is ever overwritten, and nothing is written into pvcbench's own folders.
"""
TEMPLATES = Path(__file__).parent / "templates"
GROUPS = {"method": "method", "task": "task", "data": "data"}  # where the YAML file of each kind goes
CODE = {"method": "{name}.py", "task": "{name}.py", "data": "data/{name}.jsonl"}
TAKEN = {"Method", "Observation", "Shape", "Task", "Sample", "UserError", "Path", "Counter", "Qa"}
RUNS = {
    "method": "method={name} task=needle 'task.lengths=[512]' 'budgets=[0.25,0.5]'",
    "task": "task={name} method=h2o 'budgets=[0.25,0.5]'",
    "data": "task=qa task.data={name} method=h2o 'budgets=[0.25,0.5]' query_aware=false",
}


def parser(**options) -> Parser:
    """What can be asked."""
    made = Parser(
        "pvcbench new",
        description="Writes a working example of a method, a task or data of your own, with its test.",
        epilog=MORE,
        formatter_class=RawDescriptionHelpFormatter,
        **options,
    )
    made.add_argument("kind", choices=tuple(GROUPS), help="what is written")
    made.add_argument("name", metavar="NAME", help="its name, as method=NAME, task=NAME or task.data=NAME will take it")
    made.add_argument(
        "--dir", default=".", metavar="DIR", help="the folder to write into (default: the current one; made if missing)"
    )
    return made


def run(asked: Namespace) -> int:
    """Writes the files and prints what to run next."""
    given = user_path(asked.dir)
    folder = given.resolve()
    require_own(folder)
    require_name(asked.kind, asked.name, folder)
    texts = files_of(asked.kind, asked.name, folder)
    for path in texts:
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} is there already and is not overwritten: choose another NAME or --dir DIR")
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        told = f"{error.filename or folder} cannot be written ({error.strerror})"
        raise UserError(f"{told}: choose another folder by --dir DIR") from error
    with printing():
        print("wrote " + ", ".join(str(given / path.relative_to(folder)) for path in texts))
        print("\nNext, from this folder:\n")
        for command in commands(asked.kind, asked.name, given):
            print(f"    {command}")
        print("\nThis run is on random weights, which load at once; its answers mean nothing without a real model.")
    return 0


def require_own(folder: Path) -> None:
    """Refuses pvcbench's own folders (sources, an installed package, what holds them), and what Hydra cannot read."""
    from pvcbench.config.building import METHODS
    from pvcbench.config.compose import CONF, PACKAGE

    if "${" in str(folder):
        raise UserError(
            f"--config-dir cannot read a folder with ${{ in its name: not {folder}, choose another --dir DIR"
        )
    ours = (PACKAGE, CONF, METHODS)
    if folder == PACKAGE.parent or any(one == folder or one in folder.parents for one in ours):
        raise UserError(f"{folder} is pvcbench's own: name a folder of yours by --dir DIR, such as --dir my_pvcbench")


def require_name(kind: str, name: str, folder: Path) -> None:
    """Refuses names that cannot be a module's, or that already mean something else."""
    from pvcbench.config import compose as configuration
    from pvcbench.config.overrides import parsed

    group = GROUPS[kind]
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} cannot be the name of a Python module: write letters, digits and _, a letter first")
    read = parsed(f"{group}={name}")
    if read is None or read.value() != name:
        raise UserError(f"{name!r} would be read as {read.value()!r} in {group}={name}: choose another NAME")
    if name in configuration.options(group, [folder]):
        raise UserError(f"there is a {group} {name} already: choose another NAME")
    if kind != "data" and (name in ("methods", "conf") or foreign(name, folder)):
        raise UserError(f"{name} is the name of a Python module that is installed here: choose another NAME")


def foreign(name: str, folder: Path) -> bool:
    """Whether `import NAME` finds a module elsewhere."""
    spec = importlib.util.find_spec(name)
    return spec is not None and not (spec.origin and Path(spec.origin).resolve().parent == folder)


def files_of(kind: str, name: str, folder: Path) -> dict[Path, str]:
    """The text of each file."""
    values = {"name": name, "kind": class_of(name)}
    code = folder / CODE[kind].format(name=name)
    places = {
        code: f"{kind}{code.suffix}",
        folder / GROUPS[kind] / f"{name}.yaml": f"{kind}.yaml",
        folder / f"test_{name}.py": f"test_{kind}.py",
    }
    return {
        path: Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(values)
        for path, template in places.items()
    }


def class_of(name: str) -> str:
    """The name of a class for the name of a module."""
    made = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return f"Own{made}" if made in TAKEN or keyword.iskeyword(made) else made


def commands(kind: str, name: str, folder: Path) -> list[str]:
    """What to run next, in the words that work here."""
    python, ours = programs()
    where = f"--config-dir {shlex.quote(str(folder))}"
    check = [f"{ours} check method {name} {where}"] if kind == "method" else []
    test = f"{python} -m pytest {shlex.quote(str(folder / f'test_{name}.py'))}"
    return [*check, test, f"{ours} {RUNS[kind].format(name=name)} model=random limit=2 experiment=trial {where}"]


def programs() -> tuple[str, str]:
    """How this Python and this pvcbench are called: by their names where those find them, else by their paths."""
    home = Path(sys.executable).parent.resolve()
    names = {name: shutil.which(name) for name in ("python", "pvcbench")}
    here = {name: place is not None and Path(place).parent.resolve() == home for name, place in names.items()}
    python = "python" if here["python"] else shlex.quote(sys.executable)
    return python, "pvcbench" if here["pvcbench"] else f"{python} -m pvcbench"
