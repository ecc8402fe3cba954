"""Local tasks of lm-eval, one of each kind of request, and lm-eval's own evaluation of them."""

import json

import datasets
import pytest
import yaml
from lm_eval import evaluator
from lm_eval.tasks import TaskManager

DOCS = [
    {"text": "Anna has a red door, Tom a blue one.", "ask": "Anna's door?", "choices": ["red", "r", "blue"], "gold": 0},
    {"text": "The bakery opens at six. The library is closed.", "ask": "Closed?", "choices": ["a", "b c"], "gold": 1},
    {"text": "Maria took the train to Prague.", "ask": "Where?", "choices": ["Rome", "Prague", "Bonn"], "gold": 1},
]
ACCURACIES = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}\n{{ask}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [*ACCURACIES, {"metric": "acc_mutual_info", "aggregation": "mean", "higher_is_better": True}],
    },
    "inputs": {  # as winogrande: the choices are contexts
        "output_type": "multiple_choice",
        "doc_to_text": "{{gold}}",
        "doc_to_choice": "{{[text + choices[0], text + choices[1]]}}",
        "doc_to_target": "it was said",
        "metric_list": ACCURACIES[:1],
    },
    "gen": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}} {{ask}}",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 10},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "roll": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No report on the machine."""
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of YAML tasks; lm-eval's data go into its cache."""
    path = tmp_path_factory.mktemp("tasks")
    (path / "docs.jsonl").write_text("\n".join(json.dumps(doc) for doc in DOCS))
    for name, settings in TASKS.items():
        write_task(path, name, settings)
    kept, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, path / "cache"
    yield path
    datasets.config.HF_DATASETS_CACHE = kept


def write_task(path, name, settings):
    """A YAML task over docs.jsonl, which also serves as its few-shot examples."""
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path / "docs.jsonl")}}}
    content = {"task": name, "test_split": "test", "fewshot_config": {"split": "test"}, **data, **settings}
    (path / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def evaluated(lm, folder, names=tuple(TASKS), **options):
    """lm-eval's own evaluation of local tasks."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return evaluator.simple_evaluate(lm, tasks=list(names), task_manager=manager, bootstrap_iters=0, **options)


def responses(results, name):
    """Each document's responses, request by request."""
    return [[answer for [answer] in sample["resps"]] for sample in results["samples"][name]]


def flat(lists):
    return [value for part in lists for value in part]
