"""KVzip against a naive one that reads every pass as a sequence of its own, in float64."""

import pytest
import torch

import naive_passes
from kept_sets import attention_of, cached, heads_of, kept_sets, without_ties
from methods.ada_kv import AdaKV
from methods.kvzip import LEVELS, KVzip
from methods.kvzip_plus import KVzipPlus
from pvcbench.engine.evict import Cell
from pvcbench.errors import UserError
from pvcbench.policy import OutOfReach
from tiny import WRITER, engine, prompt, unmodified

pytestmark = pytest.mark.usefixtures("inference")
TEXTS = {"request": "go", "later_request": "on "}
METHODS = {level: KVzip(level, chunk=23, quoted=3, **TEXTS) for level in LEVELS}
METHODS["kvpress"] = KVzip("layer", chunk=23, quoted=3, sinks=2, **TEXTS)


def naive_scores(family, ids, head, sinks, method):
    """Scores by layer and KV head of one sample, [1, tokens]: of tokens that no pass is about, none."""
    texts = [list(WRITER.encode(text)) for text in (method.request, method.later_request, WRITER.after)]
    tokens, layers = ids.shape[1], None
    for said, first, last in naive_passes.kvzip_passes(ids[0].tolist(), head, method.chunk, method.quoted, *texts):
        attention = attention_of(family, torch.cat((ids, torch.tensor([said])), 1))
        found = [naive_passes.repeated(one[0], heads_of(family), tokens, first, last, sinks) for one in attention]
        layers = [[{} for _ in heads] for heads in found] if layers is None else layers
        for heads, own in zip(layers, found, strict=True):
            for known, more in zip(heads, own, strict=True):
                known.update(more)
    return layers


def test_kvzip_keeps_what_the_naive_one_keeps():
    """Every level, in one prefill: the entries before the context stay, the others by their highest weight."""
    cut = []

    def check(family, ids, budget):
        head, budget = 5, min(max(budget, 8), ids.shape[1])
        host, ids = engine(family), ids[:1]
        shape = host.shape(ids.shape[1], head)
        prefill = host.prefill(ids, list(METHODS.values()), shape=shape)
        for name, method in METHODS.items():
            sinks = head if method.sinks is None else method.sinks
            layers = naive_scores(family, ids, head, sinks, method)
            for heads in layers if sinks < head else ():  # what stands between goes first, and the first of it last
                for own in heads:
                    own.update({j: float("-inf") for j in range(sinks, head)})
            [group] = host.fork(prefill, [Cell("x", method.resolve(budget, shape), budget)], 0)
            expected = naive_passes.kvzip(method.level, layers, budget, ids.shape[1], sinks)
            for layer, heads in enumerate(expected):
                assert kept_sets(group, layer)[0] == heads, (family, name, layer)
            sizes = [len(head) for heads in expected for head in heads]
            assert sum(sizes) == budget * len(sizes)
            cut.append(len(set(sizes)) > 1)

    without_ties(20, check)
    assert sum(cut) > 50


def test_one_chunk_is_the_softmax_over_all_keys():
    """With nothing before the context; several chunks are weighed among fewer keys, which gives each more."""
    host, ids = engine("llama"), prompt(40, seed=2)
    whole, parts = KVzip(chunk=40, **TEXTS), KVzip(chunk=10, quoted=3, **TEXTS)
    found = host.prefill(ids, [whole, parts]).observer.scores
    said = list(WRITER.encode("go")) + list(WRITER.encode(WRITER.after)) + ids[0].tolist()
    attention = attention_of("llama", torch.cat((ids, torch.tensor([said])), 1))
    for layer, weights in enumerate(attention):
        highest = weights[0, :, 40:, :40].unflatten(0, (heads_of("llama"), -1)).amax((1, 2))
        torch.testing.assert_close(found[whole][layer][0], highest, rtol=1e-9, atol=1e-12)
    assert all(one.mean() > 1.1 * other.mean() for one, other in zip(found[parts], found[whole], strict=True))


def test_a_head_may_lose_everything():
    """One ranking has no floor; what is left decodes, whatever a head has."""
    host, ids, method = engine("qwen2"), prompt(60, seed=3), METHODS["head"]
    [group] = host.fork(host.prefill(ids, [method]), [Cell("x", method, 20)], 3)
    sizes = {int(length) for layer in group.layers for length in layer.lengths[0]}
    assert {0, 60} <= sizes
    tokens, _ = host.greedy([group], feed=None, new_tokens=3, ends=())
    assert len(tokens[0][0]) == 3


def test_what_makes_no_sense_is_refused():
    for settings in ({"level": "heads"}, {"chunk": 0}, {"quoted": -1}, {"sinks": -1}):
        with pytest.raises(UserError, match="kvzip: "):
            KVzip(**settings)
    shape = engine("llama").shape(40, head=6)
    with pytest.raises(OutOfReach, match="6 first entries"):
        KVzip().resolve(6, shape)
    assert KVzip().protects(20, shape) == (6, 0) and KVzip(sinks=4).protects(20, shape) == (4, 0)
    with pytest.raises(UserError, match="what wraps it must pass on"):
        engine("llama").prefill(prompt(40), [AdaKV(METHODS["uniform"])])


def test_kvzip_plus_counts_what_values_write_and_rows_read():
    """Each weight by |v W| and 1 / |x|, both of the dense model's own modules."""
    host, ids = engine("llama"), prompt(30, seed=5)
    method = KVzipPlus(chunk=30, **TEXTS)
    found = host.prefill(ids, [method]).observer.scores[method]
    said = list(WRITER.encode("go")) + list(WRITER.encode(WRITER.after)) + ids[0].tolist()
    both, model, given = torch.cat((ids, torch.tensor([said])), 1), unmodified("llama"), {}
    attentions = [layer.self_attn for layer in model.model.layers]

    def note(module, args, kwargs):
        given[module.layer_idx] = kwargs["hidden_states"]

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in attentions]
    model(both)
    for hook in hooks:
        hook.remove()
    weights = attention_of("llama", both)
    for layer, (_, values) in enumerate(cached("llama", ids)):
        rows, heads, size = weights[layer][0, :, 30:, :30], weights[layer].shape[1], values.shape[-1]
        lengths = given[layer][0, 30:].norm(dim=-1)
        for kv_head in range(2):
            best = torch.zeros(30, dtype=torch.float64)
            for head in range(kv_head * heads // 2, (kv_head + 1) * heads // 2):
                part = attentions[layer].o_proj.weight[:, head * size : (head + 1) * size]
                written = torch.stack([(part @ value).norm() for value in values[0, kv_head]])
                best = torch.maximum(best, (rows[head] / lengths[:, None] * written).amax(0))
            torch.testing.assert_close(found[layer][0, kv_head], best, rtol=1e-9, atol=1e-12)
