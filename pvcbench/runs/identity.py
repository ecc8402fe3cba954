"""What a run's numbers depend on, for its id: model, data, task, methods with their code, engine and settings.

Nothing else: not the number of samples, the batch, places, names for people, or tracking. Equal identities mean that
rows may stand in one file.
"""

import json
from collections.abc import Mapping
from types import MethodType

from omegaconf import DictConfig, OmegaConf
from torch import nn

from pvcbench.config import building
from pvcbench.models.loaded import LoadedModel, fingerprint, tokenizer_id
from pvcbench.policy import Method
from pvcbench.runs.code_hash import Description, brief, sha256
from pvcbench.runs.stored import FROM_PYTHON
from pvcbench.tasks.base import Task

RULES = 2  # raised when an identity covers more: runs of before keep their ids, and are never taken for those of now


def of_model(loaded: LoadedModel) -> dict:
    """A model as it is now: weights, tokenizer, what its chat template writes around a message, and end tokens.

    `in_memory` is there where the weights or settings in memory are not those that were loaded by name, `code` where
    the model runs code that is neither pvcbench's nor an installed package's, and `longest` where it is not the length
    that the configuration plainly tells.
    """
    prompter = loaded.prompter()
    known = {"name": type(loaded.model).__name__} | loaded.identity
    now, code = fingerprint(loaded.model), code_of(loaded.model)
    changed = {} if loaded.made == now else {"in_memory": now}
    changed |= {} if code is None else {"code": code}
    if loaded.longest != getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None):
        changed["longest"] = loaded.longest
    return known | {
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "tokenizer": tokenizer_id(loaded.tokenizer),
        "chat": loaded.chat,
        "frame": [prompter.before, prompter.after],
        "thinking": prompter.thinking if prompter.chat else loaded.thinking or None,
        "date": loaded.date if "strftime_now" in str(getattr(loaded.tokenizer, "chat_template", "")) else None,
        "ends": sorted(loaded.ends),
        "attention": loaded.attention,
        "evict_sliding": loaded.evict_sliding,
        **changed,
    }


def code_of(model: nn.Module) -> str | None:
    """The hash of a model's own code: classes, hooks and replaced `forward`s; None where all of it is a package's."""
    described = Description(Method, Method)  # pvcbench's own class, which adds nothing
    for kind in {type(part) for part in model.modules()}:
        described.kind(kind)
    for name, part in model.named_modules():
        for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values(), vars(part).get("forward")):
            home = getattr(getattr(hook, "func", hook), "__module__", None) or type(hook).__module__
            if hook is None or described.foreign(home):
                continue
            bound = isinstance(hook, MethodType) and isinstance(hook.__self__, nn.Module)
            told = described.value(hook.__func__ if bound else hook, f"a hook of the model's {name or 'whole'}")
            described.parts.append(sha256([name, told]))
    return described.sha256 if described.parts else None


def of_task(task: Task) -> dict:
    """A task's name, version, data and settings; of a task of one's own its code as well."""
    described = Description(type(task), Task)
    settings = {name: brief(described.value(value, f"task.{name}")) for name, value in task.settings().items()}
    fixed = {"name": task.name, "version": task.version, "data": task.data_checksum()}
    if described.parts:  # ours says by its version that it changed
        fixed["code"] = described.sha256
    return fixed | {f"{name}_" if name in fixed else name: value for name, value in settings.items()}


def of_method(method: Method) -> dict:
    """A method's class, the hash of its code and what it holds; of methods inside it the same."""
    described = Description(type(method), Method)
    settings = described.state(method, type(method).__name__)
    for name in settings:
        if isinstance(getattr(method, name), Method):  # a method that wraps another is both
            settings[name] = of_method(getattr(method, name))
    settings = {name: brief(value) for name, value in settings.items()}
    return {"class": type(method).__qualname__, "source": described.sha256, "settings": settings}


def given(thing: object, base: type) -> dict:
    """What config.yaml says of an object that was given from Python in the place of a configuration."""
    kind, described = type(thing), Description(type(thing), base)
    if isinstance(thing, LoadedModel):
        held = {"name": thing.identity.get("name"), "chat": thing.chat, "attention": thing.attention}
    elif isinstance(thing, Task):
        held = described.value(thing.settings(), "task")
    else:
        held = described.state(thing, kind.__name__)
    settings = {name: brief(value) for name, value in held.items()}
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", FROM_PYTHON: settings}


def told(config: DictConfig, model: LoadedModel | None, task: Task | None, methods: Mapping | None) -> DictConfig:
    """The configuration of a run with what was given from Python in the places that it stands in for.

    A method object that is the one that its configuration describes is told by the configuration.
    """
    kept = OmegaConf.to_container(config)
    if model is not None:
        kept["model"] = given(model, LoadedModel)
    if task is not None:
        kept["task"] = given(task, Task)
    if methods is not None:
        shared = {name: node for name, node in kept["methods"].items() if name in methods}
        same = {
            name: shared[name]
            for name, made in building.build_methods(shared).items()
            if of_method(made) == of_method(methods[name])
        }
        kept["methods"] = {name: same.get(name) or given(method, Method) for name, method in methods.items()}
    return OmegaConf.create(json.loads(json.dumps(kept)))
