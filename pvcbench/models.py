"""Models: the embedded one, any of the hub or a local folder, or a named shape with random weights."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as hub_logging

from pvcbench import embedded
from pvcbench.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHAPES = {  # vocabulary, hidden, intermediate, layers, heads, KV heads, longest prompt, RoPE base
    "tiny": (300, 64, 128, 4, 4, 2, 4096, 10000.0),
    "llama2_7b": (32000, 4096, 11008, 32, 32, 32, 4096, 10000.0),
    "llama2_13b": (32000, 5120, 13824, 40, 40, 40, 4096, 10000.0),
    "llama3_8b": (128256, 4096, 14336, 32, 32, 8, 131072, 500000.0),
}


@dataclass
class LoadedModel:
    """A model, its tokenizer, and what of them changes a number."""

    model: torch.nn.Module
    tokenizer: object
    identity: dict
    chat: bool | None = None
    attention: str = "sdpa"
    evict_sliding: bool = False
    ends: Sequence[int] = field(default_factory=tuple)  # tokens that end an answer
    limit: int | None = None  # the longest sequence by model.longest, where it is set

    @property
    def longest(self) -> int | None:
        """The longest sequence the model was made for, in tokens, or the one that its owner set."""
        return self.limit or usable(self.model.config.get_text_config())


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


def smollm2(device: str, dtype: str | None, chat: bool | None = None, attention: str = "sdpa") -> LoadedModel:
    """SmolLM2-135M-Instruct, converted on first use."""
    folder = embedded.ensure()
    return _load(folder, embedded.tokenizer_of(folder), "smollm2", device, dtype or "float32", chat, attention)


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
    longest: int | None = None,
) -> LoadedModel:
    """Any decoder-only model of the hub or a local folder; safetensors only.

    `longest` replaces the longest sequence that its configuration tells.
    """
    if not name:
        raise UserError("which model? set model.name=ORG/NAME or model.name=FOLDER")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 2):
        raise UserError(f"model.longest must be a whole number of tokens, 2 or more, not {longest!r}")
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer or name, **options)
        found = _load(
            name, loaded, name, device, dtype or "auto", chat, attention, evict_sliding, device_map, **options
        )
        return limited(found, longest)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load model {name!r}: {reason} (a hub name needs a network, a folder config.json)"
        ) from error


def limited(loaded: LoadedModel, longest: int | None) -> LoadedModel:
    """The model with its owner's limit; the identity tells a length that is not the configuration's plain one."""
    loaded.limit = longest
    if loaded.longest != getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None):
        loaded.identity["longest"] = loaded.longest
    return loaded


def _load(
    source, tokenizer, name, device, dtype, chat, attention, evict_sliding=False, device_map=None, **options
) -> LoadedModel:
    if dtype not in (*DTYPES, "auto"):
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    hub_logging.disable_progress_bar()  # a model of the hub shows its download, not the loading of its tensors
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=DTYPES.get(dtype, "auto"), device_map=device_map or device, use_safetensors=True, **options
    ).eval()
    identity = {"name": name, "weights": _weights_id(source, model), "dtype": str(model.dtype).removeprefix("torch.")}
    identity |= {"tokenizer": _tokenizer_id(tokenizer), "chat": chat, "attention": attention}
    identity["evict_sliding"] = evict_sliding
    return LoadedModel(model, tokenizer, identity, chat, attention, evict_sliding, ends_of(model, tokenizer))


def random(
    shape: str, device: str, dtype: str | None, seed: int = 0, tokenizer: str | None = None, attention: str = "sdpa"
) -> LoadedModel:
    """Random weights of a named shape, for speed and for tests; a byte-level tokenizer unless one is named."""
    if shape not in SHAPES:
        raise UserError(f"model.shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()
    *sizes, longest, theta = SHAPES[shape]
    settings = dict(zip(names, sizes, strict=True), max_position_embeddings=longest)
    settings |= {"bos_token_id": None, "eos_token_id": None}  # the tokenizer's count; Llama's own would be letters
    config = AutoConfig.for_model("llama", **settings, rope_parameters={"rope_type": "default", "rope_theta": theta})
    kind = DTYPES.get(dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    if kind is None:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=kind).eval()
    loaded = byte_tokenizer() if tokenizer is None else AutoTokenizer.from_pretrained(tokenizer)
    identity = {"name": f"random-{shape}", "weights": f"seed {seed}, torch {torch.__version__}", "attention": attention}
    identity |= {"dtype": str(kind).removeprefix("torch."), "tokenizer": _tokenizer_id(loaded)}
    return LoadedModel(model, loaded, identity, None, attention, ends=ends_of(model, loaded))


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


def _weights_id(source, model) -> str:
    """The revision of a hub model, or a checksum of a folder's weights and configuration."""
    folder = Path(source)
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None) or "unknown")
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _tokenizer_id(tokenizer) -> str:
    """A hash of all that turns text into tokens, and of the chat template."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")
    parts = [*(backend.get(step) for step in steps), getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
