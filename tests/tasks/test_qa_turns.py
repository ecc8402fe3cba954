"""Conversations of a YAML file: SCBench's multi-turn prompts as its script writes them, cuts, its scorers' traps."""

import json

import pytest
import yaml

from pvcbench.errors import UserError
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.tasks.prompts import Prompter
from pvcbench.tasks.qa.task import Qa

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TURNS = [
    {"input": "The largest number of the list is:", "answer": 9, "options": ["a", "b", "c", "d"]},
    {"input": "The smallest number of the list is:", "answer": 1, "options": ["a", "b", "c", "d"]},
    {"input": "The median number of the list is:", "answer": 3, "options": ["a", "b", "c", "d"]},
]


def task_of(folder, name, rows, chat=True, longest=None, **more):
    """One set of SCBench's conversations, read from a made file."""
    (folder / f"scbench_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Qa("scbench_turns", data_dir=str(folder), sets=[name], **more)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    task.validate()
    task.prepare(Prompter(tokenizer, chat, longest))
    return task


def text_of(task, index):
    """A prompt's text, and its sample."""
    sample = task.sample(0, index)
    return task.prompter.tokenizer.decode(task.encode(sample).ids), sample


def test_prompts_of_mf_in_a_chat(tmp_path):
    """The context is a list of numbers, every turn asks by its own line, and golden answers stand between them."""
    task = task_of(tmp_path, "mf", [{"id": 7, "context": [4, 9, 1], "multi_turns": TURNS}])
    said, sample = text_of(task, 2)
    lines = [f"What is {turn['input'][:-1].removesuffix(' is').lower()}?\n\n{turn['input']}" for turn in TURNS]
    first = lines[0].replace("\n\n", "\n\n[4, 9, 1]\n\n")
    assert said == (
        f"<|user|>{first}<end>\n<|assistant|>9<end>\n<|user|>{lines[1]}<end>\n<|assistant|>1<end>\n"
        f"<|user|>{lines[2]}<end>\n<|assistant|>"
    )
    assert (sample.id, sample.turn, sample.context_id, sample.answers) == ("1-3", 3, "1", ("3",))
    assert task.encode(sample).context_tokens == 0, "the question stands before the context"


def test_prompts_without_a_chat_are_those_of_the_original(tmp_path):
    """Its `{pre_ans}\\n\\n{input}`; a list of answers stands there as Python writes it."""
    rows = [
        {
            "context": "X1 = 5",
            "multi_turns": [{"input": "Which?", "answer": ["AB", "CD"]}, {"input": "What?", "answer": ["E"]}],
        }
    ]
    task = task_of(tmp_path, "vt", rows, chat=False)
    said, sample = text_of(task, 1)
    assert said == "X1 = 5\n\nWhich?['AB', 'CD']\n\nWhat?"
    assert sample.turns[0].answer == "['AB', 'CD']" and sample.answers == ("E",)


def test_golden_choices_are_texts(tmp_path):
    turns = [{"input": "Who?", "answer": "b", "options": ["a", "b", "c", "d"]}] * 2
    task = task_of(tmp_path, "choice_eng", [{"context": "text", "multi_turns": turns}])
    said, sample = text_of(task, 1)
    assert (
        sample.answers == ("B", "b")
        and "The the correct answer is<end>\n<|assistant|>b<end>\n<|user|>Question: Who?" in said
    )


def test_a_cut_leaves_room_for_every_turn_and_is_the_same_for_all(tmp_path):
    rows = [{"context": "number " * 500, "multi_turns": [{"input": f"Q{n}?", "answer": "a" * 30} for n in range(4)]}]
    task = task_of(tmp_path, "many_shot", rows, longest=800)
    prompts = [task.encode(task.sample(0, index)) for index in range(4)]
    firsts = {tuple(prompt.ids[: prompt.first_tokens]) for prompt in prompts}
    assert len(firsts) == 1 and 700 < len(prompts[-1].ids) + 10 <= 800
    new = sum(len(one.asked) for one in prompts[-1].exchanges) + 4 * 10
    assert prompts[0].first_tokens + new <= 800


def test_one_letter_gold_answers_are_letters_unless_the_original_is_asked_for(tmp_path):
    """SCBench's script counts any character of the gold answer anywhere: any A in `Paris` is right there."""
    rows = [{"context": "text", "multi_turns": [{"input": "Which?", "answer": "A"}]}]
    ours, theirs = (task_of(tmp_path, "many_shot", rows, parity=parity) for parity in (False, True))
    for output, mine, parity in (("Paris", 0, 1), ("(A) yes", 1, 1), ("A", 1, 1), ("(B)", 0, 0), ("(B) maybe", 0, 1)):
        assert [next(iter(one.score(one.sample(0, 0), output).values())) for one in (ours, theirs)] == [mine, parity]


def test_conversations_of_ones_own(tmp_path):
    """Two conversations on one context are two, and count as one in intervals; the names of rows are used."""
    about = {
        "source": {"local": "mine.jsonl"}, "rows": {"turns": "asked"}, "metric": "contains",
        "columns": {"id": "id", "context": "text", "input": "q", "answers": "a"},
        "prompt": {"text": "{context}\n\n{input}", "next": "{input}"},
    }  # fmt: skip
    rows = [
        {"id": name, "text": "The mill is red.", "asked": [{"q": "Mill?", "a": "red"}, {"q": "Sure?", "a": "yes"}]}
        for name in ("x", "y", "y")
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(about))
    task = Qa(str(tmp_path / "mine.yaml"))
    samples = [task.sample(0, index) for index in range(task.size(0))]
    assert [one.id for one in samples] == ["x-1", "x-2", "y-1", "y-2", "y#3-1", "y#3-2"]
    assert [one.context_id for one in samples[::2]] == ["x", "y", "y#3"] and len({one.cluster for one in samples}) == 1
    (tmp_path / "mine.jsonl").write_text(json.dumps({"id": 1, "text": "a", "asked": "Mill?"}))
    with pytest.raises(UserError, match="row 1: asked: wanted a list of objects"):
        Qa(str(tmp_path / "mine.yaml")).validate()
