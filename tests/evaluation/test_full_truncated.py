"""The control whose answers end at the budget: what the full cache says, as far as prompt and answer fit together."""

import pytest

from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.runs import runner
from pvcbench.runs.rows import read_rows

SMALL = ["model=random", "dtype=float64", "threads=1", "wandb.mode=disabled", "task=needle", "task.lengths=[200]"]
SMALL += ["task.max_new_tokens=12", "method=[full_truncated,snapkv_d]", "decode=hold", "limit=3"]
DRAWN = ["sampling.temperature=1.5", "sampling.n=2"]


def run(folder, *overrides):
    return read_rows(runner.run(compose.composed([*SMALL, *overrides, f"results={folder}"]), figures=False).folder)


def budgets(lengths, *more):
    """Sizes that leave no token, one, five and more than enough tokens to the longest prompt."""
    return f"budgets={[max(lengths) + extra for extra in (0, 1, 5, 40, *more)]}"


@pytest.mark.parametrize("more", [[], ["interval=4"], DRAWN], ids=["every_token", "interval", "drawn"])
@pytest.mark.sampled(1)
def test_answers_are_the_full_caches_up_to_the_budget(tmp_path, more):
    lengths = [row["prompt_tokens"] for row in run(tmp_path / "lengths", "budgets=[1000]")]
    rows = run(tmp_path, budgets(lengths), *more)
    full = {row["sample"]: row for row in rows if row["reference"]}
    cells = [row for row in rows if row["method"] == "full_truncated"]
    assert len(cells) == 4 * len(full)
    ended = set()
    for row in cells:
        room, whole = int(row["budget"]) - row["prompt_tokens"], full[row["sample"]]
        if room < 1:
            assert row["score"] is None and "nothing of it is evicted" in row["error"]
            continue
        ended.add(room < whole["answer_tokens"])
        assert row["answer_tokens"] == min(room, whole["answer_tokens"])
        assert whole["output"].startswith(row["output"].rstrip("\N{REPLACEMENT CHARACTER}"))
        assert row["truncated"] == (whole["truncated"] or room <= whole["answer_tokens"])
        assert row["decoding_entries_peak"] is None or row["decoding_entries_peak"] <= int(row["budget"])
        assert row["kept_entries"] == row["prompt_tokens"]
    assert ended == {True, False}


@pytest.mark.parametrize(
    "more, told",
    [
        (["budgets=[0.5]"], "needs sizes in entries"),
        (["budgets=[300]", "decode=grow"], "supports decode=hold"),
        (["budgets=[300]", "query_aware=false"], "leave query_aware=true"),
        (["budgets=[300]", "prompt=protected"], "leave prompt=counted"),
    ],
)
def test_what_is_no_control_is_refused(tmp_path, more, told):
    with pytest.raises(UserError, match=told):
        run(tmp_path, *more)
