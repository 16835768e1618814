"""Intervals against simulation and SciPy: of claims that are false, at most one in twenty may hold."""

import math

import numpy as np
import pytest
from scipy import stats

from gdyn_reproduce.claims import Between, Claim, Holds, Within
from gdyn_reproduce.intervals import of_mean, of_share
from gdyn_reproduce.verdicts import judge

CLAIMS = 1000
ALLOWED = 50 + 2 * math.sqrt(50)  # 5 % of a thousand, and two standard errors of that count
EPSILON = 1e-9


def count_holds(accept, draws, **options):
    claim = Claim("c", "s", "Eq. 1", "m", accept, "b", kind="check", **options)
    outcomes = [judge(claim, measurements, scale="scaled", preset="quick").outcome for measurements in draws]
    assert len(outcomes) == CLAIMS
    return outcomes.count("holds")


@pytest.mark.parametrize("seeds", [2, 3, 10, 40])
@pytest.mark.parametrize(("low", "high", "true"), [(0, 1, 1 + EPSILON), (0, 1, -EPSILON), (-50, 50, 50.0)])
def test_a_mean_just_outside_its_band_rarely_holds(seeds, low, high, true):
    chance = np.random.default_rng(seeds)
    draws = ({"m": chance.normal(true, 0.1, seeds).tolist()} for _ in range(CLAIMS))
    assert count_holds(Between(low, high), draws) <= ALLOWED


def test_a_mean_just_outside_the_band_around_the_papers_value_rarely_holds():
    chance = np.random.default_rng(1)
    draws = ({"m": chance.normal(1.1 + EPSILON, 0.05, 5).tolist()} for _ in range(CLAIMS))
    assert count_holds(Within(absolute=0.1), draws, paper=1.0) <= ALLOWED


@pytest.mark.parametrize("seeds", [3, 5, 10, 29, 100])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_share_of_seeds_just_below_its_band_rarely_holds(seeds, share):
    chance = np.random.default_rng(seeds)
    draws = [{"m": (chance.random(seeds) < share - EPSILON).tolist()} for _ in range(CLAIMS)]
    assert count_holds(Holds(share), draws) <= ALLOWED
    assert count_holds(Between(share, 1.0), draws) <= ALLOWED


@pytest.mark.parametrize("seeds", [3, 10])
def test_a_paired_difference_just_outside_its_band_rarely_holds(seeds):
    chance = np.random.default_rng(seeds)

    def draw():
        base = chance.normal(0, 10, seeds)
        return {"m": (base + chance.normal(0.5 - EPSILON, 0.1, seeds)).tolist(), "base": base.tolist()}

    assert count_holds(Between(0.5, 2), (draw() for _ in range(CLAIMS)), minus="base") <= ALLOWED


@pytest.mark.parametrize("seeds", [5, 11, 30])
def test_a_median_just_outside_its_band_rarely_holds(seeds):
    chance = np.random.default_rng(seeds)
    draws = ({"m": chance.exponential(1.0, seeds).tolist()} for _ in range(CLAIMS))
    assert count_holds(Between(math.log(2) + EPSILON, 9, by="median"), draws) <= ALLOWED


def test_the_bootstrap_keeps_its_level_where_values_are_skewed():
    chance = np.random.default_rng(0)
    draws = [{"m": chance.exponential(1.0, 20).tolist()} for _ in range(CLAIMS)]
    assert count_holds(Between(0, 1 - EPSILON, by="bootstrap"), draws) <= ALLOWED
    assert count_holds(Between(0, 1 - EPSILON), draws) > 2 * 0.05 * CLAIMS  # Student's interval does not


def test_values_that_are_rarely_bad_do_not_hold_by_luck():
    chance = np.random.default_rng(0)
    draws = ({"m": np.where(chance.random(5) < 0.9, 1.0, 0.0).tolist()} for _ in range(CLAIMS))
    assert count_holds(Between(0.9 + EPSILON, 1.1), draws) <= ALLOWED


def test_intervals_agree_with_scipy():
    values = np.random.default_rng(3).normal(2, 1, 7)
    ours = of_mean(values.tolist())
    theirs = stats.t.interval(0.9, 6, values.mean(), values.std(ddof=1) / math.sqrt(7))
    assert (ours.low, ours.high) == pytest.approx(theirs, rel=1e-12)
    for true, count in ((0, 4), (3, 4), (4, 4), (17, 30)):
        exact = stats.binomtest(true, count).proportion_ci(0.9, method="exact")
        share = of_share(true, count)
        assert (share.low, share.high) == pytest.approx((exact.low, exact.high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("count", "rank"), [(5, 0), (7, 0), (8, 1), (10, 1), (11, 2), (30, 10)])
def test_a_median_has_the_order_statistics_of_the_sign_test(count, rank):
    interval = of_mean([float(i) for i in range(count)], "median")
    assert (interval.low, interval.high) == (rank, count - 1 - rank)
    assert stats.binom.cdf(rank, count, 0.5) <= 0.05 < stats.binom.cdf(rank + 1, count, 0.5)


def test_power_is_there_where_the_truth_lies_well_inside():
    chance = np.random.default_rng(0)
    draws = ({"m": chance.normal(0.5, 0.1, 5).tolist()} for _ in range(CLAIMS))
    assert count_holds(Between(0, 1), draws) > 0.99 * CLAIMS


@pytest.mark.parametrize("values", [[1e308, 1.7e308], [1e308] * 3, [-1.7e308, 1.7e308]])
def test_values_whose_spread_overflows_decide_nothing(values):
    assert of_mean(values).problem


@pytest.mark.parametrize("method", ["t", "bootstrap"])
@pytest.mark.parametrize("exponent", [-1000, -600, 600, 1010])
def test_intervals_do_not_depend_on_the_unit(exponent, method):
    values = np.random.default_rng(0).normal(3, 1, 12)
    usual, moved = of_mean(values, method), of_mean(np.ldexp(values, exponent), method)
    assert not moved.problem
    for end in ("estimate", "low", "high"):
        assert getattr(moved, end) == math.ldexp(getattr(usual, end), exponent)
    if method == "t":
        low, high = stats.t.interval(0.9, 11, values.mean(), stats.sem(values))
        assert (usual.low, usual.high) == pytest.approx((low, high), rel=1e-12)


def test_the_mean_of_the_largest_numbers_is_their_mean():
    largest = np.finfo(float).max
    assert of_mean([largest] * 3).estimate == largest
    assert of_mean([largest, -largest, largest / 2]).estimate == pytest.approx(largest / 6)
