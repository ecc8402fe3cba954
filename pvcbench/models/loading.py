"""Models: the embedded one, any of the hub or a local folder, or a named shape with random weights."""

import difflib
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as hub_logging

from pvcbench.config.extras import pip_install
from pvcbench.errors import UserError
from pvcbench.models import embedded
from pvcbench.models.checksum import weights_checksum
from pvcbench.places import marks
from pvcbench.tasks.chat import DATE
from pvcbench.tasks.prompts import Prompter

KERNELS = ("sdpa", "flash_attention_2")  # what computes the attention of a prompt
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHAPES = {  # vocabulary, hidden, intermediate, layers, heads, KV heads, longest prompt, RoPE base
    "tiny": (300, 64, 128, 4, 4, 2, 4096, 10000.0),
    "llama2_7b": (32000, 4096, 11008, 32, 32, 32, 4096, 10000.0),
    "llama2_13b": (32000, 5120, 13824, 40, 40, 40, 4096, 10000.0),
    "llama3_8b": (128256, 4096, 14336, 32, 32, 8, 131072, 500000.0),
}


@dataclass
class LoadedModel:
    """A model, its tokenizer, and what of them changes a number; `identity` names the weights that were loaded."""

    model: torch.nn.Module
    tokenizer: object
    identity: dict
    chat: bool | None = None
    attention: str = "sdpa"
    evict_sliding: bool = False
    ends: Sequence[int] = field(default_factory=tuple)  # tokens that end an answer
    thinking: bool = False
    date: str = DATE
    limit: int | None = None  # the longest sequence by model.longest, where it is set
    made: str | None = None  # the fingerprint of the weights that `identity` names; None: they are told by content
    files: dict[str, list[int]] | None = None  # what it was read from, with marks; None: not from files here

    def __post_init__(self):
        if self.chat not in (None, True, False):
            raise UserError(f"model.chat must be true, false or null, not {self.chat!r}")
        if not isinstance(self.evict_sliding, bool):
            raise UserError(f"model.evict_sliding must be true or false, not {self.evict_sliding!r}")
        check_attention(self.attention)

    @property
    def longest(self) -> int | None:
        """The longest sequence the model was made for, in tokens, or the one that its owner set."""
        return self.limit or usable(self.model.config.get_text_config())

    def prompter(self) -> Prompter:
        """What writes prompts for this model."""
        return Prompter(self.tokenizer, self.chat, self.longest, self.thinking, self.date)


def usable(config) -> int | None:
    """Tokens that a model may read by its configuration: what YaRN stretches counts stretched, as its authors mean it.

    `max_position_embeddings` is the length before YaRN in some configurations (Qwen's), after it in others.
    """
    longest, rope = getattr(config, "max_position_embeddings", None), getattr(config, "rope_parameters", None) or {}
    for one in rope.values() if all(isinstance(part, dict) for part in rope.values()) else [rope]:
        first, factor = one.get("original_max_position_embeddings"), one.get("factor")
        if longest is not None and one.get("rope_type") == "yarn" and first and factor:
            longest = max(longest, int(first * factor))
    return longest


def check_attention(name: str, device: str = "cuda", dtype: str | None = None) -> None:
    """Raises UserError where a kernel is unknown, or cannot run on a device or in a dtype."""
    if name not in KERNELS:
        close = difflib.get_close_matches(str(name), KERNELS, n=1, cutoff=0.3)
        advice = f"did you mean {close[0]}?" if close else f"choose from {', '.join(KERNELS)}"
        raise UserError(f"unknown model.attention {name!r}: {advice}")
    if name == "sdpa":
        return
    if not device.startswith("cuda"):
        raise UserError(f"model.attention={name} needs a GPU, and the device is {device}: set model.attention=sdpa")
    if importlib.util.find_spec("flash_attn") is None:
        raise UserError(f"model.attention={name} needs flash-attn: {pip_install('flash')}; or set model.attention=sdpa")
    if dtype in ("float32", "float64"):
        raise UserError(f"model.attention={name} cannot compute in {dtype}: set dtype=bfloat16 or dtype=float16")


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
    folder = embedded.ensure()
    asked = {"chat": chat, "attention": attention, "thinking": thinking, "date": date, "files": files_of(folder)}
    return _load(folder, embedded.tokenizer_of(folder), "smollm2", device, dtype or "float32", asked)


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
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    shown = source.name if isinstance(source, Path) else source
    asked = {"chat": chat, "attention": attention, "thinking": thinking, "date": date, "evict_sliding": evict_sliding}
    asked |= {"files": files_of(source, texts)}
    try:
        loaded = AutoTokenizer.from_pretrained(texts, **options)
        found = _load(source, loaded, shown, device, dtype or "auto", asked, device_map, **options)
        return limited(found, longest)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = "" if isinstance(source, Path) else " (a hub name needs a network; a folder is named by its path)"
        raise UserError(f"cannot load model {str(name)!r}: {' '.join(lines[0].split())}{hint}") from error


