"""Context redundancy: cuts against sorted lists and dense attention, and what the report makes of known effects."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from pvcbench.analyses.context_redundancy import figures as drawing
from pvcbench.analyses.context_redundancy import observe as measured
from pvcbench.analyses.context_redundancy import tables as report
from pvcbench.analyses.context_redundancy.task import ContextRedundancy
from pvcbench.config import compose
from pvcbench.engine.ablation import Reading
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import OBSERVATION
from pvcbench.plots import run_figures
from pvcbench.runs import runner
from pvcbench.tasks.prompts import Prompt
from tiny import dense, engine, prompt

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


# ---------------------------------------------------------------------------------------------- the report

LAYERS, KEPT, SOME = [1, 3, 4, 6, 8, 9], [0.1, 0.4], [0.4]


def made(nll, number=0, text="document", onward=0.02):
    """One row with this NLL increase by layer at both shares; everything else is one plain number."""
    wide, narrow = [[1.0] * 2] * 6, [[1.0]] * 6
    alone = {"nll": [[cost, cost / 2] for cost in nll], "next": wide, "mass": [[0.9 - cost, 0.95] for cost in nll]}
    alone["agreement"] = [[1 - cost / 10, 0.75] for cost in nll]
    recent = {"nll": [[cost / 2 + 0.25] for cost in nll], "next": narrow, "agreement": narrow, "mass": narrow}
    deeper = {"nll": [[onward - 0.004 * place] for place in range(6)], "next": narrow, "agreement": narrow}
    found = {"layers": LAYERS, "shares": KEPT, "above": SOME, "kept": [9, 36], "uncut": {"nll": 2.0, "next": 2.0}}
    row = {"task": "context_redundancy", "model": "made", "method": None, "error": None, "cluster": f"{text} {number}"}
    row |= {"sample": f"{text} {number}", "sample_info": {"text": text, "length": 128}}
    return row | {"observed": found | {"alone": alone, "recent": recent, "onward": deeper}}


FAILED = made([0.0] * 6) | {"error": "out of memory", "observed": None, "sample": "failed"}
FALLING = [0.6, 0.5, 0.4, 0.3, 0.004, 0.002]


def quantity(rows, name, share=0.1):
    """One line of the quantities."""
    table = report.tables(pd.DataFrame(rows))["quantities"]
    [line] = table[(table["quantity"] == name) & (table["kept_share"] == share)].to_dict("records")
    return line


def test_what_falls_with_depth_holds_and_what_rises_does_not():
    rows = [FAILED, *(made([cost + 1e-4 * number for cost in FALLING], number) for number in range(12))]
    trend = quantity(rows, "NLL increase with depth, rho")
    assert (trend["mean"], trend["low"], trend["high"], trend["verdict"]) == (-1, -1, -1, "holds")
    assert quantity(rows, "agreement loss with depth, rho")["verdict"] == "holds"
    assert np.isnan(quantity(rows, "agreement loss with depth, rho", 0.4)["mean"])  # the same loss everywhere
    assert quantity(rows, "NLL increase with attention lost, rho")["mean"] == 1
    thirds = [quantity(rows, f"NLL increase, {third} third") for third in ("first", "middle", "last")]
    assert [third["mean"] for third in thirds] == pytest.approx([0.55055, 0.35055, 0.00355])
    assert [third["verdict"] for third in thirds] == ["", "", "holds"]
    assert quantity(rows, "agreement", 0.4)["mean"] == pytest.approx(0.75)
    assert quantity(rows, "NLL increase, newest kept less most attended kept", 0.4)["mean"] == pytest.approx(0.25)
    rising = [made(FALLING[::-1], number) for number in range(12)]
    assert quantity(rising, "NLL increase with depth, rho")["verdict"] == "does not hold"
    assert quantity(rising, "NLL increase, last third")["verdict"] == "does not hold"
    mixed = [made(FALLING[:: 1 - 2 * (number % 2)], number) for number in range(12)]
    assert quantity(mixed, "NLL increase with depth, rho")["verdict"] == "not told apart"


def summary(rows):
    """The summary's cells by group and quantity."""
    return report.tables(pd.DataFrame(rows))["summary"].set_index(["samples", "quantity"])


