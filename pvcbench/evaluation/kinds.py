"""The kinds of tasks: what is done with a sample of each. A task says its kind; nothing else asks for one by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pvcbench.engine.engine import Engine
from pvcbench.evaluation.generation import Generate
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.likelihood import Continuation, Streaming
from pvcbench.evaluation.lm_eval_requests import run_documents
from pvcbench.evaluation.observation import run_observations
from pvcbench.evaluation.row import Protocol, Row, finite
from pvcbench.evaluation.shared_prefill import run_batch
from pvcbench.evaluation.throughput import run_measurements
from pvcbench.models.loaded import LoadedModel
from pvcbench.tasks.base import Task


@dataclass(frozen=True)
class Kind:
    """What is done with the samples of a task, and what follows from that."""

    work: Callable[..., list[Row]]
    alone: bool = False  # cells run one by one, so that some of a sample's can do so again
    speeds: bool = False  # numbers are the machine's: processor and threads belong to the run's identity
    observes: bool = False  # what a sample shows by itself is a cell too
    answers: bool = False  # the model answers in words
    samples: bool = False  # answers may be sampled, and stopped where they repeat
    excerpts: bool = True  # a sample is one prompt of words, of which excerpts are worth keeping

    def rows(
        self, engine: Engine, loaded: LoadedModel, task: Task, batch: Sequence[WorkItem], protocol: Protocol, meter
    ) -> list[Row]:
        """The rows of some samples; a row with a number that is not finite says so and has no result."""
        return [finite(row) for row in self.work(engine, loaded, task, batch, protocol, meter)]


KINDS = {
    "generate": Kind(partial(run_batch, Generate), answers=True, samples=True),
    "continuation": Kind(partial(run_batch, Continuation)),
    "streaming": Kind(partial(run_batch, Streaming), alone=True),
    "lm_eval": Kind(run_documents, answers=True, excerpts=False),
    "observe": Kind(run_observations, observes=True),
    "measure": Kind(run_measurements, alone=True, speeds=True, excerpts=False),
}
