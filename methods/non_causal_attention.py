"""Non-causal attention, the half of Compactor (Chari & Van Durme 2025, arXiv 2507.08143) that looks at attention.

Within chunks of the prompt every row sees every key, later ones too, and products of queries and keys are not scaled.
What a key receives is averaged over its query heads, multiplied by the value's norm and averaged over three neighbours.
kvpress runs it as NonCausalAttnPress. This is not the model's attention, so the method forms it itself.
"""

import sys
from dataclasses import dataclass

from pvcbench.policy import Method, UserError, torch


@dataclass(frozen=True)
class NonCausalAttention(Method):
    """`chunk` tokens attend to each other; the last chunk may be shorter."""

    chunk: int = 256
    needs_rows = sys.maxsize
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def __post_init__(self):
        if self.chunk < 1:
            raise UserError("non_causal_attention: chunk must be 1 or more")

    def scores(self, seen):
        return received(seen.rows.query, seen.keys, seen.values, self.chunk)


def received(query, keys, values, chunk):
    """What each entry receives of [batch, kv_heads, entries], a chunk at a time."""
    wide, parts = torch.promote_types(keys.dtype, torch.float32), []
    for rows, columns in zip(query.split(chunk, 2), keys.split(chunk, 2), strict=True):
        grouped = rows.unflatten(1, (keys.shape[1], -1))
        weights = (grouped @ columns[:, :, None].mT).to(wide).softmax(-1)
        parts.append(weights.sum(-2).mean(2))
    worth = torch.cat(parts, -1) * values.to(wide).norm(dim=-1)
    return torch.nn.functional.avg_pool1d(worth, 3, stride=1, padding=1)
