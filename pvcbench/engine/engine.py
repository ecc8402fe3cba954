"""The engine: an unmodified transformers model, run on caches that evict.

engine = Engine(model)
prefill = engine.prefill(ids, [method])
decoder = engine.decoder(prefill_groups)
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from pvcbench.engine.ablation import Reading, Variant, VariantCache, read
from pvcbench.engine.attention import Rule
from pvcbench.engine.cache import AttendingCache
from pvcbench.engine.decode import DecodeCache, Decoder
from pvcbench.engine.evict import Cell, Group, fork
from pvcbench.engine.kernels.interface import require
from pvcbench.engine.layout import Layout, attentions_by_layer, decoder_config, decoder_layers, first_position
from pvcbench.engine.observer import Observer, clock
from pvcbench.engine.passes import PassCache, Passes, Writer, asked_passes
from pvcbench.engine.prefill import Prefill, PrefillCache
from pvcbench.engine.projections import LATENT, Projection, Watch
from pvcbench.engine.refusal import refusal
from pvcbench.engine.rotary import SCALED, Reach
from pvcbench.engine.states import State
from pvcbench.engine.streaming import StreamCache
from pvcbench.engine.teacher_forcing import Scored, score_groups, tokens_per_call
from pvcbench.engine.turning import ADDED, FAR, SHIFT, TOKENS, Turns, level, scaled, turns_of
from pvcbench.errors import NOT_FINITE, Inexact, NotFinite, UserError
from pvcbench.policy import Method, Shape

VERSION = 2  # raised whenever a change of the engine changes a number
HOLDING = 2  # the same for `decode: hold` alone: of equal scores the oldest entry goes first
NAME = "pvcbench"
RUNNING: ContextVar[AttendingCache | None] = ContextVar("RUNNING", default=None)  # some models pass no arguments on


def attention(module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **kwargs):
    """The attention function transformers calls: the cache stores, attends and observes."""
    adds = {"sinks": "a sink of its own for every token", "position_bias": "a bias by position"}
    for name, what in adds.items():
        if kwargs.get(name) is not None:
            raise UserError(f"this model cannot be measured: its attention has {what}, which the engine does not add")
    if adds_numbers(attention_mask):
        raise UserError(
            "this model cannot be measured: it adds numbers of its own to the logits of its attention, which the "
            "engine does not add"
        )
    cache = RUNNING.get()
    if cache is None:
        raise RuntimeError("this model is in the engine's hands: call it through Engine")
    rule = Rule(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    output = cache.run(module, query, key, value, rule, kwargs.get("sliding_window"))
    return output.transpose(1, 2).contiguous(), None


def adds_numbers(mask) -> bool:
    """Whether a mask does more than to hide: on the meta device and while a step is captured nobody can tell."""
    if not isinstance(mask, Tensor) or not mask.is_floating_point() or mask.is_meta:
        return False
    if mask.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return bool(((mask != 0) & (mask > torch.finfo(mask.dtype).min / 2)).any())


AttentionInterface.register(NAME, attention)


def require_finite(numbers: Tensor) -> None:
    """Raises NotFinite where a number is NaN or infinite: what is read off such a model means nothing."""
    if not bool(torch.isfinite(numbers).all()):
        raise NotFinite(NOT_FINITE)


class Engine:
    """Prefills, forks and decodes with one model; takes over its attention until `release`."""

    def __init__(
        self,
        model: nn.Module,
        kernel: str = "sdpa",
        backend: str = "blocked",
        evict_sliding: bool = False,
        chunk: int | None = None,
        writer: Writer | None = None,
    ):
        self.writer = writer  # how text is written for the model, for methods that have it read some
        self.model, self.kernel, self.backend, self.chunk = model, kernel, backend, chunk
        require(backend, self.device)
        self.evict_sliding = evict_sliding
        reason = refusal(model)
        if reason is not None:
            raise UserError(f"{type(model).__name__} cannot be measured: {reason}")
        self.config = decoder_config(model.config)
        self.origin, self.padding = first_position(model)
        layout = Layout.of(self.config)
        modules = decoder_layers(model, layout)
        self.layout = replace(layout, together=layout.layers // len(modules))
        self.attentions = attentions_by_layer(modules, self.layout)
        self.windows = self.layout.windows
        self.original = model.config._attn_implementation
        model.set_attn_implementation(NAME)
        self.reach = Reach(model)
        self.active: PrefillCache | PassCache | StreamCache | VariantCache | None = None
        self.plain_costs: dict[tuple[int, int], float] = {}
        self.strict = False  # whether methods are on trial: asked twice, and held to every rule at any cost
        self.continues = True  # whether several tokens at once can follow others; not so for some recurrent layers
        self.turning: list[Turns] | None = None  # how each layer turns with positions, once that is known
        self.projecting: list[Projection | str] | None = None  # each layer's output projection, once that is known
        self.modules = modules  # of the decoder
        self.running = 0  # the place of the decoder layer that runs, or of the first in the module that runs
        self.hooks = self._hooked()

    def _hooked(self) -> list:
        """Hooks of every decoder layer and every attention module."""
        layers = [(self._hook(number * self.layout.together), module) for number, module in enumerate(self.modules)]
        inner = [(partial(self._before_attention, inside), module) for inside, module in self._known()]
        return [module.register_forward_pre_hook(hook, with_kwargs=True) for hook, module in (*layers, *inner)]

    def _known(self) -> list[tuple[int, nn.Module]]:
        """Every attention module once, since some layers share theirs, and which of its module's layers it is."""
        places = {module: place for place, own in enumerate(self.attentions) for module in own}
        return [(place % self.layout.together, module) for module, place in places.items()]

    def _before_attention(self, inside, module, args, kwargs):
        number = self.layout.numbers.get(self.running + inside)
        if self.active is not None and number is not None:
            self.active.before_attention(number, module, args, kwargs)

    def _hook(self, place):
        def before(module, args, kwargs):
            self.running, number = place, self.layout.numbers.get(place)
            return None if self.active is None or number is None else self.active.before_layer(number, args, kwargs)

        return before

    def release(self) -> None:
        """Gives the model back as it was."""
        for hook in self.hooks:
            hook.remove()
        self.reach.release()
        self.model.set_attn_implementation(self.original)

    @property
    def device(self) -> torch.device:
        """Where token ids go: to the embedding, or where accelerate brings its weights when they are offloaded."""
        embedding = self.model.get_input_embeddings()
        place = embedding.weight.device
        return torch.device(embedding._hf_hook.execution_device) if place.type == "meta" else place

    def shape(self, tokens: int, head: int = 0, question: int = 0) -> Shape:
        """Which layers evict for a prompt of this length: all but the sliding ones that it outgrows.

        `head` and `question` are how many of its tokens stand before the context, and after it.
        """
        evicted = [
            layer
            for layer, window in enumerate(self.windows)
            if window is None or window >= tokens or self.evict_sliding
        ]
        if not evicted:
            raise UserError(
                f"every layer of this model slides over {min(filter(None, self.windows))} tokens, fewer than the "
                f"prompt's {tokens}: shorten the prompt or set model.evict_sliding=true"
            )
        return Shape(tokens, len(self.windows), tuple(evicted), head=head, question=question)

    def call(
        self, ids: Int[Tensor, "rows tokens"], cache: AttendingCache, keep: int | None = None
    ) -> Float[Tensor, "returned *kept vocabulary"]:
        """One forward pass on a cache; the logits after the last token, or after each of the last `keep`.

        A cache of variants returns more rows than are fed.
        """
        end = cache.seen + ids.shape[1]
        if end > cache.reach and self.reach.differs(cache.reach, end):
            raise Inexact(self.reach.refusal(cache.reach, end))
        self.reach.tokens, running = max(cache.reach, end), RUNNING.set(cache)
        try:
            output = self.model(
                input_ids=ids,
                position_ids=self._positions(cache.places(ids), ids),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep or 1,
            )
        finally:
            self.reach.tokens = None
            RUNNING.reset(running)
        cache.seen += ids.shape[1]
        return output.logits[:, -1] if keep is None else output.logits

    def _positions(self, places: Int[Tensor, "rows tokens"], ids: Int[Tensor, "rows tokens"]):
        """The positions that the model gives tokens at these places of a sequence."""
        if self.padding is None:
            return places
        return (places + self.origin).masked_fill(ids == self.padding, self.padding)

    def require_prunable(self, pruner: Method) -> None:
        """Raises UserError where tokens cannot be dropped between this model's layers."""
        if self.layout.states:
            why = "layers with a recurrent state need all of them"
        elif getattr(self.config, "attn_temperature_tuning", False):
            why = "this model counts the positions of its queries by itself"
        elif self.layout.readers:
            why = "layers that read the entries of another would meet tokens that were dropped before them"
        elif self.layout.together > 1:
            why = "several layers of this model lie in one module of it, inside which no token can be dropped"
        else:
            return
        raise UserError(
            f"{type(pruner).__name__} drops tokens between layers, and {why}: choose a method that drops entries only"
        )

    @torch.inference_mode()
    def prefill(
        self,
        ids: Int[Tensor, "batch tokens"],
        methods: Sequence[Method] = (),
        pruner: Method | None = None,
        draws: Int[Tensor, " batch"] | None = None,
        shape: Shape | None = None,
        watch: Callable[[Float[Tensor, "batch tokens vocabulary"]], None] | None = None,
        capture: int = 0,
        reach: int = 0,
        first: int = 0,
        look: Watch | None = None,
    ) -> Prefill:
        """Runs the prompt once, observing what the methods ask for; with a pruner, the prefill is its own.

        `shape` stands in for the prompt's own where more is to come, or parts of it are told apart; `watch` is shown
        the logits of all tokens; the queries of the last `capture` rows are kept (`Prefill.rows`). `reach` is the
        number of tokens of the whole sequence where it is known to be longer: some models choose their rotary tables
        by it. `first` is the position of the first token in the model's eyes, where a check asks for another than 0.
        `look` is told what heads add up.
        """
        if pruner is not None:
            self.require_prunable(pruner)
        self._refuse_padding(ids, "the prompt has a padding token, which this model does not count: leave it out")
        shape = self.shape(ids.shape[1]) if shape is None else shape
        draws = torch.zeros(len(ids), dtype=torch.int64) if draws is None else draws
        watchers = [pruner] if pruner is not None else list(dict.fromkeys(methods))
        asked = {} if pruner is not None else asked_passes(watchers, ids, shape, self.writer, self.strict)
        observed = self.backend, self.plain_costs, self.strict, asked
        observer = Observer(watchers, shape, draws.to(ids.device), *observed)
        cache = self._cache(ids, observer, pruner, capture, reach)
        cache.first, cache.watch = first, look
        started, logits = clock(ids), self._feed(ids, cache, watch)
        cache.windows = self.windows
        if capture:
            require_finite(logits)
        prefill = replace(cache.finished(logits, 0.0), evicts_sliding=self.evict_sliding, turns=cache.turns)
        if asked:
            Passes(prefill, self.kernel, asked, cache.projections).read(self._on_top)
        return replace(prefill, seconds=clock(ids) - started)

    def _refuse_padding(self, ids: Int[Tensor, "batch tokens"], told: str) -> None:
        """Raises Inexact where a token is one that the model does not count."""
        if self.padding is not None and bool((ids == self.padding).any()):
            raise Inexact(told)

    def _cache(self, ids, observer: Observer, pruner, capture: int, reach: int) -> PrefillCache:
        """The empty cache of a prompt, with what its methods have to know of the model."""
        windows = [None if window is None or window >= ids.shape[1] else window for window in self.windows]
        cache = PrefillCache(self.layout, observer, windows, self.kernel, pruner, capture)
        cache.reach, cache.model = max(reach, ids.shape[1]), self.model
        cache.turns = self._turns_for(observer.methods, ids, reach)
        cache.projections = self.projections(ids) if any(method.needs_output for method in observer.methods) else []
        return cache

    def _on_top(self, ids: Int[Tensor, "batch tokens"], cache: PassCache) -> None:
        """Reads the tokens of a pass on top of its prompt, in pieces where a prompt is read so."""
        self._refuse_padding(ids, "a method has the model read a padding token, which this model does not count")
        self.active = cache
        try:
            for part in ids.split((self.chunk or ids.shape[1]) if self.continues else 1, 1):
                self.call(part, cache)
        finally:
            self.active = None

    def _feed(self, ids, cache: PrefillCache, watch) -> Float[Tensor, "batch vocabulary"]:
        """Feeds a prompt to its cache, in pieces where one is set; returns the logits after its last token."""
        pruner, self.active = cache.pruner, cache
        try:
            for part in ids.split(self._piece(ids, pruner, watch is not None), 1):
                logits = self.call(part, cache, None if watch is None else part.shape[1])
                if watch is not None:
                    watch(logits)
                    logits = logits[:, -1].clone()  # a view would keep all of them
            return logits
        except RuntimeError as error:
            if pruner is None or len(cache.stored) < len(self.windows) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                f"{type(pruner).__name__} drops tokens between layers, and what this model computes after its layers "
                "needs all of them: choose a method that drops entries only"
            ) from error
        finally:
            self.active = None

    def _turns_for(self, methods: Sequence[Method], ids: Int[Tensor, "batch tokens"], reach: int) -> list[Turns | str]:
        """How each layer turns, where one of the methods has to know; raises Inexact where positions do more."""
        if not any(one.positions == "cache" or one.needs_queries or one.needs_plain_keys for one in methods):
            return []
        most, tokens = level(self.config), max(reach, ids.shape[1])
        if most is not None and tokens > most:
            raise Inexact(
                f"this model multiplies queries at positions from {most} on by a factor that grows with their "
                f"position, so neither positions=cache nor queries or keys before rotary embedding are defined for "
                f"{tokens} tokens: keep prompt and answer within {most} tokens, or choose other methods by method=[...]"
            )
        return self.turns(ids)

    @torch.inference_mode()
    def turns(self, ids: Int[Tensor, "batch tokens"]) -> list[Turns | str]:
        """How each layer turns with positions, or why its entries cannot be moved, found once, on a prompt's tokens."""
        if self.turning is None:
            some = ids[:1, : min(TOKENS, max((level(self.config) or TOKENS) - SHIFT, 1))]
            here, there = (self.prefill(some, capture=TOKENS, first=first) for first in (0, SHIFT))
            found = turns_of(self.attentions, here, there, SHIFT)
            if ADDED not in found and level(self.config) is None:
                most = min(getattr(self.config, "max_position_embeddings", None) or FAR, FAR)
                far = self.prefill(some, capture=TOKENS, first=max(most - some.shape[1], 0))
                found = [SCALED] * len(found) if scaled(here, far) else found
            if any(isinstance(turns, str) for turns in found):
                return found  # other tokens may say more
            self.turning = found
        return self.turning

    @torch.inference_mode()
    def projections(self, ids: Int[Tensor, "batch tokens"]) -> list[Projection | str]:
        """Each layer's output projection, or why it has none, found once, on a prompt's tokens."""
        if self.projecting is None and self.layout.latent:
            self.projecting = [LATENT] * len(self.windows)
        if self.projecting is None:
            with Watch(self.modules, (module for _, module in self._known())) as watch:
                self.prefill(ids[:1, :TOKENS], capture=1, look=watch)
            self.projecting = [watch.found(layer) for layer in range(len(self.windows))]
        return self.projecting

    def _piece(self, ids: Int[Tensor, "batch tokens"], pruner: Method | None, watched: bool) -> int:
        """Tokens of a prompt that are fed at once: all, unless a chunk is set or the logits of all are looked at."""
        tokens = ids.shape[1]
        if not self.continues:
            return tokens
        size = tokens if pruner is not None or self.chunk is None else self.chunk
        return min(size, tokens_per_call(self.config.vocab_size, len(ids))) if watched else size

    @torch.inference_mode()
    def score(
        self, groups: Sequence[Group], fed: Int[Tensor, "batch tokens"], wanted: Int[Tensor, "batch tokens"]
    ) -> Scored:
        """How likely each wanted token is after the fed one, through every cell's cache; [cell by cell, sample]."""
        most = None if self.continues else 1
        return score_groups(self.call, groups, fed, wanted, self.config.vocab_size, self.backend, most)

    @torch.inference_mode()
    def stream(
        self,
        ids: Int[Tensor, "batch tokens"],
        cell: Cell,
        every: int = 1,
        draws: Int[Tensor, " batch"] | None = None,
        scan: bool = True,
    ) -> tuple[Scored, Group]:
        """Scores every token but the first while the cell holds its budget after every `every` tokens.

        Also returns the cell's cache at the end. Without `scan` the tokens run through the decoding path one step
        after the other: the same numbers, slowly. So they do where layers read the entries of others, since what a row
        sees there changes from row to row.
        """
        if cell.interval != 1 or cell.stays:
            raise UserError("reading a document evicts every so many tokens by its own protocol: leave interval=1")
        scan, every = scan and self.continues and not self.layout.readers, every if self.continues else 1
        whole, parts, wanted = self.shape(ids.shape[1]), [], ids[:, 1:]
        first = ids.shape[1] if cell.everything else min(ids.shape[1], self.least(cell, whole))
        if first < 1:
            raise ValueError("a budget of 0 entries reads nothing: ask for a larger share")

        def watch(logits):
            done = sum(part.logprobs.shape[1] for part in parts)
            own = wanted[:, done : done + logits.shape[1]]
            parts.append(Scored.of(logits[:, : own.shape[1]], own))

        begun, methods = Shape(first, whole.layers, whole.evicted), [] if cell.everything else [cell.method]
        prefill = self.prefill(ids[:, :first], methods, draws=draws, shape=begun, watch=watch, reach=ids.shape[1])
        [group] = fork(prefill, [replace(cell, hold=True)], 0 if scan else ids.shape[1] - first)
        cache = StreamCache(group, every) if scan else DecodeCache([group], self.backend)
        size = tokens_per_call(self.config.vocab_size, len(ids)) // every * every if scan else every
        try:
            self.active = cache if scan else None
            for part in ids[:, first:].split(max(size, every), 1) if first < ids.shape[1] else ():
                watch(self.call(part, cache, part.shape[1]))
        finally:
            self.active = None
        return Scored.cat(parts), group

    @torch.inference_mode()
    def read(
        self,
        prefill: Prefill,
        entries: int,
        fed: Int[Tensor, "1 tokens"],
        wanted: Int[Tensor, "1 tokens"],
        variants: Sequence[Variant] = (),
        states: Mapping[int, State] | None = None,
    ) -> Reading:
        """Reads tokens on after the first entries of a prompt, with nothing hidden and in every variant.

        `states` is what recurrent layers carry after those entries (`carried`), where these are not the whole prompt.
        """
        self.require_continuing()
        if states is None and self.layout.states and entries != prefill.shape.tokens:
            raise ValueError("what recurrent layers carry in the middle of a prompt is not known: give `states`")

        def call(cache):
            self.active = cache
            return self.call(fed, cache, fed.shape[1])

        try:
            whole = prefill if states is None else replace(prefill, states=dict(states))
            reading = read(call, whole, entries, wanted, variants, self.config.vocab_size)
            require_finite(reading.logprobs)
            return reading
        finally:
            self.active = None

    def carried(self, ids: Int[Tensor, "batch tokens"]) -> dict[int, State]:
        """What recurrent layers carry after these tokens; without such layers nothing is run."""
        return self.prefill(ids).states if self.layout.states else {}

    def require_continuing(self) -> None:
        """Raises UserError where tokens cannot be read on, several at once, from the middle of a prompt."""
        if self.layout.readers:
            raise UserError(
                "a model whose layers read the entries of others cannot be read on from the middle of a prompt: choose "
                "another task"
            )
        if not self.continues:
            raise UserError(
                "this model's recurrent layers read later tokens one by one only, and this task reads on from a prompt "
                "with many at once: choose another task by task=NAME"
            )

    def least(self, cell: Cell, shape: Shape) -> int:
        """What a cell's budget comes to in the evicted layer that may keep fewest, if its plan is the same for all."""
        budget = torch.tensor([[cell.budget]])
        return min(int(cell.granted(budget, self.windows[layer])) for layer in shape.evicted)

    def free_bytes(self) -> int:
        """Memory that new caches may take: what is free; of several GPUs, which share layers, the fullest decides."""
        gpus = {weight.device for weight in self.model.parameters() if weight.is_cuda}
        if gpus:
            return len(gpus) * min(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")

    @torch.inference_mode()
    def fork(
        self, prefill: Prefill, cells: Sequence[Cell], room: int, consume: bool = False, fed: int | None = None
    ) -> list[Group]:
        """Compressed copies of a prefill, one per cell, with room for new tokens; `consume` frees it layer by layer.

        Where no more than `fed` tokens come at once, what holds needs little room.
        """
        return fork(prefill, cells, room, consume, fed)

    @torch.inference_mode()
    def greedy(self, groups: Sequence[Group], **options) -> tuple[list[list[list[int] | None]], float]:
        """Decodes all cells together; the tokens as [cell][sample] (None: not finite), and the seconds it took."""
        decoder = Decoder(self.call, groups, self.backend)
        started = time.perf_counter()
        return decoder.greedy(**options), time.perf_counter() - started
