# ruff: noqa: RUF001 - letters that look like Latin ones are what these tests are about
"""Needles and scores in any script: real depths where they were asked, whole words, exact answers that score 1."""

from pathlib import Path

import pandas as pd
import pytest
import regex
import yaml

from pvcbench.errors import UserError
from pvcbench.models import embedded
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.plots import needle
from pvcbench.runs import rescore
from pvcbench.runs.rows import read_rows
from pvcbench.tasks.longbench.metrics import qa_f1
from pvcbench.tasks.metrics import (
    any_found,
    exact,
    fold,
    share_found,
    share_of_substrings,
    token_f1,
    token_overlap,
    words,
)
from pvcbench.tasks.needle import haystack
from pvcbench.tasks.needle.task import Needle
from pvcbench.tasks.prompts import Prompter

ROOT = Path(__file__).parents[2]
TEXTS = {  # a sentence or two of each kind, repeated
    "chinese in one paragraph": "春天的风吹过田野，孩子们在河边放风筝。老人坐在门口，慢慢地讲着从前的故事！" * 300,
    "chinese in lines": "夜里下了一场大雪；第二天早晨到处都是白色……\n" * 500,
    "japanese": "吾輩は猫である。名前はまだ無い。「どこで生れたか」とんと見当がつかぬ。" * 300,
    "thai": "สวัสดีครับวันนี้อากาศดีมากเราไปเดินเล่นที่สวนกันเถอะ" * 200,
    "khmer": "ភាសាខ្មែរជាភាសាផ្លូវការរបស់ប្រទេសកម្ពុជា" * 200,
    "hindi": "यह एक छोटा वाक्य है। वह कल दिल्ली जाएगा। " * 300,
    "arabic": "هل رأيت البحر اليوم؟ كان هادئا جدا. " * 300,
    "amharic": "ሰላም ለሁሉም ይሁን። ዛሬ ፀሐይ ወጥታለች። " * 300,
    "minified": "".join(f'{{"k{n}":[{n},{n * n}]}},' for n in range(2000)),
    "one word": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo0" * 400,
    "flags": "🇩🇪🇫🇷🇯🇵🇧🇷" * 900,
    "families": "👩‍👩‍👧‍👦" * 900,
    "accents": "e\u0301a\u0300\u0323o\u0308" * 900,
    "without stops": "and then he said that she went there because it was late " * 200,
    "verse": "\n".join("a line of a poem that has no stop at its end" for _ in range(300)),
}


@pytest.fixture(scope="module")
def real_prompter():
    return Prompter(embedded.tokenizer_of(embedded.ensure()), None, 8192)


