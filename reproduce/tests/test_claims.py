import math

import numpy as np
import pytest

from gdyn_reproduce.claims import Between, Claim, Control, Holds, Within
from gdyn_reproduce.intervals import Measured
from gdyn_reproduce.verdicts import MissingMetricError, judge, judge_all


def claim(accept, **options):
    defaults = {
        "id": "c",
        "statement": "s",
        "source": "Eq. 1",
        "metric": "m",
        "because": "b",
        "kind": "check",
    }
    return Claim(**(defaults | options), accept=accept)


def outcome(registered, values, **others):
    return judge(registered, {"m": values, **others}, scale="paper size", preset="paper").outcome


@pytest.mark.parametrize(
    ("accept", "values", "expected"),
    [
        (Between(1, 2), [1.5, 1.51, 1.49], "holds"),
        (Between(1, 2), [2.5, 2.51, 2.49], "fails"),
        (Between(1, 2), [0.5, 0.51, 0.49], "fails"),
        (Between(1, 2), [1.9, 1.99, 2.0], "undecided"),
        (Between(-1, 1), [-100.0, 100.0], "undecided"),
        (Between(1, 2), [1.5], "undecided"),
        (Between(1, 2), [1.5, 1.5, 1.5], "undecided"),
        (Between(1, 2, by="median"), [1.5] * 5, "holds"),
        (Between(1, 2, by="median"), [1.5] * 4, "undecided"),
        (Between(0.5, 1), [True] * 5, "holds"),
        (Between(0.5, 1), [True] * 4, "undecided"),
        (Between(0.0, 0.0), [False] * 6, "undecided"),
        (Within(absolute=0.1), [0.95, 0.951], "holds"),
        (Within(absolute=0.1), [1.2, 1.201], "fails"),
        (Within(relative=0.5), [0.6, 0.601], "holds"),
        (Within(relative=0.5), [1.6, 1.601], "fails"),
        (Holds(), [True] * 5, "holds"),
        (Holds(), [True] * 4, "undecided"),
        (Holds(), [True, True, False], "undecided"),
        (Holds(), [False] * 5, "fails"),
        (Holds(), True, "undecided"),
        (Holds(0.9), [True] * 29, "holds"),
        (Holds(0.9), [True] * 28, "undecided"),
    ],
)
def test_the_interval_decides_two_sided(accept, values, expected):
    assert outcome(claim(accept, paper=1.0), values) == expected


@pytest.mark.parametrize(
    ("accept", "values", "expected"),
    [
        (Between(1, 2), 1.5, "holds"),
        (Between(1, 2), [1.0, 2.0], "holds"),
        (Between(1, 2), [1.0, 2.0001], "fails"),
        (Between(1, 2), math.nan, "fails"),
        (Between(1, math.inf), math.inf, "fails"),
        (Holds(), True, "holds"),
        (Holds(), [True, False], "fails"),
    ],
)
def test_deterministic_values_need_no_interval(accept, values, expected):
    assert outcome(claim(accept, deterministic=True), values) == expected


@pytest.mark.parametrize(
    ("accept", "values", "rejected"),
    [
        (Between(1, 2), [3.0, 4.0], True),
        (Between(1, 2), [1.5, 1.5, 3.0], False),  # two of three are what the claim accepts
        (Between(1, 2), [3.0, math.nan], False),
        (Holds(), [False, False], True),
        (Holds(), [True, True, False], False),
    ],
)
def test_a_control_without_chance_is_rejected_where_all_of_it_lies_outside(accept, values, rejected):
    control = Control("null", removes="the effect", deterministic=True)
    good = [True] * 5 if isinstance(accept, Holds) else [1.5, 1.51, 1.52]
    verdict = judge(
        claim(accept, control=control), {"m": good, "null": values}, scale="scaled", preset="quick"
    )
    assert verdict.control.rejected is rejected
    assert verdict.outcome == ("holds" if rejected else "undecided")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Between(0, 1, by="boostrap"), "Unknown method 'boostrap'.*Did you mean 'bootstrap'"),
        (lambda: Within(absolute=1, by="mean"), "Unknown method 'mean'"),
        (lambda: Within(absolute=math.nan), "and a finite one"),
        (lambda: Within(relative=math.inf), "and a finite one"),
        (lambda: Within(absolute=-1, relative=1), "positive absolute or relative distance"),
    ],
)
def test_a_criterion_that_decides_nothing_or_is_misspelt_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_value_may_bring_its_own_standard_error():
    assert outcome(claim(Between(1, 2)), Measured(1.5, 0.1)) == "holds"
    assert outcome(claim(Between(1, 2)), Measured(1.5, 0.4)) == "undecided"
    assert outcome(claim(Between(1, 2)), Measured(1.5, 0.2, degrees=1)) == "undecided"
    assert outcome(claim(Between(1, 2)), Measured(1.5, 0.0)) == "undecided"
    with pytest.raises(ValueError, match="standard_error >= 0"):
        Measured(1.5, -1.0)


