"""Passes: tokens read on top of a whole prompt, by which methods score its entries, and forgotten afterwards.

A pass begins at the position after the prompt, sees every entry and its own tokens, and no other pass. What it looks at
is weighed among few keys: the prompt's first entries, those that the pass is about, and its own. A pass that several
methods ask for is read once. Nothing of a prompt is copied but one layer at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pvcbench.engine import answers
from pvcbench.engine.attention import Rule, attention_blocks, prompt_attention, windowed_attention
from pvcbench.engine.cache import AttendingCache
from pvcbench.engine.observer import clock
from pvcbench.engine.prefill import Prefill
from pvcbench.engine.projections import Projection
from pvcbench.errors import UserError
from pvcbench.policy import Method, Pass, Shape, StoredPrompt


@dataclass(frozen=True)
class Writer:
    """How text is written for a model: the tokens of a text, and what the chat template puts after a user's message."""

    encode: Callable[[str], Sequence[int]]
    after: str = ""

    @classmethod
    def of_bytes(cls, vocabulary: int = 64) -> "Writer":
        """A stand-in for models without a tokenizer: bytes of a text are tokens below `vocabulary`, none is token 0."""
        return cls(lambda text: [1 + byte % (vocabulary - 1) for byte in text.encode()], "\n")


def unwritten(text: str) -> Sequence[int]:
    """Refuses to write text for a model whose tokenizer is not known."""
    raise UserError(
        "a method has the model read text of its own, and this engine knows no tokenizer: make it by "
        "Engine(model, writer=Writer(encode, after)), or choose other methods by method=[...]"
    )


def asked_passes(
    methods: Sequence[Method], ids: Int[Tensor, "batch tokens"], shape: Shape, writer: Writer | None, strict: bool
) -> dict[Method, list[Pass]]:
    """The passes of each method that makes some on this prompt."""
    writer = Writer(unwritten) if writer is None else writer
    prompt = StoredPrompt(ids, shape, writer.encode, writer.after)
    making = [method for method in methods if type(method).passes is not Method.passes]
    found = {method: answers.passes(method, prompt, strict) for method in making}
    return {method: passes for method, passes in found.items() if passes}


@dataclass(frozen=True)
class PassRows:
    """The query rows of a pass in one layer, with the keys that they are weighed among."""

    query: Float[Tensor, "batch heads rows dim"]
    keys: Float[Tensor, "batch kv_heads among dim"]  # the prompt's first ones, those the pass is about, its own
    positions: Int[Tensor, "batch among"]
    rule: Rule
    window: int | None
    shown: slice  # of the keys, those that the pass is about

    def blocks(self) -> Iterator[tuple[int, int, Float[Tensor, "batch heads rows shown"]]]:
        """Attention weights of some rows at a time on the entries that are shown (see `attention_blocks`)."""
        yield from self._blocks(True)

    def logits(self) -> Iterator[tuple[int, int, Float[Tensor, "batch heads rows shown"]]]:
        """The same before the softmax."""
        yield from self._blocks(False)

    def _blocks(self, softmax: bool):
        window = None if self.window is None else (self.window, self.positions)
        blocks = attention_blocks(self.query, self.keys, scale=self.rule, window=window, softmax=softmax)
        for first, after, weights in blocks:
            yield first, after, weights[..., self.shown]


