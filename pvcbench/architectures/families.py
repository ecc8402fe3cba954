"""Tiny random models of every causal-LM architecture that the installed transformers builds on a CPU.

model = build("qwen3_next", torch.float64)

A name is a model type of transformers (`AutoConfig.for_model`); one with a colon is a variant of it. `SIZES` makes any
configuration small; `RECIPES` says what else a type needs so that its tiny model has what its real ones have: layers of
every kind, experts, windows shorter than the prompts of the tests.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
LINEAR, CONV, HYBRID = "linear_attention", "conv", "hybrid"
VOCABULARY, WINDOW = 151, 24

SIZES = {  # applied wherever a configuration declares the name
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_experts_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 32,
    "dense_intermediate_size": 48,
    "n_group": 1,
    "topk_group": 1,
    "num_mtp_layers": 0,
    # latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 16,
    "index_head_dim": 8,
    "index_n_heads": 2,
    # gated delta nets and other linear attention
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    # state-space layers
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 8,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
    "state_size": 8,
    "chunk_size": 8,
    # embeddings beside the token's own
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    # decoders of encoder-decoder models
    "d_model": 32,
    "decoder_layers": 4,
    "encoder_layers": 4,  # as many as the decoder has: transformers' own caches count these
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "ffn_dim": 48,
    "is_decoder": True,
}
ABSENT = {  # set even where the default is None
    "num_key_value_heads",
    "head_dim",
    "bos_token_id",
    "eos_token_id",
    "n_routed_experts",
    "num_experts_per_tok",
}

_MIXED = {"layer_types": [SLIDING, FULL, SLIDING, FULL], "sliding_window": WINDOW}
_STATES = {"layer_types": [LINEAR, FULL, LINEAR, FULL]}
_LATENT = {"num_key_value_heads": 4, "head_dim": 4}
_SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
_GROUPS = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1}
_GEMMA = {"tie_word_embeddings": False, "query_pre_attn_scalar": 12}
_SHARED_CACHE = {"layer_types": [SLIDING, FULL] * 3, "num_hidden_layers": 6, "num_kv_shared_layers": 2}
_SHARED_CACHE |= {"sliding_window": WINDOW, "tie_word_embeddings": False}
_GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512, "n_inner": 48}
_HYBRID_BLOCKS = {"layers_block_type": [LINEAR, HYBRID, LINEAR, HYBRID], "num_key_value_heads": 4, "head_dim": 16}
_PART = {key: SIZES[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
_PART |= {"num_attention_heads": 4, "num_key_value_heads": 2}
_PART |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BLT = _PART | {"hidden_size_global": 32, "num_key_value_heads": 4}

RECIPES = {
    # gated delta nets, Mamba, short convolutions beside attention
    "bailing_hybrid": _STATES | _SPARSE | {"num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [1, 3]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "granitemoehybrid": _STATES | {"attention_multiplier": 0.3},
    "granitemoehybrid:rope": _STATES | {"attention_multiplier": 0.3, "position_embedding_type": "rope"},
    "granitemoehybrid:dense": _STATES | {"attention_multiplier": 0.3, "num_local_experts": 0, "num_experts_per_tok": 0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": _STATES | _SPARSE | {"num_key_value_heads": 4, "q_lora_rank": None},
    "lfm2": {"layer_types": [CONV, FULL, CONV, FULL], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": [CONV, FULL, CONV, FULL], "num_dense_layers": 1},
    "lfm3": {"layer_types": [CONV, SLIDING, CONV, FULL], "sliding_window": WINDOW},
    "minimax": _STATES | {"block_size": 8},
    "nemotron_h": {
        "layers_block_type": [LINEAR, "moe", FULL, "mlp", LINEAR, FULL],
        "num_hidden_layers": 6,
        "time_step_min": 1e-12,  # a step clamps by it where the scan of a prompt does not
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "conv_kernel": 4,
    },
    "olmo_hybrid": _STATES,
    "qwen3_next": {"layer_types": [LINEAR, LINEAR, LINEAR, FULL]},
    "qwen3_5_text": _STATES | {"head_dim": 16},
    "qwen3_5_moe_text": _STATES | {"head_dim": 16},
    "recurrent_gemma": {
        "num_key_value_heads": 1,
        "lru_width": 32,
        "attention_window_size": WINDOW,
        "block_types": ["recurrent", "attention"],
    },
    "zamba": _HYBRID_BLOCKS | {"n_mamba_heads": 2},
    "zamba2": _HYBRID_BLOCKS
    | {
        "time_step_min": 1e-12,  # as nemotron_h's
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "use_mem_rope": True,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    # learnt sinks
    "flint": _MIXED,
    "gpt_oss": _MIXED,
    "granite_swa": _MIXED | {"attention_multiplier": 0.3},
    "granitemoe_swa": _MIXED | {"attention_multiplier": 0.3},
    "mimo_v2_flash": _SPARSE
    | {"head_dim": 12, "layer_types": [FULL, SLIDING, SLIDING, FULL], "sliding_window": WINDOW},
    # soft caps and windows
    "gemma2": _MIXED | _GEMMA | {"attn_logit_softcapping": 3.0},
    "gemma3_text": _MIXED | _GEMMA,
    "vaultgemma": _MIXED | _GEMMA | {"attn_logit_softcapping": 3.0},
    # a layer that reads another's cache, chunks, layers without rotary embeddings
    "gemma3n_text": _SHARED_CACHE | {"laurel_rank": 4, "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]},
    "gemma4_text": _SHARED_CACHE | {"global_head_dim": 16},
    "gemma4_text:moe": {
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "sliding_window": WINDOW,
        "tie_word_embeddings": False,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "num_kv_shared_layers": 0,
    },
    "gemma4_unified_text": _MIXED | {"tie_word_embeddings": False, "global_head_dim": 16},
    "llama4_text": {
        "layer_types": [CHUNKED, FULL, CHUNKED, FULL],
        "no_rope_layers": [1, 0, 1, 0],
        "attention_chunk_size": 22,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 48,
        "num_experts_per_tok": 1,
        "floor_scale": 16,
    },
    # latent attention
    "axk1": _LATENT | _SPARSE | _GROUPS,
    "axk2": _LATENT | _SPARSE,
    "deepseek_v2": _LATENT | {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "deepseek_v3": _LATENT | _GROUPS | {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "deepseek_v32": _LATENT | _SPARSE | _GROUPS,
    "dots3_note_text": _LATENT
    | _SPARSE
    | {"sliding_window": WINDOW}
    | {f"swa_{key}": SIZES[key] for key in ("num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim")}
    | {"swa_num_key_value_heads": 4, "swa_head_dim": 12, "swa_qk_rope_head_dim": 4, "swa_v_head_dim": 8},
    "glm4_moe_lite": _LATENT | _SPARSE | {"n_routed_experts": 8},
    "glm_moe_dsa": _LATENT | _SPARSE,
    "hy_v4": _LATENT | _SPARSE,
    "longcat_flash": _LATENT
    | {"num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2},
    "minicpm3": _LATENT,
    "youtu": _LATENT,
    # windows and experts
    "afmoe": _MIXED,
    "beam": _MIXED | _SPARSE,
    "cohere2": _MIXED,
    "cohere2_moe": _MIXED,
    "cwm": _MIXED | {"bos_token_id": 1, "eos_token_id": 2},
    "dots1": _MIXED | {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "exaone4": _MIXED,
    "exaone_moe": _MIXED | _SPARSE,
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "hy_v3": _SPARSE,
    "kolibri1": _MIXED,
    "laguna": _MIXED | _SPARSE,
    "mellum": _MIXED | _SPARSE,
    "ministral": _MIXED,
    "ministral:sliding": {"layer_types": [SLIDING] * 4, "sliding_window": 36},  # longer than the check's prompt
    "mistral": {"sliding_window": None},
    "mistral:sliding": {"sliding_window": 36},
    "modernbert-decoder": {
        "layer_types": [FULL, SLIDING, FULL, SLIDING],
        "local_attention": WINDOW,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "olmo3": _MIXED,
    "qwen3_moe": {"num_local_experts": 4},
    # the layers' sizes under names of their own
    "codegen": _GPT2 | {"rotary_dim": 4},
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gptj": _GPT2 | {"rotary_dim": 4},
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": WINDOW},
    "bloom": {"n_layer": 4, "n_head": 4},
    "falcon": {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48},
    "mpt": {"n_layers": 4, "n_heads": 4, "max_seq_len": 512},
    "ctrl": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512, "dff": 48},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 4,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16},
    },
    "gpt-sw3": _GPT2,
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "openai-gpt": {"n_embd": 32, "n_layer": 4, "n_head": 4},
    "prophetnet": {"num_decoder_layers": 4, "num_encoder_layers": 1, "num_decoder_attention_heads": 4},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 99},
    "xglm": {"num_layers": 4, "attention_heads": 4},
    "xlm": {"emb_dim": 32, "n_layers": 4, "n_heads": 4, "causal": True},
    "xlnet": {"n_layer": 4, "n_head": 4, "d_inner": 48},
    "xmod": {"default_language": "en_XX"},
    # decoders that nothing else is like
    "blt": {
        "encoder_hash_byte_group_vocab": 99,
        "encoder_config": _BLT,
        "decoder_config": _BLT,
        "patcher_config": _PART,
        "global_config": _PART,
    },
    "cohere_compass_text": {
        "layer_types": [SLIDING, FULL, SLIDING, FULL],
        "sliding_window": WINDOW,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in (SLIDING, FULL)},
    },
    "qwen4_exp_text": _STATES
    | {
        "head_dim": 16,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "reformer": {
        "attn_layers": ["local", "lsh"] * 2,
        "axial_pos_embds": False,
        "attention_head_size": 8,
        "num_buckets": 4,
    },
    # what is seen or heard, where it is built beside the text
    "dots3_note": {
        "vision_config": _PART | _SPARSE | {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": _PART | {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 8},
    },
    "emu3": {"text_config": _PART},
    "fuyu": {"text_config": _PART},
    "gemma3": {"vision_config": _PART},
    "git": {"vision_config": _PART},
    "got_ocr2": {"text_config": _PART, "vision_config": _PART | {"mlp_dim": 48, "output_channels": 8}},
    "mllama": {"text_config": _PART | {"cross_attention_layers": [1]}},
    "moss_transcribe_diarize": {"text_config": _PART, "audio_config": _PART},
    "phi4_multimodal": {"vision_config": _PART, "audio_config": _PART | {"num_blocks": 1}},
}


def names() -> list[str]:
    """The model types that transformers loads as causal language models."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def every() -> list[str]:
    """The model types and the variants of them."""
    return [*names(), *(name for name in RECIPES if ":" in name)]


