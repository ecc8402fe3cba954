"""Several sampled answers to one problem: each is a sample of its own, with the problem's prompt."""

from dataclasses import replace

from pvcbench.tasks.base import Sample, Task, sample_of


def samples_of(task: Task, seed: int, index: int, draws: int | None) -> list[Sample]:
    """The sample with this index, or so many draws of it; None: the answer is greedy, and the sample is itself."""
    sample = sample_of(task, seed, index)
    return [sample] if draws is None else [drawn(sample, draw) for draw in range(draws)]


def drawn(sample: Sample, draw: int) -> Sample:
    """One draw of a sample: it has a name of its own, and counts in intervals with the others of its problem."""
    cluster = sample.cluster or sample.context_id or sample.id
    return replace(sample, id=f"{sample.id}#{draw}", cluster=cluster, problem=sample.id, draw=draw)


def problem_of(sample: Sample) -> Sample:
    """The sample that a draw is of, as its task knows it; any other sample is itself."""
    return sample if sample.draw is None else replace(sample, id=sample.problem, problem="", draw=None)