class PassCache(AttendingCache):
    """A prompt's entries, uncopied, with those of a pass on top; `watch` is shown each layer when it has run whole."""

    def __init__(self, prefill: Prefill, kernel: str, tokens: int, watch: Callable):
        super().__init__(prefill.layout)
        self.prefill, self.kernel, self.watch = prefill, kernel, watch
        self.seen, self.reach = prefill.shape.tokens, prefill.reach
        self.end = self.seen + tokens
        self.own: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values of the pass by layer
        self.queries: dict[int, Tensor] = {}  # of its pieces so far
        self.given: dict[int, Tensor] = {}  # hidden states that the attention of the layer under way was given
        self.hidden: dict[int, Tensor] = {}  # the same of all pieces, where a method asks
        for place, state in prefill.states.items():
            state.map(torch.clone).put(self.layers[place])

    def before_layer(self, layer: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """A decoder layer's inputs, as they are."""
        return args, kwargs

    def before_attention(self, layer, module, args, kwargs):
        """Remembers hidden states where a method asks for them; a prompt whose attention has none was refused."""
        if self.prefill.observer.shows_hidden:
            self.given[layer] = kwargs.get("hidden_states", args[0] if args else None)

    def attend(self, layer, query, key, value, rule, window):
        given = self.given.pop(layer, None)
        if given is not None and layer in self.prefill.shape.evicted:
            known = [self.hidden[layer]] if layer in self.hidden else []
            self.hidden[layer] = torch.cat((*known, given), 1)
        if layer in self.own:
            key, value = (torch.cat(pair, 2) for pair in zip(self.own[layer], (key, value), strict=True))
        self.own[layer] = key, value
        output = self._plain(layer, query, rule)
        if layer in self.prefill.shape.evicted:
            before = [self.queries.pop(layer)] if layer in self.queries else []
            queries = torch.cat((*before, query), 2)
            if self.seen + query.shape[2] == self.end:
                self.watch(layer, queries, key, rule, self.hidden.pop(layer, None))
            else:
                self.queries[layer] = queries
        return output

    def follow(self, place, layer, query, rule, new):
        device = self.own[layer][0].device  # the reader may lie on another one
        return self._plain(layer, query.to(device), rule).to(query.device)

    def _plain(self, layer, query, rule):
        """Ordinary attention of the newest rows to the prompt and to the pass so far."""
        stored, window = self.prefill.layers[layer], self.prefill.windows[layer]
        pairs = zip((stored.keys, stored.values), self.own[layer], strict=True)
        keys, values = (torch.cat(pair, 2) for pair in pairs)
        if window is None or window >= keys.shape[2]:
            return prompt_attention(query, keys, values, rule, self.kernel)
        positions = torch.arange(keys.shape[2], device=keys.device).expand(len(keys), -1)
        return windowed_attention(query, keys, values, rule, window, positions)


class Passes:
    """The passes that methods ask for on top of a prefill; `read` has the model read them and scores its entries."""

    def __init__(
        self, prefill: Prefill, kernel: str, asked: dict[Method, list[Pass]], projections: Sequence[Projection | str]
    ):
        self.prefill, self.observer, self.kernel, self.asked = prefill, prefill.observer, kernel, asked
        self.projections = projections  # of layers, where a method asks
        self.scores: dict[Method, dict[int, Tensor]] = {method: {} for method in asked}
        self.scoring = 0.0  # seconds

    def read(self, on_top: Callable[[Tensor, PassCache], None]) -> None:
        """Reads all passes one after the other; `on_top` calls the model with tokens and a cache."""
        for ids, users in self._together():
            started, before = clock(ids), self.scoring
            on_top(
                ids,
                PassCache(self.prefill, self.kernel, ids.shape[1], partial(self._score, users)),
            )
            spent = clock(ids) - started - (self.scoring - before)
            self.observer.passes_seconds += spent
            for method in {method for method, _ in users}:
                self.observer.pass_seconds[method] += spent
        for method, layers in self.scores.items():
            self.observer.scores[method] = [layers[layer] for layer in self.prefill.shape.evicted]
            self.observer.totals[method] = [None] * len(layers)

    def _together(self) -> list[tuple[Tensor, list[tuple[Method, Pass]]]]:
        """The tokens of each distinct pass, and who asks for it."""
        found: dict[tuple, tuple[Tensor, list]] = {}
        for method, passes in self.asked.items():
            for one in passes:
                key = one.ids.shape, tuple(one.ids.flatten().tolist())
                found.setdefault(key, (one.ids, []))[1].append((method, one))
        return list(found.values())

    def _score(
        self,
        users: Sequence[tuple[Method, Pass]],
        layer: int,
        query: Float[Tensor, "batch heads rows dim"],
        own: Float[Tensor, "batch kv_heads rows dim"],
        rule: Rule,
        hidden: Tensor | None,
    ) -> None:
        """Has the methods of a pass score a layer by it; of an entry's scores the highest stays."""
        stored = self.prefill.layers[layer]
        for method, one in users:
            started = clock(query)
            part = slice(one.first, one.last)
            shown = stored.keys[:, :, part], stored.values[:, :, part], stored.positions[:, part]
            seen = replace(
                self.observer.observation(layer, *shown, 0),
                rows=self._rows(one, layer, query, own, rule),
                output=self.projections[layer].matrix if method.needs_output else None,
                hidden=hidden if method.needs_hidden else None,
            )
            found = answers.scores(method, seen, self.observer.strict)
            known = self.scores[method].get(layer)
            if known is None:
                known = found.new_full(stored.keys.shape[:3], float("-inf"))
                self.scores[method][layer] = known
            known[..., part] = torch.maximum(known[..., part], found)
            spent = clock(query) - started
            self.observer.scoring_seconds[method] += spent
            self.scoring += spent

    def _rows(self, one: Pass, layer: int, query: Tensor, own: Tensor, rule: Rule) -> PassRows:
        """The rows of a pass in a layer, among the keys that it is weighed by."""
        stored, window, tokens = self.prefill.layers[layer], self.prefill.windows[layer], self.prefill.shape.tokens
        new = torch.arange(tokens, tokens + own.shape[2], device=own.device).expand(len(own), -1)
        parts = slice(0, one.sinks), slice(one.first, one.last)
        keys = torch.cat((*(stored.keys[:, :, part] for part in parts), own), 2)
        positions = torch.cat((*(stored.positions[:, part] for part in parts), new), 1)
        window = None if window is None or window >= tokens + own.shape[2] else window
        return PassRows(query, keys, positions, rule, window, slice(one.sinks, one.sinks + one.last - one.first))
