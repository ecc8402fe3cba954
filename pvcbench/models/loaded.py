"""A loaded model: its weights, its tokenizer, and the properties of both that can change a result."""

import difflib
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pvcbench.config.extras import pip_install
from pvcbench.errors import UserError
from pvcbench.models.checksum import weights_checksum
from pvcbench.tasks.chat import DATE
from pvcbench.tasks.prompts import Prompter

PROBE = "Spaces between words,\n\nnew lines and 1234567890 digits.\n\tTabs too."  # what tells tokenizers apart
KERNELS = ("sdpa", "flash_attention_2")  # what computes the attention of a prompt


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


def ends_of(model, tokenizer) -> tuple[int, ...]:
    """Every token that ends an answer, by the generation config and the tokenizer."""
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    known = [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
    return tuple(sorted({int(token) for token in known if token is not None}))


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
    parts += [tokenizer(PROBE, add_special_tokens=special).input_ids for special in (True, False)]
    if getattr(tokenizer, "split_special_tokens", False):  # a chat template's marks are read letter by letter
        parts.append("split_special_tokens")
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
