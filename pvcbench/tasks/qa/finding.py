"""Finds the YAML file of a data set, reads its sets, and says in one line each what is wrong with it."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import yaml
from pydantic import ValidationError

from pvcbench.config.compose import CONF
from pvcbench.errors import UserError
from pvcbench.places import own_folders, user_path
from pvcbench.tasks import files
from pvcbench.tasks.qa.description import PLACE, Description, Part
from pvcbench.tasks.qa.scorers.registry import METRICS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


def describe(data: str, config: str | None = None) -> tuple[dict[str, Description], str, Path]:
    """The sets of a YAML file by name, the name of the whole, and the file; `config` stands in for source.config."""
    path = found(data)
    whole = parsed(path)
    name, sets = whole.get("name", path.stem), whole.pop("sets", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{path}: name: found {files.shown(name)}, wanted letters, digits, _ . and -")
    if sets is None:
        return {name: checked({**whole, "name": name}, path, "", config)}, name, path
    if not isinstance(sets, Mapping) or not sets:
        raise UserError(
            f"{path}: sets: found {files.shown(sets)}, wanted a mapping of names to what each has of its own"
        )
    made = {}
    for own, given in sets.items():
        if not NAME.fullmatch(str(own)) or not (given is None or isinstance(given, Mapping)):
            raise UserError(f"{path}: sets.{own}: wanted a name, and a mapping of what the set has of its own")
        made[str(own)] = checked({**merged(whole, given or {}), "name": str(own)}, path, f"sets.{own}: ", config)
    return made, name, path


def found(data: str) -> Path:
    """The YAML file that a name or a path means."""
    if not isinstance(data, str) or not data.strip():
        raise UserError("task.data must be the name of a data set or the path of a YAML file: see `pvcbench list`")
    if data.endswith((".yaml", ".yml")) or "/" in data:
        path = user_path(data)
        if not path.is_file():
            raise UserError(f"task.data: there is no file {path}")
        return path
    for folder in (*own_folders(), CONF):
        if (folder / "data" / f"{data}.yaml").is_file():
            return folder / "data" / f"{data}.yaml"
    known = sorted(names())
    close = difflib.get_close_matches(data.lower(), known, n=1)
    others = f"choose from {', '.join(known)}, or name a .yaml file, or its folder by --config-dir"
    advice = f"did you mean {close[0]!r}?" if close else others
    raise UserError(f"task.data: unknown data set {data!r}: {advice}")


def names() -> Iterator[str]:
    """The data sets that can be named: pvcbench's own and those of the user's folders."""
    for folder in (*own_folders(), CONF):
        yield from (path.stem for path in (folder / "data").glob("*.yaml"))


def parsed(path: Path) -> dict:
    """A YAML file's mapping; a key that stands twice is refused."""
    try:
        value = yaml.load(files.read(path, "task.data"), Loader=Unique)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place} is not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: found {files.shown(value)}, wanted a mapping with source, columns, prompt and metric")
    return value


class Unique(yaml.SafeLoader):
    """YAML in which no key of a mapping stands twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def merged(whole: Mapping, own: Mapping) -> dict:
    """A mapping with what another one has over it; mappings within are merged, `columns: null` takes one away."""
    made = dict(whole)
    for key, value in own.items():
        both = isinstance(made.get(key), Mapping) and isinstance(value, Mapping) and key != "metric"
        made[key] = merged(made[key], value) if both else value
    return {key: value for key, value in made.items() if value is not None}


def checked(given: dict, path: Path, where: str, config: str | None) -> Description:
    """A data set's description; what is wrong with it is listed, a line each."""
    try:
        made = Description.model_validate(given)
    except ValidationError as error:
        told = [problem(one, given) for one in error.errors(include_url=False)]
        raise UserError("\n".join(f"{path}: {where}{one}" for one in dict.fromkeys(told))) from error
    wrong = list(faults(made))
    if wrong:
        raise UserError("\n".join(f"{path}: {where}{one}" for one in wrong))
    values = {"set": made.name, "config": made.source.config if config is None else config}
    filled = {
        key: PLACE.sub(lambda place: str(values.get(place[2], place[0])), value)
        for key, value in made.source.model_dump().items()
        if isinstance(value, str)
    }
    if config is not None:
        filled["config"] = config
    return made.model_copy(update={"source": made.source.model_copy(update=filled)})


def problem(error: Mapping, given: object) -> str:
    """What is wrong at one place: what was found, and what is wanted or which key is meant."""
    place = [str(one) for one in error["loc"] if not isinstance(one, int)]
    model, field = Description, None
    for name in place:
        if name in getattr(model, "model_fields", {}):
            field = model.model_fields[name]
            inner = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type)]
            model = next((one for one in inner if issubclass(one, Part)), None) or model
            owner = model
        else:
            owner = model
    key = ".".join(place)
    if error["type"] == "extra_forbidden":
        known = list(owner.model_fields)
        close = difflib.get_close_matches(place[-1].casefold(), known, n=1)
        return f"{key}: unknown key; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}")
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    wanted = field.description if field is not None else error["msg"]
    shown = "missing" if error["type"] == "missing" else f"found {json_of(error['input'])}"
    return f"{key}: {shown}, wanted {wanted}"


def json_of(value: object) -> str:
    """A value of a YAML file as a message shows it."""
    try:
        return files.shown(value)
    except TypeError:  # a date, say
        return str(value)


def faults(one: Description) -> Iterator[str]:
    """What is wrong with a description that has the right keys."""
    listed = one.metric if isinstance(one.metric, list) else [one.metric]
    right = all(isinstance(each, str) or (isinstance(each, Mapping) and _options(each)) for each in listed)
    if not listed or not right:
        yield f"metric: found {json_of(one.metric)}, wanted {Description.model_fields['metric'].description}"
        return
    for name, options in one.variants:
        yield from _metric(name, options)
    letters = ["A", "B", "C", "D", "E", "F"] if one.choices is not None else []
    derived = bool(one.rows.derive)
    if "answers" not in one.columns:
        yield "columns: wanted answers: the column that holds the right answers"
    for name in one.read:
        if name not in one.columns and name not in letters and not derived:
            close = difflib.get_close_matches(name, list(one.columns), n=1)
            yield f"prompt: {{{name}}} is filled by no column" + (f"; did you mean {{{close[0]}}}?" if close else "")


def _options(each: Mapping) -> bool:
    return all(options is None or isinstance(options, Mapping) for options in each.values())


def _metric(name: object, options: Mapping) -> Iterator[str]:
    if name not in METRICS:
        close = difflib.get_close_matches(str(name), METRICS, n=1)
        advice = f"did you mean {close[0]}?" if close else f"known: {', '.join(METRICS)}"
        yield f"metric: unknown metric {name!r}; {advice}"
        return
    for option in options:
        if option not in METRICS[name].options:
            known = ", ".join(METRICS[name].options) or "none"
            yield f"metric.{name}: unknown option {option!r}; known: {known}"


def told(sets: Sequence[Description]) -> list[dict]:
    """Descriptions as plain values, for the run id; where the data lie changes no number: their hash stands beside."""
    kept = [one.model_dump(exclude={"license", "size", "source"}, exclude_defaults=True) for one in sets]
    return json.loads(json.dumps(kept))
