"""Splits a context into shared PvCs, non-shared PvCs and the rest; measures their sizes and the cost of hiding each.

PvC (pivotal context) of a row are the entries it attends to most, by attention averaged over query heads and
restricted to the entries before the recent rows (S_c). Two readings of "top 80%": `mass`, the smallest set with that
share of the row's attention to S_c; `count`, that share of the entries. PyramidInfer (arXiv 2405.12532), section 3.2.2.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pvcbench.analyses.pivotal_roles.task import PivotalRoles
from pvcbench.engine.ablation import Variant
from pvcbench.engine.engine import Engine
from pvcbench.engine.prefill import Prefill
from pvcbench.evaluation.cells import OBSERVATION, Point
from pvcbench.tasks.prompts import Prompt

READINGS = ("mass", "count")
PARTS = ("shared", "non_shared", "non_pvc")
CONTROLLED = ("shared_no_sinks", "non_shared", "non_pvc")  # beside each: as many entries drawn at random
RANGES = (slice(0, 1), slice(1, 8), slice(8, None))  # the immediate next token, tokens 2-8, those further on


@dataclass(frozen=True)
class View:
    """How the recent rows up to a split see S_c in one layer."""

    weights: Float[Tensor, " context"]  # of the last row, mean over query heads
    inside: Bool[Tensor, "readings context"]  # its PvC
    others: Int[Tensor, "readings context"]  # in how many other recent rows' PvC an entry is
    rows: int  # how many others there are

    def parts(self, shared_by: float) -> dict[str, Bool[Tensor, "readings context"]]:
        """The three parts of S_c; shared: in the PvC of at least this share of the other rows."""
        needed = math.ceil(shared_by * self.rows - 1e-9)  # 0.8 * 35 is a little more than 28
        shared = self.inside & (self.others >= needed)
        return {"shared": shared, "non_shared": self.inside & ~shared, "non_pvc": ~self.inside}

    def measures(self, shared_by: float) -> dict[tuple[str, str], Float[Tensor, " readings"]]:
        """Shares of entries and of the last row's attention in each part, and whose PvC non-PvC entries are.

        `others`: the share of the non-PvC entries that are PvC of any other recent row; the share of the other rows
        whose PvC a non-PvC entry is, mean over entries.
        """
        parts, found = self.parts(shared_by), {}
        for name, part in parts.items():
            found["entries", name] = part.double().mean(-1)
            found["attention", name] = ((self.weights * part).sum(-1) / self.weights.sum()).double()
        rest = parts["non_pvc"]
        size = rest.sum(-1).double()
        found["others", "any"] = (rest & (self.others > 0)).sum(-1) / size
        found["others", "mean"] = (self.others * rest).sum(-1) / (size * self.rows)
        return found


def pivotal(weights: Float[Tensor, "rows context"], share: float) -> Bool[Tensor, "readings rows context"]:
    """The PvC of every row by both readings; a row that attends to nothing has none by mass."""
    ranked, order = weights.sort(dim=-1, descending=True, stable=True)
    mass = ranked.cumsum(-1)
    total = mass[:, -1:]
    reaching = (mass < share * total).sum(-1, keepdim=True) + (total > 0)
    sizes = torch.stack((reaching, torch.full_like(reaching, int(share * weights.shape[1]))))
    inside = torch.arange(weights.shape[1], device=weights.device) < sizes
    return torch.zeros_like(inside).scatter(-1, order.expand_as(inside), inside)


def views(blocks: Iterable[tuple], context: int, ends: Sequence[int], share: float) -> list[View]:
    """What the first `end` recent rows make of the first `context` entries, for each of `ends`; one block at a time."""
    found, counts = {}, torch.zeros(1, dtype=torch.int64)
    for first, last, weights in blocks:
        rows = weights[0, :, :, :context].mean(0)
        inside, counts = pivotal(rows, share), counts.to(rows.device)
        for end in ends:
            if first < end <= last:
                own = end - 1 - first
                found[end] = View(rows[own], inside[:, own], counts + inside[:, :own].sum(1), end - 1)
        counts = counts + inside.sum(1)
    return [found[end] for end in ends]


def drawn(part: Bool[Tensor, " context"], sinks: int, generator: torch.Generator) -> Bool[Tensor, " context"]:
    """As many entries as the part has, at random, none of the first `sinks`; all others if there are no more."""
    chosen = sinks + torch.randperm(len(part) - sinks, generator=generator)[: int(part.sum())]
    return torch.zeros_like(part).index_fill(0, chosen.to(part.device), True)


def hidings(
    parts: Sequence[dict[str, Bool[Tensor, "readings context"]]], sinks: int, generator: torch.Generator
) -> list[tuple[str, str, Bool[Tensor, "layers context"]]]:
    """Reading, name and hidden entries by layer of every variant, given the parts of each layer."""
    found = []
    for place, reading in enumerate(READINGS):
        own = {name: torch.stack([layer[name][place] for layer in parts]) for name in PARTS}
        own["shared_no_sinks"] = own["shared"].clone()
        own["shared_no_sinks"][:, :sinks] = False
        for name in CONTROLLED:
            own[f"control_{name}"] = torch.stack([drawn(layer, sinks, generator) for layer in own[name]])
        found += [(reading, name, hidden) for name, hidden in own.items()]
    return found


@dataclass(frozen=True)
class Costs:
    """What hiding costs from one split on; ranges without tokens are NaN."""

    nll: Float[Tensor, " ranges"]  # nothing hidden, nats per token
    increase: Float[Tensor, "variants ranges"]  # of the NLL
    agreement: Float[Tensor, "variants ranges"]  # share of tokens predicted as with nothing hidden


def costs(
    engine: Engine,
    prefill: Prefill,
    ids: Int[Tensor, "1 tokens"],
    split: int,
    ahead: int,
    layers: Sequence[int],
    hidden: Sequence[Bool[Tensor, "layers context"]],
) -> Costs:
    """Feeds the last row again and reads up to `ahead` tokens on; a variant that hides nothing costs nothing."""
    count, rest = min(ahead, ids.shape[1] - split), split - 1 - hidden[0].shape[1]
    variants = [
        Variant(
            {layer: torch.nn.functional.pad(mask, (0, rest))[None] for layer, mask in zip(layers, masks, strict=True)}
        )
        for masks in hidden
    ]
    fed, wanted = ids[:, split - 1 : split - 1 + count], ids[:, split : split + count]
    read = engine.read(prefill, split - 1, fed, wanted, variants, engine.carried(ids[:, : split - 1]))
    some = torch.stack([masks.any() for masks in hidden])[:, None]
    increase = torch.where(some, read.logprobs[:1] - read.logprobs[1:], 0.0)
    same = (read.predicted[1:] == read.predicted[:1]) | ~some
    return Costs(*(by_range(values) for values in (-read.logprobs[0], increase, same)))


def by_range(values: Tensor) -> Float[Tensor, "*more ranges"]:
    """Means of values by token, [..., tokens], over the three ranges."""
    return torch.stack([values[..., part].double().mean(-1) for part in RANGES], -1)


def observe(
    engine: Engine,
    task: PivotalRoles,
    prompt: Prompt,
    points: Sequence[Point],
    draws: Int[Tensor, "1"],
    step: Callable[[float], None],
) -> dict[Point, dict]:
    """Shares of the parts by layer, and what hiding each costs; means over the split points of the sample."""
    ids = torch.tensor([list(prompt.ids)], device=engine.device)
    count = 1 if "needle" in prompt.spans else task.splits
    splits = [prompt.context_tokens - task.stride * number for number in range(count)]
    context = splits[-1] - int(task.recent_ratio * splits[-1])
    layers = engine.shape(prompt.context_tokens).evicted
    prefill = engine.prefill(ids, capture=ids.shape[1] - context)
    ends, seen = [split - context for split in splits], []
    for number, layer in enumerate(layers):
        blocks = prefill.rows(layer).part(0, ends[0]).blocks()
        seen.append(views(blocks, context, ends, task.share))
        step((number + 1) / (len(layers) + 4 * count))
    measured = [[view.measures(task.shared_by) for view in layer] for layer in seen]
    shares = {
        key: torch.stack([torch.stack([view[key] for view in layer]) for layer in measured]).nanmean(1)
        for key in measured[0][0]
    }  # [layers, readings]
    found = []
    for number, split in enumerate(splits):
        generator = torch.Generator().manual_seed(int(draws[0]) + number)
        hidden = hidings([layer[number].parts(task.shared_by) for layer in seen], task.sinks, generator)
        found.append((hidden, costs(engine, prefill, ids, split, task.ahead, layers, [masks for *_, masks in hidden])))
        step((len(layers) + 4 * (number + 1)) / (len(layers) + 4 * count))
    observed = {"layers": list(layers), "context": context, "recent_rows": ends}
    return {OBSERVATION: {"observed": observed | collected(shares, found, task.share)}}


def collected(shares: dict, found: Sequence[tuple[list, Costs]], share: float) -> dict:
    """Means over split points as JSON: by reading the shares by layer, and by variant what hiding costs."""
    means = {
        name: torch.stack([getattr(own, name) for _, own in found]).nanmean(0) for name in ("increase", "agreement")
    }
    means["hidden"] = torch.stack([torch.stack([m.double().mean() for *_, m in hidden]) for hidden, _ in found]).mean(0)
    readings = {}
    for place, reading in enumerate(READINGS):
        own = readings[f"{reading} {100 * share:g}%"] = {}
        for (quantity, name), values in shares.items():
            own.setdefault(quantity, {})[name] = plain(values[:, place].tolist())
        for number, (whose, variant, _) in enumerate(found[0][0]):
            for quantity, values in means.items():
                if whose == reading:
                    own.setdefault(quantity, {})[variant] = plain(values[number].tolist())
    return {"nll": plain(torch.stack([own.nll for _, own in found]).nanmean(0).tolist()), "readings": readings}


def plain(value):
    """Numbers, in lists or alone, to four significant digits; NaN becomes None."""
    if isinstance(value, list):
        return [plain(part) for part in value]
    return None if math.isnan(value) else float(f"{value:.4g}")
