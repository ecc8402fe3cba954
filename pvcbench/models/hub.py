"""Any decoder-only model of the hub or of a local folder; safetensors only."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from pvcbench.errors import UserError
from pvcbench.models.loaded import LoadedModel, usable
from pvcbench.models.loading import check_settings, files_of, load, place_of
from pvcbench.tasks.chat import DATE
from pvcbench.tasks.prompts import Prompter


def hf(
    name: str,
    device: str,
    dtype: str | None,
    revision: str | None = None,
    tokenizer: str | None = None,
    device_map: str | None = None,
    chat: bool | None = None,
    attention: str = "sdpa",
    evict_sliding: bool = False,
    trust_remote_code: bool = False,
    thinking: bool = False,
    date: str = DATE,
    longest: int | None = None,
) -> LoadedModel:
    """Any decoder-only model of the hub or a local folder; safetensors only.

    `longest` replaces the longest sequence that its configuration tells.
    """
    check_settings(dtype, attention, device)
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 2):
        raise UserError(f"model.longest must be a whole number of tokens, 2 or more, not {longest!r}")
    source, texts = sources(name, tokenizer, revision)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    shown = source.name if isinstance(source, Path) else source
    asked = {"chat": chat, "attention": attention, "thinking": thinking, "date": date, "evict_sliding": evict_sliding}
    asked |= {"files": files_of(source, texts)}
    try:
        loaded = AutoTokenizer.from_pretrained(texts, **options)
        found = load(source, loaded, shown, device, dtype or "auto", asked, device_map, **options)
        return limited(found, longest)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = "" if isinstance(source, Path) else " (a hub name needs a network; a folder is named by its path)"
        raise UserError(f"cannot load model {str(name)!r}: {' '.join(lines[0].split())}{hint}") from error


def sources(name: str, tokenizer: str | None, revision: str | None) -> tuple[Path | str, Path | str]:
    """Where model and tokenizer come from, folders or names on the hub, checked as far as that is cheap."""
    source, texts = place_of(name, "model"), place_of(tokenizer or name, "tokenizer")
    if isinstance(source, Path):
        check_weights(source)
        if revision is not None:
            raise UserError(
                f"model.revision={revision} names a version on the hub, and {source} is a folder: leave it out"
            )
    if isinstance(texts, Path):
        check_tokenizer(texts)
    for place, what in {texts: "tokenizer", source: "model"}.items():
        if isinstance(place, str):
            check_hub(place, what, revision)
    return source, texts


def check_hub(name: str, what: str, revision: str | None) -> None:
    """Asks the hub once for a model that is not here yet, since loading asks again for most of a minute."""
    here = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    if here or constants.HF_HUB_OFFLINE:
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=10)
    except EntryNotFoundError:
        return  # a tokenizer alone
    except HfHubHTTPError as error:
        reason = " ".join((error.server_message or str(error)).split())
        raise UserError(f"cannot load {what} {name!r}: the hub says: {reason} (log in where it is gated)") from error
    except Exception as error:
        raise UserError(
            f"cannot load {what} {name!r}: it is no folder here, and the hub cannot be reached ({error})"
        ) from error


def check_weights(folder: Path) -> None:
    """Raises UserError where a folder cannot hold a model that is safe to load."""
    if not any(folder.iterdir()):
        raise UserError(f"the folder {folder} is empty: name one that save_pretrained wrote, or a snapshot of the hub")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds an adapter, not a model: merge it into its model and save that")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: name the folder that holds a model's config.json and weights")
    if any(folder.glob("*.safetensors")):
        return
    others = sorted(
        {path.suffix for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf", ".h5")}
    )
    if others:
        raise UserError(
            f"{folder} has its weights as {' and '.join(others)} only, and pvcbench reads safetensors: load it once "
            "where you trust it and save it again, AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )
    raise UserError(f"{folder} has no weights: *.safetensors are missing beside its config.json")


def check_tokenizer(folder: Path) -> None:
    """Raises UserError where a folder has no tokenizer."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
    if not any((folder / name).is_file() for name in names) and not any(folder.glob("*.tiktoken")):
        raise UserError(
            f"{folder} has no tokenizer: copy tokenizer.json and tokenizer_config.json of the model it was made from "
            "into it, or set model.tokenizer=ORG/NAME or model.tokenizer=FOLDER"
        )


def limited(loaded: LoadedModel, longest: int | None) -> LoadedModel:
    """The model with its owner's limit; the identity tells a length that is not the configuration's plain one."""
    loaded.limit = longest
    if loaded.longest != getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None):
        loaded.identity["longest"] = loaded.longest
    return loaded


def prompter(node: Mapping) -> Prompter:
    """What writes prompts for a model, by its configuration and without its weights."""
    options = {"revision": node.get("revision"), "trust_remote_code": node.get("trust_remote_code", False)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(node.get("tokenizer") or node["name"], **options)
        longest = usable(AutoConfig.from_pretrained(node["name"], **options).get_text_config())
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot load the tokenizer of {node['name']!r}: {reason}") from error
    thinking, date = node.get("thinking", False), node.get("date", DATE)
    return Prompter(tokenizer, node.get("chat"), node.get("longest") or longest, thinking, date)


hf.prompter = prompter
