"""Writes docs/reference/settings.md: every setting with its default, its kind and its comment, from conf/.

    python scripts/settings_reference.py            # writes the page; a test compares
    python scripts/settings_reference.py --check    # says whether the page is current, and exits with 1 if not

The comment behind a key in a YAML file is what the page says of it; a key of a run, a task or a model without one is
refused. The settings of methods are told by the methods' own cards.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pvcbench.config import compose, settings
from scripts.row_reference import comments
from scripts.written_page import program, reference, table

PAGE = reference("settings")
LINE = re.compile(r"^(\w+):\s*(?P<value>'[^']*'|\"[^\"]*\"|\[[^]]*\]|\{[^}]*\}|[^#]*?)\s*(?:#\s*(?P<note>.*))?$")
NO_SETTINGS = ("defaults", "hydra", "_target_")
HEAD = """# Settings: every key, its default and what it means

This page is written by `scripts/settings_reference.py` from the files in `conf/` and from
`pvcbench/config/settings.py`. A setting is written as `key=value` behind `pvcbench`, with its dots:
`pvcbench seed=1 task.repeats=2`. From Python dots are double underscores:
`pvcbench.evaluate(seed=1, task__repeats=2)`. Lists need quotes for the shell: `'budgets=[64,0.5]'`. A key that is not
here is taken for a typo, and the message names those that are near. `pvcbench --cfg job` prints the whole configuration
of a run and stops.
"""
CHOSEN = """## What is chosen by name

`task=NAME` chooses a file of `conf/task`, `model=NAME` one of `conf/model`, and `method=NAME` or
`'method=[NAME,NAME]'` files of `conf/method`. `+experiment=NAME` chooses a file of `conf/experiment`, which sets all of
these. `pvcbench list` prints the names. A method's settings are `methods.NAME.key=value`; its [card](methods.md) has
them. Two settings of one method in one run: `'+methods.pvc_b={_target_: methods.pvc.PvC, recent_ratio: 0.1}'`.
"""


class Setting(NamedTuple):
    """A key of a YAML file: its default and the comment behind it."""

    key: str
    default: str
    note: str


def written(path: Path) -> Iterator[Setting]:
    """The settings of a YAML file, each on a line of its own."""
    for line in path.read_text(encoding="utf-8").splitlines():
        found = LINE.match(line)
        if found and found[1] not in NO_SETTINGS:
            yield Setting(found[1], found["value"], found["note"] or "")


def told(path: Path) -> list[Setting]:
    """The same; a setting without a comment is refused."""
    found = list(written(path))
    for one in found:
        if not one.note:
            raise LookupError(f"{path.name}: the setting {one.key} needs a comment on its line")
    return found


def title(path: Path) -> str:
    """The first line of comment in a YAML file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line[2:] for line in lines if line.startswith("# ") and "@package" not in line)


def inner() -> Iterator[Setting]:
    """The settings of the schema's inner parts, such as `wandb`, with the comments of their lines."""
    text = Path(settings.__file__).read_text(encoding="utf-8")
    notes = comments(text)
    parts = {kind.__name__: name for name, kind in settings.PARTS.items()}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name in parts:
            for line in node.body:
                key = f"{parts[node.name]}.{ast.unparse(line.target)}"
                default = {"None": "null"}.get(ast.unparse(line.value), ast.unparse(line.value).strip("'"))
                yield Setting(key, default, notes.get(line.lineno, "").replace("None:", "null:"))


def of_runs() -> str:
    """The settings that every run has."""
    found = {one.key: one for one in [*told(compose.CONF / "config.yaml"), *inner()]}
    missing = [key for key in settings.kinds() if key not in found and key not in settings.PARTS]
    if missing:
        raise LookupError(f"conf/config.yaml says nothing of {', '.join(missing)}")
    rows = [[f"`{key}`", f"`{one.default}`", settings.wanted(key), one.note] for key, one in found.items()]
    return "## Every run\n\n" + table(["key", "default", "takes", "meaning"], rows)


def of_group(group: str) -> Iterator[str]:
    """A part for every file of a group, with its first line and its settings; files without any share a table."""
    plain = []
    for name in compose.options(group):
        path = compose.CONF / group / f"{name}.yaml"
        rows = [[f"`{group}.{one.key}`", f"`{one.default}`", one.note] for one in told(path)] if own(path) else []
        if rows:
            yield f"### `{group}={name}`\n\n{title(path)}\n\n{table(['key', 'default', 'meaning'], rows)}"
        else:
            plain.append([f"`{group}={name}`", title(path)])
    if plain:
        yield "### Files that start from `hf`\n\n" + table(["setting", "what it is"], plain)


def own(path: Path) -> bool:
    """Whether a file stands alone: one that starts from another sets the other's keys, told there."""
    return "_target_" in path.read_text(encoding="utf-8")


def page() -> str:
    """The whole page."""
    parts = [HEAD.rstrip(), of_runs(), CHOSEN.rstrip(), "## Tasks", *of_group("task"), "## Models", *of_group("model")]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(program(__doc__, PAGE, page))
