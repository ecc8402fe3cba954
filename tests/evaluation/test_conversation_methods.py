"""Conversations by every method: beside dense attention under a mask of what the first turn left, and turn by turn."""

import copy
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from pvcbench.checks.reference import Dense, dense_masks, positions, ranks_of
from pvcbench.config import compose
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.evaluation.item import WorkItem
from pvcbench.evaluation.preflight import check_conversations
from pvcbench.evaluation.row import Protocol
from pvcbench.runs import runner
from pvcbench.runs.spec import RunSpec
from tiny import METHODS

SETTINGS = ["model=random", "dtype=float64", "threads=1", "wandb.mode=disabled", "task.lengths=[260]"]
SETTINGS += ["task.depths=[40]", "task.repeats=1", "task.needles=3", "task.questions=3", "task.turns=true"]
SETTINGS += ["task.max_new_tokens=5"]
KNOWN = [name for name, method in METHODS.items() if not method.reference and "grow" in method.decodes]
SMALL = {"simlayerkv": ["methods.simlayerkv.recent=40"]}  # where a method keeps more than this prompt has
NAMES = [name for name in KNOWN if METHODS[name].reads is None]  # those that read on read something else in each turn
HISTORIES = ["golden", "model"]


def composed(folder, name, *overrides):
    budgets = [] if METHODS[name].own_budget is not None else ["budgets=[0.5,0.9]"]
    return compose.composed(
        [*SETTINGS, f"method={name}", *SMALL.get(name, ()), *budgets, *overrides, f"results={folder}"]
    )


def rows(folder, name, *overrides):
    """All rows without times, by sample, method and budget."""
    found = runner.run(composed(folder, name, *overrides), figures=False).rows
    known = found.drop(columns=["prefill_s", "decode_s", "folder"]).to_dict("records")
    return {(row["sample"], row["method"], row["budget"]): row for row in known}


def plain(found):
    """Rows as text, by sample, method and budget."""
    return {key: json.dumps(row, default=str) for key, row in found.items()}


@pytest.fixture
def left(monkeypatch):
    """What every cell of a run held after its first turn: the prefill and the positions of each layer, by cell."""
    found, fork = {}, Engine.fork

    def kept(self, prefill, cells, *args, **options):
        groups = fork(self, prefill, cells, *args, **options)
        for group in groups if prefill.shape.tokens > 150 else ():  # not the trial of the method
            for number, cell in enumerate(group.cells):
                assert cell.label not in found, "a conversation is compressed once"
                found[cell.label] = prefill, [layer[number : number + 1] for layer in positions(group)]
        return groups

    monkeypatch.setattr(Engine, "fork", kept)
    return found


class Beside:
    """The turns of a run, and the unmodified model with dense attention under a mask."""

    def __init__(self, name, *overrides):
        self.spec = RunSpec.of(composed("unused", name, *overrides))
        self.loaded = self.spec.load()
        self.prompter = self.loaded.prompter()
        self.spec.task.prepare(self.prompter)
        samples = [self.spec.task.sample(0, index) for index in range(3)]
        self.turns = [(sample, self.spec.task.encode(sample)) for sample in samples]
        self.dense = Dense(copy.deepcopy(self.loaded.model))

    @torch.inference_mode()
    def answer(self, ids, prefill, kept, rotates):
        """The greedy answer to these tokens where all after the first turn see what it left, and all of each other."""
        ids, said, first = torch.tensor([list(ids)]), [], prefill.shape.tokens
        while len(said) < 5:
            tokens = ids.shape[1]
            masks = dense_masks([(first, tokens - first, kept)], prefill, tokens)
            ranks = ranks_of(masks, tokens) if rotates else None
            token = int(self.dense(ids, masks, ranks=ranks)[0, -1].argmax())
            if token in self.loaded.ends:
                break
            said.append(token)
            ids = torch.cat((ids, torch.tensor([[token]])), 1)
        return said


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.sampled(6)
def test_what_the_first_turn_evicted_stays_away_and_all_later_is_seen(tmp_path, left, name, history):
    found, beside, said = rows(tmp_path, name, f"history={history}"), Beside(name, f"history={history}"), []
    reached = [cell for cell in left if cell.startswith(f"{name}@")]
    assert reached, [row["error"] for row in found.values()]
    prefill, kept = left[reached[0]]
    for sample, prompt in beside.turns:
        ids = prompt.ids if history == "golden" else prompt.having(said).ids
        said.append(beside.answer(ids, prefill, kept, METHODS[name].positions == "cache"))
        row = found[sample.id, name, reached[0].partition("@")[2]]
        assert row["output"] == beside.prompter.decode(said[-1]), (row["error"], sample.turn)


@pytest.mark.slow  # `test_conversations.py` has some of them
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("name", NAMES)
def test_turns_in_runs_of_their_own_give_the_same_rows(tmp_path, monkeypatch, name, history):
    """After own answers each turn by itself first says again, unrecorded, what was said before it."""
    together = rows(tmp_path / "together", name, f"history={history}")
    monkeypatch.setattr(Protocol, "shares", lambda self, item: None)
    alone = rows(tmp_path / "alone", name, f"history={history}")
    assert plain(together) == plain(alone)


@pytest.mark.parametrize("change", [{"max_new_tokens": 4}, {"stop": ("x",)}, {"turns": ()}, {"context": "other"}])
def test_turns_that_do_not_fit_together_are_refused(change):
    (one, prompt), (other, _), _ = Beside("h2o").turns
    changed = replace(other, **({"turns": other.turns[:2]} if "turns" in change else change))
    items = [WorkItem(sample, prompt, ()) for sample in (one, other)]
    check_conversations(items)
    with pytest.raises(UserError, match=f"{one.id} and {other.id} are turns of .* another {next(iter(change))} each"):
        check_conversations([items[0], WorkItem(changed, prompt, ())])


def test_a_run_says_its_score_by_turn(tmp_path):
    parts = pd.read_csv(runner.run(composed(tmp_path, "h2o"), figures=False).folder / "summary.csv")
    found = rows(tmp_path, "h2o")
    turns = parts[(parts["kind"] == "turn") & (parts["method"] == "h2o")]
    assert sorted(turns["part"].astype(str)) == ["1", "1", "2", "2", "3", "3"]
    for line in turns.to_dict("records"):
        [row] = [
            row
            for (_, method, budget), row in found.items()
            if method == "h2o"
            and float(budget) == line["budget"]
            and str(row["sample_info"]["turn"]) == str(line["part"])
        ]
        assert line["samples"] == 1 and line["score"] == pytest.approx(row["score"], rel=1e-5)


def test_an_interrupted_conversation_goes_on_from_the_same_answers(tmp_path):
    """The rows that are there are not measured again, and what later turns need of them is said once more."""
    path = runner.run(composed(tmp_path, "h2o", "history=model"), figures=False).folder / "rows.jsonl"
    before, lines = rows(tmp_path, "h2o", "history=model"), path.read_text().splitlines(True)
    for left_there in (
        lines[:2],
        lines[1::2],
        [line for line in lines if json.loads(line)["sample_info"]["turn"] != 2],
    ):
        assert 0 < len(left_there) < len(lines)
        path.write_text("".join(left_there))
        again = rows(tmp_path, "h2o", "history=model")
        assert plain(again) == plain(before)
