"""The shared selector and evictor: keep the top of the scores within the plan, gather once, free the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pvcbench.engine import answers
from pvcbench.engine.cache import Entries
from pvcbench.engine.prefill import Prefill
from pvcbench.engine.query_rows import Ring
from pvcbench.engine.rotary import UNTURNED, turn
from pvcbench.engine.states import State
from pvcbench.engine.turning import unmovable
from pvcbench.policy import Method, protect


@dataclass(frozen=True)
class Cell:
    """One point of a curve: a method with its hyperparameters settled, and how many entries it may keep.

    `budget` None means that the method's configuration, not the harness, decides; `everything` that nothing is ever
    evicted, while decoding included. `share` is the budget as a share of the prompt, where it was asked for as one.

    Under hold entries go whenever `interval` of them are too many, down to exactly the budget. With `stays` what is
    kept of the prompt is never evicted, and the budget is that of the entries after it.
    """

    label: str
    method: Method
    budget: int | None
    hold: bool = False
    everything: bool = False
    share: float | None = None
    interval: int = 1
    stays: bool = False

    def granted(self, count: Int[Tensor, "batch kv_heads"], window: int | None) -> Int[Tensor, "batch kv_heads"]:
        """What a plan's count comes to in a layer: in a sliding one never more than the next token sees.

        A share of the prompt is there the same share of what the full cache stores.
        """
        if window is None:
            return count
        if self.share is not None and self.budget / self.share >= window:
            count = (count * (self.share * (window - 1) / self.budget)).round().long()
        return count.clamp(max=window - 1)

    def within(self, limit: int | None, window: int | None) -> int | None:
        """The budget as the method is told it in a layer that may keep so many entries: in a sliding one no more."""
        return self.budget if None in (self.budget, limit, window) else min(self.budget, limit)

    @property
    def holds(self) -> bool:
        """Whether the method goes on evicting while decoding."""
        return self.hold and not self.everything

    def target(self, kept: int, limit: int | None, ragged: bool, window: int | None) -> int:
        """What a layer that keeps so many entries of the prompt comes down to under hold, by its plan's limit.

        Heads that keep different numbers stay at the sizes they have; of such heads the longest is meant.
        """
        known = limit is not None and not ragged
        if not self.stays:
            return limit if known else kept
        most = kept + (limit if known else self.budget)
        return most if window is None else min(most, window - 1)

    def room(self, more: int, asked: int, fed: int | None) -> int:
        """Slots beside the kept entries, of which a layer may come to hold `more`, for `asked` tokens still to come.

        At most `fed` of them come at once; None: all may.
        """
        if fed is None or not (self.holds and self.method.by_scores):
            return asked
        return min(asked, more + self.interval - 1 + fed)

    @property
    def pruner(self) -> Method | None:
        """The method whose own, pruned prefill this cell needs, or None where it shares the plain one."""
        return self.method if self.method.prunes and not self.everything else None

    @property
    def reads(self) -> str | None:
        """What after the prompt its method looks at: such a cell's prefill is not the plain one either."""
        return None if self.everything else self.method.reads


