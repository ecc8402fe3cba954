"""lm-eval through the compressed cache: equal to its own model at full budget, and dependent on the budget below."""

import copy
import importlib.util
import json
import sys

import pytest

pytest.importorskip("lm_eval")

import lm_eval.tasks
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers.cache_utils import DynamicLayer

from lm_eval_tasks import ACCURACIES, DOCS, TASKS, evaluated, flat, folder, quiet, responses, write_task
from pvcbench.cli.main import main as command
from pvcbench.config import compose
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.evaluation.lm_eval_model import CompressedLM
from pvcbench.models import random_weights
from pvcbench.runs import runner
from pvcbench.runs.rows import read_rows
from pvcbench.tasks.lm_eval import loading, scoring
from pvcbench.tasks.lm_eval.recorder import Recorder
from pvcbench.tasks.lm_eval.task import LmEval
from pvcbench.tasks.prompts import Prompter

__all__ = ["folder", "quiet"]  # fixtures: no report on the machine, and a folder of YAML tasks

MIXED = """
import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


class Mixed(ConfigurableTask):
    def __init__(self, config=None):
        super().__init__(config={"doc_to_text": "text", "doc_to_target": "text", "test_split": "test"})

    def download(self, *args, **kwargs):
        self.dataset = {"test": datasets.Dataset.from_list([{"text": "some"}])}

    def construct_requests(self, doc, ctx, **kwargs):
        kwargs = {"metadata": kwargs["metadata"], "doc": doc}
        asked = Instance(request_type="loglikelihood", arguments=(ctx, " no"), idx=1, **kwargs)
        return [Instance(request_type="generate_until", arguments=(ctx, {"until": ["x"]}), idx=0, **kwargs), asked]

    def process_results(self, doc, results):
        return {"all": tuple(results), "total": results[1][0]}
"""


def loaded_model():
    """A tiny model whose attention is uneven, the same in every call."""
    loaded = random_weights.random("tiny", "cpu", "float32")
    torch.manual_seed(1)
    for parameter in loaded.model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return loaded


def stock(**options):
    loaded = loaded_model()
    return HFLM(loaded.model, tokenizer=loaded.tokenizer, **options)


def ours(method="h2o", budget=1.0, **options):
    loaded = loaded_model()
    return CompressedLM(loaded.model, tokenizer=loaded.tokenizer, method=method, budget=budget, **options)


