"""Intervals and paired tests against what is known of them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from sim_eval.reporting.intervals import (
    Share,
    discordant,
    episodes_to_separate,
    holm,
    mean_interval,
    paired_difference_interval,
    paired_p_value,
    paired_power,
    ranks,
    success_interval,
)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 20), (1, 20), (19, 20), (20, 20), (190, 200)])
def test_the_interval_is_clopper_and_pearsons(successes: int, episodes: int):
    low, high = success_interval(successes, episodes)
    assert (low, high) == pytest.approx(proportion_confint(successes, episodes, 0.05, "beta"), abs=1e-9)
    assert 0 <= low <= successes / episodes <= high <= 1


def test_the_interval_is_scipys_for_every_count_to_fifty():
    for episodes in range(1, 51):
        for successes in range(episodes + 1):
            theirs = binomtest(successes, episodes).proportion_ci(0.95, "exact")
            assert success_interval(successes, episodes) == pytest.approx((theirs.low, theirs.high), abs=1e-11)


def test_without_a_failure_the_interval_is_known_in_closed_form():
    assert success_interval(20, 20) == pytest.approx((0.025 ** (1 / 20), 1.0))


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.9, 0.98])
def test_the_interval_holds_the_truth_at_least_as_often_as_it_says(rate: float):
    limits = np.array([success_interval(k, 50) for k in range(51)])
    held = (limits[:, 0] <= rate) & (rate <= limits[:, 1])
    assert binom.pmf(np.arange(51), 50, rate) @ held >= 0.95  # exact: no rate for which it falls short


def test_nothing_seen_says_nothing():
    assert success_interval(0, 0) == (0.0, 1.0)


def test_the_paired_test_is_exact_mcnemar():
    rng = np.random.default_rng(1)
    first, second = (rng.random(60) < 0.8).tolist(), (rng.random(60) < 0.55).tolist()
    table = [[sum(a == x and b == y for a, b in zip(first, second, strict=True)) for y in (1, 0)] for x in (1, 0)]
    alone = discordant(first, second)
    assert alone == (table[0][1], table[1][0])
    assert paired_p_value(*alone) == pytest.approx(float(mcnemar(table, exact=True).pvalue))
    assert paired_p_value(*alone) == paired_p_value(*reversed(alone))
    assert paired_p_value(*discordant(first, first)) == 1.0
    assert paired_p_value(6, 0) == pytest.approx(2 * 0.5**6)


def test_pairing_finds_what_overlapping_intervals_hide():
    worse = [True] * 80 + [False] * 20
    better = [True] * 88 + [False] * 12  # never worse on any episode
    assert success_interval(80, 100)[1] > success_interval(88, 100)[0]
    assert paired_p_value(*discordant(better, worse)) < 0.01
    assert paired_difference_interval(*discordant(better, worse), 100)[0] > 0


def test_unpaired_runs_are_refused():
    with pytest.raises(ValueError, match="longer"):
        discordant([True], [True, False])


# Worked in Fagerland, Lydersen and Laake's textbook (2017, chapter 8).
@pytest.mark.parametrize(
    ("only_first", "only_second", "episodes", "published"),
    [(1, 7, 21, (-0.517, -0.026)), (6, 16, 161, (-0.124, -0.005))],
)
def test_the_difference_has_tangos_interval(
    only_first: int, only_second: int, episodes: int, published: tuple[float, float]
):
    low, high = paired_difference_interval(only_first, only_second, episodes)
    assert (low, high) == pytest.approx(published, abs=5e-4)
    assert paired_difference_interval(only_second, only_first, episodes) == (-high, -low)


def test_the_difference_of_equals_is_known_in_closed_form():
    bound = 1.959964**2 / (40 + 1.959964**2)
    assert paired_difference_interval(0, 0, 40) == pytest.approx((-bound, bound), abs=1e-6)


@pytest.mark.parametrize(("only_first", "only_second", "episodes"), [(20, 0, 20), (0, 20, 20), (1, 0, 1), (1, 1, 2)])
def test_the_difference_of_extremes_stays_in_its_range(only_first: int, only_second: int, episodes: int):
    low, high = paired_difference_interval(only_first, only_second, episodes)
    assert -1 <= low <= (only_first - only_second) / episodes <= high <= 1
    assert low < high


@pytest.mark.parametrize(("p_first", "p_second", "episodes"), [(0.10, 0.05, 100), (0.30, 0.05, 40), (0.02, 0.02, 200)])
def test_the_difference_is_covered_about_as_often_as_it_says(p_first: float, p_second: float, episodes: int):
    chances = [p_first, p_second, 1 - p_first - p_second]
    flow_samples = np.random.default_rng(2).multinomial(episodes, chances, 20_000)
    tables, times = np.unique(flow_samples[:, :2], axis=0, return_counts=True)
    limits = np.array([paired_difference_interval(int(b), int(c), episodes) for b, c in tables])
    held = (limits[:, 0] <= p_first - p_second) & (p_first - p_second <= limits[:, 1])
    assert 0.935 < times @ held / times.sum() < 0.975


@pytest.mark.parametrize(("only_first", "only_second", "episodes"), [(76, 47, 400), (17, 5, 100), (3, 0, 50)])
def test_so_many_episodes_do_separate_at_the_power_that_is_asked(only_first: int, only_second: int, episodes: int):
    needed = episodes_to_separate(only_first, only_second, episodes)
    assert needed is not None
    chances = [only_first / episodes, only_second / episodes, 1 - (only_first + only_second) / episodes]
    flow_samples = np.random.default_rng(3).multinomial(needed, chances, 20_000)
    tables, times = np.unique(flow_samples[:, :2], axis=0, return_counts=True)
    rejected = np.array([paired_p_value(int(b), int(c)) < 0.05 for b, c in tables])
    assert times @ rejected / times.sum() == pytest.approx(0.8, abs=0.012)


def test_episodes_to_separate_follow_connors_approximation():
    p, q, z_alpha, z_beta = 0.19, 0.1175, 1.959964, 0.841621
    connor = ((z_alpha * (p + q) ** 0.5 + z_beta * (p + q - (p - q) ** 2) ** 0.5) / (p - q)) ** 2  # Biometrics, 1987
    needed = episodes_to_separate(76, 47, 400)
    assert needed is not None
    assert connor < needed < 1.08 * connor  # the exact test needs a little more


def test_no_number_of_episodes_separates_equals():
    assert episodes_to_separate(0, 0, 20) is None
    assert episodes_to_separate(7, 7, 20) is None
    assert episodes_to_separate(17, 16, 400) is None  # more than anybody runs
    assert episodes_to_separate(5, 0, 5) == 6  # the fewest on which exact McNemar can reject
    assert paired_power(1.0, 0.0, 5) == 0.0


def test_holm_corrects_and_keeps_the_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_ranks_tie_those_that_cannot_be_told_apart():
    good, same = [True] * 39 + [False], [True] * 38 + [False] * 2
    poor = [False] * 40
    assert ranks([poor, good, same]) == [3, 1, 1]
    assert ranks([good]) == [1]
    assert ranks([[True] * 3, [False] * 3]) == [1, 1]  # three episodes prove nothing


def shares(weights: list[Fraction], successes: list[int], episodes: int) -> list[Share]:
    return [Share(weight, count, episodes) for weight, count in zip(weights, successes, strict=True)]


def test_a_mean_of_tasks_with_equal_episodes_has_the_interval_of_all_episodes_together():
    found = mean_interval(shares([Fraction(1, 4)] * 4, [10, 3, 0, 7], 10))
    assert found == pytest.approx(success_interval(20, 40))


# Groups as Meta-World's: many easy tasks that succeed, few hard ones that do not always.
@pytest.mark.parametrize("rates", [(0.95, 0.8, 0.6, 0.4), (1.0, 1.0, 0.9, 0.5), (0.3, 0.3, 0.3, 0.3)])
@pytest.mark.parametrize("sizes", [(28, 11, 6, 5), (3, 3, 3, 3)])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_interval_of_a_mean_holds_the_truth_at_least_as_often_as_it_says(
    rates: tuple[float, ...], sizes: tuple[int, ...], spread: float
):
    rng = np.random.default_rng(4)
    weights = [Fraction(1, len(sizes) * size) for size in sizes for _ in range(size)]
    chances = np.concatenate([np.full(size, rate) for size, rate in zip(sizes, rates, strict=True)])
    chances = np.clip(chances + rng.uniform(-spread, spread, len(chances)), 0, 1)
    truth = float(np.array([float(weight) for weight in weights]) @ chances)
    limits = np.array(
        [mean_interval(shares(weights, drawn.tolist(), 10)) for drawn in rng.binomial(10, chances, (400, len(chances)))]
    )
    held = (limits[:, 0] <= truth) & (truth <= limits[:, 1])
    assert held.mean() > 0.93  # 0.95 less what 400 draws leave open
    assert (limits[:, 0] >= 0).all()
    assert (limits[:, 1] <= 1).all()


def test_a_mean_without_a_failure_is_still_uncertain():
    low, high = mean_interval(shares([Fraction(1, 4)] * 2 + [Fraction(1, 2)], [10, 10, 10], 10))
    assert high == 1.0
    assert success_interval(10, 10)[0] < low < success_interval(30, 30)[0]