@dataclass
class Group:
    """Cells of one prefill that keep equally many entries everywhere, stacked along the batch: cell after cell."""

    cells: list[Cell]
    layers: list[Entries]
    prefill: Prefill
    hold: bool
    states: dict[int, State]
    grown: list[list[float]] = field(default_factory=list)  # by step, see `note`
    ended: dict[int, int] = field(default_factory=dict)  # steps of each row whose answer was complete before the last

    def repeated(self, count: int) -> "Group":
        """A copy for so many samples with one context, of a group as the fork made it: cells, then samples."""
        layers = [entries.repeated(count) for entries in self.layers]
        states = {place: state.map(lambda old: old.repeat_interleave(count, 0)) for place, state in self.states.items()}
        return Group(self.cells, layers, self.prefill.repeated(count), self.hold, states)

    def note(self, layer: int) -> None:
        """Adds a layer, its new entries included, to what the step under way has grown by since the fork.

        That is entries of one head, all layers that evict together, and bytes of one row; a step begins with layer 0.
        """
        if layer == 0:
            self.grown.append([0.0, 0.0])
        more = self.layers[layer].filled - self.layers[layer].start
        self.grown[-1][0] += more if layer in self.prefill.shape.evicted else 0
        self.grown[-1][1] += more * self.slot_bytes(layer)

    def slot_bytes(self, layer: int) -> int:
        """Bytes of an entry of all heads of a layer."""
        entries = self.layers[layer]
        values = 0 if self.prefill.layout.latent else _width(entries.values)  # a latent counts once
        return entries.keys.shape[1] * (_width(entries.keys) + values)

    def over_time(self, cell: int, sample: int) -> "OverTime | None":
        """The sizes of a cell in the steps of a sample; None where it took no step."""
        row, evicted = cell * len(self.prefill.logits) + sample, self.prefill.shape.evicted
        steps = torch.tensor(self.grown[: self.ended.get(row)], dtype=torch.float64)
        if not len(steps):
            return None
        now = self.measure(cell, sample)
        grown = [entries.filled - entries.start for entries in self.layers]
        entries = sum(now.entries[layer] - grown[layer] for layer in evicted)
        held = now.kv_bytes - sum(more * self.slot_bytes(layer) for layer, more in enumerate(grown))
        steps[:, 0] = (steps[:, 0] + entries) / len(evicted)
        steps[:, 1] += held
        return OverTime(*steps.mean(0).tolist(), *steps.amax(0).tolist())

    def measure(self, cell: int, sample: int) -> "Sizes":
        """What a cell keeps of a sample now."""
        row = cell * len(self.prefill.logits) + sample
        lengths = [layer.lengths[row].double().mean().item() for layer in self.layers]
        kv_bytes = state_bytes = 0.0
        for number, (layer, length) in enumerate(zip(self.layers, lengths, strict=True)):
            heads = layer.keys.shape[1]
            kv_bytes += length * self.slot_bytes(number)
            state_bytes += 0 if layer.ring is None else layer.ring.slots[0].nbytes
            state_bytes += 0 if layer.totals is None else length * heads * _width(layer.totals)
            state_bytes += 0 if layer.sinks is None else heads * layer.sinks.shape[2] * _width(layer.sinks)
        carried = sum(state.row_bytes for state in self.states.values())
        return Sizes(lengths, round(kv_bytes) + carried, round(state_bytes), carried)

    def survival(self, cell: int, sample: int, first: int, last: int) -> list[float | None]:
        """The share of the positions first..last-1 still in each layer, mean over KV heads; None where none evict."""
        row = cell * len(self.prefill.logits) + sample
        kept = []
        for number, layer in enumerate(self.layers):
            positions = layer.positions[row]
            inside = ((positions >= first) & (positions < last)).sum(-1).double().mean() / (last - first)
            kept.append(inside.item() if number in self.prefill.shape.evicted else None)
        return kept


@dataclass(frozen=True)
class Sizes:
    """Entries per KV head in each layer, bytes of the cache, and of what the method keeps beside it."""

    entries: list[float]
    kv_bytes: int  # of the filled entries and of what recurrent layers carry
    state_bytes: int
    carried_bytes: int  # the part of `kv_bytes` that recurrent layers carry, which no budget changes


@dataclass(frozen=True)
class OverTime:
    """What the steps of a decoding attended to, the new entries included: per KV head, mean over layers that evict."""

    entries: float  # mean over steps
    kv_bytes: float
    entries_peak: float
    kv_bytes_peak: float


def _width(tensor):
    """Bytes of one slot of one head."""
    return tensor.shape[-1] * tensor.element_size()


def select(
    scores: Float[Tensor, "batch kv_heads entries"],
    counts: Int[Tensor, "batch kv_heads"],
    positions: Int[Tensor, "batch kv_heads entries"],
) -> tuple[Int[Tensor, "batch kv_heads kept"], Bool[Tensor, "batch kv_heads kept"]]:
    """Indices of the top entries in order of position, and which of them are real where heads keep fewer."""
    kept = int(counts.max())
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :kept]
    real = torch.arange(kept, device=scores.device) < counts[..., None]
    place = positions.gather(-1, order).masked_fill(~real, torch.iinfo(positions.dtype).max)
    return order.gather(-1, place.argsort(-1)), real


