"""RULER: lm-eval's own texts and scores, pure samples, lengths kept, nothing on the terminal, clear refusals."""

import importlib.util
import random
from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pvcbench.config import compose
from pvcbench.errors import UserError
from pvcbench.models.random_weights import byte_tokenizer
from pvcbench.runs import runner
from pvcbench.runs.rows import load_table
from pvcbench.tasks.base import Sample
from pvcbench.tasks.prompts import Prompter
from pvcbench.tasks.ruler import lm_eval_sets
from pvcbench.tasks.ruler.lm_eval_sets import module, seeded
from pvcbench.tasks.ruler.request import Request, TooFew
from pvcbench.tasks.ruler.sets import DEFAULT, SETS
from pvcbench.tasks.ruler.task import Ruler

pytest.importorskip("lm_eval")
pytest.importorskip("wonderwords")

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if not loop.last or add_generation_prompt %}"
    "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LENGTHS = {"niah_single_1": 1200, "niah_multikey_2": 1200, "niah_multikey_3": 3000, "vt": 3000, "cwe": 3000}


@cache
def tokenizer(template=None):
    """A byte tokenizer, with a chat template if one is given."""
    made = byte_tokenizer()
    made.chat_template = template
    return made


@cache
def coarse():
    """A tokenizer with words for tokens, as lm-eval's one-shot example of 500 tokens needs it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([module("vt_utils").TEMPLATE, module("prepare_niah").get_haystack("repeat")] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE)


def prepared(sets, length=None, template=None, longest=None, **settings):
    """A task on the byte tokenizer, at a length that holds the set."""
    task = Ruler(sets=sets, lengths=[length or LENGTHS.get(sets[0], 2048)], **settings)
    task.prepare(Prompter(tokenizer(template), longest=longest))
    return task


def text_of(task, sample):
    return task.prompter.decode(list(task.encode(sample).ids))


@pytest.mark.parametrize("name", DEFAULT)
def test_samples_are_pure_and_differ(name):
    first, second = prepared([name]), prepared([name])
    samples = {}
    for seed, index in ((3, 0), (3, 1), (4, 0)):
        samples[seed, index] = first.sample(seed, index)
    for place in reversed(samples):  # in another order, after other draws
        random.random()
        assert second.sample(*place) == samples[place]
    assert len({sample.context for sample in samples.values()}) == 3
    assert len({sample.id for sample in samples.values()}) == 3


@pytest.mark.parametrize("name", DEFAULT)
def test_global_states_stay_and_nothing_is_printed(name, capfd):
    task = prepared([name])
    before = random.getstate(), np.random.get_state()
    task.sample(0, 5)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1][1]) and np.random.get_state()[2] == before[1][2]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("name", DEFAULT)
def test_lengths_are_kept_and_reached(name, template):
    task = prepared([name], template=template)
    for index in range(4):
        sample = task.sample(1, index)
        used = len(task.encode(sample).ids) + sample.max_new_tokens
        length = sample.info["length"]
        assert (0.6 if name == "cwe" else 0.7) * length <= used <= length  # CWE leaves room for an example it drops
        assert sample.info == {"set": name, "length": length, "bucket": f"{length} tokens"} and sample.stratum == name
        assert sample.max_new_tokens == {"vt": 30, "cwe": 120, "fwe": 50}.get(name, 128)


@pytest.mark.parametrize("name", DEFAULT)
def test_answers_are_in_the_context_and_spans_name_them(name):
    task = prepared([name])
    sample = task.sample(2, 3)
    assert sample.answers and all(answer in sample.context for answer in sample.answers)
    names = ["needle", *(f"needle_{n}" for n in range(1, 5))][: {"vt": 5, "cwe": 0, "fwe": 0}.get(name, 1)]
    assert list(sample.spans) == names
    prompt = task.encode(sample)
    for span, answer in zip(names, sample.answers, strict=False):
        sentence = sample.context[slice(*sample.spans[span])]
        assert sentence.startswith(f"VAR {answer} = " if name == "vt" else "One of the special magic ")
        assert answer in sentence and "\n" not in sentence
        assert task.prompter.decode(list(prompt.ids[slice(*prompt.spans[span])])) == sentence


def test_vt_chain_leads_from_the_value_asked_for():
    sample = prepared(["vt"]).sample(0, 0)
    value = sample.question.split("assigned the value ")[1].split()[0]
    sentences = [sample.context[slice(*span)] for span in sample.spans.values()]
    expected = [f"VAR {sample.answers[0]} = {value}"]
    expected += [f"VAR {b} = VAR {a}" for a, b in zip(sample.answers, sample.answers[1:], strict=False)]
    assert sentences == expected


@pytest.mark.parametrize("name", DEFAULT)
def test_prompt_is_what_lm_eval_sends(name, monkeypatch):
    """lm-eval's own data set function at the same state of the global generators, joined by its own turns."""
    task, seed, index = Ruler(sets=[name], lengths=[2048], chat=False), 5, 2
    task.prepare(Prompter(coarse()))
    monkeypatch.setattr(lm_eval_sets.random, "getrandbits", lambda bits: 7)  # the seed of CWE's own generator
    sample = task.sample(seed, index)
    doc = lm_eval_doc(name, sample, seed, index, monkeypatch)
    assert sample.answers == tuple(doc["outputs"])
    user, assistant = turns(name, doc)
    assert sample.context + sample.question == user.to_text() + assistant.to_text() == text_of(task, sample)


