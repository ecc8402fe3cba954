"""The needle task: pure samples, exact lengths, a needle once at its recorded depth, hand-worked scores."""

import numpy as np
import pytest

from pvcbench.errors import UserError
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.tasks.metrics import exact, rouge1_recall, share_found, token_f1, token_overlap
from pvcbench.tasks.needle import haystack
from pvcbench.tasks.needle.task import SANDWICH_ANSWER, Needle
from pvcbench.tasks.needle.words import KEYS, WORDS
from pvcbench.tasks.prompts import Prompter


def prepared(**settings):
    """A needle task on the byte tokenizer."""
    task = Needle(**{"lengths": [1500], **settings})
    task.prepare(Prompter(byte_tokenizer()))
    return task


@pytest.mark.parametrize("settings", [{}, {"value": "number"}, {"value": "uuid"}, {"needles": 4, "asked": 2}])
def test_samples_are_pure_and_differ(settings):
    first, second = prepared(**settings), prepared(**settings)
    for index in (0, 7, 14):
        assert first.sample(3, index) == second.sample(3, index)
    contexts = {first.sample(seed, index).context for seed in (3, 4) for index in range(15)}
    assert len(contexts) == 30  # neighbouring seeds share no sample either


@pytest.mark.parametrize("length", [700, 1500, 4000])
@pytest.mark.parametrize("source", ["sotu", "noise", "distractors"])
def test_prompts_have_the_length_asked(length, source):
    task = prepared(lengths=[length], haystack=source)
    for index in range(5):
        tokens = len(task.prompter.encode(task.sample(0, index)).ids)
        assert 0.99 * length <= tokens <= length


def test_needle_stands_once_at_its_recorded_depth():
    task = prepared(lengths=[3000], snap_tokens=400)
    for index in range(10):
        sample = task.sample(1, index)
        first, last = sample.spans["needle"]
        needle = sample.context[first:last]
        assert sample.answers[0] in needle and sample.context.count(sample.answers[0]) == 1
        before = len(sample.context[:first].encode()) / (len(sample.context.encode()) - len(needle)) * 100
        assert before == pytest.approx(sample.info["real_depth"], abs=1.0)  # the needle's own spaces
        assert abs(sample.info["real_depth"] - sample.info["depth"]) <= 2.0
        assert not first or sample.context[:first].rstrip()[-1] in '.!?"' or sample.context[first - 1] in "\n "


def test_spans_are_the_needles_tokens():
    task = prepared()
    sample = task.sample(0, 2)
    prompt = task.prompter.encode(sample)
    first, last = prompt.spans["needle"]
    text = task.prompter.decode(list(prompt.ids[first:last]))
    assert text == sample.context[slice(*sample.spans["needle"])]
    whole = task.prompter.decode(list(prompt.ids[: prompt.context_tokens]))
    assert whole == sample.context


def test_needle_falls_back_to_a_word_start_without_sentence_ends():
    text = "word " * 200
    place = haystack.sentence_start(text, 503, 100)
    assert place < 503 and text[place - 1 : place + 1] in (" w", "d ")
    assert haystack.sentence_start("One. Two is longer.", 12, 100) == 5
    assert haystack.sentence_start("One. Two.", 9, 100) == 9


def test_depths_and_lengths_form_a_grid():
    task = prepared(lengths=[700, 1000], depths=[0, 50, 100], repeats=2)
    cells = [
        (sample.info["length"], sample.info["depth"]) for sample in (task.sample(0, i) for i in range(task.size(0)))
    ]
    assert task.size(0) == 12
    assert {cell: cells.count(cell) for cell in cells} == {(n, d): 2 for n in (700, 1000) for d in (0.0, 50.0, 100.0)}


def test_scores_by_hand():
    task = prepared()
    sample = task.sample(0, 0)
    assert task.score(sample, f'It is "{sample.answers[0].upper()}."') == {"accuracy": 1.0}
    assert task.score(sample, "I do not know.") == {"accuracy": 0.0}
    assert share_found(["one", "two"], "Two, three") == 0.5
    assert exact([" Yes"], "yes ") == 1.0 and exact(["yes"], "yes!") == 0.0
    # gold 3 words, said 4, 2 in common: F1 = 2*2 / (3+4)
    assert token_f1(["a red fox"], "the red fox runs") == pytest.approx(4 / 7)
    assert token_f1(["fox"], "") == 0.0


def test_classic_scores_are_as_weak_as_known():
    right, dont_know = "eat a sandwich", "I don't know what is the best thing to do in San Francisco."
    # the answer has 12 words ("a" twice), of which 3 are said
    assert rouge1_recall(SANDWICH_ANSWER, right) == pytest.approx(10 * 3 / 12)
    assert token_overlap(SANDWICH_ANSWER, SANDWICH_ANSWER) == 1.0
    assert rouge1_recall(SANDWICH_ANSWER, dont_know) > 0  # a wrong answer still scores
    assert prepared(needle="sandwich").score(prepared(needle="sandwich").sample(0, 0), right)["accuracy"] == 0.0


def test_values_and_keys_are_distinct():
    assert len(set(WORDS)) == len(WORDS) >= 120 and len(set(KEYS)) == len(KEYS) >= 50
    values = [prepared().sample(0, index).answers[0] for index in range(15)]
    assert len(set(values)) > 10


@pytest.mark.parametrize("settings", [{"value": "colour"}, {"needle": "pin"}, {"needles": 2, "asked": 3}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(UserError):
        prepared(**settings)


@pytest.mark.parametrize("source", ["distractors", "words.txt"])
def test_a_haystack_that_holds_every_value_is_refused(tmp_path, source):
    (tmp_path / "words.txt").write_text(" ".join(WORDS) + ".\n")
    source = source if source == "distractors" else str(tmp_path / source)
    with pytest.raises(UserError, match="holds nearly every word that could be hidden"):
        prepared(haystack=source, lengths=[20000]).sample(0, 0)
    assert prepared(haystack=source, lengths=[20000], value="uuid").sample(0, 0)


def test_too_short_a_prompt_is_refused():
    with pytest.raises(UserError, match="leave room"):
        prepared(lengths=[60]).sample(0, 0)


def test_seed_and_index_are_mixed_not_added():
    task = prepared(depths=[50])
    assert (
        task.sample(0, 1).answers != task.sample(1, 0).answers or task.sample(0, 1).context != task.sample(1, 0).context
    )
    assert np.unique([task.sample(s, i).context[:50] for s in range(3) for i in range(3)]).size == 9


def test_folder_of_texts_is_a_haystack(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"Text {name} says something. " * 200, encoding="utf-8")
    sample = prepared(haystack=str(tmp_path)).sample(0, 1)
    assert "says something" in sample.context
    with pytest.raises(UserError, match="neither"):
        prepared(haystack=str(tmp_path / "missing")).sample(0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_no_two_keys_hide_the_same_value(seed):
    """Of eight words out of a few dozen one would often stand twice, and the share of answers found be too high."""
    task = Needle(lengths=[600], needles=8, asked=8, value="word", haystack="sotu")
    task.prepare(Prompter(byte_tokenizer(), None, None))
    answers = task.sample(seed, 0).answers
    assert len(set(answers)) == len(answers) == 8
