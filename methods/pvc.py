"""PvC: the Pivotal Context of PyramidInfer (Yang et al. 2024, arXiv 2405.12532; code mutonix/pyramidinfer).

The recent tokens' attention chooses each layer's pivotal context; its share shrinks with depth. `prune:
hidden_states` is the official prefill: what a layer drops is never computed deeper. `prune: kv` is the paper's
algorithm: every layer computes all positions and gathers its own keys and values. Under hold, blocks of generated
entries that leave the recent window are compressed; the prompt's are not (`gen_blocks: official`: but for its last).
"""

from dataclasses import dataclass

from methods.pvc_generation import block_to_compress, block_totals
from methods.pvc_ladder import ladder, schedule, solve
from pvcbench.policy import Method, UserError, torch


@dataclass(frozen=True)
class PvC(Method):
    """Hyperparameters of the official code, by its names; `solve` lets budgets set the ratios."""

    recent_ratio: float = 0.2
    prefill_decay_ratio: float = 0.9
    schedule: str = "cosine"  # cosine | linear | constant
    layerwise_downsample_interval: int = 1
    min_context_length: int = 64
    streamingllm_sink_len: int = 4
    distance_weight: float = 1.2
    prune: str = "hidden_states"  # hidden_states | kv
    select: str = "count"  # count: the top int(share * entries) | mass: the fewest that reach the share of attention
    exceed_length_to_compress: int = 16
    gen_compress_ratio: float = 0.9
    gen_decay_ratio: float = 0.1
    gen_blocks: str = "generated"  # generated tokens alone | official: the first block takes the prompt's last token
    solve: bool = True
    protocols = ("generate", "continuation")  # its prefill reads the whole prompt
    watches_decoding = True
    channels = 2

    def __post_init__(self):
        options = {
            "schedule": ("cosine", "linear", "constant"),
            "prune": ("hidden_states", "kv"),
            "select": ("count", "mass"),
            "gen_blocks": ("generated", "official"),
        }
        for name, known in options.items():
            if getattr(self, name) not in known:
                raise UserError(f"pvc: {name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.select == "mass" and (self.solve or self.prune == "kv"):
            raise UserError(
                "pvc: select=mass promises no size: set solve=false, prune=hidden_states and prefill_decay_ratio"
            )
        if not 0 <= self.recent_ratio < 1 or not 0 <= self.prefill_decay_ratio <= 1:
            raise UserError("pvc: recent_ratio must lie in [0, 1) and prefill_decay_ratio in [0, 1]")

    own_budget = property(lambda self: None if self.solve else f"r={self.prefill_decay_ratio:g}")
    prunes = property(lambda self: self.prune == "hidden_states")
    ragged_batch = property(lambda self: self.select == "mass")

    def resolve(self, budget, shape):
        return solve(self, budget, shape) if self.solve else self

    def recent(self, entries):
        """Tokens that are never dropped: R + 1."""
        return min(entries, int(self.recent_ratio * entries) + 1)

    def row_weights(self, shape, layer):
        sizes = ladder(self, shape)
        if self.prunes and self.select == "count" and sizes[layer] == sizes[layer + 1]:
            return None
        return torch.linspace(1.0, self.distance_weight, self.recent(shape.tokens), dtype=torch.float64)

    def protects(self, budget, shape):
        return self.streamingllm_sink_len, self.recent(shape.tokens)

    def scores(self, seen):  # prune: kv; one index set serves all heads of a layer
        return seen.mass.mean(1, keepdim=True).expand(seen.positions.shape)

    def plan(self, scores, budget, shape):
        sizes = ladder(self, shape)
        kept = torch.tensor([sizes[layer + 1] for layer in shape.evicted])
        return kept[:, None, None].expand(-1, *scores[0].shape[:2])

    def survivors(self, seen):
        if seen.mass is None or seen.layer % self.layerwise_downsample_interval:
            return None
        entries, recent = seen.positions.shape[-1], self.recent(seen.shape.tokens)
        older, floor = entries - recent, min(self.min_context_length, seen.shape.tokens - recent)
        share = schedule(self.schedule, self.prefill_decay_ratio, seen.layer, seen.shape.layers)
        mass = seen.mass.mean(1)[:, :older]
        score = mass.masked_fill(seen.positions[:, 0, :older] < self.streamingllm_sink_len, float("inf"))
        order = score.sort(dim=-1, descending=True, stable=True).indices
        kept = int(older * share)
        if self.select == "mass" and older:
            part = mass.gather(1, order).cumsum(-1)
            kept = int((part < share * part[:, -1:]).sum(-1).max()) + 1
        if kept <= floor or share >= 1 or kept >= older:
            return None
        top = order[:, :kept].sort(-1).values
        tail = torch.arange(older, entries, device=top.device).expand(len(top), -1)
        return torch.cat((top, tail), 1)

    def accumulate(self, seen):
        return block_totals(self, seen)

    def drop(self, seen, budget):
        return block_to_compress(self, seen)
