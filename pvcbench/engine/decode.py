"""Decoding: the cells of a sample step together as one batch, each on its own slots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pvcbench.engine import answers
from pvcbench.engine.attention import Rule, attention_mass
from pvcbench.engine.cache import AttendingCache
from pvcbench.engine.evict import Group
from pvcbench.engine.query_rows import SlotRows
from pvcbench.engine.sampling import Chooser, greedy
from pvcbench.engine.states import State
from pvcbench.policy import Observation


class DecodeCache(AttendingCache):
    """The compressed caches of several groups of cells; rows of the batch are groups, then cells, then samples."""

    def __init__(self, groups: Sequence[Group], backend: str):
        shape = groups[0].prefill.shape
        super().__init__(groups[0].prefill.layout)
        self.backend, self.seen = backend, shape.tokens
        self.reach = max(group.prefill.reach for group in groups)
        self.first_layer: dict[int, int] = {}  # entries of each group's first layer in this step, its own included
        self.waiting: dict[int, list[Callable]] = {}  # changes of a layer's entries, until all have read them
        self.use(groups)

    def use(self, groups: Sequence[Group]) -> None:
        """Goes on with these groups only: the next rows are theirs."""
        self.groups = list(groups)
        ends = list(accumulate(len(group.layers[0].keys) for group in groups))
        self.parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        for layer in self.layout.states:
            whole = State.cat([group.states[layer] for group in groups])
            whole.put(self.layers[layer])
            for group, part in zip(self.groups, self.parts, strict=True):
                group.states[layer] = whole.map(lambda old, part=part: old[part])

    def attend(self, layer, query, key, value, rule, window):
        output = None
        for group, part in zip(self.groups, self.parts, strict=True):
            mine = self.advance(group, layer, query[part], key[part], value[part], rule)
            if len(self.groups) == 1:
                output = mine
            else:
                output = query.new_empty(*query.shape[:3], mine.shape[-1]) if output is None else output
                output[part] = mine
        return output

    def advance(self, group: Group, layer: int, query, key, value, rule: Rule) -> Tensor:
        """One layer of one group: stores the new entries, attends, and under hold evicts."""
        entries = group.layers[layer]
        before = entries.filled
        if layer == 0:
            self.first_layer[id(group)] = before + key.shape[2]
        entries.place_sinks(self.seen - before)
        entries.append(key, value, self.seen)
        group.note(layer)
        output = entries.attend(query, rule, self.seen)
        if group.hold and layer in group.prefill.shape.evicted:
            self.afterwards(layer, partial(self._evict, group, layer, query, rule, before))
        return output

    def afterwards(self, layer: int, change: Callable) -> None:
        """Changes a layer's entries when no other layer has still to read them in this call."""
        if layer in self.layout.last_readers:
            self.waiting.setdefault(layer, []).append(change)
        else:
            change()

    def follow(self, place, layer, query, rule, new):
        pairs = zip(self.groups, self.parts, strict=True)
        output = torch.cat([self.look(group, layer, query[part], rule, new) for group, part in pairs])
        if place == self.layout.last_readers[layer]:
            for change in self.waiting.pop(layer, ()):
                change()
        return output

    def look(self, group: Group, layer: int, query, rule: Rule, new: int) -> Tensor:
        """Attention of the last rows of a call of `new` tokens to a layer's entries, in which these are by now."""
        entries = group.layers[layer]  # on another device, maybe
        return entries.attend(query.to(entries.keys.device), rule, self.seen + new - query.shape[2]).to(query.device)

    def _evict(self, group, layer, query, rule, before):
        """After the step: running totals row by row, then one decision for the whole chunk, if it is due."""
        entries, cell, rows = group.layers[layer], group.cells[0], query.shape[2]
        method, excess, strict = cell.method, entries.filled - entries.target, group.prefill.observer.strict
        if entries.ring is not None:
            entries.ring.add(query)
        due = excess >= cell.interval or not method.by_scores
        watches = method.watches_decoding and (due or method.channels > 0)
        view = None
        for row in range(rows) if watches else (rows - 1,) if due else ():
            view = self._view(group, layer, before + row + 1, self.seen + row + 1)
            view = replace(view, later=rows - 1 - row, excess=excess)
            if watches:
                now, ones = query[:, :, row : row + 1], torch.ones(1, dtype=torch.float64)
                visible = entries.visible(view.seen - 1, 1, before + row + 1)
                mass = attention_mass(now, view.keys, ones, scale=rule, visible=visible, backend=self.backend)
                view = replace(view, mass=mass)
                totals = answers.totals(method, view, strict)
                if totals is not None:
                    entries.totals[:, :, : before + row + 1] = totals
                    view = replace(view, totals=entries.totals[:, :, : before + row + 1])
        if not due:
            return
        view = replace(view, rows=self._rows(entries, rule, view))
        slots = answers.dropped(method, view, cell.within(entries.limit, entries.slides), strict)
        if slots is not None:
            entries.drop(slots)

    def _view(self, group, layer, filled, seen) -> Observation:
        """The first slots of a layer as its method sees them."""
        entries, cell, prefill = group.layers[layer], group.cells[0], group.prefill
        keys, values, positions = (
            tensor[:, :, :filled] for tensor in (entries.keys, entries.values, entries.positions)
        )
        view = prefill.observer.observation(layer, keys, values, positions[:, 0], 0)
        return replace(
            view,
            seen=seen,
            positions=positions,
            draws=view.draws.repeat(len(group.cells)),
            first_layer_entries=self.first_layer[id(group)],
            stays=prefill.shape.tokens if cell.stays else 0,
            window=entries.slides,
            totals=None if entries.totals is None else entries.totals[:, :, :filled],
        )

    def _rows(self, entries, rule, view) -> SlotRows | None:
        """The newest query rows, where the method keeps some."""
        if entries.ring is None:
            return None
        return SlotRows(entries.ring.newest(), view.keys, view.positions, view.seen, rule, entries.window)


