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
