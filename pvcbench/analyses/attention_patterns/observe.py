"""Measures where each head attends, with and without value norms, and how eviction changes the head's output.

Where a model has learnt sinks, attention is taken as shares of what the entries get, and `given` says how much that is.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pvcbench.analyses.attention_patterns.rules import PATTERNS, classify, clearness
from pvcbench.analyses.attention_patterns.task import AttentionPatterns
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell, kept_indices
from pvcbench.engine.prefill import Prefill
from pvcbench.engine.query_rows import Rows
from pvcbench.errors import OutOfReach
from pvcbench.evaluation.cells import OBSERVATION, Point
from pvcbench.policy import Shape
from pvcbench.tasks.prompts import Prompt

BINS = 256  # positions of a drawn head are summed in as many bins
Spans = Mapping[str, tuple[int, int]]

READS = "{} reads what follows the prompt, which attention_patterns does not show to a method"


def observe(
    engine: Engine,
    task: AttentionPatterns,
    prompt: Prompt,
    points: Sequence[Point],
    draws: Tensor,
    step: Callable[[float], None],
) -> dict[Point, dict | str | OutOfReach]:
    """What one sample shows, and what each cell does to it; a cell out of reach is the reason."""
    ids, n = torch.tensor([list(prompt.ids)], device=engine.device), prompt.context_tokens
    shape, cells, found = engine.shape(n, prompt.frame_tokens), {}, {}
    for point in points:
        try:
            if point.method is not None:
                cells[point] = _judged(point, shape)
        except OutOfReach as error:
            found[point] = error
    watching = [cell.method for cell in cells.values() if cell.pruner is None]
    prefill = engine.prefill(ids[:, :n], watching, draws=draws, shape=shape, capture=task.rows)
    step(0.6)
    looked = {"last": _last_rows(prefill, shape.evicted, 1), "mean": _last_rows(prefill, shape.evicted, task.rows)}
    if "answer" in prompt.spans:
        first, last = (place - n for place in prompt.spans["answer"])
        read = engine.read(prefill, n, ids[:, n:-1], ids[:, n + 1 :]).rows
        looked["answer"] = [read[layer].part(first - 1, last - 1) for layer in shape.evicted]  # they predict the value
    if OBSERVATION in points:
        found[OBSERVATION] = {"observed": _shown(task, looked, prompt, shape)}
    step(0.8)
    for point, cell in cells.items():
        own = prefill if cell.pruner is None else engine.prefill(ids[:, :n], [], cell.pruner, draws)
        try:
            keys = cached_keys(engine, own, cell)
        except ValueError as error:  # a cell that cannot be run at its own positions is not judged at others
            found[point] = OutOfReach(str(error))
            continue
        judged = {name: rows for name, rows in looked.items() if name != "mean"}
        found[point] = _cut(cell, kept_entries(own, cell, n), judged, keys, prompt, shape)
    return found


def _judged(point: Point, shape: Shape) -> Cell:
    """The cell of a point; raises OutOfReach, also where the method reads what follows the prompt."""
    cell = point.cell(shape, False)
    if cell.reads is not None:
        raise OutOfReach(READS.format(point.name))
    return cell


def _last_rows(prefill: Prefill, layers: Sequence[int], count: int) -> list[Rows]:
    """The last rows of each of these layers."""
    captured = (prefill.rows(layer) for layer in layers)
    return [rows.part(rows.query.shape[2] - count, rows.query.shape[2]) for rows in captured]


def _shown(task, looked: Mapping[str, list[Rows]], prompt, shape) -> dict:
    """Measures of every kind of rows, by layer and head, and the head that shows each pattern most clearly."""
    n, shown = prompt.context_tokens, {}
    for name, layers in looked.items():
        both = [layer_measures(rows, task.sinks, task.recent, task.top, prompt.spans.get("needle")) for rows in layers]
        shown[name] = {
            weighting: {key: [_short(layer[number][key]) for layer in both] for key in both[0][number]}
            for number, weighting in enumerate(("attention", "values"))
        }
        if any(rows.rule.sinks is not None for rows in layers):
            shown[name]["given"] = [_short(given(rows)) for rows in layers]
    observed = {"tokens": n, "layers": list(shape.evicted), "top": list(task.top), "thresholds": task.thresholds}
    return observed | {"rows": shown, "examples": _examples(task, shown["last"]["attention"], looked["last"], n)}


def given(rows: Rows) -> Float[Tensor, " heads"]:
    """The attention that all entries of a layer get together, mean over the rows: 1 without learnt sinks."""
    return sum(block[0].sum((1, 2)) for _, _, block in rows.blocks()) / rows.query.shape[2]


def layer_measures(
    rows: Rows, sinks: int, recent: int, top: Sequence[int], needle: tuple[int, int] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means over the rows of one layer, by head: of attention as it is, and weighted by its values' norms."""
    norms = rows.head_values().to(torch.promote_types(rows.values.dtype, torch.float32)).norm(dim=-1)
    before, totals = rows.keys.shape[2] - rows.query.shape[2], ({}, {})
    for first, last, block in rows.blocks():
        weights = rows.shares(block)[0]
        weighted = weights * norms[:, None, : weights.shape[-1]]
        own = torch.arange(before + first, before + last, device=weights.device)
        for total, shares in zip(totals, (weights, weighted / weighted.sum(-1, keepdim=True)), strict=True):
            for key, value in measures(shares, own, sinks, recent, top, needle).items():
                total[key] = total.get(key, 0) + value.sum(1)
    count = rows.query.shape[2]
    return tuple({key: value / count for key, value in total.items()} for total in totals)


