"""Cache positions in models of every rotary embedding: a window beside first tokens reads as if nothing lay between.

In a model of one layer a token's key and value depend on that token alone. So the unmodified model, fed the first
tokens, the window and what follows as one short sequence, is what an exact cache of them must equal: no rotation is
computed here. Float64, transformers' own roundings to float32 taken out: what differs is an error.
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import families
from methods.expected_attention import ExpectedAttention
from methods.streaming_llm import StreamingLLM
from pvcbench.architectures.families import widen
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.model_check import check
from pvcbench.engine.rotary import UNTURNED
from pvcbench.engine.static_decode import StaticDecoder
from pvcbench.errors import Inexact, UserError
from tiny import teach

pytestmark = pytest.mark.usefixtures("inference")
FULL, SLIDING = "full_attention", "sliding_attention"
SINKS, BUDGET, TOKENS, STEPS = 3, 12, 40, 6
CLOSE = 1e-11  # of the range of the logits: float64 sums and angles in another order; 1e-13 was seen
LONG = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
ONE = {"num_hidden_layers": 1}
LAYERS = {
    "llama": {},
    "llama yarn": {"rope_parameters": LONG, "max_position_embeddings": 256},
    "qwen3": {},
    "cohere": {},
    "cohere2": {"layer_types": [SLIDING], "sliding_window": 64},
    "cohere2 nope": {"layer_types": [FULL]},
    "glm": {},
    "glm4": {},
    "helium": {},
    "ernie4_5": {},
    "exaone4": {"layer_types": [SLIDING], "sliding_window": 64},
    "exaone4 nope": {"layer_types": [FULL]},
    "nanochat": {},
    "smollm3": {"no_rope_layers": [1]},
    "smollm3 nope": {"no_rope_layers": [0]},
    "gpt_oss": {"layer_types": [FULL]},
    "flint": {"layer_types": [SLIDING], "sliding_window": 64},
    "flint nope": {"layer_types": [FULL]},
    "deepseek_v2": {},
    "deepseek_v3": {"mlp_layer_types": ["dense"]},
    "llama4_text": {"layer_types": [FULL], "no_rope_layers": [1], "floor_scale": 8192},
    "llama4_text nope": {"layer_types": [FULL], "no_rope_layers": [0], "floor_scale": 8192},
}
each = pytest.mark.parametrize("name", LAYERS)


def build(name, dtype=torch.float64):
    """A model of one layer."""
    kind = name.split()[0]
    config = AutoConfig.for_model(kind, **(families.settings(kind) | ONE | LAYERS[name]))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype).eval()
    model.set_experts_implementation("eager")
    widen(model)
    return model


@pytest.fixture
def exact(name):
    """The unmodified model and the engine, in float64 throughout."""
    model, engine = build(name), Engine(build(name))
    with families.unrounded():
        yield model, engine


def beside(model, ids, sinks, window):
    """The unmodified model's logits after the last of the first tokens and of the last ones as one sequence."""
    short = torch.cat((ids[:, :sinks], ids[:, -window:]), 1)
    return model(input_ids=short, use_cache=False).logits[:, -1]


def off(found, expected):
    """The largest difference, of the range of the expected."""
    return ((found - expected).abs().max() / (expected.max() - expected.min())).item()


def cell(hold=False):
    return Cell("b", StreamingLLM(sinks=SINKS), BUDGET, hold=hold)


@each
def test_what_follows_sees_one_sequence(name, exact):
    """The kept entries and all new ones, step by step and several at once."""
    model, engine = exact
    ids = families.prompt(TOKENS + STEPS, 2)
    for sizes in ([1] * STEPS, [2, 1, 3]):
        prefill = engine.prefill(ids[:, :TOKENS], [cell().method])
        trace = teach(engine, engine.fork(prefill, [cell()], STEPS), ids[:, TOKENS:], sizes)
        ends = torch.tensor(sizes).cumsum(0).tolist()
        for end, logits in zip(ends, trace.logits, strict=True):
            assert off(logits, beside(model, ids[:, : TOKENS + end], SINKS, BUDGET - SINKS + end)) < CLOSE


@each
def test_a_held_budget_is_one_short_sequence(name, exact):
    """Step by step, in steps of one shape, and in a stream, whose queries move instead of the keys."""
    model, engine = exact
    ids = families.prompt(TOKENS + STEPS)
    expected = [beside(model, ids[:, :end], SINKS, BUDGET - SINKS + 1) for end in range(TOKENS + 1, ids.shape[1] + 1)]
    prefill = engine.prefill(ids[:, :TOKENS], [cell().method])
    trace = teach(engine, engine.fork(prefill, [cell(True)], STEPS), ids[:, TOKENS:], [1] * STEPS)
    static = StaticDecoder(engine.call, engine.fork(prefill, [cell(True)], STEPS))
    for number, wanted in enumerate(expected):
        assert off(trace.logits[number], wanted) < CLOSE
        assert off(static.step(ids[:, TOKENS + number, None]), wanted) < CLOSE
    scored, _ = engine.stream(ids, cell(True))
    for place in range(TOKENS, ids.shape[1] - 1):
        wanted = beside(model, ids[:, : place + 1], SINKS, BUDGET - SINKS + 1).log_softmax(-1)
        assert (scored.logprobs[0, place] - wanted[0, ids[0, place + 1]]).abs() < 1e-9


@each
def test_layers_without_rotary_embedding_move_nothing(name, exact):
    _, engine = exact
    ids = families.prompt(TOKENS)
    [turns] = engine.turns(ids)
    assert (turns.keys.form is UNTURNED) == name.endswith("nope")
    [group] = engine.fork(engine.prefill(ids, [cell().method]), [cell()], 1)
    assert (group.layers[0].sinks is None) == name.endswith("nope")


@pytest.mark.parametrize("name", ["cohere", "glm", "gpt_oss", "nanochat", "smollm3 nope", "llama4_text", "deepseek_v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_of_a_run_accepts_them(name, dtype):
    check(Engine(build(name, dtype)), rotates=True, queries=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "family, why",
    [
        ("hunyuan_v1_dense", "norms its keys after their rotation"),
        ("gpt2", "adds its positions to the hidden states"),
        ("moshi", "depend on their positions by no tables"),
        ("beam", "multiplies its queries by a number"),
    ],
)
def test_the_check_of_a_run_says_why_others_cannot_move(family, why, dtype):
    with pytest.raises(UserError, match=f"{why}.*: set methods.<name>.positions=original"):
        check(Engine(families.build(family, dtype)), rotates=True)


def test_positions_that_scale_queries_are_kept_to_where_they_do_not():
    """Llama 4's layers without rotary embedding multiply queries by a function of position, from 15 on in this one."""
    engine, method = Engine(families.build("llama4_text")), StreamingLLM(sinks=2)
    engine.prefill(families.prompt(15), [method])
    for asked in (method, ExpectedAttention()):
        with pytest.raises(Inexact, match=r"from 15 on .* defined for 16 tokens"):
            engine.prefill(families.prompt(16), [asked])
        with pytest.raises(Inexact, match="keep prompt and answer within 15 tokens"):
            engine.prefill(families.prompt(12), [asked], reach=16)
    engine.prefill(families.prompt(TOKENS), [StreamingLLM(positions="original")])
