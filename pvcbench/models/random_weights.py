"""Random weights of a named shape, for speed and for tests."""

import threading
from collections.abc import Mapping

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from pvcbench.errors import UserError
from pvcbench.models.loaded import LoadedModel, check_attention, ends_of, fingerprint, tokenizer_id
from pvcbench.models.loading import DTYPES, check_settings, files_of, place_of
from pvcbench.tasks.prompts import Prompter

SHAPES = {  # vocabulary, hidden, intermediate, layers, heads, KV heads, longest prompt, RoPE base
    "tiny": (300, 64, 128, 4, 4, 2, 4096, 10000.0),
    "llama2_7b": (32000, 4096, 11008, 32, 32, 32, 4096, 10000.0),
    "llama2_13b": (32000, 5120, 13824, 40, 40, 40, 4096, 10000.0),
    "llama3_8b": (128256, 4096, 14336, 32, 32, 8, 131072, 500000.0),
}

DRAWING = threading.Lock()  # weights come from torch's one generator, which two threads would draw from in turn


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
    with DRAWING, torch.device(device):
        torch.manual_seed(seed)
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


def prompter(node: Mapping) -> Prompter:
    """What writes prompts for such a model, by its configuration and without its weights."""
    own = node.get("tokenizer")
    tokenizer = byte_tokenizer() if own is None else AutoTokenizer.from_pretrained(own)
    return Prompter(tokenizer, None, SHAPES[node["shape"]][6])


random.prompter = prompter
