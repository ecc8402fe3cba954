"""Passes on top of a prompt: exact in every kind of model, forgotten, shared, counted, and run for who asks alone."""

from dataclasses import dataclass, replace

import pytest
import torch

import families
import pvcbench
from kept_sets import attention_of, heads_of
from methods.knorm import Knorm
from methods.kvzip import KVzip
from pvcbench.config import building, compose
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.passes import PassCache
from pvcbench.errors import MethodError, UserError
from pvcbench.policy import Method, Pass
from tiny import WINDOW, build, engine, prompt

pytestmark = pytest.mark.usefixtures("inference")
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
ZIP = KVzip(chunk=13, quoted=3, request="go", later_request="on")
TOKENS, READ = 40, 9


@dataclass(frozen=True)
class Reads(Method):
    """Has parts of the prompt read again, each by its last tokens, and ranks them by the attention of these."""

    parts: tuple[tuple[int, int, int], ...] = ((0, 20, 0), (10, 35, 4))

    def passes(self, prompt):
        return [Pass(prompt.ids[:, last - READ : last], first, last, sinks) for first, last, sinks in self.parts]

    def scores(self, seen):
        total = torch.zeros_like(seen.positions, dtype=torch.float64)
        for _, _, weights in seen.rows.blocks():
            total += weights.unflatten(1, (seen.keys.shape[1], -1)).sum((2, 3))
        return total


class Other(Reads):
    """The same passes under another name."""


@pytest.mark.parametrize("name", families.REPRESENTATIVE)
@pytest.mark.parametrize("sizes", [[READ], [4, 3, 2]], ids=["whole", "in pieces"])
def test_a_pass_is_the_model_reading_on(name, sizes):
    """Logits after each piece equal the unmodified model's on both as one sequence; the prompt stays as it was."""
    if name == "qwen3_5_text" and len(sizes) > 1:
        pytest.skip("its recurrent layers read later tokens one by one")
    host, plain = families.hosted(name), families.built(name)
    ids = families.prompt(TOKENS + READ, 2, seed=3)
    with families.unrounded():  # as far as transformers' code is imported, as it is by now
        prefill, shown = host.prefill(ids[:, :TOKENS]), []
        states = [state.map(torch.clone) for state in prefill.states.values()]
        cache = PassCache(
            prefill, host.kernel, READ, lambda layer, query, own, rule, hidden: shown.append((layer, query.shape[2]))
        )
        logits = [host.call(part, cache) for part in ids[:, TOKENS:].split(sizes, 1)]
        expected = plain(input_ids=ids, use_cache=False).logits
    ends = torch.tensor(sizes).cumsum(0) + TOKENS - 1
    spread = expected.max() - expected.min()
    assert (torch.stack(logits, 1) - expected[:, ends]).abs().max() < 1e-9 * spread
    assert shown == [(layer, READ) for layer in prefill.shape.evicted]
    assert all(layer.keys.shape[2] == TOKENS for layer in prefill.layers)
    for old, state in zip(states, prefill.states.values(), strict=True):
        assert all(map(torch.equal, old.tensors(), state.tensors()))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral_sliding"])
