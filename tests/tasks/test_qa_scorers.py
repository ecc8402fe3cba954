"""Metrics of task=qa: ours and the original's result on answers where they are easily wrong.

The originals' results were taken by running their scripts on these answers (InfiniteBench, SCBench, L-Eval, LooGLE,
BABILong, LongBench v2), or follow from them as told in the comment.
"""

import json

import pytest

from pvcbench.tasks.qa.scorers import numbers
from pvcbench.tasks.qa.scorers.registry import METRICS, require

ROOMS = {"labels": ["bathroom", "bedroom", "garden", "hallway", "kitchen", "office"], "input": "Where is Mary?"}
COUNTS = {"labels": ["none", "one", "three", "two"], "input": "How many objects is Daniel carrying?"}
YES = {"labels": ["no", "yes"], "input": "Is Mary in the office?"}
MASKS = (json.dumps({"<mask-0>": "Bob", "<mask-1>": "New York"}),)
ORDER = ["n,w", "s,e"]
RESULTS = [  # metric, output, gold answers, what it reads, ours, the original's
    ("choice", "Answer: C", ("C", "x"), {}, 1, 0),
    ("choice", "Answer: C", ("A", "x"), {}, 0, 1),
    ("choice", "Clearly it is B", ("C", "x"), {}, 0, 1),
    ("choice", "Clearly it is B", ("B", "x"), {}, 1, 0),
    ("choice", "B. the mill", ("B", "the mill"), {}, 1, 1),
    ("choice", "A man of the mill chose (D).", ("D", "x"), {}, 1, 0),
    ("choice", "It was the mill.", ("B", "the mill"), {}, 1, 0),
    ("choice", "B or C", ("C", "x"), {}, 0, 0),
    ("choice", "", ("A", "x"), {}, 0, 0),
    ("choice_exam", "The answer is C", ("C",), {}, 1, 1),
    ("choice_exam", "Answer: C", ("(C) some text",), {}, 1, 0),
    ("choice_exam", "I do not know", ("A",), {}, 0, 1),
    ("choice_exam", "", ("A",), {}, 0, 0),
    ("choices", "AB", ("AB",), {}, 1, 1),
    ("choices", "A", ("AB",), {}, 0.25, 0.25),
    ("choices", "A, B and C", ("AB",), {}, 0, 1),
    ("choices", "A and B", ("AB",), {}, 1, 0.25),
    ("choices", "none of them", ("AC",), {}, 0, 0.25),
    ("choice_phrase", "**The correct answer is (B)**", ("B",), {}, 1, 1),
    ("choice_phrase", "The correct answer is Darwin", ("D",), {}, 0, 1),
    ("choice_phrase", "the answer is (B)", ("B",), {}, 0, 0),
    ("choice_phrase_anywhere", "The correct answer is (A) or The correct answer is (B).", ("B",), {}, 1, 1),
    ("code_debug", "B", ("B", "f"), {}, 1, 0),
    ("code_debug", "B. f", ("B", "f"), {}, 1, 1),
    ("code_debug", "The correct option is: f", ("B", "f"), {}, 1, 1),
    ("shot", "(B)", ("(C)",), {}, 0, 1),
    ("shot", "C", ("(C)",), {}, 1, 1),
    ("shot", "Because", ("C",), {}, 0, 1),
    ("true_or_false", "It is untrue.", ("True [fact: False]",), {}, 0, 1),
    ("true_or_false", "False, as told", ("False [fact: True]",), {}, 1, 1),
    ("first_digits", "It is 12345, not 5.", ("12345",), {}, 1, 1),
    ("first_digits", "123456", ("12345",), {}, 0, 0),
    ("word_of_output", '{"a-b": "c-d"}', ("c-d",), {}, 1, 1),
    ("word_of_output", "xc-d", ("c-d",), {}, 0, 0),
    ("substring", "xc-d", ("c-d",), {}, 1, 1),
    ("substring", "mary", ("Mary",), {}, 0, 0),
    ("substring_caseless", "MARY", ("Mary",), {}, 1, 1),
    ("substring_all", "a b", ("A", "b", "c"), {}, 2 / 3, 0.67),
    ("ruler_kvpress_all", "a\x00b c", ("AB", "d"), {}, 1 / 2, 1 / 2),  # a control character joins what it stood between
    ("ruler_kvpress_part", "a\nb", ("AB", "d"), {}, 1, 1),
    ("ruler_kvpress_part", "a b", ("AB", "d"), {}, 0, 0),
    ("substring_squad", "them ill", ("The Mill",), {}, 0, 0),
    ("substring_squad", "A mill, old", ("the mill",), {}, 1, 1),
    ("last_integer", "The value is -7.", ("-7",), {}, 1, 1),
    ("last_integer", "7 it is", ("7",), {}, 0, 0),
    ("first_number", "-3", ("3",), {}, 0, 1),
    ("first_number", "3.5", ("3",), {}, 0, 0),  # the original stops with a ValueError
    ("first_number", "1,234", ("1234",), {}, 1, 0),
    ("first_number_scbench", "3.9", ("3",), {}, 0, 1),
    ("leading_values", "[1, -2, 5]", ("1", "-2", "5"), {}, 1, 1 / 3),
    ("leading_values", "9 [1, 2]", ("1", "2"), {"skip": 1}, 1, 1),
    ("answer_is", "The answer is $1,234.", ("The answer is 1234",), {}, 1, 1),
    ("answer_is", "The answer is -1.5", ("The answer is 1",), {}, 0, 1),
    ("without_blanks", "topic: The  Arts", ("the arts",), {}, 1, 1),
    ("dialogue", "It is Maria Lopez.", ("MARIA LOPEZ",), {}, 1, 0),
    ("dialogue", "anna", ("MARIA", "ANNA"), {}, 1, 0),
    ("squad_f1", "the red fox", ("a red dog",), {}, 0.5, 0.5),
    ("characters_f1", "红 狐。", ("红狐",), {}, 1, 1),
    ("babilong", "none", ("none",), COUNTS, 1, 0),
    ("babilong", "yes, as we know", ("yes",), YES, 1, 0),
    ("babilong", "She is in the kitchen. Not the office.", ("kitchen",), ROOMS, 1, 1),
    ("babilong", "kitchen or office", ("kitchen",), ROOMS, 0, 0),
    ("babilong", "milk and apple", ("apple,milk",), {"labels": ["apple", "milk"], "input": "What?"}, 1, 1),
    ("babilong", "n, w", ("n,w",), {"labels": ORDER, "input": "How?"}, 1, 0),
    ("cloze", "{'<mask-0>': 'Bob', '<mask-1>': 'York'}", MASKS, {}, 0.5, 0.5),
    ("cloze", "{'<mask-0>': 'Bob', '<mask-1>': 'York'}", MASKS, {"match": "partial"}, 1, 1),
    ("cloze", "Here: {'<mask-0>': 'Bob'}", MASKS, {}, 0.5, 0),
    ("cloze", "no idea", MASKS, {}, 0, 0),
    ("mrcr", "abc The poem", ("abc The poem",), {"random_string_to_prepend": "abc "}, 1, 1),
    ("mrcr", "The poem", ("abc The poem",), {"random_string_to_prepend": "abc "}, 0, 0),
    ("rouge_recall", "", ("None",), {}, 0, 1),
    ("rouge_recall", "the red fox", ("red fox runs",), {"measure": "1"}, 2 / 3, 2 / 3),
    ("bleu", "a b c d e", ("a b c d e",), {}, 1, 1),
    ("bleu", "a b c d x", ("a b c d",), {}, 0.2**0.25, 0.5),
    ("bleu", "a b x", ("a b",), {"order": 1}, 2 / 3, 2 / 3),
    ("rouge_lsum", "a b", ("a b",), {}, 1, 1),
    ("rouge_mean", "a b c", ("a b d",), {}, (2 / 3 * 1 / 2 * 2 / 3) ** (1 / 3), (2 / 3 * 1 / 2 * 2 / 3) ** (1 / 3)),
    ("math_verify", r"So \boxed{\frac{1}{2}}.", (r"\frac12",), {}, 1, 0),
    ("math_verify", r"\boxed{3} and then \boxed{12}", ("12",), {}, 1, 1),
    ("math_verify", r"<think>\boxed{12}</think> \boxed{7}", ("12",), {}, 0, 0),
    ("math_verify", r"<think>\boxed{12}</think> It is twelve", ("12",), {}, 0, 1),
    ("math_verify", "12", ("12",), {}, 0, 1),  # kvpress compares the whole text where there is no box
    ("math_verify", r"\boxed{0.5}", (r"\frac{1}{2}",), {}, 1, 0),
    ("math_verify", r"\boxed{(1, 2)}", ("(1,2)",), {}, 1, 0),
    ("math_verify", r"\boxed{(2, 1)}", ("(1,2)",), {}, 0, 0),
    ("math_verify", r"\boxed{070}", ("70",), {}, 1, 0),
    ("math_verify", r"\boxed{x^2", ("x^2",), {}, 0, 1),
    ("math_verify", r"\boxed{\text{Evelyn}}", (r"\text{Evelyn}",), {}, 1, 0),
    ("math_verify_first", r"\boxed{12} and \boxed{7}", ("12",), {}, 0, 1),
    ("boxed", r"\boxed{{}", ("1",), {}, 0, 0),
    ("boxed", r"\boxed{}", ("1",), {}, 1, 1),
]


