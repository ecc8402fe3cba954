"""`pvcbench conform`: the cases hold what naive float64 methods keep, and implementations are told what they are."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import naive
import naive_published
import naive_scores
from pvcbench.cli import conform
from pvcbench.cli.main import main
from pvcbench.config import compose
from pvcbench.conformance import judging
from pvcbench.conformance.cases import BASE, case, cases
from pvcbench.conformance.golden import read, write
from pvcbench.conformance.judging import compared, judge, mask_of
from pvcbench.errors import UserError

pytestmark = pytest.mark.usefixtures("inference")
PAGE = Path(__file__).parents[2] / "docs" / "guide" / "conformance.md"


@pytest.fixture(scope="module")
def golden():
    """All cases with what every method of ours keeps."""
    with torch.inference_mode():
        return conform.computed()


@pytest.fixture(scope="module")
def file(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "cases.safetensors"
    write(golden, path)
    return path


# ---------------------------------------------------------------------------------------------- the naive twins


def attention(one, layer, sample):
    """Causal softmax attention of all rows, [heads, tokens, tokens]."""
    query, key = one.queries[layer][sample], one.keys[layer][sample]
    logits = query @ key.repeat_interleave(len(query) // len(key), 0).mT / query.shape[-1] ** 0.5
    return logits.masked_fill(torch.ones(logits.shape[1:], dtype=torch.bool).triu(1), float("-inf")).softmax(-1)


def snap(window, kernel, pooling, sizes=None):
    """SnapKV's rule, with one size for all heads or what `sizes(scores, budget, tokens)` says."""

    def kept(one, layer, sample, budget):
        scores = naive_scores.snapkv(attention(one, layer, sample).tolist(), one.keys.shape[2], window, kernel, pooling)
        counts = [budget] * len(scores) if sizes is None else sizes(scores, budget, one.tokens, layer)
        return naive_scores.with_window(scores, counts, one.tokens, window)

    return kept


def by_head(score, stay=lambda one, budget: set()):
    """The best of each KV head beside what stays, by scores of its keys, values and the attention of its group."""

    def kept(one, layer, sample, budget):
        found, group = [], one.queries.shape[2] // one.keys.shape[2]
        seen = attention(one, layer, sample)
        for head in range(one.keys.shape[2]):
            own, still = seen[head * group : (head + 1) * group], stay(one, budget)
            parts = one.keys[layer][sample, head], one.values[layer][sample, head], own
            scores = {j: value for j, value in score(*parts).items() if j not in still}
            found.append(still | naive_scores.best(scores, budget - len(still)))
        return found

    return kept


def summed(own, mean=False):
    """What every entry received of all rows and heads, or the mean over those that see it."""
    tokens = own.shape[-1]
    return {j: value / (tokens - j if mean else 1) for j, value in enumerate(own.sum((0, 1)).tolist())}


def lag(sinks, size):
    def kept(one, layer, sample, budget):
        found = []
        for key, value in zip(one.keys[layer][sample], one.values[layer][sample], strict=True):
            ranks, stay = naive_published.lagkv(key.tolist(), value.tolist(), sinks, size)
            found.append(None if len(stay) > budget else stay | naive_scores.best(ranks, budget - len(stay)))
        return None if None in found else found

    return kept


def chunks(one, layer, sample, budget):
    scores = naive_scores.snapkv(attention(one, layer, sample).tolist(), one.keys.shape[2], 32, 7, "max")
    scores = naive_published.chunked(scores, 20)
    return naive_scores.with_window([scores], [budget], one.tokens, 32) * one.keys.shape[2]


def cake(one, layer, sample, budget):
    seen = [attention(one, other, sample) for other in range(len(one.keys))]
    preferences = [naive_published.cake_preference(own, 32, 1.0, 1.0) for own in seen]
    sizes = naive_published.cake_sizes(preferences, len(seen) * (budget - 32), one.tokens - 32)
    scores = naive_published.cake(seen[layer], one.keys.shape[2], 32, 5, 200.0)
    return naive_scores.with_window(scores, [sizes[layer] + 32] * len(scores), one.tokens, 32)


def expected(one, layer, sample, budget):
    half = one.keys.shape[-1] // 2
    frequencies = BASE ** -(torch.arange(half, dtype=torch.float64) / half)
    grouped = one.plain_queries[layer][sample].unflatten(0, (one.keys.shape[2], -1))
    found = []
    for queries, key, value in zip(grouped, one.keys[layer][sample], one.values[layer][sample], strict=True):
        scores = naive_scores.expected_attention(queries, key, value, frequencies, 512, 4)
        found.append(set(range(4)) | naive_scores.best(dict(enumerate(scores.tolist(), 4)), budget - 4))
    return found


