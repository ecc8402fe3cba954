"""Data sets by YAML files: what they may say, prompts, cuts, and every shipped one on made files of its shape."""

import gzip
import hashlib
import json

import datasets
import pytest
import yaml

from pvcbench.cli.main import main
from pvcbench.config import building, compose
from pvcbench.errors import UserError
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.runs import identity, rescore, runner
from pvcbench.runs.rows import read_rows
from pvcbench.stats import summaries
from pvcbench.tasks.prompts import Prompter
from pvcbench.tasks.qa.finding import describe, names
from pvcbench.tasks.qa.task import Qa

TEXT = "The mill is red. The door is blue. " * 8
OPTIONS = ["red", "blue", "green", "grey"]
PLAIN = {"context": TEXT, "question": "Which colour?", "answers": ["red"]}
ABOUT = {
    "source": {"local": "mine.jsonl"},
    "columns": {"context": "context", "input": "question", "answers": "answers"},
    "prompt": {"text": "Read.\n{context}\n\n{input}"},
    "metric": "contains",
}
INFINITE = {"id": 1, "context": TEXT, "input": "What?", "answer": ["red"], "options": []}
CHOICE = INFINITE | {"options": OPTIONS}
TURNS = [{"input": "What?", "answer": "red"}, {"input": "Which?", "answer": "blue"}]
KINDS = ("scbench_summary", "scbench_passkey")
NEEDLED = {"context": TEXT, "multi_turns": [turn | {"task": kind} for turn, kind in zip(TURNS, KINDS, strict=True)]}
NEEDLES = [{
    "id": "0401", "reasoning_type": "x", "system_prompt": "", "needle": "{CHAR} lives beside the {1}.",
    "questions": {"onehop": "Who has been to {2}?"}, "character_set": ["Yuki", "Stuart"],
    "tests": {"T1": {"input_args": ["Semper Opera", "Dresden"]}},
}]  # fmt: skip
LEVAL = {"input": TEXT, "instructions": ["What?", "Which?"], "outputs": ["A", "B"], "evaluation": "exam", "source": "x"}
RULER = {"context": TEXT, "query": "mill", "type_needle_v": "numbers", "answer": ["12"]}
V2 = {
    "_id": "a", "domain": "d", "difficulty": "easy", "length": "short", "question": "Which?", "context": TEXT,
    **{f"choice_{letter}": text for letter, text in zip("ABCD", OPTIONS, strict=True)}, "answer": "B",
}  # fmt: skip
QA = [{"Q": "What?", "A": "red", "S": ["x"], "type": "t"}]
MADE = {  # the rows of every shipped data set, or of its sets
    "longbench_v2": V2,
    "longbench_v2_kvpress": V2,
    "loogle": {
        "shortdep_qa": {"input": TEXT, "title": "t", "qa_pairs": repr(QA), "output": "None"},
        "longdep_qa": {"input": TEXT, "title": "t", "qa_pairs": repr(QA), "output": "None"},
        "shortdep_cloze": {"input": TEXT, "title": "t", "qa_pairs": repr([QA[0] | {"A": {"<mask-0>": "red"}}])},
        "longdep_summarization": {"input": TEXT, "title": "t", "qa_pairs": "none", "output": "A mill."},
    },
    "infinitebench": {
        **dict.fromkeys(["passkey", "number_string"], INFINITE | {"answer": ["12345"]}),
        **dict.fromkeys("kv_retrieval longbook_sum_eng longbook_qa_eng longbook_qa_chn".split(), INFINITE),
        "longdialogue_qa_eng": INFINITE,
        **dict.fromkeys(["longbook_choice_eng", "code_debug"], CHOICE),
        "code_run": INFINITE | {"input": "What does func_1(-3) return?", "answer": 7},
        "math_find": INFINITE | {"input": "The largest number of the list is:", "answer": [3.5]},
        "math_calc": INFINITE | {"answer": [1, 3, 1]},
    },
    "leval_closed": dict.fromkeys("coursera quality tpo topic_retrieval_longchat gsm100".split(), LEVAL)
    | {"sci_fi": LEVAL | {"outputs": ["True [fact: False]", "False [fact: False]"]}},
    "leval_open": dict.fromkeys(list(describe("leval_open")[0])[:6], LEVAL | {"evaluation": "f1"})
    | dict.fromkeys(list(describe("leval_open")[0])[6:], LEVAL | {"evaluation": "rouge"}),
    "scbench": {name: {"id": 0, "context": TEXT, "multi_turns": TURNS} for name in describe("scbench")[0]}
    | {
        "choice_eng": {"context": TEXT, "multi_turns": [turn | {"options": OPTIONS} for turn in TURNS]},
        "mf": {"context": [1, 2, 3], "multi_turns": [{"input": "The largest number is:", "answer": 3}]},
        "vt": {"context": TEXT, "multi_turns": [{"input": "Which?", "answer": ["AB", "CD"]}]},
        **dict.fromkeys(["needles_summary", "needles_passkey"], NEEDLED),
        "repoqa_kv": {"context": TEXT, "multi_turns": [turn | {"task": "scbench_kv"} for turn in TURNS]},
    },
    "helmet_recall": dict.fromkeys(["niah_mk_2", "niah_mk_3", "niah_mv"], RULER)
    | {"json_kv": {"context": "{}", "question": "k", "answer": "v", "demos": [["a", "b"], ["c", "d"]], "num_kvs": 2}},
    "helmet_rag": {"question": "What?", "answers": ["red"], "ctxs": [{"title": "Mills", "text": TEXT}]},
    "babilong": {"input": TEXT, "question": "Where is Mary?", "target": "kitchen"},
    "mrcr": {
        "prompt": json.dumps(
            [{"role": r, "content": c} for r, c in (("user", TEXT), ("assistant", "ok"), ("user", "x"))]
        ),
        "answer": "abc ok",
        "random_string_to_prepend": "abc ",
        "n_needles": 2,
    },
    "lost_in_the_middle_files": {"ordered_kv_records": [["a", "b"], ["c", "d"]], "key": "c", "value": "d"},
    "gsm8k": {"question": "What is 1 + 1?", "answer": "One more is two.\n#### 2"},
    "math_500": {"problem": "x?", "answer": "2", "subject": "Algebra", "level": 3, "unique_id": "a/1.json"},
    "aime24": {"id": 60, "problem": "x?", "answer": "2", "year": "2024"},
    "aime25": {"problem": "x?", "answer": "2"},
}
MADE["infinitebench_yarn"] = MADE["infinitebench"]
MADE["scbench_turns"] = MADE["scbench"] | {
    "mf": {
        "context": [1, 2, 3],
        "multi_turns": [{"input": f"The {which} number is:", "answer": 3} for which in ("largest", "smallest")],
    },
    "vt": {"context": TEXT, "multi_turns": [{"input": one, "answer": ["AB", "CD"]} for one in ("Which?", "What?")]},
}
SMALL = {  # settings of what is made here
    "lost_in_the_middle_kv": "{pairs: 4}",
    "passkey": "{lengths: [300]}",
    "passkey_infinitebench": "{lines: 4, step: 2}",
    "number_string": "{lines: 4, step: 2}",
    "nolima": "{lengths: [200], depths: 3}",
}


