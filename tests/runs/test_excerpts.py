"""Excerpts of prompts: what they show, that runs write them, and that they are made again for runs that have none."""

import json

import pytest
from omegaconf import OmegaConf

from pvcbench.cli.main import main as command
from pvcbench.config import compose
from pvcbench.evaluation.item import WorkItem
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.runs import prompt_excerpts, runner
from pvcbench.runs.rows import read_rows
from pvcbench.tasks.base import Sample
from pvcbench.tasks.prompts import Prompt

TINY = ["model=random", "threads=1", "wandb.mode=disabled", "method=h2o", "budgets=[0.5]"]
NEEDLE = ["task.lengths=[600]", "task.haystack=noise", "task.max_new_tokens=2"]


def run(tmp_path, *overrides):
    return runner.run(compose.composed([*TINY, f"results={tmp_path}", *overrides]), figures=False)


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def text_of(text, spans):
    """The pieces of a text in byte tokens."""
    tokenizer = byte_tokenizer()
    return prompt_excerpts.pieces(tokenizer, tokenizer(text)["input_ids"], spans)


def test_ranges_are_joined_and_cut():
    assert prompt_excerpts.merged([(90, 110), (-5, 10), (10, 20), (30, 30), (15, 18)], 100) == [(0, 20), (90, 100)]
    assert prompt_excerpts.merged([(0, 60), (-50, 10)], 10) == [(0, 10)]


def test_pieces_show_the_ends_and_the_spans():
    text = "".join(chr(97 + number % 26) for number in range(1000))
    found = text_of(text, {"needle": (500, 520)})
    assert [(piece["from"], piece["to"], piece["span"]) for piece in found] == [
        (0, 60, None),
        (460, 500, None),
        (500, 520, "needle"),
        (520, 560, None),
        (940, 1000, None),
    ]
    assert all(piece["text"] == text[piece["from"] : piece["to"]] for piece in found)


def test_short_prompts_are_shown_whole_and_long_spans_at_their_ends():
    assert text_of("short", {}) == [{"from": 0, "to": 5, "text": "short", "span": None}]
    found = text_of("x" * 3000, {"passage": (1000, 2000)})
    assert [(piece["from"], piece["to"]) for piece in found if piece["span"]] == [(1000, 1040), (1960, 2000)]
    assert "".join(piece["text"] for piece in text_of("né" * 200, {})).startswith("né" * 19)


def test_a_run_writes_what_its_samples_were_asked(tmp_path):
    result = run(tmp_path, *NEEDLE, "limit=2")
    found = lines(result.folder)
    rows = read_rows(result.folder / "rows.jsonl")
    assert [line["sample"] for line in found] == ["0-0", "0-1"]
    assert {line["sample"]: line["prompt_sha256"] for line in found} == {r["sample"]: r["prompt_sha256"] for r in rows}
    for line, answer in zip(found, ("0-0", "0-1"), strict=True):
        gold = next(row["answers"][0] for row in rows if row["sample"] == answer)
        [marked] = [piece["text"] for piece in line["excerpt"] if piece["span"] == "needle"]
        assert marked == f'The special magic word mentioned in the text is "{gold}."'
        assert line["question"] == "What is the special magic word mentioned in the text?"
        assert line["excerpt"][-1]["text"].endswith("in the text?\n") and line["excerpt"][-1]["to"] == line["tokens"]
        assert sum(len(piece["text"]) for piece in line["excerpt"]) < 400
    assert prompt_excerpts.read(result.folder) == {line["sample"]: line for line in found}


def test_a_longer_run_adds_only_its_new_samples(tmp_path):
    first = (run(tmp_path, *NEEDLE, "limit=1").folder / "samples.jsonl").read_text()
    folder = run(tmp_path, *NEEDLE, "limit=3").folder
    assert (folder / "samples.jsonl").read_text().startswith(first)
    assert [line["sample"] for line in lines(folder)] == ["0-0", "0-1", "0-2"]


def test_made_again_they_are_the_same(tmp_path, capsys):
    needle = run(tmp_path, *NEEDLE, "limit=2").folder
    text = run(tmp_path, "task=perplexity", "task.prefix=64", "task.continuation=8", "limit=2")
    for folder in (needle, text.folder):
        path = folder / "samples.jsonl"
        before = path.read_bytes()
        path.write_bytes(before.splitlines(keepends=True)[0])
        assert command(["excerpts", str(folder)]) == 0
        assert path.read_bytes() == before
    assert "1 excerpts written" in capsys.readouterr().out
    assert command(["excerpts", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("has its excerpts: nothing to do") == 2


def test_other_prompts_are_not_passed_off_as_those_measured(tmp_path, capsys):
    folder = run(tmp_path, *NEEDLE, "limit=2").folder
    (folder / "samples.jsonl").unlink()
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for change, expected in (({"prompt_sha256": "0" * 64}, "is another today"), ({"sample": "9-9"}, "not among")):
        changed = [row | change if row["sample"] == "0-1" else row for row in rows]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
        assert command(["excerpts", str(folder)]) == 1
        assert expected in capsys.readouterr().err and not (folder / "samples.jsonl").exists()
    assert command(["excerpts", str(tmp_path / "nowhere")]) == 2
    assert "no results under" in capsys.readouterr().err


def test_several_writers_and_torn_lines(tmp_path):
    whole = {"sample": "a", "prompt_sha256": "1"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(whole) + '\n{"sample": "b", "prom')
    tokenizer = byte_tokenizer()
    work = [WorkItem(Sample(name, "", "Why?", (), 0), Prompt([5, 6, 7], 3), ()) for name in "abc"]
    prompt_excerpts.add(tmp_path / "rows.jsonl", work[:2], tokenizer)
    prompt_excerpts.add(tmp_path / "rows-2of4.jsonl", work[2:], tokenizer)
    found = prompt_excerpts.read(tmp_path)
    assert set(found) == {"a", "b", "c"} and found["a"] == whole and found["b"]["question"] == "Why?"
    assert (tmp_path / "samples-2of4.jsonl").exists()


def test_nothing_depends_on_them(tmp_path, capsys):
    work = [WorkItem(Sample("a", "", "", (), 0), Prompt([5], 1), ())]
    (tmp_path / "samples.jsonl").mkdir()
    prompt_excerpts.add(tmp_path / "rows.jsonl", work, byte_tokenizer())
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no prompt excerpts" in said and "no result needs them" in said


def test_models_that_cannot_be_built_are_named():
    with pytest.raises(compose.UserError, match=r"made by 'my.model'"):
        prompt_excerpts.prompter_of({"_target_": "my.model"})
    known = OmegaConf.create({"_target_": "pvcbench.models.random_weights.random", "shape": "tiny"})
    assert prompt_excerpts.prompter_of(known).longest == 4096
