"""Recent attention consistency: sets and laws against naive code, observations against dense attention, the report."""

import inspect
import json
import math
from array import array

import numpy as np
import pandas as pd
import pytest
import torch

import pvcbench
from pvcbench.analyses.attention_consistency import figures as drawing
from pvcbench.analyses.attention_consistency import observe as measured
from pvcbench.analyses.attention_consistency import tables as report
from pvcbench.analyses.attention_consistency.task import AttentionConsistency
from pvcbench.errors import OutOfReach, UserError
from pvcbench.evaluation.cells import OBSERVATION
from pvcbench.models.random_weights import random
from pvcbench.runs.rows import load_table
from pvcbench.tasks.prompts import Prompt
from tiny import dense, engine, largest, prompt

ROUNDED = 6e-3  # shares are stored with three significant digits: half a unit of the third, relative to 1 at most 0.005
TOKENS, TOTAL = 90, 101
TASK = AttentionConsistency(tokens=[TOKENS], ensembles=[1, 5, 60], ahead=[1, 3, 11, 12])


def naive_set(row, kind, share):
    """The pivotal entries of one row, a list of attention weights."""
    order = sorted(range(len(row)), key=lambda j: (-row[j], j))
    if kind == "count":
        return set(order[: max(1, int(share * len(row)))])
    chosen, held, total = set(), 0.0, sum(row)
    for j in order:
        chosen.add(j)
        held += row[j]
        if held >= share * total:
            break
    return chosen


def observe(family="llama", task=TASK, tokens=TOKENS, total=TOTAL, step=lambda share: None):
    text = Prompt(array("i", prompt(total, seed=6)[0].tolist()), tokens, {})
    with torch.inference_mode():
        return measured.observe(engine(family), task, text, [OBSERVATION], None, step)[OBSERVATION]


@pytest.mark.parametrize("entries", [3, 10, 57])
def test_sets_are_the_naive_ones(entries):
    generator = torch.Generator().manual_seed(entries)
    attention = torch.rand(40, entries, generator=generator, dtype=torch.float64) ** 6
    attention[:5] = attention[:5].round(decimals=1) + 0.1  # with ties
    readings = {"a": ("mass", 0.77), "b": ("count", 0.8), "c": ("count", 0.2)}
    found = measured.pivotal(attention, readings)
    for name, reading in readings.items():
        wanted = [naive_set(row, *reading) for row in attention.tolist()]
        assert [set(np.flatnonzero(row)) for row in found[name].numpy()] == wanted


