"""Measuring work items: the one way in which the runner and `verify` do it."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.preflight import check_passes, check_prompts, check_reach, prepare
from pvcbench.evaluation.progress import Meter
from pvcbench.evaluation.row import Protocol, Row
from pvcbench.models.loaded import LoadedModel
from pvcbench.runs.spec import RunSpec
from pvcbench.stats.running import RunningMeans


def measured(
    spec: RunSpec, loaded: LoadedModel, work: Sequence[WorkItem], total: int, running: RunningMeans | None = None
) -> Iterator[list[Row]]:
    """The rows of some samples, batch by batch, of a run of `total` samples; the model is given back at the end.

    `running` holds the scores so far, which a terminal shows; who takes the rows adds them to it.
    """
    check_prompts(work, loaded, spec.task, spec.protocol)
    engine = spec.engine(loaded)
    try:
        prepare(engine, spec.points, spec.holds)
        if spec.task.reads_on:
            engine.require_continuing()
        check_reach(engine, work, spec.task, spec.protocol)
        check_passes(engine, work, loaded, spec.task, spec.protocol)
        cells = [(point.name, point.label) for point in spec.points if point.name is not None]
        tell_sharing(work if spec.kind.answers else (), spec.protocol)
        effort = effort_of(work)
        with Meter(total=total, done=total - len(work), cells=cells, running=running, effort=effort) as meter:
            for batch in batches(work, spec.batch, spec.protocol, spec.kind.answers):
                yield spec.kind.rows(engine, loaded, spec.task, batch, spec.protocol, meter)
                meter.finish(len(batch), effort_of(batch))
    finally:
        engine.release()


def effort_of(work: Sequence[WorkItem]) -> int:
    """The cells to be measured: a sample of which most are known already is soon done."""
    return sum(max(1, len(item.points)) for item in work)


def tell_sharing(work: Sequence[WorkItem], protocol: Protocol) -> None:
    """Says how many questions share a context, where some do."""
    asked = Counter(protocol.shares(item) for item in work if item.sample.draw in (None, 0) and item.sample.context_id)
    asked.pop(None, None)
    questions = sum(count for count in asked.values() if count > 1)
    if questions:
        shared = sum(count > 1 for count in asked.values())
        many = f"{shared} contexts: each is" if shared > 1 else "1 context, which is"
        print(f"{questions} questions on {many} prefilled and compressed once", file=sys.stderr, flush=True)


def batches(work: Sequence[WorkItem], size: int, protocol: Protocol, shares: bool) -> Iterator[list[WorkItem]]:
    """Groups of samples with equal lengths and equal cells, so that prompts are never padded.

    Where several share what is compressed (`shares`), all of one are a group, which comes with the last of them.
    """
    waiting: dict[tuple, list[WorkItem]] = {}

    def context_of(item: WorkItem) -> tuple | None:
        shared = protocol.shares(item) if shares else None
        return None if shared is None else (*shared, item.points)

    left = Counter(map(context_of, work))
    for item in work:
        if (context := context_of(item)) is not None:
            waiting.setdefault(context, []).append(item)
            left[context] -= 1
            if not left[context]:
                yield waiting.pop(context)
            continue
        prompt, points = item.prompt, item.points
        alone = any(point.method is None or point.method.ragged_batch for point in points)
        cut = protocol.compressed(prompt) if prompt.first_tokens else None
        cut = cut if protocol.query_aware else (prompt.context_tokens, cut)
        key = (len(prompt.ids), cut, prompt.ends, item.sample.stop, points)
        group = waiting.setdefault(key, [])
        group.append(item)
        if alone or len(group) == size:
            yield waiting.pop(key)
    yield from waiting.values()