@pytest.fixture(scope="module")
def reference(folder):
    """Stock lm-eval's results of all tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "add_env_info", lambda results: None)
        return evaluated(stock(), folder)


def numbers(results):
    """Metrics without the standard errors, which are not asked for."""
    kept = {key: value for key, value in results.items() if "," in key and "stderr" not in key}
    return pytest.approx(kept, rel=1e-4)


@pytest.mark.parametrize("decode", ["grow", "hold"])
def test_full_budget_equals_stock(folder, reference, decode):
    found = evaluated(ours(decode=decode), folder)
    for name in ("choice", "inputs"):
        for mine, theirs in zip(responses(found, name), responses(reference, name), strict=True):
            assert [x for x, _ in mine] == pytest.approx([x for x, _ in theirs], abs=1e-4)
            assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
    assert responses(found, "gen") == responses(reference, "gen")
    assert flat(responses(found, "roll")) == pytest.approx(flat(responses(reference, "roll")), abs=1e-3)
    for name in TASKS:
        mine = {key: value for key, value in found["results"][name].items() if "," in key and "stderr" not in key}
        assert mine == numbers(reference["results"][name])
    assert found["config"]["budget"] == "1.0" and "H2O" in found["config"]["method"]


def token_requests(lm):
    """Contexts of 1 to 200 tokens with continuations of 1 to 5, some greedy and some too long for 64 tokens."""
    generator, found = torch.Generator().manual_seed(3), []
    for length in (1, 2, 3, 50, 62, 64, 200):
        context = torch.randint(1, 256, (1, length), generator=generator)
        kept, best = context[:, -60:], []
        for _ in range(3):
            with torch.no_grad():
                best.append(
                    int(lm.model(torch.cat((kept, torch.tensor([best], dtype=torch.int64)), 1)).logits[0, -1].argmax())
                )
        for continuation in (best, best[:1], [7, 8, 9, 10, 11], [5]):
            found.append((("c", "d"), context[0].tolist(), continuation))
    return found


@pytest.mark.parametrize("method", ["full", "h2o", "pvc"])
def test_token_requests_equal_stock(method):
    theirs, mine = stock(max_length=64), ours(method, max_length=64)
    requests = token_requests(stock())
    expected, found = theirs._loglikelihood_tokens(requests, True), mine._loglikelihood_tokens(requests, True)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert sum(greedy for _, greedy in found) >= 4  # a number that could be wrong


def ask(lm, kind, *arguments):
    """One request."""
    return getattr(lm, kind)([Instance(kind, {}, arguments, 0, ("t", 0, 1))], disable_tqdm=True)[0]


def test_answers_end_at_the_budget_where_their_method_ends_them():
    """The control's answer is the full cache's, as far as prompt and answer fit into the budget together."""
    text = " ".join(doc["text"] for doc in DOCS)
    full, most = ours(decode="hold"), {"max_gen_toks": 8}
    cut = ours("full_truncated", len(full.tok_encode(text)) + 3, decode="hold")
    found = ask(cut, "generate_until", text, most)
    assert found == ask(full, "generate_until", text, {"max_gen_toks": 3}) != ask(full, "generate_until", text, most)


def test_scores_change_with_the_budget_and_stock_ones_do_not(monkeypatch):
    text, answer = " ".join(doc["text"] for doc in DOCS), " red"
    plain = stock()
    before = ask(plain, "loglikelihood", text, answer), ask(plain, "generate_until", text, {"max_gen_toks": 8})
    real = DynamicLayer.update

    def evicting(layer, keys, values, *args, **kwargs):
        result = real(layer, keys, values, *args, **kwargs)
        layer.keys, layer.values = layer.keys[:, :, -4:], layer.values[:, :, -4:]
        return result

    monkeypatch.setattr(DynamicLayer, "update", evicting)
    after = ask(plain, "loglikelihood", text, answer), ask(plain, "generate_until", text, {"max_gen_toks": 8})
    assert after[0] == before[0]  # what a patched cache does to stock likelihoods: nothing
    assert after[1] != before[1]  # while it does evict
    totals = [ask(ours(budget=budget), "loglikelihood", text, answer)[0] for budget in (8, 0.3, 0.6, 1.0)]
    gaps = [abs(total - before[0][0]) for total in totals]
    assert gaps[-1] < 1e-4 and min(gaps[:-1]) > 1e-3 and len({round(total, 4) for total in totals}) == 4
    single = {round(ask(ours(budget=budget), "loglikelihood", text, "!")[0], 4) for budget in (8, 0.3, 1.0)}
    assert len(single) == 3  # answers of one token depend on the method as well


def test_rolling_likelihood_holds_the_budget():
    text = DOCS[0]["text"] + DOCS[1]["text"]
    full = ask(stock(), "loglikelihood_rolling", text)
    windows = ask(stock(max_length=32), "loglikelihood_rolling", text)
    assert ask(ours(), "loglikelihood_rolling", text) == pytest.approx(full, abs=1e-3)
    assert ask(ours(max_length=32), "loglikelihood_rolling", text) == pytest.approx(windows, abs=1e-3)
    assert abs(windows - full) > 1e-2  # the windows were there
    assert abs(ask(ours("streaming_llm", 12), "loglikelihood_rolling", text) - full) > 1e-2
    with pytest.raises(UserError, match=r"pvc does not support the streaming protocol, only"):
        ask(ours("pvc", 0.9), "loglikelihood_rolling", text)


def test_generation_stops_and_truncates_as_stock():
    text = DOCS[0]["text"]
    theirs, mine = stock(max_length=48), ours(max_length=48)
    whole = ask(theirs, "generate_until", text * 3, {"max_gen_toks": 12})
    assert ask(mine, "generate_until", text * 3, {"max_gen_toks": 12}) == whole and len(whole) > 5
    for stop in ([whole[3]], whole[2:5]):
        settings = {"until": stop, "max_new_tokens": 12}
        expected = ask(theirs, "generate_until", text * 3, settings)
        assert ask(mine, "generate_until", text * 3, settings) == expected == whole[: len(expected)]
        assert len(expected) <= 3


def test_special_tokens_stop_as_stock():
    lms = stock(), ours()
    text = DOCS[1]["text"]
    whole = lms[0].tok_encode(ask(lms[0], "generate_until", text, {"max_gen_toks": 6}))
    for lm in lms:  # a character that it generates becomes a special token, which decoding leaves out
        lm.tokenizer.add_special_tokens({"additional_special_tokens": [lm.tokenizer.convert_ids_to_tokens(whole[2])]})
    stop = lms[0].tok_decode([whole[2]], skip_special_tokens=False)
    found = [ask(lm, "generate_until", text, {"until": [stop], "max_gen_toks": 6}) for lm in lms]
    assert found[0] == found[1] and len(found[0]) < len(whole)


def test_one_beam_is_greedy_as_stock():
    asked = {"max_gen_toks": 4, "num_beams": 1}
    assert ask(ours(), "generate_until", "a", asked) == ask(stock(), "generate_until", "a", asked)


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 2}])
def test_only_greedy(settings):
    with pytest.raises(UserError, match="greedy decoding only"):
        ask(ours(), "generate_until", "a", {"max_gen_toks": 4, **settings})


def test_refeeding_compresses_the_first_generated_token():
    text = DOCS[0]["text"] + DOCS[1]["text"]
    firsts = {}
    for refeed in (False, True):
        lms = [ours(budget=budget, refeed_last=refeed) for budget in (4, 1.0)]
        firsts[refeed] = [ask(lm, "generate_until", text, {"max_gen_toks": 1}) for lm in lms]
    assert firsts[False][0] == firsts[False][1] == firsts[True][1] != firsts[True][0]


def test_few_token_contexts():
    requests = [(("c", "d"), list(range(1, length + 1)), [9, 7]) for length in (1, 5, 6, 9)]
    full = ours()._loglikelihood_tokens(requests, True)
    small = ours(budget=0.25)._loglikelihood_tokens(requests, True)
    assert small[0] == full[0]  # one token: nothing to compress
    assert all(abs(a[0] - b[0]) > 1e-4 for a, b in zip(small[1:], full[1:], strict=True))
    assert ours("streaming_llm", 0.25)._loglikelihood_tokens(requests[:1], True)[0] == pytest.approx(full[0], abs=1e-5)
    with pytest.raises(UserError, match=r"0\.25 of 2 tokens is less than one entry"):
        ours(budget=0.25)._loglikelihood_tokens([(("c", "d"), [1, 2, 3], [9, 7])], True)
    with pytest.raises(UserError, match=r"streaming_llm at 0\.25: .* sinks"):
        ours("streaming_llm", 0.25)._loglikelihood_tokens(requests[1:2], True)
    with pytest.raises(UserError, match="70 tokens, not 1 to 64"):
        ours(max_length=64)._loglikelihood_tokens([(("c", "d"), [1, 2], [3] * 70)], True)


@pytest.fixture
def prefills(monkeypatch):
    """The lengths of all prefills but the check of the model."""
    seen, real = [], Engine.prefill

    def counted(self, ids, *args, **kwargs):
        seen.extend([] if self.strict else [ids.shape[1]])  # nor the trial of the methods
        return real(self, ids, *args, **kwargs)

    monkeypatch.setattr(Engine, "prefill", counted)
    return seen


def run(tmp_path, folder, *overrides, names=("choice", "inputs", "gen")):
    """A run of the tiny model with wide weights."""
    settings = ["task=lm_eval", f"task.include_path={folder}", f"task.tasks=[{','.join(names)}]", "threads=1"]
    settings += ["wandb.mode=disabled", "model=random", f"results={tmp_path}", *overrides]
    result = runner.run(compose.composed(settings), model=loaded_model(), figures=False)
    return result, json.loads((result.folder / "lm_eval.json").read_text())


def cells(results):
    return {(cell["method"], cell["budget"]): cell for cell in results["cells"]}


def test_a_run_gives_rows_and_lm_evals_results(tmp_path, folder, reference, prefills):
    result, results = run(tmp_path, folder, "method=[h2o,random]", "budgets=[0.3,1.0]")
    assert result.rows["error"].isna().all() and len(result.rows) == 3 * 3 * 5
    full = cells(results)["full", "1.0"]
    for name in ("choice", "inputs", "gen"):
        mine = full["results"][name]
        assert {key: mine[key] for key in mine if "," in key and "stderr" not in key} == numbers(
            reference["results"][name]
        )
    small = cells(results)["h2o", "0.3"]
    assert small["documents"] == 9 and small["failed"] == 0
    rows = {(row["sample"], row["method"], row["budget"]): row for row in read_rows(result.folder / "rows.jsonl")}
    for number, sample in enumerate(reference["samples"]["choice"]):
        row = rows[f"choice/{number}", "full", "1.0"]
        assert row["metrics"] == {key: float(sample[key]) for key in ("acc", "acc_norm", "acc_mutual_info")}
        assert row["score"] == row["metrics"]["acc"] and row["stratum"] == "choice"
        assert len(row["responses"]) == 2 * len(DOCS[number]["choices"])
        length = len(f"{DOCS[number]['text']}\n{DOCS[number]['ask']}")
        small = rows[f"choice/{number}", "h2o", "0.3"]
        assert small["prompt_tokens"] == length and small["kept_entries"] == int(0.3 * (length - 1))
        assert small["prompt_sha256"] == row["prompt_sha256"] and small["protocol"]["name"] == "continuation"
        assert small["responses"] != row["responses"] == rows[f"choice/{number}", "random", "1.0"]["responses"]
    text = rows["gen/0", "full", "1.0"]
    assert text["output"] == text["responses"][0] == responses(reference, "gen")[0][0]
    # one prefill per context for all cells and continuations: 3 questions, 3 + 3 contexts of `inputs`, 3 generations;
    # and the empty context of acc_mutual_info, which nothing shares across documents
    assert sorted(length for length in prefills if length > 28) == sorted(expected_prefills())
    assert prefills.count(1) == 3


def expected_prefills():
    """Compressed tokens of every distinct context of the tasks."""
    for doc in DOCS:
        yield len(f"{doc['text']}\n{doc['ask']}") - 1
        yield from (len(doc["text"] + choice) - 1 for choice in doc["choices"][:2])
        yield len(f"{doc['text']} {doc['ask']}")


def test_a_run_answers_as_the_model_does(tmp_path, folder):
    result, results = run(tmp_path, folder, "method=[random]", "budgets=[0.4]", names=["choice", "gen"])
    direct = evaluated(ours("random", 0.4), folder, ["choice", "gen"])
    found = result.rows[result.rows["method"] == "random"].set_index("sample")["responses"]
    for number in range(len(DOCS)):
        mine, theirs = found[f"choice/{number}"], responses(direct, "choice")[number]
        assert [x for x, _ in mine] == pytest.approx([x for x, _ in theirs], abs=1e-4)
        assert found[f"gen/{number}"] == responses(direct, "gen")[number]
    assert cells(results)["random", "0.4"]["results"]["choice"]["acc,none"] == direct["results"]["choice"]["acc,none"]


def test_rolling_run(tmp_path, folder, reference):
    result, results = run(tmp_path, folder, "method=h2o", "budgets=[0.3]", names=["roll"])
    full = cells(results)["full", "1.0"]["results"]["roll"]
    assert {key: full[key] for key in full if "perplexity," in key} == numbers(
        {key: value for key, value in reference["results"]["roll"].items() if "perplexity" in key}
    )
    row = result.rows[result.rows["method"] == "h2o"].iloc[0]
    words = len(DOCS[0]["text"].split())
    assert row["score"] == pytest.approx(row["responses"][0] / words) and next(iter(row["metrics"])).endswith(
        "per_word"
    )
    assert row["protocol"]["name"] == "streaming" and row["protocol"]["decode"] == "hold"
    assert row["kept_entries"] == int(0.3 * (len(DOCS[0]["text"]) + 1))
    with pytest.raises(UserError, match="pvc does not support this task's streaming protocol"):
        run(tmp_path, folder, "method=pvc", names=["roll"])
    with pytest.raises(UserError, match="a run of their own"):
        run(tmp_path, folder, names=["roll", "choice"])


def test_resumes_and_extends(tmp_path, folder, prefills):
    settings = "method=h2o", "budgets=[0.5]"
    first, part = run(tmp_path, folder, *settings, "limit=2", names=["choice"])
    assert first.measured == 4 and cells(part)["h2o", "0.5"]["documents"] == 2
    prefills.clear()
    again, _ = run(tmp_path, folder, *settings, "limit=2", names=["choice"])
    assert again.measured == 0 and again.folder == first.folder and not prefills
    more, whole = run(tmp_path, folder, *settings, names=["choice"])
    assert more.measured == 2 and more.folder == first.folder and cells(whole)["h2o", "0.5"]["documents"] == 3


def test_what_changes_an_answer_changes_the_run(tmp_path, folder):
    def checksum(**options):
        return LmEval(["choice"], str(tmp_path), **options).data_checksum()

    (tmp_path / "docs.jsonl").write_text((folder / "docs.jsonl").read_text())
    write_task(tmp_path, "choice", TASKS["choice"])
    found = [checksum(), checksum(num_fewshot=1), checksum(per_task=2)]
    assert checksum() == found[0]
    write_task(tmp_path, "choice", TASKS["choice"] | {"metric_list": ACCURACIES})
    found.append(checksum())
    changed = [DOCS[0] | {"gold": 2}, *DOCS[1:]]
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps(doc) for doc in changed))
    found.append(checksum())
    assert len(set(found)) == 5


def test_a_failed_context_is_the_documents_error(tmp_path, folder):
    result, results = run(tmp_path, folder, "method=streaming_llm", "budgets=[16,0.09]", names=["choice"])
    failed = result.rows[result.rows["error"].notna()]  # 0.09 of 41 to 60 tokens: not always 4 sinks
    assert set(failed["budget"]) == {"0.09"} and 0 < len(failed) < 3
    assert failed["score"].isna().all() and failed["responses"].isna().all() and "sinks" in failed["error"].iloc[0]
    cell = cells(results)["streaming_llm", "0.09"]
    assert cell["failed"] == len(failed) and cell["results"]["choice"]["sample_len"] == 3 - len(failed)
    good = result.rows[(result.rows["budget"] == "0.09") & result.rows["error"].isna()]
    assert cell["results"]["choice"]["acc,none"] == good["score"].mean()


@pytest.mark.parametrize("options", [{}, {"num_fewshot": 2}, {"num_fewshot": 1, "apply_chat_template": True}])
def test_requests_are_those_of_simple_evaluate(folder, options):
    tokenizer = random_weights.byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}"
    names = ["choice", "inputs", "gen"]
    task = LmEval(names, str(folder), **options)
    task.data_checksum()
    task.prepare(Prompter(tokenizer, False, 4096))
    stored = evaluated(Recorder(tokenizer, 4096), folder, names, **options)["samples"]
    for index in range(task.size(0)):
        document = task._by_id[task.sample(0, index).id]
        assert [item.args for item in document.instances] == stored[document.task][document.number]["arguments"]
    assert [task.sample(0, index).id for index in range(4)] == ["choice/0", "inputs/0", "gen/0", "choice/1"]


def test_scalars():
    assert scoring.scalar("word_perplexity", (-12.0, 4)) == ("log_likelihood_per_word", -3.0)
    assert scoring.scalar("perplexity", -2.5) == ("log_likelihood", -2.5)
    assert scoring.scalar("f1", (1, 1)) == ("acc", 1.0) and scoring.scalar("mcc", (1, 0)) == ("acc", 0.0)
    assert scoring.scalar("likelihood", (1, (2.0, 3.0))) == ("likelihood", None)
    assert scoring.scalar("ter", float("nan")) == ("ter", None)


@pytest.mark.parametrize(
    ("values", "score"), [({"perplexity": -2.0, "acc": 1}, 1.0), ({"ter": 3.0}, -3.0), ({"ter": 3.0, "x": 2}, 2.0)]
)
def test_the_score_is_the_first_metric_that_is_better_when_higher(folder, monkeypatch, values, score):
    task = LmEval(["gen"], str(folder))
    task.prepare(Prompter(random_weights.byte_tokenizer(), False, 4096))
    lm_evals = task._loaded.tasks["gen"]
    monkeypatch.setattr(lm_evals, "process_results", lambda doc, results: values)
    monkeypatch.setattr(lm_evals, "_higher_is_better", {"perplexity": False, "ter": False, "acc": True})
    found = task.measured(task.sample(0, 0), ["some text"])
    assert found["score"] == score and found["output"] == "some text" and len(found["metrics"]) == len(values)


def test_documents_about_one_text_are_one_cluster(tmp_path, folder):
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps(doc) for doc in [DOCS[0], DOCS[1], DOCS[0]]))
    write_task(tmp_path, "choice", TASKS["choice"])
    task = LmEval("choice", str(tmp_path))
    task.prepare(Prompter(random_weights.byte_tokenizer(), False, 4096))
    assert [task.sample(0, index).cluster for index in range(3)] == ["choice/0", "choice/1", "choice/0"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "which lm-eval tasks"),
        ({"tasks": ["choise"]}, "unknown lm-eval task 'choise': did you mean 'choice'"),
        ({"include_path": "/nowhere"}, "there is no folder"),
        ({"tasks": ["choice"], "per_task": 0}, "per_task must be a whole number, 1 or more"),
        ({"tasks": ["broken"]}, "cannot load broken: .*needs? a network|cannot load broken: .*need a network"),
        ({"tasks": ["code"]}, "runs generated code"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, options, expected):
    write_task(folder, "broken", TASKS["gen"] | {"dataset_kwargs": {"data_files": {"test": "/nowhere/x.jsonl"}}})
    write_task(folder, "code", TASKS["gen"] | {"unsafe_code": True})
    own = TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **_: own)  # lm-eval's own index takes ten seconds
    try:
        with pytest.raises(UserError, match=expected) as caught:
            options = {"include_path": str(folder)} | options if options else options
            _ = LmEval(**options).protocols
        assert "\n" not in str(caught.value)
    finally:
        for name in ("broken", "code"):
            (folder / f"{name}.yaml").unlink()


def test_python_tasks_may_mix_requests(folder):
    (folder / "mixed.py").write_text(MIXED)
    (folder / "mixed.yaml").write_text("task: mixed\nclass: !function mixed.Mixed\n")
    try:
        task = LmEval(["mixed"], str(folder))
        assert task.protocols == ("generate", "continuation")
        task.prepare(Prompter(random_weights.byte_tokenizer(), False, 4096))
    finally:
        (folder / "mixed.yaml").unlink()
    parts = task.requests(task.sample(0, 0))
    assert [part.protocol for [part] in parts] == ["generate", "continuation"]
    found = task.measured(task.sample(0, 0), ["some text", [-1.5, True]])
    assert found == {"score": -1.5, "metrics": {"total": -1.5}, "output": "some text"}


def test_own_folder_comes_first(folder, monkeypatch):
    made, real = [], TaskManager

    def manager(**options):
        made.append(options)
        return real(**options | {"include_defaults": False})

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    loading.manager_of(["choice"], folder)
    assert made == [{"include_path": str(folder), "include_defaults": False}]
    loading.manager_of(["choice", "piqa"], folder)
    loading.manager_of(["piqa"], None)
    assert made[2:] == [{"include_path": str(folder)}, {}]


def test_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lm-eval\[hf\]"):
        LmEval(["arc_easy"])
    assert command(["lm-eval", "run", "--model", "pvcbench"]) == 2


def test_questions_are_not_told_apart(tmp_path, folder):
    with pytest.raises(UserError, match="does not tell a context from a question"):
        run(tmp_path, folder, "query_aware=false")


def test_the_command_line_knows_the_model(folder, monkeypatch, capsys):
    arguments = "run --model pvcbench --model_args method=h2oo,budget=0.5 --tasks choice --include_path"
    monkeypatch.setattr(sys, "argv", ["pvcbench"])  # which lm-eval reads, and is put back
    assert command(["lm-eval", *arguments.split(), str(folder)]) == 2
    assert "unknown method 'h2oo': did you mean 'h2o'?" in capsys.readouterr().err


def test_wrong_arguments_of_the_model():
    for options, expected in (
        ({"batch_size": 4}, "batch_size=1"),
        ({"decode": "shrink"}, "grow or hold"),
        ({"budget": 2.5}, r"\(0, 1\]"),
        ({"method": "streaming_llm", "budget": 5}, "too few"),
    ):
        with pytest.raises(UserError, match=expected):
            ours(**options)


def test_the_model_is_given_back():
    loaded = loaded_model()
    ids = torch.tensor([[1, 2, 3]])
    before = copy.deepcopy(loaded.model)(ids).logits
    with pytest.raises(UserError, match="which method"):
        CompressedLM(loaded.model, tokenizer=loaded.tokenizer)
    CompressedLM(loaded.model, tokenizer=loaded.tokenizer, method="h2o").release()
    assert torch.equal(loaded.model(ids).logits, before)


def test_a_model_is_loaded_by_name_as_hflm_does(tmp_path):
    loaded = loaded_model()
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    lm = CompressedLM(str(tmp_path), method="h2o", budget=0.4, device="cpu", dtype="float32", max_length=300)
    assert ask(lm, "loglikelihood", "The door is", " red") == ask(
        ours(budget=0.4), "loglikelihood", "The door is", " red"
    )
    assert lm.max_length == 300


def test_requests_whose_logits_are_not_finite_are_error_rows(tmp_path, folder):
    """Likelihoods, windows and generations of a model that breaks on a letter: rows say so, and the run goes on."""
    loaded = loaded_model()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[loaded.tokenizer("e")["input_ids"][0]] = float("nan")
    settings = ["task=lm_eval", f"task.include_path={folder}", "task.tasks=[choice,gen]", "threads=1", "method=h2o"]
    settings += ["budgets=[0.5]", "wandb.mode=disabled", "model=random", f"results={tmp_path}"]
    rows = runner.run(compose.composed(settings), model=loaded, figures=False).rows
    broken = rows[rows["error"].notna()]
    assert set(broken["method"]) == {"full", "h2o"} and broken["score"].isna().all()
    assert broken["error"].str.contains("NaN or infinite").all() and rows[rows["error"].isna()]["score"].notna().all()
