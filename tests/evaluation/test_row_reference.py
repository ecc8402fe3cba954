"""docs/reference/rows.md lists every key of a row, as the class `Row` declares them."""

import pytest

import row_reference
from pvcbench.config import compose
from pvcbench.runs import runner
from pvcbench.runs.rows import load_table, read_rows

TINY = ["model=random", "threads=1", "wandb.mode=disabled", "limit=1"]
SOURCE = row_reference.SOURCE.read_text(encoding="utf-8")
KEYS = {key.name for key in row_reference.keys(SOURCE)}


def test_the_page_is_current():
    assert row_reference.PAGE.read_text(encoding="utf-8") == row_reference.page(SOURCE)


def test_a_changed_comment_makes_the_page_stale():
    changed = SOURCE.replace("# the task's name", "# the name of the task")
    assert changed != SOURCE and row_reference.page(changed) != row_reference.page(SOURCE)


def test_a_key_without_a_comment_is_refused():
    with pytest.raises(LookupError, match="the key task needs a comment"):
        row_reference.page(SOURCE.replace("# the task's name", ""))


RUNS = {
    "generate": ["task=needle", "task.lengths=[300]", "method=[h2o,streaming_llm]", "budgets=[0.5,0.001]"],
    "continuation": [*"task=perplexity task.prefix=64 task.continuation=16 task.documents=1".split(), "method=h2o"],
    "observe": ["task=context_redundancy", "task.tokens=[128]", "task.documents=1", "task.needles=0"],
    "measure": ["task=throughput", "task.prompts=[64]", "task.new_tokens=[4]", "method=h2o", "budgets=[0.5]"],
}


@pytest.mark.parametrize("kind", RUNS)
def test_no_row_has_a_key_that_the_page_lacks(tmp_path, kind):
    result = runner.run(compose.composed([*TINY, f"results={tmp_path}", *RUNS[kind]]), figures=False)
    rows = read_rows(result.folder / "rows.jsonl")
    assert rows and not set().union(*rows) - KEYS
    added = set(load_table(result.folder).columns) - KEYS
    assert added and all(f"`{name}`" in row_reference.LOADED for name in added)
