"""The golden file: every case, and what each named variant of a method keeps of it.

In it stand `case_NN/queries`, `keys`, `values`, `plain_queries`, `plain_keys`, `output` (see `cases`), and for each
budget and variant `case_NN/budget_B/VARIANT`, the level of every entry (see `keeping`), [layers, batch, kv_heads,
tokens].
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from pvcbench.conformance.cases import VERSION as CASES
from pvcbench.conformance.cases import cases
from pvcbench.conformance.keeping import covered, levels
from pvcbench.errors import UserError
from pvcbench.policy import Method
from pvcbench.version import VERSION

DRAWN = "what they keep depends on random draws, or no case is long enough for them"


@dataclass(frozen=True)
class Golden:
    """The tensors of all cases; variants with their class and settings; methods without cases, and why."""

    tensors: Mapping[str, Tensor]
    variants: Mapping[str, dict]
    left_out: Mapping[str, str]

    @property
    def asked(self) -> dict[str, Tensor]:
        """What each variant keeps, by `case_NN/budget_B/VARIANT`."""
        return {name: tensor for name, tensor in self.tensors.items() if name.count("/") == 2}

    def kin(self, name: str) -> list[str]:
        """The variants of a method: those of its class. Raises UserError where the cases do not cover it."""
        if name not in self.variants:
            why = (
                f"{name} has no cases, as {self.left_out[name]}"
                if name in self.left_out
                else f"unknown method {name!r}"
            )
            raise UserError(f"{why}; choose from {', '.join(self.variants)}")
        return [one for one, told in self.variants.items() if told["class"] == self.variants[name]["class"]]


def golden(
    methods: Mapping[str, Method], absent: Mapping[str, str] | None = None, step: Callable[[], None] = lambda: None
) -> Golden:
    """All cases with what these methods keep of them; `absent` says of others why they are not among them.

    `step` is called after each case.
    """
    left_out = dict(absent or {}) | {
        name: why for name, method in methods.items() if (why := covered(method)) is not None
    }
    asked = {name: method for name, method in methods.items() if name not in left_out}
    tensors: dict[str, Tensor] = {}
    reached = set()
    for case in cases():
        tensors |= case.tensors()
        kept = levels(asked, case)
        tensors |= {f"{case.name}/{name}": level for name, level in kept.items()}
        reached |= {name.partition("/")[2] for name in kept}
        step()
    variants = {name: told(method) for name, method in asked.items() if name in reached}
    return Golden(tensors, variants, left_out | {name: DRAWN for name in asked if name not in reached})


def told(method: Method) -> dict:
    """A variant's class and settings, those of a method inside it by their names after a dot."""
    settings = {}
    for field in fields(method):
        value = getattr(method, field.name)
        if isinstance(value, Method):
            inner = told(value)
            settings[field.name] = inner["class"]
            settings |= {f"{field.name}.{name}": one for name, one in inner["settings"].items()}
        else:
            settings[field.name] = value
    return {"class": type(method).__name__, "settings": settings}


def write(made: Golden, path: Path) -> int:
    """Writes the file; returns its size in bytes."""
    known = {"pvcbench": VERSION, "cases": str(CASES)}
    known |= {"variants": json.dumps(dict(made.variants)), "left_out": json.dumps(dict(made.left_out))}
    try:
        return path.write_bytes(save(dict(made.tensors), metadata=known))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with --out") from error


def read(path: Path) -> Golden:
    """A golden file; raises UserError where it is none, or one of other cases than this version's."""
    try:
        with safe_open(path, "pt") as file:
            known = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    if known.get("cases") != str(CASES):
        raise UserError(
            f"{path} is no golden file of this version's cases ({CASES}): make one with `pvcbench conform make`"
        )
    return Golden(tensors, json.loads(known["variants"]), json.loads(known["left_out"]))
