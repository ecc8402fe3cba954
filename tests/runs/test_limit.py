"""A smaller limit on a finished run shows the samples asked for, and says that there are more."""

from pvcbench.cli import run_table
from pvcbench.config import compose
from pvcbench.runs import runner
from pvcbench.runs.rows import load_table

TINY = ["model=random", "task.lengths=[600]", "task.repeats=1", "method=h2o", "budgets=[0.5]", "threads=1"]


def test_a_smaller_limit_on_a_finished_run_shows_its_own_samples(tmp_path, capsys):
    def run(limit):
        settings = [*TINY, f"results={tmp_path}", "wandb.mode=disabled", f"limit={limit}"]
        return runner.run(compose.composed(settings))

    whole = run(3)
    assert (whole.summary["samples"] == 3).all() and whole.more == 0
    stored = (whole.folder / "summary.csv").read_text()
    part = run(2)
    assert part.folder == whole.folder and part.measured == 0
    assert (part.summary["samples"] == 2).all() and part.rows["sample"].nunique() == 2 and part.more == 1
    assert (part.folder / "summary.csv").read_text() == stored and len(load_table(part.folder)) == 6
    run_table.show(part)
    assert "1 more samples, of a larger limit" in capsys.readouterr().out
    assert (run(3).summary["samples"] == 3).all()