def kept_indices(prefill: Prefill, cell: Cell) -> list[tuple[Tensor, Tensor, int | None]]:
    """For each layer what a cell keeps: indices and which are real, [batch, kv_heads, kept], and the plan's limit."""
    choices = [_keep_all(prefill, layer) for layer in range(prefill.shape.layers)]
    if cell.everything:
        return choices
    if cell.pruner is not None:
        if cell.budget is not None:
            left = [prefill.layers[layer].keys.shape[2] for layer in prefill.shape.evicted]
            answers.require_within(cell.method, "survivors", sum(left) / len(left), cell.budget, prefill.shape)
        return choices
    scores = prefill.observer.scores[cell.method]
    strict, notes = prefill.observer.strict, prefill.observer.notes[cell.method]
    noted = [torch.tensor(note.tolist(), dtype=note.dtype) for note in notes]  # layers may lie on several devices
    counts = answers.plan(cell.method, scores, cell.budget, prefill.shape, strict, noted)
    for layer, worth, planned in zip(prefill.shape.evicted, scores, counts, strict=True):
        stored, window = prefill.layers[layer], prefill.windows[layer]
        count = cell.granted(planned, window)
        first, last = answers.protected(cell.method, cell.within(int(count.max()), window), prefill.shape)
        last = last if window is None else min(last, int(count.min()))
        positions = stored.positions[:, None].expand(worth.shape)
        seen = prefill.observer.observation(layer, stored.keys, stored.values, stored.positions, 0)
        seen = replace(seen, window=window)
        most = count.to(worth.device).clamp(max=worth.shape[-1])
        choices[layer] = *select(protect(worth, seen, first, last), most, positions), int(count.max())
    return choices


def _keep_all(prefill, layer):
    """Every entry of a layer; of a sliding one those that the next token still sees."""
    stored, window = prefill.layers[layer], prefill.windows[layer]
    batch, heads, entries, _ = stored.keys.shape
    first = 0 if window is None else max(0, entries - window + 1)
    index = torch.arange(first, entries, device=stored.keys.device).expand(batch, heads, -1)
    return index, torch.ones_like(index, dtype=torch.bool), None


def fork(
    prefill: Prefill, cells: Sequence[Cell], room: int, consume: bool = False, fed: int | None = None
) -> list[Group]:
    """Copies what each cell keeps into slots of its own with room for new tokens; the prefill stays as it is.

    Where no more than `fed` of these tokens come at once, cells that hold get slots for budget and interval only.

    Cells that keep equally many entries in every layer share a group; under hold a group has one method, since its
    evictions are decided together. With `consume` each layer of the prefill is freed as soon as it is copied: at most
    one layer is there twice, and the prefill can be forked no more.
    """
    if prefill.consumed:
        raise RuntimeError("this prefill was consumed by an earlier fork: prefill again, or fork without consume")
    together: dict[tuple, list[tuple[Cell, list]]] = {}
    for cell in cells:
        choices = kept_indices(prefill, cell)
        lengths = tuple(tuple(real.sum(-1).flatten().tolist()) for _, real, _ in choices)
        alike = (cell.method, cell.budget, cell.interval, cell.stays) if cell.holds else None
        together.setdefault((lengths, cell.holds, alike, _moving(prefill, cell, choices)), []).append((cell, choices))
    groups = [
        Group([cell for cell, _ in members], [], prefill, key[1], prefill.carried(len(members)))
        for key, members in together.items()
    ]
    for layer in range(prefill.shape.layers):
        for group, (key, members) in zip(groups, together.items(), strict=True):
            index = torch.stack([choices[layer][0] for _, choices in members])
            real = torch.stack([choices[layer][1] for _, choices in members])
            limit = members[0][1][layer][2]  # the members of a group that holds have one method and one budget
            entries = _gather(prefill, layer, index, real, group.cells[0], (limit, room, fed))
            group.layers.append(entries if key[3] is None else _moved(entries, prefill, layer, key[3]))
        if consume:
            prefill.free(layer)
    return groups


def _gather(prefill, layer, index, real, cell, sizes):
    """Entries of one layer for a group; index and real are [cells, batch, kv_heads, kept].

    `sizes` are the plan's limit, the tokens to come and how many of them come at once.
    """
    stored, (limit, room, fed) = prefill.layers[layer], sizes
    cells, _, _, kept = index.shape
    lengths, evicts = real.sum(-1).flatten(0, 1), cell.holds and layer in prefill.shape.evicted
    ragged = bool((lengths != kept).any())
    target = cell.target(kept, limit, ragged, prefill.windows[layer]) if evicts else kept
    room = cell.room(max(0, target - kept), room, fed) if evicts else room

    def take(tensor, fill=0):
        slots = tensor.new_full((*index.shape[:3], kept + room, *tensor.shape[3:]), fill)
        wide = index.view(*index.shape, *[1] * (tensor.dim() - 3)).expand(*index.shape, *tensor.shape[3:])
        slots[:, :, :, :kept] = tensor.expand(cells, *tensor.shape).gather(3, wide)
        return slots.flatten(0, 1)

    positions = take(stored.positions[:, None].expand(-1, stored.keys.shape[1], -1), -1)
    positions[:, :, :kept].masked_fill_(~real.flatten(0, 1), -1)
    totals = take(_totals(prefill, layer, cell.method)) if evicts and cell.method.channels else None
    return Entries(
        keys=take(stored.keys),
        values=take(stored.values),
        positions=positions,
        lengths=lengths,
        filled=kept,
        ragged=ragged,
        window=prefill.windows[layer],
        limit=limit,
        start=kept,
        target=target,
        totals=totals,
        ring=_ring(prefill, layer, cell.method, cells) if evicts and cell.method.rows_held else None,
    )


