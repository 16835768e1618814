"""Claims of the studies beyond the paper's figures."""

from __future__ import annotations

from gdyn_reproduce.claims import Between, Control, Holds
from variance.paper.claims import check, statement

STUDY_CLAIMS = (
    statement(
        "clusters_2d.variance",
        "four gradient clusters with mean gradients as centres beat uniform sampling",
        "stratified_over_uniform",
        Between(0.0, 0.6),
        "below 1 by construction of good clusters; blobs are well apart. Judged on the published rank-1 "
        "centres before the first run, where it failed (0.95)",
        source="theorem of the paper",
        control=Control("chance_over_uniform", removes="what makes the examples of a cluster alike"),
        registered_because="judged on the published rank-1 centres before the first run, where it gave 0.95",
    ),
    check(
        "clusters_2d.product",
        "rank-1 centres (products of mean factors) give no better clusters than random ones here",
        "product_over_uniform",
        Between(0.85, 1.05),
        "on data symmetric in sign equal gradients have opposite factors, so the centres vanish, all "
        "distances agree and the weights alone decide; registered after a first run that gave 0.95; 1 for "
        "random clusters",
        registered_because="a first run gave 0.95",
    ),
    statement(
        "clusters_2d.flipped",
        "flipped labels have larger gradients than the rest",
        "flipped_apart",
        Between(1.5, 20.0),
        "ratio of mean gradient norms",
        source="two-dimensional gallery",
        control=Control("chosen_apart", removes="the flips: as many examples chosen at random"),
    ),
    statement(
        "gallery.labels",
        "gradient clusters are purer in labels than random ones of the same sizes",
        "purity_over_chance",
        Between(1.3, 10.0),
        "1 for random clusters, 10 for perfect ones of ten classes; they follow errors as well as labels",
        source="cluster galleries of the paper's notebooks",
        control=Control(
            "another_chance_purity_over_chance", removes="clustering: random clusters of the same sizes"
        ),
    ),
    statement(
        "gallery.corrupted",
        "some cluster consists mostly of examples with random labels",
        "corrupted_share",
        Between(0.5, 1.0),
        "10 % of the labels are random, so chance is 0.1; half is a clear majority of a cluster",
        source="cluster galleries of the paper's notebooks",
        control=Control("chance_corrupted_share", removes="clustering: random clusters of the same sizes"),
    ),
    statement(
        "ad_hoc.works",
        "on digits every ad-hoc idea ends below the loss of plain batches at the same budget",
        "worst_idea",
        Between(0.0, 0.9),
        "loss over that of plain batches, the worst of four ideas per seed; to work is to gain a tenth",
        source="README of the paper's code: the ideas all work on MNIST, and fail on large data",
        control=Control("worst_random", removes="the scores: the same ideas on random ones"),
    ),
    check(
        "ad_hoc.clusters",
        "gradient clusters leave less variance than strata by label and loss or importance by norm",
        "clusters_over_cheapest",
        Between(0.0, 0.8),
        "over the least of three cheap baselines; 0.18 of SG-B against 0.34 and 0.47 in a preliminary run",
        control=Control("chance_over_cheapest", removes="what makes the examples of a cluster alike"),
        expected="fails",
        expected_because="importance sampling by norm leaves 0.20 of plain batches here and clusters 0.28 to "
        "0.32, a ratio of 1.4 to 1.7 (first run; it was expected to hold)",
        registered_because="a preliminary run gave 0.18 against 0.34, a ratio of 0.53, inside the band",
    ),
    check(
        "ad_hoc.budget",
        "at equal budget clusters end below the loss of the best cheap baseline",
        "clusters_at_budget",
        Between(0.0, 0.95),
        "final loss over that of the best cheap baseline; a gain of a twentieth is asked for",
        expected="fails",
        expected_because="three passes over the data every 250 steps cost three tenths of the budget, and "
        "digits are interpolated: their training is not held up by noise. Written before any run",
    ),
    check(
        "non_interference.bits",
        "measuring changes no bit of any weight or buffer",
        "bit_identical",
        Holds(),
        "every estimator, per seed; equality is exact",
        source="abstraction of the paper's code",
        deterministic=True,
    ),
    check(
        "noise_floor.reference",
        "reference mode reads 1 + 1/(m - 2) on pure noise",
        "reference_over_floor",
        Between(0.99, 1.01),
        "20 000 coordinates: standard error below 0.3 %",
        source="the published ImageNet curve saturates at 1.13 with m = 10",
        paper=1.0,
    ),
    check(
        "noise_floor.unbiased",
        "unbiased mode reads 1 on pure noise",
        "unbiased",
        Between(0.99, 1.01),
        "same reason",
    ),
    check(
        "noise_floor.small",
        "noise of 1e-4 reads 0.85 with m = 50, an effect of the constant 1e-7",
        "small_noise",
        Between(0.83, 0.87),
        "closed form 1/(1 + 0.2) times the floor",
        paper=0.85,
    ),
)
