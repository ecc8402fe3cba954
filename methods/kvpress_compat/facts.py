"""What a press needs and whether it can run here, found on a small layer of random weights before a model is loaded."""

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from methods.kvpress_compat import installed, made
from methods.kvpress_compat.layer import Layer, kept, scores
from pvcbench.policy import UserError

HEADS, KV_HEADS, DIM = 4, 2, 8
SHORT, LONG = 512, 4096  # tokens of a trial; the longer one for presses whose window the shorter does not hold
TRIED = 1024  # tokens of prompts up to which a press is tried at their length before it meets them
LAYERS = 2
FORWARDS = {"press", "presses", "post_init_from_model"}  # names in a set-up that only hands a model on
OUTCOMES = (AssertionError, ValueError, RuntimeError, IndexError, TypeError, AttributeError, KeyError, ArithmeticError)


@dataclass(frozen=True)
class Facts:
    """How a press is run, and what it needs for that."""

    by_scores: bool  # it ranks entries and leaves the choice to ScorerPress; else its own hook chooses
    attends: bool  # it reads the attention weights of all rows
    own_size: bool  # its options fix how much it keeps, and no budget is asked for
    prepares: bool  # it reads the model before it runs


@cache
def of(name: str, options: tuple) -> Facts:
    """The facts of a press; raises UserError with the reason where it cannot be measured here."""
    press = made.press(name, options)
    base, scorer = installed.load("BasePress"), installed.load("ScorerPress")
    if not isinstance(press, base):
        raise UserError(f"{name} is no press: its class must derive from kvpress.BasePress")
    parts = list(made.inside(press))
    alone = [type(one).__name__ for one in parts if type(one).__call__ is not base.__call__]
    if alone:
        raise UserError(
            f"{alone[0]} runs the model itself (it replaces __call__: passes of its own, or eviction while decoding), "
            "and a press can only be asked about a layer of the shared prefill here"
        )
    kind = type(press)
    plain = kind.forward_hook is base.forward_hook
    by_scores = isinstance(press, scorer) and plain and kind.compress is scorer.compress
    if not by_scores and plain and kind.compress is base.compress:
        raise UserError(f"{name} neither scores nor compresses: it defines no score() and no compress()")
    prepares = any(_reads_model(type(one), base) for one in parts)
    if prepares:
        return Facts(by_scores, False, not _takes_ratio(press), True)
    tokens, attends = _needs(name, options, by_scores)
    sized = not by_scores and _own_size(name, options, tokens, attends)
    return Facts(by_scores, attends, sized, False)


def _reads_model(kind: type, base: type) -> bool:
    """Whether the set-up of a press does more than to hand the model on to a press inside it."""
    own = kind.post_init_from_model
    return own is not base.post_init_from_model and not set(own.__code__.co_names) <= FORWARDS


def _takes_ratio(press) -> bool:
    """Whether a press can be told how much to drop."""
    try:
        press.compression_ratio = 0.5
    except AttributeError:
        return False
    return True


def _needs(name: str, options: tuple, by_scores: bool) -> tuple[int, bool]:
    """The length of prompt at which a press runs, and whether it does so with attention weights only."""
    failed = []
    for tokens, attends in ((SHORT, False), (LONG, False), (SHORT, True)):
        error = tried(name, options, 0.5, tokens, LAYERS, by_scores, attends)
        if error is None:
            return tokens, attends
        failed.append(error)
    raise UserError(f"{name} fails on a prompt of {LONG:,} tokens: {failed[1]}")


def _own_size(name: str, options: tuple, tokens: int, attends: bool) -> bool:
    """Whether a press keeps as much at one compression ratio as at another."""
    sizes = []
    for ratio in (0.25, 0.75):
        press = made.press(name, options)
        if not set_ratio(press, ratio):
            return True
        sizes.append(int(kept(press, stand_in(tokens, LAYERS, 0, attends)).sum()))
    return sizes[0] == sizes[1]


def set_ratio(press, ratio: float | None) -> bool:
    """Tells a press how much to drop, if it can be told."""
    if ratio is None:
        return True
    try:
        press.compression_ratio = ratio
    except AttributeError:
        return False
    return True


@cache
def tried(
    name: str, options: tuple, ratio: float | None, tokens: int, layers: int, by_scores: bool, attends: bool
) -> str | None:
    """What a press says against a prompt of so many tokens, asked about the first and the last layer; None: nothing."""
    press = made.press(name, options)
    set_ratio(press, ratio)
    try:
        for number in (0, layers - 1):
            layer = stand_in(tokens, layers, number, attends)
            found = scores(press, layer) if by_scores else kept(press, layer)
            if found.shape != (1, KV_HEADS, tokens):
                return f"its scores have the shape {list(found.shape)}, and one number for each entry is wanted"
    except OUTCOMES as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


class StandIn(nn.Module):
    """An attention module such as presses know from transformers, small, with random weights."""

    def __init__(self, layers: int, number: int):
        super().__init__()
        width = HEADS * DIM
        self.config = SimpleNamespace(
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=DIM,
            hidden_size=width,
            num_hidden_layers=layers,
            name_or_path="",
            _attn_implementation="sdpa",
        )
        self.layer_idx, self.head_dim = number, DIM
        self.num_key_value_groups, self.num_key_value_heads = HEADS // KV_HEADS, KV_HEADS
        self.scaling, self.is_sliding = DIM**-0.5, False
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(width, KV_HEADS * DIM, bias=False) for _ in range(2))


class Rotary(nn.Module):
    """Rotary embedding as transformers' Llama has it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, DIM, 2).float() / DIM), persistent=False)
        self.attention_scaling = 1.0

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None].float() * self.inv_freq).repeat(1, 1, 2)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def stand_in(tokens: int, layers: int, number: int, attends: bool) -> Layer:
    """A layer of random hidden states."""
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(number)
        module, rotary = StandIn(layers, number), Rotary()
        hidden = torch.randn(1, tokens, HEADS * DIM)
        keys, values = (
            project(hidden).view(1, tokens, KV_HEADS, DIM).transpose(1, 2) for project in (module.k_proj, module.v_proj)
        )
        cos, sin = rotary(hidden, torch.arange(tokens)[None])
        first, second = keys.chunk(2, -1)
        keys = keys * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]
        weights = None
        if attends:
            weights = torch.rand(1, HEADS, tokens, tokens).tril()
            weights = weights / weights.sum(-1, keepdim=True)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    return Layer(module, hidden, keys, values.contiguous(), (cos, sin), rotary, weights)
