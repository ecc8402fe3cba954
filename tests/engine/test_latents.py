"""Latent attention: a prompt is computed over expanded keys and values, and what is stored and scored stays latent."""

import pytest
import torch

import families
from methods.expected_attention import ExpectedAttention
from methods.h2o import H2O
from methods.pvc import PvC
from methods.snapkv import SnapKV
from pvcbench.engine import attention, prefill
from pvcbench.engine.cache import AttendingCache
from pvcbench.engine.engine import Engine
from tiny import prompt

NAMES = ["deepseek_v3", "glm4_moe_lite", "minicpm3", "kimi_linear", "longcat_flash"]
pytestmark = pytest.mark.usefixtures("inference")
TOKENS = 40


def over_latents(monkeypatch):
    """Prompts are computed over the latents, as steps are."""
    monkeypatch.setattr(prefill.PrefillCache, "attend_to_latents", AttendingCache.attend_to_latents)


@pytest.mark.parametrize("chunk", [None, 13])
@pytest.mark.parametrize("name", NAMES)
def test_both_forms_give_the_same_entries_scores_and_logits(name, chunk, monkeypatch):
    """Float64, one product in another order: rounding alone is between them. Captured rows are over the latents."""
    engine = Engine(families.build(name, torch.float64), chunk=chunk)
    methods = [H2O(), SnapKV(window=5)] + ([ExpectedAttention()] if name in ("deepseek_v3", "longcat_flash") else [])
    expanded = engine.prefill(prompt(TOKENS, 2), methods, capture=3)
    over_latents(monkeypatch)
    absorbed = engine.prefill(prompt(TOKENS, 2), methods, capture=3)
    close = {"rtol": 1e-9, "atol": 1e-9}  # the model's own float32 tables and norms magnify 1e-16
    torch.testing.assert_close(expanded.logits, absorbed.logits, **close)
    for method in methods:
        for one, other in zip(expanded.observer.scores[method], absorbed.observer.scores[method], strict=True):
            torch.testing.assert_close(one, other, **close)
    config = engine.config
    for layer, (one, other) in enumerate(zip(expanded.layers, absorbed.layers, strict=True)):
        assert one.keys.shape == (2, 1, TOKENS, config.kv_lora_rank + config.qk_rope_head_dim)
        torch.testing.assert_close(one.keys, other.keys, **close)
        torch.testing.assert_close(one.values, other.values, **close)
        torch.testing.assert_close(expanded.rows(layer).query, absorbed.rows(layer).query, **close)
    engine.release()


def test_a_pruned_prefill_keeps_the_same_positions(monkeypatch):
    engine, kept = Engine(families.build("deepseek_v3", torch.float64)), []
    for form in ("expanded", "latent"):
        if form == "latent":
            over_latents(monkeypatch)
        pruner = PvC(min_context_length=8).resolve(35, engine.shape(TOKENS))
        kept.append([layer.positions for layer in engine.prefill(prompt(TOKENS), pruner=pruner).layers])
    assert kept[0][-1].shape[1] < TOKENS
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))
    engine.release()


@pytest.mark.parametrize("backend", ["blocked", "triton"])
@pytest.mark.parametrize("chunk", [None, 13])
def test_every_row_of_a_prompt_attends_to_expanded_keys(chunk, backend, monkeypatch):
    """The products of prompt attention are as wide as the model's own heads, observed rows and plain ones alike."""
    engine, widths = Engine(families.build("deepseek_v3", torch.float32), backend=backend, chunk=chunk), []

    def watched(name, module):
        real = getattr(module, name)

        def run(query, key, value, *args, **kwargs):
            widths.append((query.shape[2], query.shape[-1], value.shape[-1], key.shape[1]))
            return real(query, key, value, *args, **kwargs)

        monkeypatch.setattr(module, name, run)

    for name in ("prompt_attention", "attention_with_lse"):
        watched(name, prefill)
    watched("_blocked", attention)
    engine.prefill(prompt(TOKENS), [SnapKV(window=5)])
    config = engine.config
    wide = (config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim, config.num_attention_heads)
    assert {seen[1:] for seen in widths} == {wide}
    assert sum(rows for rows, *_ in widths) >= TOKENS * config.num_hidden_layers
    engine.release()
