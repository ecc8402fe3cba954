"""The command line that asks for a stored run again: what its configuration has beside the defaults."""

import importlib
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import PurePath

import yaml
from omegaconf import OmegaConf

from pvcbench.config import compose as configuration
from pvcbench.config.moved import today
from pvcbench.errors import UserError
from pvcbench.runs.stored import objects

OWN = ("methods", "results", "wandb", "retry_failed", "experiment", "shard")  # said in another way, or of no number
WORDS = ("true", "false", "null", "nan", "inf")  # which Hydra reads as something else than text


def command(stored: Mapping) -> tuple[str | None, str | None]:
    """A command for what config.yaml holds, checked to compose to the same; or None and why there is none."""
    config, identity = today(stored.get("config") or {}), stored["identity"]
    try:
        given = from_python(config, identity)
        if given is not None:
            return None, f"measured from Python with {given}"
        choices = [f"task={group('task', config['task'])}", *methods(config["methods"])]
        model = group("model", config["model"])
        choices = ([] if model == "smollm2" else [f"model={model}"]) + choices
        overrides = choices + differences(config, composed(tuple(choices)))
        if config.get("experiment") not in (None, "default"):
            overrides.append(f"experiment={spelled(config['experiment'])}")
        again = composed(tuple(overrides))
    except (KeyError, TypeError) as error:
        return None, f"config.yaml does not say what was run ({' '.join(str(error).split())} is missing)"
    except UserError as error:
        return None, f"config.yaml is not today's: {error}"
    except (ImportError, AttributeError) as error:
        return None, f"its task cannot be found here ({' '.join(str(error).split())})"
    if differences(config, again):
        return None, "today's settings cannot say what config.yaml does"
    return shlex.join(["python", "-m", "pvcbench", *overrides]), None


def from_python(config: Mapping, identity: Mapping) -> str | None:
    """What a run was given as objects, which no command can name; None where everything came from configurations."""
    given = objects(config)
    if given:
        return "; ".join(f"{where}: {what}" for where, what in given.items())
    known = named(config["task"]["_target_"])
    if known and identity["task"]["name"] != known:
        return "a task of its own"
    own, name = own_name(config["model"]), identity.get("model", {}).get("name")
    if name not in (None, own, PurePath(own).name):
        return f"a model of its own, {name!r}"
    for name, made in identity.get("methods", {}).items():
        if not describes(config["methods"].get(name), made):
            return f"a method {name!r} of its own, of class {made.get('class')}"
    return None


def own_name(model: Mapping) -> str:
    """The name that a model has by its configuration."""
    return model.get("name") or (f"random-{model['shape']}" if "shape" in model else "smollm2")


def describes(node: Mapping | None, made: Mapping) -> bool:
    """Whether a method's configuration is that of the method that ran; runs of before named another in its place."""
    if node is None:
        return False
    settings = made.get("settings", {})
    same = all(alike(settings[key], value) for key, value in node.items() if key in settings and key != "base")
    return same and made.get("class") in (None, node["_target_"].rpartition(".")[2])


def alike(setting: object, value: object) -> bool:
    """Whether a configured value is the setting of the identity, which keeps of a file its name and its hash."""
    of_file = isinstance(setting, list) and len(setting) == 2 and isinstance(value, str)
    return setting == value or (of_file and setting[0] == PurePath(value).name)


@cache
def composed(overrides: tuple[str, ...]) -> dict:
    """Today's configuration for some overrides."""
    return OmegaConf.to_container(configuration.composed(list(overrides)))


@cache
def targets(kind: str) -> dict[str, str]:
    """The `_target_` of every choice of a group that has one of its own, by name; presets build on another choice."""
    paths = {name: configuration.CONF / kind / f"{name}.yaml" for name in configuration.options(kind)}
    nodes = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    return {name: node["_target_"] for name, node in nodes.items() if "_target_" in node}


def group(kind: str, node: Mapping) -> str:
    """The choice of a group that a node came from; raises UserError where there is none."""
    found = [name for name, target in targets(kind).items() if target == node["_target_"]]
    if not found:
        raise UserError(f"no {kind} of conf/{kind} is {node['_target_']}")
    return found[0]


def named(target: str) -> str | None:
    """The name that a task class goes by; empty where each task of the class has its own, by its data."""
    module, _, kind = target.rpartition(".")
    return getattr(getattr(importlib.import_module(module), kind), "name", None)


def methods(nodes: Mapping) -> list[str]:
    """The choice of methods, and further settings of them under names of their own; the full cache is always there."""
    known = [name for name in nodes if name in configuration.options("method")]
    names = [name for name in known if name != "full"] or ["full"]
    own = [f"+methods.{name}={spelled(node)}" for name, node in nodes.items() if name not in known]
    return [f"method=[{','.join(names)}]" if len(names) > 1 else f"method={names[0]}", *own]


def differences(config: Mapping, base: Mapping) -> list[str]:
    """Overrides that turn one configuration into another, in the order of the keys."""
    nodes = {key: value for key, value in config.items() if key not in OWN}
    nodes |= {"methods": config["methods"]}
    return [f"{key}={spelled(value)}" for key, value in leaves(nodes, base=base) if found(base, key) != value]


def spelled(value: object) -> str:
    """A value in Hydra's grammar, without quotes where they are not needed."""
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{spelled(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./-]*", value)
    return value if plain and value.lower() not in WORDS else configuration.written(value)


def leaves(node: Mapping, prefix: str = "", base: Mapping | None = None) -> Iterator[tuple[str, object]]:
    """Dotted keys and values that are no mappings; not `_target_`, which a choice sets.

    A mapping stays whole where `base` has none, or an empty one: its keys are data, such as settings of a generator.
    """
    for key, value in node.items():
        known = value if base is None else found(base, f"{prefix}{key}")
        if isinstance(value, Mapping) and isinstance(known, Mapping) and known:
            yield from leaves(value, f"{prefix}{key}.", base)
        elif key != "_target_":
            yield f"{prefix}{key}", value


def found(base: Mapping, key: str) -> object:
    """The value at a dotted key; a marker that equals nothing where there is none."""
    for part in key.split("."):
        if not isinstance(base, Mapping) or part not in base:
            return ...
        base = base[part]
    return base
