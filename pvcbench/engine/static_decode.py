"""Decoding in steps of one shape: every step runs the same operations on tensors of the same sizes.

What changes from step to step (the position, how many slots are filled, which slot is free) lies in tensors on the
device, so a CUDA graph captures one step and replays it, and the time of a step under hold does not change:

    decoder = StaticDecoder(engine.call, groups, capture=True)
    logits = decoder.step(ids)  # [rows, 1] -> [rows, vocabulary], as Decoder.step gives them

Under hold the new entry takes the slot of the evicted one. On a GPU a kernel attends that reads filled slots only (with
the backend "triton" elsewhere too). The full cache runs through the same code.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pvcbench.engine import answers
from pvcbench.engine.decode import DecodeCache, Decoder
from pvcbench.engine.evict import Group
from pvcbench.engine.kernels.interface import available
from pvcbench.engine.slots import Slots


def unsteady(group: Group) -> str | None:
    """Why the steps of a group cannot all have one shape, or None."""
    if len({entries.keys.device for entries in group.layers}) > 1:
        return "the layers lie on several devices"
    if any(entries.keys.shape[2] == entries.filled for entries in group.layers):
        return "there is no free slot: fork with room for what is generated"
    if not group.hold:
        return None
    method, budget = group.cells[0].method, group.cells[0].budget
    if not method.steady or group.cells[0].interval > 1 or group.cells[0].stays:
        return f"{type(method).__name__} does not evict one entry in every step, or not at interval=1, prompt=counted"
    if any(group.layers[layer].filled < (group.layers[layer].limit or 0) for layer in group.prefill.shape.evicted):
        return f"the prompt is shorter than the budget of {budget} entries, so the first steps evict nothing"
    return None


class StaticCache(DecodeCache):
    """The compressed caches of several groups, with all that changes from step to step in tensors."""

    def __init__(self, groups: Sequence[Group], backend: str):
        super().__init__(groups, backend)
        device = groups[0].layers[0].keys.device
        kernel = backend == "triton" or (device.type == "cuda" and available(device) is None)
        self.place = torch.tensor([self.seen], device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self.slots = {
            id(group): [
                Slots.of(entries, group.hold and layer in group.prefill.shape.evicted, self.seen, kernel)
                for layer, entries in enumerate(group.layers)
            ]
            for group in groups
        }

    def places(self, ids):
        return self.place.expand(len(ids), 1)

    def advance(self, group, layer, query, key, value, rule):
        slots, method = self.slots[id(group)][layer], group.cells[0].method
        holds = group.hold and layer in group.prefill.shape.evicted
        slots.write(key, value, self.place, self.step)
        output, weights = slots.attend(query, rule, self.place, holds and method.watches_decoding)
        if holds:
            self.afterwards(layer, partial(self._replace, group, layer, slots, weights))
        else:
            self.afterwards(layer, partial(slots.entries.lengths.add_, 1))
        return output

    def look(self, group, layer, query, rule, new):
        return self.slots[id(group)][layer].attend(query, rule, self.place, False)[0]

    def _replace(self, group, layer, slots, weights):
        """Frees the slot of the entry that the method gives up."""
        entries, prefill, cell = slots.entries, group.prefill, group.cells[0]
        keys, values, positions = (
            tensor[:, :, : slots.used] for tensor in (entries.keys, entries.values, entries.positions)
        )
        view = prefill.observer.observation(layer, keys, values, positions[:, 0], slots.used)
        view = replace(
            view,
            seen=self.place[0] + 1,
            positions=positions,
            mass=weights,
            draws=view.draws.repeat(len(group.cells)),
            excess=1,
            window=entries.slides,
            totals=None if entries.totals is None else entries.totals[:, :, : slots.used],
        )
        if cell.method.watches_decoding:
            totals = answers.totals(cell.method, view)
            if totals is not None:
                entries.totals[:, :, : slots.used] = totals
                view = replace(view, totals=entries.totals[:, :, : slots.used])
        freed = answers.dropped(cell.method, view, cell.within(entries.limit, entries.slides))
        positions.scatter_(2, freed, -1)
        slots.free.copy_(freed[..., 0])


class StaticDecoder:
    """Steps groups of cells as a `Decoder` does, one token and one shape each; `capture` replays a CUDA graph.

    Starts right after the fork and makes as many steps as the fork has room for. The logits of a captured step are
    overwritten by the next one. `finish` leaves the groups as any decoder leaves them. Raises ValueError where steps
    cannot have one shape (see `unsteady`).
    """

    def __init__(self, call: Callable, groups: Sequence[Group], capture: bool = False, backend: str = "blocked"):
        reasons = [reason for reason in map(unsteady, groups) if reason is not None]
        if reasons:
            raise ValueError(f"steps of one shape are not possible: {reasons[0]}")
        self.call, self.groups, self.cache = call, list(groups), StaticCache(groups, backend)
        self.left = min(entries.keys.shape[2] - entries.filled for group in groups for entries in group.layers)
        rows = self.cache.parts[-1].stop
        self.fed = torch.zeros(rows, 1, dtype=torch.int64, device=self.cache.place.device)
        self.graph, self.logits = self._capture() if capture else (None, None)

    def _run(self, ids):
        logits = self.call(ids, self.cache)
        self.cache.place += 1
        self.cache.step += 1
        return logits

    def _every(self) -> list[Slots]:
        return [slots for layers in self.cache.slots.values() for slots in layers]

    def _trial(self) -> None:
        """One step whose traces are wiped."""
        place, step, seen = self.cache.place.clone(), self.cache.step.clone(), self.cache.seen
        for slots in self._every():
            slots.save()
        carried = {layer: state.map(torch.clone) for layer, state in self.cache.states.items()}
        self._run(self.fed)
        for slots in self._every():
            slots.restore()
        for layer, before in carried.items():
            self.cache.states[layer].copy_(before)
        self.cache.place.copy_(place)
        self.cache.step.copy_(step)
        self.cache.seen = seen

    def _capture(self) -> tuple["torch.cuda.CUDAGraph", Tensor]:
        """The graph of a step and the logits that it fills; kernels are compiled in trial steps before."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._trial()
        torch.cuda.current_stream().wait_stream(stream)
        graph, seen = torch.cuda.CUDAGraph(), self.cache.seen
        with torch.cuda.graph(graph):
            logits = self._run(self.fed)
        self.cache.seen = seen  # nothing ran while it was captured
        return graph, logits

    @torch.inference_mode()
    def step(self, ids: Int[Tensor, "rows 1"]) -> Float[Tensor, "rows vocabulary"]:
        """Feeds one token per row and returns the logits after it."""
        if self.left < 1:
            raise RuntimeError("the cache is full: fork with more room")
        self.left -= 1
        if self.graph is None:
            logits = self._run(ids)
        else:
            self.fed.copy_(ids)
            self.graph.replay()
            self.cache.seen += 1
            logits = self.logits
        for group in self.groups:
            for layer, entries in enumerate(group.layers):
                entries.filled += not (group.hold and layer in group.prefill.shape.evicted)
        return logits

    def finish(self) -> None:
        """Puts the slots of groups that hold in order, from the left."""
        for group in self.groups:
            for layer in group.prefill.shape.evicted if group.hold else ():
                self.cache.slots[id(group)][layer].settle()


def fastest(call: Callable, groups: Sequence[Group], backend: str = "blocked") -> Decoder | StaticDecoder:
    """The decoder whose steps cost least: of one shape where that is possible, and captured on a GPU."""
    if any(unsteady(group) for group in groups):
        return Decoder(call, groups, backend)
    return StaticDecoder(call, groups, groups[0].layers[0].keys.is_cuda, backend)
