"""Every path of the product on one tiny model of each kind of today, from a folder, against the unmodified model.

The fast tier streams documents and measures sizes; the slow one (-m slow) runs every task with several methods.
"""

import functools
import json
import warnings

import pytest
import torch

from pvcbench.architectures import families
from pvcbench.config import building, compose
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.errors import UserError
from pvcbench.models import hub, random_weights
from pvcbench.runs import runner

KINDS = [
    "qwen3_next",
    "granitemoehybrid:rope",
    "lfm2",
    "gpt_oss",
    "gemma2",
    "llama4_text",
    "deepseek_v3",
    "longcat_flash",
    "gemma3_text",
]
METHODS = ["h2o", "pvc_kv", "streaming_llm_original_positions", "snapkv"]
HOLDING = ["h2o", "streaming_llm_original_positions", "tova", "random"]
LOOKED = ["task.tokens=[128]", "task.documents=1", "task.needles=1", "task.following=16"]
NEEDLE = ["task=needle", "task.lengths=[420]", "task.depths=[50]", "task.repeats=1", "task.max_new_tokens=6"]
PATHS = {  # settings and methods; budgets are half of what is compressed
    "needle": (NEEDLE, METHODS),
    "needle, context alone": ([*NEEDLE, "query_aware=false"], METHODS),
    "needle, held": ([*NEEDLE, "decode=hold", "refeed_last=true"], HOLDING),
    "continuation": (["task=perplexity", "task.prefix=256", "task.continuation=16", "task.documents=1"], METHODS),
    "blockwise": (["task=perplexity", "task.protocol=blockwise", "task.tokens=140", "task.documents=1"], HOLDING),
    "throughput": (["task=throughput", "task.prompts=[256]", "task.new_tokens=[4]", "task.repeats=1"], METHODS),
    "jsonl": (["task=jsonl", "task.max_new_tokens=6"], METHODS),
    "attention_consistency": (["task=attention_consistency", *LOOKED], []),
    "attention_patterns": (["task=attention_patterns", *LOOKED, "task.rows=8", "task.recent=16"], METHODS[2:]),
    "context_redundancy": (["task=context_redundancy", *LOOKED], []),
    "pivotal_roles": (["task=pivotal_roles", *LOOKED, "task.ahead=8", "task.stride=4", "task.splits=2"], []),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a family's tiny model, with a token for every byte."""

    @functools.cache
    def made(name: str) -> str:
        folder = tmp_path_factory.mktemp(name.replace(":", "_"))
        model = families.build(name)
        model.resize_token_embeddings(300)
        model.save_pretrained(folder)
        random_weights.byte_tokenizer().save_pretrained(folder)
        return str(folder)

    return made


@pytest.fixture(autouse=True)
def quiet():
    """Random weights answer nothing, and are not warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run(folder, results, *overrides, methods=()):
    """The rows of a run, by the path that the command line takes."""
    settings = ["model=hf", f"model.name={folder}", "threads=1", "wandb.mode=disabled", f"results={results}"]
    settings += ["budgets=[0.5]", *overrides] + ([f"method=[{','.join(methods)}]"] if methods else [])
    return runner.run(compose.composed(settings), figures=False).rows


def held_by(model, tokens: int) -> tuple[int, int]:
    """Bytes that transformers' own cache holds after a prompt: entries of layers that never slide, and all."""
    with torch.no_grad():
        cache = model(input_ids=families.prompt(tokens), use_cache=True).past_key_values
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    whole = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers if not getattr(layer, "is_sliding", False))
    entries = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    states = [getattr(layer, part, {}) for layer in cache.layers for part in ("conv_states", "recurrent_states")]
    return whole, entries + sum(state.nbytes for part in states for state in part.values() if state is not None)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.sampled(3)
