"""DuoAttention (Xiao et al. 2024, arXiv 2410.10819; code mit-han-lab/duo-attention): some heads stream.

A file says how much each KV head needs the middle of a text, as training with gates found it. The heads that need it
least keep the first and the most recent tokens only. For a budget as many heads stream as it takes, and the last of
them as far as it takes: it keeps a longer window. After the prompt was read, as kvpress does.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, OutOfReach, UserError, numbers, torch


@dataclass(frozen=True)
class DuoAttention(Method):
    """`file` has a row for each layer and a number for each KV head; a share `streaming` of heads takes no budget."""

    file: str | None = None
    sinks: int = 128
    recent: int = 256
    streaming: float | None = None
    files = ("file",)
    decodes = ("grow",)
    protocols = ("generate", "continuation")
    own_budget = property(lambda self: None if self.streaming is None else f"streaming {self.streaming}")

    def __post_init__(self):
        super().__post_init__()
        if self.sinks < 0 or self.recent < 1 or not 0 <= (self.streaming or 0) <= 1:
            raise UserError("duo_attention: sinks must be 0 or more, recent 1 or more, streaming null or within [0, 1]")

    def resolve(self, budget, shape):
        least = self.sinks + self.recent
        if budget is not None and budget < min(least, shape.tokens):
            raise OutOfReach(f"below the {least} entries that DuoAttention's streaming heads keep")
        return self

    def protects(self, budget, shape):
        sinks = min(self.sinks, shape.tokens)
        return sinks, min(self.recent, shape.tokens - sinks)

    def scores(self, seen):
        return seen.positions.float()

    def plan(self, scores, budget, shape):
        needed = torch.tensor(numbers(self.file), dtype=torch.float64).clamp(0, 1)  # layers, heads
        heads, entries = scores[0].shape[1:]
        if needed.shape != (shape.layers, heads) or any(layer.shape[1] != heads for layer in scores):
            raise UserError(
                f"{self.file} has {len(needed)} rows of {needed.shape[1]} numbers, and this model has {shape.layers} "
                f"layers of {' or '.join({str(layer.shape[1]): 0 for layer in scores})} KV heads: name its own file"
            )
        needed = needed[list(shape.evicted)]
        rank = needed.flatten().argsort(stable=True).argsort().view(needed.shape)
        most = entries - min(self.sinks + self.recent, entries)  # that a head can lose
        if self.streaming is not None:
            lost = most * (rank < round(needed.numel() * self.streaming)).long()
        else:
            lost = (needed.numel() * (entries - budget) - rank * most).clamp(0, most)
        return [size.expand(len(layer), -1) for size, layer in zip(entries - lost, scores, strict=True)]
