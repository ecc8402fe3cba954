"""The engine on the families of today: full budget, any budget, hold, chunks, forks, steps of one shape, streams.

Float64 throughout, against the dense reference of family_dense.py: what differs is an error.
"""

import pytest
import torch

import families
from families import built as plain
from families import hosted as host
from family_dense import CLOSE, dense, exact, off
from methods.ada_kv import AdaKV
from methods.h2o import H2O
from methods.knorm import Knorm
from methods.pvc import PvC
from methods.random import Random
from methods.snapkv import SnapKV
from methods.tova import TOVA
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.model_check import check
from pvcbench.engine.static_decode import StaticDecoder
from pvcbench.errors import UserError
from pvcbench.policy import Method
from tiny import fork, positions, teach

__all__ = ["exact"]  # the fixture that takes transformers' roundings out

TOKENS, STEPS, CHUNK, BUDGET = 40, 8, 7, 16
STATES = ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "granitemoehybrid", "granitemoehybrid:rope"]
STATES += ["nemotron_h", "lfm2", "lfm2_moe", "lfm3", "falcon_h1", "bamba", "zamba2", "olmo_hybrid", "zaya"]
STEPWISE = ["jamba", "zamba"]  # their scan takes no state to begin with
PLAIN = ["stablelm", "nemotron", "gpt2", "gpt_bigcode", "dots1"]
SINKS = ["gpt_oss", "mimo_v2_flash", "granite_swa", "granitemoe_swa", "flint"]
CAPS = ["gemma2", "vaultgemma"]
CHUNKS = ["llama4_text"]
LATENTS = ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu", "axk1", "longcat_flash"]
LATENTS += ["kimi_linear", "bailing_hybrid"]  # beside linear attention
HEADS = ["gemma4_text:moe"]  # their number differs by layer (mimo_v2_flash's too); see test_sharing.py
SHARED = ["gemma4_text", "gemma3n_text"]  # layers that read another's entries, where streams go token by token
STREAMED = LATENTS + STATES + PLAIN + SINKS + CAPS + CHUNKS + HEADS
WORKING = STREAMED + STEPWISE + SHARED
FULL = Cell("1.0", Method(), None, everything=True)
# one of each kind above runs in the fast tier, all of them in the slow one
FIRST = ["qwen3_next", "granitemoehybrid:rope", "lfm2", "falcon_h1", "zamba2", "jamba", "gpt2", "gpt_oss"]
FIRST += ["mimo_v2_flash"]
FIRST += ["gemma2", "llama4_text", "deepseek_v3", "longcat_flash", "kimi_linear", "gemma4_text:moe", "gemma4_text"]


def tiers(names):
    """A test's families: those of FIRST, and the others marked slow."""
    assert set(FIRST) <= set(WORKING)
    marked = [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked)


every = tiers(WORKING)
pytestmark = pytest.mark.usefixtures("inference")


