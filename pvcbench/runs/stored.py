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
from pvcbench.runs.run_id import run_id

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML has it: pages read hundreds of them
FROM_PYTHON = "from_python"  # the key under which config.yaml says what an object held that was given from Python


def stored(folder: str | Path) -> dict:
    """What config.yaml says: `run`, `identity` and `config`, whose `_target_` are those of today.

    Raises UserError where it is missing, empty or torn, and where its identity does not give the run's id.
    """
    path = user_path(folder) / "config.yaml"
    whole = read(path)
    if whole is None:
        if not path.exists():
            advice = "name the folder of one run; where a run has lost it, the same command as before writes it again"
            raise UserError(f"{folder} has no readable config.yaml: {advice}")
        advice = "the same command as before writes it again, and the rows stay"
        raise UserError(f"{path} is no readable config.yaml (empty, torn, or not a run's): {advice}")
    refuse_altered(path, whole)
    return whole | {"config": today(whole["config"])}


def read(path: Path) -> dict | None:
    """The parts of a config.yaml as they stand there; None where it is missing, empty, torn or not a run's."""
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.load(text, Loader=LOADER)
        whole = {name: found[name] for name in ("run", "identity", "config")}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    parts = isinstance(whole["config"], Mapping) and isinstance(whole["identity"], Mapping)
    return whole if parts and text.endswith("\n") else None


def refuse_altered(path: Path, whole: Mapping, run: str | None = None) -> None:
    """Refuses a config.yaml whose identity does not give the id that it names, or the id of the run it lies in."""
    try:
        made = run_id(whole["identity"])
    except (KeyError, TypeError, AttributeError):
        made = None
    if made != whole["run"] or run not in (None, made):
        named = whole["run"] if run in (None, whole["run"]) else f"{run} of the run that it lies in"
        advice = "put the first one back, or delete it, and the command that measured the run writes it again"
        raise UserError(f"{path} was altered: its identity does not give the id {named}: {advice}")


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
