"""The cost model of docs/results/scale.md: prefill, fork, decoding step and memory, counted from a model's shape.

Work is counted in terms that one machine does at one rate; seconds are the sum of amounts times rates. The rates come
from measured points (`fit`) or are assumed. Nothing here asks which method it has: a method says which rows it weighs
in which layer, and a pruning one which positions reach each layer.

    work = prefill(ARCHITECTURES["Llama-3-8B"], Profile.of(method, shape))
    total = seconds(work, rates)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from pvcbench.policy import Method, Shape

TERMS = {
    "linear_flop": "floating-point operation of a linear layer",
    "pair_flop": "operation of plain attention (4 per query-key pair, head and dimension)",
    "observed_flop": "operation of attention whose weights are summed as well",
    "weight_byte": "byte of weights read in a call",
    "shared_byte": "byte of weights in a call of several rows, beyond that (CPUs pack them for it)",
    "cache_byte": "byte of cached keys and values read in a decoding step",
    "copied_byte": "byte of keys and values copied into a fork",
    "ranked_entry": "entry of a KV head ranked by a cell that evicts",
    "layer_call": "layer called, whatever its size",
}
Work = dict[str, float]


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder-only model with gated MLPs, as its config.json names them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False  # whether the embedding is the output matrix as well

    @classmethod
    def of(cls, config) -> "Architecture":
        """The sizes in a transformers configuration."""
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        sizes = config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads
        return cls(*sizes, config.num_key_value_heads, dim, config.vocab_size, bool(config.tie_word_embeddings))

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices: queries and output, keys and values, gate, up and down."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """All weights, norms included."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (self.layer_weights + 2 * self.hidden) + self.hidden + tables

    @property
    def read_weights(self) -> int:
        """Weights that every call reads: all layers and the output matrix; of the embedding only rows are read."""
        return self.layers * self.layer_weights + self.vocabulary * self.hidden

    def entry_bytes(self, element: int) -> int:
        """Bytes of one position's keys and values in one layer."""
        return 2 * self.kv_heads * self.head_dim * element


ARCHITECTURES = {  # as published in the models' config.json
    "Llama-3.2-1B": Architecture(2048, 8192, 16, 32, 8, 64, 128256, tied=True),
    "Llama-3.2-3B": Architecture(3072, 8192, 28, 24, 8, 128, 128256, tied=True),
    "Llama-3-8B": Architecture(4096, 14336, 32, 32, 8, 128, 128256),
    "Llama-2-13B": Architecture(5120, 13824, 40, 40, 40, 128, 32000),
    "Llama-3-70B": Architecture(8192, 28672, 80, 64, 8, 128, 128256),
}


@dataclass(frozen=True)
class Profile:
    """What a method makes of a prompt's prefill: positions that reach each layer, and the last rows observed there."""

    reaching: tuple[int, ...]
    observed: tuple[int, ...]

    @classmethod
    def of(cls, method: Method, shape: Shape, reaching: Sequence[int] | None = None) -> "Profile":
        """By what the method declares; `reaching` where it prunes, else every position reaches every layer."""
        reaching = [shape.tokens] * shape.layers if reaching is None else reaching
        with torch.device("meta"):  # only how many they are counts
            declared = [
                method.row_weights(shape, layer) if layer in shape.evicted else None for layer in range(shape.layers)
            ]
        rows = [0 if weights is None else len(weights) for weights in declared]
        return cls(tuple(reaching), tuple(map(min, rows, reaching)))

    def with_rows(self, other: "Profile") -> "Profile":
        """One prefill that serves both: the rows of either are observed."""
        return Profile(self.reaching, tuple(map(max, self.observed, other.observed)))


def pairs(tokens: int, observed: int) -> tuple[float, float]:
    """Query-key pairs of a causal layer: of its plain rows, and of its last rows, which are observed."""
    plain = tokens - observed
    before = plain * (plain + 1) / 2
    return before, tokens * (tokens + 1) / 2 - before


def call(model: Architecture, positions: Sequence[int], rows: int, element: int) -> Work:
    """One pass through the linear layers: so many positions in each layer, logits for `rows` of them."""
    flops = 2 * model.layer_weights * sum(positions) + 2 * model.hidden * model.vocabulary * rows
    return {
        "linear_flop": float(flops),
        "weight_byte": float(model.read_weights * element),
        "shared_byte": float(model.read_weights * element) if max(positions) > 1 else 0.0,
        "layer_call": float(model.layers),
    }


