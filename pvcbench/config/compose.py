"""Configuration: finds `conf` and the user's folders, and composes a run's configuration from overrides by Hydra."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pvcbench.config import overrides as written_settings
from pvcbench.config import settings
from pvcbench.config.building import MISSING, add_folder, refuse_shadow
from pvcbench.config.extras import pip_install
from pvcbench.config.overrides import quoted
from pvcbench.config.settings import Config
from pvcbench.errors import UserError
from pvcbench.places import user_path

PACKAGE = Path(__file__).parent.parent
# of a wheel, of the sources
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
LAUNCHERS = ("basic", "submitit_local", "submitit_slurm")
CHOSEN = ("model", "task", "method")  # groups that every run chooses from

ConfigStore.instance().store("pvcbench_schema", Config)


def check_header(path: Path) -> None:
    """Refuses a method's file that would not be put among the methods: Hydra reads that from its first lines only."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    first = next((line for line in lines if line.strip()), "")
    if not re.match(r"\s*#\s*@package\s+\S", first):
        raise UserError(f"the first line of {path} must be `# @package methods.{path.stem}`")


def folders_of(extra: Sequence[str | os.PathLike]) -> list[Path]:
    """Checked folders of the user's configuration; what they hold can be imported from now on."""
    folders = [user_path(path).resolve() for path in extra]
    for given, folder in zip(extra, folders, strict=True):
        if not folder.is_dir():
            raise UserError(f"--config-dir: there is no folder {given}")
        for group in (*CHOSEN, "experiment", "data"):
            for path in (folder / group).rglob("*.yaml"):
                refuse_shadow(path, CONF / path.relative_to(folder))
        for path in (folder / "method").rglob("*.yaml"):
            check_header(path)
        if (folder / "config.yaml").is_file() and folder != CONF:
            refuse_shadow(folder / "config.yaml", CONF / "config.yaml")
        add_folder(folder)
    return folders


def composed(overrides: Sequence[str], extra: Sequence[str | os.PathLike] = ()) -> DictConfig:
    """The configuration for some overrides; every mistake becomes one line that says what to do."""
    folders = folders_of(extra)
    chosen, single = split(readable(overrides, folders), folders)
    own = [one for one in single if written_settings.pieces_of(one)[1] in Config.__dataclass_fields__]
    try:
        config = _compose([*chosen, *(one for one in single if one not in own)], folders)
        for one in own:  # not by Hydra, which takes a key for a group where a folder has its name
            assign(config, one)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, chosen, folders)) from error
    known = [*Config.__dataclass_fields__, *(key for key in settings.kinds() if "." in key)]
    for key in [*config, *(f"{name}.{key}" for name in settings.PARTS for key in config[name])]:
        if key not in known:
            beside = [one for one in known if one.rpartition(".")[0] == str(key).rpartition(".")[0]]
            raise UserError(unknown("key", str(key), beside))
    return config


def _compose(overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """What Hydra makes of overrides in its own grammar."""
    places = [f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in folders)}]"] if folders else []
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="pvcbench"):
        return compose("config", overrides=[*overrides, *places])


def readable(overrides: Sequence[str], folders: Sequence[Path] = (), several: bool = False) -> list[str]:
    """Overrides in Hydra's grammar; unknown names and values of no sense are refused."""
    chosen, single = split(overrides, folders)
    for one in chosen:
        check_choice(one, folders, several)

    def defaults() -> dict:
        first = [written_settings.first_of(one) for one in chosen]
        try:
            return OmegaConf.to_container(_compose(first, folders))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error, first, folders)) from error

    made = iter(written_settings.readable(single, defaults, several))
    return [one if one in chosen else opened(next(made), folders) for one in overrides]


def opened(text: str, folders: Sequence[Path] = ()) -> str:
    """A setting in a mapping that a method's file leaves empty, as one to be added: such a mapping takes any key."""
    mark, key, _ = written_settings.pieces_of(text)
    group, *names = key.split(".")
    if mark or group != "methods" or not names or names[0] not in options("method", folders):
        return text
    node = file_of("method", names[0], folders)
    for name in names[1:]:
        node = node.get(name) if isinstance(node, Mapping) else None
        if node == {}:
            return f"++{text}"
    return text


def split(overrides: Sequence[str], folders: Sequence[Path] = ()) -> tuple[list[str], list[str]]:
    """Overrides that choose from a group, and those of single settings.

    experiment=NAME is a setting, the name of the results folder; +experiment=NAME chooses an experiment.
    """
    chosen, single = [], []
    for one in overrides:
        mark, key, _ = written_settings.pieces_of(one)
        group = key in CHOSEN or (key == "experiment" and mark == "+") or key.startswith("hydra/")
        own = key not in Config.__dataclass_fields__ and any(any((folder / key).glob("*.yaml")) for folder in folders)
        (chosen if group or own else single).append(one)
    return chosen, single


def check_choice(text: str, folders: Sequence[Path], several: bool) -> None:
    """Refuses an override that chooses from a group what the group does not have."""
    mark, group, _ = written_settings.pieces_of(text)
    if mark == "~":
        written_settings.deletion(text)
    if mark == "~" or group.startswith("hydra/"):
        return
    read = written_settings.parsed(text)
    form = f"{'+' * (group not in CHOSEN)}{group}=NAME" + (f" or '{group}=[NAME,NAME]'" if group == "method" else "")
    if group in CHOSEN and mark:
        raise UserError(f"{text}: every run has a {group} and needs no {mark} for it: write {form}")
    if read is None:
        raise UserError(f"{text} cannot be read: write {form}, with a name that `list` shows")
    found = read.value()
    if read.is_sweep_override():
        if not several:
            raise UserError(f"{text}: several names need --multirun, one run each; for one run write {form}")
        found = [one for part in read.sweep_iterator() for one in (part if isinstance(part, list) else [part])]
    elif isinstance(found, dict) and found and group in CHOSEN:
        return  # settings of what is chosen
    if group == "method" and (not found or (isinstance(found, list) and [] in found)):
        raise UserError(f"{text} names no method: write method=full for the full cache alone, or {form}")
    names = found if isinstance(found, list) and (group == "method" or read.is_sweep_override()) else [found]
    known = options(group, folders)
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"{text} names no {group}: write {form}, with a name that `list` shows")
        if str(name).removesuffix(".yaml") not in known:
            raise UserError(unknown(group, str(name), known))


