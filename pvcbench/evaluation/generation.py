"""Tasks of kind `generate`: all cells of a sample decode greedily together."""

from collections.abc import Sequence

from pvcbench.evaluation.row import broken
from pvcbench.evaluation.shared_prefill import Attempt


class Generate(Attempt):
    """The prompt, or under query-agnostic protocols its context, is compressed; the answer is generated."""

    @staticmethod
    def compressed(protocol, prompt):
        return len(prompt.ids) - int(protocol.refeed_last) if protocol.query_aware else prompt.context_tokens

    @staticmethod
    def asks_on(protocol):
        return not protocol.query_aware

    def room_needed(self):
        return self.rest.shape[1] + max(sample.max_new_tokens for sample in self.samples)

    def fed(self):
        return max(1, self.rest.shape[1])

    def answer(self, groups, rows):
        prompter, stops, own_ends = self.task.prompter, self.samples[0].stop, self.batch[0].prompt.ends
        stopped = (lambda tokens: any(stop in prompter.decode(tokens) for stop in stops)) if stops else None
        ends = (*self.loaded.ends, *own_ends)
        answers, seconds = self.engine.greedy(
            groups,
            feed=self.rest if self.rest.shape[1] else None,
            new_tokens=max(sample.max_new_tokens for sample in self.samples),
            ends=ends,
            stopped=stopped,
            barred=ends if own_ends else (),
        )
        for (sample, row), tokens in zip(rows, (tokens for cell in answers for tokens in cell), strict=True):
            if tokens is None:
                row.update(broken(row))
                continue
            output = cut(prompter.decode(tokens[: sample.max_new_tokens]), sample.stop)
            metrics = self.task.score(sample, output)
            row |= {"score": next(iter(metrics.values())), "metrics": metrics, "output": output}
            row["decode_s"] = seconds if len(rows) == 1 else None


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string."""
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text
