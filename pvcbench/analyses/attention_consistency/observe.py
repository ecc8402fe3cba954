"""Finds the context entries that matter to recent and to later tokens; fits laws of attention by rank.

The context's last R tokens are recent; sets are of the entries before them, which all these and all later rows see.
Overlap of a set with the one to be predicted is the share of the latter that it holds; a random set of the same size
reaches that size's share of the entries, `size`.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from pvcbench.analyses.attention_consistency.task import AttentionConsistency
from pvcbench.engine.engine import Engine
from pvcbench.engine.query_rows import Rows
from pvcbench.errors import OutOfReach
from pvcbench.evaluation.cells import OBSERVATION, Point
from pvcbench.tasks.prompts import Prompt

BINS, CURVE, FITTED = 10, 24, 60  # of distances; log-spaced ranks that are kept, and that laws are fitted to
Sets = dict[str, Bool[Tensor, "rows entries"]]  # by reading


def observe(
    engine: Engine, task: AttentionConsistency, prompt: Prompt, points: Sequence[Point], draws: Tensor, step
) -> dict[Point, dict | OutOfReach]:
    """Overlaps, sizes and covered mass by layer and reading, and how the last token's attention falls with rank."""
    ids, tokens = torch.tensor([list(prompt.ids)], device=engine.device), prompt.context_tokens
    recent, total = int(task.recent_ratio * tokens), len(prompt.ids)
    windows = engine.windows
    layers = [n for n in engine.shape(total).evicted if windows[n] is None or windows[n] >= total]
    if not layers:
        return {OBSERVATION: OutOfReach("every layer slides: no entry is seen by all recent and later tokens")}
    prefill, found = engine.prefill(ids, capture=total - tokens + recent), []
    for done, layer in enumerate(layers, 1):
        found.append(observe_layer(prefill.rows(layer), tokens, recent, task))
        step(done / len(layers))
    sizes = [*map(str, task.ensembles), "all"]
    facts = {
        "layers": layers,
        "recent": recent,
        "entries": tokens - recent,
        "distance": rounded((np.arange(BINS) + 0.5) / BINS * task.recent_ratio),
        "sources": ["last", *sizes],  # the last token alone, and ensembles that end with it
        "sets": ["a recent token", *(f"{size} {kind} the last token" for kind in ("before", "with") for size in sizes)],
        "ahead": task.ahead,
        "ranks": rank_places(tokens, CURVE).tolist(),
    }
    return {OBSERVATION: {"observed": facts | by_layer(found)}}


def observe_layer(rows: Rows, tokens: int, recent: int, task: AttentionConsistency) -> dict:
    """What one layer shows: `readings` (see `agreement`, `lookahead`) and `power` (see `laws`).

    `overlap` with the last token's set, and `size`, are of recent tokens' sets (their mean), ensembles before the last
    token and ensembles with it.
    """
    [(_, _, last)] = head_means(rows.part(recent - 1, recent), tokens)
    entries = tokens - recent
    own = pivotal(last[:, :entries], task.readings)
    near, sums = agreement(rows.part(0, recent - 1), own, entries, tokens, task)
    sums[:, 1] += task.distance_weight * last[:, :entries]
    ensembles = {kind: pivotal(sums[:, place], task.readings) for place, kind in enumerate(("before", "with"))}
    fitting = np.array([size <= recent - 1 for size in task.ensembles] + [True])
    sets = {name: torch.cat((own[name], ensembles["with"][name])) for name in own}
    later = lookahead(rows, recent, sets, entries, task)
    readings = {}
    for name, target in own.items():
        readings[name] = near[name] | {"last_size": share_of(target)[0]} | later[name]
        made = [np.where(fitting, overlap(sets[name], target), np.nan) for sets in ensembles.values()]
        readings[name]["overlap"] = np.concatenate([[near[name]["overlap"]], *made])
        made = [np.where(fitting, share_of(sets[name]), np.nan) for sets in ensembles.values()]
        readings[name]["size"] = np.concatenate([[near[name]["size"]], *made])
        for key in ("ahead_overlap", "ahead_covered", "source_size"):
            readings[name][key][1:][~fitting] = np.nan
    return {"readings": readings, "power": laws(last[0].cpu().numpy())}