def measures(
    weights: Float[Tensor, "heads rows keys"],
    positions: Tensor,
    sinks: int,
    recent: int,
    top: Sequence[int],
    needle: tuple[int, int] | None,
) -> dict[str, Float[Tensor, "heads rows *top"]]:
    """Entropy in nats, mass by region and over the heaviest K, of rows at these positions (their last visible keys).

    The last `recent` keys of each row are recent, but for the first `sinks`; what is neither is the middle.
    """
    keys = torch.arange(weights.shape[-1], device=weights.device)
    late = (keys > positions[:, None] - recent) & (keys >= sinks)
    sink, new = weights[..., :sinks].sum(-1), (weights * late).sum(-1)
    found = {"entropy": torch.special.entr(weights).sum(-1), "sink": sink, "recent": new, "middle": 1 - sink - new}
    if needle is not None:
        found["needle"] = weights[..., slice(*needle)].sum(-1)
    heaviest = weights.topk(min(max(top), weights.shape[-1]), -1).values.cumsum(-1)
    found["top"] = torch.stack([heaviest[..., min(k, heaviest.shape[-1]) - 1] for k in top], -1)
    return found


def _examples(task, last: Mapping[str, list], rows: Sequence[Rows], n: int) -> dict[str, dict]:
    """For each pattern that some head has: the clearest one, with its mass by position in bins."""
    parts = [np.array(last[key]) for key in ("entropy", "sink", "recent")]
    patterns, clear, found = classify(*parts, n, task.thresholds), clearness(*parts), {}
    for number, name in enumerate(PATTERNS):
        if not (patterns == number).any():
            continue
        worth = np.where(patterns == number, clear[number], -np.inf)
        place, head = np.unravel_index(worth.argmax(), worth.shape)
        [(_, _, weights)] = rows[place].blocks()
        edges = torch.arange(n, device=weights.device) * BINS // n
        mass = torch.zeros(BINS, dtype=torch.float64, device=weights.device)
        mass.index_add_(0, edges, rows[place].shares(weights)[0, int(head), 0].double())
        found[name] = {"layer": rows[place].layer, "head": int(head), "clearness": round(float(worth.max()), 4)}
        found[name] |= {key: last[key][place][head] for key in ("entropy", "sink", "recent", "middle")}
        found[name]["mass"] = _short(mass, 5)
    return found


def kept_entries(prefill: Prefill, cell: Cell, n: int) -> list[Bool[Tensor, "kv_heads tokens"]]:
    """Which of the prompt's tokens a cell keeps in each layer that evicts."""
    kept = []
    choices = kept_indices(prefill, cell)
    for layer in prefill.shape.evicted:
        (index, real, _), positions = choices[layer], prefill.layers[layer].positions
        places = positions[:, None].expand(-1, index.shape[1], -1).gather(2, index).masked_fill(~real, n)
        mask = torch.zeros(index.shape[1], n + 1, dtype=torch.bool, device=index.device)
        kept.append(mask.scatter_(1, places[0], True)[:, :n])
    return kept


