"""Sinks and soft caps in every path that attends, against plain softmax in float64 with one more column."""

import sys
from types import ModuleType

import pytest
import torch

import families
from methods.h2o import H2O
from methods.snapkv import SnapKV
from methods.tova import TOVA
from pvcbench.engine.attention import (
    Chunked,
    Rule,
    attention_with_lse,
    observed_attention,
    prompt_attention,
    slot_attention,
    slot_weights,
    visible_slots,
    windowed_attention,
)
from pvcbench.engine.cache import Entries
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.kernels import interface
from pvcbench.engine.kernels.flash import sdpa_with_lse
from pvcbench.engine.slots import Slots
from pvcbench.engine.static_decode import StaticDecoder
from tiny import fork, prompt, teach

# Float64: sums of a hundred terms. Float32: logits up to ten are off by 1e-6, and so is a weight; a column sums up to
# 70 of them. Half precision rounds each product of a row, its output and, where it has a sink, the output once more:
# 2^-9 and 2^-12 of numbers up to 4.
CLOSE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 6e-3, torch.bfloat16: 5e-2}
RULES = [(None, False), (None, True), (2.5, False), (2.5, True)]
ruled = pytest.mark.parametrize(("cap", "sinks"), RULES, ids=["plain", "sinks", "cap", "both"])
dtypes = pytest.mark.parametrize("dtype", list(CLOSE), ids=lambda dtype: str(dtype).removeprefix("torch."))
SHAPES = {"whole": (60, 60, 16), "later": (25, 70, 16), "one": (1, 33, 16), "narrow": (60, 60, 10), "wide": (9, 40, 24)}


def rule_of(cap, sinks, heads, seed=0):
    """A rule whose sinks take from a hundredth to nearly all of a row."""
    learnt = torch.randn(heads, generator=torch.Generator().manual_seed(seed)) * 3 + 2
    return Rule(0.4, cap, learnt if sinks else None)


def tensors(shape, dtype, kv_heads=2, groups=3, dim=16, seed=0):
    """Query, key and value, some logits of them beyond the cap."""
    queries, keys, value_dim = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, kv_heads * groups, queries, dim), (2, kv_heads, keys, dim), (2, kv_heads, keys, value_dim)
    return [torch.randn(one, generator=generator, dtype=torch.float64).to(dtype) for one in shapes]


