"""What an eviction method is: the one module a method imports.

A method is a small frozen dataclass of hyperparameters. It says how entries score and how a budget spreads over
layers; choosing, gathering, attention and decoding are shared. It keeps no state between samples: running totals
live in the cache, beside the entries they belong to.

    >>> class Newest(Method):  # the whole of a sliding window
    ...     def scores(self, seen):
    ...         return seen.positions.float()
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pvcbench.errors import MethodError, OutOfReach, UserError
from pvcbench.method_files import document, numbers, require_file, tensors
from pvcbench.places import user_path

__all__ = [
    "LayerModule",
    "Method",
    "Observation",
    "OutOfReach",
    "Pass",
    "Shape",
    "StoredPrompt",
    "UserError",
    "by_layer",
    "document",
    "numbers",
    "protect",
    "tensors",
    "torch",
]


@dataclass(frozen=True)
class Shape:
    """The compressed part of a prompt in a model: its tokens, the model's layers and those that evict."""

    tokens: int
    layers: int
    evicted: tuple[int, ...]
    future: int = 0  # of the tokens, the last ones that lie after the prompt: for methods that leak (`reads`)
    head: int = 0  # of the tokens, the first ones, which a chat template or a tokenizer put before the context
    question: int = 0  # of the tokens, the last ones, which came after the context: 0 where none are compressed


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt that stands whole in the cache, and how more text is written for its model."""

    ids: Int[Tensor, "batch tokens"]
    shape: Shape
    encode: Callable[[str], Sequence[int]]  # the tokens of a text, without special ones
    after: str  # what the chat template puts after a user's message, up to the answer


@dataclass(frozen=True)
class Pass:
    """Tokens that are read on top of a whole prompt, and forgotten; they are about the entries first..last-1.

    Their attention weights are formed among few keys: the prompt's first `sinks` entries, those entries, their own.
    """

    ids: Int[Tensor, "batch tokens"]
    first: int
    last: int
    sinks: int = 0


@runtime_checkable
class LastRows(Protocol):
    """The last query rows in one layer: of the prompt or, while decoding, of all tokens so far.

    After a prefill row i of r sees the entries up to `entries - r + i`. While decoding slots have any order: a row sees
    those of the entries now in the cache that are no newer than itself. The rows of a pass (`Method.passes`) see all
    entries that are shown, and `blocks` gives their weights on these alone.
    """

    query: Float[Tensor, "batch heads rows dim"]  # after RoPE, as they meet the keys
    window: int | None  # of a sliding layer: a row sees that many entries at most

    def blocks(self) -> Iterator[tuple[int, int, Float[Tensor, "batch heads rows seen"]]]:
        """Attention weights of some rows at a time: first row, the row after the last, weights.

        The next block takes the same memory: what is wanted of one must be computed, or copied, before it.
        """

    def logits(self) -> Iterator[tuple[int, int, Float[Tensor, "batch heads rows seen"]]]:
        """The same before the softmax: scaled products, -inf where a row does not see an entry."""


@dataclass(frozen=True)
class LayerModule:
    """A layer's attention module in its model: for code that was written for such modules."""

    attention: torch.nn.Module
    model: torch.nn.Module  # the whole of it
    tables: tuple[Tensor, Tensor] | None  # cos and sin of the tokens' positions, as the module was given them


@dataclass(frozen=True)
class Observation:
    """What a method sees of one layer, after its prefill or after one decoding step."""

    layer: int
    shape: Shape
    seen: int | Int[Tensor, ""]  # tokens so far, prompt included: the newest has position seen - 1
    keys: Float[Tensor, "batch kv_heads entries dim"]  # after RoPE, at original positions
    values: Float[Tensor, "batch kv_heads entries value_dim"]
    positions: Int[Tensor, "batch kv_heads entries"]
    mass: Float[Tensor, "batch heads entries"] | None  # prefill: by row_weights; decoding: the newest row's attention
    totals: Float[Tensor, "batch kv_heads entries channels"] | None  # what accumulate returned so far
    draws: Int[Tensor, " batch"]  # one number per sample, a function of (seed, sample), for methods that draw
    first_layer_entries: int  # entries in the first layer now (PvC's recent window grows with them)
    later: int = 0  # under hold: rows of the same chunk still to come
    excess: int = 0  # under hold: entries of each head beyond what the cell may keep
    stays: int = 0  # under hold with `prompt: protected`: so many first tokens, those of the prompt, are never evicted
    window: int | None = None  # of a sliding layer: entries at positions up to seen - window are seen no more
    queries: Float[Tensor, "batch heads tokens dim"] | None = None  # before rotary embedding, where `needs_queries`
    ahead: Callable[[int], Tensor] | None = None  # mean rotation of so many positions after the prompt: queries @ it
    rows: LastRows | None = None  # the last ones, where `needs_rows`; of a pass, where the method makes passes
    plain_keys: Callable[[], Tensor] | None = None  # gives the keys before rotary embedding, where `needs_plain_keys`
    output: Callable[[], Tensor] | None = None  # gives the output projection, where `needs_output`: see there
    hidden: Float[Tensor, "batch tokens hidden"] | None = None  # what attention was given, where `needs_hidden`
    module: Callable[[], LayerModule] | None = None  # gives the layer's attention module, where `needs_module`

    def grouped_mass(self) -> Float[Tensor, "batch kv_heads entries"]:
        """The mass summed over the query heads that share a KV head."""
        batch, kv_heads, entries, _ = self.keys.shape
        return self.mass.reshape(batch, kv_heads, -1, entries).sum(2)


