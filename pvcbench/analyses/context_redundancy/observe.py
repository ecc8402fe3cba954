"""Inference context redundancy: what it costs to cut the context's entries in one layer, or in all from one on.

Yang et al., PyramidInfer (2024), arXiv 2405.12532, section 3.1. The last context token is read again, so that the next
token depends on the cut too; entries are cut by that token's attention, or by position (`recent`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pvcbench.analyses.context_redundancy.task import ContextRedundancy
from pvcbench.engine.ablation import Reading, Variant
from pvcbench.engine.engine import Engine
from pvcbench.engine.prefill import Prefill
from pvcbench.evaluation.cells import OBSERVATION, Point
from pvcbench.tasks.prompts import Prompt

SINKS = 4  # first entries that the cut by position keeps
PART = 64  # variants between two reports of progress
ALONE, RECENT, ONWARD = KINDS = "alone", "recent", "onward"
EFFECTS = ("nll", "next", "agreement")


@dataclass(frozen=True)
class Cut:
    """One variant of the reading: a kind of cut, the place of its (first) layer and of its share, and what it hides."""

    kind: str
    layer: int
    share: int
    variant: Variant


def observe(
    engine: Engine,
    task: ContextRedundancy,
    prompt: Prompt,
    points: Sequence[Point],
    draws: Tensor,
    step: Callable[[float], None],
) -> dict[Point, dict]:
    """Effects of every cut of one sample, {kind: {effect: [layers][shares]}}, beside the uncut reading's NLL.

    Kinds: `alone` (one layer, by attention), `recent` (one layer, by position), `onward` (all layers from one on, by
    attention). Effects: increase of the mean NLL over the following tokens (`nll`) and of the next token's (`next`),
    nats; share of the following tokens whose most likely token stays the same (`agreement`); for one layer also the
    share of the last token's attention that remains in it (`mass`).
    """
    ids, tokens = torch.tensor([list(prompt.ids)], device=engine.device), prompt.context_tokens
    prefill, entries = engine.prefill(ids[:, :tokens], capture=1), tokens - 1
    fed, wanted, states = ids[:, entries:-1], ids[:, tokens:], engine.carried(ids[:, :entries])
    layers = prefill.shape.evicted
    rows = [last_row(prefill, layer) for layer in layers]
    kept = [entries_kept(share, entries) for share in task.shares]
    some = [task.shares.index(share) for share in task.above]
    hidden = [[~most_attended(row[:-1], count) for count in kept] for row in rows]
    recent = [~newest(entries, kept[place]).to(ids.device) for place in some]
    cuts = list(cuts_of(layers, hidden, recent, some))
    sizes = {ALONE: len(kept), RECENT: len(some), ONWARD: len(some)}
    found = {kind: {name: [[None] * size for _ in layers] for name in EFFECTS} for kind, size in sizes.items()}
    for start in range(0, len(cuts), PART):
        part = cuts[start : start + PART]
        reading = engine.read(prefill, entries, fed, wanted, [cut.variant for cut in part], states)
        for row, cut in enumerate(part, 1):
            for name, value in zip(EFFECTS, effects(reading, row), strict=True):
                found[cut.kind][name][cut.layer][cut.share] = value
        step((start + len(part)) / len(cuts))
    for kind, masks in ((ALONE, hidden), (RECENT, [recent] * len(layers))):
        found[kind]["mass"] = [[mass(row, mask) for mask in own] for row, own in zip(rows, masks, strict=True)]
    uncut = -reading.logprobs[0]
    record = {"layers": list(layers), "shares": task.shares, "above": task.above, "kept": kept}
    record["uncut"] = {"nll": rounded(uncut.mean()), "next": rounded(uncut[0])}
    return {OBSERVATION: {"observed": record | found}}


def cuts_of(
    layers: Sequence[int],
    hidden: Sequence[Sequence[Bool[Tensor, " entries"]]],
    recent: Sequence[Bool[Tensor, " entries"]],
    some: Sequence[int],
) -> Iterator[Cut]:
    """All cuts, those of shallow layers first: `hidden` by layer and share, `recent` by share of `some`."""
    for place, layer in enumerate(layers):
        for share, mask in enumerate(hidden[place]):
            yield Cut(ALONE, place, share, Variant({layer: mask[None]}))
        for share, mask in enumerate(recent):
            yield Cut(RECENT, place, share, Variant({layer: mask[None]}))
        for share, number in enumerate(some):
            deeper = zip(layers[place:], hidden[place:], strict=True)
            yield Cut(ONWARD, place, share, Variant({own: masks[number][None] for own, masks in deeper}))


def last_row(prefill: Prefill, layer: int) -> Float[Tensor, " tokens"]:
    """The last token's attention in a layer, the mean over query heads."""
    [(_, _, weights)] = prefill.rows(layer).blocks()
    return weights[0, :, -1].mean(0)


def entries_kept(share: float, entries: int) -> int:
    """How many entries a share is: rounded, at least one."""
    return max(1, round(share * entries))


def most_attended(row: Float[Tensor, " entries"], count: int) -> Bool[Tensor, " entries"]:
    """The entries with the most attention."""
    return torch.zeros_like(row, dtype=torch.bool).index_fill_(0, row.topk(count).indices, True)


def newest(entries: int, count: int) -> Bool[Tensor, " entries"]:
    """As many entries: the first few, and for the rest the newest."""
    places, sinks = torch.arange(entries), min(SINKS, count)
    return (places < sinks) | (places >= entries - (count - sinks))


def mass(row: Float[Tensor, " tokens"], hidden: Bool[Tensor, " entries"]) -> float:
    """The share of the last token's attention that a cut leaves, its attention to itself included."""
    return rounded(1 - row[:-1][hidden].sum() / row.sum())


def effects(reading: Reading, row: int) -> tuple[float, float, float]:
    """What differs in a row of a reading from its first: mean NLL, the first token's NLL, agreement (1: nothing)."""
    increase = reading.logprobs[0] - reading.logprobs[row]
    same = reading.predicted[row] == reading.predicted[0]
    return rounded(increase.mean()), rounded(increase[0]), rounded(same.double().mean())


def rounded(value: Tensor) -> float | None:
    """A number of four significant digits; None where it is none."""
    return float(f"{value.item():.4g}") if value.isfinite() else None
