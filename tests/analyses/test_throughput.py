"""task=throughput: its prompts, its clocks, cells that run alone, the largest batch, its tables and the experiment."""

import gc
import json
import math
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats

from pvcbench.analyses.throughput import figures as drawing
from pvcbench.analyses.throughput import tables as report
from pvcbench.cli import main, run_table
from pvcbench.config import building, compose
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.static_decode import StaticDecoder, fastest
from pvcbench.errors import UserError
from pvcbench.evaluation import peak_memory
from pvcbench.evaluation import throughput as measure
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.plots import run_figures
from pvcbench.runs import runner, wandb_mirror
from pvcbench.runs.run_id import run_id
from pvcbench.runs.spec import RunSpec
from pvcbench.tasks.prompts import Prompter
from pvcbench.tasks.throughput import Throughput
from rows import table
from tiny import METHODS, engine, prompt

ROOT = Path(__file__).parents[2]
TINY = ["model=random", "threads=1", "wandb.mode=disabled", "task=throughput", "task.prompts=[64]"]
SMALL = [*TINY, "task.new_tokens=[6]", "task.batches=[2]", "method=[h2o,streaming_llm]", "budgets=[0.5]"]
EXPERIMENT = ["+experiment=pyramidinfer_throughput", "model.shape=tiny", "dtype=float32", "task.batches=[2]"]
LINUX = pytest.mark.skipif(
    peak_memory.PeakMemory(torch.device("cpu")).peak() is None, reason="no peak memory of the process"
)


def run(tmp_path, *overrides, **objects):
    return runner.run(compose.composed([*SMALL, f"results={tmp_path}", *overrides]), figures=False, **objects)


# ------------------------------------------------------------------------------------------------------------ prompts


def test_prompts_are_functions_of_seed_and_index():
    made, tokenizer = Throughput([2, "largest"], [16, 9], [4]), byte_tokenizer()
    made.prepare(Prompter(tokenizer))
    samples = [made.sample(3, index) for index in range(made.size(3))]
    assert [one.id for one in samples] == ["b2-p16-n4", "largest-p16-n4", "b2-p9-n4", "largest-p9-n4"]
    rows = made.rows(samples[1], 40)
    assert rows.shape == (40, 16) and not set(rows.flat) & set(tokenizer.all_special_ids)
    assert rows.min() >= 0 and rows.max() < len(tokenizer) and len(np.unique(rows)) > 100
    assert (made.rows(samples[1], 7) == rows[:7]).all()  # a larger batch extends a smaller one
    assert list(made.encode(samples[1]).ids) == rows[0].tolist()
    assert (made.rows(made.sample(4, 1), 40) != rows).any() and (made.rows(samples[0], 40) != rows).any()


BAD = [
    ({"batches": []}, "batches"),
    ({"batches": [0]}, "batches"),
    ({"batches": ["most"]}, "largest"),
    ({"batches": [True]}, "batches"),
    ({"batches": 4}, "list"),
    ({"prompts": ["largest"]}, "prompts"),
    ({"prompts": [1.5]}, "prompts"),
    ({"new_tokens": [1]}, "2 or more"),
    ({"repeats": 0}, "repeats"),
    ({"memory_gib": 0}, "memory_gib"),
    ({"memory_gib": "all"}, "memory_gib"),
]


@pytest.mark.parametrize("settings, expected", BAD)
def test_bad_settings_are_refused(settings, expected):
    with pytest.raises(UserError, match=expected):
        Throughput(**settings)


def test_what_cannot_be_measured_is_refused(tmp_path, monkeypatch):
    refused = [("task.batches=[largest]", "memory_gib"), ("query_aware=false", "query_aware")]
    refused += [("refeed_last=true", "refeed_last"), ("task.prompts=[5000]", "lower task.prompts")]
    for override, expected in refused:
        with pytest.raises(UserError, match=expected):
            run(tmp_path, override)
    monkeypatch.setattr(peak_memory.PeakMemory, "peak", lambda self: None)
    with pytest.raises(UserError, match="peak memory"):
        run(tmp_path, "task.batches=[largest]", "task.memory_gib=1")


# ------------------------------------------------------------------------------------------- a fork that frees, a pass


