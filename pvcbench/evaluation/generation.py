"""Tasks of kind `generate`: all cells of a sample decode together, greedily or by numbers of their sample's own."""

from collections.abc import Sequence
from functools import partial

from pvcbench.engine.evict import Group
from pvcbench.engine.sampling import Sampled, greedy
from pvcbench.evaluation.cells import answer_room
from pvcbench.evaluation.conversation import OwnHistory
from pvcbench.evaluation.endings import Ending, Repeats
from pvcbench.evaluation.row import broken
from pvcbench.evaluation.shared_prefill import Attempt, draw_of


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
        prompter, own_ends, protocol = self.task.prompter, self.batch[0].prompt.ends, self.protocol
        ends = (*self.loaded.ends, *own_ends)
        choose = greedy
        if protocol.sampling is not None:  # a draw's numbers are the same in every cell
            choose = Sampled(protocol.sampling, [draw_of(protocol.seed, sample.id) for sample, _ in rows])
        answers, seconds = self.engine.greedy(
            groups,
            feed=self.rest if self.rest.shape[1] else None,
            new_tokens=max(sample.max_new_tokens for sample in self.samples),
            ends=ends,
            stopped=Ending(prompter.decode, self.samples[0].stop, protocol.stop_repeats),
            barred=ends if own_ends else (),
            choose=choose,
            limits=(limits := self.longest_answers(groups)),
        )
        self.said = dict(zip((cell for group in groups for cell in group.cells), answers, strict=True))
        said = (tokens for cell in answers for tokens in cell)
        for (sample, row), tokens, most in zip(rows, said, limits, strict=True):
            if tokens is None:
                row.update(broken(row))
                continue
            whole = prompter.decode(tokens)
            output = cut(whole, sample.stop)
            metrics = self.task.score(sample, output)
            row |= {"score": next(iter(metrics.values())), "metrics": metrics, "output": output}
            row.update(length(tokens, most, whole != output, protocol.stop_repeats))
            row["decode_s"] = seconds if len(rows) == 1 else None

    def longest_answers(self, groups: Sequence[Group]) -> list[int]:
        """The most tokens of each row's answer: what the task allows, or fewer where the method ends it before."""
        prompt, limits = self.context.shape[1] + self.rest.shape[1], []
        for cell in (cell for group in groups for cell in group.cells):
            room = answer_room(cell, prompt)
            limits += [most if room is None else min(most, room) for most in self.allowed()]
        return limits

    def allowed(self) -> list[int]:
        """The most tokens of each sample's answer."""
        return [sample.max_new_tokens for sample in self.samples]

    def kept(self, tokens: list[int] | None) -> list[int] | None:
        """An answer as later turns of its conversation have it before them: without what its stop string cut off."""
        if tokens is None:
            return None
        [sample] = self.samples
        tokens = tokens[: sample.max_new_tokens]
        text = self.task.prompter.decode(tokens)
        output = cut(text, sample.stop)
        return tokens if output == text else self.task.prompter.bare(output)


def length(tokens: Sequence[int], most: int, stopped: bool, repeats: Repeats | None) -> dict:
    """What a row says of its answer's tokens: how many, whether there were too many, whether the last ones repeat."""
    looping = (repeats or Repeats()).ends(tokens)
    truncated = len(tokens) >= most and not stopped and not (looping and repeats is not None)
    return {"answer_tokens": len(tokens), "truncated": truncated, "looping": looping}


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string."""
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text
