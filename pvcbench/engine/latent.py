"""Latent attention (MLA) over the latents themselves: one KV head, whose entries every query head reads.

transformers caches a latent and a rotated part per token and expands them into keys and values of all heads. The same
attention is one of absorbed queries to those two parts side by side, whose values are the latents, expanded afterwards:
so entries stay as small as they are, and an entry that is evicted is evicted for all heads.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def is_latent(module: nn.Module, stored: tuple[Tensor, Tensor]) -> bool:
    """Whether a layer handed in latents, by which its attention module expands keys and values."""
    return hasattr(module, "expand_kv") and stored[0].shape[-1] == module.kv_lora_rank


def _expansion(module: nn.Module) -> tuple[Float[Tensor, "heads nope rank"], Float[Tensor, "heads value rank"]]:
    """The matrices that expand a latent, whatever kind of linear layer holds them."""
    weight = getattr(module.kv_b_proj, "weight", None)
    if weight is None or not weight.is_floating_point() or weight.dim() != 2 or weight.shape[1] != module.kv_lora_rank:
        like = module.kv_a_layernorm.weight
        weight = module.kv_b_proj(torch.eye(module.kv_lora_rank, device=like.device, dtype=like.dtype)).T
    sizes = [module.qk_nope_head_dim, module.v_head_dim]
    return weight.view(-1, sum(sizes), module.kv_lora_rank).split(sizes, 1)


def value_expansion(module: nn.Module) -> Float[Tensor, "heads value rank"]:
    """The matrices by which each head reads its values out of a latent."""
    return _expansion(module)[1]


def attend_to_latents(
    module: nn.Module, query: Float[Tensor, "batch heads rows dim"], stored: tuple[Tensor, Tensor], attend: Callable
) -> Tensor:
    """Attention output; `attend(query, key, value)` works on what is stored, [batch, 1, rows, ...].

    The rotated part comes first, where `rotary.turn` looks for it.
    """
    keys, values = _expansion(module)
    latent, rotated = stored
    plain, turned = query.split([module.qk_nope_head_dim, module.qk_rope_head_dim], -1)
    output = attend(torch.cat((turned, plain @ keys), -1), torch.cat((rotated, latent), -1), latent)
    return output @ values.mT
