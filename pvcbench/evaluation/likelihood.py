"""Tasks that score given tokens: the continuation of a compressed prefix, or a whole document under a budget."""

from pvcbench.evaluation.shared_prefill import Attempt


class Continuation(Attempt):
    """A prefix is compressed once; every later token is scored through the compressed cache.

    The token after the prefix is fed and not scored: what predicts it is the uncompressed prefill.
    """

    @staticmethod
    def compressed(protocol, prompt):
        return prompt.context_tokens

    def room_needed(self):
        return self.rest.shape[1] - 1

    def answer(self, groups, rows):
        scored = self.engine.score(groups, self.rest[:, :-1], self.rest[:, 1:])
        for (sample, row), logprobs in zip(rows, scored.logprobs, strict=True):
            row.update(self.measured(sample, row, logprobs))


class Streaming(Attempt):
    """Every cell reads the whole document by itself, evicting after every token or every few."""

    @staticmethod
    def compressed(protocol, prompt):
        return len(prompt.ids)

    def room_needed(self):
        return 0

    def run(self, cells, meter):
        rows = []
        for number, (point, cell) in enumerate(cells.items()):
            meter.step((number + 0.5) / len(cells))
            try:
                rows += self._stream(point, cell)
            except Exception as error:
                self._fail([point], error)
        return rows

    def _stream(self, point, cell) -> list[dict]:
        scored, group = self.engine.stream(self.context, cell, self.task.every, self.draws)
        rows = []
        for number, (sample, logprobs) in enumerate(zip(self.samples, scored.logprobs, strict=True)):
            row = self.row(group, 0, point, number) | {"prefill_s": None}
            rows.append(self.measured(sample, row, logprobs))
        return rows