def weights_of(query, key, rule, allowed=None):
    """Attention weights in float64, written out: a row's exponentials over their sum and the sink's."""
    groups, (queries, keys) = query.shape[1] // key.shape[1], (query.shape[2], key.shape[2])
    logits = query.double() @ key.double().repeat_interleave(groups, 1).mT * rule.scale
    if rule.cap is not None:
        logits = torch.tanh(logits / rule.cap) * rule.cap
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    allowed = causal if allowed is None else allowed.repeat_interleave(query.shape[1] // allowed.shape[1], 1)
    exponentials = logits.exp() * allowed
    total = exponentials.sum(-1, keepdim=True)
    return exponentials / (total if rule.sinks is None else total + rule.sinks.double().exp()[:, None, None])


def mixed(weights, value):
    return weights @ value.double().repeat_interleave(weights.shape[1] // value.shape[1], 1)


def near(found, expected, dtype):
    torch.testing.assert_close(found.double(), expected, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@ruled
@dtypes
@pytest.mark.parametrize("shape", SHAPES)
def test_a_prompt_attends_by_its_rule(shape, dtype, cap, sinks):
    """The output, and where there is an LSE, the one that counts the sink; heads share keys."""
    query, key, value = tensors(shape, dtype)
    rule = rule_of(cap, sinks, 6)
    expected = weights_of(query, key, rule)
    output, lse = attention_with_lse(query, key, value, rule)
    assert output.dtype == dtype
    near(output, mixed(expected, value), dtype)
    assert torch.equal(prompt_attention(query, key, value, rule), output)
    # SDPA knows no cap, nor values wider than keys; a plain rule leaves the LSE to the kernels
    assert (lse is not None) == (cap is None and sinks and shape != "wide")
    if lse is not None:  # the last row of a square sees every key: its weights sum to what the sink leaves
        left = expected.sum(-1).log() + lse.double()
        logits = (query.double() @ key.double().repeat_interleave(3, 1).mT * rule.scale)[:, :, -1]
        near(left[:, :, -1], logits.logsumexp(-1), torch.float32 if dtype != torch.float64 else dtype)


@ruled
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16])
@pytest.mark.parametrize("group", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", ["whole", "later"])
@pytest.mark.sampled(12)
def test_the_kernels_sum_columns_by_the_rule(shape, group, dtype, cap, sinks):
    """Output and mass of the backends; the reduced mass is a sum of the query heads' own."""
    query, key, value = tensors(shape, dtype)
    rows = torch.rand(2, query.shape[2], generator=torch.Generator().manual_seed(1))
    rule = rule_of(cap, sinks, 6)
    weights = weights_of(query, key, rule)
    mass = torch.einsum("wq,bhqk->wbhk", rows.double(), weights)
    grouped = mass.unflatten(2, (2, 3))
    expected = {"none": mass, "sum": grouped.sum(3), "mean": grouped.mean(3)}[group]
    options = {"scale": rule, "group": group}
    found, received = observed_attention(query, key, value, rows, backend="triton", **options)
    near(found, mixed(weights, value), dtype)
    # of half precision, the kernels' products are float32: what is off is the LSE of the library (1e-4 of up to 10)
    near(received, expected, torch.float32 if found.dtype == torch.float32 or cap is not None else torch.float16)
    nothing, alone = observed_attention(query, key, None, rows, backend="triton", **options)
    assert nothing is None
    near(alone, expected, torch.float32)
    output, mass = observed_attention(query, key, value, rows, backend="reference", **options)
    near(output, mixed(weights, value), dtype)
    torch.testing.assert_close(mass, expected, rtol=1e-12, atol=1e-12)


@ruled
@dtypes
@pytest.mark.parametrize("window", [None, 7, Chunked(9)], ids=["all", "sliding", "chunked"])
def test_windows_and_slots_attend_by_the_rule(window, dtype, cap, sinks):
    """Prompt rows in a window or chunk, and rows over slots: output by the rule under the mask, and the mass."""
    query, key, value = tensors("later", dtype)
    rule, positions = rule_of(cap, sinks, 6), torch.arange(70).expand(2, -1)
    rows = positions[:, 45:]
    seen = visible_slots(positions[:, None], rows, window)
    weights = weights_of(query, key, rule, seen)
    expected = mixed(weights, value)
    near(slot_attention(query, key, value, rule, seen), expected, dtype)
    output, own = slot_weights(query, key, value, rule, seen)
    near(output, expected, dtype)
    near(own, weights, dtype)
    if window is not None:
        near(windowed_attention(query, key, value, rule, window, positions, rows=11), expected, dtype)
        mass = weights.sum(2)
        for backend in ("blocked", "triton"):
            given = {"scale": rule, "window": (window, positions), "backend": backend}
            output, received = observed_attention(query, key, value, torch.ones(25), **given)
            near(output, expected, dtype)
            torch.testing.assert_close(received.double(), mass, rtol=CLOSE[dtype], atol=6 * CLOSE[dtype])


def test_a_chunk_begins_where_position_0_does():
    """A row sees its own chunk alone: the test's masks are made by the same function, so it is held to its words."""
    seen = visible_slots(torch.arange(10)[None, None], torch.arange(10)[None], Chunked(4))[0, 0]
    assert seen.int().sum(-1).tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert not seen[4:, :4].any() and not seen[8:, :8].any()


def test_strided_tensors_attend_alike():
    """Heads beside each other in memory, as a model leaves them, and a last dimension that is not contiguous."""
    rule = rule_of(None, True, 6)
    plain = attention_with_lse(*tensors("later", torch.float32), rule)
    for turn in ((1, 2), (2, 3)):
        turned = [one.transpose(*turn).contiguous().transpose(*turn) for one in tensors("later", torch.float32)]
        for found, expected in zip(attention_with_lse(*turned, rule), plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # one order of sums or another


def test_a_sink_far_below_takes_nothing_and_one_far_above_all():
    query, key, value = tensors("whole", torch.float64)
    plain = sdpa_with_lse(query, key, value, 0.4)
    for level, share in ((-1e4, 1.0), (1e4, 0.0)):
        output, lse = attention_with_lse(query, key, value, Rule(0.4, None, torch.full((6,), level)))
        torch.testing.assert_close(output, plain[0] * share, rtol=0, atol=0)
        torch.testing.assert_close(lse, torch.maximum(plain[1], torch.full_like(lse, level)), rtol=0, atol=0)


@pytest.mark.parametrize("sinks", [False, True])
def test_heads_wider_than_the_kernels_hold_run_in_blocks(sinks):
    """Gemma 4's global heads are 512 wide: the same numbers as by blocks, and no kernel decodes them."""
    query, key, value = tensors("later", torch.float32, dim=interface.WIDEST + 8)
    rule, rows = rule_of(None, sinks, 6), torch.ones(25)
    found, expected = (
        observed_attention(query, key, value, rows, scale=rule, backend=backend) for backend in ("triton", "blocked")
    )
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    for width, kernel in ((interface.WIDEST, True), (interface.WIDEST + 8, False)):
        keys, values = torch.zeros(1, 1, 4, width), torch.zeros(1, 1, 4, 8)
        places = torch.arange(4).expand(1, 1, -1).clone(), torch.full((1, 1), 3)
        for stored in ((keys, values), (values, keys)):
            assert Slots.of(Entries(*stored, *places, 3, False), False, 3, True).kernel == kernel


# ------------------------------------------------------------------------------------------------ flash-attn


@pytest.fixture
def calls(monkeypatch):
    """A stand-in of flash-attn (GPU only) with its signature, layout and limits, and what it was asked."""
    asked = []

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                        alibi_slopes=None, deterministic=False, return_attn_probs=False):  # fmt: skip
        assert causal and dropout_p == 0.0 and q.shape[-1] == k.shape[-1] == v.shape[-1]
        assert q.shape[2] % k.shape[2] == 0 and k.shape[1:3] == v.shape[1:3]  # [batch, tokens, heads, dim]
        asked.append(softcap)
        query, key, value = (one.transpose(1, 2) for one in (q, k, v))
        rule = Rule(softmax_scale, softcap or None)
        weights = weights_of(query, key, rule)
        first = (query.double() @ key.double().repeat_interleave(query.shape[1] // key.shape[1], 1).mT)[..., 0]
        first = first * softmax_scale if not softcap else softcap * torch.tanh(first * softmax_scale / softcap)
        lse = (first - weights[..., 0].log()).float()  # every row sees the first key
        output = mixed(weights, value).to(q.dtype).transpose(1, 2)
        return (output, lse, None) if return_attn_probs else output

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return asked


@ruled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", ["whole", "later", "narrow"])
def test_flash_attn_is_asked_for_the_cap_and_sinks_come_by_its_lse(calls, shape, dtype, cap, sinks):
    query, key, value = tensors(shape, dtype)
    rule = rule_of(cap, sinks, 6)
    expected = weights_of(query, key, rule)
    output, lse = attention_with_lse(query, key, value, rule, "flash_attention_2")
    near(output, mixed(expected, value), dtype)
    assert output.shape[-1] == value.shape[-1]
    assert torch.equal(prompt_attention(query, key, value, rule, "flash_attention_2"), output)
    assert calls == [cap or 0.0] * 2
    left = expected[..., 0].log() + lse.double()  # the first key's logit
    logit = (query.double() @ key.double().repeat_interleave(3, 1).mT)[..., 0] * rule.scale
    near(left, logit if cap is None else cap * torch.tanh(logit / cap), torch.float32)


# ------------------------------------------------------------------------------------------------ the engine

NAMES = ["gpt_oss", "mimo_v2_flash", "gemma2", "llama4_text", "deepseek_v3"]


@pytest.fixture(scope="module", params=NAMES)
def hosts(request):
    """A family in float32, by the kernels and by blocks, and in float64 by blocks."""
    made = {"triton": (torch.float32, "triton"), "blocked": (torch.float32, "blocked")}
    made["exact"] = torch.float64, "blocked"
    built = {name: Engine(families.build(request.param, dtype), backend=how) for name, (dtype, how) in made.items()}
    yield built
    for engine in built.values():
        engine.release()


@pytest.mark.parametrize("chunk", [None, 17])
def test_a_prefill_scores_by_every_backend_alike(hosts, chunk):
    """Prompts beyond windows and chunks: the logits and the scores of all layers that evict."""
    ids, methods, runs = prompt(50), [H2O(), SnapKV(window=5)], {}
    for name, engine in hosts.items():
        engine.chunk = chunk
        runs[name] = engine.prefill(ids, methods)
    exact = runs["exact"]
    for name in ("triton", "blocked"):
        spread = exact.logits.max() - exact.logits.min()
        assert (runs[name].logits.double() - exact.logits).abs().max() / spread < 1e-4  # layers of float32
        for method in methods:
            for found, expected in zip(runs[name].observer.scores[method], exact.observer.scores[method], strict=True):
                torch.testing.assert_close(found.double(), expected.double(), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("inference")
@pytest.mark.parametrize("method", [H2O(), TOVA()])
@pytest.mark.sampled(3)
def test_static_steps_by_the_kernel_equal_steps_in_blocks(hosts, method):
    """Under hold, by attention weights: the decoding kernel where it covers a layer, torch where it does not."""
    fed, logits = prompt(8, 2, seed=5), {}
    for name in ("triton", "exact"):
        engine = hosts[name]
        engine.chunk = None
        groups = fork(engine, prompt(40, 2), [Cell("16", method, 16, hold=True)], 9)
        if name == "exact":
            logits[name] = torch.stack(teach(engine, groups, fed, [1] * 8).logits, 1)
            continue
        decoder = StaticDecoder(engine.call, groups, backend="triton")
        by_kernel = [slots.kernel for slots in decoder._every()]
        assert by_kernel == [window is None for window in engine.windows]
        logits[name] = torch.stack([decoder.step(fed[:, step : step + 1]).clone() for step in range(8)], 1)
    spread = logits["exact"].max() - logits["exact"].min()
    assert (logits["triton"].double() - logits["exact"]).abs().max() / spread < 1e-4
