"""Attention patterns on models of today: learnt sinks, latents, soft caps and states, against naive dense attention.

The dense reference of family_dense.py shows queries, keys and values as the unmodified model has them.
"""

import pytest
import torch

import families
from families import hosted as host
from family_dense import CLOSE, Dense, dense, exact
from pvcbench.analyses.attention_patterns import observe as observing

__all__ = ["exact"]  # the fixture that takes transformers' roundings out
KINDS = ["gpt_oss", "deepseek_v3", "gemma2", "qwen3_next", "llama4_text", "longcat_flash"]
TOKENS, PROMPT, COUNT = 40, 36, 5
pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def attended(monkeypatch):
    """What each layer of the dense reference attends with, by the engine's number."""
    found, real = {}, Dense.attend

    def watched(self, query, key, value, scale, cap, sinks):
        found[self.order[self.calls]] = query, key, value, scale, cap, sinks
        return real(self, query, key, value, scale, cap, sinks)

    monkeypatch.setattr(Dense, "attend", watched)
    return found


def weights_of(parts, row: int, shown=None):
    """One row's attention by head, [heads, row + 1], over what is shown; the learnt sink's is left out at the end."""
    query, key, _, scale, cap, sinks = (part if not torch.is_tensor(part) else part.double() for part in parts)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)[0, :, : row + 1]
    logits = (key @ query[0, :, row, :, None])[..., 0] * (query.shape[-1] ** -0.5 if scale is None else scale)
    heights = (logits if cap is None else cap * torch.tanh(logits / cap)).exp()
    if shown is not None:
        heights = heights * shown[:, : row + 1]
    return heights / (heights.sum(-1, keepdim=True) + (0 if sinks is None else sinks.exp()[:, None]))


@pytest.mark.parametrize("name", KINDS)
def test_output_errors_are_those_of_the_models_own_heads(name, attended):
    ids = families.prompt(TOKENS, seed=9)
    rows_of, kv_heads = host(name).prefill(ids, capture=COUNT), {}
    dense(name)(ids)
    for layer in host(name).shape(TOKENS).evicted:
        rows = rows_of.rows(layer)
        kv_heads = rows.keys.shape[1]
        kept = torch.rand(kv_heads, PROMPT, generator=torch.Generator().manual_seed(layer)) < 0.4
        errors, masses = observing.output_error(rows, kept)
        shown = torch.nn.functional.pad(kept, (0, TOKENS - PROMPT), value=True)
        query, _, value = attended[layer][:3]
        shown = shown.repeat_interleave(query.shape[1] // kv_heads, 0)
        value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)[0]
        mine = torch.zeros(2, query.shape[1], dtype=torch.float64)
        for row in range(TOKENS - COUNT, TOKENS):
            whole, cut = weights_of(attended[layer], row), weights_of(attended[layer], row, shown)
            full, part = ((one[:, None] @ value[:, : row + 1])[:, 0] for one in (whole, cut))
            mine[0] += (part - full).norm(dim=-1) / full.norm(dim=-1) / COUNT
            mine[1] += (whole * shown[:, : row + 1]).sum(-1) / COUNT
        assert (errors - mine[0]).abs().max() < 1e-9 and (masses - mine[1]).abs().max() < CLOSE
        assert mine[0].min() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_regions_are_shares_of_what_entries_get(name, attended):
    """Also weighted by the norms of each head's own values; a learnt sink's part is told apart."""
    ids, options = families.prompt(TOKENS, seed=7), {"sinks": 3, "recent": 10, "top": [1, 4], "needle": (20, 26)}
    prefill = host(name).prefill(ids, capture=COUNT)
    dense(name)(ids)
    for layer in host(name).shape(TOKENS).evicted:
        found, rows = observing.layer_measures(prefill.rows(layer), **options), prefill.rows(layer)
        value = attended[layer][2]
        value = value.repeat_interleave(rows.query.shape[1] // value.shape[1], 1)[0]
        naive = [torch.zeros(4, rows.query.shape[1], dtype=torch.float64) for _ in found]
        handed = 0
        for row in range(TOKENS - COUNT, TOKENS):
            weights = weights_of(attended[layer], row)
            handed = handed + weights.sum(-1) / COUNT
            for total, scale in zip(naive, (1.0, value[:, : row + 1].norm(dim=-1)), strict=True):
                own = weights * scale
                own = own / own.sum(-1, keepdim=True)
                parts = own[:, :3].sum(-1), own[:, max(3, row - 9) :].sum(-1), own[:, 3 : max(3, row - 9)].sum(-1)
                total.add_(torch.stack([*parts, torch.special.entr(own).sum(-1)]) / COUNT)
        for mine, theirs in zip(naive, found, strict=True):
            for number, key in enumerate(("sink", "recent", "middle", "entropy")):
                assert (mine[number] - theirs[key]).abs().max() < 1e-9
        assert (observing.given(rows) - handed).abs().max() < CLOSE
        assert (handed < 0.999).all() == (rows.rule.sinks is not None)
