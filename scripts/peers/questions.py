"""Questions on one context as kvpress groups them: a context compressed once for each cell, its questions in turn."""

import statistics
from collections.abc import Mapping, Sequence

from peers.client import Peer, PeerFailed

PRESSES = {
    "h2o": "ObservedAttention",
    "snapkv_kvpress": "SnapKV",
    "streaming_llm": "StreamingLLM",
    "keydiff": "KeyDiff",
    "tova": "TOVA",
    "knorm": "Knorm",
}


class Grouped:
    """What the peer needed for the first contexts, and how often both sides said the same."""

    def __init__(self, task, cells: Sequence, contexts: int):
        self.task, self.cells, self.left = task, cells, contexts
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.same = self.answers = 0
        self.right = {"ours": 0, "peer": 0}

    def ask(self, peer: Peer, batch: Sequence, seconds: float, rows: Mapping) -> None:
        """All questions on a context, cell by cell; raises PeerFailed where it reads other tokens than we do."""
        if not self.left:
            return
        self.left -= 1
        [context], prompts = {item.sample.context for item in batch}, [item.prompt for item in batch]
        spent = 0.0
        for point in self.cells:
            share = 1.0 if point.method.reference else point.budget
            reply = peer.ask(
                "group",
                context=context,
                questions=[asked(self.task, item.sample) for item in batch],
                press=None if point.method.reference else PRESSES[point.name],
                ratio=1 - share,
                new_tokens=batch[0].sample.max_new_tokens,
            )
            if reply["prompts_sha256"] != [prompt.sha256 for prompt in prompts]:
                raise PeerFailed(f"the peer read questions on {batch[0].sample.id} as other tokens than we do")
            spent += reply["seconds"]
            for item, answer in zip(batch, reply["answers"], strict=True):
                self.compare(item.sample, rows[item.sample.id, point.name, point.label], answer)
        self.ours.append(seconds)
        self.theirs.append(spent)

    def compare(self, sample, row: Mapping, answer: str) -> None:
        """Counts right answers of both sides, and equal ones."""
        self.answers += 1
        self.same += row["output"].strip() == answer.strip()
        self.right["ours"] += row["score"] == 1
        self.right["peer"] += next(iter(self.task.score(sample, answer).values())) == 1

    def report(self) -> dict:
        """Seconds of a context on both sides, their ratio, and answers."""
        ratios = [peer / own for own, peer in zip(self.ours, self.theirs, strict=True)]
        return {
            "contexts": len(ratios),
            "ours_s": round(statistics.median(self.ours), 2),
            "peer_s": round(statistics.median(self.theirs), 2),
            "peer_over_ours": round(statistics.median(ratios), 2),
            "answers": self.answers,
            "same_answers": self.same,
            "right": self.right,
        }


def asked(task, sample) -> str:
    """What stands after the context, which is never compressed."""
    return sample.question if task.name.startswith("qa") else f"\n\n{sample.question}"
