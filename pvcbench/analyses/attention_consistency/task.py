"""Recent attention consistency (PyramidInfer, section 3.2): do recent and later tokens agree on what matters?"""

from collections.abc import Sequence

from pvcbench.analyses.observed_task import Observed
from pvcbench.errors import UserError
from pvcbench.tasks.base import number, wholes


class AttentionConsistency(Observed):
    """Sets of pivotal context entries of recent tokens, of ensembles of them, and of the tokens that follow."""

    observer = "pvcbench.analyses.attention_consistency.observe"
    name, version = "attention_consistency", 1

    def __init__(
        self,
        recent_ratio: float = 0.3,
        share: float = 0.8,
        small: float = 0.2,
        distance_weight: float = 1.2,
        ensembles: Sequence[int] = (4, 16, 64),
        ahead: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
        **texts,
    ):
        super().__init__(**texts)
        # 64 tokens, the fewest, then hold 3 recent ones and 7 before them
        self.recent_ratio = number("task.recent_ratio", recent_ratio, 0.05, 0.9)
        self.share, self.small = number("task.share", share, 0, 1), number("task.small", small, 0, 1)
        self.distance_weight = number("task.distance_weight", distance_weight, 0, 1e9)
        if not 0 < small < share < 1 or distance_weight <= 0:
            raise UserError("task.small and task.share need 0 < small < share < 1, task.distance_weight more than 0")
        none = isinstance(ensembles, list | tuple) and not ensembles
        self.ensembles = [] if none else sorted(wholes("task.ensembles", ensembles))
        self.ahead = sorted(wholes("task.ahead", ahead))

    @property
    def readings(self) -> dict[str, tuple[str, float]]:
        """What "the top 80%" may mean: a share of the attention mass, or of the number of entries."""
        sizes = [("mass", self.share), ("count", self.share), ("count", self.small)]
        return {f"{kind} {100 * size:g}%": (kind, size) for kind, size in sizes}