def head_means(rows: Rows, entries: int) -> Iterator[tuple[int, int, Float[Tensor, "rows entries"]]]:
    """The mean attention of all query heads to the first entries, block by block, in float64."""
    for first, last, weights in rows.blocks():
        yield first, last, weights[0, :, :, :entries].mean(0, dtype=torch.float64)


def pivotal(attention: Float[Tensor, "rows entries"], readings: Mapping[str, tuple[str, float]]) -> Sets:
    """Each row's pivotal entries by reading: of equal entries the first one counts as larger.

    `mass`: the smallest set that holds this share of the row's attention to these entries; `count`: this share of the
    entries, rounded down, at least one.
    """
    ordered, order = attention.sort(dim=-1, descending=True, stable=True)
    entries = attention.shape[-1]
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(entries, device=order.device).expand_as(order))
    sums = ordered.cumsum(-1)
    sets = {}
    for name, (kind, share) in readings.items():
        if kind == "mass":
            size = ((sums < share * sums[:, -1:]).sum(-1, keepdim=True) + 1).clamp(max=entries)
        else:
            size = max(1, int(share * entries))
        sets[name] = ranks < size
    return sets


def overlap(sets: Bool[Tensor, "rows entries"], targets: Bool[Tensor, "#rows entries"]) -> Float[np.ndarray, " rows"]:
    """The share of each target that the set holds."""
    return ((sets & targets).sum(-1).double() / targets.sum(-1)).cpu().numpy()


def share_of(sets: Bool[Tensor, "rows entries"]) -> Float[np.ndarray, " rows"]:
    """The size of each set as a share of the entries: also the overlap that a random set of this size expects."""
    return sets.double().mean(-1).cpu().numpy()


def agreement(rows: Rows, own: Sets, entries: int, tokens: int, task: AttentionConsistency) -> tuple[dict, Tensor]:
    """The recent rows but the last: by reading their sets' overlap with the last token's, in bins of distance and mean.

    Also the sums of their attention that ensembles are made of, [ensembles, before or with the last token, entries].
    """
    recent = rows.query.shape[2] + 1
    weights = row_weights(task, recent, rows.query.device)
    sums = torch.zeros(*weights.shape[:2], entries, dtype=torch.float64, device=weights.device)
    overlaps, sizes = {name: [] for name in own}, {name: [] for name in own}
    for first, last, attention in head_means(rows, entries):
        sums += weights[..., first:last] @ attention
        for name, sets in pivotal(attention, task.readings).items():
            overlaps[name].append(overlap(sets, own[name]))
            sizes[name].append(share_of(sets))
    places = distance_bins(recent, tokens, task.recent_ratio)
    near = {}
    for name in own:
        reached, size = np.concatenate(overlaps[name]), np.concatenate(sizes[name])
        near[name] = {"overlap": reached.mean(), "size": size.mean()}
        near[name] |= {"bin_overlap": bin_means(reached, places), "bin_size": bin_means(size, places)}
    return near, sums


def row_weights(task: AttentionConsistency, recent: int, device) -> Float[Tensor, "ensembles 2 rows"]:
    """Each ensemble's weights of the recent rows but the last: of the ensemble before that one, and with it.

    An ensemble of m tokens weighs them from 1, the oldest, to `distance_weight`. `all`, the last of them, has one
    token more with the last one than before it. One that is larger than what is recent has zeros.
    """
    rows = recent - 1
    weights = torch.zeros(len(task.ensembles) + 1, 2, rows, dtype=torch.float64, device=device)
    for place, size in enumerate([*task.ensembles, None]):
        before, joined = (rows, recent) if size is None else (size, size)
        if before > rows:
            continue
        weights[place, 0, rows - before :] = ramp(before, task.distance_weight, device)
        weights[place, 1, rows - joined + 1 :] = ramp(joined, task.distance_weight, device)[:-1]
    return weights


def ramp(rows: int, distance_weight: float, device) -> Float[Tensor, " rows"]:
    """Weights by distance, the newest most."""
    return torch.linspace(1.0, distance_weight, rows, dtype=torch.float64, device=device)


