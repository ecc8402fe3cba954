"""What all loaders share: the checks of what is asked for, the loading itself, and what the weights are known by."""

import hashlib
import os
import re
import sys
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hub_logging

from pvcbench.errors import UserError
from pvcbench.models.loaded import LoadedModel, check_attention, ends_of, fingerprint, tokenizer_id
from pvcbench.places import marks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def files_of(*places: Path | str | None) -> dict[str, list[int]] | None:
    """The marks of all files of some folders; None where one of them is a name on the hub, which may move on."""
    given = [place for place in places if place is not None]
    return None if any(isinstance(place, str) for place in given) else marks(given)


def check_settings(dtype: str | None, attention: str, device: str) -> None:
    """Refuses, before anything is loaded, a dtype or kernel that there is not."""
    if dtype not in (*DTYPES, "auto", None):
        raise UserError(f"dtype must be one of {', '.join(DTYPES)} or auto (the model's own), not {dtype!r}")
    check_attention(attention, str(device), dtype)


def load(source, tokenizer, name, device, dtype, asked, device_map=None, **options) -> LoadedModel:
    """The model of a folder or the hub; `asked` are the settings that a loaded model keeps."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"the tokenizer of {name} has no tokenizer.json: convert it with save_pretrained first")
    hub_logging.disable_progress_bar()  # a model of the hub shows its download, not the loading of its tensors
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=DTYPES.get(dtype, "auto"), device_map=device_map or device, use_safetensors=True, **options
    ).eval()
    check_attention(asked["attention"], str(device), str(model.dtype).removeprefix("torch."))
    made = fingerprint(model)
    identity = {"name": name, "weights": _weights_id(source, model) or made}
    identity |= {"dtype": str(model.dtype).removeprefix("torch."), "tokenizer": tokenizer_id(tokenizer)}
    return _told(LoadedModel(model, tokenizer, identity, ends=ends_of(model, tokenizer), made=made, **asked))


def _told(loaded: LoadedModel) -> LoadedModel:
    """A model whose settings fit it; says where its thoughts cannot be turned off."""
    if loaded.prompter().thinking == "no switch":
        print(
            "pvcbench: this chat template writes of thoughts and has no switch to turn them off: if answers begin with "
            "thoughts, raise task.max_new_tokens or set model.chat=false",
            file=sys.stderr,
        )
    return loaded


def _weights_id(source: Path | str, model) -> str | None:
    """The revision of a hub model, or a checksum of a folder's weights and configuration; None where none is known."""
    if not isinstance(source, Path):
        return getattr(model.config, "_commit_hash", None)
    digest = hashlib.sha256()
    for path in sorted([*source.glob("*.safetensors"), source / "config.json"]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def place_of(name: str | os.PathLike, what: str) -> Path | str:
    """The folder that a name stands for, or the name of a model of the hub.

    Raises UserError at once where it can only be a folder, and there is none.
    """
    if not name:
        raise UserError("which model? set model.name=ORG/NAME or model.name=FOLDER")
    text = str(name)
    folder = Path(os.path.abspath(os.path.expanduser(text)))
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"cannot load {what} {text!r}: it is a file; name the folder that it lies in")
    parent, _, last = text.rpartition("/")
    on_hub = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", text, re.ASCII) and not text.endswith(".")
    if on_hub and parent and Path(parent).is_dir() and not isinstance(try_to_load_from_cache(text, "config.json"), str):
        raise UserError(f"cannot load {what} {text!r}: there is a folder {parent} here, and it has no {last}")
    if not on_hub:
        raise UserError(
            f"cannot load {what} {text!r}: there is no such folder, and names on the hub look like ORG/NAME"
        )
    return text
