"""What is computed of a model's queries: the filters of Q-Filters, the statistics of Expected Attention.

Both recipes are those of the methods' authors (NathanGodey/qfilters, `make_filters.py`; kvpress,
`expected_attention_with_stats.py`); sums are in float64, and what is stored is float32 as theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pvcbench.calibration.corpus import Corpus
from pvcbench.calibration.queries import watch
from pvcbench.errors import UserError
from pvcbench.models.loaded import LoadedModel

Step = Callable[[], None]


@dataclass(frozen=True)
class QFilters:
    """Windows of a corpus, and of each layer some of their rows, the same for all heads, drawn by the seed."""

    texts: int = 19  # the authors' code stops one short of the 20 that it is asked for
    tokens: int = 2048
    rows: int = 3000
    seed: int = 0

    def coded(self, corpus: Corpus, tokenizer) -> list[list[int]]:
        """The windows."""
        if self.rows > self.texts * self.tokens:
            raise UserError(f"--rows {self.rows} are more than the {self.texts * self.tokens} of --texts and --tokens")
        return corpus.windows(tokenizer, self.tokens, self.texts)

    def computed(self, loaded: LoadedModel, texts: Sequence[Sequence[int]], step: Step) -> dict[str, Tensor]:
        """`q_filters`, [layers, kv_heads, dim]: negated, as the authors store them."""
        chosen: dict[int, Tensor] = {}
        kept: dict[int, Tensor] = {}
        groups: dict[int, int] = {}

        def take(text, layer, queries, kv_heads):
            if layer not in chosen:
                drawn = torch.Generator().manual_seed(self.seed * 1_000_003 + layer)
                order = torch.randperm(self.texts * self.tokens, generator=drawn)
                chosen[layer] = order[: self.rows].sort().values
                kept[layer] = torch.empty(len(queries), self.rows, queries.shape[-1], dtype=wide(queries))
                groups[layer] = kv_heads
            own = chosen[layer] // self.tokens == text
            rows = chosen[layer][own] - text * self.tokens
            kept[layer][:, own] = queries[:, rows.to(queries.device)].to(kept[layer])

        layers = watch(loaded, texts, take, True, step)
        filters = [filters_of(kept[layer], groups[layer]) for layer in range(layers)]
        return {"q_filters": stacked(filters, "KV heads")}


def filters_of(rows: Float[Tensor, "heads rows dim"], kv_heads: int) -> Float[Tensor, "kv_heads dim"]:
    """Of each head's rows, not centred, the first right singular vector, towards which most rows point; negated.

    Where as many rows point the other way, the longer ones decide. It is averaged over the query heads of a KV head,
    and not made a unit vector again.
    """
    rows = rows.double()
    first = torch.linalg.eigh(rows.mT @ rows).eigenvectors[..., -1]
    along = (rows @ first[..., None])[..., 0]
    votes = along.sign().sum(-1)
    towards = (votes > 0) | ((votes == 0) & (along.sum(-1) > 0))  # which of both signs a solver gives is chance
    signed = torch.where(towards[:, None], -first, first)
    return signed.reshape(kv_heads, -1, rows.shape[-1]).mean(1)


@dataclass(frozen=True)
class ExpectedAttention:
    """Pieces of a corpus, cut by characters; the first tokens of each, whose queries stand out, are left out."""

    texts: int = 100
    characters: int = 1000
    first: int = 4

    def coded(self, corpus: Corpus, tokenizer) -> list[list[int]]:
        """The pieces."""
        return corpus.pieces(tokenizer, self.characters, self.first + 1, self.texts)

    def computed(self, loaded: LoadedModel, texts: Sequence[Sequence[int]], step: Step) -> dict[str, Tensor]:
        """`query_mean`, [layers, heads, dim], and `query_cov`, [layers, heads, dim, dim], before rotary embedding."""
        sums: dict[int, Tensor] = {}
        products: dict[int, Tensor] = {}

        def take(text, layer, queries, kv_heads):
            rows = queries[:, self.first :].double()
            total, product = rows.sum(1), rows.mT @ rows
            sums[layer] = total + sums[layer] if layer in sums else total
            products[layer] = product + products[layer] if layer in products else product

        layers, count = watch(loaded, texts, take, False, step), sum(len(ids) - self.first for ids in texts)
        if count < 2:
            raise UserError(f"{count} token has no covariance: raise --texts or --characters")
        means = [sums[layer] / count for layer in range(layers)]
        spreads = [
            (products[layer] - count * mean[:, :, None] * mean[:, None]) / (count - 1)
            for layer, mean in enumerate(means)
        ]
        return {"query_mean": stacked(means, "heads"), "query_cov": stacked(spreads, "heads")}


RECIPES: Mapping[str, type] = {"q-filters": QFilters, "expected-attention": ExpectedAttention}


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype in which rows are kept: float32 or better."""
    return torch.promote_types(tensor.dtype, torch.float32)


def stacked(layers: Sequence[Tensor], what: str) -> Tensor:
    """One tensor of all layers, in float32; refuses layers of different sizes and numbers that are not finite."""
    if len({tuple(layer.shape) for layer in layers}) != 1:
        raise UserError(
            f"the layers of this model differ in their {what} or sizes, which no file of this kind can tell"
        )
    whole = torch.stack([layer.cpu() for layer in layers]).float()
    if not bool(torch.isfinite(whole).all()):
        raise UserError("this model's queries are NaN or infinite on these texts: use a wider dtype (dtype=float32)")
    return whole.contiguous()
