"""A run's folder as it was left: its configuration, ready to be run again, its identity and its rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pvcbench.config.compose import Config
from pvcbench.errors import UserError
from pvcbench.places import user_path
from pvcbench.runs.identity import objects
from pvcbench.runs.rows import KEY, read_rows

Key = tuple[str, str | None, str | None]


def stored(folder: str | Path) -> dict:
    """What config.yaml says: `run`, `identity` and `config`. Raises UserError where it is missing or unreadable."""
    path = user_path(folder) / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        whole = {name: found[name] for name in ("run", "identity", "config")}
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder} has no readable config.yaml: name the folder of one run") from error
    if not isinstance(whole["config"], Mapping) or not isinstance(whole["identity"], Mapping):
        raise UserError(f"{path} holds no configuration and identity of a run: it was altered")
    return whole


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


@dataclass(frozen=True)
class Stored:
    """A stored row and where it stands."""

    row: dict
    file: str
    line: int

    @property
    def key(self) -> Key:
        """Sample, method and budget."""
        return tuple(self.row[name] for name in KEY)


def stored_rows(folder: Path) -> dict[Key, Stored]:
    """The newest row of every sample and cell."""
    found = {}
    for path in sorted(folder.glob("rows*.jsonl")):
        for line, row in enumerate(read_rows(path)):
            one = Stored(row, path.name, line)
            found[one.key] = one
    return found
