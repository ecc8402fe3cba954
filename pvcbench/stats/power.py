"""How many samples a comparison needs: the chance that a true difference of two methods is told apart.

For answers that are right or wrong, of single items, under McNemar's test as `intervals.tango` makes it. Two things are
assumed: the true difference of the shares, and the share of items on which the two methods differ at all. Where most
items differ, more are needed.
"""

import numpy as np
from scipy import stats

from pvcbench.errors import UserError
from pvcbench.stats.intervals import FEWEST_CLUSTERS
from pvcbench.stats.significance import ALPHA

POWER = 0.8
MOST = 1_000_000


def chance(difference: float, discordant: float, samples: int, alpha: float = ALPHA) -> float:
    """The chance that McNemar's test with so many pairs has a p-value below `alpha` and the sign of the difference.

    It is summed over all counts that there can be; fewer than ten pairs are not tested. `difference` (above 0) is the
    share of items that only the better method answers minus the share that only the other one does, and `discordant`
    is the sum of both shares. Raises UserError where no two methods could differ so.
    """
    refuse_impossible(difference, discordant, alpha)
    if samples < FEWEST_CLUSTERS:
        return 0.0
    apart = np.arange(1, samples + 1)
    better = (discordant + difference) / (2 * discordant)  # of an item on which they differ
    # with k such items, m won and k - m lost: (2m - k)**2 / k above the quantile
    needed = np.floor((apart + np.sqrt(stats.chi2.isf(alpha, 1) * apart)) / 2) + 1
    return float(np.sum(stats.binom.pmf(apart, samples, discordant) * stats.binom.sf(needed - 1, apart, better)))


def samples_needed(difference: float, discordant: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """A number of pairs at which the chance is at least `power`, and with one pair less is not.

    The chance grows in small steps back and forth, so a few larger numbers may lie a little below `power`. Raises
    UserError where a million pairs are too few.
    """
    if not 0 < power < 1:
        raise UserError(f"a power of {power:g} is impossible: it must lie between 0 and 1")
    refuse_impossible(difference, discordant, alpha)
    most = FEWEST_CLUSTERS
    while chance(difference, discordant, most, alpha) < power:
        if most == MOST:
            raise UserError(f"a difference of {difference:g} needs more than {MOST:,} samples")
        most = min(2 * most, MOST)
    least = FEWEST_CLUSTERS - 1 if most == FEWEST_CLUSTERS else most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if chance(difference, discordant, middle, alpha) >= power else (middle, most)
    return most


def told_apart(samples: int, discordant: float, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The smallest whole number of points, as a share, that so many pairs tell apart with `power`; None if none."""
    refuse_impossible(discordant, discordant, alpha)
    for points in range(1, int(100 * discordant + 1e-9) + 1):
        if chance(min(points / 100, discordant), discordant, samples, alpha) >= power:
            return points / 100
    return None


def refuse_impossible(difference: float, discordant: float, alpha: float) -> None:
    """Raises UserError where no two methods could differ so, and where `alpha` is no probability."""
    if not 0 < difference <= discordant <= 1:
        raise UserError(
            f"a difference of {difference:g} between methods that differ on {discordant:g} of the items is impossible: "
            "it must be above 0 and not above that share, which is at most 1"
        )
    if not 0 < alpha < 1:
        raise UserError(f"a level of {alpha:g} is impossible: it must lie between 0 and 1")
