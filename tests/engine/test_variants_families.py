"""Reading on after a prompt whose entries are hidden, on models of today: against dense attention under the mask.

The dense reference is that of family_dense.py: float64, transformers' own roundings to float32 taken out.
"""

import pytest
import torch

import families
from families import built as plain
from families import hosted as host
from family_dense import CLOSE, dense, exact, off
from pvcbench.engine.ablation import Variant
from pvcbench.errors import UserError

__all__ = ["exact"]  # the fixture that takes transformers' roundings out
KINDS = ["qwen3_next", "granitemoehybrid:rope", "lfm2", "falcon_h1", "gpt_oss", "gemma2", "llama4_text", "deepseek_v3"]
KINDS += ["longcat_flash"]
ENTRIES, READ = 41, 6
pytestmark = pytest.mark.usefixtures("inference")


def variants_of(engine, entries: int) -> list[Variant]:
    """Random entries hidden in one layer each, in the last two, and nothing hidden in the first."""
    generator, layers = torch.Generator().manual_seed(5), len(engine.windows)

    def mask():
        return torch.rand(1, entries, generator=generator) < 0.6

    found = [Variant({layer: mask()}) for layer in range(layers)]
    last = range(max(0, layers - 2), layers)
    return [*found, Variant({layer: mask() for layer in last}), Variant({0: torch.zeros(1, entries).bool()})]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("later", [0, 3])
def test_reading_with_hidden_entries_equals_dense_attention(name, later):
    """From the prompt's end, and from `later` tokens before it, where recurrent layers need their state of then."""
    engine, reference = host(name), dense(name)
    ids = families.prompt(ENTRIES + READ + 1, seed=3)
    prefill, variants = engine.prefill(ids[:, : ENTRIES + later]), variants_of(engine, ENTRIES)
    fed, wanted = ids[:, ENTRIES : ENTRIES + READ], ids[:, ENTRIES + 1 :]
    states = engine.carried(ids[:, :ENTRIES]) if later else None
    carried = [state.map(torch.clone) for state in prefill.states.values()]
    found, total = engine.read(prefill, ENTRIES, fed, wanted, variants, states), ENTRIES + READ
    expected = plain(name)(input_ids=ids[:, :total], use_cache=False).logits[0, ENTRIES:].log_softmax(-1)
    assert (found.logprobs[0] - expected.gather(-1, wanted[0][:, None])[:, 0]).abs().max() < 1e-9
    apart = []
    for number, variant in enumerate(variants, 1):
        masks = [torch.ones(1, 1, total, total, dtype=torch.bool) for _ in engine.windows]
        for layer, hidden in variant.hidden.items():
            masks[layer][0, :, ENTRIES:, :ENTRIES] &= ~hidden[:, None]
        logits = reference(ids[:, :total], masks)[0, ENTRIES:]
        own = logits.log_softmax(-1).gather(-1, wanted[0][:, None])[:, 0]
        assert (found.logprobs[number] - own).abs().max() < 1e-9
        assert torch.equal(found.predicted[number], logits.argmax(-1))
        apart.append((found.logprobs[number] - found.logprobs[0]).abs().max().item())
    assert max(apart) > 1e-3 and apart[-1] < CLOSE  # what hides entries changes something, what hides none does not
    for old, state in zip(carried, prefill.states.values(), strict=True):
        assert all(map(torch.equal, old.tensors(), state.tensors()))


def test_the_state_in_the_middle_of_a_prompt_has_to_be_given():
    engine, ids = host("lfm2"), families.prompt(30)
    with pytest.raises(ValueError, match="give `states`"):
        engine.read(engine.prefill(ids), 20, ids[:, 20:25], ids[:, 21:26])


def test_what_reads_later_tokens_one_by_one_is_not_read_on(monkeypatch):
    engine, ids = host("lfm2"), families.prompt(30)
    monkeypatch.setattr(engine, "continues", False)
    with pytest.raises(UserError, match="one by one only"):
        engine.read(engine.prefill(ids), 30, ids[:, :5], ids[:, 1:6])


@pytest.mark.parametrize("name", KINDS)
def test_rows_read_on_are_those_of_the_prompt(name):
    """Attention of the fed tokens: what a prompt that goes on to them captures."""
    engine, ids = host(name), families.prompt(ENTRIES + READ + 1, seed=4)
    read = engine.read(engine.prefill(ids[:, :ENTRIES]), ENTRIES, ids[:, ENTRIES:-1], ids[:, ENTRIES + 1 :]).rows
    whole = engine.prefill(ids[:, :-1], capture=READ)
    for layer, rows in enumerate(read):
        [(_, _, mine)] = rows.blocks()
        mine = mine.clone()
        [(_, _, theirs)] = whole.rows(layer).blocks()
        assert off(mine, theirs) < CLOSE
