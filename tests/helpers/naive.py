"""Each method once more, slowly, in float64, from its description: what methods/ must agree with.

Attention comes from the dense reference; everything is sets of positions and plain loops. Two scores closer than
float64 noise raise Tie, so that a test can take another case.
"""

import math
from dataclasses import dataclass, field

import torch


class Tie(Exception):
    """Two scores around the cut are equal but for rounding: either choice is right."""


def top(scores: dict[int, float], count: int) -> list[int]:
    """The positions of the highest scores, highest first."""
    ranked = sorted(scores, key=scores.get, reverse=True)
    if 0 < count < len(ranked):
        last, next_one = scores[ranked[count - 1]], scores[ranked[count]]
        if math.isclose(last, next_one, rel_tol=1e-9, abs_tol=1e-12):
            raise Tie
    return ranked[:count]


# ---------------------------------------------------------------------------------------------- H2O, StreamingLLM


@dataclass
class H2O:
    """One layer of one sample: running sums per KV head, the newest half protected, one eviction per new entry."""

    budget: int
    normalize: bool
    heads: int  # KV heads
    sizes: list[int] | None = None  # of each KV head, where they differ; then `first` and `last` tokens are protected
    first: int = 0
    last: int | None = None  # None: half of the budget
    window: int | None = None  # what the next token does not see goes first
    seen: int = 0
    score: list[dict[int, float]] = field(default_factory=list)

    def prefill(self, attention):
        """Attention is [heads, tokens, tokens]."""
        self.score = [{} for _ in range(self.heads)]
        self._receive(attention, 0)
        self._evict()

    def step(self, rows, first_layer_entries=None):
        """Rows is [heads, new rows, tokens so far]."""
        self._receive(rows, self.seen)
        self._evict()

    def _receive(self, rows, first):
        group = rows.shape[0] // self.heads
        self.seen = first + rows.shape[1]
        for head, score in enumerate(self.score):
            for position in range(first, self.seen):
                score[position] = 0.0
            sums = rows[head * group : (head + 1) * group].sum((0, 1)).tolist()  # entries evicted before got nothing
            for position in score:
                score[position] += sums[position]

    def _evict(self):
        recent = self.budget // 2 if self.last is None else self.last
        for head, every in enumerate(self.score):
            score = {j: v for j, v in every.items() if self.window is None or j > self.seen - self.window}
            kept = {j for j in score if j < self.first or j >= self.seen - recent}
            older = {position: value for position, value in score.items() if position not in kept}
            if self.normalize:
                older = {position: value / (self.seen - position) for position, value in older.items()}
            size = self.budget if self.sizes is None else self.sizes[head]
            kept |= set(top(older, max(0, size - len(kept))))
            self.score[head] = {position: value for position, value in score.items() if position in kept}

    @property
    def kept(self):
        """The positions each KV head holds."""
        return [set(score) for score in self.score]


def streaming(tokens: int, budget: int, sinks: int) -> set[int]:
    """The first tokens and the newest ones, `budget` in all."""
    if tokens <= budget:
        return set(range(tokens))
    return set(range(sinks)) | set(range(tokens - (budget - sinks), tokens))


# ---------------------------------------------------------------------------------------------- PvC


def share(kind: str, ratio: float, layer: int, layers: int) -> float:
    """The schedule s(l): cosine and linear start at 1 and fall towards the ratio, constant is the ratio."""
    if kind == "cosine":
        return ratio + (1 - ratio) * (1 + math.cos(math.pi * layer / layers)) / 2
    if kind == "linear":
        return ratio + (1 - ratio) * (1 - layer / layers)
    return ratio


@dataclass
class PvC:
    """The prefill of one prompt, by the official code's names."""

    recent_ratio: float = 0.2
    ratio: float = 0.9
    schedule: str = "cosine"
    interval: int = 1
    floor: int = 64
    sinks: int = 4
    distance_weight: float = 1.2
    prune: str = "hidden_states"
    select: str = "count"

    def sizes(self, tokens: int, layers: int) -> list[int]:
        """Entries kept per layer, `select: count`."""
        recent, kept = int(self.recent_ratio * tokens) + 1, []
        context = tokens - recent
        floor = min(self.floor, context)
        for layer in range(layers):
            before = context
            s = share(self.schedule, self.ratio, layer, layers)
            if layer % self.interval == 0 and int(context * s) > floor and s < 1:
                context = int(context * s)
            kept.append((before if self.prune == "hidden_states" else context) + recent)
        return kept

    def prefill(self, reference, ids) -> list[set[int]]:
        """The positions each layer keeps of a prompt [1, tokens], through the dense reference."""
        tokens, layers = ids.shape[1], reference.model.config.num_hidden_layers
        recent = int(self.recent_ratio * tokens) + 1
        weights = [1 + (self.distance_weight - 1) * (i / (recent - 1) if recent > 1 else 0) for i in range(recent)]
        weights = torch.tensor(weights, dtype=torch.float64)
        floor, kept, context = min(self.floor, tokens - recent), [], list(range(tokens - recent))
        newest = list(range(tokens - recent, tokens))
        alive = torch.ones(tokens, dtype=torch.bool)  # as a key, in the layer that runs now

        def watch(layer, attention):
            nonlocal context
            if self.prune == "hidden_states":
                kept.append(set(context + newest))
            score = (weights[:, None] * attention[0, :, tokens - recent :]).mean((0, 1)).tolist()
            if self.prune == "kv":  # sizes compound, but each layer chooses among all positions
                context = self._choose(score, layer, layers, floor, len(context), range(tokens - recent))
                kept.append(set(context + newest))
                return
            context = self._choose(score, layer, layers, floor, len(context), context)
            alive[:] = False
            alive[context + newest] = True

        reference(ids, masks=lambda layer: alive.expand(1, 1, tokens, tokens), watch=watch)
        return kept

    def _choose(self, score, layer, layers, floor, size, candidates):
        """The context that a layer leaves, `size` entries or fewer of the candidates, in order."""
        s = share(self.schedule, self.ratio, layer, layers)
        if layer % self.interval == 0 and s < 1:
            count = int(size * s) if self.select == "count" else self._fewest(score, candidates, s)
            size = count if count > floor else size
        return sorted(self._best(score, size, candidates))

    def _best(self, score, count, candidates):
        ranked = {position: float("inf") if position < self.sinks else score[position] for position in candidates}
        if count < min(self.sinks, len(ranked)):
            raise Tie  # sinks among themselves are equal
        return top(ranked, count)

    def _fewest(self, score, candidates, s):
        """The size of the smallest set, sinks first, whose attention reaches the share."""
        order = sorted(candidates, key=lambda j: (j >= self.sinks, -score[j]))
        total, sum_so_far = sum(score[j] for j in order), 0.0
        for count, j in enumerate(order, 1):
            sum_so_far += score[j]
            if math.isclose(sum_so_far, s * total, rel_tol=1e-9):
                raise Tie
            if sum_so_far >= s * total:
                return count
        return len(order)


