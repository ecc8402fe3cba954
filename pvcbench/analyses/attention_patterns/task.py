"""Where attention goes, head by head: entropy, mass by region, six patterns, and what they predict of eviction.

The patterns are Yao Fu's, "How Do Language Models put Attention Weights over Long Context?" (2024). Rows looked at: the
last of the prompt (`last`), the mean over the last `rows` (`mean`), and for needle prompts the mean over those that
predict the answer's value (`answer`).
"""

from collections.abc import Mapping, Sequence

from pvcbench.analyses.observed_task import Observed
from pvcbench.errors import UserError
from pvcbench.tasks.base import number, whole, wholes

THRESHOLDS = {  # fitted so that the text's examples classify as it says; `docs/results/analysis.md` has them
    "uniform": 0.9,  # entropy, as a share of the largest there is, ln(tokens)
    "middle": 0.5,  # mass in the middle from which on a head is scattered or concentrated
    "concentrated": 4.0,  # entropy in nats below which the middle is concentrated: exp(4) is 55 tokens
    "dominant": 0.8,  # share of the mass at both ends from which on one end alone names the pattern
}


class AttentionPatterns(Observed):
    """`sinks` first and `recent` last tokens are regions; `top` lists the K whose heaviest K entries are summed."""

    observer = "pvcbench.analyses.attention_patterns.observe"
    name, version, uses_methods = "attention_patterns", 2, True  # 2: methods are judged at their own positions

    def __init__(
        self,
        sinks: int = 4,
        recent: int = 64,
        rows: int = 32,
        top: Sequence[int] = (1, 4, 16, 64, 256, 1024, 4096),
        thresholds: Mapping[str, float] | None = None,
        **texts,
    ):
        super().__init__(**texts)
        self.sinks, self.recent = whole("task.sinks", sinks), whole("task.recent", recent)
        self.rows, self.top = whole("task.rows", rows), sorted(wholes("task.top", top))
        if rows > min(self.tokens) or sinks + recent > min(self.tokens):
            raise UserError("task.rows, and task.sinks and task.recent together, are at most the shortest task.tokens")
        if not isinstance(thresholds, Mapping | None) or not set(thresholds or {}) <= set(THRESHOLDS):
            raise UserError(f"task.thresholds holds numbers above 0 for {', '.join(THRESHOLDS)}, not {thresholds!r}")
        given = {name: number(f"task.thresholds.{name}", one, 1e-9, 1e9) for name, one in (thresholds or {}).items()}
        self.thresholds = THRESHOLDS | given

    @property
    def reads_on(self) -> bool:
        """Needle prompts are followed by their answer."""
        return self._needles > 0
