"""The chance to tell two methods apart, against simulated pairs put through the test that reports use."""

import numpy as np
import pytest
from scipy import stats

from pvcbench.errors import UserError
from pvcbench.stats import intervals, power


@pytest.mark.parametrize(
    ("difference", "discordant", "samples", "alpha"),
    [
        (0.15, 0.3, 100, 0.05),
        (0.15, 0.2, 60, 0.05),
        (0.3, 0.3, 30, 0.001),
        (0.1, 0.5, 300, 0.01),
        (0.05, 0.4, 20, 0.05),
        (0.2, 1.0, 150, 0.05),
    ],
)
def test_the_chance_is_how_often_the_reports_test_tells_them_apart(difference, discordant, samples, alpha):
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    turns = np.random.default_rng(0).multinomial(samples, shares, size=4000)
    counts, often = np.unique(turns[:, :2], axis=0, return_counts=True)
    found = [more > fewer and intervals.tango(more, fewer, samples)[2] < alpha for more, fewer in counts.tolist()]
    simulated = float(np.average(found, weights=often))
    # 4000 turns: four standard errors are at most 0.032
    assert power.chance(difference, discordant, samples, alpha) == pytest.approx(simulated, abs=0.032)


@pytest.mark.parametrize(
    ("difference", "discordant"), [(0.15, 0.25), (0.15, 0.5), (0.1, 0.2), (0.05, 0.3), (0.003, 0.9)]
)
def test_connors_formula(difference, discordant):
    """Biometrics 43 (1987), 207: the number under a normal approximation. The exact one steps with the counts."""
    spread = discordant - difference**2
    found = (stats.norm.isf(0.025) * discordant**0.5 + stats.norm.isf(0.2) * spread**0.5) ** 2 / difference**2
    assert power.samples_needed(difference, discordant) == pytest.approx(found, rel=0.08)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 46])
@pytest.mark.parametrize(("difference", "discordant"), [(0.15, 0.3), (0.2, 1.0), (0.3, 0.3)])
def test_the_number_needed_is_where_the_chance_gets_there(difference, discordant, alpha):
    found = power.samples_needed(difference, discordant, alpha)
    before = power.chance(difference, discordant, found - 1, alpha)
    assert power.chance(difference, discordant, found, alpha) >= power.POWER > before


def test_fewer_than_ten_pairs_are_not_tested():
    """As `intervals.paired` makes no McNemar's test of them."""
    assert (
        power.chance(1, 1, 9) == 0 and power.chance(1, 1, 10) == pytest.approx(1) and power.samples_needed(1, 1) == 10
    )


def test_what_so_many_samples_tell():
    share = power.told_apart(100, 0.3)
    assert power.chance(share, 0.3, 100) >= power.POWER > power.chance(share - 0.01, 0.3, 100)
    assert power.told_apart(5, 0.3) is None
    assert power.told_apart(100, 0.7 - 0.4) == share  # a hair below 0.3


@pytest.mark.parametrize(
    ("difference", "discordant"), [(0, 0.3), (-0.1, 0.3), (0.4, 0.3), (0.5, 1.2), (float("nan"), 0.3)]
)
def test_what_cannot_be_is_refused(difference, discordant):
    with pytest.raises(UserError, match="impossible"):
        power.chance(difference, discordant, 100)


@pytest.mark.parametrize("discordant", [0, -0.1, 1.1, float("nan")])
def test_impossible_shares_tell_nothing(discordant):
    with pytest.raises(UserError, match="impossible"):
        power.told_apart(100, discordant)


@pytest.mark.parametrize("wrong", [{"alpha": 5}, {"alpha": float("nan")}, {"alpha": 0}, {"power": 80}, {"power": 1}])
def test_levels_in_per_cent_are_refused(wrong):
    with pytest.raises(UserError, match="between 0 and 1"):
        power.samples_needed(0.15, 0.4, **wrong)


def test_what_needs_too_many_is_refused():
    with pytest.raises(UserError, match="needs more than"):
        power.samples_needed(1e-4, 0.9)
