"""The steps of any kind of decoder: logits of each, and what is kept after it."""

import torch

from tiny import engine, fork, prompt

DRAWS = torch.tensor([5, 70])
TOKENS, STEPS = 60, 24


def decoded(kind, family, cells, fed):
    """Logits of every step, kept positions after each as sorted sets, and the groups, by one kind of decoder."""
    host, ids = engine(family), prompt(TOKENS, 2)
    groups = fork(host, ids, cells, STEPS, DRAWS)
    decoder = kind(host.call, groups)
    logits, kept = [], []
    for number in range(STEPS):
        logits.append(decoder.step(fed[:, number : number + 1].repeat(len(cells), 1)).clone())
        kept.append([sorted_positions(group) for group in groups])
    return torch.stack(logits, 1), kept, groups, decoder


def sorted_positions(group):
    """The positions that every head of every layer holds, empty slots left out."""
    return [
        [head[head >= 0].sort().values.tolist() for row in entries.positions for head in row]
        for entries in group.layers
    ]
