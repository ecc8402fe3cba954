"""What a run says that evicts at intervals: its id, its protocol, sizes over time; and what is refused, in one line."""

import pytest

from pvcbench.config import building, compose, settings
from pvcbench.errors import UserError
from pvcbench.runs import runner
from pvcbench.runs.rows import read_rows
from pvcbench.runs.spec import RunSpec

SMALL = ["model=random", "threads=1", "wandb.mode=disabled", "limit=1", "budgets=[64]", "method=[h2o,vase]"]
NEEDLE = ["task.lengths=[420]", "task.depths=[50]", "task.max_new_tokens=24"]
HOLD = ["decode=hold", "methods.vase.window=8"]


def rows_of(folder, *overrides):
    """Rows by method, and the run's id."""
    result = runner.run(compose.composed([*SMALL, *HOLD, *overrides, f"results={folder}"]), figures=False)
    rows = read_rows(result.folder / "rows.jsonl")
    assert not any(row["error"] for row in rows)
    return {row["method"]: row for row in rows}, result.folder.name


def test_rows_say_the_interval_and_the_sizes_it_gave(tmp_path):
    """Between budget and budget + interval, of which the peak is reached; the full cache grows by a token a step."""
    rows, run = rows_of(tmp_path, *NEEDLE, "interval=8")
    for name in ("h2o", "vase"):
        row = rows[name]
        assert row["protocol"]["interval"] == 8 and "prompt" not in row["protocol"]
        assert row["kept_entries"] == 64 and row["decoding_entries_peak"] == 72
        assert 64 < row["decoding_entries"] < 70
        assert row["decoding_bytes_peak"] == row["kv_bytes"] / 64 * 72
    full, steps = rows["full"], 23
    assert full["decoding_entries_peak"] == full["prompt_tokens"] + steps
    assert full["decoding_entries"] == full["prompt_tokens"] + (steps + 1) / 2
    kept, other = rows_of(tmp_path, *NEEDLE, "interval=8", "prompt=protected")
    assert kept["h2o"]["protocol"]["prompt"] == "protected" and kept["h2o"]["decoding_entries_peak"] == 64 + steps
    plain, third = rows_of(tmp_path, *NEEDLE)
    assert not {"interval", "prompt"} & plain["h2o"]["protocol"].keys()
    assert plain["h2o"]["decoding_entries"] == plain["h2o"]["decoding_entries_peak"] == 65
    assert len({run, other, third}) == 3


def test_given_tokens_are_scored_at_an_interval(tmp_path):
    """Teacher forcing feeds them one by one; speeds run in ordinary steps."""
    text = ["task=perplexity", "task.prefix=200", "task.continuation=20", "task.documents=1", "interval=8"]
    rows, _ = rows_of(tmp_path, *text)
    assert rows["h2o"]["decoding_entries_peak"] == 72 and rows["h2o"]["score"] < 0
    speeds = ["task=throughput", "task.prompts=[200]", "task.new_tokens=[20]", "task.repeats=1", "interval=8"]
    rows, _ = rows_of(tmp_path, *speeds)
    assert rows["h2o"]["metrics"]["steps"] == "ordinary" and rows["full"]["metrics"]["steps"] == "one shape"


REFUSED = {
    "grow": (["decode=grow", "interval=4"], "interval=4 says how decode=hold evicts: set decode=hold"),
    "grow, protected": (["decode=grow", "prompt=protected"], "set decode=hold, or leave prompt=counted"),
    "no interval": (["interval=0"], "interval must be 1 or more, not 0"),
    "another prompt": (["prompt=kept"], "prompt must be counted or protected"),
    "its own blocks": (["method=pvc", "interval=4"], "pvc decides by itself what goes while decoding, and when"),
    "its own size": (["method=pvc_official_generation", "interval=4"], "leave interval=1 and prompt=counted"),
    "cache positions": (["method=streaming_llm", "prompt=protected"], "methods.streaming_llm.positions=original"),
    "a document": (["task=perplexity", "task.protocol=streaming", "interval=4"], "says itself after how many tokens"),
    "rows of a document": (["task=perplexity", "task.protocol=streaming", "method=rkv"], "rkv does not support"),
    "nothing generated": (["task=context_redundancy", "interval=4"], "generates nothing: leave interval=1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused(name):
    """Before a model is loaded, with what to set instead."""
    overrides, expected = REFUSED[name]
    with pytest.raises(UserError, match=expected):
        config = compose.composed(["decode=hold", "method=h2o", *overrides])
        settings.check(config)
        RunSpec.of(config, None, building.build_methods(config.methods))
