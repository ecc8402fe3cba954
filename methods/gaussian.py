"""Gaussian matrices by which methods make keys and values narrower: drawn for each sample and layer, alike anywhere."""

from methods.random import scramble
from pvcbench.policy import torch


def gaussian(seen, *size):
    """Standard normal numbers, [batch, *size], that depend on the run's seed, the sample and the layer only."""
    seeds = scramble(scramble(seen.draws.cpu()) + seen.layer)
    drawn = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return torch.stack(drawn).to(seen.keys.device)
