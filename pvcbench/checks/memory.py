"""What a method could remember: values on the object, on its classes and in their modules, by name."""

import sys

import numpy as np
import torch

from pvcbench.policy import Method
from pvcbench.runs import identity
from pvcbench.runs.code_hash import OF_EVERY_CLASS, Description

VALUES = (bool, int, float, str, bytes, bytearray, list, tuple, set, frozenset, dict, np.ndarray, torch.Tensor)


def held_by(method: Method) -> dict[str, object]:
    """Each value that the method holds, described so that equal descriptions mean equal values."""
    described = Description(type(method), Method)
    found = dict(identity.of_method(method)["settings"])
    for base in type(method).__mro__:
        if base is object or described.foreign(base.__module__):
            continue
        module = sys.modules.get(base.__module__)
        places = {base.__qualname__: vars(base)} | ({} if module is None else {module.__name__: vars(module)})
        for place, values in places.items():
            for name, value in list(values.items()):
                if isinstance(value, VALUES) and not name.startswith("__") and name not in OF_EVERY_CLASS:
                    found[f"{place}.{name}"] = described.value(value, name)
    return found
