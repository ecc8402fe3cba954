"""The two measures of size: the share of the full cache's bytes, and entries in the layers that evict."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from cells import rows_of
from pvcbench.analyses.throughput import tables
from pvcbench.config import compose
from pvcbench.models import random_weights
from pvcbench.plots import cautions, run_figures
from pvcbench.report import leaderboard, markdown_latex, samples, scores
from pvcbench.runs import runner, wandb_mirror
from pvcbench.runs.rows import load_table, run_folders
from pvcbench.stats import perplexity, sizes, summaries

RESULTS = Path(__file__).parents[2] / "results"
WINDOW, LONG, SHARE = 373, 600, 0.1  # five layers that slide and one that does not


@pytest.fixture(scope="module")
def sliding(tmp_path_factory):
    """The rows of a run on a Gemma 3 whose sliding layers hold most of the cache, asked for 10%."""
    folder = tmp_path_factory.mktemp("gemma")
    tokenizer = random_weights.byte_tokenizer()
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    shape |= {"num_key_value_heads": 1, "sliding_window": WINDOW, "layer_types": kinds, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    made = Gemma3ForCausalLM(Gemma3TextConfig(**shape, pad_token_id=0, bos_token_id=None, eos_token_id=0))
    made.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    asked = ["model=hf", f"model.name={folder / 'model'}", "method=[h2o]", f"task.lengths=[{LONG}]", "limit=2"]
    asked += [f"budgets=[{SHARE}]", "threads=1", "wandb.mode=disabled", f"results={folder / 'out'}"]
    return runner.run(compose.composed([*asked, "task.max_new_tokens=2", "device=cpu"])).rows


def test_a_tenth_of_some_layers_is_not_a_tenth_of_the_cache(sliding):
    line = summaries.summarize(sliding).set_index("method").loc["h2o"]
    tokens = line["prompt_tokens"]
    whole, rest = tokens + 5 * (WINDOW - 1), 5 * (WINDOW - 1)
    expected = (int(SHARE * tokens) + rest) / whole  # a sliding layer keeps its window less the next token
    assert line["kept_fraction"] == pytest.approx(0.1, abs=0.002)
    assert line["kept_bytes"] == pytest.approx(expected, abs=0.005) and 0.77 < line["kept_bytes"] < 0.79
    [said] = cautions.two_measures(perplexity.shown(sliding))
    assert said.startswith("Some layers never evict: h2o at 10% keeps 10.0% of the entries") and "78." in said


def test_the_axis_is_of_bytes_and_every_reader_has_both(sliding):
    axes = run_figures.curve(sliding).axes[0]
    table = perplexity.shown(sliding)
    own = table.set_index("method").loc["h2o"]
    assert axes.get_xlabel() == "KV cache kept: share of the full cache's bytes, %"
    [line] = [line for line in axes.get_lines() if line.get_label() == "h2o"]
    np.testing.assert_allclose(line.get_xdata(), [100 * own["kept_bytes"]])
    cell = markdown_latex.sizes_of(own)
    assert (cell["bytes, %"], cell["entries, %"]) == (
        f"{100 * own['kept_bytes']:.1f}",
        f"{100 * own['kept_fraction']:.1f}",
    )
    [point] = [point for point in wandb_mirror.points(table, "needle") if "needle/h2o" in point]
    assert point["cache/bytes_fraction"] == own["kept_bytes"] and point["cache/fraction"] == own["kept_fraction"]
    run = scores.run_of(sliding)
    shown = next(one for one in run["parts"][0]["cells"] if one["method"] == "h2o")
    assert shown["kept"] == pytest.approx(100 * own["kept_bytes"]) and shown["entries"] == pytest.approx(10, abs=0.2)
    assert "of the bytes, " in leaderboard.size_of(shown) and "of the entries" in leaderboard.size_of(shown)
    one = samples.samples_of(sliding, {}, 1)["samples"][0]["cells"][1]
    assert one["kept"] > 77 and one["share"] == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize("folder", run_folders(RESULTS), ids=lambda path: path.name)
def test_where_every_layer_evicts_both_agree(folder):
    """All committed rows: of SmolLM2, whose every layer evicts; what differs is the rounding of a division."""
    rows = load_table(folder)
    rows = sizes.with_bytes(rows[rows["method"].notna()])
    known = rows[rows["kept_bytes"].notna() & rows["score"].notna()]
    if not known["reference"].any():
        assert known.empty  # analyses have no full cache
        return
    np.testing.assert_allclose(known["kept_bytes"], known["kept_fraction"].astype(float), atol=1e-12)


def test_shares_are_of_the_same_sample():
    """Mean of the ratios, not the ratio of means: documents differ in length."""
    rows = rows_of({"full": [1.0] * 2, "h2o": [1.0] * 2}, [100, 900])
    own = rows["method"] == "h2o"
    rows.loc[own, "kv_bytes"] = [50_000, 90_000]  # 50% and 10%
    line = summaries.summarize(rows).set_index("method").loc["h2o"]
    assert line["kept_bytes"] == pytest.approx(0.3) and line["mib"] * 2**20 == pytest.approx(70_000)


def test_without_a_full_cache_sizes_are_entries_and_say_so():
    rows = rows_of({"h2o": [1.0] * 4}, [100] * 4)
    table = summaries.summarize(rows)
    assert table["kept_bytes"].isna().all() and sizes.axis(table) == "kept_fraction"
    assert run_figures.curve(rows).axes[0].get_xlabel() == "KV cache kept: entries in the layers that evict, %"
    assert markdown_latex.sizes_of(table.iloc[0])["bytes, %"] == "-"
    run = scores.run_of(rows)
    assert run["parts"][0]["cells"][0]["kept"] is None and run["parts"][0]["cells"][0]["entries"] == 40.0


def test_a_reach_of_entries_is_drawn_where_its_bytes_are():
    """Half of the bytes never go: 40% of the entries are 70% of the bytes."""
    cells = {"full": [1.0] * 4, "pvc@0.5": [1.0] * 4, "pvc@0.1": [None] * 4}
    rows = rows_of(cells, [100] * 4, why="below PvC's reach of 40.0%")
    full = rows["reference"].astype(bool)
    rows.loc[full, "kv_bytes"] = 200_000
    rows.loc[rows["budget"] == "0.5", "kv_bytes"] = 150_000
    axes = run_figures.curve(rows).axes[0]
    [end] = [line for line in axes.get_lines() if line.get_label() == "pvc: reach"]
    assert list(end.get_xdata()) == pytest.approx([70.0, 70.0])
    [method] = [one for one in scores.run_of(rows)["methods"] if one["name"] == "pvc"]
    assert method["reach"] == pytest.approx(70.0) and method["reach_entries"] == 40.0


def test_other_sizes_than_asked_are_said():
    """5% asked of short prompts keeps 1.8%: more than a tenth off; 40% kept for 40% asked is not."""
    cells = {
        "full": [1.0] * 4,
        "h2o@0.05": [1.0] * 4,
        "h2o@0.4": [1.0] * 4,
        "tova@0.05": [1.0] * 4,
        "tova@64": [1.0] * 4,
    }
    rows = rows_of(cells, [100] * 4)
    rows.loc[(rows["method"] == "h2o") & (rows["budget"] == "0.05"), "kept_fraction"] = 0.018
    rows.loc[rows["budget"] == "64", "kept_entries"] = 50.0
    [said] = cautions.other_sizes(summaries.summarize(rows))
    assert said.endswith("of 5% asked h2o kept 1.8%; of 64 entries asked tova kept 50.")


def test_speeds_have_both_measures_for_one_prompt_of_each_batch():
    """The full cache ran 2 prompts in 2,000 bytes, H2O 4 prompts in 3,000: 75% a prompt, of 50% of the entries."""
    lists = {measure: [1.0, 2.0, 3.0] for measure in tables.MEASURES}
    rows = rows_of({"full": [9.0], "h2o": [9.0]}, [100], kept=0.5).assign(session="1", task="throughput")
    rows["metrics"] = [
        dict.fromkeys(tables.MEASURES, 2.0) | {"batch": batch, "prefill_peak_bytes": 1, "decode_peak_bytes": 1}
        for batch in (2, 4)
    ]
    rows["kv_bytes"], rows["repeats"] = [2000, 3000], [lists] * 2
    rows["sample_info"] = [{"batch": "largest", "prompt": 100, "new_tokens": 8}] * 2
    found = tables.summary(rows).set_index("method")
    assert found.loc["h2o", "bytes_%"] == 75.0 and found.loc["h2o", "entries_%"] == 50.0
