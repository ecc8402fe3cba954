"""LongBench's files as people have them: the hub's copy exported to lines, items with faults, odd encodings."""

import json

import pytest

from pvcbench.errors import UserError
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.tasks.longbench.datasets import SETS
from pvcbench.tasks.longbench.task import LongBench
from pvcbench.tasks.prompts import Prompter

GOLD = {"passage_retrieval_en": "Paragraph 3", "passage_retrieval_zh": "段落3", "passage_count": "3"}


def item(name, **changes):
    asked = "{input}" in SETS[name].parts[1]
    known = {"input": "Which capital?" if asked else "", "context": f"The {{article}} of {name}.\n\nMore."}
    known |= {"answers": [GOLD.get(name, "Marxville")], "length": 3, "dataset": name, "language": "en", "_id": "a"}
    return (
        known | {"all_classes": ["Marxville", "Elsewhere"] if SETS[name].metric == "classification" else None} | changes
    )


def prepared(folder, name, *items, raw=None, **settings):
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in items)
    (folder / f"{name}{'_e' * settings.get('e', False)}.jsonl").write_bytes(raw or text.encode())
    task = LongBench(sets=name, data_dir=str(folder), **settings)
    task.prepare(Prompter(byte_tokenizer()))
    return task


def said(task):
    with pytest.raises(UserError) as caught:
        task.validate()
    return str(caught.value)


def without(one, *keys):
    return {key: value for key, value in one.items() if key not in keys}


@pytest.mark.parametrize("name", SETS)
def test_an_exported_copy_of_the_hub_is_the_original(tmp_path, name):
    original = item(name)
    expected = prepared(tmp_path, name, original).sample(0, 0)
    head, tail = SETS[name].parts
    before, _, after = tail.partition("{input}")
    copy = {"context": head + original["context"], "question": before + original["input"], "answer_prefix": after}
    task = prepared(tmp_path, name, without(original, "input") | copy | {"task": name, "max_new_tokens": 5})
    assert task.sample(0, 0) == expected
    renamed = prepared(tmp_path, name, without(original, "input") | {"question": original["input"]})
    assert renamed.sample(0, 0) == expected


@pytest.mark.parametrize("name", ["qasper", "hotpotqa", "repobench-p", "passage_retrieval_zh"])
@pytest.mark.parametrize("change", [{"input": None}, {"input": ""}, {"input": " \n"}, {}])
def test_a_question_is_not_left_out(tmp_path, name, change):
    message = said(prepared(tmp_path, name, item(name), without(item(name), "input") | change))
    assert f"{name}.jsonl, line 2: input: missing or empty, wanted the question as text" in message


@pytest.mark.parametrize("name", ["gov_report", "lcc"])
def test_sets_without_a_question_need_none(tmp_path, name):
    expected = prepared(tmp_path, name, item(name)).sample(0, 0)
    assert prepared(tmp_path, name, without(item(name), "input")).sample(0, 0) == expected


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("qasper", {"answers": []}, "answers: found [], wanted a list of texts that is not empty"),
        ("qasper", {"answers": [None]}, "answers: found [null], wanted"),
        ("qasper", {"answers": [5]}, "answers: found [5], wanted"),
        ("qasper", {"answers": {"text": ["a"]}}, 'answers: found {"text": ["a"]}, wanted'),
        ("qasper", {"context": 5}, "context: found 5, wanted text"),
        ("qasper", {"context": None}, "context: found null, wanted text"),
        ("qasper", {"input": ["a"]}, 'input: found ["a"], wanted the question as text'),
        ("qasper", {"context": SETS["qasper"].parts[0] + "Text."}, "context: starts with the set's own instruction"),
        ("qasper", {"answer_prefix": "Answer:"}, "the prompt is worded in a way not known here"),
        ("trec", {"all_classes": None}, "all_classes: missing, wanted"),
        ("trec", {"all_classes": []}, "all_classes: missing"),
        ("trec", {"all_classes": "City"}, 'all_classes: found "City", wanted a list of texts'),
        ("qasper", {"dataset": "trec"}, 'dataset: found "trec", wanted qasper: a line of another set'),
        ("passage_retrieval_en", {"answers": ["5"]}, 'answers: found ["5"], wanted Paragraph and a number'),
    ],
)
def test_each_fault_names_line_field_found_and_wanted(tmp_path, name, change, expected):
    message = said(prepared(tmp_path, name, item(name), item(name, **change)))
    assert f"{name}.jsonl, line 2: {expected}" in message and "task.data_dir" in message


def test_lengths_of_longbench_e_are_whole_numbers(tmp_path):
    assert 'line 1: length: found "900", wanted a whole number' in said(
        prepared(tmp_path, "qasper", item("qasper", length="900"), e=True)
    )
    assert "line 1: length: missing" in said(prepared(tmp_path, "qasper", without(item("qasper"), "length"), e=True))


def test_broken_characters_and_encodings_are_named(tmp_path):
    half = json.dumps(item("qasper", context="broken \ud83d emoji")).encode() + b"\n"
    assert "line 1: context: found \\ud83d, half of a character" in said(prepared(tmp_path, "qasper", raw=half))
    latin = json.dumps(item("qasper", context="café"), ensure_ascii=False).encode("latin-1")
    assert "qasper.jsonl is not a readable UTF-8 text (byte 0xe9 in line 1)" in said(
        prepared(tmp_path, "qasper", raw=latin)
    )
    marked = json.dumps(item("qasper")).encode("utf-8-sig")
    assert prepared(tmp_path, "qasper", raw=marked).sample(0, 0).answers == ("Marxville",)


def test_all_faults_of_a_set_are_listed_up_to_ten(tmp_path):
    lines = said(prepared(tmp_path, "qasper", *[item("qasper", answers=[])] * 15)).split("\n")
    assert len(lines) == 12 and "line 10" in lines[9] and lines[10] == "... and 5 more" and "data.zip" in lines[11]
