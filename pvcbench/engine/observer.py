"""What methods see of a prefill: the attention mass of the rows they weigh, taken in the pass that attends."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pvcbench.engine import answers
from pvcbench.engine.attention import Rule, mass_by_lse, observed_attention
from pvcbench.engine.kernels.interface import covers
from pvcbench.policy import Method, Observation, Shape


def clock(tensor: Tensor) -> float:
    """Seconds, after the work queued on the tensor's device is done."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def granted(method: Method, seen: Observation, mass: Tensor | None) -> Observation:
    """A finished layer as one method sees it: what it did not ask for is not there."""
    rows = seen.rows.newest(method.needs_rows) if method.needs_rows and seen.rows is not None else None
    asked = {"plain_keys": method.needs_plain_keys, "output": method.needs_output, "hidden": method.needs_hidden}
    asked["module"] = method.needs_module
    return replace(seen, mass=mass, rows=rows, **{name: None for name, wanted in asked.items() if not wanted})


class Observer:
    """Gathers attention mass layer by layer and chunk by chunk, and lets each method score a finished layer.

    A method declares the last query rows it weighs. Masses add up over chunks, so no queries are carried across
    them; methods with equal weights share one mass, and all of them share one pass over the attention weights.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        shape: Shape,
        draws: Int[Tensor, " batch"],
        backend: str,
        plain_costs: dict[tuple[int, int], float] | None = None,
        strict: bool = False,
    ):
        self.strict = strict  # whether methods are on trial (see `answers`)
        self.plain_costs = {} if plain_costs is None else plain_costs  # seconds per query and key, by rough size
        self.methods, self.shape, self.draws, self.backend = list(methods), shape, draws, backend
        self.scores: dict[Method, list[Tensor]] = {method: [] for method in self.methods}
        self.totals: dict[Method, list[Tensor | None]] = {method: [] for method in self.methods}
        self.notes: dict[Method, list[Tensor]] = {method: [] for method in self.methods}
        most = max((method.needs_rows for method in self.methods), default=0)
        self.most_rows = min(most, shape.tokens)  # that a method sees one by one
        self.shows_hidden = any(method.needs_hidden for method in self.methods)
        self.scoring_seconds = dict.fromkeys(self.methods, 0.0)
        self.rows = dict.fromkeys(self.methods, 0)  # most rows a method weighs in any layer
        self.extra_seconds = 0.0  # observing beyond plain attention
        self.check_seconds = 0.0  # spent on measuring that
        self._mass: dict[int, Tensor] = {}

    def row_weights(self, layer: int, rows: int, later: int) -> tuple[Float[Tensor, "sets rows"], dict[Method, int]]:
        """The distinct weights of these rows, `later` rows before the prompt's end, and the set of each method."""
        distinct, users = [], {}
        for method in self.methods:
            weights = answers.row_weights(method, self.shape, layer, self.strict)
            if weights is None:
                continue
            self.rows[method] = max(self.rows[method], len(weights))
            same = [i for i, other in enumerate(distinct) if torch.equal(other, weights)]
            users[method] = same[0] if same else len(distinct)
            if not same:
                distinct.append(weights)
        chunk = torch.zeros(len(distinct), rows, dtype=torch.float64)
        for target, weights in zip(chunk, distinct, strict=True):
            mine = weights[max(0, len(weights) - later - rows) : max(0, len(weights) - later)]
            target[rows - len(mine) :] = mine
        return chunk, users

    def attend(self, layer: int, query, key, value, rule: Rule, later: int, plain: Callable, window=None):
        """Attention output of these rows; the mass of the weighed ones is taken from the same weights.

        `plain(query, keys)` attends in the ordinary way to the first keys and, with `lse=True`, gives each row's LSE
        or None beside the output; `window` is as in observed_attention.
        """
        rows, keys = query.shape[2], key.shape[2]
        weights, _ = self.row_weights(layer, rows, later)
        touched = weights.ne(0).any(0).nonzero()
        first = int(touched[0]) if len(touched) else rows
        if first == rows:
            return plain(query, keys)
        if self.backend == "triton" and window is None and covers(query):
            return self._attend_whole(layer, query, key, weights, first, rule, plain)
        started = clock(query)
        output, mass = observed_attention(
            query[:, :, first:],
            key,
            value,
            weights[:, first:].to(query.device),
            scale=rule,
            window=window,
            backend=self.backend,
        )
        spent = clock(query) - started
        self._add(layer, mass, query.dtype)
        head = plain(query[:, :, :first], keys - rows + first) if first else None
        square = (rows - first) * (keys - (rows - first) / 2)  # query-key pairs of the observed rows
        self.extra_seconds += spent - square * self._plain_cost(query, keys, plain)
        return output if head is None else torch.cat((head, output), 2)

    def _attend_whole(self, layer, query, key, weights, first, rule, plain):
        """All rows by the plain kernel, then the mass of the weighed ones by their LSE."""
        output, lse = plain(query, key.shape[2], lse=True)
        started = clock(query)
        lse = None if lse is None else lse[:, :, first:]
        mass = mass_by_lse(query[:, :, first:], key, weights[:, first:], lse, rule)
        self.extra_seconds += clock(query) - started
        self._add(layer, mass, query.dtype)
        return output

    def _add(self, layer, mass, dtype):
        """Adds a chunk's mass to that of the chunks before it."""
        if layer in self._mass:
            earlier = self._mass[layer]
            mass[..., : earlier.shape[-1]] += earlier
        self._mass[layer] = mass.to(torch.promote_types(dtype, torch.float32))

    def _plain_cost(self, query, keys, plain) -> float:
        """Seconds a query-key pair takes unobserved, measured once per engine and rough size of the prompt."""
        rough = len(query) * query.shape[2] // 256, keys // 256
        if rough not in self.plain_costs:
            started = clock(query)
            plain(query, keys)
            spent = clock(query) - started
            self.check_seconds += spent
            self.plain_costs[rough] = spent / (query.shape[2] * (keys - query.shape[2] / 2))
        return self.plain_costs[rough]

    def observation(self, layer: int, keys, values, positions, first_layer_entries: int) -> Observation:
        """The finished layer as methods see it, without its mass."""
        return Observation(
            layer=layer,
            shape=self.shape,
            seen=self.shape.tokens,
            keys=keys,
            values=values,
            positions=positions[:, None].expand(-1, keys.shape[1], -1),
            mass=None,
            totals=None,
            draws=self.draws.to(keys.device),
            first_layer_entries=first_layer_entries,
        )

    def finish(self, seen: Observation, pruner: Method | None) -> Int[Tensor, "batch kept"] | None:
        """Lets every method score the layer; returns what the pruner, if any, sends on to the next layer."""
        mass = self._mass.pop(seen.layer, None)
        _, users = self.row_weights(seen.layer, 0, 0)
        chosen = None
        for method in self.methods:
            started = clock(seen.keys)
            own = granted(method, seen, None if mass is None or method not in users else mass[users[method]])
            if method is pruner:
                chosen = answers.survivors(method, own, self.strict)
            else:
                own = replace(own, totals=answers.totals(method, own, self.strict))
                self.totals[method].append(own.totals)
                self.scores[method].append(answers.scores(method, own, self.strict))
                note = answers.notes(method, own, self.strict)
                self.notes[method] += [] if note is None else [note]
            self.scoring_seconds[method] += clock(seen.keys) - started
        return chosen

    def share(self, method: Method) -> float:
        """Seconds of this method's own observing and scoring: the common pass is shared by the rows it weighs."""
        most = max(self.rows.values(), default=0)
        observing = self.extra_seconds * self.rows[method] / most if most else 0.0
        return max(0.0, observing) + self.scoring_seconds[method]
