"""Teacher-forced scoring: how likely given tokens are through a compressed cache.

scored = engine.score(groups, fed, wanted)   # the continuation, in a few forward passes
scored, group = engine.stream(ids, cell)     # a whole document under a budget that holds after every step
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pvcbench.engine.decode import Decoder
from pvcbench.engine.evict import Group

CALL_BYTES, CALL_TOKENS = 2**28, 2048  # of float32 logits formed in one call, and tokens at most


@dataclass
class Scored:
    """Log-probabilities of given tokens in nats, and whether each was the most likely one."""

    logprobs: Float[Tensor, "rows tokens"]
    greedy: Bool[Tensor, "rows tokens"]

    @classmethod
    def of(cls, logits: Float[Tensor, "rows tokens vocabulary"], wanted: Int[Tensor, "rows tokens"]) -> "Scored":
        """The scores of the wanted tokens; float32 or better."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        picked = logits.gather(-1, wanted[..., None])[..., 0]
        return cls(picked - logits.logsumexp(-1), logits.argmax(-1) == wanted)

    @classmethod
    def cat(cls, parts: Sequence["Scored"], dim: int = 1) -> "Scored":
        """Several scores one after the other: tokens, or rows at dim 0."""
        return cls(torch.cat([part.logprobs for part in parts], dim), torch.cat([part.greedy for part in parts], dim))


def tokens_per_call(vocabulary: int, rows: int) -> int:
    """How many tokens a call may return logits for."""
    return min(CALL_TOKENS, max(64, CALL_BYTES // (4 * vocabulary * rows)))


def score_groups(
    call: Callable,
    groups: Sequence[Group],
    fed: Int[Tensor, "batch tokens"],
    wanted: Int[Tensor, "batch tokens"],
    vocabulary: int,
    backend: str,
    most: int | None = None,
) -> Scored:
    """Feeds tokens through each group's cache and scores the one wanted after each; rows in order of cells.

    Under hold they are fed one by one, since a chunk would put off eviction to its end; else at most `most` at once.
    """
    found = []
    for group in groups:
        decoder = Decoder(call, [group], backend)
        rows, ids = decoder.spread([fed]), decoder.spread([wanted])
        size = 1 if group.hold else most or tokens_per_call(vocabulary, len(rows))
        parts = zip(rows.split(size, 1), ids.split(size, 1), strict=True)
        found.append(Scored.cat([Scored.of(call(part, decoder.cache, keep=part.shape[1]), own) for part, own in parts]))
    return Scored.cat(found, 0)