def assign(config: DictConfig, text: str) -> None:
    """Sets a key at the top of the configuration."""
    one = written_settings.parsed(text)
    if one.is_sweep_override():
        raise UserError(f"{text}: several values need --multirun, one run each")
    try:
        OmegaConf.update(config, one.key_or_group, one.value(), merge=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or one.key_or_group
        raise UserError(misfit(key, text.partition("=")[2], error)) from error


def misfit(key: str, value: str, error: Exception) -> str:
    """One line for a value that a key of the schema cannot hold."""
    if key in settings.kinds():
        return f"{key} must be {settings.wanted(key)}, not {value}"
    return f"{key} cannot be {value}: {' '.join(str(error).splitlines()[0].split())}"


def written(value: Any) -> str:
    """A Python value in Hydra's override grammar; strings are quoted."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str | os.PathLike):
        return quoted(os.fspath(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(written(item) for item in value)}]"
    return repr(value)


def explain(error: Exception, chosen: Sequence[str] = (), folders: Sequence[Path] = ()) -> str:
    """One line for what Hydra says in many, with the nearest names that exist."""
    text = str(error)
    missing = re.search(r"Could not (?:find|load) '(?:([\w/]+)/)?([\w.\-]+?)'", text)
    if missing and missing[1]:
        if missing[1] == "hydra/launcher" and missing[2] in LAUNCHERS:
            return f"hydra/launcher={missing[2]} needs submitit and its Hydra launcher: {pip_install('slurm')}"
        known = LAUNCHERS if missing[1] == "hydra/launcher" else options(missing[1], folders)
        return unknown(missing[1], missing[2], known)
    if "Could not override" in text or "is not in struct" in text or "not in 'Config'" in text:
        key = re.search(r"override '([^']+)'|Key '([^']+)'", text)
        name = next((part for part in key.groups() if part), "?") if key else "?"
        full = re.search(r"full_key: (\S+)", text)
        return unknown_key(full[1] if full else name, chosen, folders)
    merged = re.match(r"Error merging override \+{0,2}([\w.]+)=(.*)", text)
    if merged:
        return misfit(merged[1], merged[2], error.__cause__ or error)
    cause = error.__cause__ or error
    return " ".join(f"{text.splitlines()[0]}: {cause}".split()) if cause is not error else " ".join(text.split())


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """`unknown KIND 'NAME'` with the closest known name, or all of them."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    if close and close[0] != name:
        return f"unknown {kind} {name!r}: did you mean {close[0]!r}?"
    return f"unknown {kind} {name!r}: choose from {', '.join(known)}"


def unknown_key(key: str, chosen: Sequence[str], folders: Sequence[Path]) -> str:
    """What to do about a key that a configuration does not have."""
    group, _, rest = key.partition(".")
    if key == "data":
        return "unknown key 'data': a data set is chosen by task=qa task.data=NAME"
    if group == "methods":
        name, _, rest = rest.partition(".")
        if name in options("method", folders) and key in keys_of("method", name, folders):
            return f"{key}: this run has no method {name}; write 'method=[{name},...]' to have it"
    elif rest:
        owners = [name for name in options(group, folders) if key in keys_of(group, name, folders)]
        if owners:
            return f"{key} is a setting of {group}={' or '.join(owners)}, and this run has another {group}"
    known = dotted(OmegaConf.to_container(_compose(chosen, folders)))
    known += [one for name in options("method", folders) for one in keys_of("method", name, folders)]
    close = difflib.get_close_matches(key.lower(), known, n=1)
    beside = [one for one in known if one.rpartition(".")[0] == key.rpartition(".")[0]] or list(settings.kinds())
    return unknown("key", key, close or beside)


def dotted(node: Mapping, prefix: str = "") -> list[str]:
    """Every dotted key of nested dictionaries."""
    found = []
    for key, value in node.items():
        found.append(f"{prefix}{key}")
        found += dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else []
    return found


def keys_of(group: str, name: str, folders: Sequence[Path] = ()) -> list[str]:
    """The dotted keys that one choice of a group has in the file of its own."""
    node = {key: value for key, value in file_of(group, name, folders).items() if key != "defaults"}
    return dotted(node, f"methods.{name}." if group == "method" else f"{group}.")


def file_of(group: str, name: str, folders: Sequence[Path] = ()) -> dict:
    """What the file of one choice of a group holds."""
    return yaml.safe_load(choices(group, folders)[name].read_text(encoding="utf-8")) or {}


def choices(group: str, folders: Sequence[Path] = ()) -> dict[str, Path]:
    """The names in a configuration group, each with its file; pvcbench's own and those of folders of the user's."""
    found = {}
    for root in (*reversed(folders), CONF):
        for path in (root / group).rglob("*.yaml"):
            found[path.relative_to(root / group).with_suffix("").as_posix()] = path
    return dict(sorted(found.items()))


def options(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """The names in a configuration group."""
    return list(choices(group, folders))


def complete(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """The names in a configuration group that run as they stand: nothing in their file is left to the user (`???`)."""
    return [name for name in options(group, folders) if MISSING not in file_of(group, name, folders).values()]
