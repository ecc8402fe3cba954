"""Rotary embeddings of all kinds: one set of tables for a sequence, and queries before rotation as a layer has them."""

import copy
import importlib

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from methods.expected_attention import ExpectedAttention
from methods.random import Random
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.model_check import check
from pvcbench.errors import Inexact, UserError
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.preflight import check_reach
from pvcbench.evaluation.row import Protocol
from pvcbench.policy import Method
from pvcbench.tasks.base import Sample, Task
from pvcbench.tasks.prompts import Prompt

pytestmark = pytest.mark.usefixtures("inference")
SWITCH = 48
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.2,
}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 6.0, 9.0], "factor": 4.0}
LONG |= {"original_max_position_embeddings": SWITCH, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
MIXED = ["sliding_attention", "sliding_attention", "full_attention"]
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
MODELS = {
    "longrope": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": SWITCH}),
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": SWITCH}),
    "llama": ("llama", {"rope_parameters": PLAIN}),
    "yarn": ("llama", {"rope_parameters": YARN, "max_position_embeddings": 256}),
    "nope": ("smollm3", {"no_rope_layers": [1, 1, 0], "rope_parameters": PLAIN}),
    "cohere": ("cohere", {"rope_parameters": PLAIN}),
    "cohere_nope": ("cohere2", {"layer_types": MIXED, "sliding_window": 30, "rope_parameters": PLAIN}),
    "glm": ("glm", {"head_dim": 8, "partial_rotary_factor": 0.5}),
    "ernie": ("ernie4_5", {"head_dim": 8}),
    "exaone": ("exaone4", {"sliding_window": 20, "sliding_window_pattern": 3}),
}
FULL = Cell("1.0", Method(), None, everything=True)
CLOSE = {"rtol": 0, "atol": 1e-4}  # float32 logits of size 5, sums in another order: 1e-6 seen


def build(name):
    """A random model in float32, the same in every call."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | settings))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def tokens(count, seed=1):
    return torch.randint(1, 99, (1, count), generator=torch.Generator().manual_seed(seed))


def nll(engine, ids, prefix):
    """Log-probabilities of the tokens after a prefix, through the full cache."""
    prefill = engine.prefill(ids[:, :prefix], reach=ids.shape[1])
    return engine.score(engine.fork(prefill, [FULL], ids.shape[1]), ids[:, prefix:-1], ids[:, prefix + 1 :]).logprobs


def unmodified(name, ids):
    """Log-probabilities of all tokens but the first in one call of a model that ran nothing before."""
    logits = build(name)(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    return logits.gather(-1, ids[:, 1:, None])[..., 0]


@pytest.mark.parametrize("chunk", [None, 13])
@pytest.mark.parametrize("name, prompt", [("longrope", 30), ("longrope", 60), ("dynamic", 30), ("yarn", 60)])
def test_answers_are_those_of_generate(name, prompt, chunk):
    """On either side of the switch, whole and in chunks."""
    model, ids = build(name), tokens(prompt)
    wanted = build(name).generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False)[0, prompt:].tolist()
    engine = Engine(model, chunk=chunk)
    check(engine)
    [[found]], _ = engine.greedy(engine.fork(engine.prefill(ids), [FULL], 16), feed=None, new_tokens=16, ends=())
    assert found == wanted


@pytest.mark.parametrize("name, prompt", [("longrope", 40), ("dynamic", 40), ("dynamic", 60)])
def test_an_answer_that_crosses_a_change_of_tables_is_refused(name, prompt):
    """By the engine in the step that would cross it, and before a run by the lengths alone, with the last that fits."""
    engine, sample = Engine(build(name)), Sample("s", "", "", (), 16)
    groups = engine.fork(engine.prefill(tokens(prompt)), [FULL], 16)
    last = max(prompt, SWITCH)
    with pytest.raises(Inexact, match=rf"changes beyond {last} tokens"):
        engine.greedy(groups, feed=None, new_tokens=16, ends=())
    with pytest.raises(UserError, match=rf"sample s: .* changes beyond {last} tokens, so a cache of {prompt} tokens"):
        check_reach(
            engine,
            [WorkItem(sample, Prompt(tuple(range(prompt)), prompt), ())],
            Task(),
            Protocol(True, False, "grow", 0),
        )
    fits = SWITCH - 15
    check_reach(
        engine, [WorkItem(sample, Prompt(tuple(range(fits)), fits), ())], Task(), Protocol(True, False, "grow", 0)
    )


@pytest.mark.parametrize("name", ["longrope", "dynamic", "yarn", "llama"])
@pytest.mark.parametrize("chunk", [None, 13])
def test_likelihoods_are_those_of_one_call_whatever_ran_before(name, chunk):
    """A document beyond the switch, read in pieces, after another document and after none."""
    ids, other = tokens(70), tokens(90, seed=2)
    wanted, engine = unmodified(name, ids), Engine(build(name), chunk=chunk)
    first = nll(engine, ids, 40)
    torch.testing.assert_close(first, wanted[:, 40:], **CLOSE)
    nll(engine, other, 80)
    nll(engine, tokens(20), 10)
    assert torch.equal(nll(engine, ids, 40), first)


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_before_the_budget_is_full_streaming_is_the_full_cache(name):
    """A budget below the switch reads the whole document by the tables of the whole document."""
    ids = tokens(70)
    wanted = unmodified(name, ids)
    for budget in (30, 60):
        scored, _ = Engine(build(name)).stream(ids, Cell("x", Random(), budget), draws=torch.tensor([1]))
        torch.testing.assert_close(scored.logprobs[:, : budget - 1], wanted[:, : budget - 1], **CLOSE)


def test_a_released_model_remembers_nothing():
    """Dynamic NTK keeps the frequencies of the longest call: they are gone with the engine."""
    model, ids = build("dynamic"), tokens(20)
    before = copy.deepcopy(model)(ids).logits
    engine = Engine(model)
    engine.prefill(tokens(90))
    engine.release()
    assert torch.equal(model(ids).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ---------------------------------------------------------------------------------------------- before rotation


def projected(model, ids):
    """What each layer's projection of queries (and its norm) gives, [batch, heads, tokens, dim]: nothing is rotated."""
    found, hooks = {}, []
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        module = attention.q_norm if hasattr(attention, "q_norm") else attention.q_proj

        def keep(module, args, output, number=number, heads=model.config.num_attention_heads):
            by_head = output if output.dim() == 4 else output.unflatten(-1, (heads, -1)).transpose(1, 2)
            found[number] = by_head if by_head.shape[1] == heads else by_head.transpose(1, 2)

        hooks.append(module.register_forward_hook(keep))
    model(ids)
    for hook in hooks:
        hook.remove()
    return found


class Watch(Method):
    """Remembers what it was shown."""

    needs_queries = True
    seen: list

    def scores(self, seen):
        self.seen.append(seen)
        return seen.positions.double()


def rotates(attention) -> bool:
    """Whether a layer has a position embedding, by the attributes that transformers' own code asks."""
    kind = type(attention).__name__
    if kind == "SmolLM3Attention":
        return bool(attention.use_rope)
    if kind == "Exaone4Attention":
        return attention.is_sliding
    return kind != "Cohere2Attention" or attention.sliding_window is not None


def rotated(model, vectors, first, count, layer):
    """Vectors turned to so many positions by the model's own function, averaged: [heads, rows, dim]."""
    if not rotates(model.model.layers[layer].self_attn):
        return vectors
    cos, sin = model.model.rotary_emb(vectors, torch.arange(first, first + count)[None])
    apply = importlib.import_module(type(model).__module__).apply_rotary_pos_emb
    turned = [apply(vectors[None], vectors[None], cos[:, [n]], sin[:, [n]])[0][0] for n in range(count)]
    return torch.stack(turned).mean(0)


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize(
    "name", ["llama", "yarn", "nope", "cohere", "cohere_nope", "glm", "ernie", "exaone", "dynamic"]
)
def test_queries_before_rotation_and_rotations_ahead_are_the_layer_s_own(name, chunk):
    """Whole, interleaved, partial and scaled rotation, and layers without one."""
    model, ids, method = build(name), tokens(19), Watch()
    wanted, method.seen = projected(build(name), ids), []
    engine = Engine(model, chunk=chunk)
    check(engine, queries=True)
    engine.prefill(ids, [method])
    assert len(method.seen) == 3
    for seen in method.seen:
        torch.testing.assert_close(seen.queries, wanted[seen.layer], rtol=0, atol=1e-5)
        vectors = wanted[seen.layer][0]
        ahead = rotated(build(name), vectors, 19, 12, seen.layer)
        torch.testing.assert_close(vectors @ seen.ahead(12), ahead, rtol=0, atol=2e-4)  # float32 angles, sums of 12


def shifted(engine, monkeypatch):
    """Gives a model a rotation that no other has: dimensions turn at the speed of their neighbours."""
    module = importlib.import_module(type(engine.model).__module__)
    real = module.apply_rotary_pos_emb

    def turned(query, key, cos, sin, **more):
        return tuple(part.roll(-1, -1) for part in real(query.roll(1, -1), key.roll(1, -1), cos, sin, **more))

    monkeypatch.setattr(module, "apply_rotary_pos_emb", turned)


def test_a_layer_whose_rotation_is_not_known_is_refused(monkeypatch):
    """A made-up one, whose dimensions turn at the speed of their neighbours: no form fits; the message says so."""
    engine = Engine(build("llama"))
    shifted(engine, monkeypatch)
    with pytest.raises(UserError, match="how layer 0 of this model rotates its queries is not known"):
        engine.prefill(tokens(19), [ExpectedAttention()])


def test_cache_positions_are_refused_in_sixteen_bits_too(monkeypatch):
    """A wrong rotation is off by the size of the keys, which no rounding is."""
    for name in ("llama", "cohere"):
        check(Engine(build(name).to(torch.bfloat16)), rotates=True)
    engine = Engine(build("llama").to(torch.bfloat16))
    shifted(engine, monkeypatch)
    with pytest.raises(UserError, match=r"how layer 0 of this model rotates is not known.*positions=original"):
        check(engine, rotates=True)


def test_steps_of_a_wave_do_not_change_the_next_one():
    """Cells that decode after others have gone further see the same tables."""
    engine, ids, fed = Engine(build("dynamic")), tokens(60), tokens(5, seed=3)
    prefill = engine.prefill(ids, reach=70)

    def logits():
        decoder = Decoder(engine.call, engine.fork(prefill, [FULL], 6))
        return torch.stack([decoder.step(fed[:, [n]]) for n in range(5)])

    assert torch.equal(logits(), logits())
