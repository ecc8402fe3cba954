"""How answers end: stop texts found in the last tokens alone, repeating tokens, and the slots of a long answer."""

import random

import pytest

from pvcbench.config import compose
from pvcbench.engine.cache import Entries
from pvcbench.evaluation.endings import Ending, Repeats
from pvcbench.evaluation.generation import length
from pvcbench.runs import runner
from pvcbench.runs.rows import read_rows

SMALL = ["model=random", "threads=1", "wandb.mode=disabled", "task.lengths=[200]", "limit=1", "budgets=[48]"]


def test_stop_texts_are_found_as_in_the_whole_text():
    """Tokens of one to three letters, some of none, against the whole text after each token."""
    words = ["", "a", "b", "ab", "ba", "aab", "\n", "\n\n"]
    rng = random.Random(0)
    for stops in (["abba"], ["\n\n", "bbb"], ["aaaa\n"]):
        for _ in range(20):
            said, ending = [], Ending(lambda tokens: "".join(words[token] for token in tokens), stops)
            while len(said) < 300:
                said.append(rng.randrange(len(words)))
                whole = any(stop in "".join(words[token] for token in said) for stop in stops)
                assert ending(0, said) == whole
                if whole:
                    break


def test_a_step_reads_no_more_of_a_long_answer():
    read = []
    ending = Ending(lambda tokens: read.append(len(tokens)) or "x" * len(tokens), ["stop"])
    said = []
    for token in range(3000):
        said.append(token)
        assert not ending(0, said)
    assert max(read) <= 20


def naive(tokens, ngram, times):
    runs = [tuple(tokens[start : start + ngram]) for start in range(len(tokens) - ngram + 1)]
    return bool(runs) and runs.count(runs[-1]) >= times


def test_repeats_are_counted_as_by_hand():
    rng, repeats = random.Random(1), Repeats(3, 4)
    for row in range(30):
        said, ending = [], Ending(lambda tokens: "", (), repeats)
        while len(said) < 200:
            said.append(rng.randrange(3))
            found = ending(row, said)
            assert found == naive(said, 3, 4) == repeats.ends(said)
            if found:
                break
        assert found


def test_what_a_row_says_of_its_length():
    loop, plain = [1, 2, 3] * 20, list(range(60))
    assert length(plain, 60, False, None) == {"answer_tokens": 60, "truncated": True, "looping": False}
    assert length(plain, 61, False, None)["truncated"] is False
    assert length(plain, 60, True, None)["truncated"] is False  # a stop text came with the last token
    assert length(loop, 60, False, None) == {"answer_tokens": 60, "truncated": True, "looping": True}
    assert length(loop, 60, False, Repeats())["truncated"] is False
    assert length([], 60, False, None) == {"answer_tokens": 0, "truncated": False, "looping": False}


def test_a_repeating_answer_is_stopped_where_it_repeats(tmp_path):
    def rows(*overrides):
        config = compose.composed([*SMALL, "method=h2o", "task.max_new_tokens=60", *overrides, f"results={tmp_path}"])
        return read_rows(runner.run(config, figures=False).folder)

    usual, stopped = rows(), rows("stop_repeats.ngram=1", "stop_repeats.times=3")
    for one, other in zip(usual, stopped, strict=True):
        assert one["answer_tokens"] == 60 and one["truncated"]  # the random model ends no answer by itself
        assert other["answer_tokens"] < 60 and other["looping"] and not other["truncated"]
        assert one["output"].startswith(other["output"])
        assert other["protocol"]["stop_repeats"] == {"ngram": 1, "times": 3}


@pytest.mark.parametrize("new_tokens", [40, 400])
def test_slots_under_hold_do_not_grow_with_the_answer(tmp_path, monkeypatch, new_tokens):
    slots, append = {}, Entries.append

    def counted(self, key, value, first):
        append(self, key, value, first)
        if first > 150:  # of the run's own prompt, not of a trial
            slots.setdefault(self.target, set()).add(self.keys.shape[2])

    monkeypatch.setattr(Entries, "append", counted)
    more = ["method=[h2o,streaming_llm]", "decode=hold", "interval=16", f"task.max_new_tokens={new_tokens}"]
    drawn = ["sampling.temperature=1", "sampling.n=2"]
    result = runner.run(compose.composed([*SMALL, *more, *drawn, f"results={tmp_path}"]), figures=False)
    rows = read_rows(result.folder)
    assert {row["error"] for row in rows} == {None}
    assert slots[48] == {48 + 16}  # the budget, and an interval's entries, the newest one included
    held = [row for row in rows if row["method"] != "full"]
    assert all(row["decoding_entries_peak"] <= 48 + 16 for row in held)
