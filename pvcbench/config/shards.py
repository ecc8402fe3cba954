"""Shards: several processes that measure one run, each its own samples (`shard=2/4`: those whose index % 4 is 1)."""

import re
from dataclasses import dataclass

from pvcbench.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Part `number`, counted from one, of a run cut into `of` parts."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str | None) -> "Shard | None":
        """The shard that `2/4` names, or None for a whole run."""
        if text is None:
            return None
        match = re.fullmatch(r"(\d+)/(\d+)", str(text))
        shard = cls(*map(int, match.groups())) if match else None
        if shard is None or not 1 <= shard.number <= shard.of:
            raise UserError(f"shard must be a part of a whole such as 1/4 or 4/4, not {text!r}")
        return shard

    @property
    def label(self) -> str:
        """The shard as part of a file's name."""
        return f"{self.number}of{self.of}"

    def owns(self, index: int) -> bool:
        """Whether the sample with this index belongs to the shard."""
        return index % self.of == self.number - 1
