"""The cache of a conversation: a later turn goes through a copy of what the first turn left, for every method."""

import pytest
import torch

from beside_dense import DRAWS
from pvcbench.engine.decode import Decoder
from tiny import METHODS, cell_of, dense, dense_masks, engine, fork, original, positions, prompt, teach

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
FIRST, SAID, LATER, NEW = 60, 5, 11, 4


def tensors(group):
    """All that a group keeps, copied."""
    found = [part.clone() for layer in group.layers for part in (layer.keys, layer.values, layer.positions)]
    return [*found, *(layer.lengths.clone() for layer in group.layers)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_a_later_turn_equals_dense_attention_after_the_answer_is_rolled_back(family, name, inference):
    """The model answers on one copy; on another the golden answer and the next question follow, and it answers again.

    What was said on the first copy is nowhere: the answer is the likeliest one, token by token, of dense attention to
    what each layer and head has kept of the first turn, and to every later token.
    """
    host, ids, later = engine(family), prompt(FIRST, 1, seed=3), prompt(LATER, 1, seed=4)
    cell = cell_of(original(METHODS[name]), host.shape(FIRST))
    [group] = fork(host, ids, [cell], LATER + NEW, DRAWS[:1])
    before, kept = tensors(group), positions(group)
    said = Decoder(host.call, [group.repeated(1)], host.backend).greedy(feed=None, new_tokens=SAID, ends=())[0][0]
    assert len(said) == SAID
    assert all(map(torch.equal, before, tensors(group))), "the answer is still in the cache"
    answer = Decoder(host.call, [group.repeated(1)], host.backend).greedy(feed=later, new_tokens=NEW, ends=())[0][0]
    whole = torch.cat((ids, later, torch.tensor([answer])), 1)
    masks = dense_masks([(FIRST, LATER + NEW, kept)], group.prefill, whole.shape[1])
    expected = dense(family)(whole, masks)[:, FIRST + LATER - 1 : -1].argmax(-1)
    assert answer == expected[0].tolist()
    logits = teach(host, [group.repeated(1)], whole[:, FIRST:], [LATER, *[1] * NEW]).logits
    wanted = dense(family)(whole, masks)[:, FIRST + LATER - 1 :]
    torch.testing.assert_close(torch.stack(logits, 1), wanted, **CLOSE)


@pytest.mark.parametrize("name", ["snapkv", "h2o", "ada_snapkv"])
def test_feeding_an_own_answer_again_is_leaving_it_in_the_cache(name, inference):
    """Entries, positions and logits are those of a cache in which the answer stayed, and the next question followed."""
    host, ids, asked = engine("llama"), prompt(FIRST, 1, seed=3), prompt(LATER, 1, seed=4)
    [group] = fork(host, ids, [cell_of(METHODS[name], host.shape(FIRST))], SAID + LATER, DRAWS[:1])
    said = Decoder(host.call, [group.repeated(1)], host.backend).greedy(feed=None, new_tokens=SAID, ends=())[0][0]
    both = torch.cat((torch.tensor([said]), asked), 1)
    stayed, again = group.repeated(1), group.repeated(1)
    one = teach(host, [stayed], both, [1] * SAID + [LATER]).logits[-1]
    other = teach(host, [again], both, [SAID + LATER]).logits[-1]
    torch.testing.assert_close(one, other, **CLOSE)
    for mine, theirs in zip(tensors(stayed), tensors(again), strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)
