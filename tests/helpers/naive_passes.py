"""KVzip and Finch once more, from their descriptions, beside the dense model: each pass is a whole sequence of its own.

Attention is the dense one over all keys, so a softmax among few keys is its weights on these, divided by their sum.
"""

import math

from naive import Tie
from naive_scores import best


def kvzip_passes(ids, head, chunk, quoted, request, later, after):
    """What is read on top of a prompt, as (tokens, first, last): lists of one sample; texts are lists of tokens."""
    pieces = [ids[start : start + chunk] for start in range(head, len(ids), chunk)]
    found, first = [], head
    for number, piece in enumerate(pieces):
        asked = later + pieces[number - 1][-quoted:] if number else request
        found.append((asked + after + piece, first, first + len(piece)))
        first += len(piece)
    return found


def repeated(attention, kv_heads, tokens, first, last, sinks):
    """The highest weights of a pass's rows on the entries first..last-1, for each KV head as a dictionary.

    Attention is a layer's, [heads, rows, keys], of prompt and pass together.
    """
    among = [*range(sinks), *range(first, last), *range(tokens, attention.shape[-1])]
    weights = attention[:, tokens:, among]
    weights = (weights / weights.sum(-1, keepdim=True))[..., sinks : sinks + last - first]
    highest = weights.unflatten(0, (kv_heads, -1)).amax((1, 2))
    return [dict(zip(range(first, last), head.tolist(), strict=True)) for head in highest]


def of_all(scores, total):
    """The best entries of several heads in one ranking, a set for each; of equals the earlier head and entry stays."""
    ranked = sorted((-worth, head, j) for head, own in enumerate(scores) for j, worth in own.items())
    cut = ranked[total - 1 : total + 1] if 0 < total < len(ranked) else []
    if cut and cut[0][0] != cut[1][0] and math.isclose(cut[0][0], cut[1][0], rel_tol=1e-9, abs_tol=1e-12):
        raise Tie
    return [{j for _, head, j in ranked[:total] if head == one} for one in range(len(scores))]


def kvzip(level, layers, budget, tokens, first):
    """What each head of each layer keeps: `layers` are scores of the entries from `first` on, by layer and head."""
    stay, each = set(range(first)), min(budget, tokens) - first
    if level == "uniform":
        kept = [[best(own, each) for own in heads] for heads in layers]
    elif level == "layer":
        kept = [of_all(heads, len(heads) * each) for heads in layers]
    else:
        every = [own for heads in layers for own in heads]
        total = len(every) * each
        if level == "pair":
            flat = of_all(every, total)
        else:
            flat = [set() for _ in every]
            for number in sorted(range(len(every)), key=lambda one: (-max(every[one].values()), one)):
                flat[number] = best(every[number], min(total, len(every[number])))
                total -= len(flat[number])
        kept = [[flat.pop(0) for _ in heads] for heads in layers]
    return [[stay | own for own in heads] for heads in kept]


def finch(attention, kv_heads, question):
    """Scores of the entries before the question, by KV head: each row's attention times the keys that it sees."""
    tokens, group, found = attention.shape[-1], len(attention) // kv_heads, []
    for head in range(kv_heads):
        rows = [
            (i, attention[q, i])
            for q in range(head * group, (head + 1) * group)
            for i in range(tokens - question, tokens)
        ]
        found.append(
            {j: math.fsum((i + 1) * float(row[j]) for i, row in rows) / group for j in range(tokens - question)}
        )
    return found
