"""The Triton kernels in Triton's interpreter (on a GPU where there is one) against softmax in float64."""

import math
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from methods.h2o import H2O
from methods.pvc import PvC
from pvcbench.engine.attention import attention_mass, attention_with_lse, observed_attention, prompt_attention
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.kernels.interface import available, column_mass, require, row_lse, slot_decode
from pvcbench.errors import UserError
from pvcbench.policy import Method
from tiny import build, largest, prompt

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Inputs are rounded before both sides see them, and products and sums are float32: a logit of up to 10 is off by
# 1e-6, and so is a weight; a column sums up to 150 of them.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# Outputs are rounded to the dtype (8, 11 and 24 bits), and weights before they meet the values.
ROUNDED = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-5}


def tensors(seed, batch, kv_heads, groups, queries, keys, dim, dtype=torch.float32, value_dim=None):
    """Random query, key and value, some logits of them large."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, kv_heads * groups, queries, dim),
        (batch, kv_heads, keys, dim),
        (batch, kv_heads, keys, value_dim or dim),
    )
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(DEVICE, dtype) for tensor in made]


def logits_of(query, key, scale):
    """Causal logits in float64, for query heads."""
    groups, (queries, keys) = query.shape[1] // key.shape[1], (query.shape[2], key.shape[2])
    logits = query.double() @ key.double().repeat_interleave(groups, 1).mT * scale
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return logits.masked_fill(~allowed, float("-inf"))


def mass_of(query, key, weights, scale):
    return torch.einsum("wq,bhqk->wbhk", weights.double(), logits_of(query, key, scale).softmax(-1))


def check(query, key, weights, scale, group="none", tiles=None, close=CLOSE):
    """The kernels' LSE and mass equal float64's; returns the mass."""
    found = row_lse(query, key, scale, tiles)
    expected = logits_of(query, key, scale).logsumexp(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, **close)
    mass = column_mass(query, key, weights, found, scale, group, tiles)
    whole = mass_of(query, key, weights, scale)
    grouped = whole.unflatten(2, (key.shape[1], -1))
    reduced = {"none": whole, "sum": grouped.sum(3), "mean": grouped.mean(3)}[group]
    assert mass.dtype == torch.float32
    torch.testing.assert_close(mass.double(), reduced, **close)
    return mass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [12, 64, 80, 96, 128, 256])
def test_every_head_size_and_dtype(dim, dtype):
    """Sizes that are no power of two are padded, bfloat16 and float16 are summed in float32."""
    query, key, _ = tensors(dim, 1, 1, 2, 70, 83, dim, dtype)
    weights = torch.rand(1, 70, generator=torch.Generator().manual_seed(dim)).to(DEVICE)
    check(query, key, weights, dim**-0.5)


@pytest.mark.parametrize(
    ("batch", "kv_heads", "groups", "queries", "keys"),
    [
        (1, 1, 1, 1, 1),
        (1, 1, 1, 1, 64),
        (2, 2, 3, 1, 65),  # one row
        (1, 1, 8, 5, 130),
        (2, 1, 2, 64, 64),  # whole tiles
        (1, 2, 1, 65, 65),
        (1, 1, 2, 150, 150),
        (1, 1, 1, 63, 191),  # the diagonal crosses tiles anywhere
        (1, 1, 1, 127, 128),
        (1, 1, 1, 33, 64),
        (1, 1, 1, 66, 128),  # one row of a tile misses one key of a block
    ],
)
@pytest.mark.parametrize("group", ["none", "sum", "mean"])
def test_every_shape(batch, kv_heads, groups, queries, keys, group):
    """Odd sizes, one row, offsets, groups of heads reduced or not."""
    if group != "none" and groups == 1 and batch * kv_heads > 1:
        pytest.skip("nothing to reduce")
    query, key, _ = tensors(keys, batch, kv_heads, groups, queries, keys, 16)
    weights = torch.rand(1, queries, generator=torch.Generator().manual_seed(keys)).to(DEVICE) + 0.1
    check(query, key, weights, 0.4, group)


@pytest.mark.parametrize("tiles", [(16, 32, 4, 1), (32, 16, 4, 1), (64, 16, 4, 2), (16, 16, 4, 1)])
def test_tiles_of_any_shape_agree(tiles):
    """Tiles wider than high and higher than wide meet the diagonal differently."""
    query, key, _ = tensors(3, 1, 1, 2, 45, 77, 16)
    weights = torch.rand(1, 45, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    check(query, key, weights, 0.4, tiles=tiles)


def test_sets_of_weights_with_zeros():
    """Rows without weight give nothing, at the ends and between; a set of zeros and negative weights are allowed."""
    query, key, _ = tensors(5, 1, 2, 2, 100, 120, 16)
    weights = torch.rand(5, 100, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    weights[0, :93] = 0  # a window of last rows
    weights[1, 20:] = 0
    weights[2, 1::2] = 0
    weights[3] = 0
    weights[4] -= 0.5
    mass = check(query, key, weights, 0.4)
    assert not mass[3].any()
    assert not mass[1, ..., 40:].any()  # the first 20 rows see 40 keys
    assert torch.equal(mass[0], column_mass(query, key, weights[:1], row_lse(query, key, 0.4), 0.4)[0])


def test_strides_do_not_matter():
    """Heads beside each other in memory, as a model leaves them, a slice of rows, and an LSE of more rows."""
    query, key, _ = tensors(6, 2, 2, 2, 90, 90, 16)
    weights = torch.rand(1, 40, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    lse = row_lse(query, key, 0.4)
    plain = column_mass(query[:, :, 50:].contiguous(), key, weights, lse[..., 50:].contiguous(), 0.4)
    turned = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key)]
    assert torch.equal(plain, column_mass(turned[0][:, :, 50:], turned[1], weights, lse[..., 50:], 0.4))
    spread = [tensor.mT.contiguous().mT for tensor in (query, key)]  # the last dimension not contiguous
    assert torch.equal(plain, column_mass(spread[0][:, :, 50:], spread[1], weights, lse[..., 50:], 0.4))


def test_the_lse_given_is_the_one_used():
    """Another LSE scales each row's weights by its difference."""
    query, key, _ = tensors(7, 1, 1, 2, 30, 40, 16)
    weights = torch.rand(1, 30, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    lse = row_lse(query, key, 0.4)
    doubled = column_mass(query, key, weights, lse - math.log(2), 0.4)
    torch.testing.assert_close(doubled, 2 * column_mass(query, key, weights, lse, 0.4), rtol=1e-5, atol=1e-6)


def test_large_logits_neither_overflow_nor_vanish():
    """Logits of a thousand: weights of 0 and 1, none of them infinite, masked ones included."""
    query, key, _ = tensors(8, 1, 1, 1, 80, 80, 16)
    loose = {"rtol": 1e-3, "atol": 1e-3}  # float32 is off by 1e-4 at 2000, and a weight by that factor
    check(query * 20, key * 20, torch.ones(1, 80, device=DEVICE), 0.25, close=loose)


def test_runs_are_bit_equal():
    """No sum depends on which program comes first."""
    query, key, value = tensors(9, 1, 2, 2, 100, 130, 64, torch.bfloat16)
    weights = torch.rand(2, 100, generator=torch.Generator().manual_seed(9)).to(DEVICE)
    lengths = torch.tensor([[77, 130]], device=DEVICE)

    def run():
        lse = row_lse(query, key, 0.1)
        mass = column_mass(query, key, weights, lse, 0.1, "sum")
        return lse, mass, *slot_decode(query[:, :, -1:], key, value, lengths, 0.1, weights=True)

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


def test_memory_is_linear():
    """The largest tensor of the observing pass doubles when the context does."""

    def run(tokens, backend):
        query, key, value = tensors(0, 1, 1, 1, tokens, tokens, 16)
        weights = torch.ones(tokens, device=DEVICE)
        return largest(lambda: observed_attention(query, key, value, weights, backend=backend))

    assert run(400, "triton") / run(200, "triton") <= 2
    assert run(400, "reference") / run(200, "reference") > 3.5  # the measure does see a matrix


@pytest.mark.parametrize("group", ["none", "sum", "mean"])
def test_the_backends_agree(group):
    """Output and mass of observed_attention, with the reduction that the other backends take afterwards."""
    query, key, value = tensors(11, 2, 1, 3, 40, 66, 16, value_dim=20)
    weights = torch.rand(2, 40, generator=torch.Generator().manual_seed(11)).to(DEVICE)
    results = [
        observed_attention(query, key, value, weights, scale=0.4, backend=backend, group=group)
        for backend in ("triton", "blocked", "reference")
    ]
    for output, mass in results[1:]:
        torch.testing.assert_close(results[0][0], output, **CLOSE)
        torch.testing.assert_close(results[0][1].double(), mass.double(), **CLOSE)
    single = attention_mass(query, key, weights[0], scale=0.4, backend="triton", group=group)
    assert torch.equal(single, results[0][1][0])


@pytest.mark.parametrize("backend", ["triton", "blocked"])
def test_an_unknown_reduction_lists_the_known_ones(backend):
    query, key, _ = tensors(0, 1, 1, 1, 2, 2, 16)
    with pytest.raises(ValueError, match="none, sum, mean"):
        attention_mass(query, key, torch.ones(2, device=DEVICE), backend=backend, group="max")


def test_masks_go_to_the_blocked_path():
    """What the kernels do not cover is computed exactly as before."""
    query, key, value = tensors(12, 1, 2, 2, 9, 20, 16)
    visible = torch.rand(1, 2, 9, 20, generator=torch.Generator().manual_seed(1)).to(DEVICE) < 0.5
    visible[..., 0] = True
    positions = torch.arange(20, device=DEVICE)[None]
    for options in ({"visible": visible}, {"window": (5, positions)}):
        found, expected = (
            observed_attention(query, key, value, torch.ones(9, device=DEVICE), backend=backend, **options)
            for backend in ("triton", "blocked")
        )
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_the_forward_with_lse_is_the_plain_one():
    """The output is SDPA's; an LSE, where the library gives one, is each row's."""
    for keys in (50, 64):
        query, key, value = tensors(13, 1, 2, 2, 50, keys, 64, torch.bfloat16)
        output, lse = attention_with_lse(query, key, value, 0.125)
        assert torch.equal(output, prompt_attention(query, key, value, 0.125))
        if lse is not None:
            torch.testing.assert_close(lse.double(), logits_of(query, key, 0.125).logsumexp(-1), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------- decoding


def decoded(query, key, value, lengths, scale):
    """Output and weights in float64 over the filled slots."""
    groups = query.shape[1] // key.shape[1]
    filled = (torch.arange(key.shape[2], device=key.device) < lengths[..., None]).repeat_interleave(groups, 1)
    logits = (query.double() @ key.double().repeat_interleave(groups, 1).mT * scale)[:, :, 0]
    weights = logits.masked_fill(~filled, float("-inf")).softmax(-1)
    return weights[:, :, None] @ value.double().repeat_interleave(groups, 1), weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (80, 96), (96, 40), (128, 128), (256, 256)])
