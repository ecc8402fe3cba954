"""Shared, non-shared and no pivotal context: against sets and sorted lists, dense attention and made-up rows."""

import inspect
import math
from array import array
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from pvcbench.analyses.pivotal_roles import figures as drawing
from pvcbench.analyses.pivotal_roles import observe as roles
from pvcbench.analyses.pivotal_roles import tables as report
from pvcbench.analyses.pivotal_roles.task import PivotalRoles
from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import OBSERVATION
from pvcbench.runs import runner
from pvcbench.tasks.prompts import Prompt
from tiny import dense, engine, largest, prompt

ROUNDED = {"rel": 6e-4, "abs": 1e-9}  # observations hold four significant digits


def chosen(row: list[float], share: float, reading: str) -> set[int]:
    """The PvC of one row, by walking down its sorted entries."""
    order = sorted(range(len(row)), key=lambda place: -row[place])
    if reading == "count":
        return set(order[: int(share * len(row))])
    found, mass = set(), 0.0
    for place in order:
        if mass >= share * math.fsum(row):
            break
        found.add(place)
        mass += row[place]
    return found


def naive_parts(rows: list[list[float]], share: float, shared_by: float, reading: str):
    """Parts of the last of these rows as sets, and in how many of the other rows' PvC each entry is."""
    *others, own = (chosen(row, share, reading) for row in rows)
    counts = [sum(place in other for other in others) for place in range(len(rows[0]))]
    shared = {place for place in own if counts[place] / len(others) >= shared_by}
    rest = set(range(len(rows[0]))) - own
    return {"shared": shared, "non_shared": own - shared, "non_pvc": rest}, counts


def members(mask) -> set[int]:
    return set(mask.nonzero()[:, 0].tolist())