class Method:
    """The base of every method: class attributes declare, methods answer; the defaults suit post-prefill scoring."""

    reference: ClassVar[bool] = False  # the full cache: one cell, added to every run
    positions: str = "original"  # "cache": entries rotate to their place in the cache (under hold: sinks + window only)
    decodes: ClassVar[tuple[str, ...]] = ("grow", "hold")  # decode policies it supports
    protocols: ClassVar[tuple[str, ...]] = ("generate", "continuation", "streaming", "blockwise")  # of tasks
    watches_decoding: ClassVar[bool] = False  # under hold it needs the newest row's attention in every step
    channels: ClassVar[int] = 0  # running totals it keeps per entry under hold
    needs_queries: ClassVar[bool] = False  # the prompt's queries before rotary embedding, and rotations to come
    needs_rows: int = 0  # the last query rows it sees one by one, under hold too; more than there are: all of them
    needs_plain_keys: ClassVar[bool] = False  # the prompt's keys before rotary embedding
    needs_question: ClassVar[bool] = False  # whether it compresses prompts with a question only (`Shape.question`)
    needs_output: ClassVar[bool] = False  # each query head's matrix, [heads, value_dim, hidden], by which it writes
    needs_hidden: ClassVar[bool] = False  # the hidden states of the prompt as the attention module is given them
    needs_module: ClassVar[bool] = False  # each layer's attention module, for code that reads its weights
    ends_at_budget: ClassVar[bool] = False  # nothing is evicted: the answer ends when the cache has come to the budget
    reads: str | None = None  # "answer" or "future": a leaking reference, whose prefill sees what follows the prompt
    files: ClassVar[tuple[str, ...]] = ()  # its settings that are files, None where the user has to name one

    def __post_init__(self):
        """Makes paths of the files that a method names; one with a `__post_init__` of its own calls this as well."""
        for name in self.files:
            named = getattr(self, name)
            object.__setattr__(self, name, None if named is None else user_path(named))

    def validate(self, setting: str) -> None:
        """Checks, before a model is loaded, the files that it names; `setting` is the method's place, `methods.NAME`.

        A method that can tell a wrong file without the model checks more here, after this.
        """
        for name in self.files:
            path = getattr(self, name)
            if not (path is None or isinstance(path, Path)):
                raise MethodError(
                    f"{type(self).__name__}.__post_init__ must call super().__post_init__(): it has files"
                )
            require_file(f"{setting}.{name}", path)
        for name, value in vars(self).items():
            if isinstance(value, Method):
                value.validate(f"{setting}.{name}")

    @property
    def unnamed(self) -> bool:
        """Whether it, or a method inside it, still needs to be told a file."""
        inner = [value for value in vars(self).values() if isinstance(value, Method)]
        return any(getattr(self, name) is None for name in self.files) or any(one.unnamed for one in inner)

    @property
    def own_budget(self) -> str | None:
        """A label where the configuration alone fixes the size (one cell, no budgets), else None."""
        return "1.0" if self.reference else None

    @property
    def prunes(self) -> bool:
        """Whether positions are dropped between layers during prefill, which makes the prefill its own."""
        return False

    @property
    def ragged_batch(self) -> bool:
        """Whether the rows of a batch may keep different numbers of entries, so that samples run one by one."""
        return False

    @property
    def by_scores(self) -> bool:
        """Whether under hold the lowest scores go whenever entries are too many; else `drop` has a rule of its own."""
        return type(self).drop is Method.drop

    @property
    def rows_held(self) -> int:
        """The last query rows that a cell keeps while decoding under hold."""
        return self.needs_rows if "hold" in self.decodes else 0

    @property
    def steady(self) -> bool:
        """Whether under hold every step past the budget frees one slot, by tensor operations alone (as `drop` does)."""
        return self.by_scores and not self.rows_held

    def resolve(self, budget: int | None, shape: Shape) -> "Method":
        """The method with every hyperparameter that depends on the budget settled; raises OutOfReach."""
        return self

    def row_weights(self, shape: Shape, layer: int) -> Float[Tensor, " rows"] | None:
        """Weights of the last query rows whose attention is summed into `mass` at prefill; None: no attention."""
        return None

    def protects(self, budget: int | None, shape: Shape) -> tuple[int, int]:
        """How many first and last tokens are never evicted."""
        return 0, 0

    def scores(self, seen: Observation) -> Float[Tensor, "batch kv_heads entries"]:
        """The worth of each entry; the top of them stays."""
        raise TypeError(f"{type(self).__name__} defines no scores")

    def plan(
        self, scores: Sequence[Float[Tensor, "batch _kv_heads entries"]], budget: int, shape: Shape
    ) -> Sequence[Int[Tensor, "batch _kv_heads"]]:
        """For each evicted layer the entries to keep per sample and KV head; the budget everywhere unless overridden.

        Layers may differ in their number of KV heads. One tensor for all layers will do too (see `by_layer`). A method
        that defines `notes` is handed a fourth argument: what it noted, layer by layer.
        """
        return [torch.full(layer.shape[:2], budget) for layer in scores]

    def passes(self, prompt: StoredPrompt) -> Sequence[Pass]:
        """Tokens to read on top of the whole prompt, which then rank its entries in the place of the prompt's own rows.

        Each pass begins where the prompt ends, sees all of it and nothing of the others. `scores` is asked once for
        each pass and layer: `seen.rows` are the pass's, keys, values and positions those of the entries that it is
        about. An entry's score is its highest; an entry that no pass is about comes below all others.
        """
        return ()

    def notes(self, seen: Observation) -> Float[Tensor, " batch"] | None:
        """A number for each sample about a layer that was just scored, for `plan`."""
        return None

    def survivors(self, seen: Observation) -> Int[Tensor, "batch kept"] | None:
        """Which entries go on to the next layer during prefill, in order; None: all of them."""
        return None

    def accumulate(self, seen: Observation) -> Float[Tensor, "batch kv_heads entries channels"] | None:
        """The running totals after the newest observation."""
        return seen.totals

    def drop(self, seen: Observation, budget: int) -> Int[Tensor, "batch kv_heads dropped"] | None:
        """Slots to free after a decoding step under hold: by default the lowest scores beyond the budget."""
        if seen.excess <= 0:
            return None
        first, last = self.protects(budget, seen.shape)
        worth = protect(self.scores(seen), seen, max(first, seen.stays), last)
        return lowest(worth, seen.positions, seen.excess)