def test_decoding_every_head_size_and_dtype(dim, value_dim, dtype):
    query, key, value = tensors(dim, 1, 2, 3, 1, 150, dim, dtype, value_dim)
    lengths = torch.tensor([[150, 67]], device=DEVICE)
    output, weights = slot_decode(query, key, value, lengths, dim**-0.5, weights=True)
    expected, attention = decoded(query, key, value, lengths, dim**-0.5)
    assert output.dtype == dtype and weights.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=ROUNDED[dtype], atol=ROUNDED[dtype])
    torch.testing.assert_close(weights.double(), attention, **CLOSE)


@pytest.mark.parametrize("groups", [1, 4, 7, 17])
@pytest.mark.parametrize("splits", [1, 8])
def test_decoding_reads_the_filled_slots_alone(groups, splits):
    """Ragged lengths, one slot and all of them among them; what lies beyond is never read, not even where NaN."""
    query, key, value = tensors(groups, 2, 2, groups, 1, 200, 16)
    lengths = torch.tensor([[1, 200], [64, 131]], dtype=torch.int32, device=DEVICE)
    expected, attention = decoded(query, key, value, lengths, 0.4)
    for row in range(2):
        for head in range(2):
            key[row, head, lengths[row, head] :] = value[row, head, lengths[row, head] :] = float("nan")
    output, weights = slot_decode(query, key, value, lengths, 0.4, weights=True, splits=splits)
    torch.testing.assert_close(output.double(), expected, **CLOSE)
    torch.testing.assert_close(weights.double(), attention, **CLOSE)
    filled = torch.arange(200, device=DEVICE) < lengths[..., None]
    assert not weights.masked_fill(filled.repeat_interleave(groups, 1), 0).any()
    alone, nothing = slot_decode(query, key, value, lengths, 0.4, splits=splits)
    assert nothing is None and torch.equal(alone, output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("cap", "level"), [(None, 2.0), (2.5, None), (50.0, 30.0), (None, -1e4), (2.5, 1e4)])