def test_sets_with_known_answers():
    attention = torch.tensor([[0.1, 0.5, 0.05, 0.3], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    found = measured.pivotal(attention, {"mass": ("mass", 0.8), "most": ("mass", 0.9), "half": ("count", 0.5)})
    assert found["mass"].tolist() == [[False, True, False, True], [False, False, True, False]]
    assert found["most"].tolist() == [[True, True, False, True], [False, False, True, False]]
    assert found["half"].tolist() == [[False, True, False, True], [True, False, True, False]]
    assert measured.share_of(found["mass"]).tolist() == [0.5, 0.25]
    assert measured.overlap(found["mass"], found["most"][:1]).tolist() == pytest.approx([2 / 3, 0])


def test_unrelated_sets_overlap_as_chance_says():
    """What stands beside every overlap: the size of the set that predicts."""
    attention = torch.rand(4000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    readings = {"mass 80%": ("mass", 0.8), "count 20%": ("count", 0.2)}
    for sets in measured.pivotal(attention, readings).values():
        reached, chance = measured.overlap(sets[:2000], sets[2000:]), measured.share_of(sets[:2000])
        assert abs((reached - chance).mean()) < 4 * (reached - chance).std() / math.sqrt(2000)  # four standard errors


@pytest.mark.parametrize(("tokens", "ratio"), [(90, 0.3), (512, 0.3), (64, 0.05), (1000, 0.3)])
def test_distances_fall_into_ten_bins(tokens, ratio):
    recent, wanted = int(ratio * tokens), []
    for i in range(tokens - recent, tokens - 1):
        share = 10 * (tokens - i) / tokens / ratio
        wanted.append(min(9, next(b for b in range(11) if share <= b + 1 + 1e-9)))
    found = measured.distance_bins(recent, tokens, ratio)
    assert found.tolist() == wanted and min(wanted) >= 0
    means = measured.bin_means(np.arange(len(wanted), dtype=float), found)
    for place in range(10):
        mine = [n for n, b in enumerate(wanted) if b == place]
        assert math.isnan(means[place]) if not mine else means[place] == pytest.approx(sum(mine) / len(mine))


def naive_layer(attention, task, tokens, total):
    """One layer's numbers by reading, from its attention weights [heads, total, total]; loops and sets."""
    recent = int(task.recent_ratio * tokens)
    entries = tokens - recent
    rows = attention.mean(0)[:, :entries].tolist()
    ensembles, found = [*task.ensembles, "all"], {}

    def mixed(size, end):
        if size != "all" and size > recent - 1:
            return None
        first = end - size if size != "all" else tokens - recent
        count = end - first
        step = (task.distance_weight - 1) / (count - 1) if count > 1 else 0
        weights = [1 + step * i for i in range(count)]
        return [sum(w * rows[first + i][j] for i, w in enumerate(weights)) for j in range(entries)]

    for name, reading in task.readings.items():
        sets = [naive_set(row, *reading) for row in rows]
        last, none = sets[tokens - 1], float("nan")
        own = {"overlap": [], "size": [], "by": []}
        for i in range(tokens - recent, tokens - 1):
            own["by"].append((i, len(sets[i] & last) / len(last), len(sets[i]) / entries))
        made = {"before": [mixed(m, tokens - 1) for m in ensembles], "with": [mixed(m, tokens) for m in ensembles]}
        made = {key: [None if row is None else naive_set(row, *reading) for row in kind] for key, kind in made.items()}
        both = [*made["before"], *made["with"]]
        own["overlap"] = [np.mean([part[1] for part in own["by"]])]
        own["overlap"] += [none if s is None else len(s & last) / len(last) for s in both]
        own["size"] = [np.mean([part[2] for part in own["by"]])]
        own["size"] += [none if s is None else len(s) / entries for s in both]
        own["last_size"] = len(last) / entries
        predicting = [last, *made["with"]]
        own["source_size"] = [none if s is None else len(s) / entries for s in predicting]
        for key in ("ahead_overlap", "ahead_covered"):
            own[key] = [[none] * len(task.ahead) for _ in predicting]
        for n, held in enumerate(predicting):
            for place, time in enumerate(task.ahead):
                i = tokens - 1 + time
                if held is not None and i < total:
                    own["ahead_overlap"][n][place] = len(held & sets[i]) / len(sets[i])
                    own["ahead_covered"][n][place] = sum(rows[i][j] for j in held) / sum(rows[i])
        found[name] = own
    return found


@pytest.mark.parametrize("family", ["llama", "llama_deep", "phi3", "gemma3"])
def test_observations_are_those_of_dense_attention(family):
    seen, steps = {}, []
    with torch.inference_mode():
        dense(family)(prompt(TOTAL, seed=6), watch=seen.__setitem__)
    found = observe(family, step=steps.append)["observed"]
    assert found["layers"] == ([1, 3, 5] if family == "gemma3" else list(range(len(seen))))
    assert found["recent"] == 27 and found["entries"] == 63 and found["sources"] == ["last", "1", "5", "60", "all"]
    assert steps == pytest.approx([(n + 1) / len(found["layers"]) for n in range(len(found["layers"]))])
    for place, layer in enumerate(found["layers"]):
        wanted = naive_layer(seen[layer][0], TASK, TOKENS, TOTAL)
        assert list(found["readings"]) == list(wanted) == ["mass 80%", "count 80%", "count 20%"]
        for name, own in wanted.items():
            mine = found["readings"][name]
            bins = measured.distance_bins(27, TOKENS, 0.3)
            for key, part in (("bin_overlap", 1), ("bin_size", 2)):
                values = pd.Series([line[part] for line in own["by"]]).groupby(bins).mean().reindex(range(10))
                np.testing.assert_allclose(np.array(mine[key][place], float), values, atol=ROUNDED)
            for key in ("overlap", "size", "last_size", "source_size", "ahead_overlap", "ahead_covered"):
                np.testing.assert_allclose(np.array(mine[key][place], float), own[key], atol=ROUNDED, err_msg=key)
        row = sorted(seen[layer][0].mean(0)[TOKENS - 1, :TOKENS].tolist(), reverse=True)
        values = [row[rank - 1] for rank in found["ranks"]]
        np.testing.assert_allclose(found["power"]["values"][place], values, rtol=1e-3)  # four significant digits
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_model_whose_layers_all_slide_shows_nothing():
    assert isinstance(observe("mistral_sliding"), OutOfReach)


def test_memory_is_linear_in_the_context():
    def look(tokens):
        return largest(lambda: observe(tokens=tokens, total=tokens + 5))

    assert look(2048) <= 4.4 * look(512)  # linear: 4 times, and what is fixed; quadratic: 16 times


def test_laws_find_what_was_put_in():
    ranks = np.arange(1, 401)
    rng = np.random.default_rng(0)
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - (ranks - 0.5) / 400, dtype=torch.float64))
    made = {"power law": 0.3 * ranks**-1.3, "log-normal": np.exp(1.7 * normal.numpy() - 6)}
    made["exponential"] = 0.2 * np.exp(-0.03 * ranks)
    slopes = {"power law": -1.3, "log-normal": 1.7, "exponential": -0.03}
    for family, attention in made.items():
        found = measured.laws(rng.permutation(attention))
        assert found[family]["slope"] == pytest.approx(slopes[family]) and found[family]["r2"] == pytest.approx(1)
        assert all(found[other]["r2"] < 0.99 for other in made if other != family)
    assert measured.laws(made["power law"])["power law"]["intercept"] == pytest.approx(math.log(0.3))
    assert measured.laws(made["power law"])["values"][0] == pytest.approx(0.3)


def test_laws_leave_out_what_rounded_to_zero():
    attention = np.concatenate([0.3 * np.arange(1, 201) ** -1.3, np.zeros(200)])
    found = measured.laws(attention)
    assert found["power law"]["slope"] == pytest.approx(-1.3) and math.isnan(found["values"][-1])
    assert math.isnan(measured.laws(np.full(100, 0.01))["power law"]["r2"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recent_ratio": 0.95}, "task.recent_ratio must be a number from 0.05 to 0.9"),
        ({"small": 0.9}, "0 < small < share < 1"),
        ({"distance_weight": 0}, "task.distance_weight"),
        ({"ensembles": [0]}, "task.ensembles must be a whole number"),
        ({"ahead": []}, "task.ahead must name something"),
        ({"ahead": [1.5]}, "task.ahead must be a whole number"),
        ({"tokens": [10]}, "task.tokens must be a whole number, 64 or more"),
    ],
)
def test_mistakes_get_a_line(settings, message):
    with pytest.raises(UserError, match=message):
        AttentionConsistency(**settings)


def made_rows(samples=12, layers=3):
    """Rows in which overlaps, sizes and fits are known; the last one of each text failed."""
    rows, times, sources = [], [1, 2, 8, 64], ["last", "4", "all"]
    sets = ["a recent token", *(f"{m} {kind} the last token" for kind in ("before", "with") for m in ("4", "all"))]
    for text in ("document", "needle"):
        known = 4 if text == "document" else 3
        for n in range(samples):
            shift = 0.01 * (n - (samples - 1) / 2)
            reading = {
                "overlap": [[0.6 + shift - 0.1 * layer, 0.7, 0.75, 0.8, 0.85] for layer in range(layers)],
                "size": [[0.2] * 5] * layers,
                "last_size": [0.01, *[0.1] * (layers - 1)],
                "source_size": [[0.2, 0.25, 0.3]] * layers,
                "bin_overlap": [[0.6 + shift] * 5 + [0.4] * 5] * layers,
                "bin_size": [[0.2] * 10] * layers,
            }
            for key, value in (("ahead_overlap", 0.5), ("ahead_covered", 0.9)):
                line = [value + shift - 0.02 * t if t < known else None for t in range(4)]
                reading[key] = [[line, line, [0.66] * known + [None] * (4 - known)]] * layers
            power = {"values": [[0.5 * rank**-1.2 for rank in (1, 1, 3, 10, 100)]] * layers}
            for family, fit in (("power law", 0.95), ("log-normal", 0.9), ("exponential", 0.5)):
                better = 0.08 if family == "log-normal" and n % 4 == 0 else 0.0
                power[family] = {"slope": [-1.2] * layers, "intercept": [-0.7] * layers, "r2": [fit + better] * layers}
            observed = {"layers": list(range(layers)), "recent": 30, "entries": 100, "sources": sources, "sets": sets}
            observed |= {"distance": [0.015 + 0.03 * b for b in range(10)], "ahead": times, "power": power}
            observed |= {"ranks": [1, 1, 3, 10, 100], "readings": {"mass 80%": reading, "count 20%": reading}}
            info = {"text": text, "length": 512}
            row = {"task": "attention_consistency", "model": "m", "sample": f"{text}{n}", "cluster": f"{text}{n}"}
            row |= {"sample_info": info, "method": None, "error": None, "observed": observed}
            rows.append(row)
        rows.append(row | {"sample": "bad", "cluster": "bad", "error": "no memory", "observed": None})
    return pd.DataFrame(rows)


def test_the_report_shows_what_was_put_in():
    found = report.tables(made_rows())
    summary = found["summary"].set_index(["samples", "quantity"])
    cell = summary.loc[("documents, 512 tokens", "overlap with it (chance): a recent token"), "mass 80%"]
    assert cell.startswith("0.50 [0.4") and cell.endswith("] (0.20)")  # 0.6, 0.5 and 0.4 in three layers

    def cells(quantity, column="mass 80%"):
        return [summary.loc[(group, quantity), column] for group in summary.index.levels[0]]

    assert cells("overlap with it (chance): all with the last token") == ["0.85 [0.85, 0.85] (0.20)"] * 2
    assert cells("share of layers in which it is one entry") == ["0.33 [0.33, 0.33]"] * 2
    assert cells("a recent token's: rank correlation with depth") == ["-1.00 [-1.00, -1.00]"] * 2
    assert {cell[:4] for cell in cells("a recent token's, beyond chance")} <= {"0.37", "0.38"}  # 0.375 = 0.3 / 0.8
    assert cells("all recent tokens: attention held of token +8 (chance)") == ["0.66 [0.66, 0.66] (0.30)"] * 2
    last = [name for _, name in summary.index if "+64" in name]
    assert len(last) == 4 and all(("documents, 512 tokens", name) in summary.index for name in last)
    assert [c[:4] for c in cells("fits best in this share of layers: power law", "attention by rank")] == ["0.75"] * 2
    assert cells("power law: exponent", "attention by rank") == ["1.20 [1.20, 1.20]"] * 2
    differences = cells("R², power law less log-normal", "attention by rank")
    assert [c[:4] for c in differences] == ["0.03"] * 2  # 0.05 in three of four, -0.03 in the fourth
    layers = found["overlap_by_layer"].set_index(["samples", "reading", "sets", "layer"])
    line = layers.loc[("needle prompts, 512 tokens", "count 20%", "a recent token", 2)]
    assert line["overlap"] == pytest.approx(0.4) and line["overlap_low"] < 0.4 < line["overlap_high"]
    assert line["chance"] == pytest.approx(0.2) and line["beyond_chance"] == pytest.approx(0.25)
    ahead = found["overlap_ahead"].set_index(["samples", "reading", "source", "ahead"])
    assert ahead.loc[("documents, 512 tokens", "mass 80%", "last", 64), "covered"] == pytest.approx(0.84)
    assert ("needle prompts, 512 tokens", "mass 80%", "last", 64) not in ahead.index
    ranks = found["attention_by_rank"].query("samples == 'documents, 512 tokens' and layer == 1")
    np.testing.assert_allclose(ranks["attention"], 0.5 * ranks["rank"] ** -1.2)
    distance = found["overlap_by_distance"].query("layer == 'mean' and distance > 0.2")
    np.testing.assert_allclose(distance["overlap"], 0.4)


def test_few_documents_get_no_interval():
    found = report.tables(made_rows(samples=9))
    assert not found["summary"].astype(str).apply(lambda column: column.str.contains("[", regex=False)).any(axis=None)
    assert found["overlap_by_layer"]["overlap"].notna().all() and found["overlap_by_layer"]["overlap_low"].isna().all()


def test_rows_without_observations_give_nothing():
    rows = made_rows().query("sample == 'bad'")
    assert report.tables(rows)["summary"].empty and list(drawing.figures(rows)) == []


def test_figures_have_a_panel_for_each_group():
    found = dict(drawing.figures(made_rows()))
    panels = {name: sum(bool(axes.get_title()) for axes in figure.axes) for name, figure in found.items()}
    four = dict.fromkeys(["overlap_by_distance", "overlap_by_layer", "ahead_overlap", "ahead_covered"], 4)
    assert panels == four | {"attention_by_rank": 8}
    marks = [line.get_label() for axes in found["overlap_by_layer"].axes[:2] for line in axes.lines]
    small = [line.get_label() for axes in found["overlap_by_layer"].axes[2:] for line in axes.lines]
    assert sum("PyramidInfer" in mark for mark in marks) == 4 and not any("PyramidInfer" in mark for mark in small)


def test_beyond_chance():
    found = report.beyond(np.array([0.2, 1.0, 0.6, 1.0]), np.array([0.2, 0.2, 0.2, 1.0]))
    np.testing.assert_allclose(found, [0, 1, 0.5, np.nan])


def test_a_run_end_to_end(tmp_path):
    task = AttentionConsistency(tokens=[128], documents=2, needles=1, following=10, ensembles=[4], ahead=[1, 8])
    loaded, settings = random("tiny", "cpu", "float32", seed=1), {"results": tmp_path, "wandb__mode": "disabled"}
    summary = pvcbench.evaluate(loaded, task, **settings)
    assert set(summary["samples"]) == {"documents, 128 tokens", "needle prompts, 128 tokens"}
    [path] = (tmp_path / "default").iterdir()
    rows = load_table(path)
    assert len(rows) == 3 and rows["error"].isna().all()
    for name in ("overlap_by_layer.csv", "rank_laws.csv", "figures/attention_by_rank.png", "figures/ahead_covered.svg"):
        assert (path / name).is_file()


def test_the_configuration_names_every_setting():
    node = pvcbench.config.compose.composed(["task=attention_consistency"]).task
    own = set(inspect.signature(AttentionConsistency).parameters) - {"texts"}
    assert own <= set(node) and list(node.ahead) == AttentionConsistency().ahead
