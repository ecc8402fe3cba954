"""The estimate of the time left: by what work is done and what is left, not by how many samples."""

from types import SimpleNamespace

import pytest

from pvcbench.evaluation import progress
from pvcbench.evaluation.progress import Meter
from pvcbench.runs.measuring import effort_of


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def told(capsys) -> str:
    return capsys.readouterr().err.strip().rpartition("\n")[2]


def test_samples_that_are_alike(clock, capsys):
    with Meter(total=10, done=2) as meter:
        clock[0] += 30
        meter.finish(1)
        assert told(capsys) == "3 of 10 samples, about 3:30 left"
        clock[0] += 20
        meter.finish(1)
        assert told(capsys) == "4 of 10 samples, about 2:30 left"


def test_a_sample_that_lacks_one_cell_says_little_of_whole_ones(clock, capsys):
    """Two samples lack 1 of 50 cells, two all of them: after the first, 101 cells are left and not three samples."""
    with Meter(total=4, effort=102) as meter:
        clock[0] += 2
        meter.finish(1, effort=1)
        assert told(capsys) == "1 of 4 samples, about 3:22 left"
        clock[0] += 52
        meter.finish(1, effort=1)
        meter.finish(1, effort=50)
        assert "3 of 4" not in told(capsys)  # too soon after the last line
        clock[0] += 50
        meter.finish(1, effort=50)
        assert told(capsys) == "4 of 4 samples, now what they show"


def test_the_time_left_of_a_run_goes_by_cells(clock, capsys):
    with Meter(total=3, effort=102) as meter:
        clock[0] += 1
        meter.finish(1, effort=2)
        clock[0] += 49
        meter.finish(1, effort=50)
        assert told(capsys) == "2 of 3 samples, about 0:48 left"


def test_a_sample_without_cells_is_work(clock, capsys):
    """A sample of nothing but analyses has no cells and is work all the same."""
    items = [SimpleNamespace(points=points) for points in ((), (1,), (1, 2, 3))]
    assert effort_of(items) == 5
    with Meter(total=3, effort=effort_of(items)) as meter:
        clock[0] += 10
        meter.finish(1, effort_of(items[:1]))
        assert told(capsys) == "1 of 3 samples, about 0:40 left"
