"""What is checked: bands and their reasons.

A claim that only re-evaluates a formula of the papers on a closed form is a check of ours.
"""

from __future__ import annotations

from dd_two_player.paper.figures import GAMES
from gdyn_reproduce.claims import Between, Claim, Control, Holds

EXACT = "deterministic in double precision; the band is the rounding of the quoted digits"


def number(figure: str, metric: str, value: float, digits: float, statement: str, source: str) -> Claim:
    """Return a check of one deterministic number, to the given rounding."""
    return Claim(
        f"{figure}.{metric}",
        statement,
        source,
        metric,
        Between(value - digits, value + digits),
        EXACT,
        kind="check",
        deterministic=True,
    )


_LINEAR = "derived: trace of J - (h/2) J^2 and its alternating form, e = .09, h = .2"
_DIRAC = "derived: DiracGAN with softplus losses from (1, 1), h = .1"
ORDER = "least-squares slope over three rates; the next order bends it by less than the band"

_IMPROVES = (
    "the paper claims an improvement, of no stated size on other data; less than 0.3 would point to "
    "reference runs that failed rather than to a better method"
)

_THEOREMS = f"{GAMES}, theorems on the modified flows"
_NO_DRIFT = Control("order_none", removes="the drift terms of the modified flow")

_UNTRAINED = Control("untrained_distance_ratio", removes="training, all of it")
_DOUBLED = Control("double_distance_ratio", removes="the sign of the correction: the drift is doubled")

