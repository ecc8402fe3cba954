"""Recent attention consistency (PyramidInfer, section 3.2): do recent and later tokens agree on what matters?"""

from collections.abc import Sequence

from pvcbench.errors import UserError
from pvcbench.tasks.observed import Observed


class AttentionConsistency(Observed):
    """Sets of pivotal context entries of recent tokens, of ensembles of them, and of the tokens that follow."""

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
        self.recent_ratio, self.share, self.small = recent_ratio, share, small
        self.distance_weight, self.ensembles, self.ahead = distance_weight, sorted(ensembles), sorted(ahead)
        if not 0.05 <= recent_ratio <= 0.9:  # 64 tokens, the fewest, then hold 3 recent ones and 7 before them
            raise UserError(f"task.recent_ratio must lie between 0.05 and 0.9, not {recent_ratio}")
        if not 0 < small < share < 1 or distance_weight <= 0:
            raise UserError("task.small and task.share need 0 < small < share < 1, task.distance_weight more than 0")
        counts = [*self.ensembles, *self.ahead]
        if not self.ahead or not all(isinstance(count, int) and count >= 1 for count in counts):
            raise UserError("task.ensembles and task.ahead hold numbers of tokens, 1 or more; task.ahead at least one")

    @property
    def readings(self) -> dict[str, tuple[str, float]]:
        """What "the top 80%" may mean: a share of the attention mass, or of the number of entries."""
        sizes = [("mass", self.share), ("count", self.share), ("count", self.small)]
        return {f"{kind} {100 * size:g}%": (kind, size) for kind, size in sizes}
