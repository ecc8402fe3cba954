"""attention_patterns judges a method where its cache has its keys: StreamingLLM's sinks stand across the gap."""

import math
from dataclasses import replace

import pytest
import torch

from patterns_task import EXACT, task
from pvcbench.analyses.attention_patterns import observe as observing
from pvcbench.evaluation.cells import Point
from pvcbench.tasks.prompts import Prompt
from tiny import METHODS, dense, engine, largest, original, prompt

TOKENS, BUDGET, SINKS = 64, 20, 4
ROWS = {"last": [63], "answer": [65, 66, 67]}  # those that predict tokens 66, 67 and 68
STORED = 6e-4  # rows hold three decimals


def judged(methods, family="llama", budget=BUDGET):
    """What attention_patterns says of some methods, with the ids of a prompt of 64 tokens and of 6 answer tokens."""
    ids = prompt(70, seed=11)
    own = Prompt(ids[0].tolist(), TOKENS, {"needle": (30, 38), "answer": (66, 69)})
    points = [Point(name, method, repr(budget), budget) for name, method in methods.items()]
    with torch.inference_mode():
        found = observing.observe(engine(family), task(), own, points, torch.zeros(1).long(), print)
    return ids, [found[point] for point in points]


def turned(key, positions, frequencies):
    """A key after RoPE moved on by some positions: dimension i and its partner turn by positions * frequency i."""
    moved, half = list(key), len(frequencies)
    for i, frequency in enumerate(frequencies):
        cos, sin = math.cos(positions * frequency), math.sin(positions * frequency)
        moved[i] = key[i] * cos - key[i + half] * sin
        moved[i + half] = key[i + half] * cos + key[i] * sin
    return moved


def naive_error(query, keys, values, scale, kept, frequencies):
    """|cut - full| / |full| of one row by loops, the kept sinks moved across the gap between them and the window."""
    gap = TOKENS - BUDGET

    def output(entries, move):
        logits = []
        for j in entries:
            key = turned(keys[j], gap, frequencies) if move and j < SINKS else keys[j]
            logits.append(scale * sum(q * k for q, k in zip(query, key, strict=True)))
        weights = [math.exp(one - max(logits)) for one in logits]
        return [
            sum(w * values[j][i] for w, j in zip(weights, entries, strict=True)) / sum(weights)
            for i in range(len(values[0]))
        ]

    full = output(range(len(keys)), False)
    return math.dist(full, output(kept, True)) / math.hypot(*full)


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3"])  # phi3 rotates half of its dimensions
def test_streaming_llm_is_judged_at_cache_positions(family, inference):
    """Every layer, head and row by loops over the kept keys, each sink turned by the gap; 1e-6 is the model's table."""
    ids, [row] = judged({"streaming_llm": METHODS["streaming_llm"]}, family)
    host = engine(family)
    frequencies = host.model.model.rotary_emb.inv_freq.double().tolist()
    prefill = host.prefill(ids, capture=70)
    for layer in range(4):
        rows = prefill.rows(layer)
        heads, groups = rows.query.shape[1], rows.query.shape[1] // rows.keys.shape[1]
        for name, places in ROWS.items():
            for head in range(heads):
                errors = []
                for place in places:
                    keys, values = (part[0, head // groups, : place + 1].tolist() for part in (rows.keys, rows.values))
                    kept = [j for j in range(place + 1) if j < SINKS or j >= TOKENS - (BUDGET - SINKS)]
                    query = rows.query[0, head, place].tolist()
                    errors.append(naive_error(query, keys, values, rows.rule.scale, kept, frequencies))
                mine = row["observed"]["error"][name][layer][head]
                assert mine == pytest.approx(sum(errors) / len(errors), abs=STORED), (layer, name, head)


def test_layer_0_equals_dense_attention_at_cache_places(inference):
    """The unmodified model with its last row masked and every key at its place in the cache; later rows likewise."""
    ids, [row] = judged({"streaming_llm": METHODS["streaming_llm"]})
    places = torch.arange(70)
    shown = torch.ones(70, 70, dtype=torch.bool)
    keys = places.expand(70, -1).clone()
    for place in [63, 65, 66, 67]:
        shown[place, SINKS : TOKENS - (BUDGET - SINKS)] = False
        keys[place, :SINKS] += TOKENS - BUDGET
    seen, cut = {}, {}
    dense("llama")(ids, watch=seen.__setitem__)
    ranks = places.expand(1, 2, -1), keys.expand(1, 2, -1, -1)
    dense("llama")(ids, masks=lambda layer: shown, watch=cut.__setitem__, ranks=lambda layer: ranks)
    values = engine("llama").prefill(ids).layers[0].values.repeat_interleave(2, 1)[0]
    full, part = seen[0][0] @ values, cut[0][0] @ values
    errors = (part - full).norm(dim=-1) / full.norm(dim=-1)
    for name, rows in ROWS.items():
        assert row["observed"]["error"][name][0] == pytest.approx(errors[:, rows].mean(1).tolist(), abs=STORED)


def test_positions_change_the_verdict_and_not_the_kept_set():
    """The named variant at original positions is judged there; sets and the full cache's mass on them are the same."""
    streaming = METHODS["streaming_llm"]
    _, [cache, gap] = judged({"cache": streaming, "original": original(streaming)})
    differences = torch.tensor(cache["observed"]["error"]["last"]) - torch.tensor(gap["observed"]["error"]["last"])
    assert differences.abs().max() > 0.05
    for key in ("kept_entries", "kept_fraction", "spans_kept"):
        assert cache[key] == gap[key]
    assert cache["observed"]["mass"] == gap["observed"]["mass"]


def test_a_budget_that_keeps_everything_moves_nothing():
    """No gap, no error: at a budget of the whole prompt both variants leave every head's output as it is."""
    _, rows = judged({"cache": METHODS["streaming_llm"], "original": original(METHODS["streaming_llm"])}, budget=64)
    for row in rows:
        assert max(max(layer) for part in row["observed"]["error"].values() for layer in part) < EXACT


def test_what_cannot_be_judged_is_an_error_row(monkeypatch):
    """Leaking references read what is not shown to them here; sinks cannot move where no rotation is known."""
    host = engine("llama")
    prefill = host.prefill
    monkeypatch.setattr(host, "prefill", lambda *args, **kw: replace(prefill(*args, **kw), turns=["it is made up"] * 4))
    _, [reason, row] = judged({"streaming_llm": METHODS["streaming_llm"], "h2o": METHODS["h2o"]})
    assert "it is made up: set methods.<name>.positions=original" in str(reason) and row["kept_entries"] == BUDGET
    leaking = {name: method for name, method in METHODS.items() if method.reads is not None}
    _, reasons = judged(leaking)
    assert len(reasons) == 2 and all("reads what follows the prompt" in str(reason) for reason in reasons)


def test_judging_at_cache_positions_takes_memory_linear_in_the_prompt(inference):
    """A second pass over the rows, with keys of its own: linear is 4 times from 1,024 to 4,096, quadratic 16."""

    def look(tokens):
        rows = engine("llama").prefill(prompt(tokens), capture=32).rows(1)
        kept = torch.ones(2, tokens, dtype=torch.bool)
        observing.output_error(rows, kept, rows.keys[:, :, :4])

    assert largest(lambda: look(4096)) <= 4.2 * largest(lambda: look(1024))