def test_a_streamed_document_is_read_as_token_by_token(name, folder_of, tmp_path):
    """The full cache's likelihoods are the unmodified model's, and H2O's those of decoding step by step under hold."""
    settings = ["task=perplexity", "task.protocol=streaming", "task.tokens=140", "task.documents=1"]
    rows = run(folder_of(name), tmp_path, *settings, methods=["h2o"])
    assert rows["error"].isna().all()
    loaded = hub.hf(folder_of(name), "cpu", "float32")
    [ids] = read_documents(loaded, settings)
    with torch.no_grad():
        logits = loaded.model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    plain = -logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    nll = rows.set_index("method")["token_nll"]
    assert torch.tensor(nll["full"]).double() == pytest.approx(plain, abs=1e-3)
    engine = Engine(loaded.model)
    method = building.build_methods(compose.composed(["method=[h2o]"]).methods)["h2o"].resolve(70, engine.shape(140))
    slow, _ = engine.stream(ids, Cell("x", method, 70, True, share=0.5), draws=torch.zeros(1).long(), scan=False)
    engine.release()
    assert torch.tensor(nll["h2o"]) == pytest.approx(-slow.logprobs[0].float(), abs=1e-3)
    assert (torch.tensor(nll["h2o"]) - torch.tensor(nll["full"])).abs().max() > 1e-2


def read_documents(loaded, settings) -> list[torch.Tensor]:
    """The token ids of a task's samples."""
    task = building.build(compose.composed(settings).task, "the task")
    task.validate()
    task.prepare(loaded.prompter())
    return [torch.tensor([list(task.encode(task.sample(0, number)).ids)]) for number in range(task.size(0))]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.sampled(3)
def test_throughput_counts_the_bytes_that_a_cache_holds(name, folder_of, tmp_path):
    """The full cache's are those of transformers' own; half of the entries take half of their bytes, of two rows."""
    settings = ["task=throughput", "task.prompts=[96]", "task.new_tokens=[4]", "task.batches=[2]", "task.repeats=1"]
    rows = run(folder_of(name), tmp_path, *settings, methods=["h2o"])
    assert rows["error"].isna().all()
    whole, everything = held_by(hub.hf(folder_of(name), "cpu", "float32").model, 96)
    bytes_of = rows.set_index("method")["kv_bytes"]
    assert bytes_of["full"] == 2 * everything
    assert bytes_of["h2o"] == 2 * (everything - whole / 2)
    assert (rows["score"] > 0).all()
    full, carried = rows.set_index("method").loc["full"], rows["carried_bytes"].unique()
    grown = full["metrics"]["kv_bytes_end"] - full["kv_bytes"]
    assert len(carried) == 1 and grown >= 2 * 3 * whole / 96


def test_what_reads_tokens_one_by_one_is_refused_before_anything_is_measured(folder_of, tmp_path):
    settings = ["task=context_redundancy", *LOOKED]
    with pytest.raises(UserError, match="one by one only"):
        run(folder_of("jamba"), tmp_path, *settings)
    assert not list(tmp_path.rglob("rows*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", KINDS)
def test_every_path_gives_numbers(name, path, folder_of, tmp_path):
    """Every cell has its row and its size; the full cache answers as the unmodified model does."""
    settings, methods = PATHS[path]
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"context": "Tom has a red door. " * 20, "question": "Whose door?", "answers": ["Tom"]}))
    more = [f"task.path={own}"] if path == "jsonl" else []
    rows = run(folder_of(name), tmp_path / "results", *settings, *more, methods=methods)
    assert rows["error"].isna().all(), set(rows["error"].dropna())
    looked = rows[rows["method"].notna()]
    assert set(looked["method"]) == {*methods, *([] if "observed" in rows else ["full"])}
    cut = looked[~looked["reference"].astype(bool)]
    assert cut["kept_fraction"].between(0.45, 0.5).all() and (looked["evicted_layers"].map(len) > 0).all()
    if path.startswith("needle") or path == "jsonl":
        [answer] = looked[looked["method"] == "full"]["output"]
        assert answer == written(folder_of(name), [*settings, *more])


def written(folder: str, settings) -> str:
    """What the unmodified model's `generate` writes after the prompt of a task's only sample."""
    loaded = hub.hf(folder, "cpu", "float32")
    [ids] = read_documents(loaded, settings)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": list(loaded.ends) or None}
    found = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()
    return loaded.prompter().decode([token for token in found if token not in loaded.ends])
