"""CriticalKV, CriticalAdaKV, DefensiveKV, KVzap, Fast KVzip: kept sets as naive_output has them, and who is refused."""

import pytest
import torch
from safetensors.torch import save_file

import naive_output as naive
from kept_sets import attention_of, cached, heads_of, kept_sets, sets_of, without_ties
from methods.critical_ada_kv import CriticalAdaKV
from methods.critical_kv import CriticalKV
from methods.defensive_kv import DefensiveKV
from methods.expected_attention import ExpectedAttention
from methods.fast_kvzip import FastKVzip
from methods.kvzap import KVzap
from methods.pyramidkv import PyramidKV
from methods.snapkv import SnapKV
from methods.value_norm import ValueNorm
from naive_scores import ada, snapkv
from pvcbench.engine.evict import Cell
from pvcbench.policy import OutOfReach, Shape, UserError
from tiny import engine, prompt

pytestmark = pytest.mark.usefixtures("inference")
BASE, WINDOW = SnapKV(4, 3, "average"), 4


def alone(ids):
    """The samples of a batch one by one."""
    return [ids[row : row + 1] for row in range(len(ids))]


def norms_of(family, ids):
    """What values can write, as [layer][sample][head][token]."""
    pairs = zip(cached(family, ids), naive.matrices(family), strict=True)
    return [[naive.written(values[sample], outputs) for sample in range(len(ids))] for (_, values), outputs in pairs]


def snap(family, attention):
    """SnapKV's scores of one sample as means over the window's rows."""
    found = snapkv(attention.tolist(), heads_of(family), WINDOW, 3, "average")
    return [{j: score / WINDOW for j, score in own.items()} for own in found]


# ---------------------------------------------------------------------------------------------- CriticalKV


@pytest.mark.parametrize("quota", ["unprotected", "kvpress"])
def test_criticalkv_keeps_what_the_naive_one_keeps(quota):
    """Half of what the window leaves by attention, the rest by attention and norm; kvpress' quota is the smaller."""
    differs = 0

    def check(family, ids, budget):
        nonlocal differs
        kept, tokens = sets_of(CriticalKV(BASE, quota=quota), ids, family, budget), ids.shape[1]
        plain, norms = sets_of(BASE, ids, family, budget), norms_of(family, ids)
        stay = set(range(tokens - WINDOW, tokens))
        for layer, attention in enumerate(attention_of(family, ids)):
            for sample, sets in enumerate(kept[layer] if kept is not None else ()):
                scores, entries = snap(family, attention[sample]), min(budget, tokens)
                expected = [
                    naive.critical(own, norms[layer][sample][head], stay, entries, quota)
                    for head, own in enumerate(scores)
                ]
                assert sets == expected, (family, layer, sample)
                differs += sets != plain[layer][sample]

    without_ties(20, check)
    assert differs > 40


def test_criticalkv_takes_expected_attention():
    """Its first tokens stay, and its scores count without the value norm."""

    def check(family, ids, budget):
        host, base = engine(family), ExpectedAttention(16, value_norm=False)
        kept, norms = sets_of(CriticalKV(base), ids, family, budget), norms_of(family, ids)
        scores = host.prefill(ids, [base]).observer.scores[base]  # held to a naive one in test_scores.py
        for layer, sets in enumerate(kept):
            for sample, heads in enumerate(sets):
                for head, found in enumerate(heads):
                    own = dict(enumerate(scores[layer][sample, head].tolist()))
                    own = {j: score for j, score in own.items() if j >= 4}
                    mine = norms[layer][sample][head]
                    assert found == naive.critical(own, mine, set(range(4)), min(budget, ids.shape[1]), "unprotected")

    without_ties(20, check)


def test_critical_ada_kv_fills_ada_kvs_budgets_in_two_stages():
    """Head budgets by the scores alone; then both stages in each head."""

    def check(family, ids, budget):
        kept, tokens = sets_of(CriticalAdaKV(BASE), ids, family, budget), ids.shape[1]
        norms, stay = norms_of(family, ids), set(range(tokens - WINDOW, tokens))
        for layer, attention in enumerate(attention_of(family, ids)):
            for sample, sets in enumerate(kept[layer] if kept is not None else ()):
                scores = snap(family, attention[sample])
                counts = ada(scores, min(budget, tokens), WINDOW, tokens, 0.2)
                expected = [
                    naive.critical(own, norms[layer][sample][head], stay, count, "unprotected")
                    for head, (own, count) in enumerate(zip(scores, counts, strict=True))
                ]
                assert sets == expected, (family, layer, sample)

    without_ties(20, check)


