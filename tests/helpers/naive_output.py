"""Methods that look at values as the layer writes them, or at hidden states, once more, from their descriptions.

As in naive_published: lists and loops in float64; the earlier of two equal scores comes first, and scores that differ
by rounding alone raise Tie.
"""

import math

import torch

from naive import Tie
from naive_scores import best, pooled
from tiny import unmodified


def matrices(family: str) -> list[torch.Tensor]:
    """The output projection of each layer by query head, [heads, dim, hidden]."""
    found = []
    for layer in unmodified(family).model.layers:
        weight, heads = layer.self_attn.o_proj.weight, layer.self_attn.config.num_attention_heads
        dim = weight.shape[1] // heads
        found.append(torch.stack([weight[:, head * dim : (head + 1) * dim].T for head in range(heads)]))
    return found


def attention_inputs(family: str, ids: torch.Tensor) -> list[torch.Tensor]:
    """What comes out of the norm before each layer's attention, [batch, tokens, hidden]."""
    model, found = unmodified(family), []
    norms = [layer.input_layernorm for layer in model.model.layers]
    hooks = [norm.register_forward_hook(lambda _, __, out: found.append(out)) for norm in norms]
    try:
        model(ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def written(values: torch.Tensor, outputs: torch.Tensor) -> list[list[float]]:
    """Mean over a group of the L1 norm of v W; values of one sample, [kv_heads, tokens, dim], for each KV head."""
    group, found = len(outputs) // len(values), []
    for head, own in enumerate(values):
        norms = [(own @ outputs[head * group + one]).abs().sum(-1).tolist() for one in range(group)]
        found.append([math.fsum(column) / group for column in zip(*norms, strict=True)])
    return found


def critical(scores: dict[int, float], norms: list[float], stay: set[int], budget: int, quota: str) -> set[int]:
    """Half of the budget by the scores, the rest by (score + 1e-4) times the norm, beside what stays anyway."""
    free = budget - len(stay)
    first = int(0.5 * free) if quota == "unprotected" else max(0, int(0.5 * budget) - len(stay))
    early = best(scores, first)
    rest = {j: (score + 1e-4) * norms[j] for j, score in scores.items() if j not in early}
    return stay | early | best(rest, free - len(early))


def reaching(shares: list[float], mass: float, most: int) -> set[int]:
    """The places of the largest shares before the one at which their sum reaches the mass, at most so many."""
    order, total, found = sorted(range(len(shares)), key=lambda j: (-shares[j], j)), 0.0, []
    for j in order:
        total += shares[j]
        if abs(total - mass) < 1e-12:
            raise Tie
        if total >= mass:
            return best(dict(enumerate(shares)), min(len(found), most))
        found.append(j)
    return set()


def defensive(
    attention: torch.Tensor, norms: list[list[float]], window: int, kernel: int, most: int, bias: str
) -> list[dict[int, float]]:
    """Scores of the tokens before the window for each KV head of one layer; attention is [heads, rows, keys]."""
    heads, tokens, kv_heads = len(attention), attention.shape[-1], len(norms)
    older, group = tokens - window, heads // len(norms)
    rows = [head[tokens - window :] for head in attention.tolist()]
    seen = range(max(0, older - window), older) if bias == "code" else range(older, tokens)
    missing = math.fsum(row[j] for head in rows for row in head for j in seen) / heads / window
    found, sure = [], []
    for head in range(kv_heads):
        own = [row[:older] for one in rows[head * group : (head + 1) * group] for row in one]
        near = []
        for row in own:
            averaged = pooled(row, kernel, "average")
            near.append([x * math.fsum(row) / math.fsum(averaged) for x in averaged])
        worst = [max(column) for column in zip(*near, strict=True)]
        mean = math.fsum(worst) / older
        shares = [norms[head][j] / math.fsum(one[j] for one in norms) for j in range(older)]
        found.append({j: max(worst[j], mean) * shares[j] for j in range(older)})
        even = [math.fsum(column) / len(own) for column in zip(*own, strict=True)]
        sure.append(reaching([x / math.fsum(even) for x in even], 0.9 - missing, most))
    top = max(score for own in found for score in own.values())
    pairs = zip(found, sure, strict=True)
    return [{j: top if j in first else score for j, score in own.items()} for own, first in pairs]


def together(scores: list[dict[int, float]], total: int) -> list[set[int]]:
    """The best of all heads in one pool, as the sets of each."""
    pool = {(head, j): score for head, own in enumerate(scores) for j, score in own.items()}
    chosen = best(pool, total)
    return [{j for head, j in chosen if head == one} for one in range(len(scores))]


def kvzap(weights: dict, layer: int, hidden: torch.Tensor) -> list[list[float]]:
    """For each KV head the predicted logarithm of each token's score; hidden is [tokens, width]."""
    if f"layers.{layer}.weight" in weights:
        matrix, offset = weights[f"layers.{layer}.weight"], weights[f"layers.{layer}.bias"]
        return [[float(matrix[g] @ x + offset[g]) for x in hidden] for g in range(len(offset))]
    inner, start = weights[f"layers.{layer}.0.weight"], weights[f"layers.{layer}.0.bias"]
    outer, offset = weights[f"layers.{layer}.2.weight"], weights[f"layers.{layer}.2.bias"]
    found = []
    for x in hidden:
        middle = [0.5 * y * (1 + math.erf(y / math.sqrt(2))) for y in (inner @ x + start).tolist()]
        found.append([math.fsum(w * y for w, y in zip(outer[g].tolist(), middle, strict=True)) + float(offset[g])
                      for g in range(len(offset))])  # fmt: skip
    return [list(column) for column in zip(*found, strict=True)]


def rms(vector: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A vector over the root of its mean square, times weights."""
    return weight * vector / math.sqrt(float((vector * vector).mean()) + 1e-6)


def fast_kvzip(gate: dict, hidden: torch.Tensor) -> list[list[float]]:
    """For each KV head each token's score: 1 / (1 + sum over c of exp(c q / 4 - k q / 4 - b)), mean over a group."""
    kv_heads, _, _, width = gate["k_base"].shape
    group = len(gate["q_proj.weight"]) // kv_heads // width
    found = []
    for g in range(kv_heads):
        own = []
        for x in hidden:
            key = rms((gate["k_proj.weight"] @ x)[g * width : (g + 1) * width], gate["k_norm.weight"])
            total = 0.0
            for one in range(group):
                start = (g * group + one) * width
                query = (gate["q_proj.weight"] @ x + gate["q_proj.bias"])[start : start + width]
                query = rms(query, gate["q_norm.weight"])
                own_logit = float(key @ query) / math.sqrt(width) + float(gate["b"][g, 0, one])
                others = (gate["k_base"][g, 0] @ query / math.sqrt(width)).tolist()
                total += 1 / (1 + math.fsum(math.exp(other - own_logit) for other in others)) / group
            own.append(total)
        found.append(own)
    return found
