"""A finished run says so without drawing again, and draws again whatever would come out otherwise."""

import json

import pytest

from pvcbench.cli import main
from pvcbench.config import compose
from pvcbench.runs import environment, figure_cache, runner
from pvcbench.runs.rows import run_folders

TINY = ["model=random", "threads=1", "wandb.mode=disabled", "task.lengths=[300]", "task.max_new_tokens=2", "limit=1"]


@pytest.fixture
def drawings(monkeypatch):
    """The folders that were drawn into; each drawing is one file."""
    folders = []

    def draw(rows, folder):
        folders.append(folder)
        folder.mkdir(exist_ok=True)
        (folder / "curve.png").write_bytes(b"picture")
        return [folder / "curve.png"]

    monkeypatch.setattr("pvcbench.runs.result.draw", draw)
    return folders


def run(tmp_path, *more):
    return runner.run(compose.composed([*TINY, "method=h2o", "budgets=[0.5]", f"results={tmp_path}", *more]))


def test_a_finished_run_is_not_drawn_again(tmp_path, drawings):
    first, again = run(tmp_path), run(tmp_path)
    assert len(drawings) == 1 and again.measured == 0 and again.figures == first.figures
    assert again.summary.equals(first.summary)


def test_what_would_be_drawn_otherwise_is_drawn_again(tmp_path, drawings, monkeypatch):
    first = run(tmp_path)
    first.figures[0].unlink()
    assert run(tmp_path).figures[0].is_file() and len(drawings) == 2
    run(tmp_path, "limit=2")  # more rows
    assert len(drawings) == 3
    monkeypatch.setattr(environment, "source", lambda: "other code")
    run(tmp_path, "limit=2")
    assert len(drawings) == 4
    record = first.folder / figure_cache.RECORD
    for text in ("{", "[]", json.dumps({"figures": 3})):
        record.write_text(text)
        run(tmp_path, "limit=2")
    assert len(drawings) == 7


def test_a_drawing_that_was_stopped_is_drawn_again(tmp_path, drawings):
    rows = run(tmp_path).rows
    folder = run_folders(tmp_path)[0]
    (folder / figure_cache.RECORD).unlink()

    def stopped(rows, figures):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        figure_cache.figures(rows, folder, stopped)
    assert not (folder / figure_cache.RECORD).exists()
    run(tmp_path)
    assert len(drawings) == 2


def test_a_run_that_shall_have_no_figures_is_the_same_run(tmp_path, drawings, capsys):
    """Not drawn when it ends nor when it is found finished; the same command with figures draws them."""
    line = [*TINY, "method=h2o", "budgets=[0.5]", f"results={tmp_path}"]
    for _ in range(2):
        assert main.main([*line, "figures=false"]) == 0
        assert not drawings and "\nfigure" not in capsys.readouterr().out
    [folder] = run_folders(tmp_path)
    assert "figures:" not in (folder / "config.yaml").read_text()
    assert main.main(line) == 0
    assert drawings == [folder / "figures"] and run_folders(tmp_path) == [folder]
    assert "finished before" in capsys.readouterr().out


def test_a_run_without_figures_is_asked_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("pvcbench.runs.result.draw", lambda rows, folder: asked.append(folder) or [])
    run(tmp_path), run(tmp_path)
    assert len(asked) == 2  # costs nothing, and a figure may have been left out by mistake
