"""Forms of one sample: how lm-eval, RULER and kvpress put question, chat frame and answer prefix together and score.

The text is the same but for CWE's example, which lm-eval leaves out. `lm_eval` puts the chat frame between question and
prefix. `ruler` has a blank before the prefix everywhere, and `kvpress` one after the question; kvpress has a length
hold the text without the chat frame, since its prompts are made without one, and deletes control characters in answers,
which the others take for line breaks. `kvpress_aware` is kvpress' query-aware form: the question belongs to what is
compressed, chat frame and prefix do not, so it is run with query_aware=false.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pvcbench.tasks.metrics import share_of_substrings
from pvcbench.tasks.prompts import Prompter
from pvcbench.tasks.ruler.request import Made
from pvcbench.tasks.ruler.sets import Set

CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class Form:
    """One form; what the fields are set to changes prompts or scores."""

    joint: str | None  # between question and prefix where there is no chat template; None: as the set says
    before: str = ""  # before the chat frame
    after: str = ""  # after the chat frame
    example: bool = True  # whether CWE shows its example
    counts_frame: bool = True  # whether a length holds the chat frame
    aware: bool = False  # whether the question belongs to the context
    control: str = "\n"  # what becomes of a control character in an answer
    metric: str | None = None  # the score's name; None: as the set says

    def parts(self, made: Made, kind: Set, prompter: Prompter) -> tuple[str, str]:
        """The context, and all that follows it: question, chat frame and prefix."""
        frame = f"{self.before}{prompter.after}{self.after}" if prompter.chat else self.joint
        frame = kind.joint if frame is None else frame
        rest = f"{frame}{self.prefix(made, kind)}"
        if not self.aware:
            return made.context, f"{made.question}{rest}"
        asked = f"{made.question}{self.before}"
        return f"{made.context}{asked}", rest.removeprefix(self.before)

    def prefix(self, made: Made, kind: Set) -> str:
        """How the answer begins."""
        return f"{made.prefix}{kind.ending}" if self.example else made.prefix

    def bare(self, made: Made, kind: Set) -> str:
        """RULER's text without any frame, as kvpress' prompts are measured."""
        return f"{made.context}{made.question} {self.prefix(made, kind)}"

    def score(self, kind: Set, answers: Sequence[str], output: str) -> dict[str, float]:
        """RULER's string match: the share of the answers in the output, or whether any is there."""
        said = CONTROL.sub(self.control, output.strip()).strip()
        share = share_of_substrings(answers, said)
        part = kind.metric == "string_match_part"
        return {self.metric or kind.metric: float(share > 0) if part else share}


KVPRESS = {"joint": " \n", "before": " ", "counts_frame": False, "control": "", "metric": "string_match"}
FORMS = {
    "lm_eval": Form(None, example=False),
    "ruler": Form(" ", after=" "),
    "kvpress": Form(**KVPRESS),
    "kvpress_aware": Form(**KVPRESS, aware=True),
}
