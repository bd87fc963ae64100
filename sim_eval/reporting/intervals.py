"""How sure a success rate is, and whether two differ."""

from __future__ import annotations

from collections.abc import Sequence

SIGNIFICANCE = 0.05


def success_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a success rate; (0, 1) without episodes."""
    from scipy.stats import binomtest

    if episodes == 0:
        return 0.0, 1.0
    interval = binomtest(successes, episodes).proportion_ci(confidence_level=1 - SIGNIFICANCE, method="wilson")
    return float(interval.low), float(interval.high)


def paired_p_value(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided McNemar test that two policies are equally good, from their successes on the same episodes."""
    from scipy.stats import binomtest

    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for there being several (Holm 1979), in the order given."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), method="holm")[1]] if p_values else []


def ranks(successes: Sequence[Sequence[bool]]) -> list[int]:
    """Rank of each policy from its successes on the same episodes: 1 + how many are significantly better than it.

    Better means a higher rate and a Holm-corrected exact McNemar p below 0.05 over all pairs; policies that cannot be
    told apart so share a rank.
    """
    pairs = [(a, b) for a in range(len(successes)) for b in range(a)]
    corrected = holm([paired_p_value(successes[a], successes[b]) for a, b in pairs])
    better = [0] * len(successes)
    for (a, b), p in zip(pairs, corrected, strict=True):
        if p < SIGNIFICANCE:
            better[a if sum(successes[a]) < sum(successes[b]) else b] += 1
    return [1 + count for count in better]