def written(folder, name):
    """The files of a data set, where it expects them."""
    for own, one in describe(name)[0].items():
        if one.source.local is not None:
            row = MADE[name].get(own, MADE[name])
            path = folder / (one.source.local if "." in one.source.local else f"{one.source.local}/rows.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            if one.source.examples is not None:
                (folder / one.source.examples).parent.mkdir(parents=True, exist_ok=True)
                (folder / one.source.examples).write_text("".join(json.dumps(shot) + "\n" for shot in SHOTS))
            lists = path.suffix == ".json"
            text = json.dumps([row]) if lists else json.dumps(row) + "\n"
            path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    if name == "nolima":
        for path, text in (("needlesets/needle_set.json", json.dumps(NEEDLES)), ("haystack/rand_shuffle/a.txt", BOOK)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)


SHOTS = [
    {"question": f"Q{number % 5}?", "answers": [f"A{number % 5}"], "ctxs": [{"title": "T", "text": f"Text {number}."}]}
    for number in range(10)
]
BOOK = "A line of a book.\n" * 60


@pytest.fixture(scope="module")
def tiny():
    """The model of all runs."""
    return building.build(compose.composed(["model=random"]).model, "the model", device="cpu", dtype=None)


def run(tmp_path, tiny, *overrides):
    asked = ["task=qa", "method=h2o", "budgets=[0.5]", "threads=1", "wandb.mode=disabled", f"results={tmp_path}/out"]
    return runner.run(compose.composed([*asked, *overrides]), model=tiny, figures=False)


ELSEWHERE = {"reasoning_gym", "ruler_kvpress"}  # needs a package; beside the task `ruler`, whose sets it has


@pytest.mark.parametrize("name", sorted(set(names()) - ELSEWHERE))
@pytest.mark.sampled(8)
def test_every_shipped_data_set_runs_on_files_of_its_shape(name, tmp_path, tiny):
    written(tmp_path, name)
    sets = list(describe(name)[0])
    made = [f"task.settings={SMALL[name]}"] if name in SMALL else []
    folder = [f"task.data_dir={tmp_path}"] if name in MADE or name == "nolima" else []
    result = run(tmp_path, tiny, f"task.data={name}", "task.max_new_tokens=1", "limit=1", *made, *folder)
    assert len(result.rows) == 2 and result.rows["error"].isna().all() and result.rows["score"].between(0, 1).all()
    assert set(result.rows["task"]) == {f"qa_{name}"}
    own = {"settings": yaml.safe_load(SMALL[name])} if name in SMALL else {}
    task = Qa(name, data_dir=str(tmp_path), **own)  # the other sets: their prompts and scores
    task.prepare(Prompter(byte_tokenizer(), longest=20000 if task.max_new_tokens else None))
    seen = set()
    for index in range(len(sets)):
        sample = task.sample(0, index)
        prompt = task.encode(sample)
        text = task.prompter.decode(list(prompt.ids))
        assert "{context}" not in text and "{input}" not in text and sample.question in text
        assert all(0 <= score <= 1 for score in task.score(sample, "B").values())
        seen.add(sample.info["set"])
    assert seen == set(sets)


def described(tmp_path, lines=(PLAIN,), **change):
    """A YAML file of a user's, with its data."""
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    about = {key: value for key, value in (ABOUT | change).items() if value is not None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(about), encoding="utf-8")
    return str(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"metrics": "f1"}, "metrics: unknown key; did you mean metric?"),
        ({"source": {"locl": "a"}}, "source.locl: unknown key; did you mean local?"),
        ({"source": {"split": "test"}}, "source: wanted hub or local (or both), or a generator"),
        ({"cut": {"at": "center"}}, 'cut.at: found "center", wanted middle, end or start'),
        ({"generate": {"max_new_tokens": 0}}, "generate.max_new_tokens: found 0, wanted a whole number, 1 or more"),
        ({"metric": "contain"}, "metric: unknown metric 'contain'; did you mean contains?"),
        ({"metric": {"cloze": {"partial": True}}}, "metric.cloze: unknown option 'partial'; known: match"),
        ({"metric": None}, "metric: missing, wanted the name of a metric"),
        ({"columns": {"context": "context"}}, "columns: wanted answers"),
        ({"prompt": {"text": "{context} {inptu}"}}, "prompt: {inptu} is filled by no column; did you mean {input}?"),
        ({"prompt": {"text": "{input} {context}"}}, "prompt: wanted {input} after {context}, or asks_first: true"),
        ({"prompt": {"text": "{context}{context}"}}, "prompt: wanted {context} once"),
        ({"sets": {"a": {"metrc": 1}}}, "sets.a: metrc: unknown key; did you mean metric?"),
        ({"rows": {"turns": "turns"}}, "wanted rows.turns and prompt.next together"),
        ({"prompt": {"text": "{context}{input}", "next": "{context}"}}, "prompt: wanted next without {context}"),
        (
            {"prompt": {"text": "{context}{input}", "next": "{input}"}, "rows": {"turns": "a", "explode": "b"}},
            "without",
        ),
        ({"sets": []}, "sets: found [], wanted a mapping"),
    ],
)
def test_what_a_description_cannot_say_is_one_line(change, expected, tmp_path):
    with pytest.raises(UserError) as caught:
        Qa(described(tmp_path, **change))
    assert expected in str(caught.value) and str(caught.value).startswith(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    "rows, change, expected",
    [
        ([PLAIN, {"context": "a"}], {}, "row 2: question: there is no such column; the row has context"),
        ([PLAIN | {"answers": []}], {}, "row 1: answers: found [], wanted an answer"),
        ([PLAIN], {"rows": {"keep": {"question": "Why?"}}}, "has no questions"),
        ([PLAIN], {"source": {"local": "none.jsonl"}}, "there is no "),
        ([PLAIN | {"answers": "E"}], {"choices": {"columns": "o"}}, "row 1: o: there is no such column"),
        ([PLAIN | {"o": OPTIONS, "answers": "E"}], {"choices": {"columns": "o"}}, 'found "E", wanted the letter'),
        ([PLAIN], {"metric": "rouge_lsum"}, "metric rouge_lsum needs rouge_score: pip install"),
    ],
)
def test_rows_that_are_no_questions_are_told_before_a_model_is_loaded(rows, change, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("pvcbench.tasks.qa.scorers.registry.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        Qa(described(tmp_path, rows, **change)).validate()
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "asked, expected",
    [
        ({"data": "babilon"}, "unknown data set 'babilon': did you mean 'babilong'?"),
        ({"data": "none.yaml"}, "there is no file none.yaml"),
        ({"data": "babilong", "sets": ["qa21"]}, "task.sets must be one of qa1"),
        ({"data": "number_string", "settings": {"line": 3}}, "task.settings.line: found 3, wanted one of kind, lines"),
        (
            {"data": "number_string", "settings": {"lines": "a"}},
            'task.settings.lines: found "a", wanted a whole number',
        ),
        ({"data": "gsm8k", "settings": {"lines": 3}}, "task.settings: gsm8k is read, not made"),
        ({"data": "gsm8k", "parity": "yes"}, "task.parity must be true or false"),
    ],
)
def test_settings_that_mean_nothing(asked, expected):
    with pytest.raises(UserError) as caught:
        Qa(**asked)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def prepared(path, longest=None, **settings):
    task = Qa(path, **settings)
    task.prepare(Prompter(byte_tokenizer(), longest=longest))
    return task, task.sample(0, 0)


def said(task, sample):
    """The prompt's text, and its context's."""
    prompt = task.encode(sample)
    ids = list(prompt.ids)
    return task.prompter.decode(ids), task.prompter.decode(ids[: prompt.context_tokens])


def test_values_are_filled_in_once_and_braces_are_kept(tmp_path):
    prompt = {"text": "{{x}} {context}|{input} \\boxed{}", "answer_prefix": "It is"}
    task, sample = prepared(described(tmp_path, [PLAIN | {"context": "a {input} b"}], prompt=prompt))
    assert said(task, sample) == ("{x} a {input} b|Which colour? \\boxed{}\nIt is", "{x} a {input} b")


@pytest.mark.parametrize(
    "at, whole, context",
    [
        ("middle", "Read.\nThe mill is relue. \n\nWhich colour?", "Read.\nThe mill is relue. "),
        ("end", "Read.\nThe mill is red. Th\n\nWhich colour?", "Read.\nThe mill is red. Th"),
        ("start", "Read.\n The door is blue. \n\nWhich colour?", "Read.\n The door is blue. "),
    ],
)
def test_cuts(at, whole, context, tmp_path):
    task, sample = prepared(described(tmp_path, cut={"at": at, "tokens": 40}))
    assert said(task, sample) == (whole, context)
    assert len(task.encode(sample).ids) == 40
    task, sample = prepared(described(tmp_path, cut={"at": at}, generate={"max_new_tokens": 10}), longest=50)
    assert said(task, sample) == (whole, context)


def test_a_cut_that_leaves_no_end_of_the_context_says_so(tmp_path):
    task, sample = prepared(described(tmp_path, cut={"at": "middle", "tokens": 20}))
    assert task.encode(sample).context_tokens == 0 and len(task.encode(sample).ids) == 20
    task, sample = prepared(described(tmp_path, prompt={"asks_first": True, "text": "{input}\n{context}"}))
    assert task.encode(sample).context_tokens == 0


def test_system_messages_and_conversations_are_the_template_s(tmp_path):
    tokenizer = byte_tokenizer()
    turns = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}<assistant>{% endif %}"
    columns, prompt = ABOUT["columns"] | {"q": "question"}, {"system": "Be {q}.", "text": "{context}|{input}"}
    task = Qa(described(tmp_path, prompt=prompt, columns=columns))
    task.prepare(Prompter(tokenizer))
    text, context = said(task, task.sample(0, 0))
    assert text == f"<system>Be Which colour?.<user>{TEXT}|Which colour?<assistant>"
    assert context == f"<system>Be Which colour?.<user>{TEXT}"
    written(tmp_path, "mrcr")
    task = Qa("mrcr", data_dir=str(tmp_path))
    task.prepare(Prompter(tokenizer))
    text, context = said(task, task.sample(0, 0))
    assert text == f"<user>{TEXT}<assistant>ok<user>x<assistant>" and context == f"<user>{TEXT}<assistant>ok"


