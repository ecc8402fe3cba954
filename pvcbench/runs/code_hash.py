"""Describes a value or class (settings, state, code) as text that is the same in every process, for hashing.

Code is hashed by its syntax tree without docstrings, comments and places: the modules of a class and of its bases, and
every module that they import, outside the standard library and installed packages (the package of the class itself
counts wherever it is installed). What has no file of its own (notebook cells, `python -c`, the program's main module)
is hashed by its compiled functions and by what these reach. Values that closures, defaults, class attributes and the
object itself hold are part of it.
"""

import ast
import builtins
import dis
import hashlib
import importlib.util
import json
import math
import sys
import tokenize
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, cached_property, partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType

import numpy as np
import torch

from pvcbench.errors import UserError
from pvcbench.places import of_library

LONGEST = 2000  # characters of a setting that is written out; longer ones are hashed
OF_EVERY_CLASS = {"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__slots__"}
OF_EVERY_CLASS |= {"__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl", "__parameters__"}
OF_EVERY_CLASS |= {"__dataclass_fields__", "__dataclass_params__", "__match_args__", "__orig_bases__", "__annotate__"}
OF_EVERY_CLASS |= {"__annotate_func__", "__annotations_cache__"}
OF_C = (types.BuiltinFunctionType, types.GetSetDescriptorType, types.MemberDescriptorType)
OF_C += (types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType)
OF_C += (types.ClassMethodDescriptorType,)
MADE_IN_PYTHON = 1 << 9  # of a type's __flags__: CPython's Py_TPFLAGS_HEAPTYPE
FILES: set[Path] = set()  # every file that was hashed
_READ: dict[str, tuple[object, str]] = {}  # what each import of a module was when it was first hashed


def sha256(value: object) -> str:
    """A hash of a value of plain types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def brief(value: object) -> object:
    """A plain value, or the hash of one that is too long to read: settings are told, data are not."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return value if len(text) <= LONGEST else {"sha256": sha256(value), "characters": len(text)}


