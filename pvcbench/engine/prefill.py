"""One prefill: stores each layer, attends, lets methods observe, and drops positions between layers for a pruner."""

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from pvcbench.engine.attention import Rule, attention_with_lse, prompt_attention, windowed_attention
from pvcbench.engine.cache import AttendingCache
from pvcbench.engine.latent import value_expansion
from pvcbench.engine.layout import Layout
from pvcbench.engine.observer import Observer
from pvcbench.engine.projections import Projection, Watch
from pvcbench.engine.query_rows import Rows
from pvcbench.engine.rotary import (
    SCALED,
    UNTURNED,
    Turn,
    cos_sin,
    form_of,
    gains_of,
    is_table,
    mean_rotation,
    tables_among,
    turned_back,
)
from pvcbench.engine.states import State
from pvcbench.errors import UserError
from pvcbench.policy import LayerModule, Method, Shape


@dataclass
class PromptLayer:
    """Keys and values of one layer for the positions that reached it."""

    keys: Float[Tensor, "batch kv_heads entries dim"]
    values: Float[Tensor, "batch kv_heads entries value_dim"]
    positions: Int[Tensor, "batch entries"]


@dataclass
class Prefill:
    """A prompt in the cache, with what its methods thought of it."""

    shape: Shape
    windows: list[int | None]
    layers: list[PromptLayer]
    logits: Float[Tensor, "batch vocabulary"]
    rotary: list[tuple[Tensor, Tensor] | None]
    observer: Observer
    pruner: Method | None
    seconds: float
    queries: list[Float[Tensor, "batch _ rows _"]]  # of the last rows, where they were asked for
    rules: list[Rule]
    reach: int  # tokens of the whole sequence, which chose the rotary tables
    layout: Layout
    states: dict[int, State]  # of the decoder's layers that carry one
    expansions: dict[int, Tensor] = field(default_factory=dict)  # of layers whose values are latents: see `latent`
    turns: list = field(default_factory=list)  # by layer how it turns, or why it is not moved; where methods ask
    evicts_sliding: bool = False  # whether sliding layers that the sequence outgrows evict as well
    consumed: bool = False  # by a fork that freed the layers: logits, shape and times are what is left

    def rows(self, layer: int) -> Rows:
        """The last query rows of a layer, captured while it ran."""
        stored, window = self.layers[layer], self.windows[layer]
        parts = self.queries[layer], stored.keys, stored.values, stored.positions
        return Rows(layer, *parts, self.rules[layer], window, self.expansions.get(layer))

    def carried(self, cells: int) -> dict[int, State]:
        """A copy of the states for each of some cells, cell after cell."""

        def repeated(old):
            return old.repeat(cells, *[1] * (old.dim() - 1))

        return {layer: state.map(repeated) for layer, state in self.states.items()}

    def free(self, layer: int) -> None:
        """Forgets the keys, values and scores of a layer, in place: the cache that filled the list shares it."""
        self.consumed, self.layers[layer] = True, None
        if layer in self.shape.evicted:
            place = self.shape.evicted.index(layer)
            for kept in (*self.observer.scores.values(), *self.observer.totals.values()):
                if kept:
                    kept[place] = None
        if self.queries:
            self.queries[layer] = None

    @property
    def nbytes(self) -> int:
        """Bytes of the whole prompt in the cache: its entries, and the states that every cell takes along."""
        values = 0 if self.layout.latent else 1  # a latent counts once
        return sum(layer.keys.nbytes + values * layer.values.nbytes for layer in self.layers) + self.carried_bytes

    @property
    def carried_bytes(self) -> int:
        """Bytes of all states."""
        return sum(tensor.nbytes for state in self.states.values() for tensor in state.tensors())

    def cell_seconds(self, method: Method) -> float:
        """Plain prefill plus this method's own scoring; a pruned prefill is all its own."""
        if self.pruner is not None:
            return self.seconds
        observer = self.observer
        others = observer.extra_seconds + observer.check_seconds + sum(observer.scoring_seconds.values())
        own = observer.share(method) if method in observer.rows else 0.0
        return self.seconds - others + own


