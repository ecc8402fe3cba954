"""Pretended devices: CPU tensors that say they lie elsewhere, and refuse to meet tensors of another place.

    with Places():
        one = place(torch.ones(3), "maia:0")
        one + place(torch.ones(3), "maia:1")  # raises DevicesMeet
        one + one.new_ones(3)                # computed on the CPU, still at maia:0

Numbers are real, so operations that depend on them run as well. As on GPUs, a scalar of the CPU may join anything, and
only `to` and `copy_` cross. `maia` is a device type that can be named without its runtime.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CROSSING = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class DevicesMeet(RuntimeError):
    """An operation was given tensors of two places."""


class Placed(torch.Tensor):
    """A tensor on a pretended device; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held, place):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="cpu", **layout)

    def __init__(self, held, place):
        self.held, self.place = held, place

    device = property(lambda self: self.place)

    def tolist(self):
        """The numbers, brought to Python."""
        return self.held.tolist()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.to, torch.Tensor.type_as) and isinstance(args[-1], Placed) and len(args) == 2:
            # C++ would ask where the numbers lie
            func, args, kwargs = torch.Tensor.to, args[:1], {"dtype": args[1].dtype, "device": args[1].device}
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class Places(TorchDispatchMode):
    """While it is entered, tensors can be made on pretended devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def place(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor on a pretended device."""
    return Placed(tensor, torch.device(device))


def computed(func, args, kwargs):
    """Runs one operation on the tensors behind the pretended ones and places what comes out."""
    if func._can_decompose():  # an operation made of others, which inference mode hands over whole
        with Places():
            return func.decompose(*args, **kwargs)
    flat, spec = tree_flatten((args, kwargs))
    tensors = [part for part in flat if isinstance(part, torch.Tensor)]
    met = {part.device for part in tensors if isinstance(part, Placed) or part.dim()}
    if len(met) > 1 and func not in CROSSING:
        raise DevicesMeet(f"{func} on {', '.join(sorted(map(str, met)))}")
    asked = kwargs.get("device")
    target = tensors[0].device if tensors and not met else next(iter(met), torch.device("cpu"))
    if func is torch.ops.aten.copy_.default:
        target = args[0].device
    target = torch.device(asked) if asked is not None else target
    known = {id(part.held): part for part in tensors if isinstance(part, Placed)}
    args, kwargs = tree_unflatten([part.held if isinstance(part, Placed) else part for part in flat], spec)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*args, **kwargs)
    if target.type == "cpu":
        return result

    def back(part):
        if not isinstance(part, torch.Tensor):
            return part
        return known.get(id(part)) if id(part) in known else Placed(part, target)

    return tree_map(back, result)