def tova(one, layer, sample, budget):
    rule = naive_scores.TOVA(budget, one.keys.shape[2])
    rule.prefill(attention(one, layer, sample))
    return rule.kept


def by_group(one, layer, sample, budget):
    """SnapKV as KVCache-Factory runs it for KV heads: a group's mean first, then the pooling."""
    means = attention(one, layer, sample).unflatten(0, (one.keys.shape[2], -1)).mean(1)
    scores = naive_scores.snapkv(means.tolist(), len(means), 8, 7, "max")
    return naive_scores.with_window(scores, [budget] * len(scores), one.tokens, 8)


def counted(one, layer, sample, budget):
    scores = naive_published.scissorhands(attention(one, layer, sample), one.keys.shape[2], 400)
    scores = [{j: own[j] for j in range(one.tokens - 10)} for own in scores]
    return naive_scores.with_window(scores, [budget] * len(scores), one.tokens, 10)


def odd(one, layer, sample, inner):
    """Leverage by a sketch of the test's own: the cases hold what does not depend on it."""
    sketch = torch.randn(one.keys.shape[-1], 48, generator=torch.Generator().manual_seed(layer)).double() / 48**0.5
    return [naive_published.leverage(key[inner], sketch, 0.01) for key in one.plain_keys[layer][sample]]


def attended(one, layer, sample, inner):
    grouped = one.queries[layer][sample].unflatten(0, (one.keys.shape[2], -1))
    parts = zip(grouped, one.keys[layer][sample], one.values[layer][sample], strict=True)
    return [naive_published.received(q[:, inner], k[inner], v[inner], 256) for q, k, v in parts]


def half_of_compactor(scored):
    def kept(one, layer, sample, budget):
        scores = scored(one, layer, sample, slice(0, one.tokens))
        return [naive_scores.best(dict(enumerate(own)), budget) for own in scores]

    return kept


def compactor(one, layer, sample, budget):
    inner, beta = slice(8, one.tokens - 4), 1 - budget / one.tokens
    parts = (naive_published.standard(scored(one, layer, sample, inner)) for scored in (odd, attended))
    stay, found = {*range(8), *range(one.tokens - 4, one.tokens)}, []
    for unlike, seen in zip(*parts, strict=True):
        scores = {j: beta * a + b for j, (a, b) in enumerate(zip(unlike, seen, strict=True), 8)}
        found.append(stay | naive_scores.best(scores, budget - len(stay)))
    return found


