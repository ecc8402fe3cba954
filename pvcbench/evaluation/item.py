"""Work items: one sample, its tokens, and the cells that still have to be measured."""

from dataclasses import dataclass, replace

from pvcbench.evaluation.cells import Point
from pvcbench.tasks.base import Sample
from pvcbench.tasks.prompts import Prompt


@dataclass(frozen=True)
class WorkItem:
    """A sample, its tokens, and the cells that it lacks."""

    sample: Sample
    prompt: Prompt
    points: tuple[Point, ...]

    def of(self, *points: Point) -> "WorkItem":
        """The same sample with these cells alone."""
        return replace(self, points=points)

    def shared(self, agnostic: bool) -> tuple[str, str] | None:
        """What of this item is compressed for others too, where they name it alike; None where nothing is.

        `agnostic` where contexts are compressed before the question is seen; else draws of one problem share a prompt.
        """
        named = (agnostic and self.sample.context_id) or self.sample.problem
        if not named:
            return None
        return named, self.prompt.context_sha256 if agnostic else self.prompt.sha256
