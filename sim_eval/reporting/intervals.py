"""Intervals of success rates, paired tests on the same episodes, and how many episodes would separate two policies."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import hypot, sqrt
from typing import NamedTuple

SIGNIFICANCE, POWER = 0.05, 0.8
MOST = 100_000  # episodes; nobody waits longer for a difference


@cache
def success_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Clopper and Pearson's exact 95 % interval of a success rate (1934); (0, 1) without episodes."""
    from scipy.special import betaincinv  # scipy.stats takes five milliseconds for the same, and longer to be imported

    failures = episodes - successes
    low = betaincinv(successes, failures + 1, SIGNIFICANCE / 2) if successes else 0.0
    high = betaincinv(successes + 1, failures, 1 - SIGNIFICANCE / 2) if failures else 1.0
    return float(low), float(high)


class Share(NamedTuple):
    """A task's part in a mean over tasks: its weight, and its successes among one or more episodes."""

    weight: Fraction
    successes: int
    episodes: int


def mean_interval(shares: Sequence[Share]) -> tuple[float, float]:
    """95 % interval of a mean of tasks' success rates, each with its weight; the weights add up to 1.

    The tasks are taken as fixed: the suite has no others, and whoever runs it again runs the same ones. Only the
    outcomes of the episodes are uncertain. A bootstrap over tasks would be wider and answer another question: how a
    policy would do on other tasks of the kind.

    Episodes that weigh alike are counted together, by Clopper and Pearson's interval: where tasks differ in their
    rates, successes scatter less than of one common rate (Hoeffding 1956, Annals of Mathematical Statistics 27:713),
    so the interval is too wide rather than too narrow. A mean of tasks with equally many episodes each is one such
    count. Where there are several, as in a mean of groups of unequal size, their intervals are combined by the method
    of variance estimates recovery (Zou, Huang and Zhang 2009, Computational Statistics & Data Analysis 53:1080).
    """
    counts: dict[Fraction, tuple[int, int]] = {}  # weight of an episode -> successes, episodes
    for weight, successes, episodes in shares:
        before = counts.get(weight / episodes, (0, 0))
        counts[weight / episodes] = before[0] + successes, before[1] + episodes
    mean = sum(float(weight) * successes for weight, (successes, _) in counts.items())
    below, above = [], []
    for weight, (successes, episodes) in counts.items():
        low, high = success_interval(successes, episodes)
        below.append(float(weight) * (successes - low * episodes))
        above.append(float(weight) * (high * episodes - successes))
    return max(0.0, mean - hypot(*below)), min(1.0, mean + hypot(*above))


def discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """How many of the same episodes only the first, and only the second, of two policies won."""
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)


def paired_p_value(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test that two policies are equally good, from the episodes that only one of them won."""
    from scipy.stats import binomtest

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def paired_difference_interval(only_first: int, only_second: int, episodes: int) -> tuple[float, float]:
    """Tango's score 95 % interval of the difference of two rates on the same episodes, first less second.

    Tango (1998), Statistics in Medicine 17:891-908. It inverts a test by normal approximation: close to significance
    it can leave zero out while the exact test does not yet reject.
    """
    if episodes == 0:
        return -1.0, 1.0
    return (
        _lower_difference(only_first, only_second, episodes),
        -_lower_difference(only_second, only_first, episodes) or 0.0,
    )


def _lower_difference(only_first: int, only_second: int, episodes: int) -> float:
    """The difference below the observed one that the score test just does not reject."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    quantile = float(norm.isf(SIGNIFICANCE / 2))
    gap = only_first - only_second

    def excess(difference: float) -> float:
        # The rate at which only the second wins is what the difference makes most likely.
        b = (2 * episodes - gap) * difference - only_first - only_second
        root = sqrt(b * b + 8 * episodes * only_second * difference * (1 - difference))
        second = (root - b) / (4 * episodes)
        variance = episodes * (2 * second + difference * (1 - difference))
        return gap - episodes * difference - quantile * sqrt(max(variance, 0.0))

    # At the observed difference itself the excess is never positive, and zero only where a policy won all or nothing.
    nearly = gap / episodes - 1e-9
    return float(brentq(excess, -1.0, nearly)) if nearly > -1 else -1.0


def paired_power(only_first: float, only_second: float, episodes: int) -> float:
    """The chance that the exact McNemar test separates two policies.

    Not conditional on how many episodes turn out discordant: Duffy (1984), Biometrics 40:1005-1015.

    Args:
        only_first, only_second: the chance in an episode that only the one, only the other policy wins.
    """
    import numpy as np
    from scipy.stats import binom

    either = only_first + only_second
    if either == 0 or episodes == 0:
        return 0.0
    low, high = binom.ppf([1e-9, 1 - 1e-9], episodes, either)
    counts = np.arange(low, high + 1)
    # The test rejects when the rarer side has this many or fewer: 2 P(X <= limit) < 5 %, X of so many fair coins.
    limits = binom.ppf(SIGNIFICANCE / 2, counts, 0.5) - 1
    share = only_first / either
    rejected = binom.cdf(limits, counts, share) + binom.sf(counts - limits - 1, counts, share)
    return float(np.sum(binom.pmf(counts, episodes, either) * rejected))


def episodes_to_separate(only_first: int, only_second: int, episodes: int) -> int | None:
    """Episodes in all after which the exact McNemar test at 5 % has a power of 80 %, if the rates are as observed.

    Returns:
        None if each won equally many alone, so that no difference is seen, or if more than 100,000 are needed.
    """
    from bisect import bisect_left

    if only_first == only_second:
        return None
    chances = only_first / episodes, only_second / episodes
    found = bisect_left(range(MOST + 1), POWER, key=lambda number: paired_power(*chances, number))
    return found if found <= MOST else None


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for there being several (Holm 1979), in the order given."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), method="holm")[1]] if p_values else []


def ranks(successes: Sequence[Sequence[bool]]) -> list[int]:
    """Rank of each policy from its successes on the same episodes: 1 + how many are significantly better than it.

    Better means a higher rate and an exact McNemar p below 0.05, Holm-corrected over all pairs; policies that do not
    differ significantly share a rank.
    """
    pairs = [(a, b) for a in range(len(successes)) for b in range(a)]
    corrected = holm([paired_p_value(*discordant(successes[a], successes[b])) for a, b in pairs])
    better = [0] * len(successes)
    for (a, b), p in zip(pairs, corrected, strict=True):
        if p < SIGNIFICANCE:
            better[a if sum(successes[a]) < sum(successes[b]) else b] += 1
    return [1 + count for count in better]
