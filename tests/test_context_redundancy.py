"""Context redundancy: cuts against sorted lists and dense attention, and what the report makes of known effects."""

import numpy as np
import pytest
import torch
from tiny import dense, engine, prompt

from pvcbench.analysis import context_redundancy as measured
from pvcbench.cells import OBSERVATION
from pvcbench.engine.variants import Reading
from pvcbench.errors import UserError
from pvcbench.prompts import Prompt
from pvcbench.tasks.context_redundancy import ContextRedundancy

SHARES, ABOVE = (0.02, 0.1, 0.3, 0.6), (0.1, 0.6)
ROUNDED = 6e-4  # relative: four significant digits, and float64 noise of the difference of two likelihoods
FLOOR = 1e-9  # absolute: the bound for masked attention in float64, where the effect itself is nothing


# ---------------------------------------------------------------------------------------------- the measuring functions


def kept_by_hand(row, count):
    """Sorting (attention, place) pairs, without a tensor."""
    return set(sorted(range(len(row)), key=lambda place: row[place], reverse=True)[:count])


@pytest.mark.parametrize("count", [1, 3, 17, 49])
def test_the_most_attended_are_the_first_of_a_sorted_list(count):
    row = torch.rand(50, generator=torch.Generator().manual_seed(count))
    assert set(measured.most_attended(row, count).nonzero()[:, 0].tolist()) == kept_by_hand(row.tolist(), count)


@pytest.mark.parametrize(
    ("count", "wanted"), [(1, {0}), (4, {0, 1, 2, 3}), (6, {0, 1, 2, 3, 28, 29}), (30, set(range(30)))]
)
def test_the_newest_come_with_the_first_four(count, wanted):
    assert set(measured.newest(30, count).nonzero()[:, 0].tolist()) == wanted


def test_shares_are_rounded_to_at_least_one_entry():
    found = [measured.entries_kept(share, 99) for share in (0.001, 0.02, 0.1, 0.5, 0.99)]
    assert found == [1, 2, 10, 50, 98]


def test_mass_is_what_a_cut_leaves_with_the_token_itself():
    row = torch.tensor([0.5, 0.2, 0.1, 0.05, 0.15], dtype=torch.float64)
    assert measured.mass(row, torch.tensor([False, True, False, True])) == pytest.approx(0.75)
    assert measured.mass(row, torch.tensor([True] * 4)) == pytest.approx(0.15)


def test_effects_are_differences_to_the_first_row():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, -2.0], [-1.5, -2.0, -2.0, -4.0]])
    predicted = torch.tensor([[5, 6, 7, 8], [5, 6, 1, 1]])
    reading = Reading(logprobs, predicted, [])
    assert measured.effects(reading, 1) == pytest.approx((0.375, 0.5, 0.5))
    assert measured.effects(reading, 0) == (0.0, 0.0, 1.0)
    broken = Reading(logprobs * torch.tensor([[1.0], [float("nan")]]), predicted, [])
    assert measured.effects(broken, 1) == (None, None, 0.5)


# ---------------------------------------------------------------------------------------------- a whole sample


def observed(family, tokens=66, following=7):
    """What one sample shows, with its ids."""
    ids = prompt(tokens + following, seed=6)
    task, steps = ContextRedundancy(shares=SHARES, above=ABOVE, tokens=[64]), []
    found = measured.observe(engine(family), task, Prompt(ids[0].tolist(), tokens), (), torch.zeros(1), steps.append)
    assert steps == sorted(steps) and steps[-1] == 1.0
    return found[OBSERVATION]["observed"], ids