@dataclass
class Generation:
    """One layer of one sample while PvC generates: a ring of the last R + 1 head-averaged rows."""

    layer: int
    layers: int
    entries: set[int]  # of the prompt
    start: int  # prompt tokens
    heads: int
    recent_ratio: float = 0.2
    distance_weight: float = 1.2
    block: int = 16
    compress: float = 0.9
    decay: float = 0.1
    rows: list[dict[int, float]] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)  # generated entries that no block has taken yet
    blocks: int = 0

    def step(self, rows, first_layer_entries):
        """Rows is [heads, new rows, tokens so far]; the entries of layer 0 count the new ones."""
        first = rows.shape[2] - rows.shape[1]
        for offset, row in enumerate(rows.mean(0).tolist()):
            self.rows.append(dict(enumerate(row[: first + offset + 1])))
            self.entries.add(first + offset)
            self.fresh.append(first + offset)
        recent = int(self.recent_ratio * first_layer_entries) + 1
        window = sorted(self.entries)[-recent:]  # compressing what lies before it does not move it
        while len(outside := [j for j in self.fresh if j < window[0]]) >= self.block:
            self._compress(outside[: self.block], recent)

    def _compress(self, block, recent):
        last = self.rows[-recent:]
        weights = torch.linspace(1.0, self.distance_weight, recent, dtype=torch.float64).tolist()
        assert len(last) == recent  # the window holds generated tokens only once a block has left it
        score = {j: sum(w * row[j] for w, row in zip(weights, last, strict=True)) / recent for j in block}
        s = share("cosine", self.decay, self.layer, self.layers)
        kept = set(top(score, max(int(self.block * self.compress * s), 1)))
        self.entries -= set(block) - kept
        self.fresh = [j for j in self.fresh if j not in block]
        self.blocks += 1

    @property
    def kept(self):
        """The positions each KV head holds."""
        return [set(self.entries) for _ in range(self.heads)]


# ---------------------------------------------------------------------------------------------- decoding


def decode(reference, ids, fed, chunks, rules, alive=None):
    """Teacher-forced decoding with rules[layer][sample]: kept positions before each chunk, and logits after it.

    Before each chunk every row of the dense reference so far sees what its rules had kept, which gives the chunk's
    attention rows; `alive(layer)` are the positions a pruned prompt has there.
    """
    start, heads = ids.shape[1], len(rules[0][0].kept)
    both = torch.cat((ids, fed), 1)
    total, batch = both.shape[1], len(ids)
    masks = [torch.zeros(batch, heads, total, total, dtype=torch.bool) for _ in rules]
    for layer, mask in enumerate(masks):
        mask[:, :, :start, :start] = True if alive is None else alive(layer)[:, None, None]
    kept, logits, first = [], [], start
    for size in chunks:
        kept.append([[sample.kept for sample in layer] for layer in rules])
        end = first + size
        for mask, layer in zip(masks, kept[-1], strict=True):
            for sample, per_head in enumerate(layer):
                for head, known in enumerate(per_head):
                    mask[sample, head, first:end, list(known)] = True
            mask[:, :, first:end, first:end] = True
        rows = {}
        out = reference(
            both[:, :end],
            masks=lambda layer, end=end: masks[layer][:, :, :end, :end],
            watch=lambda layer, attention, first=first, rows=rows: rows.update({layer: attention[:, :, first:]}),
        )
        logits.append(out[:, -1])
        entries = [len(sample.kept[0]) + size for sample in rules[0]]
        for number, layer in enumerate(rules):
            for sample, rule in enumerate(layer):
                rule.step(rows[number][sample], entries[sample])
        first = end
    return kept, torch.stack(logits, 1)
