"""Captured rows and hidden entries against dense attention under the equivalent mask."""

import pytest
import torch
import torch.nn.functional as F

from pvcbench.engine.ablation import Variant, shared_attention
from pvcbench.engine.query_rows import Rows
from tiny import dense, engine, largest, prompt

FAMILIES = ["llama", "llama_deep", "qwen3", "mistral", "phi3", "gemma3"]
NOISE = 1e-9  # float64: sums of a few hundred terms; the design's bound for masked attention


def hidden_masks(family, entries, seed, heads):
    """A few variants with random entries hidden in random layers; one of them hides nothing."""
    host = engine(family)
    layers, kv_heads = len(host.windows), host.config.num_key_value_heads
    generator = torch.Generator().manual_seed(seed)
    variants = []
    for number in range(6):
        chosen = torch.randperm(layers, generator=generator)[: 1 + number % layers].tolist()
        shape = (kv_heads if heads == "each" and number % 2 else 1, entries)
        variants.append(Variant({layer: torch.rand(shape, generator=generator) < 0.6 for layer in chosen}))
    return [*variants, Variant({1: torch.zeros(1, entries, dtype=torch.bool)})]


@pytest.mark.parametrize("heads", ["one", "each"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reading_with_hidden_entries_equals_dense_attention(inference, family, heads):
    entries, tokens = 41, 9
    ids = prompt(entries + tokens + 1, seed=3)
    host, reference = engine(family), dense(family)
    prefill = host.prefill(ids[:, : entries + 3])  # some rows more than are read from
    variants = hidden_masks(family, entries, 5, heads)
    fed, wanted = ids[:, entries : entries + tokens], ids[:, entries + 1 : entries + tokens + 1]
    found = host.read(prefill, entries, fed, wanted, variants)
    assert found.logprobs.shape == (1 + len(variants), tokens)
    for number, variant in enumerate([None, *variants]):

        def masks(layer, variant=variant):
            shown = torch.ones(1, host.config.num_key_value_heads, entries + tokens, entries + tokens).bool()
            if variant is not None and layer in variant.hidden:
                shown[0, :, entries:, :entries] &= ~variant.hidden[layer][:, None]
            return shown

        logits = reference(ids[:, : entries + tokens], masks)[0, entries:].log_softmax(-1)
        assert torch.equal(found.predicted[number], logits.argmax(-1))
        assert (found.logprobs[number] - logits.gather(-1, wanted[0][:, None])[:, 0]).abs().max() < NOISE


def test_hiding_changes_what_is_read(inference):
    """The comparison above would hold for variants that do nothing, if the masks did nothing either."""
    ids, host = prompt(40, seed=1), engine("llama")
    prefill = host.prefill(ids)
    found = host.read(prefill, 30, ids[:, 30:39], ids[:, 31:40], hidden_masks("llama", 30, 0, "one"))
    assert (found.logprobs[1:-1] - found.logprobs[0]).abs().amax(1).min() > 1e-3
    assert (found.logprobs[-1] - found.logprobs[0]).abs().max() < NOISE


def test_waves_change_nothing(inference, monkeypatch):
    ids, host = prompt(40, seed=2), engine("llama")
    prefill, variants = host.prefill(ids), hidden_masks("llama", 30, 0, "one")
    whole = host.read(prefill, 30, ids[:, 30:39], ids[:, 31:40], variants)
    monkeypatch.setattr("pvcbench.engine.ablation.CALL_BYTES", 1)
    monkeypatch.setattr("pvcbench.engine.ablation._BLOCK_ELEMENTS", 1)
    single = host.read(prefill, 30, ids[:, 30:39], ids[:, 31:40], variants)
    assert (whole.logprobs - single.logprobs).abs().max() < NOISE and torch.equal(whole.predicted, single.predicted)


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_rows_are_the_models_attention(inference, family, chunk):
    ids, seen = prompt(37, seed=4), {}
    dense(family)(ids, watch=seen.__setitem__)
    prefill = engine(family, chunk).prefill(ids, capture=11)
    for layer, attention in seen.items():
        rows = prefill.rows(layer)
        assert rows.query.shape[2] == 11
        check(rows, attention[:, :, -11:])
        check(rows.part(2, 5), attention[:, :, -9:-6])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_read_on_are_the_models_attention(inference, family):
    ids, seen, host = prompt(37, seed=4), {}, engine(family)
    dense(family)(ids, watch=seen.__setitem__)
    prefill = host.prefill(ids[:, :34])
    for layer, rows in enumerate(host.read(prefill, 30, ids[:, 30:36], ids[:, 31:37]).rows):
        check(rows, seen[layer][:, :, 30:36])


def check(rows: Rows, attention):
    """The blocks of some rows are these weights, and 0 where a block has no column."""
    found = torch.zeros(attention.shape[:3] + rows.keys.shape[2:3], dtype=attention.dtype)
    for first, last, weights in rows.blocks():
        found[:, :, first:last, : weights.shape[-1]] = weights
    assert (found - attention[..., : found.shape[-1]]).abs().max() < NOISE


def test_captured_rows_take_memory_linear_in_the_prompt(inference):
    """A share of the prompt's rows is looked at: still no tensor of rows x entries."""

    def look(tokens):
        prefill = engine("llama").prefill(prompt(tokens), capture=tokens // 3)
        return sum(weights.sum().item() for _, _, weights in prefill.rows(1).blocks())

    small, large = largest(lambda: look(1024)), largest(lambda: look(4096))
    assert large <= 4.2 * small  # linear: 4 times; quadratic: 16 times


@pytest.mark.parametrize("heavier", ["prompt", "own"])
def test_shared_attention_does_not_overflow(heavier):
    """Logits of one side thousands above the other's: exp(1000) is infinite, the softmax is not."""
    generator = torch.Generator().manual_seed(0)
    query, keys, own = (
        torch.rand(size, generator=generator).double() for size in ((2, 4, 3, 8), (2, 9, 8), (2, 2, 3, 8))
    )
    keys, own = (keys * 1e3, own) if heavier == "prompt" else (keys, own * 1e3)
    values, own_values = torch.rand_like(keys), torch.rand_like(own)
    future = torch.ones(1, 1, 3, 3, dtype=torch.bool).triu(1)
    found = shared_attention(query, (keys, values), (own, own_values, future), 1.0, None, None)
    whole = (torch.cat((old.expand(2, -1, -1, -1), new), 2) for old, new in ((keys, own), (values, own_values)))
    causal = torch.cat((torch.ones(3, 9, dtype=torch.bool), ~future[0, 0]), 1)
    wanted = F.scaled_dot_product_attention(query, *whole, attn_mask=causal, scale=1.0, enable_gqa=True)
    assert torch.isfinite(found).all() and (found - wanted).abs().max() < NOISE