def by_layer(
    plan: Tensor | Sequence[Tensor], scores: Sequence[Float[Tensor, "batch _kv_heads entries"]]
) -> list[Tensor]:
    """A plan as one tensor for each layer, [batch, kv_heads], as far as the method that made it keeps to that.

    In one tensor for all layers, [layers, batch, kv_heads], every layer has the KV heads of the first. Where layers
    differ in them, counts that are the same for all heads stand for the heads that each layer has.
    """
    counts = list(plan)
    if not isinstance(plan, Tensor) or plan.dim() != 3 or not bool((plan == plan[..., :1]).all()):
        return counts
    if len(counts) != len(scores) or counts[0].shape != scores[0].shape[:2]:
        return counts
    return [own[:, :1].expand(layer.shape[:2]) for own, layer in zip(counts, scores, strict=True)]


def lowest(
    worth: Float[Tensor, "batch kv_heads entries"], positions: Int[Tensor, "batch kv_heads entries"], count: int
) -> Int[Tensor, "batch kv_heads count"]:
    """Slots of the lowest entries; of equals the oldest goes first: each way of decoding orders slots its own way."""
    never = torch.iinfo(positions.dtype).max
    age = positions.masked_fill(positions < 0, never)
    if count == 1:
        return age.masked_fill(worth > worth.amin(-1, keepdim=True), never).argmin(-1, keepdim=True)
    order = age.argsort(-1)
    return order.gather(-1, worth.gather(-1, order).sort(dim=-1, stable=True).indices[..., :count])


def protect(
    scores: Float[Tensor, "batch kv_heads entries"], seen: Observation, first: int, last: int
) -> Float[Tensor, "batch kv_heads entries"]:
    """Scores with the first and last tokens of the sequence, and empty slots (-1), raised above all others.

    What no later token sees, since its layer slides, comes below all others, protected or not.
    """
    kept = (seen.positions < first) | (seen.positions >= seen.seen - last) | (seen.positions < 0)
    scores = scores.masked_fill(kept, float("inf"))
    if seen.window is None:
        return scores
    unseen = (seen.positions >= 0) & (seen.positions <= seen.seen - seen.window)
    return scores.masked_fill(unseen, float("-inf"))
