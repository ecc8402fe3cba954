"""A method that fails in all of its cells is a failure of the run; what is out of reach, or fails once, is not."""

import pandas as pd

from pvcbench.cli import main
from pvcbench.config import building, compose
from pvcbench.runs import result
from pvcbench.stats import failures

TINY = ["model=random", "threads=1", "wandb.mode=disabled", "task.lengths=[300]", "task.max_new_tokens=2", "limit=2"]
TINY += ["figures=false"]


def break_plan(monkeypatch, when):
    """Makes `random` fail while `when()` is true, on prompts longer than that of its trial."""
    kind = type(building.build_methods(compose.composed(["method=random"]).methods)["random"])
    real = kind.plan

    def broken(self, scores, budget, shape):
        if shape.tokens > 200 and when():
            raise RuntimeError("no plan today")
        return real(self, scores, budget, shape)

    monkeypatch.setattr(kind, "plan", broken, raising=False)


def run(tmp_path, *more):
    return main.main([*TINY, "method=[random,h2o]", "budgets=[0.5]", f"results={tmp_path}", *more])


def test_a_method_that_always_fails_exits_with_1_until_it_is_mended(tmp_path, monkeypatch, capsys):
    broken = [True]
    break_plan(monkeypatch, lambda: broken[0])
    for _ in range(2):  # the same command says the same again
        assert run(tmp_path) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("pvcbench: no cell of random has a value (2 rows): MethodError: Random.plan (")
        assert "RuntimeError: no plan today" in said
        assert "retry_failed=true" in said
    broken[0] = False
    assert run(tmp_path, "retry_failed=true") == 0
    assert "no cell" not in capsys.readouterr().err


def test_a_method_that_fails_once_is_a_row_with_an_error(tmp_path, monkeypatch, capsys):
    calls = []
    break_plan(monkeypatch, lambda: not calls.append(1) and len(calls) == 1)
    assert run(tmp_path) == 0
    assert "no cell" not in capsys.readouterr().err


def test_what_is_out_of_reach_is_no_failure(tmp_path, capsys):
    settings = [*TINY, "method=pvc", "budgets=[0.05]", "limit=1", f"results={tmp_path}"]
    assert main.main(settings) == 0
    said = capsys.readouterr()
    assert "below PvC's reach" in said.out and "no cell" not in said.err


def test_one_fault_among_cells_out_of_reach_is_a_failure():
    rows = pd.DataFrame(
        {
            "method": ["full", "pvc", "pvc", "knorm", "h2o", "h2o"],
            "error": [None, "below PvC's reach of 40%", "ValueError: bad", "below reach", "KeyError: 1", None],
        }
    )
    [line] = result.broken(failures.typed(rows))
    assert line.startswith("no cell of pvc has a value (2 rows): ValueError: bad")
    assert result.broken(failures.typed(rows).iloc[:0]) == []
    seen = result.broken(failures.typed(pd.DataFrame({"method": [None], "error": ["RuntimeError: x"]})))
    assert seen[0].startswith("no cell of the observations has a value")