class PrefillCache(AttendingCache):
    """The cache of a prompt while it is prefilled, in one piece or, without a pruner, in chunks."""

    def __init__(
        self,
        layout: Layout,
        observer: Observer,
        windows: list[int | None],
        kernel: str,
        pruner: Method | None = None,
        capture: int = 0,
    ):
        super().__init__(layout)
        self.capture = capture  # rows whose queries are kept
        self.queries: list[Tensor] = []
        self.unrotated: dict[int, Tensor] = {}  # of layers under way, where a method needs them
        self.plain: Tensor | None = None  # the same of the layer and chunk under way
        self.forms: dict[int, Turn] = {}  # how each of these layers rotates
        self.attention: nn.Module | None = None  # the one under way
        self.turns: list = []  # by layer, where it is known
        self.probing = False
        self.projections: list[Projection | str] = []  # by layer, where it is known
        self.watch: Watch | None = None  # where projections are looked for
        self.given: dict[int, Tensor | None] = {}  # to the attention of the layer under way, where a method asks
        self.hidden: dict[int, Tensor] = {}  # the same of all chunks so far
        self.model: nn.Module | None = None  # the whole of it
        self.modules: dict[int, nn.Module] = {}  # the attention of layers under way, where a method asks for it
        self.positioned: dict[int, list[tuple[Tensor, Tensor] | None]] = {}  # its tables, chunk by chunk
        self.newest: dict[int, Tensor] = {}  # queries of layers under way that a method sees row by row
        self.expansions: dict[int, Tensor] = {}
        self.rules: list[Rule] = []
        self.observer, self.windows, self.kernel, self.pruner = observer, windows, kernel, pruner
        self.stored: list[PromptLayer] = []
        self.rotary: list[list[Tensor | tuple[Tensor, Tensor]]] = [[] for _ in windows]
        self.alive: Tensor | None = None  # positions that reach the next layer; None: all
        self.chosen: Tensor | None = None  # the same as indices into the layer before; None: nothing dropped there

    def before_layer(self, layer: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """A decoder layer's inputs, at the positions that survive: hidden states, rotary tables, position ids."""
        known = tables_among(args, kwargs)
        if known is not None:
            for number in self.layout.beside(layer):
                self.rotary[number].append(known)
        if self.pruner is not None and args[0].dim() != 3:
            raise UserError(
                f"{type(self.pruner).__name__} drops tokens between layers, and this model carries several hidden "
                "states of a token from layer to layer: choose a method that drops entries only"
            )
        if self.alive is None:
            return args, kwargs
        table, hidden = kwargs.get("position_embeddings"), args[0]
        if self.chosen is not None:
            hidden = _take(hidden, self.chosen)
            self.chosen = None
        args = hidden, *(self._of_the_alive(value) for value in args[1:])
        kwargs = {name: self._of_the_alive(value) for name, value in kwargs.items()}
        if table is not None:
            taken = tuple(_take(part, self.alive) for part in (table if isinstance(table, tuple) else (table,)))
            kwargs["position_embeddings"] = taken if isinstance(table, tuple) else taken[0]
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = _take(kwargs["position_ids"][..., None], self.alive)[..., 0]
        return args, kwargs

    def _of_the_alive(self, value):
        """An input of a layer at the positions that survive, where it is something of every token; else as it is."""
        if isinstance(value, tuple):
            return tuple(map(self._of_the_alive, value))
        by_token = isinstance(value, Tensor) and value.dim() == 3 and value.shape[1] == self.observer.shape.tokens
        return _take(value, self.alive) if by_token else value

    def before_attention(self, layer: int, module, args: tuple, kwargs: dict) -> None:
        """Where a method needs queries before rotary embedding: runs the layer's projections once without rotation.

        Of a layer that hands in latents it remembers how values come out of these; and the hidden states that it is
        given, where a method needs them.
        """
        if self.layout.latent and hasattr(module, "expand_kv"):
            self.expansions[layer] = value_expansion(module)
        if self.observer.shows_hidden and not self.probing:
            self.given[layer] = kwargs.get("hidden_states", args[0] if args else None)
        if not self.probing and any(method.needs_module for method in self.observer.methods):
            self._keep_module(layer, module, kwargs.get("position_embeddings"))
        if self.probing or not any(method.needs_queries for method in self.observer.methods):
            return
        still = without_rotation(args, kwargs)
        if isinstance(self.turns[layer], str) and (still is None or self.turns[layer] == SCALED):
            raise UserError(
                f"queries of later positions cannot be told from those of the prompt, since {self.turns[layer]}: "
                "choose methods that do not need them by method=[...]"
            )
        if still is None:
            return
        place = self.layout.places[layer]
        carried = self.states[place].map(torch.clone) if place in self.layout.states else None
        self.probing, self.attention = True, module
        try:
            module(*still[0], **still[1])
        finally:
            self.probing = False
            if carried is not None:
                carried.put(self.layers[place])

    def _keep_module(self, layer, module, tables) -> None:
        """Remembers a layer's attention module, and its rotary tables chunk by chunk, until the layer is finished."""
        if layer not in self.observer.shape.evicted:
            return
        if self.layout.latent:
            raise UserError(
                "a method that reads weights of the attention modules cannot do so in this model, whose entries are "
                "latents: choose other methods by method=[...]"
            )
        self.modules[layer] = module
        self.positioned.setdefault(layer, []).append(tables if isinstance(tables, tuple) else None)

    def _module(self, layer) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor] | None]:
        """A finished layer's attention module, the model, and the tables of all positions."""
        parts = self.positioned.pop(layer)
        whole = None if None in parts else tuple(torch.cat(column, -2) for column in zip(*parts, strict=True))
        return self.modules.pop(layer), self.model, whole

    def attend_to_latents(self, layer, latents, rule, window):
        if self.probing:
            return super().attend_to_latents(layer, latents, rule, window)
        return self.attend(layer, *latents.absorbed(), rule, window, latents.expanded)

    def attend(self, layer, query, key, value, rule, window, expanded=None):
        """As every cache does; `expanded(stored keys)` gives query, keys and values of a cheaper form, if any."""
        if self.probing:
            self.plain = query
            return query.new_zeros(*query.shape[:3], value.shape[-1])
        later = self.observer.shape.tokens - self.seen - key.shape[2]
        stored, window = self._store(layer, key, value), self.windows[layer]
        self._keep(layer, query, rule)
        self._keep_newest(layer, query)
        self._keep_hidden(layer, key)
        self._unrotate(layer, query)
        parts = (query, stored.keys, stored.values) if expanded is None else expanded(stored.keys)
        plain = partial(self._plain, layer, rule, *parts[1:])
        if layer not in self.observer.shape.evicted:
            return self._shown(layer, plain(parts[0], stored.keys.shape[2]))
        later = later if self.pruner is None else 0
        sliding = None if window is None else (window, stored.positions)
        output = self.observer.attend(layer, *parts, rule, later, plain, sliding)
        if later == 0:
            self._finish(layer, query, rule)
        return self._shown(layer, output)

    def _shown(self, layer, output):
        """What the heads of a layer add up, which a watch is told."""
        if self.watch is not None:
            self.watch.attended(layer, output)
        return output

    def _store(self, layer, key, value) -> PromptLayer:
        """All entries of a layer, the new ones at their positions among them."""
        if self.alive is not None:
            positions = self.alive.to(key.device)  # the layer before may lie on another device
        else:
            positions = torch.arange(self.seen, self.seen + key.shape[2], device=key.device).expand(len(key), -1)
        if len(self.stored) < layer:
            raise UserError(not_attending(len(self.stored)))
        if len(self.stored) <= layer:
            self.stored.append(PromptLayer(key, value, positions))
        else:  # a later chunk of the prompt
            old = self.stored[layer]
            keys, values = torch.cat((old.keys, key), 2), torch.cat((old.values, value), 2)
            self.stored[layer] = PromptLayer(keys, values, torch.cat((old.positions, positions), 1))
        return self.stored[layer]

    def _finish(self, layer, query, rule) -> None:
        """Shows the finished layer to the methods; a pruner says which positions go on."""
        stored, entries = self.stored[layer], self.stored[0].keys.shape[2]
        seen = self.observer.observation(layer, stored.keys, stored.values, stored.positions, entries)
        if layer in self.unrotated:
            tables, tokens = self.tables(layer), self.observer.shape.tokens
            if self.forms[layer].form is UNTURNED:
                ahead = partial(unturned, query)
            else:
                ahead = partial(mean_rotation, self.forms[layer], tables, query.shape[-1], tokens)
            seen = replace(seen, queries=self.unrotated.pop(layer), ahead=ahead)
        if layer in self.newest:
            parts = self.newest.pop(layer), stored.keys, stored.values, stored.positions
            seen = replace(seen, rows=Rows(layer, *parts, rule, self.windows[layer], self.expansions.get(layer)))
        if any(method.needs_plain_keys for method in self.observer.methods):
            seen = replace(seen, plain_keys=self._plain_keys(layer, stored.keys))
        if any(method.needs_output for method in self.observer.methods):
            seen = replace(seen, output=self._projection(layer).matrix)
        if layer in self.hidden:
            seen = replace(seen, hidden=self.hidden.pop(layer))
        if layer in self.modules:
            seen = replace(seen, module=partial(LayerModule, *self._module(layer)))
        self.chosen = self.observer.finish(seen, self.pruner)
        if self.chosen is not None:
            self.alive = stored.positions.gather(1, self.chosen)

    def _plain_keys(self, layer, keys):
        """What gives a layer's keys before rotary embedding."""
        turns = self.turns[layer]
        if isinstance(turns, str):
            raise UserError(
                f"keys before rotary embedding cannot be told from those after it, since {turns}: choose methods that "
                "do not need them by method=[...]"
            )
        return partial(turned_back, turns.keys, self.tables(layer), keys)

    def _projection(self, layer) -> Projection:
        """A layer's output projection."""
        projection = self.projections[layer]
        if isinstance(projection, str):
            raise UserError(
                f"what each query head writes into the hidden states cannot be told, since {projection}: choose "
                "methods that do not need the output projection by method=[...]"
            )
        return projection

    def _plain(self, layer, rule, keys, values, rows, count, lse=False):
        """Ordinary attention of the prompt's last rows so far to the first `count` entries (see Observer.attend)."""
        seen, window = (rows, keys[:, :, :count], values[:, :, :count]), self.windows[layer]
        if window is not None:
            return windowed_attention(*seen, rule, window, self.stored[layer].positions[:, :count])
        attend = attention_with_lse if lse else prompt_attention
        return attend(*seen, rule, self.kernel)

    def follow(self, place, layer, query, rule, new):
        stored = self.stored[layer]  # the reader may lie on another device
        query, back = query.to(stored.keys.device), query.device
        return self._plain(layer, rule, stored.keys, stored.values, query, stored.keys.shape[2]).to(back)

    def _unrotate(self, layer, query) -> None:
        """Remembers the queries before rotary embedding until the layer is finished, if a method asks for them."""
        if any(method.needs_queries for method in self.observer.methods):
            plain, self.plain = self.plain, None
            form = self._form(layer, query, plain)
            plain = query if plain is None else plain
            if form is None:
                raise UserError(
                    f"how layer {layer} of this model rotates its queries is not known to pvcbench: choose methods "
                    "that do not need queries before rotary embedding by method=[...]"
                )
            self.forms[layer] = form
            known = self.unrotated.get(layer)
            self.unrotated[layer] = plain if known is None else torch.cat((known, plain), 2)

    def _form(self, layer, query, plain) -> Turn | None:
        """How a layer's queries turn, by them before and after it; None where that is not known."""
        if plain is None:  # no tables: `before_attention` has refused every layer whose queries turn in its own way
            return self.turns[layer].queries
        if not self.rotary[layer]:
            return None
        cos, sin = (part.to(query.device) for part in cos_sin(self.rotary[layer][-1]))
        return form_of(plain, query, cos, sin, gains_of(self.attention, query))

    def tables(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Cos and sin of the positions so far, on the layer's device; None without rotary embedding."""
        columns = [torch.cat(column, 1) for column in zip(*map(cos_sin, self.rotary[layer]), strict=True)]
        return tuple(column.to(self.stored[layer].keys.device) for column in columns) or None

    def _keep(self, layer, query, rule) -> None:
        """Remembers the queries of the prompt's last rows."""
        if self.capture and len(self.queries) <= layer:
            self.queries.append(query[:, :, -self.capture :].clone())
            self.rules.append(rule)
        elif self.capture:
            self.queries[layer] = torch.cat((self.queries[layer], query), 2)[:, :, -self.capture :].clone()

    def _keep_newest(self, layer, query) -> None:
        """Remembers, until the layer is finished, the queries of the last rows that a method sees one by one."""
        most = self.observer.most_rows
        if most and layer in self.observer.shape.evicted:
            known = [self.newest[layer]] if layer in self.newest else []
            self.newest[layer] = torch.cat((*known, query), 2)[:, :, -most:].clone()

    def _keep_hidden(self, layer, key) -> None:
        """Remembers, until the layer is finished, what its attention was given, if a method asks for it."""
        if not self.observer.shows_hidden or layer not in self.observer.shape.evicted:
            return
        given = self.given.pop(layer, None)
        if not isinstance(given, Tensor) or given.shape[:-1] != (len(key), key.shape[2]):
            raise UserError(
                f"the attention of layer {layer} of this model is not given hidden states by token: choose methods "
                "that do not need them by method=[...]"
            )
        known = [self.hidden[layer]] if layer in self.hidden else []
        self.hidden[layer] = torch.cat((*known, given), 1)

    def finished(self, logits: Float[Tensor, "batch vocabulary"], seconds: float) -> Prefill:
        """What remains once the last chunk has run."""
        if len(self.stored) < len(self.rotary):
            raise UserError(not_attending(len(self.stored)))
        tables, known = [], {}
        for layer, parts in enumerate(self.rotary):
            device = self.stored[layer].keys.device  # the model makes its tables where its embedding is
            name = (id(parts[0] if isinstance(parts[0], Tensor) else parts[0][0]), device) if parts else None
            if name not in known:
                known[name] = self.tables(layer)
            tables.append(known[name])
        shape = self.observer.shape
        seen = self.observer, self.pruner, seconds, self.queries, self.rules, self.reach, self.layout, self.states
        return Prefill(shape, self.windows, self.stored, logits, tables, *seen, self.expansions)


def not_attending(layer: int) -> str:
    """Why a model cannot be measured one of whose layers hands nothing in."""
    return (
        f"this model cannot be measured: its layer {layer} hands no keys and values of the tokens to the engine, since "
        "it attends by code of its own, or to something else than the tokens (an image, for one)"
    )


def without_rotation(args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """The inputs of a layer's attention with tables that turn nothing; None where no tables are among them."""
    found = False

    def still(value):
        nonlocal found
        if not is_table(value):
            return value
        found = True
        if isinstance(value, Tensor):
            return torch.ones_like(value)
        return torch.ones_like(value[0]), torch.zeros_like(value[1])

    replaced = tuple(map(still, args)), {name: still(value) for name, value in kwargs.items()}
    return replaced if found else None


def unturned(query: Float[Tensor, "batch heads rows dim"], count: int) -> Float[Tensor, "dim dim"]:
    """The mean rotation of any positions in a layer that has none."""
    wide = torch.promote_types(query.dtype, torch.float32)
    return torch.eye(query.shape[-1], dtype=wide, device=query.device)


def _take(tensor: Shaped[Tensor, "rows tokens width"], index: Int[Tensor, "batch kept"]):
    """The tokens of each row that an index names; one row serves every row of the batch."""
    index = index.to(tensor.device)[..., None].expand(-1, -1, tensor.shape[-1])
    return tensor.expand(len(index), -1, -1).gather(1, index)
