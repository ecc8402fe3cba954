"""KVzip (Kim et al. 2025, arXiv 2505.23416; code snu-mllab/KVzip): what the model needs to repeat the context stays.

After the prefill the model is told to repeat the context, piece by piece, and reads each piece once more on top of the
whole cache. An entry is worth the highest attention that any head of its group gives it while its piece is read, among
the first entries, the piece and what is read. Nothing is generated, no question is needed, and one ranking serves all.
"""

from dataclasses import dataclass

from methods.pooling import pooled, whole_heads
from pvcbench.policy import Method, OutOfReach, Pass, UserError, torch

LEVELS = ("pair", "uniform", "head", "layer")


@dataclass(frozen=True)
class KVzip(Method):
    """`chunk` tokens of context are repeated at a time; later requests quote the last `quoted` tokens before theirs.

    `sinks` first tokens stay and are looked at in every pass, null: those before the context, which chat templates
    write; what lies between them and the context goes first.
    """

    level: str = "pair"  # what shares a budget: pair: all entries | uniform: nothing | layer: a layer's | head: heads
    chunk: int = 2000
    quoted: int = 8
    sinks: int | None = None
    request: str = "\n\nRepeat the previous context exactly."
    later_request: str = "\n\nRepeat the part of the previous context exactly, starting with "
    decodes = ("grow",)
    protocols = ("generate", "continuation")
    ragged_batch = property(lambda self: True)

    def __post_init__(self):
        if self.level not in LEVELS:
            raise UserError(f"kvzip: level must be {', '.join(LEVELS[:-1])} or {LEVELS[-1]}, not {self.level!r}")
        if self.chunk < 1 or self.quoted < 0 or (self.sinks or 0) < 0:
            raise UserError("kvzip: chunk must be 1 or more, quoted and sinks 0 or more")

    def resolve(self, budget, shape):
        first = self.protects(budget, shape)[0]
        if budget < min(first + 1, shape.tokens):
            raise OutOfReach(f"below the {first} first entries that KVzip always keeps, and one more")
        return self

    def protects(self, budget, shape):
        return min(shape.head if self.sinks is None else self.sinks, shape.tokens), 0

    def passes(self, prompt):
        head, found = prompt.shape.head, []
        sinks = head if self.sinks is None else min(self.sinks, head)
        for first in range(head, prompt.shape.tokens, self.chunk):
            last = min(first + self.chunk, prompt.shape.tokens)
            text = prompt.encode(self.request if first == head else self.later_request)
            quote = prompt.ids[:, max(head, first - min(self.quoted, self.chunk)) : first]
            parts = [self.written(prompt, text), quote, self.written(prompt, prompt.encode(prompt.after))]
            found.append(Pass(torch.cat([*parts, prompt.ids[:, first:last]], 1), first, last, sinks))
        return found

    @staticmethod
    def written(prompt, tokens):
        """Some tokens for each sample."""
        return torch.tensor(tokens, dtype=prompt.ids.dtype).to(prompt.ids.device).expand(len(prompt.ids), -1)

    def scores(self, seen):
        if seen.rows is None:
            if seen.shape.head < seen.shape.tokens:
                raise UserError("kvzip: what wraps it must pass on what it has the model read (`passes`)")
            return torch.zeros_like(seen.positions, dtype=torch.float32)  # a prompt without a context
        highest = None
        for first, after, weights in seen.rows.blocks():
            most = self.by_rows(seen, weights, first, after).amax(2)
            highest = most if highest is None else torch.maximum(highest, most)
        return self.by_values(seen, highest).unflatten(1, (seen.keys.shape[1], -1)).amax(2)

    def by_rows(self, seen, weights, first, after):
        """Weights of the rows first..after-1 as they count, [batch, heads, rows, entries]."""
        return weights

    def by_values(self, seen, highest):
        """The highest weights of each query head as they count, [batch, heads, entries]."""
        return highest

    def plan(self, scores, budget, shape):
        if self.level == "uniform":
            return super().plan(scores, budget, shape)
        share, asked = whole_heads if self.level == "head" else pooled, (budget, *self.protects(budget, shape))
        pools = [[layer] for layer in scores] if self.level == "layer" else [scores]
        return [counts for pool in pools for counts in share(pool, *asked)]