def test_a_run_id_is_of_what_the_file_says_and_of_the_data(tmp_path):
    def known(**change):
        return identity.of_task(Qa(described(tmp_path, **change)))

    first = known()
    path = tmp_path / "mine.yaml"
    path.write_text(f"# A remark.\n{path.read_text()}")
    assert identity.of_task(Qa(str(path))) == first
    assert known(metric="f1") != first and known(lines=[PLAIN | {"question": "Why?"}]) != first
    assert known(license="MIT") == first and identity.of_task(Qa(described(tmp_path), parity=True)) != first


def test_buckets_strata_and_clusters_reach_the_tables(tmp_path, tiny):
    rows = [PLAIN | {"kind": kind, "level": level} for kind in "ab" for level in (1, 2)]
    path = described(tmp_path, rows, buckets=["kind", "level"], group_by="level")
    result = run(tmp_path, tiny, f"task.data={path}", "task.max_new_tokens=1")
    parts = summaries.breakdown(result.rows)
    assert set(zip(parts["kind"], parts["part"], strict=True)) == {
        ("all", "mean"), ("kind", "a"), ("kind", "b"), ("level", "1"), ("level", "2"),
    }  # fmt: skip
    assert result.rows["cluster"].nunique() == 2 and set(result.rows["stratum"]) == {""}
    task = Qa(described(tmp_path, rows, strata="kind", headline="strata"))
    assert [task.sample(0, index).stratum for index in range(4)] == ["a", "a", "b", "b"]


