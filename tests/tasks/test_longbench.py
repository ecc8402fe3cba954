"""LongBench: metrics against independent ones, prompts, truncation, loaders; real data where they are found."""

import difflib
import hashlib
import json
import re
import string
import sys
import zipfile
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge

from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.runs import runner
from pvcbench.tasks.longbench import metrics
from pvcbench.tasks.longbench.datasets import E_SETS, SETS, bucket, prompts
from pvcbench.tasks.longbench.task import LongBench
from pvcbench.tasks.prompts import Prompter

REAL = Path(__file__).parents[3] / "shared" / "data" / "longbench"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the original LongBench files are not beside the repository")
BARE = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
TEMPLATE = "{% for m in messages %}<user>{{ m.content }}</user>{% endfor %}<answer>"
GOLD = {"passage_retrieval_en": "Paragraph 3", "passage_retrieval_zh": "段落3", "passage_count": "3", "trec": "City"}


def item(name, number, **changes):
    """An item of a set as its file holds it; braces in the text are not ours to format."""
    known = {"input": f"Why {{context}} {number}?", "context": f"{name} {{input}} {{}} text {number}. " * 20}
    known |= {"answers": [GOLD.get(name, "red fox")], "length": 100 * number, "dataset": name, "language": "en"}
    known |= {"all_classes": ["City", "State"] if name in ("trec", "lsht") else None, "_id": f"{name}-{number}"}
    return known | ({} if "{input}" in prompts()[name] else {"input": ""}) | changes


def write(folder, sets, suffix=""):
    """Files as in the original's data folder; sets: name -> items, or how many to make."""
    folder.mkdir(exist_ok=True)
    for name, items in sets.items():
        made = [item(name, number) for number in range(items)] if isinstance(items, int) else items
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made)
        (folder / f"{name}{suffix}.jsonl").write_text(text, encoding="utf-8")
    return folder


def prepared(folder, chat=False, longest=None, tokenizer=None, **settings_):
    """A task on the byte tokenizer, with a chat template if asked."""
    tokenizer = tokenizer or byte_tokenizer()
    if chat:
        tokenizer.chat_template = TEMPLATE
    task = LongBench(data_dir=str(folder), **settings_)
    task.prepare(Prompter(tokenizer, longest=longest))
    return task


def only(tmp_path, name, **settings_):
    """The task and the first sample of one set."""
    task = prepared(write(tmp_path / "data", {name: 1}), sets=[name], **settings_)
    return task, task.sample(0, 0)


def text_of(task, prompt):
    return task.prompter.tokenizer.decode(list(prompt.ids))


# metrics


def naive_f1(said, gold):
    """Precision and recall of two word lists, by crossing words off."""
    left, hits = list(gold), 0
    for word in said:
        if word in left:
            left.remove(word)
            hits += 1
    if not hits:
        return 0.0
    precision, recall = hits / len(said), hits / len(gold)
    return 2 * precision * recall / (precision + recall)


def naive_words(text):
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def test_qa_f1_by_hand():
    f1 = metrics.METRICS["qa_f1"]
    assert f1("The  Red, fox!", "a red fox", ()) == 1.0
    assert f1("the red fox runs", "red fox", ()) == pytest.approx(2 * 2 / (3 + 2))
    assert f1("red red", "red", ()) == pytest.approx(2 * 1 / (2 + 1))
    assert f1("", "red", ()) == f1("the", "red", ()) == f1("blue", "red", ()) == 0.0


@given(st.text("aeht .,!RrX-é\n", max_size=30), st.text("aeht .,!RrX-é\n", max_size=30))
def test_qa_f1_equals_a_naive_one(said, gold):
    expected = naive_f1(naive_words(said), naive_words(gold))
    assert metrics.METRICS["qa_f1"](said, gold, ()) == pytest.approx(expected)


