"""Conversations in which every cell goes on from what it said itself: `history=model`.

With golden answers the turns of a conversation are questions on one compressed cache, known before any of them is
asked (`OneContext`). Here they come one after the other, because what stands before a turn is what the cell said.
"""

from collections.abc import Sequence
from dataclasses import replace

from pvcbench.errors import NOT_FINITE, NotFinite
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.row import explain
from pvcbench.evaluation.shared_prefill import OneContext

Said = tuple[tuple[int, ...], ...]  # the tokens of a cell's answers so far


class OwnHistory(OneContext):
    """Turns of one conversation after own answers: a copy of each cell's compressed cache for every turn.

    What a cell said so far is fed to the copy again, before the next question: the same entries as if the answer had
    stayed in the cache. Cells that said the same so far are asked together. Turns whose rows are known already are
    asked again where a later one needs their answers.
    """

    def __init__(self, kind, engine, loaded, task, batch, protocol, shape):
        super().__init__(kind, engine, loaded, task, batch, protocol, shape)
        last = max(batch, key=lambda item: item.sample.turn)
        self.wanted = {item.sample.turn: item for item in batch}
        self.items = [self.wanted.get(turn, standing_in(last, turn)) for turn in range(1, last.sample.turn + 1)]
        self.longest = protocol.most_tokens(last.sample, last.prompt)
        self.room = self.most_fed = self.longest - shape.tokens

    def _fork(self, prefill, part):
        """A group for every cell, since each goes its own way."""
        if part:
            try:
                cells = [self.engine.fork(prefill, [cell], self.room, fed=self.most_fed) for cell in part.values()]
            except Exception as error:
                self._fail(part, error)
            else:
                names = {cell: point for point, cell in part.items()}
                self.waiting.append(([group for groups in cells for group in groups], names))
        return []

    def answered(self, groups, points):
        rows, histories = [], {(): list(groups)}
        for item in self.items:
            going: dict[Said, list] = {}
            for said, own in histories.items():
                rows += self._turn(item, said, own, points, going)
            histories = going
        return rows

    def _turn(self, item: WorkItem, said: Said, groups: Sequence, points: dict, going: dict[Said, list]) -> list[dict]:
        """The rows of one turn of cells that said the same so far; adds those that go on to `going`."""
        asked = self.ask([replace(item, prompt=item.prompt.having(said))])
        asked.room, asked.sharing = self.room, len(self.batch)
        names = {cell: points[cell] for group in groups for cell in group.cells}
        rows = []
        try:
            rows = asked.answered([group.repeated(1) for group in groups], names)
        except Exception as error:
            asked._fail(names.values(), error)
        for _, failed, reason in asked.failed:
            self._lost(item, failed, reason)
            return []
        for group in groups:
            [cell] = group.cells
            answer = asked.kept(asked.said[cell][0])
            if answer is None:
                self._lost(item, [points[cell]], explain(NotFinite(NOT_FINITE)), later=True)
            else:
                going.setdefault((*said, tuple(answer)), []).append(group)
        return rows if item.sample.turn in self.wanted else []

    def _lost(self, item: WorkItem, points: Sequence, reason: str, later: bool = False) -> None:
        """Notes that this turn, or only the `later` ones, have no result in these cells."""
        left = [one for turn, one in self.wanted.items() if turn >= item.sample.turn + later]
        if left:
            self.failed.append((left, list(points), reason))


def standing_in(item: WorkItem, turn: int) -> WorkItem:
    """An earlier turn of a conversation, which is asked for its answer alone."""
    asked = item.sample.turns[turn - 1]
    sample = replace(item.sample, question=asked.question, answers=(asked.answer,), turn=turn)
    return replace(item, sample=sample, prompt=item.prompt.at(turn))
