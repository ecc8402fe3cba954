"""Patterns, measures and output errors against known answers and naive float64; the report on known rows."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from patterns_task import EXACT, task
from pvcbench.analyses.attention_patterns import observe as observing
from pvcbench.analyses.attention_patterns import tables as report
from pvcbench.analyses.attention_patterns.rules import COMPRESSIBLE, PATTERNS, classify
from pvcbench.analyses.attention_patterns.task import THRESHOLDS
from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import OBSERVATION, Point
from pvcbench.runs import result as outcome
from pvcbench.runs import runner
from pvcbench.tasks.prompts import Prompt
from rows import table
from tiny import METHODS, cell_of, dense, engine, fork, largest, prompt
from tiny import positions as positions_of


def pattern(**head):
    return PATTERNS[int(classify(**head, thresholds=THRESHOLDS))]


def test_the_texts_own_examples_are_what_it_says():
    """Fu's six heads of LLaMA-2-7B-80K at 50K tokens; where it gives one region's mass, the rest lies in the middle."""
    n = 50_000
    assert pattern(entropy=2.53, sink=0.632, recent=0.337, tokens=n) == "V-shaped"
    assert pattern(entropy=0.98, sink=0.969, recent=0.0, tokens=n) == "attention sink"
    assert pattern(entropy=0.98, sink=0.969, recent=0.031, tokens=n) == "attention sink"
    assert pattern(entropy=0.09, sink=0.0, recent=0.996, tokens=n) == "recency"
    for sink in (0.0, 0.05, 0.135):  # 86.5% in the middle, whatever the ends share of the rest
        assert pattern(entropy=6.43, sink=sink, recent=0.135 - sink, tokens=n) == "scattered"
    assert pattern(entropy=1.32, sink=0.05, recent=0.05, tokens=n) == "concentrated"
    assert pattern(entropy=10.6, sink=0.0, recent=0.001, tokens=n) == "uniform"
    assert [name for name, yes in zip(PATTERNS, COMPRESSIBLE, strict=True) if not yes] == ["uniform", "scattered"]


def synthetic(n=4096):
    """Attention over n keys of each pattern, as someone would draw it."""
    rng, made = np.random.default_rng(0), {}
    made["uniform"] = np.ones(n)
    made["attention sink"] = np.full(n, 0.03 / n)
    made["attention sink"][0] = 0.97
    made["recency"] = np.exp(-np.arange(n)[::-1] / 5.0)
    made["V-shaped"] = 0.6 * np.exp(-np.arange(n) / 1.0) + 0.4 * np.exp(-np.arange(n)[::-1] / 4.0)
    made["scattered"] = np.zeros(n)
    made["scattered"][rng.choice(np.arange(100, 3900), 600, replace=False)] = rng.random(600)
    made["concentrated"] = np.full(n, 0.1 / n)
    made["concentrated"][2000:2003] = 0.3
    return {name: weights / weights.sum() for name, weights in made.items()}


@pytest.mark.parametrize("name", PATTERNS)
def test_synthetic_heads_are_told_apart(name):
    weights = torch.tensor(synthetic()[name])[None, None]
    found = observing.measures(weights, torch.tensor([4095]), 4, 64, [1], None)
    parts = {key: float(found[key]) for key in ("entropy", "sink", "recent")}
    assert pattern(**parts, tokens=4096) == name


def naive_measures(row, position, sinks, recent, top, needle):
    """Sums over a list of one row's weights."""
    row = [float(weight) for weight in row[: position + 1]]
    found = {"entropy": -sum(w * math.log(w) for w in row if w > 0), "sink": sum(row[:sinks])}
    found["recent"] = sum(w for j, w in enumerate(row) if j >= sinks and j > position - recent)
    found["middle"] = sum(w for j, w in enumerate(row) if sinks <= j <= position - recent)
    found["needle"] = sum(row[needle[0] : needle[1]])
    found["top"] = [sum(sorted(row, reverse=True)[:k]) for k in top]
    return found