def test_pivotal_of_known_rows():
    rows = torch.tensor([[0.125, 0.5, 0.0625, 0.25], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    mass, count = roles.pivotal(rows, 0.75)
    assert [members(row) for row in mass] == [{1, 3}, set(), {2}]  # .75 of .9375 is less than .5 + .25
    assert members(count[0]) == {0, 1, 3} and count.sum(1).tolist() == [3, 3, 3]


@pytest.mark.parametrize("cuts", [[0, 23], [0, 1, 9, 10, 23]])
@pytest.mark.parametrize("shared_by", [0.4, 0.8, 1.0])
def test_parts_are_those_of_sets(cuts, shared_by):
    """Rows in any blocks, of several heads and more entries than S_c, read off at three splits."""
    torch.manual_seed(3)
    context, heads, ends = 17, 3, [23, 12, 6]
    weights = (2 * torch.randn(1, heads, 23, 30, dtype=torch.float64) + torch.randn(30)).softmax(-1)
    buffer = torch.empty_like(weights)

    def blocks():
        for first, last in pairwise(cuts):
            part = buffer[:, :, : last - first].copy_(weights[:, :, first:last])  # overwritten by the next
            yield first, last, part

    rows = [[sum(weights[0, h, i, j].item() for h in range(heads)) / heads for j in range(context)] for i in range(23)]
    for end, view in zip(ends, roles.views(blocks(), context, ends, 0.6), strict=True):
        measured = view.measures(shared_by)
        for place, reading in enumerate(roles.READINGS):
            expected, counts = naive_parts(rows[:end], 0.6, shared_by, reading)
            found = view.parts(shared_by)
            assert {name: members(part[place]) for name, part in found.items()} == expected
            for name, part in expected.items():
                assert measured["entries", name][place] == pytest.approx(len(part) / context)
                mass = sum(rows[end - 1][j] for j in part) / sum(rows[end - 1])
                assert measured["attention", name][place] == pytest.approx(mass)
            rest = expected["non_pvc"]
            assert measured["others", "any"][place] == pytest.approx(np.mean([counts[j] > 0 for j in rest]))
            assert measured["others", "mean"][place] == pytest.approx(np.mean([counts[j] / (end - 1) for j in rest]))


def test_controls_are_as_many_at_random_and_no_sinks():
    generator = torch.Generator().manual_seed(0)
    part = torch.zeros(40, dtype=torch.bool)
    part[:10] = True
    draws = [roles.drawn(part, 4, generator) for _ in range(200)]
    assert all(len(members(draw)) == 10 and min(members(draw)) >= 4 for draw in draws)
    frequency = torch.stack(draws).double().mean(0)[4:]
    assert (frequency - 10 / 36).abs().max() < 0.15  # 4.7 standard errors of 200 draws
    assert members(roles.drawn(torch.ones(40, dtype=torch.bool), 4, generator)) == set(range(4, 40))


def test_variants_hide_each_layers_own_parts():
    torch.manual_seed(1)
    layers = [torch.randint(0, 3, (2, 30)) for _ in range(3)]
    parts = [{name: layer == number for number, name in enumerate(roles.PARTS)} for layer in layers]
    found = {}
    for reading, name, hidden in roles.hidings(parts, 4, torch.Generator().manual_seed(7)):
        found[reading, name] = hidden
    assert len(found) == 14
    for place, reading in enumerate(roles.READINGS):
        for number, name in enumerate(roles.PARTS):
            assert torch.equal(found[reading, name], torch.stack([layer[place] == number for layer in layers]))
        for shared, rest in zip(found[reading, "shared"], found[reading, "shared_no_sinks"], strict=True):
            assert members(rest) == members(shared) - {0, 1, 2, 3}
        for name in roles.CONTROLLED:
            assert torch.equal(found[reading, f"control_{name}"].sum(1), found[reading, name].sum(1))
            assert not found[reading, f"control_{name}"][:, :4].any()
    again = [hidden for *_, hidden in roles.hidings(parts, 4, torch.Generator().manual_seed(7))]
    assert all(torch.equal(one, other) for one, other in zip(found.values(), again, strict=True))
    other = [hidden for *_, hidden in roles.hidings(parts, 4, torch.Generator().manual_seed(8))]
    assert not all(torch.equal(one, two) for one, two in zip(found.values(), other, strict=True))


def small_task(**settings):
    return PivotalRoles(**{"tokens": [70], "splits": 2, "stride": 5, "ahead": 12, "sinks": 2, "share": 0.6, **settings})


@pytest.mark.parametrize(("family", "needle"), [("llama", False), ("gemma3", False), ("mistral", True)])
def test_observations_are_those_of_dense_attention(inference, monkeypatch, family, needle):
    """Parts from the unmodified model's attention, costs from the unmodified model under masks."""
    monkeypatch.setattr(roles, "drawn", lambda part, sinks, generator: _last(part))
    ids, seen, task = prompt(85, seed=6), {}, small_task(shared_by=0.3)
    dense(family)(ids, watch=seen.__setitem__)
    spans, splits = ({"needle": (9, 12)}, [70]) if needle else ({}, [70, 65])
    context = splits[-1] - int(0.3 * splits[-1])
    text, steps = Prompt(array("i", ids[0].tolist()), 70, spans), []
    found = roles.observe(engine(family), task, text, [OBSERVATION], torch.tensor([5]), steps.append)
    observed = found[OBSERVATION]["observed"]
    layers = [layer for layer, window in enumerate(engine(family).windows) if window is None]
    assert observed["layers"] == layers and observed["context"] == context and steps[-1] == 1.0
    assert observed["recent_rows"] == [split - context for split in splits]
    for reading in roles.READINGS:
        own, costs = observed["readings"][f"{reading} 60%"], []
        parts = {}
        for layer in layers:
            for split in splits:
                rows = seen[layer][0, :, context:split, :context].double().mean(0).tolist()
                parts[layer, split] = naive_parts(rows, 0.6, 0.3, reading)[0]
        for name in roles.PARTS:
            means = [np.mean([len(parts[layer, split][name]) / context for split in splits]) for layer in layers]
            assert own["entries"][name] == pytest.approx(means, **ROUNDED)
        for split in splits:
            hidden = {layer: dict(parts[layer, split]) for layer in layers}
            for sets in hidden.values():
                sets["shared_no_sinks"] = sets["shared"] - {0, 1}
                for name in roles.CONTROLLED:
                    sets[f"control_{name}"] = set(range(context - len(sets[name]), context))
            costs.append(dense_costs(dense(family), ids, split, 12, hidden))
        for name, (increase, same) in costs[0].items():
            expected = np.mean([[increase, same], *(cost[name] for cost in costs[1:])], 0)
            assert own["increase"][name] == pytest.approx(expected[0], **ROUNDED)
            assert own["agreement"][name] == pytest.approx(expected[1], **ROUNDED)
        assert max(abs(value) for value in own["increase"]["shared"]) > 1e-3  # masks that do something


def _last(part):
    return torch.arange(len(part)) >= len(part) - int(part.sum())


def dense_costs(reference, ids, split, ahead, hidden):
    """NLL increases and agreement in the three ranges, for every name of hidden[layer]."""
    count, total = min(ahead, ids.shape[1] - split), ids.shape[1]

    def read(name):
        def masks(layer):
            shown = torch.ones(1, 1, total, total, dtype=torch.bool)
            for place in hidden.get(layer, {}).get(name, ()):
                shown[0, 0, split - 1 :, place] = False
            return shown

        logits = reference(ids, masks)[0, split - 1 : split - 1 + count].log_softmax(-1)
        wanted = ids[0, split : split + count].tolist()
        return [-logits[at, token].item() for at, token in enumerate(wanted)], logits.argmax(-1).tolist()

    nll, tokens = read(None)
    found = {}
    for name in next(iter(hidden.values())):
        own, predicted = read(name)
        worse = [after - before for after, before in zip(own, nll, strict=True)]
        same = [one == other for one, other in zip(predicted, tokens, strict=True)]
        found[name] = [
            [np.mean(of[first:last]) for first, last in ((0, 1), (1, 8), (8, count))] for of in (worse, same)
        ]
    return found


def test_what_hides_nothing_costs_nothing_and_missing_ranges_are_none(inference):
    ids, host = prompt(45, seed=2), engine("llama")
    prefill = host.prefill(ids)
    some, none = torch.rand(4, 30) < 0.6, torch.zeros(4, 30, dtype=torch.bool)
    found = roles.costs(host, prefill, ids, 40, 12, [0, 1, 2, 3], [none, some])
    assert found.increase[0, :2].tolist() == [0.0, 0.0] and found.agreement[0, :2].tolist() == [1.0, 1.0]
    assert found.increase[1, :2].abs().min() > 1e-6
    assert roles.plain(found.increase[:, 2].tolist()) == [None, None]  # five tokens are left: none is the ninth


def test_observing_takes_memory_linear_in_the_context(inference):
    def look(tokens):
        context = tokens - tokens // 3
        rows = engine("llama").prefill(prompt(tokens), capture=tokens // 3).rows(1)
        roles.views(rows.blocks(), context, [tokens // 3, tokens // 3 - 16], 0.8)

    assert largest(lambda: look(4096)) <= 4.2 * largest(lambda: look(1024))  # linear: 4 times; quadratic: 16 times


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.0}, "shares between 0 and 1"),
        ({"shared_by": 0.0}, "shares between 0 and 1"),
        ({"recent_ratio": 1.0}, "shares between 0 and 1"),
        ({"splits": 0}, "1 or more"),
        ({"sinks": -1}, "0 or more"),
        ({"splits": 5, "stride": 16}, "too few"),
        ({"sinks": 60}, "too few"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        small_task(**settings)


# ---------------------------------------------------------------------------------------------- the report

EXCESS = {"shared_no_sinks": (0.1, 0.2, 0.4), "non_shared": (0.6, 0.3, 0.1), "non_pvc": (0.0, 0.0, 0.0)}


def made_up(text="document", samples=12, reverse=False, seed=0):
    """Rows in which non-shared PvCs serve the next token and shared ones those further on, or the reverse."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(samples):
        noise = [*rng.permutation([-0.05, 0.05])] if number % 2 else [0.0, 0.0]
        increase = {"shared": [4.0, 3.0, 2.0]}
        for part, excess in EXCESS.items():
            control = [0.01 * number, 0.02, 0.03]
            near, middle, far = excess[::-1] if reverse else excess
            values = [near + noise[0], middle, far + noise[1]]
            increase[f"control_{part}"] = control
            increase[part] = [a + b for a, b in zip(values, control, strict=True)]
        reading = {
            "entries": {"shared": [0.5, 0.1, 0.0], "non_shared": [0.25, 0.1, 0.1], "non_pvc": [0.25, 0.8, 0.9]},
            "attention": {"shared": [0.5, 0.6, 0.7], "non_shared": [0.3, 0.2, 0.1], "non_pvc": [0.2, 0.2, 0.2]},
            "others": {"any": [0.9, None, 0.5], "mean": [0.3, 0.2 + 0.01 * number, 0.1]},
            "increase": increase,
            "agreement": {name: [1.0, 0.5, 0.25] for name in increase},
            "hidden": dict.fromkeys(increase, 0.2),
        }
        observed = {"layers": [0, 2, 4], "readings": {"mass 80%": reading, "count 80%": reading}}
        info = {"text": text, "length": 512}
        row = {"task": "pivotal_roles", "model": "made-up", "method": None, "error": None, "sample": f"{text} {number}"}
        rows.append(row | {"sample_info": info, "cluster": f"{text} {number}", "observed": observed})
    failed = rows[0] | {"error": "out of memory", "observed": None, "cluster": "failed"}
    return pd.DataFrame([failed, *rows])


def lines(rows, reading="mass 80%"):
    summary = report.tables(rows)["summary"]
    return summary[summary["reading"] == reading].set_index("quantity")


@pytest.mark.parametrize(("reverse", "word"), [(False, "supported"), (True, "contradicted")])
def test_summary_of_known_rows(reverse, word):
    found = lines(made_up(reverse=reverse))
    assert found["value"][report.SHARE.format("shared PvC")].startswith("0.200 [")
    claims = found[found["verdict"] != ""]
    assert set(claims["verdict"]) == {word} and len(claims) == 3
    # (0.6 - 0.1) and (0.1 - 0.4), and their difference; the noise has mean 0 for all parts alike
    expected = [0.5, 0.3, 0.8]
    for value, mean in zip(claims["value"], expected, strict=True):
        assert abs(float(value.split()[0]) - (-mean if reverse else mean)) < 0.05
    assert found["next token"][report.HIDING.format("shared PvC")].startswith("4.000")


def test_paired_with_the_control():
    """Controls differ by sample as the parts do: what is left has no more spread than the noise."""
    table = report.tables(made_up())["hiding"]
    line = table[(table["hidden"] == "non_pvc") & (table["distance"] == "tokens 2-8")].iloc[0]
    assert line["nll_increase"] == pytest.approx(0.02) and line["increase_less_control"] == pytest.approx(0.0)
    assert line["agreement"] == 0.5 and line["hidden_share"] == pytest.approx(0.2)


def test_few_clusters_have_no_interval_and_no_verdict():
    found = lines(made_up(samples=9))
    assert set(found["verdict"]) == {""} and not found["value"].str.contains(r"\[").any()
    assert found["value"][report.SHARE.format("shared PvC")] == "0.200"


def test_verdicts():
    cases = [(0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (math.nan, math.nan)]
    assert [report.verdict(0.0, *ends) for ends in cases] == ["supported", "contradicted", "not told apart", ""]


def test_layers_are_those_observed():
    table = report.tables(made_up())["shares_by_layer"]
    line = table[(table["reading"] == "count 80%") & (table["quantity"] == "others") & (table["of"] == "mean")]
    assert line["layer"].tolist() == [0, 2, 4]
    assert line["mean"].tolist() == pytest.approx([0.3, 0.2 + 0.01 * 5.5, 0.1])  # numbers 0..11 average to 5.5


def test_figures_show_the_shares():
    rows = pd.concat([made_up(), made_up("needle")], ignore_index=True)
    drawn = dict(drawing.figures(rows))
    assert list(drawn) == ["shares", "hiding", "non_pvc"]
    assert [len(figure.axes) for figure in drawn.values()] == [4, 4, 2]
    edge = drawn["shares"].axes[0].get_lines()[0]
    assert edge.get_xdata().tolist() == [0, 2, 4] and edge.get_ydata() == pytest.approx([50, 10, 0])
    points = [line for line in drawn["hiding"].axes[0].get_lines() if len(line.get_xdata()) == 3]
    assert any(line.get_ydata() == pytest.approx([4.0, 3.0, 2.0]) for line in points)
    lines_ = drawn["non_pvc"].axes[1].get_lines()
    assert lines_[0].get_ydata() == pytest.approx([90, math.nan, 50], nan_ok=True)


def test_no_good_rows():
    rows = made_up().iloc[:1]  # the one that failed
    assert report.tables(rows)["summary"].empty and list(drawing.figures(rows)) == []


def test_run_end_to_end(tmp_path, monkeypatch):
    settings = ["task=pivotal_roles", "task.tokens=[200]", "task.following=20", "limit=2", "model=random", "threads=1"]
    result = runner.run(compose.composed([*settings, "wandb.mode=disabled", f"results={tmp_path}"]))
    assert result.rows["error"].isna().all() and set(result.rows["observed"].map(type)) == {dict}
    assert {"summary.csv", "hiding.csv", "shares_by_layer.csv"} <= {path.name for path in result.folder.iterdir()}
    assert len(result.summary) == 2 * 2 * 12 and len(result.figures) == 6


def test_defaults_of_the_configuration():
    own = {name: known.default for name, known in inspect.signature(PivotalRoles).parameters.items()}
    written = compose.composed(["task=pivotal_roles"]).task
    assert {name: written[name] for name in own if name != "texts"} == {n: d for n, d in own.items() if n != "texts"}
