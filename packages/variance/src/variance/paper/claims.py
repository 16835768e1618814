"""Every claim that is judged.

Paper values are read off the authors' plots unless a claim says otherwise.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gdyn_reproduce.claims import Between, Claim, Control, Criterion, Holds, Kind, Within
from variance.paper.figures import FIGURES

EXPECTED_ORDER = "a strict order of four curves, per seed"
PAPER_PLOT = (
    "half to twice the value read off the plot; the network and its initialisation are not fully specified"
)
ORTHOGONAL = (
    "gradients residual * x of isotropic inputs are nearly orthogonal, so clusters can only sort them by "
    "length: stratification into few clusters does not get far below (E|g|)^2 / E|g|^2 = 2/pi of SG-B (exact "
    "moves reach 0.61 to 0.66, the published rank-1 centres 0.93 to 0.98), while SG-2B is at 1/2; the inputs "
    "of the published figure presumably are not N(0, I). It was expected to hold before the first run"
)

CHANCE = "what makes the examples of a cluster alike: strata of the same sizes, filled at random"
ALL_SG = "the estimators: the first measurement, up to which all runs are driven by SG-B"
REVERSED = (
    "a truth value before, whose control was the reversed order, which would be rejected whatever was "
    "measured; a factor can be compared with that between runs without the effect"
)
UNTRAINED = "training: the first measurement"
SOURCES = {figure.id: figure.source for figure in FIGURES}


def _claim(
    kind: Kind,
    id: str,
    statement: str,
    metric: str,
    accept: Criterion,
    because: str,
    source: str = "",
    **more: Any,
) -> Claim:
    """Return a claim; where no source is given, it is that of the figure, or for checks this package."""
    source = source or ("this package" if kind == "check" else SOURCES[id.partition(".")[0]])
    return Claim(id, statement, source, metric, accept, because, **more, kind=kind)


number, statement, check = (partial(_claim, kind) for kind in ("number", "statement", "check"))

CLAIMS = (
    statement(
        "F1.order",
        "at the end SVRG < GC < SG-2B < SG-B in average variance",
        "order_at_end",
        Holds(),
        EXPECTED_ORDER,
        presets=("paper",),
        control=Control("order_chance", removes=CHANCE),
    ),
    statement(
        "F1.order-digits",
        "on digits, too, SVRG ends below GC",
        "order_at_end",
        Holds(),
        EXPECTED_ORDER,
        expected="fails",
        presets=("quick",),
        expected_because="on digits 64 clusters leave 6 % of the variance of SG-B, less than the 6 to "
        "15 % that SVRG leaves with snapshots 500 steps apart (first run; it was expected to hold)",
        control=Control("order_chance", removes=CHANCE),
    ),
    number(
        "F1.gc-over-sg",
        "gradient clustering lies below the doubled batch, which is about half of SG-B",
        "gc_over_sg",
        Between(0.0, 0.5),
        "SG-2B is half of SG-B but for what batches without replacement gain, which is 4 % on digits",
        paper=0.33,
        presets=("quick",),
        control=Control("chance_over_sg", removes=CHANCE),
    ),
    number(
        "F1.sg-avg-var",
        "average variance of SG-B at the end",
        "avg_var_SG-B",
        Within(relative=0.5),
        PAPER_PLOT,
        paper=15e-9,
        presets=("paper",),
        control=Control("first_SG-B", removes=UNTRAINED),
    ),
    number(
        "F1.gc-avg-var",
        "average variance of GC at the end",
        "avg_var_GC",
        Within(relative=0.5),
        PAPER_PLOT,
        paper=5e-9,
        presets=("paper",),
        control=Control("first_GC", removes=UNTRAINED),
    ),
    number(
        "F2.jump",
        "normalised variance jumps when the learning rate drops",
        "norm_var_jump",
        Between(0.05, 0.6),
        "the plot shows 0.8 to 0.95; a preliminary digits run 0.72 to 0.98",
        paper=0.15,
        control=Control("jump_without_drop", removes="the drop: half the way to it"),
        registered_because="a preliminary run on digits gave 0.72 to 0.98",
    ),
    number(
        "F2.end",
        "normalised variance ends close to 1",
        "norm_var_end",
        Between(0.9, 1.05),
        "0.98 in the plot; above 1 only by the noise floor of the reference definition",
        paper=0.98,
        control=Control("norm_var_before", removes="the drop: the steps before it"),
    ),
    number(
        "F2.rise",
        "variance rises in training before the drop",
        "variance_rise",
        Between(1.05, 10.0),
        "a factor of about 3 over all of CIFAR training; any rise beyond 5 % counts",
        paper=3.1,
        control=Control("rise_after_drop", removes="the large learning rate: the steps after its drop"),
    ),
    number(
        "F3.gc-over-sg",
        "GC lies between SG-2B and SG-B",
        "gc_over_sg",
        Between(0.3, 1.0),
        "0.67 in the plot; 0.37 to 0.58 in a preliminary digits run, where K = B = 64",
        paper=0.67,
        control=Control("chance_over_sg", removes=CHANCE),
        registered_because="a preliminary run on digits gave 0.37 to 0.58, which the band includes",
    ),
    statement(
        "F3.gc-stable",
        "GC stays below SG-B after the start of training",
        "gc_worst",
        Between(0.0, 1.0),
        "stable means no spikes; exact variances fluctuate by a few per cent only",
        control=Control("chance_worst", removes=CHANCE),
        registered_because="the band ended at 2, which random strata do not reach; a run on digits gave 0.43",
    ),
    number(
        "F4.gc-over-sg2",
        "with duplicates GC lies below SG-2B",
        "gc_over_sg2",
        Between(0.0, 1.0),
        "0.35 in the CIFAR-10 plot; the order is the claim",
        paper=0.35,
        control=Control("chance_over_sg2", removes=CHANCE),
    ),
    number(
        "F5.gc",
        "GC equals SG-B",
        "gc_over_sg",
        Between(0.9, 1.1),
        "the curves lie on each other, to 10 % for reading them",
        paper=1.0,
        control=Control("many_over_sg", removes="the shortage of clusters: 32 of them"),
        registered_because="the band reached down to 0.6, where 32 clusters are, too: they leave 0.72 in the "
        "run that showed it, and two leave 0.99",
    ),
    statement(
        "F5.svrg-before",
        "before the learning rate drops SVRG has a higher variance than SG-B",
        "svrg_over_sg_before",
        Between(1.0, 20.0),
        "above in the plot; two uncorrelated gradients would give 2",
        control=Control("svrg_over_sg_after", removes="the large learning rate: the steps after its drops"),
    ),
    statement(
        "F5.svrg-after",
        "after the drops SVRG has a far lower variance than SG-B",
        "svrg_over_sg_after",
        Between(0.0, 0.5),
        "far below in the plot; below SG-2B in any case",
        control=Control("svrg_over_sg_before", removes="the drops: the steps before them"),
    ),
    number(
        "F5.rise",
        "variance of SG-B rises over training",
        "variance_rise",
        Between(1.05, 20.0),
        "a factor of 10 over all of training in the plot; any rise beyond 5 % counts. Not judged on digits "
        "since a first run, where the interpolated loss made it fall to 0.01",
        paper=9.6,
        presets=("paper",),
        control=Control("rise_between_neighbours", removes="the time between: neighbouring measurements"),
        registered_because="judged at every size before; on digits, whose loss is interpolated, it gave 0.01",
    ),
    number(
        "F6.fall",
        "variance falls with over-parametrisation at learning rate 0.01",
        "fall_at_0.01",
        Between(20.0, 1e5),
        "4 000 in the plot at learning rate 0.01; it grows with the number of steps, which the "
        "quick preset shortens",
        paper=4000.0,
        control=Control("fall_at_one_ratio", removes="the ratio: another seed at the smallest one"),
        registered_because="metric changed from the largest rate to 0.01 in the commit that added records",
    ),
    statement(
        "F6.rate",
        "at the largest ratio a lower learning rate leaves a higher variance",
        "rise_per_rate",
        Between(2.0, 1e7),
        "smallest factor between neighbouring rates; decades in the plot, and seeds differ by less than 2",
        control=Control("rise_at_one_rate", removes="the change of rate: another seed at the largest one"),
        registered_because=REVERSED,
    ),
    statement(
        "F6.gap",
        "the gap between learning rates grows with the ratio",
        "gap_growth",
        Between(2.0, 1e7),
        "gap at the largest ratio over that at the smallest; decades in the plot, and seeds differ by less "
        "than 2",
        control=Control("gap_growth_at_one_ratio", removes="the change of ratio: another seed"),
        registered_because=REVERSED,
    ),
    statement(
        "F6.gc",
        "GC lies between SG-B and SG-2B",
        "gc_over_sg",
        Between(0.5, 1.0),
        "0.63 to 0.76 in a preliminary run",
        control=Control("chance_over_sg", removes=f"{CHANCE}, at the smallest ratio"),
        registered_because="a preliminary run gave 0.63 to 0.76",
    ),
    statement(
        "F7.gc-over-sg2",
        "with 90 % duplicates GC lies below SG-2B",
        "gc_over_sg2",
        Between(0.0, 0.8),
        "far below in the plot; 0.8 asks for a clear margin",
        control=Control("chance_over_sg2", removes=CHANCE),
    ),
    statement(
        "F7.gc-below-svrg",
        "with 90 % duplicates GC lies below SVRG above ratio 2",
        "gc_below_svrg_at_high_ratio",
        Holds(),
        "per seed",
        expected="undecided",
        expected_because="two of three seeds at quick size (0.77, 0.82, 1.16 of SVRG): exact copies tie, so "
        "rounding decides which cluster they join; with other passes through the network all three held, "
        "as was expected before",
        control=Control("chance_below_svrg_at_high_ratio", removes=CHANCE),
    ),
    number(
        "F8.random",
        "random assignment gives D0/K",
        "random_over_ideal",
        Between(0.8, 1.05),
        "exact for K much smaller than N; small clusters lose (N_k - 1)/N_k",
        paper=1.0,
        control=Control("clustered_over_ideal_many", removes="the randomness of the assignment"),
    ),
    number(
        "F8.half",
        "for large K clustering gives at most D0/2K",
        "clustered_over_ideal_many",
        Between(0.0, 0.6),
        "0.5 in the plot, with 20 % of slack for reading it",
        paper=0.5,
        control=Control("random_over_ideal", removes="clustering: random assignment"),
    ),
    statement(
        "F9.variance",
        "variance: SVRG < GC < SG-2B < SG-B",
        "variance_order",
        Holds(),
        EXPECTED_ORDER,
        expected="fails",
        expected_because=ORTHOGONAL,
        control=Control("variance_order_chance", removes=CHANCE),
    ),
    statement(
        "F9.loss",
        "loss above the minimum: SVRG < GC < SG-2B < SG-B",
        "loss_order",
        Holds(),
        EXPECTED_ORDER,
        expected="fails",
        expected_because=ORTHOGONAL,
        control=Control("loss_order_at_start", removes=ALL_SG),
    ),
    statement(
        "F9.plain",
        "variance and loss above the minimum without GC: SVRG < SG-2B < SG-B",
        "plain_order",
        Holds(),
        "two strict orders of three curves, per seed; registered after the first run, as what is left of the "
        "published order, with a larger learning rate at quick size (0.02 instead of 0.005)",
        control=Control("plain_order_at_start", removes=ALL_SG),
        registered_because="the published order with GC failed; this is what was left, at a larger rate",
    ),
    number(
        "F9.gc-over-sg",
        "GC has about a fifth of the variance of SG-B",
        "gc_over_sg",
        Between(0.05, 0.5),
        "0.2 in the plot; below SG-2B in any case",
        paper=0.2,
        expected="fails",
        expected_because=ORTHOGONAL,
        control=Control("chance_over_sg", removes=CHANCE),
    ),
    check(
        "F9.gc-limit",
        "GC lies between the limit 2/pi of stratified sampling and SG-B",
        "gc_over_sg",
        Between(0.57, 1.05),
        "2/pi = 0.64 is (E|g|)^2 / E|g|^2 for orthogonal gradients with Gaussian residuals, less 10 % for "
        "finite N; the rank-1 clusters leave 0.93 to 0.98, and 5 % more is the cost of unequal sizes; "
        "registered after the first run, to bound what the published fifth is missed by",
        registered_because="the first run missed the published fifth; this bounds by how much",
    ),
    statement(
        "F10.rate",
        "smaller learning rates go with higher variance",
        "rise_per_rate",
        Between(2.0, 1e4),
        "smallest factor between neighbouring rates of three; seeds differ by less than 2",
        control=Control("rise_at_one_rate", removes="the change of rate: another seed at the largest one"),
        registered_because=REVERSED,
    ),
    statement(
        "F10.decline",
        "normalised variance declines in training",
        "norm_var_change",
        Between(0.0, 0.95),
        "end over start, the largest of all rates; any decline beyond 5 % counts",
        source="MNIST figures, in contrast to F2",
        expected="fails",
        presets=("quick",),
        expected_because="on digits the loss is interpolated, the mean gradient vanishes faster than the "
        "noise, and the unbiased ratio tends to 1; part of the published decline is the constant 1e-7 of "
        "its definition",
        control=Control("norm_var_change_of_neighbours", removes="the time between"),
        registered_because=REVERSED,
    ),
    statement(
        "F10.speed",
        "normalised variance correlates better with the speed of convergence than variance does",
        "advantage",
        Between(0.05, 1.0),
        "difference of absolute rank correlations over three learning rates and all intervals of training; "
        "the paper prints no number, and shuffled speeds give 0 with a deviation below 0.01",
        expected="undecided",
        expected_because="five seeds at quick size give -0.11 to 0.28, more spread than the band's distance "
        "from zero; it was expected to hold before",
        control=Control("advantage_shuffled", removes="what goes with what: the speeds are shuffled"),
        presets=("quick", "paper"),
    ),
    check(
        "F10.norm-var-end",
        "on digits normalised variance tends to 1",
        "norm_var_end",
        Between(0.9, 1.001),
        "a ratio of exact moments cannot exceed 1; 0.95 in a preliminary run",
        presets=("quick",),
        registered_because="a preliminary run gave 0.95",
    ),
)
