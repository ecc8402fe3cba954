"""Methods that see more than attention over the prompt: queries before rotary embedding, and what comes after it."""

import pytest
import torch

import naive_scores
import pvcbench
from kept_sets import attention_of, cached, heads_of, kept_sets
from methods.expected_attention import ExpectedAttention
from methods.oracle import Oracle
from pvcbench.config import building, compose
from pvcbench.engine.evict import Cell
from pvcbench.engine.lookahead import foresee
from pvcbench.errors import UserError
from pvcbench.runs.rows import load_table
from tiny import engine, fork, prompt, unmodified

pytestmark = pytest.mark.usefixtures("inference")


def plain_queries(family, ids):
    """Queries of every layer before rotary embedding, [batch, heads, tokens, dim], by transformers' own modules."""
    model, found = unmodified(family), {}
    normed = hasattr(model.model.layers[0].self_attn, "q_norm")

    def watch(layer):
        def keep(module, args, output):
            found[layer] = (
                output
                if normed
                else output.unflatten(-1, (-1, module.out_features // model.config.num_attention_heads))
            )

        return keep

    attentions = [layer.self_attn for layer in model.model.layers]
    hooks = [(a.q_norm if normed else a.q_proj).register_forward_hook(watch(n)) for n, a in enumerate(attentions)]
    model(ids)
    for hook in hooks:
        hook.remove()
    return [found[layer].transpose(1, 2) for layer in range(len(attentions))]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "settings", [{}, {"covariance": False}, {"value_norm": False, "sinks": 0}], ids=["all", "mean", "bare"]
)
def test_expected_attention_is_the_naive_one(family, settings):
    """Scores to 1e-5 (the model's rotary tables are float32), kept sets exactly where no two scores are that close."""
    method, compared = ExpectedAttention(**({"horizon": 40} | settings)), 0
    frequencies = unmodified(family).model.rotary_emb.inv_freq.double()
    for seed in range(7):
        ids = prompt(30 + 7 * seed, 2, seed)
        group = fork(engine(family), ids, [Cell("x", method, 14)], 0)[0]
        queries, scores = plain_queries(family, ids), group.prefill.observer.scores[method]
        for layer, (keys, values) in enumerate(cached(family, ids)):
            sets, size = kept_sets(group, layer), keys.shape[1]
            for sample in range(2):
                grouped = queries[layer][sample].unflatten(0, (size, -1))
                for head in range(size):
                    parts = grouped[head], keys[sample, head], values[sample, head], frequencies, method.horizon
                    flags = method.sinks, method.covariance, method.value_norm
                    naive = naive_scores.expected_attention(*parts, *flags)
                    found = scores[layer][sample, head, method.sinks :]
                    torch.testing.assert_close(found.double(), naive, rtol=1e-5, atol=1e-9)
                    order = naive.sort(descending=True)
                    cut = 14 - method.sinks
                    if order.values[cut - 1] - order.values[cut] > 1e-4 * order.values[cut]:
                        best = set((order.indices[:cut] + method.sinks).tolist())
                        assert sets[sample][head] == best | set(range(method.sinks)), (layer, sample, head)
                        compared += 1
    assert compared > 40


def test_expected_attention_in_chunks_is_the_whole():
    """Queries add up over the chunks of a prefill."""
    ids, method = prompt(60, 2), ExpectedAttention(horizon=20)
    whole = engine("llama").prefill(ids, [method]).observer.scores[method]
    parts = engine("llama", chunk=17).prefill(ids, [method]).observer.scores[method]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("later, watched", [(7, 7), (12, 3)], ids=["answer", "question-and-answer"])
def test_an_oracle_keeps_what_the_tokens_to_come_look_at(family, later, watched):
    """The attention of the watched rows and of the one before them, summed per KV head over the prompt's entries."""
    host, method = engine(family), Oracle()
    for seed in range(4):
        ids, following = prompt(20, seed=seed), prompt(later, seed=seed + 10)
        prefill = foresee(host, ids, following, watched, [method])
        group = host.fork(prefill, [Cell("x", method, 8)], 0)[0]
        attention = attention_of(family, torch.cat((ids, following), 1))
        for layer in prefill.shape.evicted:
            rows = attention[layer][0, :, -watched - 1 :, :20].sum(1)
            grouped = rows.unflatten(0, (heads_of(family), -1)).sum(1)
            best = [naive_scores.best(dict(enumerate(head.tolist())), 8) for head in grouped]
            assert kept_sets(group, layer)[0] == best, (layer, seed)


def test_what_is_left_of_a_foreseen_prefill_is_the_prompt_s_own():
    """Logits, keys, values and positions are those of the plain prefill: the future chose, and left nothing else."""
    host, ids, method = engine("llama"), prompt(30, 2), Oracle()
    plain, seen = host.prefill(ids), foresee(host, ids, prompt(9, 2, seed=4), 9, [method])
    torch.testing.assert_close(seen.logits, plain.logits, rtol=1e-9, atol=1e-9)
    assert seen.shape == plain.shape and seen.observer.shape == plain.shape
    for one, other in zip(seen.layers, plain.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one.values, other.values, rtol=1e-9, atol=1e-9)
        assert torch.equal(one.positions, other.positions)


def test_oracles_run_where_there_is_something_to_read_and_are_refused_elsewhere(tmp_path):
    """The answer under both protocols of the needle, the continuation of a document; the other way round is refused."""

    def evaluate(task, method, **settings):
        options = {"results": str(tmp_path), "wandb__mode": "disabled", "limit": 2, "threads": 1, "budgets": [0.3, 1.0]}
        return pvcbench.evaluate("random", task, [method, "h2o"], **options | settings)

    for query_aware in (True, False):
        table = evaluate("needle", "oracle_answer", task__lengths=[600], query_aware=query_aware)
        assert set(table["method"]) == {"full", "oracle_answer", "h2o"} and not table["errors"].any()
        cells = table.set_index(["method", "budget"])
        assert cells.loc[("oracle_answer", "0.3"), "kept_fraction"] == pytest.approx(0.3, abs=0.01)
    short = {"task__prefix": 200, "task__continuation": 40}
    table = evaluate("perplexity", "oracle_future", **short)
    assert not table["errors"].any() and table["score"].notna().all()
    for task, method in (("needle", "oracle_future"), ("perplexity", "oracle_answer")):
        with pytest.raises(UserError, match=f"{method} does not support"):
            evaluate(task, method)


def test_a_leaking_reference_reads_the_answer(tmp_path, monkeypatch):
    """The tokens after the prompt are those of the first answer: seen by what the prefill is given."""
    given = []

    def watched(engine, ids, following, watched, methods, draws=None, reach=0):
        given.append((following.tolist(), watched))
        return foresee(engine, ids, following, watched, methods, draws, reach)

    monkeypatch.setattr("pvcbench.evaluation.shared_prefill.foresee", watched)
    options = {"results": str(tmp_path), "wandb__mode": "disabled", "limit": 1, "threads": 1, "budgets": [0.3]}
    pvcbench.evaluate("random", "needle", ["oracle_answer"], task__lengths=[600], **options)
    [(tokens, count)] = given
    rows = load_table(tmp_path)
    tokenizer = building.build(
        compose.composed(["model=random"]).model, "the model", device="cpu", dtype=None
    ).tokenizer
    assert tokenizer.decode(tokens[0]) == rows["answers"].iloc[0][0] and count == len(tokens[0])
