"""Converting a GGUF file once: dequantised by transformers, saved as float32 safetensors in the user's cache."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from pvcbench.errors import UserError
from pvcbench.places import user_path


def cache_folder() -> Path:
    """Where converted models live: $PVCBENCH_CACHE, else the user's cache folder."""
    base = os.environ.get("PVCBENCH_CACHE")
    if base:
        return user_path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvcbench"


def converted(
    source: Path, folder: Path, what: str, convert: Callable[[Path, Path], None], sound: Callable[[Path], bool]
) -> Path:
    """A folder with the converted model, which appears whole or not at all; `what` names the model to the reader."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write to {folder.parent}: {error.strerror}; set PVCBENCH_CACHE=FOLDER") from error
    print(f"Converting {what} once into {folder}", file=sys.stderr)
    try:
        convert(source, temporary)
        if not sound(temporary):
            raise RuntimeError(f"the tokenizer of {what} does not give texts back with this version of transformers")
        try:
            temporary.replace(folder)
        except OSError:  # another process finished first
            if not (folder / "model.safetensors").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def save_weights(source: Path, folder: Path, name: str) -> None:
    """Dequantises a GGUF file to float32 and saves the model, without a word of the quantisation it had."""
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, gguf_file=source.name)
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    settings["_name_or_path"] = name
    plain = type(model)(type(model.config)(**settings))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder, max_shard_size="1TB")