def distance_bins(recent: int, tokens: int, ratio: float) -> Int[np.ndarray, " rows"]:
    """The bin of each recent token but the last by its distance d = (tokens - i) / tokens from the end: (0, ratio]."""
    distance = np.arange(recent, 1, -1) / tokens
    return np.clip(np.ceil(distance / ratio * BINS - 1e-9).astype(int) - 1, 0, BINS - 1)


def bin_means(values: Float[np.ndarray, " rows"], places: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " bins"]:
    """The mean of each bin, NaN for empty ones."""
    counts = np.bincount(places, minlength=BINS)
    sums = np.bincount(places, weights=values, minlength=BINS)
    return np.divide(sums, counts, out=np.full(BINS, np.nan), where=counts > 0)


def lookahead(rows: Rows, recent: int, sets: Sets, entries: int, task: AttentionConsistency) -> dict[str, dict]:
    """By reading, of each source's set: `source_size`, and overlap and covered mass [sources, ahead] of later rows.

    `covered` is the share of the later row's attention to these entries that the source's set holds. NaN where the
    text ends before.
    """
    empty = len(next(iter(sets.values()))), len(task.ahead)
    found = {}
    for name, held in sets.items():
        found[name] = {key: np.full(empty, np.nan) for key in ("ahead_overlap", "ahead_covered")}
        found[name]["source_size"] = share_of(held)
    times = [time for time in task.ahead if recent + time <= rows.query.shape[2]]
    later = rows.part(recent, recent + max(times)) if times else None
    for first, last, attention in head_means(later, entries) if times else ():
        for place, time in enumerate(times):
            if not first < time <= last:
                continue
            row = attention[time - 1 - first, None]
            for name, target in pivotal(row, task.readings).items():
                held = sets[name]
                found[name]["ahead_overlap"][:, place] = overlap(held, target)
                found[name]["ahead_covered"][:, place] = ((held * row).sum(-1) / row.sum()).cpu().numpy()
    return found


def rank_places(entries: int, count: int) -> Int[np.ndarray, " ranks"]:
    """Log-spaced ranks from 1 to all entries; small ones repeat."""
    return np.geomspace(1, entries, count).round().astype(int)


def laws(attention: Float[np.ndarray, " entries"]) -> dict:
    """Attention by rank, [CURVE], and lines fitted to its logarithm: slope, intercept and R^2 of each family.

    x is log rank (power law), the normal quantile of the rank (log-normal) or the rank (exponential); weights that
    rounded to 0 are left out; NaN where all others are equal or fewer than three.
    """
    ordered, entries = np.sort(attention)[::-1], len(attention)
    shown, ranks = ordered[rank_places(entries, CURVE) - 1], np.unique(rank_places(entries, FITTED))
    ranks = ranks[ordered[ranks - 1] > 0]
    heights = np.log(ordered[ranks - 1])
    found = {"values": np.where(shown > 0, shown, np.nan)}
    places = {
        "power law": np.log(ranks),
        "log-normal": stats.norm.ppf(1 - (ranks - 0.5) / entries),
        "exponential": ranks.astype(float),
    }
    for family, x in places.items():
        known = len(ranks) >= 3 and np.ptp(heights) > 0
        line = stats.linregress(x, heights) if known else None
        parts = (line.slope, line.intercept, line.rvalue**2) if known else (np.nan,) * 3
        found[family] = dict(zip(("slope", "intercept", "r2"), parts, strict=True))
    return found


def by_layer(found: Sequence[Mapping], digits: int = 4) -> dict:
    """Equal nests of numbers and arrays, one per layer, as one nest of lists by layer; shares have three digits."""
    first = found[0]
    if isinstance(first, Mapping):
        return {key: by_layer([layer[key] for layer in found], 3 if key == "readings" else digits) for key in first}
    return rounded(np.stack([np.asarray(layer) for layer in found]), digits)


def rounded(values: np.ndarray, digits: int = 4) -> list:
    """Nested lists of numbers with this many significant digits, None for NaN."""
    if values.ndim > 1:
        return [rounded(part, digits) for part in values]
    return [None if np.isnan(value) else float(f"{value:.{digits}g}") for value in values]
