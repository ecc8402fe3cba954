"""How much each value can write into the hidden states: the length of what the output projection makes of it."""

from pvcbench.policy import torch


def written(seen, block=1024):
    """L1 norms of values through each query head's output projection, mean over a group: [batch, kv_heads, entries].

    Taken of so many entries at a time, since what a value writes is as wide as the hidden states.
    """
    kv_heads, found = seen.values.shape[1], []
    wide = torch.promote_types(seen.values.dtype, torch.float32)
    matrices = seen.output().to(device=seen.values.device, dtype=wide)
    for head, matrix in enumerate(matrices):
        parts = seen.values[:, head * kv_heads // len(matrices)].split(block, 1)
        found.append(torch.cat([(part.to(wide) @ matrix).abs().sum(-1) for part in parts], 1))
    return torch.stack(found, 1).unflatten(1, (kv_heads, -1)).mean(2)