class Decoder:
    """Steps groups of cells that share the number of tokens seen; `call` runs the model on a cache."""

    def __init__(self, call: Callable, groups: Sequence[Group], backend: str = "blocked"):
        self.call, self.groups = call, list(groups)
        self.cache = DecodeCache(groups, backend)
        self.batch = len(groups[0].prefill.logits)
        self.rows = self.cache.parts[-1].stop

    def spread(self, per_prefill: Sequence[Tensor]) -> Tensor:
        """One row per sample of each group's prefill, repeated for every cell of the group."""
        parts = [
            tensor.repeat(len(group.cells), *[1] * (tensor.dim() - 1))
            for group, tensor in zip(self.groups, per_prefill, strict=True)
        ]
        return torch.cat(parts)

    def step(self, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows vocabulary"]:
        """Feeds new tokens through the compressed caches and returns the logits after the last of them."""
        return self.call(ids, self.cache)

    def greedy(
        self,
        feed: Int[Tensor, "batch tokens"] | None,
        new_tokens: int,
        ends: Sequence[int],
        stopped: Callable[[int, list[int]], bool] | None = None,
        barred: Sequence[int] = (),
        choose: Chooser = greedy,
        limits: Sequence[int] | None = None,
    ) -> list[list[list[int] | None]]:
        """Generates, greedily unless `choose` does otherwise; the tokens as [cell in order of groups][sample].

        End tokens are left out. `limits` are the longest answers of the rows where they differ.

        None stands where a row's logits were not finite: its tokens mean nothing (see `NOT_FINITE`). Without `feed` the
        first token comes from the uncompressed prefill's logits. `stopped` is asked after each token whether the
        text of a row is complete; `barred` tokens cannot come first.
        """
        if feed is None:
            logits = self.spread([group.prefill.logits for group in self.groups])
        else:
            logits = self.step(self.spread([feed] * len(self.groups)))
        sound = torch.isfinite(logits).all(-1).tolist()
        if barred:
            logits = logits.index_fill(1, torch.tensor(list(barred), device=logits.device), float("-inf"))
        limits = [new_tokens] * self.rows if limits is None else limits
        said = Answers([[] for _ in range(self.rows)], [False] * self.rows, limits, ends, stopped)
        active = list(zip(self.groups, (range(part.start, part.stop) for part in self.cache.parts), strict=True))
        while True:
            chosen = choose(logits, [row for _, rows in active for row in rows])
            now = [(group, rows.start, row) for group, rows in active for row in rows]
            for (group, first, row), token, good in zip(now, chosen, sound, strict=True):
                if said.ends_with(row, token, good):
                    group.ended[row - first] = len(group.grown)
            going, feeding = unfinished(active, said.done, chosen)
            if not going:
                return [said.tokens[start : start + self.batch] for start in range(0, self.rows, self.batch)]
            if len(going) < len(active):
                self.cache.use([group for group, _ in going])
            active = going
            logits = self.step(torch.tensor(feeding, device=logits.device)[:, None])
            sound = torch.isfinite(logits).all(-1).tolist()


@dataclass
class Answers:
    """What each row has said, and whether that is complete."""

    tokens: list[list[int] | None]  # None: its logits were not finite
    done: list[bool]
    most: Sequence[int]  # tokens of each answer
    ends: Sequence[int]  # tokens that end one
    stopped: Callable[[int, list[int]], bool] | None

    def ends_with(self, row: int, token: int, sound: bool) -> bool:
        """Adds a row's next token; whether its answer, not complete before, is so now."""
        if self.done[row]:
            return False
        said = self.tokens[row]
        if sound and token not in self.ends:
            said.append(token)
            self.done[row] = len(said) >= self.most[row] or (self.stopped is not None and self.stopped(row, said))
        else:
            self.tokens[row] = said if sound else None
            self.done[row] = True
        return self.done[row]


def unfinished(
    active: Sequence[tuple[Group, range]], done: Sequence[bool], chosen: Sequence[int]
) -> tuple[list[tuple[Group, range]], list[int]]:
    """The groups that have an answer to go on with, each with its rows, and the tokens that go into them."""
    going, feeding, start = [], [], 0
    for group, rows in active:
        if not all(done[row] for row in rows):
            going.append((group, rows))
            feeding += chosen[start : start + len(rows)]
        start += len(rows)
    return going, feeding