def test_layer_measures_equal_naive_sums(inference):
    """Over several blocks, with groups of query heads, plain and weighted by value norms, against dense attention."""
    tokens, count, options = 90, 81, {"sinks": 3, "recent": 10, "top": [1, 2, 8, 400], "needle": (20, 26)}
    ids, seen = prompt(tokens, seed=7), {}
    dense("llama")(ids, watch=seen.__setitem__)
    prefill = engine("llama").prefill(ids, capture=count)
    for layer in (0, 3):
        rows = prefill.rows(layer)
        found = observing.layer_measures(rows, **options)
        norms = [[math.sqrt(sum(float(x) ** 2 for x in v)) for v in head] for head in rows.values[0]]
        for head in range(4):
            plain, valued = [], []
            for position in range(tokens - count, tokens):
                row = seen[layer][0, head, position].tolist()
                plain.append(naive_measures(row, position, **options))
                scaled = [w * norm for w, norm in zip(row, norms[head // 2], strict=True)]
                valued.append(naive_measures([w / sum(scaled) for w in scaled], position, **options))
            for each, naive in zip(found, (plain, valued), strict=True):
                for key in ("entropy", "sink", "recent", "middle", "needle"):
                    assert float(each[key][head]) == pytest.approx(sum(n[key] for n in naive) / count, abs=EXACT)
                for place, value in enumerate(each["top"][head].tolist()):
                    assert value == pytest.approx(sum(n["top"][place] for n in naive) / count, abs=EXACT)


def test_a_small_weight_on_a_large_value_is_not_small(inference):
    """The text's 'you missed the value vector': a tiny weight on a huge value is most of the output."""
    rows = engine("llama").prefill(prompt(40), capture=1).rows(0)
    weights = next(iter(rows.blocks()))[2][0, 0, 0]
    values = torch.zeros_like(rows.values)
    values[..., 0] = 1.0
    heavy = int(weights.argmin())
    values[:, :, heavy, 0] = 1e6
    rows = type(rows)(**{**vars(rows), "values": values})
    plain, valued = observing.layer_measures(rows, 1, 1, [1], None)
    assert float(valued["top"][0, 0]) > 0.9 > float(plain["top"][0, 0])
    assert float(valued["entropy"][0]) < float(plain["entropy"][0])


@pytest.mark.parametrize("name", list(METHODS))
def test_kept_entries_are_those_of_a_fork(inference, name):
    host, ids = engine("llama_deep"), prompt(120, seed=5)
    cell = cell_of(METHODS[name], host.shape(120))
    [group] = fork(host, ids, [cell], room=2)
    prefill = group.prefill
    found = observing.kept_entries(prefill, cell, 120)
    for layer, mask in enumerate(found):
        for head, kept in enumerate(mask):
            assert set(kept.nonzero()[:, 0].tolist()) == set(positions_of(group)[layer][0, head].tolist()) - {-1}


def test_output_errors_equal_naive_attention(inference):
    """Every head and row by loops over the kept entries; tokens after the prompt are always seen."""
    tokens, prompt_tokens, count = 30, 26, 6
    ids, seen = prompt(tokens, seed=9), {}
    dense("llama")(ids, watch=seen.__setitem__)
    rows = engine("llama").prefill(ids, capture=count).rows(2)
    kept = torch.rand(2, prompt_tokens, generator=torch.Generator().manual_seed(0)) < 0.4
    errors, masses = observing.output_error(rows, kept)
    for head in range(4):
        mine, shown = [], [*kept[head // 2].tolist(), *[True] * (tokens - prompt_tokens)]
        for position in range(tokens - count, tokens):
            weights = seen[2][0, head, position, : position + 1].tolist()
            values = rows.values[0, head // 2, : position + 1].tolist()
            mass = sum(w for w, yes in zip(weights, shown, strict=False) if yes)
            full = [sum(w * v[i] for w, v in zip(weights, values, strict=True)) for i in range(len(values[0]))]
            cut = [
                sum(w / mass * v[i] for w, v, yes in zip(weights, values, shown, strict=False) if yes)
                for i in range(len(values[0]))
            ]
            mine.append((math.dist(full, cut) / math.hypot(*full), mass))
        assert float(errors[head]) == pytest.approx(sum(e for e, _ in mine) / count, abs=EXACT)
        assert float(masses[head]) == pytest.approx(sum(m for _, m in mine) / count, abs=EXACT)
    everything, whole = observing.output_error(rows, torch.ones_like(kept))
    assert float(everything.max()) < EXACT and float((whole - 1).abs().max()) < EXACT


def observed(name="h2o", budget=20, family="llama"):
    """Observations of a prompt of 64 tokens with a needle, and of 6 answer tokens; the value is the third to fifth."""
    ids = prompt(70, seed=11)
    own = Prompt(ids[0].tolist(), 64, {"needle": (30, 38), "answer": (66, 69)})
    point = Point(name, METHODS[name], repr(budget), budget)
    with torch.inference_mode():
        found = observing.observe(engine(family), task(), own, [OBSERVATION, point], torch.zeros(1).long(), print)
    return ids, found[OBSERVATION]["observed"], found[point]


def test_observations_look_at_the_rows_they_name():
    ids, shown, _ = observed()
    seen = {}
    with torch.inference_mode():
        dense("llama")(ids, watch=seen.__setitem__)
    wanted = {"last": [63], "mean": range(59, 64), "answer": [65, 66, 67]}  # those that predict tokens 66, 67 and 68
    for kind, places in wanted.items():
        for layer in range(4):
            for head in range(4):
                naive = [
                    naive_measures(seen[layer][0, head, place].tolist(), place, 2, 8, [1, 4], (30, 38))
                    for place in places
                ]
                mine = shown["rows"][kind]["attention"]
                for key in ("entropy", "sink", "recent", "middle", "needle"):
                    mean = sum(n[key] for n in naive) / len(naive)
                    assert mine[key][layer][head] == pytest.approx(mean, abs=6e-4)  # stored to three decimals
    assert json.loads(json.dumps(shown)) == shown and set(shown["examples"]) <= set(PATTERNS)
    for example in shown["examples"].values():
        assert sum(example["mass"]) == pytest.approx(1, abs=1e-3)  # 256 bins of five decimals


@pytest.mark.parametrize("family", ["llama_yarn", "qwen3", "phi3", "gemma3", "mistral_sliding"])
def test_every_family_is_observed(family):
    """Grouped heads, partial rotation, layers that slide: regions add up, in the layers that evict."""
    _, shown, row = observed(family=family)
    layers = list(engine(family).shape(64).evicted)
    assert shown["layers"] == row["observed"]["layers"] == layers
    for kind in shown["rows"].values():
        total = sum(np.array(kind["attention"][key]) for key in ("sink", "recent", "middle"))
        assert total.shape == (len(layers), 4) and np.abs(total - 1).max() < 2e-3  # three numbers of three decimals
        assert 0 < np.max(kind["attention"]["entropy"]) <= np.log(70) + 1e-3
    assert np.array(row["observed"]["error"]["answer"]).shape == (len(layers), 4)


def test_a_cell_says_what_it_kept_and_what_that_left():
    _, _, row = observed("streaming_llm")
    sinks = METHODS["streaming_llm"].sinks
    assert row["kept_entries"] == 20 and row["kept_fraction"] == pytest.approx(20 / 64)
    alive = sum(place < sinks or place >= 64 - (20 - sinks) for place in range(30, 38)) / 8
    assert row["spans_kept"]["needle"] == [alive] * 4 and row["observed"]["survival"] == [[alive] * 2] * 4
    assert set(row["observed"]["error"]) == {"last", "answer"}
    assert np.array(row["observed"]["error"]["last"]).shape == (4, 4)
    assert np.array(row["observed"]["mass"]["last"]).max() <= 1


def test_measures_take_memory_linear_in_the_prompt(inference):
    def look(tokens):
        rows = engine("llama").prefill(prompt(tokens), capture=32).rows(1)
        return observing.layer_measures(rows, 4, 64, [1, 4096], (10, 20))

    assert largest(lambda: look(4096)) <= 4.2 * largest(lambda: look(1024))  # linear: 4 times; quadratic: 16 times


# ------------------------------------------------------------------------------------------------------- the report

LAYERS, HEADS = 6, 4


def made_rows(samples=12):
    """Rows whose compressible heads have no output error and whose others have one, in two groups of samples."""
    rng, rows = np.random.default_rng(0), []
    for number in range(samples):
        text = ("document", "needle")[number % 2]
        sink = rng.choice([0.0, 0.9], (LAYERS, HEADS))  # 0: scattered, 0.9: attention sink
        entropy = np.where(sink > 0.5, 1.0, 5.0) + rng.random((LAYERS, HEADS)) / 10
        measures = {"entropy": entropy, "sink": sink, "recent": 0 * sink, "middle": 1 - sink, "needle": sink / 2}
        measures = {key: value.tolist() for key, value in measures.items()}
        measures["top"] = np.stack([sink, sink + 0.05], -1).tolist()
        plain = {"attention": measures, "values": {**measures, "sink": (0 * sink).tolist()}}
        base = {"task": "attention_patterns", "sample": str(number), "cluster": f"c{number}", "error": None}
        base["sample_info"] = {"text": text, "length": 64}
        examples = {"scattered": {"layer": 0, "head": 1, "clearness": 1.0, "entropy": 5.0, "mass": [1 / 256] * 256}}
        examples["scattered"] |= {"sink": 0.0, "recent": 0.0, "middle": 1.0}
        seen = {"tokens": 1000, "layers": list(range(LAYERS)), "top": [1, 64], "thresholds": THRESHOLDS}
        seen |= {"rows": {"last": plain}, "examples": examples}
        rows.append(base | {"method": None, "budget": None, "reference": False, "observed": seen})
        error = {"error": {"last": np.where(sink > 0.5, 0.1, 0.9).tolist()}, "mass": {"last": sink.tolist()}}
        cell = {"method": "h2o", "budget": "0.25", "reference": False, "kept_fraction": 0.25}
        rows.append(base | cell | {"observed": error | {"layers": list(range(LAYERS))}})
        lost = {"method": "pvc", "budget": "0.1", "reference": False, "observed": None, "error": "below PvC's reach"}
        rows.append(base | lost)
    return table(rows)


def test_report_finds_what_was_put_in():
    rows = made_rows(24)
    found = report.tables(rows)
    verdict = found["verdict"]
    heads = verdict[(verdict["over"] == "heads") & (verdict["predictor"] == "compressible")]
    assert len(heads) == 2 and heads["rho"].to_numpy() == pytest.approx([-1, -1])  # documents, needles; h2o alone
    assert (heads["rho_low"] <= heads["rho"] + 1e-12).all() and heads["known"].tolist() == [12, 12]
    values = found["values"].set_index("samples")
    seen = rows[rows["method"].isna()]
    for text, name in (("document", "documents, 64 tokens"), ("needle", "needle prompts, 64 tokens")):
        mine = [o for o, i in zip(seen["observed"], seen["sample_info"], strict=True) if i["text"] == text]
        sinks = np.mean([np.array(o["rows"]["last"]["attention"]["sink"]) > 0.5 for o in mine])
        # without the sink's mass such a head is concentrated: another pattern, the same verdict
        assert values.loc[name, "pattern_changes"] == pytest.approx(sinks)
        assert values.loc[name, "verdict_changes"] == 0
        lines = found["patterns"].query("samples == @name and weighting == 'attention'")
        share = lines[lines["pattern"] == "attention sink"]["frequency"].to_numpy()
        sizes = [len(part) for part in report.layer_ranges(seen).values()]
        assert np.average(share, weights=sizes) == pytest.approx(sinks)
        assert lines.groupby("layers")["frequency"].sum().to_numpy() == pytest.approx(np.ones(len(sizes)))
    assert found["needle"].groupby("samples")["best_head"].first().max() == pytest.approx(0.45)


def test_few_samples_get_no_interval():
    assert report.tables(made_rows(8))["verdict"]["rho_low"].isna().all()
    assert report.tables(made_rows(24))["verdict"]["rho_low"].notna().any()


def test_failed_samples_do_not_break_the_report(tmp_path):
    rows = made_rows(4)
    broken = rows["sample"] == "0"
    rows.loc[broken, "error"] = "RuntimeError: out of memory"
    rows["observed"] = rows["observed"].where(~broken, None)
    assert len(report.tables(rows)["summary"]) and len(outcome.draw(rows, tmp_path))
    rows["error"], rows["observed"] = "RuntimeError: out of memory", None
    assert report.tables(rows)["summary"].empty and outcome.draw(rows, tmp_path / "none") == []


def test_figures_are_functions_of_the_rows(tmp_path):
    rows = made_rows(6)
    first, second = outcome.draw(rows, tmp_path / "a"), outcome.draw(rows, tmp_path / "b")
    names = {"pattern_map", "pattern_examples", "entropy_by_layer", "top_mass", "error_by_pattern", "verdict_predicts"}
    assert {path.stem for path in first} == names
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize(
    "settings",
    [{"sinks": 0}, {"recent": 64}, {"rows": 65}, {"top": [0]}, {"thresholds": {"unifrom": 1}}, {"tokens": []}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError, match=r"^task\."):
        task(**settings)


def test_a_whole_run(tmp_path):
    """From the command's keys to rows, tables and pictures; what is out of reach is a row that says so."""
    keys = ["model=random", "task=attention_patterns", "method=[pvc,h2o]", "budgets=[0.1]", "task.tokens=[256]"]
    keys += ["task.documents=1", "task.needles=1", "threads=1", "wandb.mode=disabled", f"results={tmp_path}"]
    result = runner.run(compose.composed(keys))
    assert len(result.rows) == 6 and not result.rows["reference"].any()
    lost = result.rows[result.rows["error"].notna()]
    assert set(lost["method"]) == {"pvc"} and lost["error"].str.contains("reach").all()
    assert {path.name for path in result.folder.glob("*.csv")} >= {"summary.csv", "patterns.csv", "verdict.csv"}
    assert len(pd.read_csv(result.folder / "summary.csv")) >= 4
    assert len(result.figures) >= 10  # without what verdicts predict, where all random heads have one entropy
    again = runner.run(compose.composed(keys))
    assert again.measured == 0 and again.folder == result.folder