class Description:
    """Describes values in plain types and collects the code that they refer to, whose hash is `sha256`.

    Classes count as the user's own as far as they derive from `base`, wherever they are installed.
    """

    def __init__(self, kind: type, base: type):
        ours = (one for one in kind.__mro__ if issubclass(one, base))
        self.own = {_home(one).partition(".")[0] for one in ours} - {"pvcbench"}
        self.parts: list[str] = []
        self.seen: dict[object, object] = {}
        self.around: list[int] = []  # the lists, sets and mappings that are being described, by their place in memory
        self.kind(kind)

    @property
    def sha256(self) -> str:
        """The hash of all code that was met."""
        return sha256(sorted(self.parts))

    def first(self, key: object, value: object = None) -> bool:
        """Whether something was not met before; it is kept, since what is gone leaves its place in memory to others."""
        known = key in self.seen
        self.seen[key] = value
        return not known

    def foreign(self, name: str) -> bool:
        """Whether a module is pvcbench's, the standard library's or an installed package's: versions tell of those."""
        top = name.partition(".")[0]
        if top in self.own or top == "__main__":
            return False
        if top == "pvcbench" or top in sys.builtin_module_names:
            return True
        file = _file(name)
        return top in sys.stdlib_module_names if file is None else of_library(file)

    def module(self, name: str) -> None:
        """Adds a module's code, that of the packages around it and of what it imports."""
        if not name or not self.first(name):
            return
        self.module(name.rpartition(".")[0])
        if name == "__main__" or self.foreign(name) or _file(name) is None:
            return
        FILES.add(_file(name))
        text = _text(name)
        self.parts.append(tree(text) if text is not None else hashlib.sha256(_file(name).read_bytes()).hexdigest())
        for other in imported(name, text or ""):
            self.module(other)
        if text is not None and (changed := self.changed(name, text)):
            self.parts.append(sha256([name, changed]))

    def changed(self, name: str, text: str) -> dict:
        """A module's numbers, arrays and functions that its text does not tell: read from files, or set from outside.

        Texts count where the module writes one of them out and it now holds another: others are often places.
        """
        written = literals(text)
        found = {}
        for own, value in vars(sys.modules[name]).items() if name in sys.modules else ():
            foreign = isinstance(value, FunctionType) and _home(value) == "__main__"
            told = own in written and _plain(value, str) and written[own] == value
            if own.startswith("__") or told or not (foreign or _plain(value, *([str] if own in written else []))):
                continue
            found[own] = self.value(value, f"{name}.{own}")
        return found

    def kind(self, kind: type) -> None:
        """Adds a class with its bases: their modules, and what their attributes hold."""
        for base in kind.__mro__:
            if self.foreign(_home(base)) or not self.first(id(base), base):
                continue
            self.module(_home(base))
            held = {
                name: self.value(value, f"{base.__qualname__}.{name}")
                for name, value in vars(base).items()
                if name not in OF_EVERY_CLASS and not _generated(base, value)
            }
            self.parts.append(sha256([base.__qualname__, [one.__qualname__ for one in base.__bases__], held]))

    def function(self, function: FunctionType, where: str) -> object:
        """Adds a function: its module, or itself where no file has it; returns its name and what it holds."""
        home, origin = _home(function), Path(function.__code__.co_filename)
        if self.foreign(home) or not self.first(id(function), function):
            return function.__qualname__
        cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        more = [function.__defaults__ or (), function.__kwdefaults__ or {}, getattr(function, "__wrapped__", None)]
        held = [function.__qualname__, [self.value(one, where) for one in (*cells, *more)]]
        if home != "__main__" and origin.is_file() and origin.resolve() == _file(home):
            self.module(home)
            unique = "<" not in function.__qualname__  # of lambdas and inner functions a file may have several
            return held if unique else [*held, compiled(function.__code__)]
        if origin.is_absolute() and of_library(origin):  # a decorator's: what it wraps is among what it holds
            return held
        around = function.__globals__
        reached = {
            name: self.value(around[name], name) for name in sorted(looked_up(function.__code__) & around.keys())
        }
        return [*held, compiled(function.__code__), reached]

    def value(self, value: object, where: str) -> object:
        """A value in plain types; `where` names it. Raises UserError where it cannot be described."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, Enum):
            self.kind(type(value))
            return [type(value).__qualname__, value.name]
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, torch.Tensor | np.ndarray):
            return _array(value)
        if isinstance(value, Path):
            FILES.update([value.absolute()] if value.is_file() else [])
            return [value.name, hashlib.sha256(value.read_bytes()).hexdigest()] if value.is_file() else value.name
        return self._outer(value, where)

    def _outer(self, value: object, where: str) -> object:
        """What a value holds; raises UserError where that is, somewhere, the value itself."""
        if not isinstance(value, list | tuple | set | frozenset | Mapping):
            return self._collection(value, where)
        if id(value) in self.around:
            raise UserError(f"{where} holds a {type(value).__qualname__} that contains itself: hold one that does not")
        self.around.append(id(value))
        try:
            return self._collection(value, where)
        finally:
            self.around.pop()

    def _collection(self, value: object, where: str) -> object:
        """What plain lists, sets and mappings hold, and bytes."""
        if isinstance(value, bytes | bytearray):
            return {"bytes": hashlib.sha256(value).hexdigest()}
        if type(value) in (list, tuple):
            return [self.value(one, where) for one in value]
        if type(value) in (set, frozenset):
            return sorted((self.value(one, where) for one in value), key=sha256)
        if isinstance(value, Mapping) and not hasattr(value, "__dict__"):
            return {str(key): self.value(one, f"{where}.{key}") for key, one in value.items()}
        return self._code(value, where)

    def _code(self, value: object, where: str) -> object:
        """What classes, modules and functions refer to."""
        if isinstance(value, type):
            self.kind(value)
            return value.__qualname__
        if isinstance(value, ModuleType):
            self.module(value.__name__)
            return value.__name__
        if isinstance(value, FunctionType):
            return self.function(value, where)
        inner = _wrapped(value)
        return self._object(value, where) if inner is None else [self.value(one, where) for one in inner]

    def _object(self, value: object, where: str) -> object:
        """Any other object, by what would be saved of it."""
        if not self.first(id(value), value):
            return type(value).__qualname__
        self.kind(type(value))
        if is_dataclass(value):
            return [type(value).__qualname__, self.state(value, where)]
        try:
            saved = value.__reduce_ex__(4)
        except (TypeError, AttributeError) as error:
            raise UserError(
                f"{where} holds a {type(value).__qualname__}, which cannot be told from another one: results measured "
                "with it could be taken for those of other settings. Hold numbers, texts or tensors instead"
            ) from error
        if isinstance(saved, str):
            return saved
        make, arguments, *state = saved
        parts = [list(part) if isinstance(part, Iterator) else part for part in state]
        if parts and isinstance(parts[0], Mapping):
            parts[0] = without_cached(type(value), parts[0])
        return [type(value).__qualname__, [self.value(one, where) for one in (make, arguments, *parts)]]

    def state(self, value: object, where: str) -> dict:
        """What an object holds, by name: fields, attributes and slots, apart from cached properties."""
        names = [field.name for field in fields(value)] if is_dataclass(value) else []
        names += without_cached(type(value), getattr(value, "__dict__", {}))
        for base in type(value).__mro__:
            slots = vars(base).get("__slots__", ())
            names += [slots] if isinstance(slots, str) else slots
        held = {name: getattr(value, name) for name in dict.fromkeys(names) if hasattr(value, name)}
        return {name: self.value(one, f"{where}.{name}") for name, one in held.items()}


@cache
def tree(text: str) -> str:
    """The hash of a module's syntax tree, without what does nothing; the same in every version of Python."""
    return sha256(_node(ast.parse(text)))


