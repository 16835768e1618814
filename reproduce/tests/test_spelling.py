import math

import numpy as np
import pytest

from gdyn_reproduce.spelling import spell_band, spell_bounds, spell_number, spell_values


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (0.501373, 0.50137, 0.50138),
        (1.0021557, 1.002155, 1.002165),
        (1.414214, 1.4142, 1.41422),
        (-3.865216621769, -3.86521662177, -3.86521662176),
        (-0.18, -0.180000001, -0.179999999),
        (0.0, 0.0, 0.0),
        (0.018379999999999, 0.018379999, 0.018380001),
        (0.1 + 0.2, 0.3, 0.3),
        (1e300, 1.0, math.inf),
        (5.0, -math.inf, 5.0),
    ],
)
def test_a_number_is_printed_on_the_same_side_of_its_printed_bounds(value, low, high):
    printed = float(spell_number(value, low, high))
    first, last = map(float, spell_bounds(low, high))
    assert (first <= printed <= last) == (low <= value <= high)


def test_a_number_shows_where_in_its_band_it_lies():
    assert spell_number(0.501374, 0.50137, 0.50138) == "0.501374"
    assert spell_number(0.1234567, 0.0, 1.0) == "0.1235"


def test_no_random_number_changes_sides():
    chance = np.random.default_rng(0)
    for _ in range(2000):
        middle, width = chance.normal() * 10.0 ** chance.integers(-9, 9), 10.0 ** -chance.uniform(0, 12)
        low, high = float(middle - abs(middle) * width), float(middle + abs(middle) * width)
        for value in (low, high, chance.uniform(low, high), low - 1e-14 * abs(low), high + 1e-14 * abs(high)):
            printed = float(spell_number(float(value), low, high))
            first, last = map(float, spell_bounds(low, high))
            assert (first <= printed <= last) == (low <= value <= high)


def test_values_are_spelled_with_spread_and_number():
    assert spell_values([0.5, 0.7]) == "0.6 ± 0.1414 (n=2)"
    assert spell_values([1.0]) == "1"
    assert spell_values([0.5, 0.7, math.inf]) == "0.6 ± 0.1414 (n=2), 1 of 3 not finite"
    assert spell_values([math.nan, math.inf]) == "2 of 2 not finite"
    assert spell_values([True]) == "true"
    assert spell_values(()) == "not measured"


def test_bands_are_told_apart_from_single_numbers():
    assert spell_band(0.018379999, 0.018380001) == "0.018379999 to 0.018380001"
    assert spell_band(-math.inf, 3.0) == "3 or less"
