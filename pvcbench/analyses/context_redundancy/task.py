"""Inference context redundancy (PyramidInfer, section 3.1): what cutting the context of some layers costs."""

from collections.abc import Sequence

from pvcbench.analyses.observed_task import Observed
from pvcbench.errors import UserError
from pvcbench.tasks.base import listed, number


class ContextRedundancy(Observed):
    """Each layer alone keeps a share of its entries, those with the most of the last token's attention.

    At the shares in `above`, so do all layers from one on; and one layer alone keeps its newest entries instead.
    """

    observer = "pvcbench.analyses.context_redundancy.observe"
    name, version, reads_on = "context_redundancy", 1, True

    def __init__(
        self,
        shares: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7),
        above: Sequence[float] = (0.05, 0.2, 0.4),
        **texts,
    ):
        super().__init__(**texts)
        self.shares = sorted({number("task.shares", one, 0, 1) for one in listed("task.shares", shares)})
        none = isinstance(above, list | tuple) and not above
        self.above = [] if none else sorted({number("task.above", one, 0, 1) for one in listed("task.above", above)})
        if not all(0 < share < 1 for share in self.shares):
            raise UserError("task.shares needs shares of the context between 0 and 1")
        if not set(self.above) <= set(self.shares):
            raise UserError("task.above holds some of task.shares, to be compared with them")
