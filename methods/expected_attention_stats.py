"""Expected Attention with statistics (kvpress' ExpectedAttentionStatsPress): what queries to come look at on average.

As `expected_attention`, but mean and covariance of the queries before rotary embedding are a model's, found once on
other texts (`pvcbench calibrate expected-attention`), so the prompt's own queries count for nothing.
"""

from dataclasses import dataclass

from methods.fitting import fitting
from pvcbench.policy import Method, torch


@dataclass(frozen=True)
class ExpectedAttentionStats(Method):
    """`file` holds `query_mean`, [layers, heads, dim], and `query_cov`; `sinks` first tokens always stay."""

    file: str | None = None
    horizon: int = 512
    sinks: int = 4
    covariance: bool = True
    value_norm: bool = True
    epsilon: float = 0.0
    files = ("file",)
    needs_queries = True  # for the rotation of positions to come, which is told beside them
    decodes = ("grow",)
    protocols = ("generate", "continuation")

    def protects(self, budget, shape):
        return min(self.sinks, shape.tokens), 0

    def scores(self, seen):
        batch, kv_heads, entries, dim = seen.keys.shape
        size = seen.shape.layers, seen.queries.shape[1], dim
        mean = fitting(self.file, "query_mean", seen.layer, size, "layers, heads, head size")
        if entries == 1:  # nothing to rank
            return torch.zeros_like(seen.positions, dtype=torch.float32)
        wide = torch.promote_types(seen.keys.dtype, torch.float32)
        ahead = seen.ahead(self.horizon).to(wide)
        keys = seen.keys.to(wide).repeat_interleave(size[1] // kv_heads, 1)
        logits = (keys @ (mean.to(ahead) @ ahead)[..., None])[..., 0] / dim**0.5
        if self.covariance:
            spread = fitting(self.file, "query_cov", seen.layer, (*size, dim), "layers, heads, head size, head size")
            logits = logits + ((keys @ (ahead.mT @ spread.to(ahead) @ ahead)) * keys).sum(-1) / (2 * dim)
        first = min(self.sinks, entries - 1)
        expected = torch.zeros_like(logits)
        expected[..., first:] = logits[..., first:].softmax(-1)
        scores = expected.view(batch, kv_heads, -1, entries).mean(2)
        return (scores + self.epsilon) * seen.values.norm(dim=-1) if self.value_norm else scores
