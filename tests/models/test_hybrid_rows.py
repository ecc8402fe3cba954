"""What rows say of models of this year: the bytes that recurrent layers carry, and what is refused with its reason."""

import warnings

import pytest
import torch

import pvcbench
from pvcbench.architectures import families
from pvcbench.engine.engine import Engine
from pvcbench.engine.model_check import check
from pvcbench.errors import UserError
from pvcbench.models import random_weights
from pvcbench.models.loaded import LoadedModel
from pvcbench.runs.rows import load_table

HYBRIDS = {"qwen3_next": 1, "lfm2": 2, "falcon_h1": 4}  # with the layers of four that hold entries


def loaded(name: str) -> LoadedModel:
    """The tiny model of a family with a token for every byte."""
    model, texts = families.build(name), random_weights.byte_tokenizer()
    model.resize_token_embeddings(300)
    return LoadedModel(model.eval(), texts, {"name": name, "weights": "tiny"})


def run(name: str, tmp_path, methods=("h2o", "pvc_kv"), **more):
    """The rows of two short needle prompts."""
    settings = {"task__lengths": [300], "task__max_new_tokens": 2, "limit": 2, "threads": 1, "results": str(tmp_path)}
    settings |= {"budgets": [0.5], "wandb": {"mode": "disabled"}, "figures": False} | more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights answer nothing
        table = pvcbench.evaluate(loaded(name), "needle", list(methods), **settings)
    return table, load_table(tmp_path)


@pytest.mark.parametrize("name", HYBRIDS)
def test_rows_count_what_recurrent_layers_carry(name, tmp_path):
    """A cache that transformers fills itself has the same bytes: those of its entries, and of its states."""
    table, rows = run(name, tmp_path)
    rows = rows[rows["sample"] == rows["sample"].iloc[0]].set_index("method")
    full, cut = rows.loc["full"], rows.loc["h2o"]
    model = loaded(name).model
    ids = torch.randint(1, 300, (1, int(full["prompt_tokens"])))
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    entries = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in entries)
    states = [getattr(layer, part, {}) for layer in cache.layers for part in ("conv_states", "recurrent_states")]
    carried = sum(state.nbytes for part in states for state in part.values() if state is not None)
    assert len(entries) == HYBRIDS[name] == len(full["evicted_layers"])
    assert full["carried_bytes"] == cut["carried_bytes"] == carried > 0
    assert full["kv_bytes"] == held + carried
    assert cut["kv_bytes"] == pytest.approx(held * cut["kept_fraction"] + carried, abs=1)
    share = table[table["method"] == "h2o"].iloc[0]
    assert share["kept_fraction"] < share["kept_bytes"]


@pytest.mark.parametrize("name, holding", [("gemma4_text", 4), ("gemma3n_text", 4), ("gemma4_text:moe", 4)])
def test_rows_of_shared_caches_and_of_heads_by_layer(name, holding, tmp_path):
    """The full cache is as large as transformers' own; of an evicted layer's bytes its share of entries is left."""
    _, rows = run(name, tmp_path, ["h2o", "pvc_kv", "ada_snapkv", "pyramidkv"])
    assert rows["error"].isna().all()
    rows = rows[rows["sample"] == rows["sample"].iloc[0]].set_index("method")
    full, model = rows.loc["full"], loaded(name).model
    ids = torch.randint(1, 300, (1, int(full["prompt_tokens"])))
    with torch.no_grad():
        layers = model(input_ids=ids, use_cache=True).past_key_values.layers
    held = [layer for layer in layers if getattr(layer, "keys", None) is not None]
    sizes = [layer.keys.nbytes + layer.values.nbytes for layer in held]
    assert len(held) == holding and full["kv_bytes"] == sum(sizes) and full["carried_bytes"] == 0
    evicted = sum(sizes[layer] for layer in full["evicted_layers"])
    for method in ("h2o", "ada_snapkv"):
        cut = rows.loc[method]
        assert cut["kept_fraction"] == pytest.approx(0.5, abs=0.01)
        left = sum(sizes) - evicted + evicted * cut["kept_fraction"]
        assert cut["kv_bytes"] == pytest.approx(left, abs=len(held))


def test_a_model_without_states_carries_nothing(tmp_path):
    _, rows = run("llama", tmp_path)
    assert set(rows["carried_bytes"]) == {0}


@pytest.mark.parametrize("name", HYBRIDS)
def test_keys_of_hybrids_can_be_moved(name):
    """Their hidden states differ at every place of a repeated token, and not where the whole prompt is moved."""
    engine = Engine(families.build(name))
    try:
        check(engine, rotates=True)
    finally:
        engine.release()


@pytest.mark.parametrize(
    "name,method,reason",
    [
        ("qwen3_next", "pvc", "drops tokens between layers, and layers with a recurrent state need all of them"),
        ("gemma4_text", "pvc", "drops tokens between layers, and layers that read the entries of another would meet"),
        ("gpt2", "streaming_llm", "positions=cache needs rotary embeddings"),
    ],
)
def test_what_cannot_be_is_refused_in_words(name, method, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        run(name, tmp_path, [method])
    assert not list(tmp_path.rglob("rows*.jsonl"))