def _node(value: object) -> object:
    if isinstance(value, ast.AST):
        parts = {name: _node(part) for name, part in ast.iter_fields(value)}
        return [type(value).__name__, {name: part for name, part in parts.items() if part not in (None, [])}]
    if isinstance(value, list):  # a statement that is a text, such as a docstring, does nothing
        return [_node(one) for one in value if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    return value if value is None or isinstance(value, str | bool) else f"{type(value).__name__} {value!r}"


def imported(name: str, text: str) -> Iterator[str]:
    """The names of the modules that a module imports or holds names of."""
    package = name if _file(name).stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
    for own, value in list(vars(sys.modules[name]).items()) if name in sys.modules else ():
        if isinstance(value, ModuleType):
            if value.__name__ != f"{name}.{own}":  # a package holds every module of its own that anybody has imported
                yield value.__name__
        elif isinstance(value, FunctionType | type):
            yield _home(value)


def literals(text: str) -> dict[str, object]:
    """The names that a module sets to a value that is written out, each with the last of them."""
    found = {}
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in targets:
                try:
                    found[getattr(target, "id", "")] = ast.literal_eval(node.value)
                except ValueError:
                    found.pop(getattr(target, "id", ""), None)
    return found


def _plain(value: object, *more: type) -> bool:
    """Whether a value is a number or an array, or of the types named, or holds nothing else."""
    if isinstance(value, Mapping):
        return all(_plain(one, *more) for one in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_plain(one, *more) for one in value)
    return isinstance(value, (bool, int, float, np.generic, np.ndarray, torch.Tensor, *more))


def compiled(code: CodeType) -> list:
    """What a compiled function does, step by step, without its place and docstring."""
    steps = [[one.opname, _constant(one.argval)] for one in dis.get_instructions(code)]
    signature = [code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags & 0x0C]
    return [steps, signature, list(code.co_varnames[: sum(signature[:2])])]


def _constant(value: object) -> object:
    if isinstance(value, CodeType):
        return compiled(value)
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return [_constant(one) for one in value] if isinstance(value, tuple) else repr(value)


def looked_up(code: CodeType) -> set[str]:
    """Every global name that a compiled function, or one inside it, looks up."""
    own = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(looked_up(one) for one in code.co_consts if isinstance(one, CodeType)))


def without_cached(kind: type, held: Mapping) -> dict:
    """What an object holds apart from values that it computed and kept."""
    cached = {name for base in kind.__mro__ for name, one in vars(base).items() if isinstance(one, cached_property)}
    return {name: one for name, one in held.items() if name not in cached}


def _home(thing: type | FunctionType) -> str:
    """The module of a class or function; code that was executed without a module belongs to the program."""
    name = thing.__module__ or "__main__"
    python = isinstance(thing, FunctionType) or thing.__flags__ & MADE_IN_PYTHON
    return "__main__" if name == "builtins" and python and not hasattr(builtins, thing.__name__) else name


def _file(name: str) -> Path | None:
    """The file of a module, imported or not; None where it has none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if name not in sys.modules:
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        file = found.origin if found is not None and found.has_location else None
    return Path(file).resolve() if file and Path(file).is_file() else None


def _text(name: str) -> str | None:
    """The source of a module, None where it is no Python file; raises UserError if it changed since it was imported."""
    file = _file(name)
    if file.suffix != ".py":
        return None
    with tokenize.open(file) as source:
        text = source.read()
    try:
        now = tree(text)
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: {error.msg}") from error
    made = getattr(sys.modules.get(name), "__spec__", None)
    if made is not None:
        known, then = _READ.get(name, (None, now))
        if known is made and then != now:
            raise UserError(f"{file} was edited after this program imported it: start Python again (or reload {name})")
        _READ[name] = made, now
    return text


def _generated(kind: type, value: object) -> bool:
    """Whether a function was written by `dataclass`, out of fields that are told anyway."""
    if not isinstance(value, FunctionType) or "__dataclass_params__" not in vars(kind):
        return False
    wrapped = getattr(value, "__wrapped__", value)
    named = value.__name__.startswith("__") and value.__name__ not in ("__post_init__", "__call__")
    return named and wrapped.__code__.co_filename == "<string>" and _file(_home(kind)) is not None


def _wrapped(value: object) -> list | None:
    """What a property, method, partial function or the like is made of; None for other objects."""
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, cached_property):
        return [value.func]
    if isinstance(value, staticmethod | classmethod | MethodType):
        return [value.__func__, getattr(value, "__self__", None)]
    if isinstance(value, OF_C):
        owner = getattr(value, "__self__", None)
        return [value.__name__, *([] if owner is None or isinstance(owner, ModuleType) else [owner])]
    return [value.__wrapped__] if callable(value) and hasattr(value, "__wrapped__") else None


def _filled(cell) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _array(value: torch.Tensor | np.ndarray) -> dict:
    """An array by its contents."""
    if isinstance(value, torch.Tensor):
        value = value.to_dense() if value.layout != torch.strided else value
        flat = value.detach().cpu().contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    else:
        raw = np.ascontiguousarray(value).tobytes()
    kind = str(value.dtype).removeprefix("torch.")
    return {"shape": list(value.shape), "dtype": kind, "sha256": hashlib.sha256(raw).hexdigest()}