@pytest.mark.parametrize("splits", [1, 8])
def test_decoding_with_a_cap_and_sinks(splits, cap, level, dtype):
    """Ragged lengths; a sink of each head that takes a part, nothing or all."""
    query, key, value = tensors(5, 2, 2, 3, 1, 150, 16, dtype)
    lengths = torch.tensor([[1, 150], [64, 99]], device=DEVICE)
    sinks = None if level is None else level + torch.arange(6.0, device=DEVICE)
    filled = (torch.arange(150, device=DEVICE) < lengths[..., None]).repeat_interleave(3, 1)
    logits = (query.double() @ key.double().repeat_interleave(3, 1).mT * 0.4)[:, :, 0]
    logits = (logits if cap is None else cap * torch.tanh(logits / cap)).masked_fill(~filled, float("-inf"))
    denominator = logits.logsumexp(-1, keepdim=True)
    denominator = denominator if sinks is None else torch.logaddexp(denominator, sinks.double()[:, None])
    attention = (logits - denominator).exp()
    options = {"splits": splits, "cap": cap, "sinks": sinks}
    output, weights = slot_decode(query, key, value, lengths, 0.4, weights=True, **options)
    expected = attention[:, :, None] @ value.double().repeat_interleave(3, 1)
    torch.testing.assert_close(output.double(), expected, rtol=ROUNDED[dtype], atol=ROUNDED[dtype])
    torch.testing.assert_close(weights.double(), attention, **CLOSE)