def test_kvpress_quota_is_filled_by_the_window_up_to_twice_its_size():
    """With 64 entries in the window and 129 to keep, nothing before it is chosen by attention alone."""
    ids, base = prompt(200, 1, seed=8), SnapKV(64, 5, "average")
    kept = sets_of(CriticalKV(base, quota="kvpress"), ids, "llama", 129)
    assert kept == sets_of(CriticalKV(base, first_stage=0.0), ids, "llama", 129)
    assert kept != sets_of(CriticalKV(base), ids, "llama", 129)
    more = sets_of(CriticalKV(base, quota="kvpress"), ids, "llama", 170)
    assert more != sets_of(CriticalKV(base, first_stage=0.0), ids, "llama", 170)


# ---------------------------------------------------------------------------------------------- DefensiveKV


@pytest.mark.parametrize("bias", ["code", "window"])
@pytest.mark.parametrize("pool", ["layer", "model"])
def test_defensivekv_keeps_what_the_naive_one_keeps(bias, pool):
    """Worst cases times what values write, a sure first stage, and one budget for the heads of a layer or of all."""
    method = DefensiveKV(WINDOW, 3, bias=bias, pool=pool)

    def check(family, ids, budget):
        tokens, heads = ids.shape[1], heads_of(family)
        for one in alone(ids)[:1] if budget > WINDOW else ():
            kept, norms = sets_of(method, one, family, budget), norms_of(family, one)
            free, stay = min(budget, tokens) - WINDOW, set(range(tokens - WINDOW, tokens))
            scores = [
                naive.defensive(attention[0], norms[layer][0], WINDOW, 3, budget - WINDOW, bias)
                for layer, attention in enumerate(attention_of(family, one))
            ]
            if pool == "model":
                chosen = naive.together([own for layer in scores for own in layer], free * heads * len(scores))
            else:
                chosen = [own for layer in scores for own in naive.together(layer, free * heads)]
            assert [sets for [layer] in kept for sets in layer] == [stay | own for own in chosen], family

    without_ties(20, check)


def test_defensivekv_spreads_a_layers_budget_and_the_layer_variant_the_whole():
    """Sums are the budget's: of each layer, or of all layers together."""
    ids, tokens = prompt(80, 1, seed=3), 30
    sizes = {
        pool: [
            [len(head) for head in layer[0]] for layer in sets_of(DefensiveKV(4, 3, pool=pool), ids, "llama", tokens)
        ]
        for pool in ("layer", "model")
    }
    assert [sum(layer) for layer in sizes["layer"]] == [2 * tokens] * 4
    whole = [sum(layer) for layer in sizes["model"]]
    assert sum(whole) == 8 * tokens and len(set(whole)) > 1


# ---------------------------------------------------------------------------------------------- KVzap, Fast KVzip


def sizes_of(family):
    """Layers, width of the hidden states, KV heads and query heads to each."""
    config = engine(family).config
    heads = config.num_key_value_heads
    return config.num_hidden_layers, config.hidden_size, heads, config.num_attention_heads // heads


def zap(family, kind):
    """Random weights of a KVzap model in the names of its files."""
    generator = torch.Generator().manual_seed(len(family))
    layers, width, heads, _ = sizes_of(family)
    shapes = {"": (heads, width)} if kind == "linear" else {"0.": (24, width), "2.": (heads, 24)}
    found = {}
    for layer in range(layers):
        for name, shape in shapes.items():
            found[f"layers.{layer}.{name}weight"] = torch.randn(shape, generator=generator, dtype=torch.float64) / 4
            found[f"layers.{layer}.{name}bias"] = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    return found