def test_chinese_f1_by_hand():
    f1 = metrics.METRICS["qa_f1_zh"]
    assert f1("厦门大学", "厦门大学。", ()) == 1.0  # the full stop is no word
    assert f1("北京", "厦门", ()) == 0.0
    # jieba: 我 来到 北京 清华大学 and 我 爱 北京; 2 common words
    assert f1("我来到北京清华大学", "我爱北京", ()) == pytest.approx(2 * 2 / (4 + 3))
    dropped = set("！？｡。＂＇（），－／：；＜＞［］＿｀｛｝～｢｣､、〃》「」『』【】〔〕〖〗〞〟〰〾〿–—‘’‛“”„‟…‧﹏.")  # noqa: RUF001
    assert not {chr(code) for code, to in metrics.PUNCTUATION.items() if to is None} ^ (
        dropped | set("＃＄％＆＊＋＝＠＼＾｜｟｠〘〙〚〛〜〝") | set(string.punctuation)  # noqa: RUF001
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "a.", ".", " ", "b b"]), max_size=12).map(" ".join), st.data())
def test_rouge_is_the_package_s(said, data):
    gold = data.draw(st.lists(st.sampled_from(["a", "b", "c.", "d"]), min_size=1, max_size=8).map(" ".join))
    try:
        expected = Rouge().get_scores([said], [gold], avg=True)["rouge-l"]["f"]
    except ValueError:
        expected = 0.0
    assert metrics.METRICS["rouge_l"](said, gold, ()) == expected


def test_rouge_of_empty_and_endless_texts():
    rouge = metrics.METRICS["rouge_l"]
    assert rouge("", "a", ()) == rouge("...", "a", ()) == 0.0
    assert rouge("a b c", "a b c", ()) == pytest.approx(1.0, abs=1e-6)
    assert rouge("w " * 1200, "x", ()) == 0.0  # one sentence of 1,200 words: the package recurses too deep and raises

    def deeper(frames, *texts):
        return deeper(frames - 1, *texts) if frames else rouge(*texts, ())

    room = sys.getrecursionlimit() - 40  # fits on the thread's own stack, would not fit below 300 more frames
    texts = "x " + " ".join(f"w{n}" for n in range(room - 60)), "x"  # walked from the end to the match
    assert rouge(*texts, ()) == deeper(300, *texts) > 0


def test_rouge_zh_scores_jieba_s_words():
    expected = Rouge().get_scores("我 来到 北京 清华大学", "我 爱 北京")[0]["rouge-l"]["f"]
    assert metrics.METRICS["rouge_l_zh"]("我来到北京清华大学", "我爱北京", ()) == expected > 0
    assert metrics.METRICS["rouge_l_zh"]("", "我爱北京", ()) == 0.0


def test_classification_and_its_pinned_bug():
    score = metrics.METRICS["classification"]
    assert score("It is a City.", "City", ["City", "State"]) == 1.0
    assert score("City or State", "City", ["City", "State"]) == 0.5
    assert score("State", "City", ["City", "State"]) == 0.0
    assert score("Other city", "Other city", ["city", "Other city"]) == 1.0  # part of the gold, dropped
    # two parts of the gold in a row: the walk skips the second, which a clean filter would drop, too
    assert score("Other big city", "Other big city", ["city", "big", "Other big city"]) == 0.5


def test_retrieval_and_count_by_hand():
    english, chinese, count = (metrics.METRICS[name] for name in ("retrieval", "retrieval_zh", "count"))
    assert english("Paragraph 12", "Paragraph 12", ()) == 1.0
    assert english("12, 3 or 112?", "Paragraph 12", ()) == pytest.approx(1 / 3)
    assert english("none", "Paragraph 12", ()) == 0.0
    assert chinese("段落7和段落8", "段落7", ()) == 0.5
    assert count("17", "17", ()) == 1.0 and count("1 7", "17", ()) == 0.0 and count("", "17", ()) == 0.0
    with pytest.raises(UserError, match="no paragraph"):
        english("3", "段落3", ())