def test_stored_answers_are_scored_again_without_the_data(tmp_path, tiny):
    written(tmp_path, "babilong")
    asked = ["task.data=babilong", f"task.data_dir={tmp_path}", "task.sets=[qa7]", "task.max_new_tokens=1"]
    result = run(tmp_path, tiny, *asked)
    task = Qa("babilong", sets="qa7")
    rows = [row | {"output": "none", "answers": ["none"]} for row in read_rows(result.folder)]
    made, report = rescore.rescored(task, rows)
    assert report.changed == 2 and {row["score"] for row in made} == {1.0}
    made, _ = rescore.rescored(Qa("babilong", sets="qa7", parity=True), made)
    assert {row["score"] for row in made} == {0.0}


def test_what_is_made_here_is_a_function_of_seed_and_index():
    for name, settings in SMALL.items():
        if name != "nolima":
            first, again = (Qa(name, settings=yaml.safe_load(settings)) for _ in range(2))
            texts = {first.sample(seed, index).context for seed in (0, 1) for index in range(first.size(0))}
            assert len(texts) == 2 * first.size(0)
            assert first.sample(1, 2) == again.sample(1, 2)
    task = Qa("lost_in_the_middle_kv", settings={"pairs": 9, "samples": 1})
    made = [task.sample(0, index) for index in range(task.size(0))]
    lines = [sample.context.partition("JSON data:\n")[2].splitlines() for sample in made]
    places = [
        next(n for n, line in enumerate(own) if sample.answers[0] in line)
        for own, sample in zip(lines, made, strict=True)
    ]
    assert places == [0, 2, 4, 6, 8] and len({sample.cluster for sample in made}) == 1
    assert all(sample.context[slice(*sample.spans["needle"])] in sample.context for sample in made)
    digits = Qa("number_string", settings={"lines": 4, "step": 4}).sample(0, 1).answers[0]
    assert len(digits) == 10 and len(set(digits)) <= 5


