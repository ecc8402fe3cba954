"""Sampled tokens: the distribution is that of transformers' own processors, and draws follow it exactly."""

from random import Random

import pytest
import torch
from scipy import stats
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pvcbench.engine.sampling import Sampled, Sampling, greedy

SIZE = 500
CASES = [
    Sampling(0.6, top_p=0.95),
    Sampling(1.0),
    Sampling(2.0, top_k=20),
    Sampling(0.6, top_p=0.95, top_k=20),
    Sampling(1.3, top_p=0.3),
    Sampling(1.0, top_p=1e-6),
    Sampling(0.7, top_k=1),
    Sampling(0.7, top_k=10 * SIZE),
]


def logits(rows=6, seed=0):
    return 3 * torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(sampling, given):
    """The probabilities of all tokens, from what is left."""
    mass, tokens = sampling.left(given)
    return torch.zeros_like(given, dtype=torch.float64).scatter(-1, tokens, mass)


def theirs(sampling, given):
    """The same by transformers, in the order in which it applies its processors."""
    warpers = [TemperatureLogitsWarper(sampling.temperature)]
    warpers += [] if sampling.top_k is None else [TopKLogitsWarper(sampling.top_k)]
    warpers += [] if sampling.top_p == 1 else [TopPLogitsWarper(sampling.top_p)]
    return LogitsProcessorList(warpers)(None, given.double().clone()).softmax(-1)


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_the_distribution_is_that_of_transformers(sampling):
    given = logits()
    found, wanted = dense(sampling, given), theirs(sampling, given)
    assert torch.equal(found > 0, wanted > 0)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_the_order_of_the_steps_matters_here():
    """Where top-k came after top-p, another set would be left: so the comparison above can fail."""
    given = torch.tensor([[3.0, 2.0, 1.5, 1.4, 1.3, 1.2]], dtype=torch.float64)
    both, top_p = Sampling(1.0, top_p=0.6, top_k=2), Sampling(1.0, top_p=0.6)
    assert (dense(both, given) > 0).sum() == 1 and (dense(top_p, given) > 0).sum() == 2
    assert torch.allclose(dense(both, given), theirs(both, given))


def naive(sampling, row, drawn):
    """One token by a loop over all tokens in falling order of probability."""
    mass = theirs(sampling, row[None])[0].tolist()
    order = sorted(range(len(mass)), key=lambda token: (-mass[token], token))
    total = 0.0
    for token in order:
        total += mass[token]
        if drawn < total:
            return token
    return order[0]


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_each_draw_inverts_the_summed_probabilities(sampling):
    given, seeds = logits(4, seed=1), [5, 6, 7, 8]
    choose, streams = Sampled(sampling, seeds), [Random(seed) for seed in seeds]
    for _ in range(20):
        wanted = [naive(sampling, row, stream.random()) for row, stream in zip(given, streams, strict=True)]
        assert choose(given, [0, 1, 2, 3]) == wanted


def test_many_draws_have_the_distribution():
    sampling, given = Sampling(0.9, top_p=0.9), logits(1, seed=2)
    wanted = theirs(sampling, given)[0]
    choose, draws = Sampled(sampling, [3]), 4000
    found = torch.bincount(torch.tensor([choose(given, [0])[0] for _ in range(draws)]), minlength=SIZE)
    assert not found[wanted == 0].any()
    common = wanted * draws >= 5
    rest = draws - int(found[common].sum()), draws - float(wanted[common].sum()) * draws
    observed, expected = [*found[common].tolist(), rest[0]], [*(wanted[common] * draws).tolist(), rest[1]]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_a_row_depends_on_its_own_seed_and_logits_alone():
    sampling, given = Sampling(0.8, top_p=0.95), logits(5, seed=3)
    together, alone = Sampled(sampling, range(5)), Sampled(sampling, range(5))
    for step in range(10):
        rows = [0, 2, 3, 4] if step > 5 else [0, 1, 2, 3, 4]
        steps = together(given[rows], rows)
        assert steps == [alone(given[row : row + 1], [row])[0] for row in rows]


def test_equal_logits_fall_to_the_smaller_number():
    given = torch.zeros(1, 8)
    assert Sampling(1.0, top_p=0.5).left(given)[1][0, :4].tolist() == [0, 1, 2, 3]
    assert (Sampling(1.0, top_p=0.5).left(given)[0] > 0).sum() == 4


def test_barred_and_broken_logits_are_survived():
    given = logits(3)
    given[0, 1:], given[1] = float("-inf"), float("nan")
    chosen = Sampled(Sampling(1.0, top_p=0.9), [1, 2, 3])(given, [0, 1, 2])
    assert chosen[0] == 0 and 0 <= chosen[1] < SIZE


def test_cold_draws_are_greedy():
    given = logits()
    assert Sampled(Sampling(0.01), range(6))(given, range(6)) == greedy(given, range(6))
