"""What a run refuses before anything is measured."""

from collections.abc import Sequence

from omegaconf import DictConfig

from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.models.loading import LoadedModel
from pvcbench.tasks.base import Sample, Task
from pvcbench.tasks.prompts import Prompt


def check_question(config: DictConfig, task: Task) -> None:
    """Refuses protocols of a question for tasks that have none."""
    if not task.has_question and not config.query_aware:
        raise UserError(f"task={task.name} does not tell a context from a question: leave query_aware=true")
    if config.refeed_last and task.kind in ("continuation", "streaming", "observe", "measure"):
        raise UserError(f"task={task.name} generates nothing to score: leave refeed_last=false")


def check_prompts(
    work: Sequence[tuple[Sample, Prompt, tuple]], loaded: LoadedModel, task: Task, query_aware: bool
) -> None:
    """Refuses, before anything runs, prompts longer than the model or without the end of a context that is needed."""
    longest = None if task.beyond else loaded.longest
    for sample, prompt, _ in work:
        if not query_aware and not sample.context:
            raise UserError(f"sample {sample.id} has no context to compress, which query_aware=false needs")
        if not query_aware and prompt.context_tokens < 1:
            raise UserError(
                f"sample {sample.id}: context and question cannot be told apart in its cut prompt, which "
                "query_aware=false needs: raise task.max_length or leave the data set out"
            )
        if longest is not None and len(prompt.ids) + sample.max_new_tokens > longest:
            raise UserError(
                f"sample {sample.id} has {len(prompt.ids)} prompt tokens and {sample.max_new_tokens} to generate, "
                f"more than the model's {longest}: {task.shorten}, or use another model"
            )


def check_reach(engine: Engine, work: Sequence[tuple[Sample, Prompt, tuple]], task: Task) -> None:
    """Refuses, before anything runs, answers that grow across a change of the model's rotary tables."""
    known = {}
    for sample, prompt, _ in work:
        known.setdefault((len(prompt.ids), len(prompt.ids) + max(sample.max_new_tokens, 1) - 1), sample.id)
    for (tokens, most), name in known.items():
        if engine.reach.differs(tokens, most):
            raise UserError(f"sample {name}: {engine.reach.refusal(tokens, most)} ({task.shorten})")