@pytest.mark.parametrize("name", ["niah_single_1", "cwe"])
def test_chat_frame_stands_between_question_and_prefix(name):
    task = prepared([name], template=TEMPLATE)
    sample = task.sample(0, 0)
    question = sample.question.split("<|end|>")[0]
    conversation = [{"role": "user", "content": sample.context + question}]
    prefix = "The special magic number for" if name == "niah_single_1" else "Answer: The top 10 words that appear most"
    head, found, tail = text_of(task, sample).rpartition("<|assistant|>")
    assert tail.startswith(prefix) and tail == tail.strip()
    conversation.append({"role": "assistant", "content": tail})
    sent = tokenizer(TEMPLATE).apply_chat_template(conversation, tokenize=False, continue_final_message=True)
    assert head + found + tail == sent
    assert task.prompter.chat and not prepared([name], template=TEMPLATE, chat=False).prompter.chat


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_context_ends_where_the_question_starts(template):
    starts = {"niah_single_1": "What is the special magic number for", "vt": "Question: Find all variables"}
    starts |= {"cwe": "Question: What are the 10 most", "fwe": "Question: Do not provide any"}
    for name, start in starts.items():
        task = prepared([name], template=template)
        sample = task.sample(0, 1)
        prompt = task.encode(sample)
        cut = task.prompter.decode(list(prompt.ids[: prompt.context_tokens]))
        assert cut == task.prompter.before + sample.context
        assert sample.question.startswith(start) and sample.context.endswith("\n")


def test_index_cycles_through_sets_then_lengths():
    task = Ruler(lengths=[1200, 1500], sets=["niah_single_1", "niah_multikey_2"], samples=2)
    task.prepare(Prompter(tokenizer()))
    places = [(sample.info["set"], sample.info["length"]) for sample in (task.sample(0, i) for i in range(8))]
    cycle = [(name, length) for length in (1200, 1500) for name in ("niah_single_1", "niah_multikey_2")]
    assert task.size(0) == 8 and places == 2 * cycle
    assert task.sample(9, 3).id == "niah_multikey_2/1500/9-3"


