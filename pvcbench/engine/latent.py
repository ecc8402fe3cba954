"""Latent attention (MLA) over the latents themselves: one KV head, whose entries every query head reads.

transformers caches a latent and a rotated part per token and expands them into keys and values of all heads. The same
attention is one of absorbed queries to those two parts side by side, whose values are the latents, expanded afterwards:
so entries stay as small as they are, and an entry that is evicted is evicted for all heads. A step reads least over the
latents; a prompt takes fewer operations over keys and values that are expanded once for all of its rows.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Latents:
    """The new entries of a layer and their queries, from which attention is had in either form, up to rounding."""

    module: nn.Module
    query: Float[Tensor, "batch heads rows dim"]
    key: Float[Tensor, "batch heads rows dim"]  # as the model expanded them
    value: Float[Tensor, "batch heads rows value_dim"]
    stored: tuple[Float[Tensor, "batch 1 rows rank"], Float[Tensor, "batch 1 rows rotary"]]

    def absorbed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of attention over the latents: keys and values are what is stored.

        The rotated part comes first, where `rotary.turn` looks for it.
        """
        latent, rotated = self.stored
        plain, turned = self.query.split([self.module.qk_nope_head_dim, self.module.qk_rope_head_dim], -1)
        query = torch.cat((turned, plain @ _expansion(self.module)[0]), -1)
        return query, torch.cat((rotated, latent), -1), latent

    def output(self, mixed: Float[Tensor, "batch heads rows rank"]) -> Float[Tensor, "batch heads rows value_dim"]:
        """The layer's attention output, from that over the latents."""
        return mixed @ _expansion(self.module)[1].mT

    def expanded(self, keys: Float[Tensor, "batch 1 entries width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of attention over expanded entries, given the stored keys of all of them."""
        if keys.shape[2] == self.key.shape[2]:  # the new ones alone
            return self.query, self.key, self.value
        rotated, latent = keys.split([self.module.qk_rope_head_dim, self.module.kv_lora_rank], -1)
        return self.query, *self.module.expand_kv(latent, rotated)
