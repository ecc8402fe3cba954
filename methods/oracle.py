"""Two leaking references: what the attention of the right answer, or of the true continuation, would have kept.

They read what no method can know, so they say how much a choice by attention could gain, not what could be gained:
they are references, not bounds. The rows are those of the answer's tokens (teacher-forced, the first listed answer)
and the one that predicts the first of them, or of the tokens that are scored.
"""

from dataclasses import dataclass

from pvcbench.policy import Method, torch


@dataclass(frozen=True)
class Oracle(Method):
    """Ranks entries by the summed attention of the tokens to come, per KV head; `reads` says which."""

    reads: str = "answer"  # answer | future
    decodes = ("grow",)

    ragged_batch = property(lambda self: True)  # answers differ in length
    protocols = property(lambda self: ("generate",) if self.reads == "answer" else ("continuation",))

    def row_weights(self, shape, layer):
        return torch.ones(min(shape.tokens, shape.future + 1), dtype=torch.float64)

    def scores(self, seen):
        return seen.grouped_mass()