def measured(prompter, sample):
    """The depth of a needle counted on the prompt's text: tokens of the haystack before it, in per cent."""
    first, last = sample.spans["needle"]
    before, after = sample.context[:first], sample.context[last:]
    count = [len(prompter.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (before, after)]
    return 100 * count[0] / sum(count)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("bytes_only", [True, False])
@pytest.mark.sampled(10)
def test_needles_stand_where_they_were_asked(kind, bytes_only, tmp_path, real_prompter):
    prompter = Prompter(byte_tokenizer()) if bytes_only else real_prompter
    (tmp_path / "text.txt").write_text(TEXTS[kind], encoding="utf-8")
    task = Needle([1500], [0, 10, 33, 50, 75, 90, 100], 1, haystack=str(tmp_path / "text.txt"))
    task.prepare(prompter)
    for index in range(task.size(0)):
        sample = task.sample(0, index)
        first, last = sample.spans["needle"]
        assert abs(measured(prompter, sample) - sample.info["depth"]) <= 2.0 + 0.5  # the text's tokens cut in two
        assert abs(sample.info["real_depth"] - sample.info["depth"]) <= 2.0
        assert (
            sample.answers[0] in sample.context[first:last] and 0.99 * 1500 <= len(prompter.encode(sample).ids) <= 1500
        )
        whole = [match.end() for match in regex.finditer(r"\X", TEXTS[kind])]
        assert first == 0 or len(sample.context[:first].rstrip(" ")) in whole or kind in ("verse", "chinese in lines")


def test_sentence_ends_of_other_scripts_are_kept_whole():
    for text, ends in (
        ("早上好。晚上好！「好。」再见", {4, 8, 12}),
        ("एक। दो॥ तीन", {4, 8}),
        ("نعم؟ لا۔ ثم", {5, 9}),
        ("Wait... what?! No. 3.14 is pi.", {8, 15, 19}),
        ("\u201cYes.\u201d He said \u00abnon.\u00bb Fin", {7, 22}),
    ):
        assert {match.end() for match in haystack.SENTENCE_END.finditer(text)} == ends


def test_all_needles_stand_where_they_were_asked(real_prompter, tmp_path):
    (tmp_path / "text.txt").write_text(TEXTS["chinese in one paragraph"], encoding="utf-8")
    task = Needle([2000], [30], 1, needles=4, asked=2, haystack=str(tmp_path / "text.txt"))
    task.prepare(real_prompter)
    sample = task.sample(0, 0)
    bare, found = sample.context, {}
    for name, (first, last) in sample.spans.items():
        found[name] = sample.context[first:last]
    for text in found.values():
        bare = bare.replace(text, "")
    for number in range(4):
        before = sample.context[: sample.spans[f"needle_{number}" if number else "needle"][0]]
        for text in found.values():
            before = before.replace(text, "")
        assert abs(100 * len(before) / len(bare) - (30 + 25 * number) % 100) <= 2.5


def test_a_depth_that_no_place_has_is_refused_by_name(tmp_path):
    (tmp_path / "text.txt").write_text("e" + "\u0301" * 5000, encoding="utf-8")  # one character with its accents
    task = Needle([2000], [50], 1, haystack=str(tmp_path / "text.txt"))
    task.prepare(Prompter(byte_tokenizer()))
    with pytest.raises(UserError, match=r"text\.txt' has no place for the needle of sample 0-0 at 50% of 2000 tokens"):
        task.sample(0, 0)


def committed(run):
    """The prompt hash, depth asked and depth then reached of each sample of a committed run."""
    rows = read_rows(ROOT / "results" / run)
    return {row["sample"]: (row["prompt_sha256"], row["sample_info"]) for row in rows}


def test_committed_prompts_stay_but_for_needles_that_were_more_than_two_points_off(real_prompter):
    run = "needle_grid/2f2f92fbc9d5"
    stored = yaml.safe_load((ROOT / "results" / run / "config.yaml").read_text())["config"]["task"]
    settings = {key: value for key, value in stored.items() if key != "_target_"}
    now, then = Needle(**settings), Needle(**settings, tolerance=100)
    for task in (now, then):
        task.prepare(real_prompter)
    for name, (prompt, info) in list(committed(run).items())[:15]:
        seed, index = map(int, name.split("-"))
        assert then.encode(then.sample(seed, index)).sha256 == prompt, name
        kept = now.encode(now.sample(seed, index)).sha256 == prompt
        assert kept == (abs(info["real_depth"] - info["depth"]) <= 2), name


def test_committed_answers_only_lose_what_was_part_of_a_longer_word():
    changed = []
    for folder in sorted((ROOT / "results").glob("*needle*/*")) + sorted((ROOT / "results" / "quickstart").glob("*")):
        task = rescore.task_of(folder)
        for row in read_rows(folder):
            if row["output"] is not None and row["error"] is None:
                new = task.score(rescore.sample_of(row), row["output"])["accuracy"]
                changed += [(row["answers"][0], row["output"])] if new != row["score"] else []
    assert {(gold, said.split('"')[1]) for gold, said in changed} <= {
        ("dolphin", "dolphins."),
        ("bamboo", "Bamboozle."),
        ("quilt", "quilted."),
    }


EXACT = [
    "Москва",
    "Αθήνα",
    "القاهرة",
    "東京",
    "カメラ",
    "서울",
    "กรุงเทพ",
    "दिल्ली",
    "ירושלים",
    "Երևան",
    "თბილისი",
    "café",
]


@pytest.mark.parametrize("answer", EXACT)
def test_exact_answers_score_one_in_every_script(answer):
    for score in (exact, token_f1, any_found, share_found):
        assert score([answer], answer) == score([answer], f" {answer.upper()} ".replace("ΑΘΉΝΑ", "Αθήνα")) == 1.0
        assert score([answer], "Something else") == 0.0
    assert token_overlap(answer, answer) == 1.0 and words(answer)


@pytest.mark.parametrize(
    ("answer", "output", "right"),
    [
        ("bamboo", "Bamboozle", False),
        ("bamboo", 'It is "Bamboo."', True),
        ("dolphin", 'mentioned in the text is "dolphins."', False),
        ("quilt", 'The special magic word is "quilted."', False),
        ("caf", "café", False),
        ("caf", "cafe\u0301", False),
        ("café", "caf", False),
        ("café", "the cafe\u0301!", True),
        ("max", "max_len", False),
        ("Marxville", "Marxville.The", True),
        ("New York City", "new\u00a0york\nCITY", True),
        ("北京", "首都是北京。", True),
        ("GPU", "使用GPU加速", True),
        ("서울", "수도는 서울입니다", True),
        ("ก", "ก่", False),
        ("หิวข้าว", "ฉันหิวข้าวมาก", True),
        ("हिन्द", "यह हिन्दी है", False),
        ("हिन्दी", "यह हिन्दी है", True),
        ("Москва", "столица — МОСКВА.", True),
        ("Straße", "STRASSE", True),
        ("🍣寿司🍣", "ist 🍣寿司🍣!", True),
        ("C++", "in C++ code", True),
        ("12", "1234", False),
        ("1234", "1,234", False),
        ("12", "1,234", False),
        ("234", "1,234", False),
        ("234", "1\u202f234", False),
        ("234", "1'234", False),
        ("1,234", "1,234 people", True),
        ("12", "12.5", False),
        ("5", "12.5", False),
        ("12", "0.12", False),
        ("12", "-12", False),
        ("12", "(\u221212)", False),
        ("-12", "it is -12.", True),
        ("12", "12.", True),
        ("12", "x=12, y=13", True),
        ("2020", "2020-12-31", True),
        ("19", "COVID-19", True),
        ("12", "12%", True),
        ("12", "第12章", True),
        ("12", "１２個", True),
        ("10", "10²", False),
        ("102", "10²", False),
        ("2", "2½", False),
        ("lantern", "_lantern_", True),
        ("lantern", "It is __lantern__.", True),
        ("42", "_42_", True),
        ("init", "re__init", False),
        ("-12", "it is \u221212.", True),
        ("\u221212", "-12", True),
        ("12", "it is \u201312", False),
        ("12", "pages 10\u201312", True),
        ("12", '"-12"', False),
        ("12", '"page"-12', True),
        ("don't", "I don\u2019t", True),
        ("O\u2019Brien", "Mr. O'Brien", True),
        ('the "Ark"', "the \u201cArk\u201d", True),
        ("well-known", "a well\u2011known man", True),
        ("\u2764", "\u2764\ufe0f", True),
        ("\u2764\ufe0f", "I \u2764 it", True),
        ("葛城", "葛\U000e0100城", True),
        ("42", "[41,42,43]", True),
        ("1234567", "7654321,1234567,5", True),
        ("234", "1,234,567", False),
        ("34", "12,34,567", False),
        ("C", "I like C++", False),
        ("C", "I like C#.", False),
        ("C", "C, C++ and C#", True),
    ],
)
def test_answers_match_whole_words_and_numbers(answer, output, right):
    assert any_found([answer], output) == share_found([answer], output) == float(right)


def test_folding_keeps_what_is_different():
    assert fold("ＡＢ\u00adc\n d") == "abc d" and fold("ﬁ") == "fi" and fold("e\u0301") == "é"
    assert len({fold(text) for text in ("102", "10²", "10₂", "10②")}) == 4


def test_words_are_those_of_each_script():
    assert words("A red-ish Fox's 3.14, 1,234") == ["a", "red", "ish", "fox", "s", "3.14", "1,234"]
    assert words("東京タワー") == ["東", "京", "タ", "ワ", "ー"] and words("สวัสดี") == ["ส", "วั", "ส", "ดี"]
    assert words("여기는 서울") == ["여기는", "서울"] and words("می\u200cخواهم") == ["می\u200cخواهم"]
    assert words("🇩🇪 👩‍👩‍👧‍👦") == ["🇩🇪", "👩‍👩‍👧‍👦"] and words("?!") == []
    assert token_f1(["北京"], "答:北京") == pytest.approx(2 * 2 / (2 + 3))


def test_published_metrics_stay_as_their_scripts_define_them():
    assert share_of_substrings(["bamboo", "12"], "Bamboozle 1234") == 1.0  # RULER
    assert qa_f1("a red fox", "The red fox", []) == 1.0 and qa_f1("café", "caf", []) == 0.0


def test_a_grid_says_how_far_needles_stand_off_the_depth_they_are_drawn_at():
    def rows(*real):
        info = [{"depth": 50.0, "length": 1024, "real_depth": one} for one in real]
        return pd.DataFrame({"sample": [str(n) for n in range(len(real))], "sample_info": info, "depth": 50.0})

    assert needle.misplaced(rows(50.0, 48.0, 52.0)) == ""
    told = needle.misplaced(rows(50.0, 44.01, 47.5))
    assert "2 of 3 samples stand up to 6.0 points off the depth" in told
