"""The stored configuration of a run, config.yaml, which is read here and nowhere else."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pvcbench.config.moved import today
from pvcbench.config.settings import Config
from pvcbench.errors import UserError
from pvcbench.places import user_path

FROM_PYTHON = "from_python"  # the key under which config.yaml says what an object held that was given from Python


def stored(folder: str | Path) -> dict:
    """What config.yaml says: `run`, `identity` and `config`, whose `_target_` are those of today.

    Raises UserError where it is missing or unreadable.
    """
    path = user_path(folder) / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        whole = {name: found[name] for name in ("run", "identity", "config")}
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"{folder} has no readable config.yaml: name the folder of one run, or move it out of the results"
        ) from error
    if not isinstance(whole["config"], Mapping) or not isinstance(whole["identity"], Mapping):
        raise UserError(f"{path} holds no configuration and identity of a run: it was altered")
    return whole | {"config": today(whole["config"])}


def stored_config(folder: str | Path) -> DictConfig:
    """The configuration of a stored run over today's defaults of what it does not say, whole and not a shard.

    Raises UserError where it has settings that this version does not know.
    """
    settings = dict(stored(folder)["config"])
    settings.pop("shard", None)
    given = objects(settings)
    if given:
        told = "; ".join(f"{where}: {what}" for where, what in given.items())
        raise UserError(f"{folder} was measured with objects given from Python, which cannot be built again: {told}")
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), settings)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: this version of pvcbench cannot read its configuration: {reason}") from error
    missing = sorted(name for name in ("model", "task", "methods", "budgets") if name not in settings)
    if missing:
        raise UserError(f"{folder} was measured with objects, not configurations, of: {', '.join(missing)}")
    return config


def objects(config: Mapping) -> dict[str, str]:
    """The parts of a stored configuration that were objects given from Python: what they are by where they stood."""
    nodes = {part: config.get(part) for part in ("model", "task")}
    nodes |= {f"method {name}": node for name, node in (config.get("methods") or {}).items()}
    return {where: said(node) for where, node in nodes.items() if isinstance(node, Mapping) and FROM_PYTHON in node}


def said(node: Mapping) -> str:
    """An object of a stored configuration in words."""
    settings = ", ".join(f"{name}={value!r}" for name, value in node[FROM_PYTHON].items())
    return f"{node['_target_']}({settings})"