def test_code_similarity_by_hand():
    score = metrics.METRICS["code_similarity"]
    assert score("\n\n```python\n# a\n// b\nreturn x\nmore", "return x", ()) == 1.0
    assert score("# only a comment", "return x", ()) == score("", "return x", ()) == 0.0
    # "return y" against "return x": 7 of 8 characters match
    assert score("return y", "return x", ()) == round(100 * 2 * 7 / 16) / 100 == 0.88


@given(st.text("abc(). ", max_size=20), st.text("abc(). ", min_size=1, max_size=20))
def test_code_similarity_is_difflib_s_in_per_cent(said, gold):
    expected = round(100 * difflib.SequenceMatcher(None, said, gold).ratio()) / 100
    assert metrics.METRICS["code_similarity"](said, gold, ()) == expected


def test_best_answer_counts_and_some_sets_read_one_line(tmp_path):
    assert metrics.best("hotpotqa", "qa_f1", "red", ["blue", "red"], ()) == 1.0
    assert metrics.best("hotpotqa", "qa_f1", "red", [], ()) == 0.0
    assert metrics.best("triviaqa", "qa_f1", "\n\nred\nPassage:", ["red"], ()) == 1.0
    assert metrics.best("hotpotqa", "qa_f1", "red\nPassage:", ["red"], ()) == pytest.approx(2 / 3)
    assert set(metrics.FIRST_LINE) == {"trec", "triviaqa", "samsum", "lsht"}
    task, sample = only(tmp_path, "trec")
    assert task.score(sample, "City\nState") == {"classification": 1.0}


def test_missing_packages_are_named_before_a_model_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    for name in ("samsum", "dureader", "multifieldqa_zh"):
        with pytest.raises(UserError, match=re.escape("pip install rouge==1.0.1 'jieba>=0.42.1'")):
            only(tmp_path, name)
    assert only(tmp_path, "hotpotqa")[0].score(only(tmp_path, "hotpotqa")[1], "red fox") == {"qa_f1": 1.0}


# the table


def test_the_table_is_the_protocol_s():
    groups = {}
    for each in SETS.values():
        groups.setdefault(each.group, []).append(each.name)
    assert [len(names) for names in groups.values()] == [4, 4, 4, 4, 3, 2] and set(prompts()) == set(SETS)
    assert sum(each.headline for each in SETS.values()) == 16 and len(SETS) == 21
    tokens = {each.name: each.max_new_tokens for each in SETS.values()}
    assert {n for n, t in tokens.items() if t == 512} == {"gov_report", "qmsum", "multi_news", "vcsum"}
    assert {n for n, t in tokens.items() if t == 128} == {"narrativeqa", "qasper", "dureader", "samsum"}
    assert {n for n, t in tokens.items() if t == 64} == {
        *("multifieldqa_en", "multifieldqa_zh", "trec", "lsht", "lcc", "repobench-p")
    }
    by_metric = {}
    for each in SETS.values():
        by_metric.setdefault(each.metric, set()).add(each.name)
    assert by_metric["rouge_l"] == {"gov_report", "qmsum", "multi_news", "samsum"}
    assert by_metric["rouge_l_zh"] == {"dureader", "vcsum"} and by_metric["classification"] == {"trec", "lsht"}
    assert by_metric["qa_f1_zh"] == {"multifieldqa_zh"} and by_metric["code_similarity"] == {"lcc", "repobench-p"}
    assert len(by_metric["qa_f1"]) == 7 and set(metrics.METRICS) == set(by_metric)
    assert len(E_SETS) == 13 and {"qasper", "samsum", "repobench-p"} < set(E_SETS) and "qmsum" not in E_SETS


# prompts