def type_of(name: str) -> str:
    """The model type of a family, which may be a variant of it."""
    return name.partition(":")[0]


def declared(kind: type) -> dict:
    """The settings that a configuration class declares, with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(kind)}


def settings(name: str) -> dict:
    """What makes the configuration of a family tiny."""
    known = declared(CONFIG_MAPPING[type_of(name)])
    small = {key: size for key, size in SIZES.items() if key in known and (known[key] is not None or key in ABSENT)}
    if f"{name}_text" in CONFIG_MAPPING and "text_config" in known:
        small["text_config"] = settings(f"{name}_text")
    return small | RECIPES.get(name, {})


def config(name: str):
    """The configuration of a family's tiny model."""
    return AutoConfig.for_model(type_of(name), **settings(name))


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A family's tiny model, its weights wide enough for uneven attention; the same for the same seed."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(name), dtype=torch.float32).to(dtype).eval()
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the grouped matrix product has no float64
    widen(model, seed)
    return model


class _Doubled:
    """torch, whose float32 is float64."""

    float32 = float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def unrounded() -> Iterator[None]:
    """Inside, transformers' modelling code, as far as it is imported, rounds a float64 model nowhere to float32."""
    places = ("transformers.models.", "transformers.integrations.", "transformers.modeling_rope_utils")
    modules = [module for name, module in sys.modules.items() if name.startswith(places)]
    modules = [module for module in modules if vars(module).get("torch") is torch]
    plain = torch.Tensor.float
    try:
        torch.Tensor.float = torch.Tensor.double
        for module in modules:
            module.torch = _Doubled()
        yield
    finally:
        torch.Tensor.float = plain
        for module in modules:
            module.torch = torch


@torch.no_grad()
def widen(model: nn.Module, seed: int = 0) -> None:
    """Redraws the weights: matrices and biases anew, norms around what they are; decay rates stay."""
    generator = torch.Generator().manual_seed(seed + 7)

    def drawn(weight, width):
        return (torch.randn(weight.shape, generator=generator, dtype=torch.float64) * width).to(weight)

    for name, weight in model.named_parameters():
        if name.endswith(("A_log", "dt_bias", ".D")):
            continue
        if "sink" in name:
            weight.copy_(drawn(weight, 1.0) + 1)
        elif weight.dim() >= 2 or name.endswith("bias"):
            weight.copy_(drawn(weight, 0.2))
        else:
            weight.add_(drawn(weight, 0.15))
    for name, buffer in model.named_buffers():
        if name.endswith(("correction_bias", "expert_bias")):
            buffer.copy_(drawn(buffer, 0.05))


def prompt(tokens: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    generator = torch.Generator().manual_seed(1000 * seed + tokens)
    return torch.randint(1, VOCABULARY, (batch, tokens), generator=generator)