def test_arms_that_share_seeds_are_paired():
    paired = claim(Between(0.5, 1.5), minus="base")
    base = [10.0, 20.0, 30.0]
    assert outcome(paired, [11.0, 21.01, 30.99], base=base) == "holds"
    assert outcome(claim(Between(0.5, 1.5)), [11.0, 21.01, 30.99], base=base) == "fails"
    with pytest.raises(ValueError, match="seed by seed, but they have 3 and 2 values"):
        outcome(paired, [1.0, 2.0, 3.0], base=[1.0, 2.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("accept", [Between(0, math.inf), Between(0, 1), Between(0, 1, by="median")])
def test_a_seed_that_is_not_finite_never_holds(accept, bad):
    verdict = judge(claim(accept), {"m": [0.5, 0.51, bad]}, scale="paper size", preset="paper")
    assert verdict.outcome == "undecided"
    assert verdict.reason == "1 of 3 values is not finite"


def test_measurements_may_be_arrays_and_are_neither_mixed_nor_text():
    assert outcome(claim(Between(1, 2)), np.array([1.5, 1.51])) == "holds"
    assert outcome(claim(Holds()), np.array([True] * 5)) == "holds"
    assert outcome(claim(Holds()), [np.bool_(True)] * 5) == "holds"
    assert outcome(claim(Between(1, 2)), [1.5, 1.51] * 200_000) == "holds"
    with pytest.raises(TypeError, match=r"Holds judges truth values, got 1\.0"):
        outcome(claim(Holds()), [1.0, 1.0])
    with pytest.raises(TypeError, match="mixes numbers and truth values"):
        outcome(claim(Between(0, 1)), [1.0, True])
    with pytest.raises(TypeError, match="must be a number"):
        outcome(claim(Between(0, 1)), ["0.5"])


def test_what_is_not_judged_here_is_no_failure_and_a_missing_metric_is_an_error():
    about_paper = claim(Between(0, 1), presets=("paper",))
    for scale, preset in (("smoke", "smoke"), ("scaled", "quick")):
        verdict = judge(about_paper, {}, scale=scale, preset=preset)
        assert verdict.outcome == "not judged here"
        assert verdict.as_expected
    with pytest.raises(MissingMetricError, match=r"claim 'c' cannot be judged.*'m'.*Did you mean 'mm'"):
        judge(about_paper, {"mm": 0.5}, scale="paper size", preset="paper")
    with pytest.raises(MissingMetricError, match="holds no value"):
        judge(about_paper, {"m": []}, scale="paper size", preset="paper")


def test_a_control_is_paired_as_its_claim_is_or_with_its_own_partner():
    base, null = [10.0, 20.0, 30.0], [11.0, 21.0, 31.0]
    values = {"m": [11.0, 21.01, 30.99], "base": base, "null": [11.01, 21.0, 31.0], "null_base": null}
    for minus, expected in (("", "undecided"), ("null_base", "holds")):
        control = Control("null", removes="labels shuffled", minus=minus)
        paired = claim(Between(0.5, 1.5), minus="base", kind="statement", control=control)
        assert judge(paired, values, scale="scaled", preset="quick").outcome == expected


def test_a_control_may_be_an_exact_zero_where_the_claim_is_not_exact():
    values = {"m": [1.5, 1.51, 1.49], "null": 0.0}
    for deterministic, expected in ((False, "undecided"), (True, "holds")):
        control = Control("null", removes="the perturbation", deterministic=deterministic)
        controlled = claim(Between(1, 2), kind="statement", control=control)
        assert judge(controlled, values, scale="scaled", preset="quick").outcome == expected


NULL = Control("null", removes="labels shuffled")


def of_paper(**options):
    return claim(Between(1, 2), kind="statement", **options)


def test_a_claim_of_the_paper_holds_only_if_its_control_is_rejected():
    values = [1.5, 1.51, 1.49]
    controlled = of_paper(control=NULL)
    assert outcome(controlled, values, null=[3.0, 3.1]) == "holds"
    for null in ([1.4, 1.41], [1.9, 2.1], [3.0], [math.nan, 3.0]):
        verdict = judge(controlled, {"m": values, "null": null}, scale="scaled", preset="quick")
        assert verdict.outcome == "undecided"
        assert "does not reject its control (labels shuffled)" in verdict.reason
        assert verdict.control.values == pytest.approx(null, nan_ok=True)
        assert not verdict.control.rejected
    assert outcome(controlled, [3.0, 3.1], null=[1.5, 1.51]) == "fails"
    with pytest.raises(MissingMetricError, match="'null'"):
        outcome(controlled, values)


def test_a_claim_without_a_control_needs_a_reason():
    values = [1.5, 1.51, 1.49]
    assert of_paper().needs_control
    assert outcome(of_paper(), values) == "undecided"
    assert not of_paper(no_control="an identity").needs_control
    assert outcome(of_paper(no_control="an identity"), values) == "holds"
    assert not claim(Between(1, 2)).needs_control
    with pytest.raises(ValueError, match="keep one"):
        of_paper(control=NULL, no_control="none")


def test_a_gate_that_fails_leaves_a_claim_undecided_and_is_a_surprise():
    gated = claim(Between(1, 2), requires=("trained",))
    values = [1.5, 1.51, 1.49]
    assert outcome(gated, values, trained=[True] * 3) == "holds"
    verdict = judge(gated, {"m": values, "trained": [True, False, True]}, scale="scaled", preset="quick")
    assert (verdict.outcome, verdict.as_expected) == ("undecided", False)
    assert verdict.reason == "it requires 'trained', which is true for 2 of 3 seeds"
    assert outcome(gated, [9.0, 9.1], trained=False) == "undecided"
    with pytest.raises(MissingMetricError, match="'trained'"):
        outcome(gated, values)
    with pytest.raises(TypeError, match="no truth value"):
        outcome(gated, values, trained=1.0)


def test_a_gate_may_be_another_claim():
    first = claim(Between(1, 2), id="first")
    second = claim(Between(1, 2), metric="n", requires=("first",))
    good, bad = [1.5, 1.51], [5.0, 5.1]
    verdicts = judge_all([second, first], {"m": bad, "n": good}, scale="scaled", preset="quick")
    assert [verdict.outcome for verdict in verdicts] == ["undecided", "fails"]
    assert verdicts[0].reason == "it requires first, which is fails"
    verdicts = judge_all([second, first], {"m": good, "n": good}, scale="scaled", preset="quick")
    assert [verdict.outcome for verdict in verdicts] == ["holds", "holds"]
    circle = claim(Between(1, 2), id="first", requires=("c",))
    with pytest.raises(ValueError, match="require each other: c -> first -> c"):
        judge_all([second, circle], {"m": good, "n": good}, scale="scaled", preset="quick")


@pytest.mark.parametrize(
    ("expected", "values", "as_expected"),
    [
        ("holds", [1.0, 1.01], True),
        ("holds", [5.0, 5.01], False),
        ("holds", [1.0, 5.0], True),
        ("fails", [5.0, 5.01], True),
        ("fails", [1.0, 1.01], False),
        ("undecided", [1.0, 1.01], False),
        ("undecided", [1.0, 5.0], True),
    ],
)
def test_a_decision_against_the_expected_one_is_a_surprise_in_either_direction(expected, values, as_expected):
    registered = claim(Between(0, 2), expected=expected, expected_because="we know better")
    verdict = judge(registered, {"m": values}, scale="paper size", preset="paper")
    assert verdict.as_expected is as_expected


def test_the_kind_follows_from_the_papers_value_unless_given():
    options = {"kind": None}
    assert claim(Between(0, 1), paper=0.5, **options).kind == "number"
    assert claim(Between(0, 1), paper="about a half", **options).kind == "statement"
    assert claim(Between(0, 1), **options).kind == "statement"
    assert claim(Between(0, 1)).kind == "check"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expected": "fails"}, "say why in expected_because"),
        ({"expected": "partly"}, "Unknown expected 'partly'"),
        ({"kind": "numbr"}, "Did you mean 'number'"),
        ({"kind": "number"}, "no value of the paper"),
    ],
)
def test_a_claim_says_all_it_must(options, message):
    with pytest.raises(ValueError, match=message):
        claim(Between(0, 1), **options)


def test_impossible_criteria_are_refused():
    with pytest.raises(ValueError, match="low <= high"):
        Between(2, 1)
    with pytest.raises(ValueError, match="nothing can leave"):
        Between(-math.inf, math.inf)
    with pytest.raises(ValueError, match="positive"):
        Within()
    with pytest.raises(ValueError, match="between 0 and 1"):
        Holds(1.0)
    with pytest.raises(TypeError, match="use Between"):
        Within(absolute=1).judge([1.0, 1.1], "about one")
