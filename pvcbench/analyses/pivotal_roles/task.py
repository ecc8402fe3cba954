"""Roles of pivotal context (PyramidInfer, section 3.2.2): which tokens the shared and non-shared PvCs serve."""

from pvcbench.analyses.observed_task import Observed
from pvcbench.errors import UserError
from pvcbench.tasks.base import number, whole


class PivotalRoles(Observed):
    """The context is split by the last token's PvC and that of other recent tokens; each part is hidden in turn."""

    observer = "pvcbench.analyses.pivotal_roles.observe"
    name, version, reads_on = "pivotal_roles", 1, True

    def __init__(
        self,
        recent_ratio: float = 0.3,
        share: float = 0.8,
        shared_by: float = 0.8,
        sinks: int = 4,
        splits: int = 4,
        stride: int = 16,
        ahead: int = 32,
        **texts,
    ):
        super().__init__(**texts)
        self.recent_ratio = number("task.recent_ratio", recent_ratio, 0, 1)
        self.share, self.shared_by = number("task.share", share, 0, 1), number("task.shared_by", shared_by, 0, 1)
        self.sinks, self.splits = whole("task.sinks", sinks, 0), whole("task.splits", splits)
        self.stride, self.ahead = whole("task.stride", stride), whole("task.ahead", ahead)
        if not (0 < recent_ratio < 1 and 0 < share < 1 and 0 < shared_by <= 1):
            raise UserError("task.recent_ratio, task.share and task.shared_by are shares between 0 and 1")
        shortest = min(self.tokens) - stride * (splits - 1)
        recent = int(recent_ratio * shortest)
        if recent < 2 or shortest - recent <= sinks:
            raise UserError(
                f"the first of {splits} splits leaves {max(0, shortest)} tokens, too few for 2 recent rows and more "
                f"than {sinks} entries before them: raise task.tokens or lower task.splits, task.stride or task.sinks"
            )