@pytest.mark.parametrize("name, output, answers, given, ours, theirs", RESULTS)
def test_ours_is_right_and_parity_is_the_original(name, output, answers, given, ours, theirs):
    metric = METRICS[name]
    assert metric.score(output, answers, given) == pytest.approx(ours)
    assert (metric.parity or metric.score)(output, answers, given) == pytest.approx(theirs)


def test_every_metric_is_tried_and_tells_in_what_its_original_differs():
    assert set(METRICS) - {name for name, *_ in RESULTS} == {"contains", "contains_all", "exact", "f1"}
    for name, metric in METRICS.items():
        require(name)
        assert (metric.parity is not None) == bool(metric.differs) and metric.score.__doc__, name
    differ = {name for name, *_, ours, theirs in RESULTS if ours != pytest.approx(theirs)}
    assert differ == {name for name, metric in METRICS.items() if metric.parity is not None}


@pytest.mark.parametrize(
    "text, box",
    [
        (r"\boxed{a{b}c}", "a{b}c"),
        (r"\boxed{1} \boxed{a{b}", "1"),
        (r"\fboxed {2}", "2"),
        (r"\boxed{\left\{1\right\}}", r"\left\{1\right\}"),
        ("nothing", None),
    ],
)
def test_the_last_balanced_box(text, box):
    assert numbers.box_of(text) == box