def files_of(*places: Path | str | None) -> dict[str, list[int]] | None:
    """The marks of all files of some folders; None where one of them is a name on the hub, which may move on."""
    given = [place for place in places if place is not None]
    return None if any(isinstance(place, str) for place in given) else marks(given)


def check_settings(dtype: str | None, attention: str, device: str) -> None:
    """Refuses, before anything is loaded, a dtype or kernel that there is not."""
    if dtype not in (*DTYPES, "auto", None):
        raise UserError(f"dtype must be one of {', '.join(DTYPES)} or auto (the model's own), not {dtype!r}")
    check_attention(attention, str(device), dtype)


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


def _load(source, tokenizer, name, device, dtype, asked, device_map=None, **options) -> LoadedModel:
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


def random(
    shape: str, device: str, dtype: str | None, seed: int = 0, tokenizer: str | None = None, attention: str = "sdpa"
) -> LoadedModel:
    """Random weights of a named shape, for speed and for tests; a byte-level tokenizer unless one is named."""
    if shape not in SHAPES:
        raise UserError(f"model.shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    check_settings(dtype, attention, device)
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()
    *sizes, longest, theta = SHAPES[shape]
    settings = dict(zip(names, sizes, strict=True), max_position_embeddings=longest)
    settings |= {"bos_token_id": None, "eos_token_id": None}  # the tokenizer's count; Llama's own would be letters
    config = AutoConfig.for_model("llama", **settings, rope_parameters={"rope_type": "default", "rope_theta": theta})
    own = "bfloat16" if device.startswith("cuda") else "float32"
    kind = own if dtype in (None, "auto") else dtype
    check_attention(attention, device, kind)
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[kind]).eval()
    texts = None if tokenizer is None else place_of(tokenizer, "tokenizer")
    files = files_of(texts)
    loaded = byte_tokenizer() if texts is None else AutoTokenizer.from_pretrained(texts)
    identity = {"name": f"random-{shape}", "weights": f"seed {seed}, torch {torch.__version__}"}
    identity |= {"dtype": kind, "tokenizer": tokenizer_id(loaded)}
    known = {"ends": ends_of(model, loaded), "made": fingerprint(model), "files": files}
    return LoadedModel(model, loaded, identity, None, attention, **known)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, plus an end token: needs no file and no network."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def ends_of(model, tokenizer) -> tuple[int, ...]:
    """Every token that ends an answer, by the generation config and the tokenizer."""
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    known = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    return tuple(sorted({int(token) for token in known if token is not None}))


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


def fingerprint(model) -> str:
    """A hash of the weights and settings in memory: the sum of each tensor's bits, and some of its values.

    Sums are of whole numbers that wrap around, so that neither their order nor the device matters.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not tensor.is_meta:
            digest.update(f"{name} {_sum_of_bits(tensor)}\n".encode())
    aside = ("_name_or_path", "transformers_version", "_commit_hash")
    settings = {key: value for key, value in model.config.to_dict().items() if key not in aside}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(str(weights_checksum(model)).encode())
    return digest.hexdigest()


def _sum_of_bits(tensor: torch.Tensor) -> int:
    """The sum of a tensor's bytes taken as whole numbers of 8 bytes, and of what is left as single ones."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    raw = raw.clone() if raw.storage_offset() % 8 else raw
    whole = len(raw) // 8 * 8
    return int(raw[:whole].view(torch.int64).sum()) + int(raw[whole:].sum())


def tokenizer_id(tokenizer) -> str:
    """A hash of all that turns text into tokens and tokens into text, and of the chat template."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError("this tokenizer is not one of the tokenizers library: load it with AutoTokenizer")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    parts = [*(backend.get(step) for step in steps), getattr(tokenizer, "chat_template", None)]
    parts += [sorted(tokenizer.all_special_ids), bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))]
    parts += [tokenizer(embedded.PROBE, add_special_tokens=special).input_ids for special in (True, False)]
    if getattr(tokenizer, "split_special_tokens", False):  # a chat template's marks are read letter by letter
        parts.append("split_special_tokens")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
