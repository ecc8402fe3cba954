"""Finch against a naive one, and entries that close up: any kept set reads as one short sequence."""

from dataclasses import dataclass

import pytest
import torch

import naive_passes
import naive_scores
from beside_dense import followed
from kept_sets import attention_of, heads_of, kept_sets, without_ties
from methods.ada_kv import AdaKV
from methods.cake import CAKE
from methods.finch import Finch
from methods.key_rerotation import KeyRerotation
from methods.knorm import Knorm
from methods.kvzip import KVzip
from methods.snapkv import SnapKV
from methods.streaming_llm import StreamingLLM
from pvcbench.engine.engine import Engine
from pvcbench.engine.evict import Cell
from pvcbench.errors import UserError
from pvcbench.evaluation.preflight import check_question
from pvcbench.evaluation.row import Protocol
from pvcbench.policy import OutOfReach
from pvcbench.tasks.perplexity import Perplexity
from tiny import WRITER, build, engine, exact_rotary, positions, prompt, teach

pytestmark = pytest.mark.usefixtures("inference")


def test_finch_keeps_what_the_naive_one_keeps():
    """The question by the prompt's own length of it, and of the rest what its rows look at."""

    def check(family, ids, budget):
        host, question = engine(family), 3 + budget % 5
        budget = max(budget, question + 1)
        shape = host.shape(ids.shape[1], question=question)
        method = Finch().resolve(budget, shape)
        [group] = host.fork(host.prefill(ids, [method], shape=shape), [Cell("x", method, budget)], 0)
        for layer, attention in enumerate(attention_of(family, ids)):
            for sample, sets in enumerate(kept_sets(group, layer)):
                scores = naive_passes.finch(attention[sample], heads_of(family), question)
                counts = [min(budget, ids.shape[1])] * len(scores)
                assert sets == naive_scores.with_window(scores, counts, ids.shape[1], question), (family, layer)

    without_ties(20, check)


def test_finch_needs_a_question():
    """Where none is compressed it is refused, before a model is loaded where that can be told."""
    shape = engine("llama").shape(40)
    with pytest.raises(UserError, match="leave query_aware=true"):
        Finch().resolve(20, shape)
    assert Finch(4).resolve(20, shape) == Finch(4)
    with pytest.raises(OutOfReach, match="question's 4 entries"):
        Finch(4).resolve(4, shape)
    for settings in ({"window": 0}, {"positions": "rank"}):
        with pytest.raises(UserError, match="finch: "):
            Finch(**settings)
    aware, agnostic = (Protocol(query_aware, False, "grow", 0) for query_aware in (True, False))
    task = Perplexity()
    with pytest.raises(UserError, match="finch ranks entries by the question: task=perplexity has none"):
        check_question(task, aware, False, {"finch": Finch()})
    task.has_question = True
    with pytest.raises(UserError, match="finch ranks entries by the question: leave query_aware=true"):
        check_question(task, agnostic, False, {"finch": Finch()})
    check_question(task, aware, False, {"finch": Finch()})
    check_question(task, agnostic, False, {"finch": Finch(4), "snapkv": SnapKV()})


BASES = {
    "knorm": Knorm(),
    "ragged heads": AdaKV(SnapKV(4)),
    "layers, by notes": CAKE(4),
    "passes": KVzip(chunk=16, request="go", later_request="on"),
    "nothing but sinks and a window": StreamingLLM(3, "original"),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("family", ["llama", "llama_yarn", "phi3", "gemma3"])
def test_any_kept_set_reads_as_one_without_gaps(base, family):
    """Logits equal dense attention where each key stands at its rank among what the row sees; float64 throughout."""
    host = Engine(build(family), writer=WRITER)
    host.model.model.rotary_emb.forward = exact_rotary(host.model)
    ids, fed, chunks = prompt(50, seed=7), prompt(7, seed=8), [1, 1, 3, 2]
    ends = [49 + sum(chunks[: number + 1]) for number in range(len(chunks))]
    for cell, _, kept, logits, expected in followed(family, ids, fed, KeyRerotation(base), chunks, host, True):
        torch.testing.assert_close(logits, expected[:, ends], rtol=1e-9, atol=1e-9)
        assert not cell.hold and kept[0]


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_the_entries_are_the_base_s(base):
    """The same positions and values; keys of the same length that point elsewhere, and the same key where all stay."""
    host, ids, method = engine("llama"), prompt(50, seed=4), KeyRerotation(base)
    shape, groups = host.shape(50), []
    for one in (base, method):
        settled = one.resolve(20, shape)
        groups += host.fork(host.prefill(ids, [settled]), [Cell("x", settled, 20)], 0)
    plain, moved = groups
    assert all(map(torch.equal, positions(plain), positions(moved)))
    changed = 0
    for one, other in zip(plain.layers, moved.layers, strict=True):
        other.place_sinks(50 - other.filled)
        assert torch.equal(one.values, other.values)
        torch.testing.assert_close(one.keys.norm(dim=-1), other.keys.norm(dim=-1))
        changed += int((one.keys - other.keys).abs().amax() > 1e-3)
    assert changed == 4 and method.ragged_batch == base.ragged_batch
    settled = method.resolve(50, shape)
    [whole] = host.fork(host.prefill(ids, [settled]), [Cell("x", settled, 50)], 0)
    assert all(
        torch.equal(entries.keys[:, :, :50], stored.keys)
        for entries, stored in zip(whole.layers, whole.prefill.layers, strict=True)
    )


def test_cells_that_close_up_share_a_batch_with_others_and_change_nothing():
    """Beside the base, StreamingLLM and another budget: each as alone."""
    host, ids, fed = engine("llama"), prompt(50, 2, seed=5), prompt(4, 2, seed=6)
    methods = [SnapKV(4), KeyRerotation(SnapKV(4)), StreamingLLM(3), KeyRerotation(StreamingLLM(3, "original"))]
    cells = [Cell(str(number), method, 20) for number, method in enumerate(methods)]

    def logits(some):
        groups = host.fork(host.prefill(ids, methods), some, 4)
        found = torch.stack(teach(host, groups, fed.repeat(len(some), 1), [1] * 4).logits, 1).split(2)
        order = [cell for group in groups for cell in group.cells]
        return dict(zip(order, found, strict=True))

    together = logits(cells)
    for cell in cells:
        torch.testing.assert_close(together[cell], logits([cell])[cell], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together[cells[2]], together[cells[3]], rtol=1e-4, atol=1e-4)  # tables are in float32
    assert (together[cells[0]] - together[cells[1]]).abs().max() > 1e-3


def test_what_cannot_be_wrapped_is_refused():
    for base in (StreamingLLM(), Finch(4)):
        with pytest.raises(UserError, match="at original positions"):
            KeyRerotation(base)
    with pytest.raises(UserError, match="cache or original"):
        KeyRerotation(positions="rank")


@dataclass(frozen=True)
class Everything(Knorm):
    """A base that evicts nothing of what it protects."""

    def protects(self, budget, shape):
        return 2, 2


def test_protected_entries_move_too():
    host, method = engine("llama"), KeyRerotation(Everything())
    [group] = host.fork(host.prefill(prompt(40), [method]), [Cell("x", method, 10)], 0)
    for layer in range(4):
        assert all({0, 1, 38, 39} <= head for head in kept_sets(group, layer)[0])