def test_rows_are_weighed_among_first_keys_the_part_and_their_own(family):
    """As dense attention over everything, divided by what these keys have of it; also where layers slide."""
    host, ids, method = engine(family), prompt(TOKENS, 2, seed=5), Reads()
    found, shape = host.prefill(ids, [method]).observer.scores[method], host.shape(TOKENS)
    expected = [torch.full((2, heads_of(family), TOKENS), float("-inf"), dtype=torch.float64) for _ in shape.evicted]
    for first, last, sinks in method.parts:
        attention = attention_of(family, torch.cat((ids, ids[:, last - READ : last]), 1))
        among = [*range(sinks), *range(first, last), *range(TOKENS, TOKENS + READ)]
        for known, layer in zip(expected, shape.evicted, strict=True):
            weights = attention[layer][:, :, TOKENS:, among]
            weights = (weights / weights.sum(-1, keepdim=True))[..., sinks : sinks + last - first]
            own = weights.unflatten(1, (heads_of(family), -1)).sum((2, 3))
            known[..., first:last] = torch.maximum(known[..., first:last], own)
    assert TOKENS > WINDOW and len(found) == len(shape.evicted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_nothing_is_left_of_a_pass():
    """Entries, logits and other methods' scores are those of a prefill without passes, and so is what is decoded."""
    host, ids = engine("llama"), prompt(TOKENS, 2, seed=6)
    plain, read = host.prefill(ids, [Knorm()]), host.prefill(ids, [ZIP, Knorm(), Reads()])
    assert torch.equal(plain.logits, read.logits) and plain.shape == read.shape
    for one, other in zip(plain.layers, read.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)
        assert torch.equal(one.positions, other.positions)
    assert all(map(torch.equal, plain.observer.scores[Knorm()], read.observer.scores[Knorm()]))
    tokens = [
        host.greedy(host.fork(one, [Cell("x", Knorm(), 20)], 5), feed=None, new_tokens=5, ends=())[0]
        for one in (plain, read)
    ]
    assert tokens[0] == tokens[1]


def calls_of(host, monkeypatch, methods, ids):
    """How many tokens each call of the model read in a prefill."""
    read, call = [], host.call
    with monkeypatch.context() as patched:
        patched.setattr(host, "call", lambda ids, *rest: read.append(ids.shape[1]) or call(ids, *rest))
        prefill = host.prefill(ids, methods)
    return read, prefill


def test_who_asks_for_none_runs_none_and_equal_ones_are_read_once(monkeypatch):
    """One call for the prompt; one more for each pass, whoever shares it; none for each budget."""
    host, ids = engine("llama"), prompt(TOKENS, 2, seed=7)
    assert calls_of(host, monkeypatch, [Knorm()], ids)[0] == [TOKENS]
    read, prefill = calls_of(host, monkeypatch, [Knorm(), Reads(), Other()], ids)
    assert read == [TOKENS, READ, READ]
    scores = prefill.observer.scores
    assert all(map(torch.equal, scores[Reads()], scores[Other()]))
    read, _ = calls_of(host, monkeypatch, [ZIP, replace(ZIP, level="uniform"), replace(ZIP, level="head")], ids)
    assert read == [TOKENS, 16, 19, 19, 7]  # the request and a line's end, or request, quote, end; then the piece
    with monkeypatch.context() as patched:
        patched.setattr(host, "call", lambda *arguments: pytest.fail("a fork runs no model"))
        for budget in (10, 20):
            host.fork(prefill, [Cell("x", Reads(), budget)], 0)


def test_passes_count_as_their_method_s_time():
    """Each method has its passes whole, also where they are shared; another method has none of them."""
    host, ids = engine("llama"), prompt(TOKENS, 2)
    prefill = host.prefill(ids, [Knorm(), Reads(), Other()])
    observer, seconds = prefill.observer, prefill.cell_seconds
    assert observer.pass_seconds[Reads()] == observer.pass_seconds[Other()] == observer.passes_seconds > 0
    without = prefill.seconds - observer.passes_seconds - observer.extra_seconds - observer.check_seconds
    assert 0 < seconds(Knorm()) <= without
    own = observer.scoring_seconds
    expected = seconds(Knorm()) - own[Knorm()] + own[Reads()] + observer.passes_seconds
    assert seconds(Reads()) == pytest.approx(expected)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_batches_chunks_and_company_change_no_score(family):
    """Prompts and passes in pieces, one sample alone, and one method alone."""
    ids, methods = prompt(TOKENS, 2, seed=8), [ZIP, Reads(), Knorm()]
    whole = engine(family).prefill(ids, methods).observer.scores
    for method in methods[:2]:
        parts = engine(family, 7).prefill(ids, methods).observer.scores[method]
        single = engine(family).prefill(ids[1:], methods).observer.scores[method]
        alone = engine(family).prefill(ids, [method]).observer.scores[method]
        for known, *others in zip(whole[method], parts, alone, strict=True):
            for other in others:
                torch.testing.assert_close(other, known, **CLOSE)
        for known, other in zip(whole[method], single, strict=True):
            torch.testing.assert_close(other, known[1:], **CLOSE)


def test_what_cannot_be_read_is_refused():
    """Text without a tokenizer, parts that are not there, rows of the prompt beside passes, a sequence too long."""
    ids, bare = prompt(TOKENS), Engine(build("llama"))
    bare.prefill(ids, [Reads()])
    with pytest.raises(UserError, match="this engine knows no tokenizer"):
        bare.prefill(ids, [ZIP])
    for part in ((0, TOKENS + 1, 0), (12, 12, 0), (3, 20, 4)):
        with pytest.raises(MethodError, match="0 <= sinks <= first < last <= 40"):
            bare.prefill(ids, [Reads(parts=((*part,),))])

    class Both(Reads):
        def row_weights(self, shape, layer):
            return torch.ones(3)

    class Short(Reads):
        def passes(self, prompt):
            return [Pass(prompt.ids[:, :0], 0, 5)]

    with pytest.raises(MethodError, match=r"Both.passes .* not both"):
        bare.prefill(ids, [Both()])
    with pytest.raises(MethodError, match=r"Short.passes .* one or more"):
        bare.prefill(ids, [Short()])


def test_a_run_reads_the_context_and_keeps_its_head(tmp_path):
    """Sizes are those asked for, errors none; what cannot be repeated within the model's length is refused."""
    model = compose.composed(["model=random"]).model
    loaded = building.build(model, "the model", device="cpu", dtype=None)
    options = {"results": str(tmp_path), "wandb__mode": "disabled", "limit": 1, "threads": 1, "budgets": [0.5]}
    options |= {"task__lengths": [300], "query_aware": False}
    table = pvcbench.evaluate(loaded, "needle", ["kvzip", "kvzip_uniform"], **options)
    assert not table["errors"].any()
    assert table[table["method"] != "full"]["kept_fraction"].tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    loaded.limit = 500
    with pytest.raises(UserError, match=r"kvzip reads up to token .* lower task\.lengths, or choose other methods"):
        pvcbench.evaluate(loaded, "needle", ["kvzip"], **options)