@pytest.mark.filterwarnings("ignore:overflow")  # of the interpreter: an exponential that is infinite is one of cap
@pytest.mark.parametrize("cap", [0.5, 3.0, 50.0])
@pytest.mark.parametrize("large", [1, 20])
def test_capped_logits(cap, large):
    """LSE and mass of pressed logits, far beyond the cap too."""
    query, key, _ = tensors(4, 1, 2, 2, 70, 83, 16)
    weights = torch.rand(1, 70, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    query = query * large
    logits = cap * torch.tanh(logits_of(query, key, 0.4).nan_to_num(neginf=0.0) / cap)
    causal = torch.ones(70, 83, dtype=torch.bool, device=DEVICE).tril(13)
    logits = logits.masked_fill(~causal, float("-inf"))
    lse = row_lse(query, key, 0.4, cap=cap)
    torch.testing.assert_close(lse.double(), logits.logsumexp(-1), **CLOSE)
    mass = column_mass(query, key, weights, lse, 0.4, cap=cap)
    # float32 keeps a capped logit to 6e-8 of the cap, and the tangent's argument to 1e-7 of logits up to 200
    close = {"rtol": 1e-4, "atol": 1e-4}
    expected = torch.einsum("wq,bhqk->wbhk", weights.double(), logits.softmax(-1))
    torch.testing.assert_close(mass.double(), expected, **close)


def test_decoding_takes_views():
    """Slots of a larger cache, queries with heads beside each other, lengths of a slice."""
    query, key, value = tensors(2, 1, 2, 2, 1, 90, 16)
    lengths = torch.tensor([[9, 50, 33]], device=DEVICE)
    expected = slot_decode(query, key[:, :, :64].contiguous(), value[:, :, :64].contiguous(), lengths[:, 1:], 0.4)[0]
    turned = query.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(slot_decode(turned, key[:, :, :64], value[:, :, :64], lengths[:, 1:], 0.4)[0], expected)


# ---------------------------------------------------------------------------------------------- the engine


class LastRows(Method):
    """A window of last rows, as SnapKV observes."""

    def row_weights(self, shape, layer):
        return torch.full((5,), 0.2, dtype=torch.float64)

    def scores(self, seen):
        return seen.grouped_mass()


@pytest.mark.parametrize("chunk", [None, 32])
def test_a_prefill_scores_and_keeps_as_the_blocked_one(chunk):
    """H2O and a window of last rows on a tiny Llama: the same output, scores and kept sets, in chunks too."""
    ids, methods, runs = prompt(70).to(DEVICE), [H2O(), LastRows()], {}
    for backend in ("triton", "blocked"):
        engine = Engine(build("llama", torch.float32).to(DEVICE), backend=backend, chunk=chunk)
        prefill = engine.prefill(ids, methods)
        groups = engine.fork(prefill, [Cell(str(share), methods[0], share) for share in (20, 40)], 0)
        runs[backend] = prefill, [[layer.positions for layer in group.layers] for group in groups]
    (mine, kept), (other, expected) = runs["triton"], runs["blocked"]
    torch.testing.assert_close(mine.logits, other.logits, rtol=1e-4, atol=1e-4)  # four layers of float32
    for method in methods:
        for one, two in zip(mine.observer.scores[method], other.observer.scores[method], strict=True):
            torch.testing.assert_close(one.double(), two.double(), rtol=1e-4, atol=1e-4)
    for scores in other.observer.scores[methods[0]]:  # no two scores so near that rounding could swap them
        assert scores.sort(-1).values.diff(dim=-1).min() > 1e-5
    assert all(torch.equal(a, b) for a, b in zip(chain(*kept), chain(*expected), strict=True))
    assert mine.observer.extra_seconds > 0 and mine.observer.check_seconds == 0


def test_a_pruned_prefill_keeps_as_the_blocked_one():
    """PvC's prefill drops positions between layers by the kernels' mass."""
    ids, positions = prompt(70).to(DEVICE), []
    for backend in ("triton", "blocked"):
        engine = Engine(build("llama", torch.float32).to(DEVICE), backend=backend)
        pruner = PvC(min_context_length=8).resolve(60, engine.shape(70))
        positions.append([layer.positions for layer in engine.prefill(ids, pruner=pruner).layers])
    assert positions[0][-1].shape[1] < 55
    assert all(torch.equal(one, two) for one, two in zip(*positions, strict=True))


def test_a_machine_that_cannot_run_the_kernels_says_so(monkeypatch):
    """No GPU and no interpreter, or no Triton: one line that names the way out, before anything runs."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UserError, match=r"needs a GPU.*engine\.backend=blocked"):
        require("triton", torch.device("cpu"))
    if DEVICE.type == "cpu":
        with pytest.raises(UserError, match="needs a GPU"):
            Engine(build("llama", torch.float32), backend="triton")
    require("blocked", torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install triton" in available(torch.device("cuda"))


def test_every_program_compiles_for_a_gpu():
    """Triton's compiler takes what its interpreter ran, and no program needs more shared memory than GPUs have."""
    root = Path(__file__).parents[2]
    command = [sys.executable, root / "tests/helpers/compile_kernels.py", "80", "bf16", "90"]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    needed = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(needed) == 12 and max(needed) <= 99 * 1024  # of a consumer GPU; a data centre's have more