def test_scores_are_lm_evals_and_those_of_questions_the_best_answers():
    """lm-eval takes the mean over a question's answers, RULER the best; of one answer both are the same."""
    common, task, rng = module("common_utils"), prepared(["vt"]), np.random.default_rng(0)
    for number in range(200):
        answers = tuple("".join(rng.choice(list("abC"), 2)) for _ in range(rng.integers(1, 5)))
        output = "".join(rng.choice(list("aBc \n\t\x00\x07"), rng.integers(0, 12)))
        name = "qa_1" if number % 2 else "vt"
        process = common.process_results_part if number % 2 else common.process_results
        sample = Sample("0", "", "", answers, 30, stratum=name)
        metric = "string_match_part" if number % 2 else "string_match_all"
        told = [process({"outputs": list(part), "max_length": 4096}, [output])["4096"] for part in zip(answers)]
        expected = (
            max(told) if number % 2 else process({"outputs": list(answers), "max_length": 4096}, [output])["4096"]
        )
        assert task.score(sample, output) == {metric: expected}
    assert task.score(Sample("0", "", "", ("AB", "X\nY"), 30, stratum="vt"), " x\ty ab") == {"string_match_all": 1.0}
    assert task.score(Sample("0", "", "", ("AB", "cd"), 30, stratum="vt"), "cd") == {"string_match_all": 0.5}


@pytest.mark.parametrize("name", [name for name in DEFAULT if name.startswith("niah")])
def test_needle_sets_have_lm_evals_settings(name, monkeypatch):
    utils, prepare, calls = module("niah_utils"), module("prepare_niah"), []

    def recorded(text, TOKENIZER=None, **settings):
        calls.append((text, {key: value for key, value in settings.items() if key != "num_samples"}))
        return [{}]

    monkeypatch.setattr(utils, "generate_samples", recorded)
    monkeypatch.setattr(prepare, "generate_samples", recorded)
    monkeypatch.setattr(utils, "get_tokenizer", lambda name: None)
    monkeypatch.setattr(utils, "get_haystack", lambda type_haystack: type_haystack)
    monkeypatch.setattr(prepare, "get_haystack", lambda type_haystack: type_haystack)
    getattr(utils, name)(max_seq_lengths=[4096])
    SETS[name].make(Request(None, 4096, 0, 0, 0))
    assert len(calls) == 2 and calls[0] == calls[1]


