"""Rows of analyses: one per sample without a method, and one per method and budget that is compared."""

from collections.abc import Sequence
from importlib import import_module

import torch

from pvcbench.engine.engine import Engine
from pvcbench.errors import OutOfReach, UserError
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.row import Protocol, base_row, explain
from pvcbench.evaluation.shared_prefill import draw_of
from pvcbench.models.loaded import LoadedModel
from pvcbench.tasks.base import Task


def run_observations(
    engine: Engine,
    loaded: LoadedModel,
    task: Task,
    batch: Sequence[WorkItem],
    protocol: Protocol,
    meter,
) -> list[dict]:
    """The rows of some samples, one by one; a sample that fails becomes rows that say why."""
    return [row for item in batch for row in _sample_rows(engine, task, item, protocol, meter)]


def _sample_rows(engine, task, item, protocol, meter) -> list[dict]:
    sample, prompt, points = item.sample, item.prompt, item.points
    shape = engine.shape(prompt.context_tokens)
    draws = torch.tensor([draw_of(protocol.seed, sample.id)])
    error, found = None, {}
    try:
        with torch.inference_mode():
            found = import_module(task.observer).observe(engine, task, prompt, points, draws, meter.step)
    except UserError:
        raise
    except Exception as failure:
        error = explain(failure)
    rows = []
    for point in points:
        own = found.get(point, "it was not observed")
        reason = error or (own if isinstance(own, OutOfReach | str) else None)
        row = base_row(task, item, point, protocol, shape, reason) | {"observed": None}
        row |= {"prompt_tokens": prompt.context_tokens, "question_tokens": 0}
        rows.append(row if reason else row | own)
    return rows