@pytest.mark.parametrize("name", SETS)
def test_every_prompt_splits_into_context_and_question(tmp_path, name):
    task, sample = only(tmp_path, name)
    made = item(name, 0)
    expected = prompts()[name].replace("{input}", "\0").replace("{context}", made["context"])
    assert sample.context + sample.question == expected.replace("\0", made["input"])
    assert sample.context.endswith(made["context"]) and sample.question
    prompt = task.encode(sample)
    assert text_of(task, prompt) == sample.context + sample.question
    assert prompt.context_tokens == len(sample.context.encode())  # a token is a byte
    assert sample.max_new_tokens == SETS[name].max_new_tokens and sample.metric == SETS[name].metric


@pytest.mark.parametrize("name", SETS)
def test_six_sets_go_without_the_chat_template(tmp_path, name):
    task, sample = only(tmp_path, name, chat=True)
    prompt = task.encode(sample)
    bare = sample.context + sample.question
    assert text_of(task, prompt) == (bare if name in BARE else f"<user>{bare}</user><answer>")
    assert prompt.context_tokens == len(sample.context.encode()) + (0 if name in BARE else len("<user>"))


def test_special_tokens_stand_once(tmp_path):
    """A tokenizer that starts texts with a token of its own does so where no chat template did."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    for name, count in (("trec", 1), ("qasper", 0)):
        task, sample = only(tmp_path, name, chat=True, tokenizer=tokenizer)
        assert task.encode(sample).ids.count(0) == count


def test_only_samsum_ends_at_a_newline(tmp_path):
    task, sample = only(tmp_path, "samsum")
    assert task.encode(sample).ends == (task.prompter.tokenizer("\n")["input_ids"][-1],)
    assert task.encode(only(tmp_path, "triviaqa")[1]).ends == ()


@pytest.mark.parametrize("limit", [300, 301])
def test_the_middle_is_cut_and_the_context_ends_where_it_did(tmp_path, limit):
    task, sample = only(tmp_path, "hotpotqa", chat=True, max_length=limit)
    text = (sample.context + sample.question).encode()
    kept = (text[:150] + text[-150:]).decode()
    prompt = task.encode(sample)
    assert text_of(task, prompt) == f"<user>{kept}</user><answer>"
    asked = len(f"{sample.question}</user><answer>")
    assert len(prompt.ids) - prompt.context_tokens == asked
    exact = prepared(tmp_path / "data", sets="hotpotqa", max_length=len(text))
    assert text_of(exact, exact.encode(sample)) == text.decode()  # as long as the limit: not cut


def test_no_boundary_where_the_cut_ate_the_question(tmp_path):
    task, sample = only(tmp_path, "hotpotqa", max_length=2 * 100)
    assert len(sample.question) > 100 and task.encode(sample).context_tokens == 0
    wide = prepared(tmp_path / "data", sets="hotpotqa", max_length=2 * len(sample.question))
    assert wide.encode(sample).context_tokens == len(sample.question)  # what is left of the first half


def test_cut_characters_decode_as_in_the_original(tmp_path):
    folder = write(tmp_path / "data", {"multifieldqa_zh": [item("multifieldqa_zh", 0, context="厦门大学" * 200)]})
    task = prepared(folder, sets="multifieldqa_zh", max_length=401)
    sample = task.sample(0, 0)
    ids = task.prompter.tokenizer(sample.context + sample.question)["input_ids"]
    parts = [task.prompter.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:200], ids[-200:])]
    assert text_of(task, task.encode(sample)) == "".join(parts)
    assert "�" in "".join(parts) and task.encode(sample).context_tokens > 0


@pytest.mark.parametrize("name,longest", [("multifieldqa_zh", 700), ("hotpotqa", 500), ("trec", 333), ("qasper", 9999)])
def test_without_a_limit_the_prompt_fills_the_model(tmp_path, name, longest):
    made = item(name, 0, context="厦门大学 a " * 200)
    folder = write(tmp_path / "data", {name: [made]})
    task = prepared(folder, chat=True, sets=name, longest=longest)
    prompt, new = task.encode(task.sample(0, 0)), SETS[name].max_new_tokens
    whole = len(prepared(folder, chat=True, sets=name).encode(task.sample(0, 0)).ids)
    if whole + new <= longest:
        assert len(prompt.ids) == whole
    else:
        assert longest - 24 <= len(prompt.ids) + new <= longest


def test_too_small_a_model_is_a_user_s_error(tmp_path):
    task, sample = only(tmp_path, "hotpotqa", chat=True, longest=40)
    with pytest.raises(UserError, match="no room"):
        task.encode(sample)


# items


def test_sets_take_turns_and_rows_say_what_items_are(tmp_path):
    first, second = item("trec", 0), item("trec", 1, _id="trec-0", context=item("trec", 0)["context"])
    folder = write(tmp_path / "data", {"trec": [first, second], "qasper": 3, "lcc": 1})
    task = prepared(folder, sets=["lcc", "trec", "qasper"])
    samples = [task.sample(0, index) for index in range(task.size(0))]
    assert [sample.stratum for sample in samples] == ["qasper", "trec", "lcc", "qasper", "trec", "qasper"]
    ids = [sample.id for sample in samples]
    assert ids == ["qasper/qasper-0", "trec/0", "lcc/lcc-0", "qasper/qasper-1", "trec/1", "qasper/qasper-2"]
    trec = [sample for sample in samples if sample.stratum == "trec"]
    assert trec[0].cluster == trec[1].cluster and len({sample.cluster for sample in samples}) == 5
    expected = {"set": "trec", "group": "few-shot", "length": 0, "language": "en", "headline": True}
    assert trec[0].info == expected | {"classes": ["City", "State"]}
    assert [sample.info["headline"] for sample in samples] == [True] * 6 and "classes" not in samples[0].info
    assert task.sample(1, 4) == task.sample(0, 4) == samples[4]


def test_ids_stay_unique_beside_numbers(tmp_path):
    items = [item("lcc", 0, _id="1"), item("lcc", 1, _id=None), item("lcc", 2, _id="x")]
    task = prepared(write(tmp_path / "data", {"lcc": items}), sets=["lcc"])
    assert len({task.sample(0, index).id for index in range(3)}) == 3


def test_longbench_e_has_its_own_files_and_buckets(tmp_path):
    lengths = [0, 3999, 4000, 7999, 8000, 30000]
    items = [item("qasper", number, length=length) for number, length in enumerate(lengths)]
    write(tmp_path / "data", {"qasper": items}, suffix="_e")
    task = prepared(tmp_path / "data", e=True, sets=["qasper"])
    said = [task.sample(0, index).info["bucket"] for index in range(6)]
    assert said == ["0-4k", "0-4k", "4-8k", "4-8k", "8k+", "8k+"] and bucket(3999) == "0-4k"
    assert "bucket" not in prepared(write(tmp_path / "data", {"qasper": 1}), sets=["qasper"]).sample(0, 0).info
    assert LongBench(e=True).sets == list(E_SETS) and LongBench().sets == list(SETS)
    for wrong in ({"e": True, "sets": ["qmsum"]}, {"sets": ["qaspr"]}, {"sets": []}, {"max_length": 1}):
        with pytest.raises(UserError, match="task"):
            LongBench(**wrong)


# loaders


def test_folder_and_zip_hold_the_same(tmp_path):
    folder = write(tmp_path / "data", {"qasper": 2, "trec": 1})
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"data/{path.name}")
    local, packed = (prepared(tmp_path / name, sets=["qasper", "trec"]) for name in ("data", "data.zip"))
    assert local.data_checksum() == packed.data_checksum() and local.sample(0, 1) == packed.sample(0, 1)
    assert prepared(tmp_path, sets=["qasper"]).sample(0, 0) == local.sample(0, 0)  # the folder above `data`
    before = prepared(folder, sets=["trec"]).data_checksum()
    write(folder, {"qasper": 3})
    assert prepared(folder, sets=["qasper", "trec"]).data_checksum() != local.data_checksum()
    assert prepared(folder, sets=["trec"]).data_checksum() == before  # only the chosen files count


def test_line_ends_inside_a_text_are_not_line_ends_of_the_file(tmp_path):
    odd = item("qasper", 0, context="one\u2028two\x85three\r\nfour")
    task = prepared(write(tmp_path / "data", {"qasper": [odd]}), sets="qasper")
    assert task.size(0) == 1 and task.sample(0, 0).context.endswith("one\u2028two\x85three\r\nfour")


def test_missing_data_say_how_to_get_them(tmp_path):
    folder = write(tmp_path / "data", {"qasper": 1, "trec": 1})
    with pytest.raises(UserError, match=r"narrativeqa.jsonl.*data.zip.*THUDM/LongBench.*task.sets=\[qasper,trec\]"):
        prepared(folder).size(0)
    (tmp_path / "no.zip").write_text("no zip")
    with pytest.raises(UserError, match="no zip file"):
        prepared(tmp_path / "no.zip", sets="qasper").size(0)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(folder / "trec.jsonl", "data/trec.jsonl")
    with pytest.raises(UserError, match=r"qasper.jsonl.*task.sets=\[trec\]"):
        prepared(tmp_path / "data.zip", sets="qasper").size(0)
    with pytest.raises(UserError, match=r"there is no .*nowhere.*qasper_e.jsonl"):
        prepared(tmp_path / "nowhere", sets="qasper", e=True).size(0)


@pytest.mark.parametrize(
    "text,expected", [("", "no items"), ("[1]", "line 1"), ("{}", "context: missing"), ("{", "line 1")]
)
def test_broken_files_are_user_s_errors(tmp_path, text, expected):
    (tmp_path / "qasper.jsonl").write_text(text)
    with pytest.raises(UserError, match=expected):
        prepared(tmp_path, sets="qasper").size(0)


def from_hub(monkeypatch, items, **settings_):
    """A task whose hub holds these items; also what was asked of the hub."""
    asked = []

    def answer(*place, **options):
        asked.append((*place, options))
        return items

    monkeypatch.setattr(datasets, "load_dataset", answer)
    task = LongBench(**settings_)
    task.prepare(Prompter(byte_tokenizer()))
    task.size(0)
    return task, asked


def renamed(one, **more):
    return {key: value for key, value in one.items() if key != "input"} | {"question": one["input"]} | more


@pytest.mark.parametrize("name", SETS)
def test_the_hub_s_copy_comes_back_as_the_original(tmp_path, monkeypatch, name):
    """Its fields hold parts of the formatted prompt; where its own cuts lie differs from set to set."""
    original = item(name, 0, context=f"N and \n\n{name}\n{item(name, 0)['context']}\nN")
    expected = prepared(write(tmp_path / "data", {name: [original]}), sets=name).sample(0, 0)
    whole = expected.context + expected.question
    before, named, _ = SETS[name].parts[1].partition("{input}")
    cuts = [0] if not before else [min(2, len(before)), len(before)] if named else [0, 2, len(before) // 2]
    for cut in cuts:
        start, last = len(expected.context) + cut, len(expected.context) + len(before) + len(original["input"])
        parts = {"context": whole[:start], "question": whole[start:last], "answer_prefix": whole[last:]}
        made = {key: value for key, value in original.items() if key != "input"} | parts
        task, _ = from_hub(monkeypatch, [made], sets=name)
        assert task.sample(0, 0) == expected
    plain, asked = from_hub(monkeypatch, [renamed(original)], sets=name)
    assert plain.sample(0, 0) == expected and asked == [("Xnhyacinth/LongBench", name, {"split": "test"})]


def test_another_wording_on_the_hub_is_refused(monkeypatch):
    made = renamed(item("qasper", 0), answer_prefix="Answer:")
    with pytest.raises(UserError, match=r"task\.data_dir"):
        from_hub(monkeypatch, [made], sets="qasper")


def test_hub_checksums_and_failures(monkeypatch):
    one = from_hub(monkeypatch, [item("qasper", 0)], sets="qasper")[0].data_checksum()
    assert one == from_hub(monkeypatch, [item("qasper", 0)], sets="qasper")[0].data_checksum()
    assert one != from_hub(monkeypatch, [item("qasper", 1)], sets="qasper")[0].data_checksum()
    asked = from_hub(monkeypatch, [item("qasper", 0)], sets="qasper", e=True)[1]
    assert asked[0][0] == "Xnhyacinth/LongBench-e"

    def unreachable(*_, **__):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError) as caught:
        LongBench(sets="qasper", e=True).size(0)
    said = str(caught.value)
    assert "\n" not in said and "no route" in said and "data.zip" in said
    assert "task.data_dir" in said and "qasper_e.jsonl" in said and "THUDM/LongBench" in said


# runs


def run(tmp_path, *overrides):
    settings_ = ["model=random", "threads=1", "wandb.mode=disabled", "task=longbench", "method=h2o", "budgets=[0.5]"]
    return runner.run(compose.composed([*settings_, f"results={tmp_path / 'results'}", *overrides]), figures=False)


@pytest.mark.parametrize("aware", [True, False])
def test_a_run_from_files_to_rows(tmp_path, aware):
    folder = write(tmp_path / "data", {"passage_retrieval_en": 1, "trec": 1, "hotpotqa": 1})
    names = "task.sets=[hotpotqa,trec,passage_retrieval_en]"
    result = run(tmp_path, f"task.data_dir={folder}", names, f"query_aware={str(aware).lower()}")
    assert result.rows["error"].isna().all() and len(result.rows) == 6
    by_set = {row["stratum"]: row for row in result.rows.to_dict("records")}
    assert set(by_set) == {"hotpotqa", "trec", "passage_retrieval_en"}
    assert set(by_set["trec"]["metrics"]) == {"classification"} and by_set["trec"]["answers"] == ["City"]
    moved = tmp_path / "moved"
    folder.rename(moved)
    again = run(tmp_path, f"task.data_dir={moved}", names, f"query_aware={str(aware).lower()}")
    assert again.folder == result.folder and again.measured == 0  # where data lie is no part of a run


def test_compressing_the_context_alone_needs_its_end(tmp_path):
    folder = write(tmp_path / "data", {"hotpotqa": 1})
    cut = [f"task.data_dir={folder}", "task.sets=hotpotqa", "task.max_length=100"]
    with pytest.raises(UserError, match=r"told apart|max_length"):
        run(tmp_path, *cut, "query_aware=false")


@real
def test_real_items_are_whole():
    task = prepared(REAL, sets=["multi_news", "multifieldqa_zh", "passage_retrieval_zh"], max_length=4000)
    assert task.size(0) == 600
    samples = [task.sample(0, index) for index in range(600)]
    assert len({sample.id for sample in samples}) == 600 and {sample.stratum for sample in samples} == set(task.sets)
    assert len({sample.cluster for sample in samples if sample.stratum == "multifieldqa_zh"}) == 142
    for sample in samples[:30]:
        prompt = task.encode(sample)
        assert text_of(task, prompt).endswith(sample.question) and 0 < prompt.context_tokens < len(prompt.ids) <= 4024
        # every gold answer is right, up to the package's 1e-8
        assert task.score(sample, sample.answers[0])[sample.metric] == pytest.approx(1.0, abs=1e-6)
    raw = (REAL / "multi_news.jsonl").read_bytes()
    expected = hashlib.sha256(f"multi_news {hashlib.sha256(raw).hexdigest()}\n".encode()).hexdigest()
    assert prepared(REAL, sets="multi_news").data_checksum() == expected
