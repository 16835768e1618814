"""Every figure and study, with the sizes at which it can be run."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from gdyn_reproduce.registry import figure
from gdyn_reproduce.unread import OF_FILES, Unread

DIGITS_MLP: dict[str, Any] = {"dataset": "digits", "model": "digits-mlp"}
DIGITS: dict[str, Any] = DIGITS_MLP | {
    "batch_size": 64,
    "num_steps": 3000,
    "mode": "exact",
    "measure_every": 300,
    "first_measure": 10,
    "snapshot_every": 500,
    "clusters": 64,
    "cluster_iterations": 5,
}
SMOKE = DIGITS | {
    "batch_size": 32,
    "num_steps": 40,
    "measure_every": 10,
    "snapshot_every": 20,
    "clusters": 4,
    "cluster_iterations": 1,
    "max_size": 120,
    "seeds": [0, 1],
}
CORRUPT = DIGITS | {"corrupt_percent": 20.0, "measure_every": 100}
DROPPED: dict[str, Any] = {"learning_rates": [0.1], "drop_at": [1500]}
RATES: dict[str, Any] = {"learning_rates": [0.1, 0.02, 0.004], "estimators": ["SG-B"]}
CIFAR: dict[str, Any] = {
    "dataset": "cifar10",
    "model": "resnet8",
    "learning_rates": [0.01],
    "drop_at": [40_000, 60_000],
    "momentum": 0.9,
    "num_steps": 80_000,
    "first_measure": 100,
    "first_snapshot": 100,
    "snapshot_every": 20_000,
    "cluster_iterations": 3,
}
IMAGENET: dict[str, Any] = CIFAR | {
    "dataset": "imagenet",
    "model": "resnet18",
    "classes": 1000,
    "learning_rates": [0.1],
    "weight_decay": 1e-4,
    "num_draws": 10,
    "measure_every": 1000,
    "snapshot_every": 10_000,
    "kahan": True,
}
RF_QUICK: dict[str, Any] = {
    "ratios": [0.1, 1.0, 10.0],
    "learning_rates": [0.01, 0.001],
    "num_steps": 3000,
    "measure_every": 150,
}
RF_SMOKE: dict[str, Any] = {
    "ratios": [1.0, 2.0],
    "hidden": 60,
    "num_steps": 30,
    "measure_every": 10,
    "snapshot_every": 20,
    "clusters": 4,
    "cluster_iterations": 1,
    "seeds": [0, 1],
}
LINE: dict[str, Any] = {
    "dim": 100,
    "num_examples": 200,
    "num_steps": 3000,
    "learning_rate": 0.02,
    "measure_every": 100,
}
LINE_SMOKE: dict[str, Any] = {
    "dim": 8,
    "num_examples": 40,
    "num_steps": 60,
    "switch_at": 20,
    "learning_rate": 0.05,
    "measure_every": 10,
    "snapshot_every": 20,
    "clusters": 4,
    "cluster_iterations": 2,
    "seeds": [0, 1],
}
FIVE = [0, 1, 2, 3, 4]
"""Seeds where a claim is a truth value: five of five show that more than half of all are true."""
HOURS = "not run here: {}; the command is resumable"
RESNET = HOURS.format("80 000 ResNet-8 iterations take days on one core")


def _needs(estimators: str, *keys: str) -> Unread:
    """Return options that only some estimators read; the pattern of their names, alternatives with a bar."""
    return Unread(
        keys,
        f"without {' or '.join(estimators.split('|'))} among estimators",
        lambda config: any(re.fullmatch(estimators, name) for name in config.estimators),
    )


SAMPLED = (
    OF_FILES,
    Unread(("num_draws",), "with mode=exact", lambda config: config.mode != "exact"),
    _needs("GC|GC-online", "clusters"),
    _needs("GC-online|heavy-ball|Nesterov|Adam|IGT|K-FAC|EK-FAC", "frequent_every"),
)
IMAGES = (
    *SAMPLED,
    _needs("GC|GC-[0-9]+", "cluster_iterations", "kahan"),
    _needs("GC.*|SVRG|K-FAC|EK-FAC|snapshot-average", "snapshot_every", "first_snapshot"),
)
DUPLICATES = Unread(
    ("duplicate_points",), "without duplicate_fractions", lambda config: any(config.duplicate_fractions)
)

_figure = partial(figure, "variance.paper.experiments", config="variance.paper.trajectory:TrainingConfig")

FIGURES = (
    _figure(
        "F1",
        "MNIST experiments",
        "Average variance over training: SVRG and gradient clustering lie below the doubled batch.",
        "fig1_mnist",
        unread=IMAGES,
        quick=("80 s, 1 core", DIGITS | {"seeds": FIVE}),
        paper=("about 100 min per seed, 1 core, 1 GB", {}),
        smoke=("2 s", SMOKE),
    ),
    _figure(
        "F2",
        "CIFAR-10 experiments",
        "Variance rises in training; normalised variance jumps when the learning rate drops.",
        "fig2_drops",
        unread=IMAGES,
        quick=("30 s, 1 core", CORRUPT | DROPPED | {"estimators": ["SG-B"]}),
        paper=("days, 1 core", CIFAR),
        smoke=("2 s", SMOKE | {"num_steps": 60, "measure_every": 2, "drop_at": [30]}),
        not_run=RESNET,
    ),
    _figure(
        "F3",
        "CIFAR-10 with corrupted labels",
        "With corrupted labels gradient clustering is stable and below plain batches.",
        "fig3_corruption",
        unread=IMAGES,
        quick=("40 s, 1 core", CORRUPT | {"measure_every": 300}),
        paper=("days, 1 core", CIFAR | {"corrupt_percent": 20.0}),
        smoke=("2 s", SMOKE | {"corrupt_percent": 20.0}),
        not_run=RESNET,
    ),
    _figure(
        "F4",
        "CIFAR-10 and CIFAR-100 with duplicates",
        "With many duplicated examples gradient clustering lies below the doubled batch.",
        "fig4_duplicates",
        unread=IMAGES,
        quick=(
            "30 s, 1 core",
            DIGITS | {"duplicates": [10, 300], "estimators": ["SG-B", "SG-2B", "GC"], "num_steps": 1500},
        ),
        paper=("days, 1 core", CIFAR | {"duplicates": [10, 10_000]}),
        smoke=("2 s", SMOKE | {"duplicates": [3, 10]}),
        not_run=RESNET,
    ),
    _figure(
        "F5",
        "ImageNet experiments",
        "Far fewer clusters than classes gain little; SVRG is worse than SG-B before the drops, far better "
        "after.",
        "fig5_imagenet",
        unread=SAMPLED,
        quick=(
            "100 s, 1 core",
            CORRUPT
            | DROPPED
            | {"momentum": 0.9, "clusters": 2, "estimators": ["SG-B", "SVRG", "GC"], "seeds": FIVE},
        ),
        paper=("weeks, 1 core; 150 GB of images in GDYN_DATA_DIR/imagenet/train", IMAGENET),
        smoke=("2 s", SMOKE | {"num_steps": 60, "measure_every": 5, "drop_at": [30]}),
        in_default=False,
        not_run="not run here: the images are behind a login and training takes weeks of a CPU",
    ),
    _figure(
        "F6",
        "random features",
        "Variance falls with over-parametrisation; a lower learning rate leaves more of it.",
        "fig6_random_features",
        config="RandomFeaturesConfig",
        unread=(DUPLICATES,),
        quick=("4 min, 1 core", RF_QUICK),
        paper=("about 45 min, 1 core", {}),
        paper_wide=("about 3 h, 1 core, 2 GB", {"input_dim": 10_000, "teacher_width": 10_000}),
        smoke=("2 s", RF_SMOKE),
        in_default=False,
    ),
    _figure(
        "F7",
        "random features with duplicates",
        "With nine tenths of the data duplicated, gradient clustering beats SG-2B and SVRG.",
        "fig6_random_features",
        config="RandomFeaturesConfig",
        unread=(DUPLICATES,),
        quick=(
            "4 min, 1 core",
            RF_QUICK
            | {"ratios": [0.5, 5.0], "learning_rates": [0.01], "duplicate_fractions": [0.0, 0.5, 0.9]},
        ),
        paper=("about 1 h, 1 core", {"duplicate_fractions": [0.0, 0.1, 0.5, 0.9]}),
        smoke=("2 s", RF_SMOKE | {"duplicate_fractions": [0.0, 0.5]}),
        in_default=False,
    ),
    _figure(
        "F8",
        "distortion against the number of clusters",
        "Clustering lowers the variance below D0/K, where random assignment stays.",
        "fig8_cluster_count",
        config="ClusterCountConfig",
        unread=(OF_FILES, Unread(("clusters",), "beside counts, the numbers of clusters")),
        quick=(
            "15 s, 1 core",
            DIGITS_MLP | {"batch_size": 64, "cluster_iterations": 5, "counts": [1, 4, 16, 64]},
        ),
        paper=("hours, 1 core, 6 GB", {}),
        smoke=("2 s", DIGITS_MLP | {"num_steps": 10, "counts": [1, 4], "seeds": [0, 1]}),
        in_default=False,
        not_run=HOURS.format("60 000 examples of the MNIST CNN times nine values of K"),
    ),
    _figure(
        "F9",
        "noisy linear regression",
        "Loss and variance rank alike: SVRG lowest, then gradient clustering, SG-2B and SG-B.",
        "fig9_linear_regression",
        config="LinearRegressionConfig",
        quick=("2 min, 1 core", LINE),
        paper=("about 1 h, 1 core", {}),
        smoke=("2 s", LINE | LINE_SMOKE),
        in_default=False,
    ),
    _figure(
        "F10",
        "abstract",
        "Smaller learning rates go with higher variance; normalised variance tends to 1 on digits.",
        "fig10_learning_rates",
        unread=IMAGES,
        quick=("40 s, 1 core", DIGITS | RATES | {"seeds": FIVE}),
        paper=("about 1 h per rate and seed, 1 core", RATES),
        smoke=("2 s", SMOKE | RATES | {"learning_rates": [0.1, 0.02]}),
        in_default=False,
    ),
    _figure(
        "clusters_2d",
        "beyond the paper; its two-dimensional gallery",
        "Clusters of gradients follow label and margin, not position; flipped labels stand apart.",
        "clusters_2d",
        config="PlaneConfig",
        quick=("5 s, 1 core", {}),
        smoke=("1 s", {"num_steps": 20, "points_per_blob": 20, "seeds": [0, 1]}),
    ),
    _figure(
        "gallery",
        "beyond the paper; the cluster galleries and t-SNE maps of its notebooks",
        "Gradient clusters of digits group labels, and gather examples whose label is random.",
        "gallery",
        config="GalleryConfig",
        unread=(OF_FILES,),
        quick=("2 min, 1 core", {}),
        smoke=("5 s", {"max_size": 120, "num_steps": 20, "clusters": 4, "seeds": [0]}),
        in_default=False,
    ),
    _figure(
        "ad_hoc",
        "beyond the paper; the zero gradients and ad-hoc sampling of its code's README",
        "At equal budget ad-hoc sampling beats plain batches, and clusters leave the least variance.",
        "ad_hoc",
        config="AdHocConfig",
        unread=(OF_FILES,),
        quick=("80 s, 1 core", {}),
        smoke=("5 s", {"max_size": 150, "num_steps": 12, "snapshot_every": 6, "seeds": [0, 1]}),
        in_default=False,
    ),
    _figure(
        "non_interference",
        "beyond the paper; the abstraction of its code",
        "Weights are bit-identical with and without measuring, for every estimator.",
        "non_interference",
        config="NonInterferenceConfig",
        quick=("35 s, 1 core", {}),
        smoke=("3 s", {"num_steps": 30, "seeds": [0]}),
    ),
    _figure(
        "noise_floor",
        "beyond the paper; what its definition reads on pure noise",
        "The reference definition of normalised variance reads 1 + 1/(m - 2) on pure noise.",
        "noise_floor",
        config="NoiseFloorConfig",
        scales={"quick": "paper size"},
        quick=("5 s, 1 core", {}),
        smoke=("1 s", {"coordinates": 500, "draws": [5, 10]}),
    ),
)