def dense_reading(family, ids, tokens, hidden):
    """NLL and likeliest tokens after the last context token, {layer: hidden places}: by masks on the whole sequence."""
    length, heads = ids.shape[1] - 1, engine(family).config.num_key_value_heads

    def masks(layer):
        shown = torch.ones(1, heads, length, length, dtype=torch.bool)
        for place in hidden.get(layer, ()):
            shown[:, :, tokens - 1 :, place] = False
        return shown

    logprobs = dense(family)(ids[:, :-1], masks)[0, tokens - 1 :].log_softmax(-1)
    nll = [-logprobs[row, token].item() for row, token in enumerate(ids[0, tokens:].tolist())]
    return nll, logprobs.argmax(-1).tolist()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral_sliding"])
def test_a_sample_is_dense_attention_under_the_same_masks(inference, family):
    """Every cut of some layers and shares; entries outside a sliding window may be cut, but were hidden already."""
    tokens, attention = 66, {}
    found, ids = observed(family, tokens)
    dense(family)(ids[:, :tokens], watch=attention.__setitem__)
    layers = found["layers"]
    assert layers == list(engine(family).shape(tokens).evicted) and found["kept"] == [1, 6, 20, 39]
    rows = {layer: attention[layer][0, :, -1].mean(0).tolist() for layer in layers}
    plain, likely = dense_reading(family, ids, tokens, {})
    assert found["uncut"]["nll"] == pytest.approx(np.mean(plain), rel=ROUNDED)
    assert found["uncut"]["next"] == pytest.approx(plain[0], rel=ROUNDED)
    largest = 0.0
    for place, layer in list(enumerate(layers))[:: max(1, len(layers) - 1)]:  # the first and the last
        for kind, shares in (("alone", SHARES), ("recent", ABOVE), ("onward", ABOVE)):
            for number, share in enumerate(shares):
                count = round(share * (tokens - 1))
                near = {0, 1, 2, 3, *range(tokens - 1 - count + 4, tokens - 1)}
                by_attention = {own: kept_by_hand(rows[own][:-1], count) for own in layers[place:]}
                kept = {"alone": {layer: by_attention[layer]}, "recent": {layer: near}, "onward": by_attention}[kind]
                hidden = {own: set(range(tokens - 1)) - places for own, places in kept.items()}
                nll, predicted = dense_reading(family, ids, tokens, hidden)
                own = {name: values[place][number] for name, values in found[kind].items()}
                increase = np.subtract(nll, plain)
                assert own["nll"] == pytest.approx(increase.mean(), rel=ROUNDED, abs=FLOOR)
                assert own["next"] == pytest.approx(increase[0], rel=ROUNDED, abs=FLOOR)
                same = sum(a == b for a, b in zip(predicted, likely, strict=True)) / len(likely)
                assert own["agreement"] == pytest.approx(same, rel=ROUNDED)
                if kind != "onward":
                    remains = sum(rows[layer][spot] for spot in (*kept[layer], tokens - 1))
                    assert own["mass"] == pytest.approx(remains, rel=ROUNDED)
                largest = max(largest, abs(increase[0]))
    assert largest > 0.01  # the cuts do something


def test_from_the_last_layer_on_is_that_layer_alone(inference):
    found, _ = observed("llama_deep")
    for name in ("nll", "next", "agreement"):
        same = [found["alone"][name][-1][SHARES.index(share)] for share in ABOVE]
        assert found["onward"][name][-1] == pytest.approx(same, rel=ROUNDED, abs=FLOOR)


def test_reading_in_parts_changes_nothing(inference, monkeypatch):
    whole, _ = observed("llama")
    monkeypatch.setattr(measured, "PART", 5)
    parts, _ = observed("llama")
    for kind in measured.KINDS:
        for name, values in whole[kind].items():
            np.testing.assert_allclose(parts[kind][name], values, rtol=ROUNDED, atol=FLOOR)


@pytest.mark.parametrize("settings", [{"shares": []}, {"shares": [0.1, 1.0]}, {"shares": [0.0]}, {"above": [0.3]}])
def test_bad_shares_get_a_line(settings):
    with pytest.raises(UserError, match=r"task\.(shares|above)"):
        ContextRedundancy(**settings)
