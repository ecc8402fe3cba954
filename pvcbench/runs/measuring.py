"""Measuring work items: the one way in which the runner and `verify` do it."""

from collections.abc import Iterator, Sequence

from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.preflight import check_passes, check_prompts, check_reach, prepare
from pvcbench.evaluation.progress import Meter
from pvcbench.evaluation.row import Row
from pvcbench.models.loaded import LoadedModel
from pvcbench.runs.spec import RunSpec
from pvcbench.stats.running import RunningMeans


def measured(
    spec: RunSpec, loaded: LoadedModel, work: Sequence[WorkItem], total: int, running: RunningMeans | None = None
) -> Iterator[list[Row]]:
    """The rows of some samples, batch by batch, of a run of `total` samples; the model is given back at the end.

    `running` holds the scores so far, which a terminal shows; who takes the rows adds them to it.
    """
    check_prompts(work, loaded, spec.task, spec.protocol.query_aware)
    engine = spec.engine(loaded)
    try:
        prepare(engine, spec.points, spec.holds)
        if spec.task.reads_on:
            engine.require_continuing()
        check_reach(engine, work, spec.task)
        check_passes(engine, work, loaded, spec.task, spec.protocol.query_aware)
        cells = [(point.name, point.label) for point in spec.points if point.name is not None]
        with Meter(total=total, done=total - len(work), cells=cells, running=running) as meter:
            for batch in batches(work, spec.batch, spec.protocol.query_aware):
                yield spec.kind.rows(engine, loaded, spec.task, batch, spec.protocol, meter)
                meter.finish(len(batch))
    finally:
        engine.release()


def batches(work: Sequence[WorkItem], size: int, query_aware: bool) -> Iterator[list[WorkItem]]:
    """Groups of samples with equal lengths and equal cells, so that prompts are never padded."""
    waiting: dict[tuple, list[WorkItem]] = {}
    for item in work:
        prompt, points = item.prompt, item.points
        alone = any(point.method is None or point.method.ragged_batch for point in points)
        key = (len(prompt.ids), None if query_aware else prompt.context_tokens, prompt.ends, item.sample.stop, points)
        group = waiting.setdefault(key, [])
        group.append(item)
        if alone or len(group) == size:
            yield waiting.pop(key)
    yield from waiting.values()