def test_without_lm_eval_there_is_one_line(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    with pytest.raises(UserError, match=r"pip install 'lm-eval\[hf\]"):
        Ruler()


@pytest.mark.parametrize("name", DEFAULT)
@pytest.mark.parametrize("length", [256, 300])
def test_too_short_lengths_are_refused_and_end(name, length):
    with pytest.raises(UserError, match=f"task.lengths: {length} tokens are too few for {name}"):
        prepared([name], length=length).sample(0, 0)


def test_a_frame_that_leaves_no_room_is_refused():
    with pytest.raises(UserError, match="too few for fwe"):
        prepared(["fwe"], template="x" * 1900 + TEMPLATE).sample(0, 0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sets": ["niah_single_9"]}, "task.sets must be one of"),
        ({"sets": []}, "must name something"),
        ({"lengths": []}, "must name something"),
        ({"samples": 0}, "1 or more"),
        ({"lengths": [4096, 100]}, "100 tokens are too few"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(UserError, match=match):
        Ruler(**settings)


def test_model_and_template_must_fit():
    with pytest.raises(UserError, match=r"task\.lengths: 2048 tokens are more than the model's 2000"):
        prepared(["fwe"], longest=2000)
    with pytest.raises(UserError, match="no chat template"):
        prepared(["fwe"], chat=True)


def test_other_wording_is_an_error(monkeypatch):
    utils = module("fwe_utils")
    monkeypatch.setattr(utils, "TEMPLATE", utils.TEMPLATE.replace("Question: Do not", "Question: Never"))
    with pytest.raises(UserError, match="install lm-eval"):
        prepared(["fwe"]).sample(0, 0)


def test_third_and_fourth_word_must_differ(monkeypatch):
    made = {"input": "aaaaaa aaaaaa bbbbbb cccccc dddddd", "outputs": ["aaaaaa", "bbbbbb", "cccccc"]}
    monkeypatch.setattr(module("fwe_utils"), "sys_kwext", lambda *_, **__: [made])
    with pytest.raises(TooFew):
        SETS["fwe"].make(Request(tokenizer(), 2048, 0, 0, 0))


def test_run_end_to_end(tmp_path):
    lines = ["task=ruler", "task.sets=[niah_single_1]", "task.lengths=[1200]", "limit=2", "model=random", "threads=1"]
    lines += ["method=h2o", "budgets=[0.5]", "wandb.mode=disabled", f"results={tmp_path}"]
    rows = runner.run(compose.composed(lines), figures=False).rows
    assert len(rows) == 4 and rows["error"].isna().all() and set(rows["stratum"]) == {"niah_single_1"}
    assert all("needle" in kept for kept in rows["spans_kept"]) and rows["score"].between(0, 1).all()
    assert all(list(metrics) == ["string_match_all"] for metrics in rows["metrics"])


class Reserving:
    """A tokenizer that counts some tokens more."""

    def __init__(self, extra):
        self.extra = extra

    def __call__(self, text):
        return lm_eval_sets.Sizer(coarse(), np.inf, self.extra)(text)


def lm_eval_doc(name, sample, seed, index, monkeypatch):
    """The first document of lm-eval's own data set, sized so that the answer's prefix has room as in the sample."""
    places = {"vt": ("vt_utils", "sys_vartrack_w_noise_random", "get_vt_dataset")}
    places |= {"cwe": ("cwe_utils", "sys_word_pair_random", "get_cw_dataset")}
    places |= {"fwe": ("fwe_utils", "sys_kwext", "fwe_download")}
    file, generator, dataset = places.get(name, ("niah_utils", "generate_samples", name))
    utils = module(file)
    real = getattr(utils, generator)

    def single(*args, **settings):
        settings["num_samples"] = 1  # of 500
        return real(*args, **settings)

    monkeypatch.setattr(utils, generator, single)
    monkeypatch.setattr(utils, "get_tokenizer", lambda _: Reserving(50 if name == "fwe" else 0))
    with seeded(seed, index):
        if name == "cwe":
            utils.RNG.seed(7)
        return getattr(utils, dataset)(max_seq_lengths=[sample.info["length"]])["test"][0]


def turns(name, doc):
    """lm-eval's messages of a document, joined as the file of its task says."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = next(iter(importlib.util.find_spec("lm_eval.tasks.ruler").submodule_search_locations))
    settings = load_yaml(f"{folder}/{name}.yaml", resolve_func=False)
    return ConfigurableTask.build_qa_turn(
        None, q=doc["input"], gen_prefix=doc["gen_prefix"], tgt_delim=settings["target_delimiter"], few_delim=""
    )


def test_full_cache_answers_and_scores_equal_stock_lm_eval(tmp_path):
    """The same items through lm-eval's own model and its RULER scores."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    import pvcbench

    loaded = pvcbench.models.random_weights.random("tiny", "cpu", "float32", seed=3)
    for weight in loaded.model.parameters():  # wide enough for answers to vary
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.25)
    task = Ruler(sets=["niah_single_1"], lengths=[1200], samples=3, chat=False)
    settings = {"results": tmp_path, "wandb__mode": "disabled"}
    pvcbench.evaluate(loaded, task, ["h2o"], [0.5], **settings)
    [path] = (tmp_path / "default").iterdir()
    rows = load_table(path).set_index(["sample", "method"])
    stock, common, differing = (
        HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1),
        module("common_utils"),
        0,
    )
    for index in range(task.size(0)):
        sample = task.sample(0, index)
        kwargs = {"until": [], "max_gen_toks": sample.max_new_tokens, "do_sample": False}
        request = Instance("generate_until", {}, (sample.context + sample.question, kwargs), index)
        [said] = stock.generate_until([request], disable_tqdm=True)
        score = common.process_results({"max_length": 4096, "outputs": list(sample.answers)}, [said])["4096"]
        assert rows.loc[(sample.id, "full"), "output"] == said != ""
        assert rows.loc[(sample.id, "full"), "score"] == score
        differing += rows.loc[(sample.id, "h2o"), "output"] != said
    assert differing  # the same comparison can fail: at half the cache it does