def newest_half(one, budget):
    return set(range(one.tokens - budget // 2, one.tokens))


def pyramid(scores, budget, tokens, layer):
    return [naive_scores.pyramid(budget, tokens, 8, 20, 2)[layer]] * len(scores)


def ada(scores, budget, tokens, layer):
    return naive_scores.ada(scores, budget, 32, tokens, 0.2)


def valued(keys, values, own):
    return {j: mass * naive_scores.norm(values[j].tolist()) for j, mass in summed(own).items()}


def cur(keys, values, own):
    return dict(enumerate(naive_published.curdkv(keys.tolist(), values.tolist(), 16)))


def sinks(one, budget):
    return set(range(4))


NAIVE = {
    "snapkv": snap(32, 7, "max"),
    "snapkv_original": snap(32, 5, "average"),
    "snapkv_kvpress": snap(64, 5, "average"),
    "snapkv_factory": by_group,
    "scissorhands": counted,
    "leverage_score": half_of_compactor(odd),
    "non_causal_attention": half_of_compactor(attended),
    "compactor": compactor,
    "pyramidkv": snap(8, 7, "max", pyramid),
    "ada_snapkv": snap(32, 7, "max", ada),
    "h2o": by_head(lambda keys, values, own: summed(own), newest_half),
    "h2o_value_norm": by_head(valued, newest_half),
    "h2o_mean": by_head(lambda keys, values, own: summed(own, True)),
    "knorm": by_head(lambda keys, values, own: {j: -naive_scores.norm(key) for j, key in enumerate(keys.tolist())}),
    "keydiff": by_head(lambda keys, values, own: naive_scores.keydiff(dict(enumerate(keys.tolist())))),
    "curdkv": by_head(cur, sinks),
    "streaming_llm": lambda one, layer, sample, budget: [naive.streaming(one.tokens, budget, 4)] * one.keys.shape[2],
    "tova": tova,
    "lagkv": lag(4, 128),
    "chunkkv": chunks,
    "cake": cake,
    "expected_attention": expected,
}
SLOW = ("non_causal_attention", "compactor")  # row by row in Python


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.sampled(8)
def test_the_cases_hold_what_the_naive_method_keeps(golden, name):
    """Every set of some cases with all shapes of heads, and of a long one; entries of equal worth aside."""
    compared_sets, numbers = 0, (0, 2) if name in SLOW else (0, 1, 2, 3, 16)
    for one in (found for number, found in enumerate(cases()) if number in numbers):
        for budget in one.budgets:
            level = golden.tensors.get(f"{one.name}/budget_{budget}/{name}")
            if level is None:
                continue
            mask = torch.zeros(level.shape, dtype=torch.bool)
            for layer in range(level.shape[0]):
                for sample in range(level.shape[1]):
                    for head, kept in enumerate(NAIVE[name](one, layer, sample, budget)):
                        mask[layer, sample, head, sorted(kept)] = True
            same, overlap = compared(mask, level)
            assert bool(same.all()) and bool((overlap == 1).all()), (one.name, budget)
            compared_sets += same.numel()
    assert compared_sets >= (12 if name in SLOW else 20)


# ---------------------------------------------------------------------------------------------- the file


def test_the_file_is_small_and_says_what_is_in_it(golden, file):
    """Twenty cases, two samples in some; every named variant is in it, or left out with a reason."""
    known = read(file)
    assert file.stat().st_size < 5e6 and dict(known.variants) == dict(golden.variants)
    assert len({name.partition("/")[0] for name in known.tensors}) == 20
    assert set(known.variants) | set(known.left_out) == set(compose.options("method"))
    assert len(known.variants) >= 25 and set(NAIVE) <= set(known.variants)
    assert {known.tensors[f"{one.name}/keys"].shape[1] for one in cases()} == {1, 2}
    assert all(torch.equal(tensor, golden.tensors[name]) for name, tensor in known.tensors.items())
    assert known.left_out["full"] == "they take no budget" and "draws" in known.left_out["random"]
    assert known.variants["snapkv_kvpress"] == {
        "class": "SnapKV", "settings": {"window": 64, "kernel": 5, "pooling": "average", "pool_after": "heads"},
    }  # fmt: skip


def test_a_case_is_a_function_of_its_number():
    one, same, other = case(3, 50, 1, 4, 2, 4), case(3, 50, 1, 4, 2, 4), case(4, 50, 1, 4, 2, 4)
    assert torch.equal(one.queries, same.queries) and not torch.equal(one.queries, other.queries)
    lengths = one.queries.norm(dim=-1), one.plain_queries.norm(dim=-1)
    torch.testing.assert_close(*lengths, rtol=1e-12, atol=1e-12)  # a rotation


# ---------------------------------------------------------------------------------------------- implementations


def example(folder, change=lambda text: text):
    """Runs the code of the guide, changed, in a folder with the cases; what it keeps."""
    [block] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    text = change(block).replace('"cases.safetensors"', repr(str(folder / "cases.safetensors")))
    made = folder / "mine.safetensors"
    exec(compile(text.replace('"mine.safetensors"', repr(str(made))), "guide", "exec"), {"__name__": "guide"})
    return made


CHANGES = {
    "kvpress": (lambda text: text, "it is snapkv_kvpress", 0),
    "official": (
        lambda text: text.replace("window=64", "window=32").replace("> 64", "> 32"),
        "it is snapkv_original",
        0,
    ),
    "unscaled": (
        lambda text: text.replace(" / dim**0.5", ""),
        "it is no published variant of snapkv; the nearest is",
        1,
    ),
    "wide": (
        lambda text: text.replace("kernel=5", "kernel=9"),
        "it is no published variant of snapkv; the nearest is",
        1,
    ),
    "partly": (
        lambda text: text.replace("> 64", "> 80"),
        "it is snapkv_kvpress, as far as the sets tell that were answered",
        1,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_implementation_is_told_what_it_is(name, file, capsys):
    """The guide's own code, and the same with one number or one operation changed."""
    change, told, code = CHANGES[name]
    made = example(file.parent, change)
    assert main(["conform", "check", str(made), "--method", "snapkv", "--golden", str(file)]) == code
    lines = capsys.readouterr().out.splitlines()
    assert told in lines[-1] and len(lines) >= 5
    assert (lines[-1] == told) == (name in ("kvpress", "official", "partly"))


def test_code_of_another_method_is_told_so(golden):
    """What others call H2O is mean attention; a mask and indices are the same answer."""
    kept, indices = {}, {}
    for one in cases():
        grouped = torch.stack(
            [torch.stack([attention(one, layer, sample) for sample in range(one.keys.shape[1])]) for layer in range(2)]
        ).sum(-2)
        means = grouped.unflatten(2, (one.keys.shape[2], -1)).mean(3) / torch.arange(one.tokens, 0, -1)
        for budget in one.budgets:
            place = f"{one.name}/budget_{budget}"
            indices[place] = means.topk(budget).indices
            kept[place] = torch.zeros(means.shape, dtype=torch.bool).scatter(-1, indices[place], True)
    verdict = judge(golden, "h2o", kept)
    assert verdict.said == "it is no published variant of h2o: it is h2o_mean" and not verdict.right
    assert judge(golden, "h2o", indices) == verdict and judge(golden, "h2o_mean", indices).right
    [h2o] = [one for one in verdict.kin if one.variant == "h2o"]
    assert 0.3 < h2o.overlap < 0.95 and h2o.same < h2o.sets == h2o.all_sets
    everything = {place: torch.ones_like(mask) for place, mask in kept.items()}
    assert not any(one.is_it for one in judge(golden, "h2o", everything).kin)


def test_entries_of_equal_worth_may_be_others():
    """As many of them as ours keeps; neither more, nor one that is worth less."""
    level = torch.tensor([[[[1, 2, 3, 3, 0]]]], dtype=torch.uint8)
    for mask, same, share in (([1, 1, 0, 0, 0], True, 1.0), ([1, 0, 0, 1, 0], True, 1.0), ([1, 0, 0, 0, 1], False, 0.5),
                              ([1, 1, 1, 0, 0], False, 2 / 3), ([0, 1, 1, 0, 0], False, 0.5)):  # fmt: skip
        found = compared(torch.tensor([[[mask]]]).bool(), level)
        assert (found[0].item(), found[1].item()) == (same, pytest.approx(share))


def test_files_that_do_not_fit_are_one_line(golden, file, tmp_path, capsys):
    """Wrong names, shapes and kinds of numbers; methods without cases; files that are none."""
    place = next(iter(golden.asked)).rpartition("/")[0]
    like = golden.asked[f"{place}/tova"]
    for given, told in (
        (torch.zeros(3, dtype=torch.bool), "a mask is"),
        (torch.zeros(like.shape), "found float32"),
        (torch.full((*like.shape[:-1], 2), 1), "stands twice"),
        (torch.full((*like.shape[:-1], 2), 10**6), "indices must lie within"),
    ):
        with pytest.raises(UserError, match=told) as error:
            mask_of(place, given, like)
        assert "\n" not in str(error.value)
    for kept, method, told in (
        ({}, "tova", "the file holds nothing"),
        ({"case_99/budget_1": like}, "tova", "what is 'case_99/budget_1'"),
        ({place: like}, "random", "random has no cases, as what they keep depends on random draws"),
        ({place: like}, "tovva", "unknown method 'tovva'"),
    ):
        with pytest.raises(UserError, match=told):
            judge(golden, method, kept)
    (tmp_path / "text").write_text("no tensors")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    for words, told in (
        (["check", str(tmp_path / "none"), "--method", "tova"], "there is no file"),
        (["check", str(tmp_path / "text"), "--method", "tova", "--golden", str(file)], "cannot read"),
        (
            ["check", str(file), "--method", "tova", "--golden", str(tmp_path / "other.safetensors")],
            "is no golden file",
        ),
        (["make", "--out", str(file)], "--out must name a new .safetensors file"),
    ):
        assert main(["conform", *words]) == 2
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1
    assert load_file(file).keys() == golden.tensors.keys()


def test_the_table_names_the_nearest_of_other_methods(golden):
    """Where it is no variant, three others stand below the method's own."""
    place = next(iter(golden.asked)).rpartition("/")[0]
    kept = {place: golden.asked[f"{place}/knorm"].flip(-1) == 1}
    verdict = judge(golden, "snapkv", kept)
    assert sum("(another method)" in line for line in verdict.lines) == judging.LISTED
    assert "it is no published variant of snapkv; the nearest is" in verdict.lines[-1]
