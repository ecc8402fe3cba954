"""Tasks of kind `generate`: all cells of a sample decode greedily together."""

from collections.abc import Sequence
from functools import partial

from pvcbench.evaluation.conversation import OwnHistory
from pvcbench.evaluation.row import broken
from pvcbench.evaluation.shared_prefill import Attempt


class Generate(Attempt):
    """The prompt, or under query-agnostic protocols its context, is compressed; the answer is generated."""

    @staticmethod
    def compressed(protocol, prompt):
        return protocol.compressed(prompt)

    @staticmethod
    def asks_on(protocol, prompt):
        return protocol.shared(prompt) > 0

    @classmethod
    def maker(cls, protocol, batch, one):
        own = protocol.history == "model" and any(item.prompt.exchanges for item in batch)
        return partial(OwnHistory, cls) if own else super().maker(protocol, batch, one)

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
        self.said = dict(zip((cell for group in groups for cell in group.cells), answers, strict=True))
        for (sample, row), tokens in zip(rows, (tokens for cell in answers for tokens in cell), strict=True):
            if tokens is None:
                row.update(broken(row))
                continue
            output = cut(prompter.decode(tokens[: sample.max_new_tokens]), sample.stop)
            metrics = self.task.score(sample, output)
            row |= {"score": next(iter(metrics.values())), "metrics": metrics, "output": output}
            row["decode_s"] = seconds if len(rows) == 1 else None

    def kept(self, tokens: list[int] | None) -> list[int] | None:
        """An answer as later turns of its conversation have it before them: without what its stop string cut off."""
        if tokens is None:
            return None
        [sample] = self.samples
        tokens = tokens[: sample.max_new_tokens]
        text = self.task.prompter.decode(tokens)
        output = cut(text, sample.stop)
        return tokens if output == text else self.task.prompter.bare(output)


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string."""
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text
