"""Intervals and paired tests against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from sim_eval.reporting.intervals import holm, paired_p_value, ranks, success_interval


@pytest.mark.parametrize(("successes", "episodes"), [(0, 20), (1, 20), (19, 20), (20, 20), (190, 200)])
def test_the_interval_is_wilsons(successes: int, episodes: int):
    low, high = success_interval(successes, episodes)
    assert (low, high) == pytest.approx(proportion_confint(successes, episodes, 0.05, "wilson"), abs=1e-9)
    assert 0 <= low <= successes / episodes <= high <= 1


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).binomial(50, 0.9, 2000)
    limits = {k: success_interval(k, 50) for k in set(draws.tolist())}
    held = np.mean([limits[k][0] <= 0.9 <= limits[k][1] for k in draws.tolist()])
    assert 0.93 < held < 0.99


def test_nothing_seen_says_nothing():
    assert success_interval(0, 0) == (0.0, 1.0)


def test_the_paired_test_is_exact_mcnemar():
    rng = np.random.default_rng(1)
    first, second = (rng.random(60) < 0.8).tolist(), (rng.random(60) < 0.55).tolist()
    table = [[sum(a == x and b == y for a, b in zip(first, second, strict=True)) for y in (1, 0)] for x in (1, 0)]
    assert paired_p_value(first, second) == pytest.approx(float(mcnemar(table, exact=True).pvalue))
    assert paired_p_value(first, second) == paired_p_value(second, first)
    assert paired_p_value(first, first) == 1.0


def test_pairing_finds_what_overlapping_intervals_hide():
    worse = [True] * 80 + [False] * 20
    better = [True] * 88 + [False] * 12  # never worse on any episode
    assert success_interval(80, 100)[1] > success_interval(88, 100)[0]
    assert paired_p_value(better, worse) < 0.01


def test_unpaired_runs_are_refused():
    with pytest.raises(ValueError, match="longer"):
        paired_p_value([True], [True, False])


def test_holm_corrects_and_keeps_the_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_ranks_tie_those_that_cannot_be_told_apart():
    good, same = [True] * 39 + [False], [True] * 38 + [False] * 2
    poor = [False] * 40
    assert ranks([poor, good, same]) == [3, 1, 1]
    assert ranks([good]) == [1]
    assert ranks([[True] * 3, [False] * 3]) == [1, 1]  # three episodes prove nothing