def masks_of(kept, heads, rows):
    """The masks that equal a decoding: `kept` is [(first row, count, kept positions per layer)] of each step."""
    total, masks = TOKENS + STEPS, []
    for layer, count in enumerate(heads):
        mask = torch.ones(rows, count, total, total, dtype=torch.bool)
        mask[:, :, TOKENS:] = False
        for first, size, layers in kept:
            seen = torch.zeros(rows, count, total + 1, dtype=torch.bool)
            seen.scatter_(2, layers[layer].masked_fill(layers[layer] < 0, total), True)
            seen[:, :, first : first + size] = True
            mask[:, :, first : first + size] = seen[:, :, None, :total]
        masks.append(mask.repeat_interleave(max(heads) // count, 1) if max(heads) % count else mask)
    return masks


def against_dense(name, ids, groups, trace, sizes) -> float:
    """The largest error of a decoding of several groups, each beside the dense reference under its masks."""
    ends = [TOKENS - 1 + sum(sizes[: number + 1]) for number in range(len(sizes))]
    logits, start, worst = torch.stack(trace.logits, 1), 0, 0.0
    for group, kept in zip(groups, trace.kept, strict=True):
        rows = len(group.layers[0].keys)
        masks = masks_of(kept, [entries.positions.shape[1] for entries in group.layers], rows)
        expected = dense(name)(ids.repeat(rows // len(ids), 1), masks)[:, ends]
        worst, start = max(worst, off(logits[start : start + rows], expected)), start + rows
    return worst


@every
def test_full_budget_equals_the_unmodified_model(name):
    """The prompt whole and in chunks, then token by token and several at once."""
    ids = families.prompt(TOKENS + STEPS, 2)
    expected = plain(name)(input_ids=ids, use_cache=False).logits
    for chunk, sizes in ((None, [1] * STEPS), (CHUNK, [3, 1, 4])):
        if name in STEPWISE and chunk is not None:
            continue
        engine = host(name)
        engine.chunk = chunk
        prefill = engine.prefill(ids[:, :TOKENS])
        assert off(prefill.logits, expected[:, TOKENS - 1]) < CLOSE
        trace = teach(engine, engine.fork(prefill, [FULL], STEPS), ids[:, TOKENS:], sizes)
        ends = [TOKENS - 1 + sum(sizes[: number + 1]) for number in range(len(sizes))]
        assert off(torch.stack(trace.logits, 1), expected[:, ends]) < CLOSE


@every
def test_any_budget_equals_dense_attention_under_the_mask(name):
    """Cells of five methods in one batch, of which one keeps all, two samples each."""
    ids, sizes = families.prompt(TOKENS + STEPS, 2, seed=1), [1] * STEPS if name in STEPWISE else [1, 1, 3, 1, 1, 1]
    methods = [Random(), Knorm(), SnapKV(window=4), AdaKV(SnapKV(window=4))]
    cells = [FULL, *(Cell(type(method).__name__, method, BUDGET) for method in methods)]
    engine = host(name)
    engine.chunk = None if name in STEPWISE else CHUNK
    groups = fork(engine, ids[:, :TOKENS], cells, STEPS, torch.arange(2))
    fed = ids[:, TOKENS:].repeat(len(cells), 1)
    trace = teach(engine, groups, fed, sizes)
    assert against_dense(name, ids, groups, trace, sizes) < CLOSE
    evicted = groups[0].prefill.shape.evicted
    assert any(kept.shape[-1] < TOKENS for kept in (trace.kept[-1][0][2][layer] for layer in evicted))


@every
@pytest.mark.parametrize("method", [H2O(), TOVA(), Random()], ids=["h2o", "tova", "random"])
def test_hold_equals_dense_attention_under_the_changing_mask(name, method):
    ids, engine = families.prompt(TOKENS + STEPS, 2, seed=2), host(name)
    groups = fork(engine, ids[:, :TOKENS], [Cell("hold", method, BUDGET, hold=True)], STEPS, torch.arange(2))
    trace = teach(engine, groups, ids[:, TOKENS:], [1] * STEPS)
    assert against_dense(name, ids, groups, trace, [1] * STEPS) < CLOSE
    for layer in groups[0].prefill.shape.evicted:
        assert groups[0].layers[layer].filled == groups[0].cells[0].granted(torch.tensor([[BUDGET]]), None)


@every
def test_a_fork_leaves_its_parent_and_its_sisters_alone(name):
    """A second fork of the prompt computes what the first did, after it; batched equals single; states are copied."""
    ids, engine, method = families.prompt(TOKENS + STEPS, 2, seed=3), host(name), Knorm()
    prefill = engine.prefill(ids[:, :TOKENS], [method])
    before = {place: state.map(torch.clone) for place, state in prefill.states.items()}
    cell, fed, sizes = Cell("knorm", method, BUDGET), ids[:, TOKENS:], [1] * STEPS
    first = torch.stack(teach(engine, engine.fork(prefill, [cell, FULL], STEPS), fed.repeat(2, 1), sizes).logits)
    second = torch.stack(teach(engine, engine.fork(prefill, [cell], STEPS), fed, sizes).logits)
    assert off(second, first[:, :2]) < CLOSE
    for place, state in prefill.states.items():
        for now, then in zip(state.tensors(), before[place].tensors(), strict=True):
            assert torch.equal(now, then)
    single = engine.prefill(ids[:1, :TOKENS], [method])
    alone = torch.stack(teach(engine, engine.fork(single, [cell], STEPS), fed[:1], sizes).logits)
    assert off(alone, first[:, :1]) < CLOSE
    sizes = engine.fork(prefill, [cell], 0)[0].measure(0, 0)
    carried = [state.row_bytes for state in prefill.states.values()]
    assert sizes.carried_bytes == sum(carried) and (not carried or min(carried) > 0)


@every
def test_groups_that_leave_take_their_states_along(name):
    """Greedy answers of cells together, some of which end early, are those of each alone."""
    ids, engine, method = families.prompt(TOKENS, 2, seed=4), host(name), Random()
    cells = [FULL, Cell("16", method, BUDGET), Cell("8", method, BUDGET // 2)]
    prefill = engine.prefill(ids, [method], draws=torch.arange(2))
    for divisor in range(2, 12):  # until some cells end before others
        options = {"feed": None, "new_tokens": STEPS, "ends": (), "stopped": lambda row, own: sum(own) % divisor == 0}  # noqa: B023
        alone = [engine.greedy(engine.fork(prefill, [cell], STEPS), **options)[0][0] for cell in cells]
        if len({max(map(len, rows)) for rows in alone}) > 1:
            break
    assert engine.greedy(engine.fork(prefill, cells, STEPS), **options)[0] == alone


@every
def test_steps_of_one_shape_equal_any_others(name):
    ids, engine, method = families.prompt(TOKENS + STEPS, 2, seed=5), host(name), TOVA()
    prefill = engine.prefill(ids[:, :TOKENS], [method])
    for cells in ([FULL, Cell("16", method, BUDGET)], [Cell("hold", method, BUDGET, hold=True)]):
        fed = ids[:, TOKENS:].repeat(len(cells), 1)
        expected = teach(engine, engine.fork(prefill, cells, STEPS + 1), fed, [1] * STEPS)
        static = StaticDecoder(engine.call, engine.fork(prefill, cells, STEPS + 1))
        static._trial()
        found = [static.step(fed[:, number : number + 1]) for number in range(STEPS)]
        assert off(torch.stack(found), torch.stack(expected.logits)) < CLOSE


@tiers(STREAMED)
@pytest.mark.sampled(5)
def test_a_stream_equals_steps_under_hold(name):
    ids, engine = families.prompt(TOKENS + STEPS, 2, seed=6), host(name)
    for cell in (Cell("hold", TOVA(), BUDGET), Cell("hold", Random(), BUDGET)):
        found, group = engine.stream(ids, cell)
        expected, other = engine.stream(ids, cell, scan=False)
        torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-11)
        for layer in group.prefill.shape.evicted:
            mine, theirs = (positions(one)[layer].sort(-1).values for one in (group, other))
            assert torch.equal(mine, theirs)


def test_what_cannot_go_on_from_a_state_goes_in_one_by_one():
    """The check notices a scan that takes no state; prompts are then whole, and scoring goes token by token."""
    for name, expected in (("jamba", False), ("lfm2", True)):
        model, ids = families.build(name), families.prompt(TOKENS + STEPS)
        engine = Engine(model, chunk=CHUNK)
        check(engine)
        assert engine.continues is expected
        prefill, fed = engine.prefill(ids[:, :TOKENS]), ids[:, TOKENS:]
        scored = engine.score(engine.fork(prefill, [FULL], STEPS), fed[:, :-1], fed[:, 1:])
        engine.release()
        logits = model(input_ids=ids, use_cache=False).logits[:, TOKENS:-1]
        wanted = logits.gather(-1, fed[:, 1:, None])[..., 0] - logits.logsumexp(-1)
        torch.testing.assert_close(scored.logprobs, wanted, rtol=1e-4, atol=1e-4)


def test_a_latent_is_one_entry_for_all_heads():
    """One KV head, whose bytes are those of a latent and its rotated part: 16 + 4 numbers of 4 bytes in 4 layers."""
    engine = Engine(families.build("deepseek_v3"))
    prefill = engine.prefill(families.prompt(TOKENS))
    group = engine.fork(prefill, [FULL], 0)[0]
    assert group.layers[0].keys.shape[1] == 1
    assert group.measure(0, 0).kv_bytes == prefill.nbytes == 4 * TOKENS * (16 + 4) * 4


@pytest.mark.parametrize(
    "family, why",
    [
        ("lfm2", "recurrent state"),
        ("llama4_text", "counts the positions"),
        ("gemma4_text", "read the entries of another"),
        ("longcat_flash", "lie in one module"),
    ],
)
def test_tokens_are_not_dropped_between_layers_that_need_them(family, why):
    with pytest.raises(UserError, match=f"drops tokens between layers.*{why}"):
        Engine(families.build(family)).prefill(families.prompt(TOKENS), pruner=PvC())
