"""PvC's generation as the official code has it (`gen_blocks: official`), against a twin written from that code.

The twin keeps what the code keeps: a layer's cache, the head-averaged attention of its last 1 + R rows, and the cached
length that was last accounted for. The prompt's own rows are NaN in it, so a test fails if any score reads them.
"""

from dataclasses import dataclass, field, replace

import pytest
import torch

import naive
from kept_sets import kept_sets
from methods.pvc import PvC
from pvcbench.engine.evict import Cell
from pvcbench.policy import UserError
from tiny import configured, dense, engine, fork, prompt, teach

pytestmark = pytest.mark.usefixtures("inference")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64, see test_engine.py


@dataclass
class Official:
    """One layer of one sample: modeling_llama_pyramidinfer.py's generation stage, by the layer's cached length."""

    layer: int
    layers: int
    cache: list[int]  # positions
    heads: int
    ratio: float
    weight: float
    exceed: int = 16
    compress: float = 0.9
    decay: float = 0.1
    past: int = 0
    recent: torch.Tensor | None = None
    fired: list[tuple[int, list[int]]] = field(default_factory=list)  # tokens seen, positions of the block

    def __post_init__(self):
        self.past = len(self.cache)
        self.recent = torch.full((1 + int(self.ratio * (max(self.cache) + 1)), self.past), torch.nan).double()

    def step(self, rows, first_layer_entries):
        """Rows is [heads, 1, tokens so far]; the entries of layer 0 count the new one, as the code's R does."""
        recent_length = int(first_layer_entries * self.ratio)
        self.cache.append(rows.shape[2] - 1)
        now = rows.mean(0)[:, self.cache]
        attention = torch.cat((torch.nn.functional.pad(self.recent, (0, 1)), now))
        if len(self.cache) - recent_length - self.past >= self.exceed:
            attention = self._compress(attention, recent_length)
            self.past = len(self.cache) - recent_length
        self.recent = attention[-(1 + recent_length) :]

    def _compress(self, attention, recent_length):
        first, last = len(self.cache) - (1 + recent_length + self.exceed), len(self.cache) - (1 + recent_length)
        block = attention[-(1 + recent_length) :, first:last]
        block *= torch.linspace(1.0, self.weight, 1 + recent_length).double()[:, None]
        share = naive.share("cosine", self.decay, self.layer, self.layers)
        count = max(int(self.exceed * self.compress * share), 1)
        kept = naive.top(dict(enumerate(block.mean(0).tolist())), count)
        self.fired.append((self.cache[-1] + 1, self.cache[first:last]))
        columns = [*range(first), *sorted(first + j for j in kept), *range(last, len(self.cache))]
        self.cache = [self.cache[j] for j in columns]
        return attention[:, columns]

    @property
    def kept(self):
        """The positions each KV head holds."""
        return [set(self.cache) for _ in range(self.heads)]


def official_rules(method, groups, layers):
    """A twin for each layer and sample of a group that was just forked."""
    heads = groups[0].prefill.layers[0].keys.shape[1]
    start = [[sorted(sample[0]) for sample in kept_sets(groups[0], layer)] for layer in range(layers)]
    return [
        [Official(layer, layers, list(own), heads, method.recent_ratio, method.distance_weight) for own in start[layer]]
        for layer in range(layers)
    ]


def held(family, method, tokens, steps):
    """Groups that hold, after a prompt of two samples, the tokens they are fed, and the prompt."""
    ids, fed = prompt(tokens, 2, seed=31), prompt(steps, 2, seed=32)
    return fork(engine(family), ids, [Cell("x", method, None, hold=True)], steps), ids, fed


SETTINGS = {
    "published": ({}, 50, 72),
    "wide": ({"recent_ratio": 0.45}, 50, 72),
    "narrow": ({"recent_ratio": 0.02}, 50, 50),
    "weights": ({"distance_weight": 3.0}, 50, 72),
    "n200": ({}, 200, 90),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.sampled(4)
def test_official_blocks_equal_the_official_code(family, setting):
    """Entries held before every step, and the logits, equal the twin's, over several blocks."""
    options, tokens, steps = SETTINGS[setting]
    method = PvC(solve=False, prefill_decay_ratio=0.5, min_context_length=6, gen_blocks="official", **options)
    groups, ids, fed = held(family, method, tokens, steps)
    rules, layers = official_rules(method, groups, 4), groups[0].prefill.layers

    def alive(layer):
        return torch.zeros(2, tokens, dtype=torch.bool).scatter_(1, layers[layer].positions, True)

    kept, logits = naive.decode(dense(family), ids, fed, [1] * steps, rules, alive)
    trace = teach(engine(family), groups, fed, [1] * steps)
    for number, (expected, (_, _, step)) in enumerate(zip(kept, trace.kept[0], strict=True)):
        for layer in range(4):
            assert kept_sets(None, layer, step) == expected[layer], (number, layer)
    torch.testing.assert_close(torch.stack(trace.logits, 1), logits, **CLOSE)
    for rule in (rule for layer in rules for rule in layer):
        first = rule.fired[0]
        assert first[1] == list(range(tokens - 1, tokens + 15))  # the prompt's last token and 15 generated ones
        assert all(after[1][0] == before[1][-1] + 1 for before, after in zip(rule.fired, rule.fired[1:], strict=False))
    assert len(rules[0][0].fired) >= 2 or setting in ("wide", "n200")


@pytest.mark.parametrize("blocks, first_shrunk", [("official", 69), ("generated", 71)])
def test_when_the_first_block_goes(blocks, first_shrunk):
    """At n = 200 the official code fires two tokens before the text's rule, in every layer; until then both are one."""
    method = PvC(solve=False, prefill_decay_ratio=0.5, min_context_length=6, gen_blocks=blocks)
    groups, _, fed = held("llama", method, 200, 76)
    trace = teach(engine("llama"), groups, fed, [1] * 76)
    sizes = [[step[layer].shape[2] for _, _, step in trace.kept[0]] for layer in range(4)]
    for own in sizes:
        fired = [number for number in range(1, 76) if own[number] <= own[number - 1]]
        assert fired[0] == first_shrunk
    kept = kept_sets(groups[0], 3)
    prompts = [{place for place in heads if place < 200} for sample in kept for heads in sample]
    start = groups[0].prefill.layers[3].positions
    assert all(len(own) == start.shape[1] for own in prompts) or blocks == "official"


def test_the_logits_of_both_differ_once_a_block_went():
    """Equal until the first block goes, and not afterwards: the name says what a number is of."""
    logits = []
    for blocks in ("official", "generated"):
        method = PvC(solve=False, prefill_decay_ratio=0.5, min_context_length=6, gen_blocks=blocks)
        groups, _, fed = held("llama", method, 200, 80)
        logits.append(torch.stack(teach(engine("llama"), groups, fed, [1] * 80).logits, 1))
    gaps = (logits[0] - logits[1]).abs().amax((0, 2))
    assert float(gaps[:69].max()) < 1e-9 and float(gaps[69:].min()) > 1e-3


def test_the_named_setting_and_the_default():
    """`pvc` is the text's rule; `pvc_official_generation` differs in nothing else; other words are refused."""
    methods = configured()
    assert methods["pvc"].gen_blocks == "generated"
    assert methods["pvc_official_generation"] == replace(methods["pvc"], gen_blocks="official")
    with pytest.raises(UserError, match="gen_blocks must be one of generated, official"):
        PvC(gen_blocks="prompt")