def test_nolima_places_needles_at_line_ends_at_their_depths(tmp_path):
    written(tmp_path, "nolima")
    task = Qa("nolima", data_dir=str(tmp_path), settings={"lengths": [200], "depths": 3})
    task.prepare(Prompter(byte_tokenizer()))
    for index, sample in enumerate(task.sample(0, number) for number in range(3)):
        first, last = sample.spans["needle"]
        assert sample.answers[0] in ("Yuki", "Stuart") and sample.answers[0] in sample.context[first:last]
        before = sample.context[sample.context.index("\n\n") + 2 : first]
        assert abs(len(before) - 100 * index) < 40 and sample.question.count("Dresden") == 1


def test_helmet_shows_two_examples_as_datasets_shuffles_them(tmp_path):
    written(tmp_path, "helmet_rag")
    task = Qa("helmet_rag", data_dir=str(tmp_path), sets="nq")
    seed = int(hashlib.sha256(b"What?").hexdigest(), 16) % 2**31
    order = datasets.Dataset.from_list(SHOTS).shuffle(seed=seed)
    first = order[0]
    second = next(shot for shot in order if shot["question"] != first["question"])
    shown = [
        f"Document (Title: T): {one['ctxs'][0]['text']}\n\nQuestion: {one['question']}\nAnswer: {one['answers'][0]}\n\n"
        for one in (first, second)
    ]
    context = task.sample(0, 0).context
    assert context.endswith("[answer]\n\n" + "".join(shown) + f"Document (Title: Mills): {TEXT}")


def test_a_user_s_folder_has_data_sets_by_name(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    path = described(tmp_path / "data")
    assert main(["list", "--config-dir", str(tmp_path)]) == 0
    assert "task=qa task.data=" in capsys.readouterr().out
    assert describe("mine")[2] == tmp_path / "data" / "mine.yaml" and Qa("mine").size(0) == 1
    assert identity.of_task(Qa("mine")) == identity.of_task(Qa(path))


def test_reasoning_gym_makes_problems():
    pytest.importorskip("reasoning_gym")
    task = Qa("reasoning_gym", settings={"samples": 3})
    task.validate()
    samples = [task.sample(seed, index) for seed in (0, 1) for index in range(3)]
    assert len({sample.question for sample in samples}) == 6
    assert all(task.score(one, f"\\boxed{{{one.answers[0]}}}")["math_verify"] == 1 for one in samples)
