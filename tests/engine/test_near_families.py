"""Families near those that run: positions that begin elsewhere, decoders beside encoders, experts, and refused ones."""

import contextlib

import pytest
import torch

import families
from methods.pvc import PvC
from methods.random import Random
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.model_check import apart, check
from pvcbench.errors import Inexact, UserError
from pvcbench.policy import Method
from tiny import teach

pytestmark = pytest.mark.usefixtures("inference")
TOKENS, STEPS, BUDGET = 40, 4, 16
FULL = Cell("1.0", Method(), None, everything=True)
# every family of families.py with experts: their tiny models have layers whose tokens a router sends to some of them
EXPERTS = ["afmoe", "aria_text", "axk1", "bailing_hybrid", "beam", "cohere2_moe", "dbrx", "deepseek_v2", "deepseek_v3"]
EXPERTS += ["dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "gemma4_text:moe", "glm4_moe", "glm4_moe_lite"]
EXPERTS += ["gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hunyuan_v1_moe"]
EXPERTS += ["hy_v3", "jamba", "jetmoe", "kimi_linear", "laguna", "lfm2_moe", "llama4_text", "mellum", "mimo_v2_flash"]
EXPERTS += ["minimax_m2", "mixtral", "nemotron_h", "olmoe", "phimoe", "qwen2_moe", "qwen3_5_moe_text", "qwen3_moe"]
EXPERTS += ["longcat_flash", "qwen3_next", "solar_open", "zaya"]
SIXTEEN = ["qwen3_moe", "gpt_oss", "nemotron_h", "mixtral", "granitemoe_swa"]


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta-xl", "bart", "whisper", "modernbert-decoder"])
def test_a_full_budget_is_the_unmodified_model(name):
    model, engine = (families.build(name, torch.float64) for _ in range(2))
    engine, ids = Engine(engine, chunk=7), families.prompt(TOKENS + STEPS, 2)
    with families.unrounded():
        theirs = model(input_ids=ids, use_cache=False).logits
        groups = engine.fork(engine.prefill(ids[:, :TOKENS]), [FULL], STEPS)
        ours = torch.stack(teach(engine, groups, ids[:, TOKENS:], [1] * STEPS).logits, 1)
    off = (ours - theirs[:, TOKENS:]).abs().max() / (theirs.max() - theirs.min())
    assert off < 1e-12  # float64 sums in another order


def test_decoders_are_counted_beside_shorter_encoders(monkeypatch):
    monkeypatch.setitem(families.RECIPES, "bart", {"encoder_layers": 1})
    engine = Engine(families.build("bart"))
    assert len(engine.windows) == 4
    check(engine)


def test_a_padding_token_in_a_prompt_is_refused_where_it_has_no_position():
    engine, ids = Engine(families.build("roberta")), families.prompt(TOKENS)
    ids[0, 3] = 0
    with pytest.raises(Inexact, match="has a padding token"):
        engine.prefill(ids)
    Engine(families.build("llama")).prefill(ids)


@pytest.mark.parametrize(
    "name, why",
    [
        ("git", "layer 0 hands no keys and values of the tokens"),
        ("mllama", "layer 1 hands no keys and values of the tokens"),
        ("xlstm", "takes no cache of keys and values"),
        ("rwkv", "takes no cache of keys and values"),
        ("doge", "adds numbers of its own to the logits of its attention"),
        ("hrm_text", "run several times"),
    ],
)
def test_refusals_say_the_true_reason(name, why):
    with pytest.raises(UserError, match=why):
        check(Engine(families.build(name)))


def test_tokens_are_not_dropped_before_a_model_that_counts_them():
    with pytest.raises(UserError, match="what this model computes after its layers needs all of them"):
        Engine(families.build("gpt2")).prefill(families.prompt(96), pruner=PvC())


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.sampled(15)
def test_rows_of_a_batch_do_not_depend_on_each_other(name):
    """Cells of a batch of two samples, together and each alone; in float64, where rounding moves no token elsewhere."""
    engine, ids, method = Engine(families.build(name, torch.float64)), families.prompt(TOKENS + STEPS, 2), Random()
    cells, sizes = [FULL, *([] if heads_differ(engine) else [Cell("b", method, BUDGET)])], [1] * STEPS
    with families.unrounded():
        prefill = engine.prefill(ids[:, :TOKENS], [method], draws=torch.arange(2))
        fed = ids[:, TOKENS:].repeat(len(cells), 1)
        together = torch.stack(teach(engine, engine.fork(prefill, cells, STEPS), fed, sizes).logits)
        for row in range(2):
            alone = engine.prefill(ids[row : row + 1, :TOKENS], [method], draws=torch.tensor([row]))
            for number, cell in enumerate(cells):
                single = teach(engine, engine.fork(alone, [cell], STEPS), ids[row : row + 1, TOKENS:], sizes).logits
                off = (torch.stack(single)[:, 0] - together[:, 2 * number + row]).abs().max()
                assert off <= 1e-11 * (together.max() - together.min()), (row, cell.label)


def heads_differ(engine) -> bool:
    """Whether layers that evict have unequally many KV heads."""
    prefill = engine.prefill(families.prompt(TOKENS))
    return len({prefill.layers[layer].keys.shape[1] for layer in prefill.shape.evicted}) > 1


@contextlib.contextmanager
def broken(engine):
    """An engine whose decoding finds every value in the place of another."""
    real = engine.prefill

    def mixed(ids, *args, **kwargs):
        prefill = real(ids, *args, **kwargs)
        for layer in prefill.layers:
            layer.values = layer.values.flip(2)
        return prefill

    engine.prefill = mixed
    yield
    engine.prefill = real


def test_one_row_of_five_may_go_elsewhere_in_sixteen_bits_only():
    theirs = torch.linspace(0, 1, 8).repeat(5, 1)
    ours = theirs.clone()
    ours[3] += 0.6
    assert apart(ours, theirs, torch.bfloat16) == 0
    assert apart(ours, theirs, torch.float32) == pytest.approx(0.6)
    ours[1:] += 0.6
    assert apart(ours, theirs, torch.bfloat16) == pytest.approx(0.6)


@pytest.mark.parametrize("name", SIXTEEN)
def test_experts_in_sixteen_bits_pass_the_check_and_what_is_wrong_does_not(name):
    engine = Engine(families.build(name, torch.bfloat16))
    check(engine)
    with broken(engine), pytest.raises(UserError, match="the engine's logits differ"):
        check(engine)