def test_the_summary_has_a_line_per_group_and_quantity():
    rows = [made(FALLING, number, text) for number in range(12) for text in ("document", "needle")]
    table = summary([*rows, FAILED])
    assert list(table.columns) == ["40% kept"]  # the shares of `above`
    assert list(table.index.levels[0]) == ["documents, 128 tokens", "needle prompts, 128 tokens"]
    cells = table.loc["needle prompts, 128 tokens", "40% kept"]
    assert cells["NLL increase with depth, rho (claim: below 0)"] == "-1.00 [-1.00, -1.00] holds"
    assert cells["layers where a cut costs most NLL"] == "1, 3, 4"
    assert cells["all layers cut for less than 0.01: from layer"] == "6 (interval: 6)"  # 0.012 at layer 4, 0.008 at 6
    assert cells["NLL increase, newest kept less most attended kept"] == "0.250 [0.250, 0.250]"
    assert cells["agreement"] == "0.750 [0.750, 0.750]"


def test_few_documents_have_no_interval_and_no_word():
    rows = [made(FALLING, number) for number in range(9)]
    trend = quantity(rows, "NLL increase with depth, rho")
    assert trend["mean"] == -1 and np.isnan(trend["low"]) and trend["verdict"] == ""
    cells = summary(rows)["40% kept"]["documents, 128 tokens"]
    assert cells["all layers cut for less than 0.01: from layer"] == "6"
    assert cells["NLL increase, first third of layers"] == "0.275"


@pytest.mark.parametrize(
    ("costs", "wanted"), [([0.1, 0.0, 0.1, 0.0, 0.0], 3), ([0.0, 0.0], 0), ([0.0, 0.1], None), ([0.0, np.nan], None)]
)
def test_a_cut_is_cheap_where_all_deeper_ones_are(costs, wanted):
    assert report.cheap_from(np.array(costs)) == wanted


def test_layers_are_named_as_the_model_does():
    table = report.tables(pd.DataFrame([made(FALLING, number) for number in range(12)]))["by_layer"]
    line = table[(table["cut"] == "alone") & (table["layer"] == 3) & (table["kept_share"] == 0.4)].iloc[0]
    assert (line["nll"], line["nll_low"], line["mass"]) == pytest.approx((0.25, 0.25, 0.95))
    assert len(table) == 6 * (2 + 1 + 1) and sorted(table["layer"].unique()) == LAYERS


def test_figures_show_the_means_and_repeat_to_the_byte(tmp_path):
    frame = pd.DataFrame([FAILED, *(made(FALLING, number) for number in range(12))])
    drawn = dict(drawing.figures(frame))
    assert list(drawn) == [
        *("nll_by_share", "agreement_by_share", "nll_map", "agreement_map", "attention_map"),
        *("nll_by_layer", "nll_onward"),
    ]
    assert list(drawn["nll_map"].axes[0].images[0].get_array().data[:, 0]) == pytest.approx(FALLING)
    first = drawn["nll_by_layer"].axes[0].lines[0]
    assert list(first.get_xdata()) == LAYERS and list(first.get_ydata()) == pytest.approx(FALLING)
    assert list(drawn["nll_onward"].axes[0].lines[0].get_ydata()) == pytest.approx([0.02 - 0.004 * n for n in range(6)])
    paths = [run_figures.save(lambda: drawing.figures(frame), tmp_path / name, "0" * 64) for name in "ab"]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*paths, strict=True))


def test_only_failures_leave_an_empty_summary_and_no_figure():
    frame = pd.DataFrame([FAILED])
    assert report.tables(frame)["summary"].empty and list(drawing.figures(frame)) == []


def test_a_run_from_the_configuration(tmp_path):
    """Without shares for all layers there is neither a control nor a cut of all layers: still a report."""
    texts = ["task.tokens=[600]", "task.documents=1", "task.needles=1", "task.following=4"]
    common = ["task=context_redundancy", "model=random", "threads=1", "wandb.mode=disabled", *texts]
    result = runner.run(compose.composed([*common, f"results={tmp_path}", "task.shares=[0.1,0.5]", "task.above=[]"]))
    assert result.rows["error"].isna().all() and len(result.rows) == 2
    assert list(result.summary.columns) == ["samples", "quantity", "10% kept", "50% kept"]
    for seen in result.rows["observed"]:
        assert np.shape(seen["alone"]["nll"]) == np.shape(seen["alone"]["mass"]) == (4, 2)
        assert np.shape(seen["onward"]["nll"]) == (4, 0) and json.dumps(seen, allow_nan=False)
    assert {path.stem for path in result.figures} >= {"nll_by_share", "nll_by_layer"}
    assert (result.folder / "by_layer.csv").exists()