@pytest.mark.parametrize("hold", [False, True], ids=["grow", "hold"])
@pytest.mark.parametrize("name", ["full", "h2o", "pvc", "streaming_llm"])
def test_a_consuming_fork_equals_a_copy_and_leaves_no_prompt(inference, name, hold):
    host, ids = engine("llama"), prompt(100, 2)
    method = METHODS[name]
    everything = method.reference
    method = method if everything else method.resolve(90, host.shape(100))
    cell = Cell("x", method, None if everything else 90, hold, everything)
    watching = [] if everything else [method]
    [kept] = host.fork(host.prefill(ids, watching, cell.pruner), [cell], 8)
    prefill = host.prefill(ids, watching, cell.pruner)
    held = [weakref.ref(part) for layer in prefill.layers for part in (layer.keys, layer.values)]
    [group] = host.fork(prefill, [cell], 8, consume=True)
    assert [one() for one in held] == [None] * len(held)  # without a garbage collection
    assert all(scores == [None] * len(scores) for scores in prefill.observer.scores.values())
    for ours, theirs in zip(group.layers, kept.layers, strict=True):
        for part in ("keys", "values", "positions", "lengths", "totals"):
            assert getattr(theirs, part) is None or torch.equal(getattr(ours, part), getattr(theirs, part))
    with pytest.raises(RuntimeError, match="consumed"):
        host.fork(prefill, [cell], 8)


def test_layers_are_freed_one_by_one(inference, monkeypatch):
    """While layer n is copied, all layers before it are gone."""
    from pvcbench.engine import evict

    host = engine("llama")
    prefill = host.prefill(prompt(50))
    held, alive, real = [weakref.ref(layer.keys) for layer in prefill.layers], [], evict._gather

    def watched(*arguments):
        alive.append(sum(one() is not None for one in held))
        return real(*arguments)

    monkeypatch.setattr(evict, "_gather", watched)
    host.fork(prefill, [Cell("x", METHODS["full"], None, everything=True)], 0, consume=True)
    assert alive == [4, 3, 2, 1]


def test_decoding_is_greedy_and_feeds_nothing_twice(inference):
    host, ids = engine("llama"), prompt(60, 3)
    cell = Cell("x", METHODS["full"], None, everything=True)
    expected = host.greedy(host.fork(host.prefill(ids), [cell], 12), feed=None, new_tokens=12, ends=())[0]
    prefill = host.prefill(ids)
    [group] = host.fork(prefill, [cell], 11, consume=True)  # room for all but the last token
    decoder = fastest(host.call, [group])
    assert isinstance(decoder, StaticDecoder)
    tokens = measure.decode(decoder, prefill.logits.argmax(-1), 12)
    assert tokens.tolist() == expected[0]


def test_speeds_by_hand():
    """4 prompts of 100 tokens, 11 new ones each: 10 steps of decoding, in 5 s of 10."""
    found = measure.speeds(4, 100, 11, ttft_s=3.0, compress_s=2.0, decode_s=5.0)
    assert found == {"decode_tokens_per_s": 8.0, "generated_per_s": 4.4, "paper_tokens_per_s": 44.4}