def _totals(prefill, layer, method):
    """The running totals of a layer's entries after the prefill: zeros where the method had none yet."""
    stored, known = prefill.layers[layer], prefill.observer.totals.get(method) or None
    at = prefill.shape.evicted.index(layer)
    zeros = stored.keys.new_zeros(*stored.keys.shape[:3], method.channels, dtype=torch.float64)
    return zeros if known is None or known[at] is None else known[at]


def _ring(prefill, layer, method, cells):
    """The prompt's last query rows for each of some cells; under hold later ones take their places."""
    if layer not in prefill.newest:
        raise ValueError("the prompt's last query rows are not known, which this method needs under decode=hold")
    rows = prefill.newest[layer][:, :, -method.rows_held :]
    return Ring.of(rows.repeat(cells, 1, 1, 1), method.rows_held)


@dataclass(frozen=True)
class Moving:
    """How the entries of a cell at cache positions get to their places: the first `sinks` move, or all do."""

    sinks: int | None  # None: all
    holds: bool


def _moving(prefill: Prefill, cell: Cell, choices: list[tuple[Tensor, Tensor, int | None]]) -> Moving | None:
    """How the entries of a cell move; None where its positions are the original ones.

    Where nothing is missing behind the first tokens, these alone stand elsewhere than their distance to what follows
    says, and they can go on moving while the cell evicts. Otherwise every entry is moved once.
    """
    if cell.method.positions != "cache" or cell.everything:
        return None
    sinks, tokens = cell.method.protects(cell.budget, prefill.shape)[0], prefill.shape.tokens
    if not cell.holds and all(bool(real.all()) and index.shape[-1] == tokens for index, real, _ in choices):
        return None
    if tokens < sinks:
        raise ValueError(f"cache positions need a prompt of {sinks} sinks or more; use positions=original")
    closed = all(_closed(*choices[layer][:2], sinks, tokens) for layer in _moved_layers(prefill))
    if cell.holds and not closed:
        raise ValueError(
            "cache positions need a kept set of first tokens and one recent window; use positions=original"
        )
    return Moving(sinks if closed else None, cell.holds)


def _moved_layers(prefill: Prefill) -> list[int]:
    """The layers whose entries stand at cache positions: not those that slide, where old ones are soon seen no more."""
    slides = [prefill.evicts_sliding and window is not None for window in prefill.windows]
    return [layer for layer in prefill.shape.evicted if not slides[layer]]


def _closed(index: Tensor, real: Tensor, sinks: int, tokens: int) -> bool:
    """Whether each head keeps first tokens and then the newest ones without a gap, all heads equally many."""
    kept = index.shape[-1]
    newest = torch.arange(tokens - kept, tokens, device=index.device)
    return bool(real.all()) and not bool((index != newest)[..., min(sinks, kept) :].any())


def _moved(entries: Entries, prefill: Prefill, layer: int, moving: Moving) -> Entries:
    """Entries that stand, or will stand, at their places in the cache: seen from the tokens to come without gaps."""
    whole = not entries.ragged and entries.filled == prefill.shape.tokens
    if layer not in _moved_layers(prefill) or (whole and not moving.holds):
        return entries
    turns, kept = prefill.turns[layer], entries.filled
    if isinstance(turns, str):
        raise ValueError(unmovable(turns))
    if turns.keys.form is UNTURNED or moving.sinks == 0:  # a layer whose keys know no position, or a bare window
        return entries
    if moving.sinks is not None:
        sinks = entries.keys[:, :, : min(moving.sinks, kept)].clone()
        return replace(entries, sinks=sinks, rotary=prefill.rotary[layer], turn=turns.keys)
    positions = entries.positions[:, :, :kept]
    places = prefill.shape.tokens - entries.lengths[..., None] + torch.arange(kept, device=positions.device)
    shift = (places - positions).masked_fill(positions < 0, 0)
    cos, sin = (part[0][shift] for part in prefill.rotary[layer])
    entries.keys[:, :, :kept] = turn(entries.keys[:, :, :kept], cos, sin, turns.keys)
    return entries
