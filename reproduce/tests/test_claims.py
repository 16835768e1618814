import math

import pytest

from gdyn_reproduce.claims import Between, Claim, Holds, Within, judge


def claim(accept, **options):
    defaults = {"id": "c", "figure": "f", "statement": "s", "source": "Eq. 1", "metric": "m", "because": "b"}
    return Claim(**defaults, accept=accept, **options)


@pytest.mark.parametrize(
    ("accept", "values", "outcome"),
    [
        (Between(1, 2), [1.0], "holds"),
        (Between(1, 2), [2.0], "holds"),
        (Between(1, 2), [2.0001], "fails"),
        (Between(1, 2), [0.9999], "fails"),
        (Between(1, 2), [1.5, 1.5, 9.0], "partly"),
        (Between(1, 2), [1.5, 9.0, 9.0], "fails"),
        (Within(absolute=0.1), [0.95], "holds"),
        (Within(absolute=0.1), [1.2], "fails"),
        (Within(relative=0.5), [0.6], "holds"),
        (Within(relative=0.5), [1.6], "fails"),
        (Holds(), [True, True], "holds"),
        (Holds(), [True, True, False], "partly"),
        (Holds(), [True, False], "fails"),
        (Holds(), False, "fails"),
    ],
)
def test_outcomes_are_two_sided(accept, values, outcome):
    verdict = judge(claim(accept, paper=1.0), values, scale="paper", preset="paper")
    assert verdict.outcome == outcome


def test_a_missing_measurement_a_smoke_run_and_another_preset_are_not_run():
    about_paper = claim(Between(0, 1), presets=("paper",))
    assert judge(about_paper, None, scale="paper", preset="paper").outcome == "not run"
    assert judge(about_paper, 0.5, scale="smoke", preset="smoke").outcome == "not run"
    assert judge(about_paper, 0.5, scale="scaled down", preset="quick").outcome == "not run"
    assert judge(about_paper, 0.5, scale="paper", preset="paper").outcome == "holds"


@pytest.mark.parametrize("accept", [Between(-math.inf, math.inf), Holds()])
def test_nan_never_passes(accept):
    assert judge(claim(accept), [0.5, math.nan], scale="paper", preset="paper").outcome == "fails"


@pytest.mark.parametrize(
    ("expected", "values", "as_expected"),
    [("holds", [1.0], True), ("holds", [5.0], False), ("fails", [5.0], True), ("fails", [1.0], False)],
)
def test_an_unexpected_outcome_in_either_direction_is_a_surprise(expected, values, as_expected):
    registered = claim(Between(0, 2), expected=expected, expected_because="we know better")
    assert judge(registered, values, scale="paper", preset="paper").as_expected is as_expected


def test_expecting_a_failure_needs_a_reason():
    with pytest.raises(ValueError, match="say why in expected_because"):
        claim(Between(0, 1), expected="fails")


def test_impossible_criteria_are_refused():
    with pytest.raises(ValueError, match="low <= high"):
        Between(2, 1)
    with pytest.raises(ValueError, match="positive"):
        Within()
    with pytest.raises(TypeError, match="use Between"):
        Within(absolute=1).judge([1.0], "about one")