CLAIMS = (
    number("linear-game", "trace_flow", -0.18, 1e-9, "the flow converges", _LINEAR),
    number("linear-game", "trace_simultaneous", 0.01838, 1e-9, "the modified flow diverges", _LINEAR),
    number("linear-game", "trace_alternating", -0.18162, 1e-9, "alternating converges faster", _LINEAR),
    number("linear-game", "radius_simultaneous", 1.00216, 5e-6, "simultaneous descent diverges", _LINEAR),
    number("linear-game", "radius_alternating", 0.982, 5e-6, "alternating descent converges", _LINEAR),
    number("linear-game", "threshold_modified", 0.18147, 5e-6, "rate where the modified flow turns", _LINEAR),
    number("linear-game", "threshold_discrete", 0.17855, 5e-6, "rate where descent turns", _LINEAR),
    Claim(
        "linear-game.damped",
        "with damping .2 both schemes converge at h = .2",
        f"{GAMES}, linear game",
        "both_converge_with_damping_0.2",
        Holds(),
        EXACT,
        kind="check",
        deterministic=True,
    ),
    number("dirac-gan", "flow_norm", 1.41421, 1e-5, "the flow keeps its distance", _DIRAC),
    number("dirac-gan", "path_norm", 1.58697, 1e-5, "descent spirals out", _DIRAC),
    number("dirac-gan", "modified_norm", 1.58529, 1e-5, "the modified flow spirals out alike", _DIRAC),
    number("dirac-gan", "final_simultaneous", 2.756, 5e-4, "after 1000 steps: simultaneous", _DIRAC),
    number("dirac-gan", "final_alternating_gen_first", 1.432, 5e-4, "alternating, generator first", _DIRAC),
    number(
        "dirac-gan", "final_alternating_disc_first", 1.382, 5e-4, "alternating, discriminator first", _DIRAC
    ),
    number("dirac-gan", "final_cancelled", 1.412, 5e-4, "interaction cancelled", _DIRAC),
    *(
        Claim(
            f"dirac-gan.{name}",
            f"{words} converges",
            f"{GAMES}, DiracGAN, explicit regularisation",
            f"final_{name}",
            Between(0.0, 0.01),
            "a distance, so zero is its floor; the ceiling is a hundredth of the starting distance",
            deterministic=True,
            control=Control("final_simultaneous", removes="the explicit regularisation"),
        )
        for name, words in (("consensus", "consensus optimisation"), ("sga", "SGA"))
    ),
    Claim(
        "tracking.plain",
        "the flow tracks descent to first order",
        f"{GAMES}, order of the tracking error",
        "order_plain",
        Between(0.9, 1.15),
        ORDER,
        deterministic=True,
        control=Control("order_corrected", removes="the drift, by comparing with the modified flow"),
    ),
    Claim(
        "tracking.corrected",
        "the modified flow tracks it to second order",
        f"{GAMES}, order of the tracking error",
        "order_corrected",
        Between(1.9, 2.15),
        ORDER,
        deterministic=True,
        control=Control("order_plain", removes="the drift terms of the modified flow"),
    ),
    Claim(
        "tracking.joint",
        "at unequal rates the joint convention tracks to second order",
        "derived, see `dd_two_player.drift`",
        "order_modified_joint",
        Between(1.85, 2.15),
        ORDER,
        kind="check",
    ),
    Claim(
        "tracking.paper-convention",
        "at unequal rates the paper's own-clock convention stays at first order over several steps",
        "derived, see `dd_two_player.drift`",
        "order_modified_paper",
        Between(0.85, 1.15),
        ORDER,
        kind="check",
    ),
    Claim(
        "tracking.cancel-joint",
        "cancelling all drift in joint time tracks the original flow to second order",
        "derived, see `dd_two_player.drift`",
        "order_cancel_joint",
        Between(1.85, 2.15),
        ORDER,
        kind="check",
    ),
    Claim(
        "tracking.cancel-paper",
        "cancelling in the paper's convention does not, at unequal rates",
        "derived, see `dd_two_player.drift`",
        "order_cancel_paper",
        Between(0.85, 1.15),
        ORDER,
        kind="check",
    ),
    *(
        Claim(
            f"local-error.{convention}",
            f"local error of order {order} with the convention {convention}",
            source,
            f"order_{convention}",
            Between(order - 0.15, order + 0.15),
            ORDER,
            kind="check" if control is None else "statement",
            control=control,
        )
        for convention, order, source, control in (
            ("none", 2, _THEOREMS, Control("order_paper", removes="the drift, by the modified flow")),
            ("paper", 3, _THEOREMS, _NO_DRIFT),
            ("joint", 3, "derived, see `dd_two_player.drift`", None),
            ("original_single_updates", 3, _THEOREMS, _NO_DRIFT),
            ("original_several_updates", 2, "the published code, see the deviations", None),
        )
    ),
    *(
        Claim(
            f"network-theorem.{kind}",
            statement,
            _THEOREMS,
            f"order_{kind}",
            Between(order - 0.25, order + 0.35),
            "slope over three rates on networks; the next order bends it by less than that",
            registered_because="a first run at twice the rates over twice the time gave 1.1, 2.0 and 2.1 "
            "on the saturating game, and another, less smooth game diverged",
            control=control,
        )
        for kind, order, statement, control in (
            (
                "plain",
                1,
                "on networks the flow tracks descent to first order",
                Control("order_modified", removes="the drift, by comparing with the modified flow"),
            ),
            (
                "modified",
                2,
                "on networks the modified flow tracks descent to second order",
                Control("order_plain", removes="the drift terms of the modified flow"),
            ),
            (
                "cancel",
                2,
                "on networks descent with all drift cancelled tracks the flow to second order",
                Control("order_double", removes="the sign of the correction: the drift is doubled"),
            ),
        )
    ),
    Claim(
        "network-theorem.interaction-only",
        "cancelling the interaction alone brings descent of networks a little nearer to the flow: self terms "
        "dominate (distance at the smallest rate, over that of plain descent)",
        "ours, on the sizes of the terms",
        "cancel_interaction_error_ratio",
        Between(0.6, 1.0),
        "nearer, but by less than two fifths",
        kind="check",
        registered_because="a first run at twice the rates gave 0.93 +- 0.04",
        control=Control("cancel_error_ratio", removes="the self terms too"),
    ),
    *(
        Claim(
            f"ratio-law.{effect}",
            f"with alternating updates, cancelling the interaction {effect} where the discriminator's rate "
            f"is {ratio} the generator's (distance to the data, cancelled minus not)",
            f"{GAMES}, interaction terms of alternating updates and the ratio of rates",
            f"alternating_cancel@{rates}/distance",
            accept,
            "a sign; the far end is about twice the distance of trained runs",
            requires=("alternating_trained", "alternating_cancel_trained"),
            presets=("long",),
            minus=f"alternating@{rates}/distance",
            **more,
        )
        for effect, ratio, rates, accept, more in (
            (
                "harms",
                "twice",
                "0.2:0.1",
                Between(0.0, 5.0),
                {
                    "control": Control(
                        "alternating_double@0.2:0.1/distance",
                        "the sign of the correction: the drift is doubled",
                        "alternating@0.2:0.1/distance",
                    )
                },
            ),
            (
                "helps",
                "half",
                "0.05:0.1",
                Between(-5.0, 0.0),
                {
                    "control": Control(
                        "alternating_cancel@0.2:0.1/distance",
                        "the ratio, which is inverted",
                        "alternating@0.2:0.1/distance",
                    ),
                    "registered_because": "claim and band are older than the run; its control was the drift "
                    "doubled, which one diverged seed of twenty left undecided",
                    "expected": "undecided",
                    "expected_because": "nine of twenty seeds gain; the mean is a tenth of its spread",
                },
            ),
        )
    ),
    Claim(
        "gan-simultaneous.cancel",
        "cancelling the interaction terms brings samples closer to the data",
        f"{GAMES}, CIFAR-10, simultaneous updates",
        "cancel_distance_ratio",
        Between(0.3, 1.0),
        _IMPROVES,
        requires=("plain_trained", "cancel_trained"),
        control=_DOUBLED,
    ),
    Claim(
        "gan-simultaneous.stability",
        "with the interaction terms cancelled no run diverges",
        f"{GAMES}, CIFAR-10, simultaneous updates",
        "cancel_trained",
        Holds(),
        "every run of the small version must end closer to the data than it began; most of all runs, since a "
        "few seeds cannot show more",
        registered_because="judged as a share of exactly 0 before, which 3 of 3 runs gave; a share needs "
        "an interval",
        control=Control("double_trained", removes="the sign of the correction: the drift is doubled"),
    ),
    Claim(
        "gan-alternating.beats-simultaneous",
        "alternating updates come closer to the data than simultaneous ones",
        f"{GAMES}, CIFAR-10, alternating updates",
        "alternating_distance_ratio",
        Between(0.3, 1.0),
        _IMPROVES,
        expected="undecided",
        expected_because="at rates 0.02:0.1 no run ends closer to the data than it began, and at 0.05:0.1 "
        "not every one; where all runs train, at 0.1:0.1 and 0.2:0.1, the ratio is about a half",
        requires=("plain_trained", "alternating_trained"),
        control=Control(
            "double_distance_ratio", removes="alternation, for simultaneous updates with the drift doubled"
        ),
    ),
    Claim(
        "ode-gan-adam.adam",
        "Adam is a strong baseline: closer to the data than plain descent",
        f"{GAMES}, comparison with Adam",
        "adam_distance_ratio",
        Between(0.3, 1.0),
        _IMPROVES,
        expected="fails",
        expected_because="first measured 1.21 +- 0.15: at rate 1e-3 Adam is behind within the 400 steps of "
        "the small version; whether it catches up was not studied",
        requires=("plain_trained", "adam_trained"),
        control=_UNTRAINED,
    ),
    Claim(
        "ode-gan-adam.rk4",
        "at equal numbers of gradients Runge-Kutta of order 4 is behind plain descent",
        "ours, after the comparison with Runge-Kutta in the paper",
        "rk4_distance_ratio",
        Between(1.0, 5.0),
        "a quarter of the steps at the same rates must be further from the data while training improves; "
        "five times further would mean that the Runge-Kutta runs did not train",
        kind="check",
        expected="undecided",
        expected_because="with a quarter of the steps none of three seeds trained: the gate is closed",
        requires=("plain_trained", "rk4_trained"),
    ),
    Claim(
        "gan-grid.cancel",
        "cancelling the interaction terms brings samples closer to the data over three ratios of rates",
        f"{GAMES}, CIFAR-10, grid of learning rates",
        "cancel_distance_ratio",
        Between(0.3, 1.0),
        _IMPROVES,
        expected="undecided",
        expected_because="first measured 0.82 +- 0.13 over four seeds; the fifth has one run, at rates "
        "0.2:0.1, whose parameters did not stay finite, and that counts as infinitely far",
        requires=("plain_trained", "cancel_trained"),
        control=_UNTRAINED,
    ),
    Claim(
        "mnist.cancel",
        "cancelling the interaction terms does no harm on MNIST",
        f"{GAMES}, simultaneous updates, on its MNIST configuration",
        "cancel_distance_ratio",
        Between(0.5, 1.1),
        "2 000 steps are early in training; a tenth is about the spread over seeds we expect, and a halved "
        "distance would point to reference runs that failed",
        requires=("mnist.trains",),
        control=_UNTRAINED,
        expected="undecided",
        expected_because="no run trains, so there is nothing to harm",
    ),
    Claim(
        "mnist.trains",
        "without correction the samples come closer to the data than before training",
        "check that there is something to compare, ours",
        "plain_training_ratio",
        Between(0.02, 0.8),
        "where training takes off at all it removes a fifth of the distance well within 2 000 steps; less "
        "than a fiftieth of it would be left only by a score that does not see early samples",
        kind="check",
        expected="fails",
        expected_because="at the released rates, 0.01 for both players, all three runs end farther from the "
        "data than they began, on two processors; 2 000 steps are a fiftieth of the published length",
    ),
    Claim(
        "mnist.classifier",
        "the classifier that scores the samples knows MNIST",
        "check of the measuring tool, ours",
        "classifier_accuracy",
        Between(0.95, 0.999),
        "a fully connected network of two layers reaches .97 to .98 on the test split; more than .999 would "
        "mean that it was tested on its training data",
        presets=("quick",),
        kind="check",
        deterministic=True,
    ),
)