def prefill(model: Architecture, profile: Profile, element: int, batch: int = 1) -> Work:
    """A whole prompt: linear layers on what reaches them, attention by pairs, the logits of the last token."""
    per_pair = 4 * model.heads * model.head_dim * batch
    counted = [pairs(*each) for each in zip(profile.reaching, profile.observed, strict=True)]
    attention = {
        "pair_flop": per_pair * sum(plain for plain, _ in counted),
        "observed_flop": per_pair * sum(observed for _, observed in counted),
    }
    return call(model, [batch * tokens for tokens in profile.reaching], batch, element) | attention


def fork(model: Architecture, kept: Sequence[float], ranked: Sequence[int], element: int) -> Work:
    """One cell's cache: each KV head ranks `ranked` entries of a layer (0: keeps all) and copies `kept` of them."""
    return {
        "copied_byte": sum(kept) * model.entry_bytes(element),
        "ranked_entry": float(model.kv_heads * sum(ranked)),
        "layer_call": float(model.layers),
    }


def step(model: Architecture, entries: float, rows: int, element: int) -> Work:
    """One token for each of `rows` caches that hold `entries` entries per KV head, all layers and rows together."""
    return call(model, [rows] * model.layers, rows, element) | {"cache_byte": entries * model.entry_bytes(element)}


def add(*works: Mapping[str, float]) -> Work:
    """Several pieces of work, one after the other."""
    return {term: sum(work.get(term, 0.0) for work in works) for term in TERMS if any(term in work for work in works)}


def times(factor: float, work: Mapping[str, float]) -> Work:
    """A piece of work again and again."""
    return {term: factor * amount for term, amount in work.items()}


def seconds(work: Mapping[str, float], rates: Mapping[str, float]) -> float:
    """How long a machine with these seconds per unit takes."""
    return sum(amount * rates[term] for term, amount in work.items())


def fit(points: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Seconds per unit of each term, none below 0, with the least relative error over points of (work, seconds)."""
    terms = [term for term in TERMS if any(work.get(term) for work, _ in points)]
    table = np.array([[work.get(term, 0.0) / spent for term in terms] for work, spent in points])
    if np.linalg.matrix_rank(table / table.max(0)) < len(terms):
        raise ValueError(f"these points do not tell {', '.join(terms)} apart: measure more kinds, sizes or shapes")
    scale = table.max(0)  # amounts lie 12 orders of magnitude apart
    solved, _ = nnls(table / scale, np.ones(len(table)))
    return dict(zip(terms, (solved / scale).tolist(), strict=True))


@dataclass(frozen=True)
class Memory:
    """Bytes of a prefill: what stays when it is done, and the peak while it runs."""

    weights: int
    cache: int
    scores: int
    peak: int


def memory(
    model: Architecture,
    profile: Profile,
    element: int,
    channels: int = 0,
    scored: bool = True,
    block: tuple[int, int] = (2**21, 64),
) -> Memory:
    """Memory of one prefill.

    `channels` running totals and, where `scored`, a score (8 bytes each) stay per entry and KV head. The peak is that
    of the layer in which what was stored so far and what only passes are largest together. What passes is the larger
    of the MLP's (gate, up and their product, the normed input and the residual) and of attention's (queries, keys and
    values before and after RoPE, the output, and where rows are observed a block of attention weights, a copy of keys
    and values, and a float32 mass per head). `block` is the engine's: weights at once, and rows at most (16 at least).
    """
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    weights, stored, most = model.parameters * element, 0, 0
    stays = model.entry_bytes(element), model.kv_heads * 8 * (channels + 1) if scored else 0
    for tokens, observed in zip(profile.reaching, profile.observed, strict=True):
        mlp = tokens * (2 * model.hidden + 3 * model.intermediate) * element
        attention = tokens * (2 * model.hidden + 3 * query + 3 * key) * element
        if observed:
            rows = min(observed, max(16, min(block[1], block[0] // (model.heads * tokens))))
            attention += (rows * model.heads + 2 * key) * tokens * element + 4 * tokens * model.heads
        stored += tokens * sum(stays)
        most = max(most, stored + max(mlp, attention))
    entries = sum(profile.reaching)
    return Memory(weights, entries * stays[0], entries * stays[1], weights + most)
