"""Fast KVzip (Kim et al. 2026, arXiv 2601.17668; code Janghyun1230/FastKVzip): small gates foresee KVzip's scores.

For each layer and KV head narrow queries and a narrow key are made of the hidden states that attention is given, and
normed. An entry's score is the softmax weight of its key beside learnt keys, mean over the queries of a group.
"""

from dataclasses import dataclass

from methods.fast_kvzip_gate import gate, opened
from methods.pooling import pooled
from methods.trained import require_fit
from pvcbench.policy import Method, OutOfReach, UserError, tensors, torch


@dataclass(frozen=True)
class FastKVzip(Method):
    """The first `sinks` and a share `ratio` of the tokens at the end stay; from `long` tokens on the last `window`."""

    file: str | None = None
    sinks: int = 4
    ratio: float = 0.02
    window: int = 4096
    long: int = 32000
    pool: str = "model"  # model: one ranking over all layers and heads | layer: one for each layer
    files = ("file",)
    needs_hidden = True
    ragged_batch = True
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def __post_init__(self):
        super().__post_init__()
        if self.sinks < 0 or not 0 <= self.ratio <= 1 or self.window < 1 or self.pool not in ("model", "layer"):
            raise UserError(
                "fast_kvzip: sinks must be 0 or more, ratio within [0, 1], window 1 or more, pool model|layer"
            )

    def validate(self, setting):
        super().validate(setting)
        gate(tensors(self.file), 0, self.file)

    def resolve(self, budget, shape):
        if budget < min(sum(self.protects(budget, shape)), shape.tokens):
            raise OutOfReach(f"below the {sum(self.protects(budget, shape))} entries that Fast KVzip always keeps")
        return self

    def protects(self, budget, shape):
        last = self.window if shape.tokens >= self.long else max(1, int(shape.tokens * self.ratio))
        return min(self.sinks, shape.tokens), min(last, max(0, shape.tokens - self.sinks))

    def scores(self, seen):
        weights = tensors(self.file)
        first, layers = gate(weights, 0, self.file), sum(name.endswith("k_base") for name in weights)
        require_fit(self.file, (layers, first["k_proj.weight"].shape[1], len(first["k_base"])), seen)
        hidden = seen.hidden.to(torch.promote_types(seen.hidden.dtype, torch.float32))
        return opened({name: part.to(hidden) for name, part in gate(weights, seen.layer, self.file).items()}, hidden)

    def plan(self, scores, budget, shape):
        pools = [scores] if self.pool == "model" else [[layer] for layer in scores]
        found = [counts for pool in pools for counts in pooled(pool, budget, *self.protects(budget, shape))]
        return [counts.to(scores[0].device) for counts in found]