def gates(family):
    """Random gates of Fast KVzip, 16 wide, with 16 learnt keys."""
    generator = torch.Generator().manual_seed(7 + len(family))
    layers, width, heads, group = sizes_of(family)
    shapes = {"q_proj.weight": (heads * group * 16, width), "q_proj.bias": (heads * group * 16,)}
    shapes |= {"k_proj.weight": (heads * 16, width), "q_norm.weight": (16,), "k_norm.weight": (16,)}
    shapes |= {"k_base": (heads, 1, 16, 16), "b": (heads, 1, group)}
    return [
        {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(layers)
    ]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_kvzap_keeps_what_the_naive_one_keeps(kind, tmp_path):
    """For a budget the best predictions of all layers and heads, and the last tokens."""
    for family in ("llama", "qwen2", "qwen3"):
        save_file(zap(family, kind), tmp_path / family)

    def check(family, ids, budget):
        tokens = ids.shape[1]
        for one in alone(ids):
            kept = sets_of(KVzap(tmp_path / family, recent=5), one, family, budget)
            scores = []
            for layer, hidden in enumerate(naive.attention_inputs(family, one)):
                scores += naive.kvzap(zap(family, kind), layer, hidden[0])
            older = [{j: own[j] for j in range(tokens - 5)} for own in scores]
            chosen = naive.together(older, (min(budget, tokens) - 5) * len(older))
            stay = set(range(tokens - 5, tokens))
            assert [sets for [layer] in kept for sets in layer] == [stay | own for own in chosen], family

    without_ties(10, check)


def test_kvzap_by_threshold_keeps_what_lies_above(tmp_path):
    """No budget: its size is what comes of it."""
    save_file(zap("llama", "mlp"), tmp_path / "zap")
    host, ids, method = engine("llama"), prompt(60, 1, seed=5), KVzap(tmp_path / "zap", recent=6, threshold=0.2)
    sizes = set()
    assert method.own_budget is not None and method.resolve(None, host.shape(60)) == method
    [group] = host.fork(host.prefill(ids, [method]), [Cell("x", method, None)], 0)
    for layer, hidden in enumerate(naive.attention_inputs("llama", ids)):
        scores = naive.kvzap(zap("llama", "mlp"), layer, hidden[0])
        expected = [{j for j, score in enumerate(own) if score >= 0.2 or j >= 54} for own in scores]
        assert kept_sets(group, layer) == [expected]
        sizes |= set(map(len, expected))
    assert len(sizes) > 4


@pytest.mark.parametrize("pool", ["model", "layer"])
def test_fast_kvzip_keeps_what_the_naive_one_keeps(pool, tmp_path):
    """The best of all gates, or of a layer's; the first 4 and the last stay."""
    for family in ("llama", "qwen2", "qwen3"):
        named = {f"module.{n}.{name}": part for n, gate in enumerate(gates(family)) for name, part in gate.items()}
        save_file(named, tmp_path / family)

    def check(family, ids, budget):
        tokens, heads = ids.shape[1], heads_of(family)
        for one in alone(ids)[:1]:
            kept = sets_of(FastKVzip(tmp_path / family, pool=pool), one, family, budget)
            inputs = zip(gates(family), naive.attention_inputs(family, one), strict=True)
            scores = [naive.fast_kvzip(gate, hidden[0]) for gate, hidden in inputs]
            older = [[{j: own[j] for j in range(4, tokens - 1)} for own in layer] for layer in scores]
            pools = [[own for layer in older for own in layer]] if pool == "model" else older
            free = min(budget, tokens) - 5
            chosen = [own for pool_ in pools for own in naive.together(pool_, free * len(pool_))]
            stay = {0, 1, 2, 3, tokens - 1}
            assert [sets for [layer] in kept for sets in layer] == [stay | own for own in chosen], (family, heads)

    without_ties(10, check)


def test_fast_kvzip_protects_a_share_of_the_end():
    """At least one token, two in a hundred, and 4,096 of long prompts; 40 tokens are not all protected."""
    method = FastKVzip("x")
    for tokens, last in ((40, 1), (49, 1), (100, 2), (31_999, 639), (32_000, 4096)):
        assert method.protects(None, Shape(tokens, 4, (0, 1, 2, 3))) == (4, last)


# ---------------------------------------------------------------------------------------------- refusals


def test_files_of_another_model_are_refused(tmp_path):
    """Layers, widths and KV heads must be the model's; and names those of the method's files."""
    save_file(zap("qwen2", "linear"), tmp_path / "zap")
    with pytest.raises(UserError, match=r"made for another model: 4 layers .* 4 KV heads; .* 2 KV heads"):
        engine("llama").prefill(prompt(30), [KVzap(tmp_path / "zap", recent=5)])
    with pytest.raises(UserError, match=r"no gates of Fast KVzip: it has no tensor 0\.q_proj.weight"):
        FastKVzip(tmp_path / "zap").validate("methods.x")
    named = {f"{n}.{name}": part for n, gate in enumerate(gates("qwen2")) for name, part in gate.items()}
    save_file(named, tmp_path / "gates")
    FastKVzip(tmp_path / "gates").validate("methods.x")
    with pytest.raises(UserError, match=r"no KVzap model: it has no tensor 'layers\.0\.0\.weight'"):
        KVzap(tmp_path / "gates").validate("methods.x")
    with pytest.raises(UserError, match="made for another model"):
        engine("llama").prefill(prompt(30), [FastKVzip(tmp_path / "gates")])


def test_what_makes_no_sense_is_refused():
    """Settings without a meaning are the user's error; budgets below what always stays are out of reach."""
    for make in (
        lambda: CriticalKV(first_stage=1.5),
        lambda: CriticalKV(quota="all"),
        lambda: CriticalKV(ExpectedAttention()),
        lambda: CriticalKV(ValueNorm(SnapKV())),
        lambda: CriticalKV(PyramidKV()),
        lambda: CriticalAdaKV(floor=2.0),
        lambda: DefensiveKV(bias="none"),
        lambda: DefensiveKV(kernel=2),
        lambda: KVzap("x", recent=0),
        lambda: FastKVzip("x", pool="head"),
    ):
        with pytest.raises(UserError):
            make()
    shape = Shape(300, 4, (0, 1, 2, 3))
    least = {CriticalKV(): 33, CriticalAdaKV(): 33, DefensiveKV(): 33, KVzap("x"): 128, FastKVzip("x"): 10}
    for method, entries in least.items():
        with pytest.raises(OutOfReach):
            method.resolve(entries - 1, shape)
        assert method.resolve(entries, shape) is not None
