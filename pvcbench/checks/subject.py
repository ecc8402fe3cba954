"""What a method is checked on: tiny random models, one prompt, and the cells that it has there."""

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from pvcbench.checks.memory import held_by
from pvcbench.checks.reference import Dense, exact_norms, exact_rotary, widen
from pvcbench.engine import answers
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.passes import Writer
from pvcbench.errors import OutOfReach
from pvcbench.evaluation.preflight import HEAD, QUESTION, settled
from pvcbench.policy import Method, Shape

OWN, SEEDS, WINDOW = 520, 4, 24  # tokens that a seed draws from, none of them another's; how many seeds; a window
LENGTHS, SHARES = (128, 256, 512), (0.1, 0.25, 0.5, 0.75, 0.9)
DRAWS = torch.tensor([5, 70])
SIZES = {
    "vocab_size": 1 + SEEDS * OWN,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 12,
    "tie_word_embeddings": False,
}
GROUPED, MULTI, MIXED = "grouped queries", "a KV head for each query head", "layers of which some slide"
MODELS = {
    GROUPED: (LlamaForCausalLM, LlamaConfig, {}),
    MULTI: (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    MIXED: (Gemma3ForCausalLM, Gemma3TextConfig, SLIDING),
}


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A tiny model, the same in every call; in float64 nothing of it rounds to float32."""
    kind, config, extra = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        model = kind(config(**{**SIZES, **extra})).to(dtype).eval()
        widen(model)
    if dtype == torch.float64:
        exact_norms(model)
    return model


@cache
def plain(name: str) -> nn.Module:
    """The model as transformers runs it."""
    return build(name)


@cache
def dense(name: str, exact_angles: bool) -> Dense:
    """The dense reference of a model."""
    return Dense(build(name), exact_angles)


class Trial(Engine):
    """An engine whose prompts begin with what a chat template writes and end with a question, as far as they reach."""

    def shape(self, tokens: int, head: int = HEAD, question: int = QUESTION) -> Shape:
        head = min(head, tokens)
        return super().shape(tokens, head, min(question, tokens - head))


@cache
def host(name: str, dtype: torch.dtype = torch.float64, exact_angles: bool = False) -> Engine:
    """The engine on a model of its own; `exact_angles` where keys are rotated again, which multiplies rounding up."""
    made = Trial(build(name, dtype), writer=Writer.of_bytes(SIZES["vocab_size"]))
    if exact_angles:
        made.model.model.rotary_emb.forward = exact_rotary(made.model)
    return made


def prompt(tokens: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Random token ids, none twice: the same token twice has the same value in the first layer, but for rounding."""
    generator = torch.Generator().manual_seed(1000 * seed + tokens)
    rows = [torch.randperm(OWN, generator=generator)[:tokens] for _ in range(batch)]
    return torch.stack(rows) + 1 + seed * OWN


@dataclass
class Subject:
    """A method under check; `tokens` is the shortest prompt on which it reaches two budgets, or else one."""

    method: Method
    tokens: int = field(init=False)
    held: dict[str, object] = field(init=False)  # by the method, before it has seen anything

    def __post_init__(self):
        self.held = held_by(self.method)
        reached = {}
        for tokens in LENGTHS:
            self.tokens = tokens
            reached[tokens] = len(self.cells(host(GROUPED)))
        enough = [tokens for tokens in LENGTHS if reached[tokens] >= (2 if self.free else 1)]
        self.tokens = min(enough, default=max(LENGTHS, key=reached.get))

    @property
    def free(self) -> bool:
        """Whether the budget is the user's to choose."""
        return self.method.own_budget is None

    @property
    def batch(self) -> int:
        """Samples that run together."""
        return 1 if self.method.ragged_batch else 2

    @property
    def draws(self) -> torch.Tensor:
        """A number for each sample."""
        return DRAWS[: self.batch]

    @property
    def policies(self) -> list[bool]:
        """Whether it holds, for each decode policy that it supports."""
        return [hold for hold in (False, True) if ("hold" if hold else "grow") in self.method.decodes]

    def ids(self, seed: int = 0, tokens: int | None = None) -> torch.Tensor:
        """The prompt, or other tokens, of each sample."""
        return prompt(self.tokens if tokens is None else tokens, self.batch, seed)

    def cells(self, engine: Engine, hold: bool = False) -> list[Cell]:
        """The cells at the budgets that the method reaches."""
        shape, method = engine.shape(self.tokens), self.method
        if method.reference:
            return [Cell("1.0", method, None, hold, everything=True)]
        if not self.free:
            return [settled(method, 0, shape, hold)]
        found = []
        for share in SHARES:
            budget = int(share * self.tokens)
            first, last = answers.protected(method, budget, shape)
            try:
                found += [settled(method, budget, shape, hold)] if budget >= first + min(last, 1) else []
            except OutOfReach:
                continue
        return found