def test_rows_hold_medians_of_hand_made_clocks(tmp_path, monkeypatch):
    """A pass reads the clock six times: prefill 2 s, fork 1 s, a pause, capture 4 s, decoding 5 s times its number."""
    passes, ticks = [0], [0.0]
    steps = [7.0, 2.0, 1.0, 30.0, 4.0, 5.0]  # since the reading before

    def clock(_):
        number = passes[0]
        passes[0] += 1
        ticks[0] += steps[number % 6] * (number // 6 if number % 6 == 5 else 1)
        return ticks[0]

    monkeypatch.setattr(measure, "clock", clock)
    [row] = run(tmp_path, "method=full").rows.to_dict("records")
    assert row["repeats"]["decode_s"] == [5.0, 10.0, 15.0] and row["decode_s"] == 10.0  # pass 0 is the warm-up
    assert row["repeats"]["ttft_s"] == [2.0] * 3 and row["prefill_s"] == 2.0
    found = row["metrics"]
    assert found["capture_s"] == 4.0 and found["steps"] == "one shape"
    assert next(iter(found)) == "decode_tokens_per_s" and row["score"] == found["decode_tokens_per_s"] == 2 * 5 / 10
    assert found["generated_per_s"] == 2 * 6 / 13 and found["paper_tokens_per_s"] == 2 * (64 + 6) / 13
    # 4 layers, 2 KV heads, 16 floats for key and value each, 2 prompts; the last token is never fed
    assert row["kv_bytes"] == 2 * 64 * 4 * 2 * 16 * 2 * 4 and found["kv_bytes_end"] == row["kv_bytes"] * (64 + 5) / 64
    loaded = building.build(compose.composed(TINY).model, "the model", device="cpu", dtype=None)
    assert found["weight_bytes"] == sum(tensor.nbytes for tensor in loaded.model.state_dict().values())


# ------------------------------------------------------------------------------------------------- cells run alone


@pytest.fixture
def prefills(monkeypatch):
    """What watched each prefill of a batch, and how many caches of earlier passes were alive then."""
    seen, caches, real, fork = [], [], Engine.prefill, Engine.fork

    def counted(self, ids, methods=(), pruner=None, *rest, **more):
        if len(ids) > 1 and not self.strict:  # not the trial of the methods
            seen.append((list(methods), pruner, sum(one() is not None for one in caches)))
        return real(self, ids, methods, pruner, *rest, **more)

    def followed(self, *arguments, **options):
        groups = fork(self, *arguments, **options)
        caches.extend(weakref.ref(layer.keys) for group in groups for layer in group.layers)
        return groups

    monkeypatch.setattr(Engine, "prefill", counted)
    monkeypatch.setattr(Engine, "fork", followed)
    return seen


def test_cells_run_alone_in_turn_and_leave_nothing(tmp_path, prefills):
    result = run(tmp_path, "method=[h2o,pvc]", "budgets=[0.9]", "task.prompts=[128]", "task.repeats=2")
    assert result.rows["error"].isna().all() and len(result.rows) == 3
    names = ["full" if not found else type(found[0]).__name__ for found, _, _ in prefills]
    assert [len(found) for found, _, _ in prefills] == [0, 1, 1] * 3  # a warm-up and two repeats, interleaved
    assert names == ["full", *names[1:3]] * 3 and len(set(names)) == 3
    assert [pruner is not None for _, pruner, _ in prefills] == [name == "PvC" for name in names]
    assert [alive for *_, alive in prefills] == [0] * 9
    assert result.rows["session"].nunique() == 1 and result.rows["peak_bytes"].notna().any()


def test_what_fails_is_a_row_and_sinks_no_other(tmp_path, monkeypatch):
    real = measure.decode

    def short(decoder, first, new_tokens):
        if type(decoder.groups[0].cells[0].method).__name__ == "H2O" and new_tokens > 4:
            raise torch.OutOfMemoryError("CUDA out of\nmemory")
        return real(decoder, first, new_tokens)

    monkeypatch.setattr(measure, "decode", short)
    first = run(tmp_path)
    failed = first.rows[first.rows["error"].notna()]
    assert list(failed["method"]) == ["h2o"] and "CUDA out of memory" in failed["error"].iloc[0]
    assert first.summary.set_index("method")["decode_tok/s"].isna().to_dict()["h2o"]
    monkeypatch.setattr(measure, "decode", real)
    assert run(tmp_path).measured == 0
    again = run(tmp_path, "retry_failed=true")
    assert again.measured == 1 and again.rows["error"].isna().all()
    told = again.summary.set_index("method")["speedup"]
    assert "[" in told["streaming_llm"] and "[" not in told["h2o"]  # it did not take turns with the full cache


def test_out_of_reach_is_a_row(tmp_path):
    rows = run(tmp_path, "method=pvc", "budgets=[0.1]", "task.prompts=[128]").rows.set_index("method")
    assert "reach" in rows.loc["pvc", "error"] and rows.loc["full", "score"] > 0


def test_the_machine_and_its_threads_are_part_of_the_run(tmp_path, monkeypatch):
    def identity(*overrides, base=SMALL):
        made = compose.composed([*base, *overrides])
        loaded, task = building.build(made.model, "", device="cpu", dtype=None), building.build(made.task, "the task")
        return RunSpec.of(made, task).identity(loaded)

    one, two = identity(), identity("threads=2")
    assert (one["threads"], two["threads"]) == (1, 2) and one["hardware"] == two["hardware"]
    assert run_id(one) != run_id(two) != run_id(identity("threads=2", "task.repeats=4"))
    monkeypatch.setattr(runner.environment, "processor", lambda: "another")
    assert identity()["hardware"] == "another" != one["hardware"]
    assert not {"threads", "hardware"} & set(identity("model=random", base=[]))


# --------------------------------------------------------------------------------------------- the largest batch


@pytest.mark.parametrize(
    "room, row, expected", [(1000, 10, 90), (1005, 10, 90), (109, 10, 0), (110, 10, 1), (999, 450, 1)]
)
def test_the_largest_batch_on_a_made_up_memory(room, row, expected):
    search = peak_memory.largest_batch(lambda batch: 100 + row * batch, room)
    assert search.fits == expected and search.settled
    tried = dict(search.tried)
    assert expected + 1 in tried and (expected in tried or expected == 0) and len(search.tried) == len(tried) <= 8


def test_memory_that_runs_out_and_memory_that_jumps():
    def limited(batch):  # a device that gives out before its limit does
        return 100 + 10 * batch if batch <= 77 else None

    search = peak_memory.largest_batch(limited, 10**6)
    assert (search.fits, search.fails, search.settled) == (77, 78, True)
    jumping = peak_memory.largest_batch(lambda batch: 10 * batch + 5000 * (batch > 50), 4000)
    assert (jumping.fits, jumping.settled) == (50, True)
    endless = peak_memory.largest_batch(lambda batch: 1, 10, most=64)
    assert (endless.fits, endless.settled) == (64, False) and len(endless.tried) <= peak_memory.TRIALS
    noise = iter([5, 9, *[5, 9] * 50])
    assert len(peak_memory.largest_batch(lambda batch: next(noise), 10, most=10**9).tried) <= peak_memory.TRIALS


@LINUX
def test_the_peak_is_that_of_the_process():
    meter = peak_memory.PeakMemory(torch.device("cpu"))
    meter.reset()
    before = meter.peak()
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert 60 * 2**20 < meter.peak() - before < 80 * 2**20  # 64 MiB, and what else the process does meanwhile
    del block
    assert meter.peak() - before > 60 * 2**20
    meter.reset()
    assert meter.peak() - before < 20 * 2**20


@LINUX
@pytest.mark.slow
def test_the_largest_batch_for_real(tmp_path):
    """32 MiB beyond what the process holds: some prompts of 64 tokens fit, more do not, and each cell runs its own."""
    run(tmp_path / "warm", "method=h2o")
    meter = peak_memory.PeakMemory(torch.device("cpu"))
    meter.reset()
    gib = meter.peak() / 2**30 + 1 / 32
    result = run(tmp_path, "task.batches=[largest]", f"task.memory_gib={gib}", "method=h2o", "task.repeats=1")
    assert result.rows["error"].isna().all()
    for row in result.rows.itertuples():
        tried = dict(map(tuple, row.search["tried"]))
        assert row.metrics["largest_batch"] == row.metrics["batch"] > 2 and row.sample == "largest-p64-n6"
        assert tried[row.metrics["batch"]] <= row.search["limit"] == int(gib * 2**30)
        assert max(tried) > row.metrics["batch"] and tried[max(tried)] > row.search["limit"]
        assert row.kv_bytes % row.metrics["batch"] == 0
    trials = (result.folder / "largest_batch.csv").read_text().splitlines()
    assert len(trials) == 1 + sum(len(row["tried"]) for row in result.rows["search"])
    small = run(tmp_path, "task.batches=[largest]", "task.memory_gib=0.01", "method=h2o")
    assert small.rows["error"].str.contains("not even one prompt").all()


# ---------------------------------------------------------------------------------------------- tables and figures


def made_rows(batch=32, speeds=((100.0, 110.0, 105.0), (210.0, 200.0, 225.0)), model="random-llama2_13b"):
    """A run's rows with these decode speeds, of the full cache and of one method."""
    rows, name = [], batch if batch == "largest" else f"b{batch}"
    for place, values in enumerate(speeds):
        method, size = ("full", "h2o")[place], 85 if batch == "largest" else batch
        lists = {measure: list(values) for measure in report.MEASURES}
        found = dict.fromkeys(report.MEASURES, values[1]) | {"batch": size, "weight_bytes": 26 * 2**30}
        found |= {"prefill_peak_bytes": 60 * 2**30, "decode_peak_bytes": 50 * 2**30}
        search = {"limit": 79 * 2**30, "tried": [[1, 30 * 2**30], [85, 78 * 2**30], [86, None]], "settled": True}
        found |= {"largest_batch": size} if batch == "largest" else {}
        row = {"task": "throughput", "sample": f"{name}-p512-n256", "method": method, "error": None, "session": "1"}
        row |= {"sample_info": {"batch": batch, "prompt": 512, "new_tokens": 256}, "budget": ("1.0", "0.454")[place]}
        row |= {"reference": place == 0, "score": values[1], "metrics": found, "repeats": lists, "kv_bytes": 2**30}
        row |= {"kept_fraction": 1.0 - 0.5 * place, "peak_bytes": 1, "search": search if batch == "largest" else None}
        rows.append(row)
    return table(rows).assign(model=model)


def test_speedups_are_paired_and_their_intervals_are_students():
    rows = made_rows()
    full, cell = list(rows.itertuples())
    logs = np.log(np.array(cell.repeats["ttft_s"]) / np.array(full.repeats["ttft_s"]))
    mean, half = logs.mean(), scipy_stats.t.ppf(0.975, 2) * logs.std(ddof=1) / math.sqrt(3)
    expected = (math.exp(mean), math.exp(mean - half), math.exp(mean + half))
    assert report.ratio(cell, full, "ttft_s") == pytest.approx(expected, rel=1e-12)
    assert report.summary(rows)["speedup"].tolist() == [
        "1",
        f"{expected[0]:.2f} [{expected[1]:.2f}, {expected[2]:.2f}]",
    ]
    speeds = report.tables(rows)["speeds"].set_index(["method", "measure"]).loc[("h2o", "decode_tokens_per_s")]
    assert (speeds["median"], speeds["least"], speeds["most"]) == (210.0, 200.0, 225.0)
    two = made_rows(speeds=((100.0, 110.0), (200.0, 220.0)))
    assert report.summary(two)["speedup"].tolist() == ["1", "2.00"]  # two repeats give no interval
    alone = report.summary(rows[rows["method"] == "h2o"])
    assert alone["speedup"].tolist() == [""]


def test_published_numbers_stand_beside_the_same_setting_only():
    own = report.published(made_rows())
    assert own["system"].tolist() == ["Accelerate", "DeepSpeed", "H2O", "PyramidInfer"]
    assert own["paper_tokens_per_s"].tolist() == [621, 934, 584, 1389] and set(own["source"]) == {"arXiv 2405.12532"}
    assert report.published(made_rows("largest"))["batch"].tolist() == [42, 40, 48, 88]
    assert len(report.published(made_rows(model="meta-llama/Llama-2-13b-hf"))) == 4
    assert report.published(made_rows(16)).empty and report.published(made_rows(model="random-llama2_7b")).empty


def test_figures_show_every_cell_the_reference_and_what_was_published(tmp_path):
    rows = pd.concat([made_rows(), made_rows("largest")], ignore_index=True)
    drawn = dict(drawing.figures(rows))
    assert set(drawn) == {"decode_speed", "paper_speed", "peak_memory", "largest_batch"}
    labels = [text.get_text() for text in drawn["paper_speed"].axes[0].get_yticklabels()]
    theirs = [f"{name}, published\nbatch 32" for name in ("Accelerate", "DeepSpeed", "H2O", "PyramidInfer")]
    assert labels == ["full", "h2o 45.4%", *theirs[:3], f"{theirs[3]}, 2.24x claimed"]
    full = math.exp(np.log([100.0, 110.0, 105.0]).mean())
    lines = [line for line in drawn["decode_speed"].axes[0].get_lines() if line.get_xdata()[0] == pytest.approx(full)]
    assert any(len(line.get_xdata()) == 2 for line in lines)  # the reference line
    widths = [bar.get_width() for bar in drawn["largest_batch"].axes[0].patches]
    assert widths == [85, 85, 42, 40, 48, 88]
    assert all("second" in figure.axes[0].get_xlabel() for name, figure in drawn.items() if name.endswith("speed"))
    paths = run_figures.save(lambda: drawing.figures(rows), tmp_path, "0" * 64)
    assert len(paths) == 8 and all(path.stat().st_size > 1000 for path in paths)


def test_tracking_takes_the_summary():
    assert wandb_mirror.points(report.summary(made_rows()), "throughput") == []
    assert wandb_mirror.numbers(report.summary(made_rows())) == {}


# -------------------------------------------------------------------------------------------------- the experiment


@pytest.mark.slow
def test_the_experiment_in_small(tmp_path):
    """As in the README: from the command line, with its table, its figures, its W&B run and its end."""
    small = ["task.prompts=[128]", "task.new_tokens=[8]", "budgets=[0.9]", "threads=1", "task.repeats=3"]
    command = [sys.executable, "-m", "pvcbench", *EXPERIMENT, *small, f"results={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "batch 2, 128 + 8 tokens" in done.stdout and "W&B" in done.stdout and "wandb failed" not in done.stderr
    [folder] = (tmp_path / "pyramidinfer_throughput").iterdir()
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} == {"full", "pyramidinfer_13b", "pvc", "h2o", "streaming_llm"}
    assert all(row["error"] is None and row["score"] > 0 for row in rows)
    for name in ("figures/decode_speed.png", "figures/peak_memory.svg", "summary.csv", "speeds.csv"):
        assert (folder / name).is_file()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0 and "nothing was measured again" in again.stdout


def test_plus_experiment_composes_and_experiment_names_the_folder():
    whole = compose.composed(["+experiment=pyramidinfer_throughput"])
    assert whole.experiment == "pyramidinfer_throughput" and whole.model.shape == "llama2_13b"
    assert (whole.task.batches, whole.dtype, whole.budgets) == ([32, "largest"], "bfloat16", [0.454])
    named = compose.composed(["experiment=demo"])
    assert named.experiment == "demo" and "Needle" in named.task._target_
    for given, name in (("experiment='a b'", "a b"), ("++experiment=x", "x"), ("experiment=2024", "2024")):
        assert compose.composed([given]).experiment == name
    both = compose.composed(["+experiment=pyramidinfer_throughput", "experiment=mine", "method=h2o"])
    assert both.experiment == "mine" and set(both.methods) == {"h2o", "full"} and both.model.shape == "llama2_13b"


WRONG = [
    ("+experiment=pyramidinfer", "did you mean 'pyramidinfer_figures'"),
    ("+experiment=zzz", "choose from attention_patterns_80k"),
    ("experiment=a,b", "names one folder"),
    ("experiment=null", "experiment"),
]


@pytest.mark.parametrize("more", [[], ["--multirun"]], ids=["run", "multirun"])
@pytest.mark.parametrize("override, expected", WRONG)
def test_wrong_experiments_get_one_line(override, expected, more, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pvcbench"])
    monkeypatch.chdir(tmp_path)
    try:
        code = main.main([*more, override])
    except SystemExit as ended:  # Hydra's job ends so
        code = ended.code
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(said) == 1 and expected in said[0]


@pytest.mark.slow
def test_a_multirun_names_its_folder(tmp_path):
    short = ["method=full", "task.repeats=1", "seed=0,1", "experiment=demo"]
    command = [sys.executable, "-m", "pvcbench", "--multirun", *SMALL, *short]
    done = subprocess.run(
        [*command, f"results={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "demo").iterdir())) == 2


def test_the_list_and_python_know_experiments(capsys, tmp_path):
    import pvcbench

    assert main.main(["list"]) == 0 and "pyramidinfer_throughput" in capsys.readouterr().out
    settings = {"threads": 1, "wandb__mode": "disabled", "task__prompts": [32], "task__new_tokens": [4]}
    settings |= {"figures": False}
    found = pvcbench.evaluate("random", "throughput", ["full"], results=str(tmp_path), experiment="x", **settings)
    assert found["method"].tolist() == ["full"] and (tmp_path / "x").is_dir()


def test_the_console_says_what_the_intervals_are(tmp_path, capsys):
    run_table.show(run(tmp_path))
    assert "intervals of ratios to the full cache" in " ".join(capsys.readouterr().out.split())
    gc.collect()
