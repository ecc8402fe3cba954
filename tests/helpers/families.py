"""The tiny model of every architecture of the installed transformers, for tests: see `architectures/families.py`.

`built(name)` and `hosted(name)` are cached: a model as transformers runs it, and the engine on a model of its own.
"""

from functools import cache

import torch
from torch import nn

from pvcbench.architectures.families import (
    RECIPES,
    VOCABULARY,
    WINDOW,
    build,
    config,
    every,
    names,
    prompt,
    settings,
    unrounded,
)
from pvcbench.engine.engine import Engine

__all__ = [
    "RECIPES",
    "REPRESENTATIVE",
    "VOCABULARY",
    "WINDOW",
    "build",
    "built",
    "config",
    "every",
    "hosted",
    "names",
    "prompt",
    "settings",
    "unrounded",
]
# one of each kind: plain, windows and sinks, soft caps, latents, recurrent states, a shared cache, chunks
REPRESENTATIVE = ("olmo2", "gpt_oss", "gemma2", "deepseek_v3", "qwen3_5_text", "lfm2", "gemma4_text", "llama4_text")


@cache
def built(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A family's tiny model as transformers runs it."""
    return build(name, dtype)


@cache
def hosted(name: str, dtype: torch.dtype = torch.float64, chunk: int | None = None) -> Engine:
    """The engine on a model of its own."""
    return Engine(build(name, dtype), chunk=chunk)
