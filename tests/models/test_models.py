"""Loading: what the engine cannot do is refused, what it can passes the check of 32 tokens."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import families
from pvcbench.engine.engine import Engine
from pvcbench.engine.model_check import check
from pvcbench.errors import UserError
from pvcbench.models import hub, random_weights

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}


def tiny(kind, **settings):
    """A random model of a kind."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma3_text", "granite", "olmo2"])
def test_supported_models_pass(kind):
    engine = Engine(tiny(kind, **GROUPED))
    check(engine, rotates=True)
    assert len(engine.shape(100).evicted) >= 1


REFUSED = {
    "ALiBi": "bloom",
    "in its own code": "gptj",
    "an indexer of the model's own": "deepseek_v32",
    "a cache of its own class": "minimax",
    "outside of the cache": "recurrent_gemma",
    "attends more often": "diffllama",
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_engine_cannot_do_is_refused_with_the_reason(why):
    with pytest.raises(UserError, match=f"cannot be measured: .*{why}"):
        check(Engine(families.build(REFUSED[why]), evict_sliding=True))


def test_a_wrong_engine_is_caught(monkeypatch):
    engine = Engine(tiny("llama", **GROUPED))
    real = engine.call
    monkeypatch.setattr(engine, "call", lambda ids, cache, keep=None: real(ids, cache, keep) * 1.1)
    with pytest.raises(UserError, match="logits differ"):
        check(engine)


def test_positions_that_are_added_to_hidden_states_are_refused_at_cache_positions():
    check(Engine(tiny("cohere", **SMALL, num_key_value_heads=2, pad_token_id=0)), rotates=True)  # interleaved pairs
    engine = Engine(tiny("opt", **SMALL, ffn_dim=64, word_embed_proj_dim=32))
    check(engine)
    with pytest.raises(UserError, match="positions=original"):
        check(engine, rotates=True)


def test_a_model_whose_every_layer_slides_is_refused_beyond_its_window():
    sliding = tiny("mistral", **GROUPED, sliding_window=64)
    assert Engine(sliding).shape(64).evicted == (0, 1)
    with pytest.raises(UserError, match="evict_sliding"):
        Engine(sliding).shape(65)
    assert Engine(sliding, evict_sliding=True).shape(65).evicted == (0, 1)


def test_release_gives_the_model_back():
    model = tiny("llama", **GROUPED)
    ids = torch.arange(1, 20)[None]
    before = model(ids).logits
    engine = Engine(model)
    check(engine)
    engine.release()
    assert torch.equal(model(ids).logits, before)
    assert not any(layer._forward_pre_hooks for layer in model.model.layers)


def test_local_folder_loads_and_its_checksum_follows_the_weights(tmp_path):
    model = tiny("llama", **GROUPED | {"vocab_size": 300})
    model.save_pretrained(tmp_path)
    random_weights.byte_tokenizer().save_pretrained(tmp_path)
    first = hub.hf(str(tmp_path), "cpu", None)
    assert first.identity["dtype"] == "float32" and first.ends
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    second = hub.hf(str(tmp_path), "cpu", None)
    assert first.identity["weights"] != second.identity["weights"]
    assert first.identity["tokenizer"] == second.identity["tokenizer"]


def test_byte_tokenizer_round_trips():
    tokenizer = random_weights.byte_tokenizer()
    text = "Spaces,\n\nnew lines, 123 and ünïcödé."
    coded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(coded["input_ids"]) == text
    assert len(coded["input_ids"]) == len(text.encode())


def test_random_weights_are_a_function_of_the_seed():
    one, two, three = (random_weights.random("tiny", "cpu", None, seed=seed) for seed in (0, 0, 1))
    weights = [loaded.model.lm_head.weight for loaded in (one, two, three)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