def cached_keys(engine: Engine, prefill: Prefill, cell: Cell) -> list[Float[Tensor, "1 kv_heads tokens dim"] | None]:
    """For each layer that evicts the prompt's keys, those that are kept as the cell's cache holds them; None: unmoved.

    At cache positions what is kept stands rotated across the gaps, as it does for every later query.
    """
    if cell.method.positions == "original" or cell.everything:
        return [None] * len(prefill.shape.evicted)
    [group] = engine.fork(prefill, [cell], 0)
    found = []
    for layer in prefill.shape.evicted:
        entries, stored, tokens = group.layers[layer], prefill.layers[layer].keys, prefill.shape.tokens
        entries.place_sinks(tokens - entries.filled)
        places = entries.positions.masked_fill(entries.positions < 0, tokens)[..., None].expand_as(entries.keys)
        keys = torch.cat((stored, stored[:, :, :1]), 2).scatter_(2, places, entries.keys)[:, :, :tokens]
        found.append(None if torch.equal(keys, stored) else keys)
    return found


def _cut(cell: Cell, kept: Sequence[Tensor], looked: Mapping[str, list[Rows]], keys: Sequence, prompt, shape) -> dict:
    """The row of one cell: what its kept entries leave of each head's output, and of the needle in each KV head."""
    observed = {"layers": list(shape.evicted), "error": {}, "mass": {}}
    for name, layers in looked.items():
        pairs = [output_error(*parts) for parts in zip(layers, kept, keys, strict=True)]
        observed["error"][name], observed["mass"][name] = (
            [_short(pair[number]) for pair in pairs] for number in range(2)
        )
    size = float(torch.stack([mask.sum(-1).double().mean() for mask in kept]).mean())
    row = {"observed": observed, "budget_entries": cell.budget, "kept_entries": size}
    if "needle" in prompt.spans:
        alive = [mask[:, slice(*prompt.spans["needle"])].double().mean(-1) for mask in kept]
        observed["survival"] = [_short(layer) for layer in alive]
        row["spans_kept"] = {"needle": [round(float(layer.mean()), 4) for layer in alive]}
    return row | {"kept_fraction": size / shape.tokens}


def output_error(
    rows: Rows, kept: Bool[Tensor, "kv_heads tokens"], first_keys: Float[Tensor, "1 kv_heads first dim"] | None = None
) -> tuple[Float[Tensor, " heads"], Float[Tensor, " heads"]]:
    """How far each head's output moves when only some of a prompt's tokens are attended to: |cut - full| / |full|.

    The cut attends to `first_keys` in place of the prompt's first ones where they are given. Also the attention mass
    that the full cache has on what is kept; means over the rows. Tokens after the prompt are always kept.
    """
    heads, groups = rows.query.shape[1], rows.query.shape[1] // rows.keys.shape[1]
    after = rows.keys.shape[2] - kept.shape[1]
    shown = torch.nn.functional.pad(kept, (0, after), value=True).repeat_interleave(groups, 0)[:, None]
    values = rows.head_values()
    errors, masses = rows.query.new_zeros(heads), rows.query.new_zeros(heads)
    blocks = ((block, block) for _, _, block in rows.blocks())
    if first_keys is not None:
        moved = rows.with_first_keys(first_keys).blocks()
        blocks = ((block, placed) for (_, _, block), (_, _, placed) in zip(rows.blocks(), moved, strict=True))
    for block, placed in blocks:
        seen = block.shape[-1]
        cut = placed[0] * shown[..., :seen]
        full = block[0].to(values.dtype) @ values[:, :seen]
        left = cut.sum(-1, keepdim=True)
        if rows.rule.sinks is not None:  # a learnt sink is never evicted
            left = left + 1 - placed[0].sum(-1, keepdim=True)
        part = (cut / left.clamp(min=1e-30)).to(values.dtype) @ values[:, :seen]
        errors += ((part - full).norm(dim=-1) / full.norm(dim=-1)).sum(1)
        masses += (block[0] * shown[..., :seen]).sum((-1, -2))
    return errors / rows.query.shape[2], masses / rows.query.shape[2]


def _short(values: Tensor, decimals: int = 3) -> list:
    """Numbers for a row."""
    return np.round(values.double().cpu().numpy(), decimals).tolist()
