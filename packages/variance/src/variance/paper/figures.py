"""Every figure and study, with the sizes at which it can be run."""

from __future__ import annotations

from typing import Any

from gdyn_reproduce.registry import Figure, Preset

DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "model": "digits-mlp",
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
FIVE = [0, 1, 2, 3, 4]
"""Seeds where a claim is a truth value: five of five show that more than half of all are true."""
HOURS = "not run here: {}; the command is resumable"

FIGURES = (
    Figure(
        id="F1",
        source="MNIST experiments",
        shows="Average variance over training: SVRG and gradient clustering lie below the doubled batch.",
        module="variance.paper.experiments.fig1_mnist",
        config="variance.paper.trajectory:TrainingConfig",
        presets={
            "quick": Preset("50 s, 1 core", "scaled down", DIGITS | {"seeds": FIVE}),
            "paper": Preset("about 100 min per seed, 1 core, 1 GB", "paper"),
            "smoke": Preset("2 s", "smoke", SMOKE),
        },
    ),
    Figure(
        id="F2",
        source="CIFAR-10 experiments",
        shows="Variance rises in training; normalised variance jumps when the learning rate drops.",
        module="variance.paper.experiments.fig2_drops",
        config="variance.paper.trajectory:TrainingConfig",
        presets={
            "quick": Preset(
                "15 s, 1 core",
                "scaled down",
                CORRUPT | {"learning_rates": [0.1], "drop_at": [1500], "estimators": ["SG-B"]},
            ),
            "paper": Preset("days, 1 core", "paper", CIFAR),
            "smoke": Preset("2 s", "smoke", SMOKE | {"num_steps": 60, "measure_every": 2, "drop_at": [30]}),
        },
        not_run=HOURS.format("80 000 ResNet-8 iterations take days on one core"),
    ),
    Figure(
        id="F3",
        source="CIFAR-10 with corrupted labels",
        shows="With corrupted labels gradient clustering is stable and below plain batches.",
        module="variance.paper.experiments.fig3_corruption",
        config="variance.paper.trajectory:TrainingConfig",
        presets={
            "quick": Preset("30 s, 1 core", "scaled down", CORRUPT | {"measure_every": 300}),
            "paper": Preset("days, 1 core", "paper", CIFAR | {"corrupt_percent": 20.0}),
            "smoke": Preset("2 s", "smoke", SMOKE | {"corrupt_percent": 20.0}),
        },
        not_run=HOURS.format("80 000 ResNet-8 iterations take days on one core"),
    ),
    Figure(
        id="F4",
        source="CIFAR-10 and CIFAR-100 with duplicates",
        shows="With many duplicated examples gradient clustering lies below the doubled batch.",
        module="variance.paper.experiments.fig4_duplicates",
        config="variance.paper.trajectory:TrainingConfig",
        presets={
            "quick": Preset(
                "30 s, 1 core",
                "scaled down",
                DIGITS | {"duplicates": [10, 300], "estimators": ["SG-B", "SG-2B", "GC"], "num_steps": 1500},
            ),
            "paper": Preset("days, 1 core", "paper", CIFAR | {"duplicates": [10, 10_000]}),
            "smoke": Preset("2 s", "smoke", SMOKE | {"duplicates": [3, 10]}),
        },
        not_run=HOURS.format("80 000 ResNet-8 iterations take days on one core"),
    ),
    Figure(
        id="F5",
        source="ImageNet experiments",
        shows="Far fewer clusters than classes gain little; SVRG is worse than SG-B before the drops, far "
        "better after.",
        module="variance.paper.experiments.fig5_imagenet",
        config="variance.paper.trajectory:TrainingConfig",
        presets={
            "quick": Preset(
                "70 s, 1 core",
                "scaled down",
                CORRUPT
                | {
                    "learning_rates": [0.1],
                    "momentum": 0.9,
                    "drop_at": [1500],
                    "clusters": 2,
                    "estimators": ["SG-B", "SVRG", "GC"],
                    "seeds": FIVE,
                },
            ),
            "paper": Preset(
                "weeks, 1 core; 150 GB of images in GDYN_DATA_DIR/imagenet/train",
                "paper",
                CIFAR
                | {
                    "dataset": "imagenet",
                    "model": "resnet18",
                    "classes": 1000,
                    "learning_rates": [0.1],
                    "weight_decay": 1e-4,
                    "num_draws": 10,
                    "measure_every": 1000,
                    "snapshot_every": 10_000,
                    "kahan": True,
                },
            ),
            "smoke": Preset("2 s", "smoke", SMOKE | {"num_steps": 60, "measure_every": 5, "drop_at": [30]}),
        },
        in_default=False,
        not_run="not run here: the images are behind a login and training takes weeks of a CPU",
    ),
    Figure(
        id="F6",
        source="random features",
        shows="Variance falls with over-parametrisation; a lower learning rate leaves more of it.",
        module="variance.paper.experiments.fig6_random_features",
        config="variance.paper.experiments.fig6_random_features:RandomFeaturesConfig",
        presets={
            "quick": Preset("60 s, 1 core", "scaled down", RF_QUICK),
            "paper": Preset("about 15 min, 1 core", "paper"),
            "paper-wide": Preset(
                "about 20 min, 1 core, 2 GB", "paper", {"input_dim": 10_000, "teacher_width": 10_000}
            ),
            "smoke": Preset("2 s", "smoke", RF_SMOKE),
        },
        in_default=False,
    ),
    Figure(
        id="F7",
        source="random features with duplicates",
        shows="With nine tenths of the data duplicated, gradient clustering beats SG-2B and SVRG.",
        module="variance.paper.experiments.fig6_random_features",
        config="variance.paper.experiments.fig6_random_features:RandomFeaturesConfig",
        presets={
            "quick": Preset(
                "40 s, 1 core",
                "scaled down",
                RF_QUICK
                | {"ratios": [0.5, 5.0], "learning_rates": [0.01], "duplicate_fractions": [0.0, 0.5, 0.9]},
            ),
            "paper": Preset("about 1 h, 1 core", "paper", {"duplicate_fractions": [0.0, 0.1, 0.5, 0.9]}),
            "smoke": Preset("2 s", "smoke", RF_SMOKE | {"duplicate_fractions": [0.0, 0.5]}),
        },
        in_default=False,
    ),
    Figure(
        id="F8",
        source="distortion against the number of clusters",
        shows="Clustering lowers the variance below D0/K, where random assignment stays.",
        module="variance.paper.experiments.fig8_cluster_count",
        config="variance.paper.experiments.fig8_cluster_count:ClusterCountConfig",
        presets={
            "quick": Preset(
                "15 s, 1 core",
                "scaled down",
                {
                    "dataset": "digits",
                    "model": "digits-mlp",
                    "batch_size": 64,
                    "cluster_iterations": 5,
                    "counts": [1, 4, 16, 64],
                },
            ),
            "paper": Preset("hours, 1 core, 6 GB", "paper"),
            "smoke": Preset(
                "2 s",
                "smoke",
                {
                    "dataset": "digits",
                    "model": "digits-mlp",
                    "num_steps": 10,
                    "counts": [1, 4],
                    "seeds": [0, 1],
                },
            ),
        },
        not_run=HOURS.format("60 000 examples of the MNIST CNN times nine values of K"),
        in_default=False,
    ),
    Figure(
        id="F9",
        source="noisy linear regression",
        shows="Loss and variance: SVRG below gradient clustering below SG-2B below SG-B.",
        module="variance.paper.experiments.fig9_linear_regression",
        config="variance.paper.experiments.fig9_linear_regression:LinearRegressionConfig",
        presets={
            "quick": Preset(
                "40 s, 1 core",
                "scaled down",
                {
                    "dim": 100,
                    "num_examples": 200,
                    "num_steps": 3000,
                    "learning_rate": 0.02,
                    "measure_every": 100,
                },
            ),
            "paper": Preset("about 25 min, 1 core", "paper"),
            "smoke": Preset(
                "2 s",
                "smoke",
                {
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
                },
            ),
        },
        in_default=False,
    ),
    Figure(
        id="F10",
        source="abstract",
        shows="Smaller learning rates go with higher variance; normalised variance tends to 1 on digits.",
        module="variance.paper.experiments.fig10_learning_rates",
        config="variance.paper.trajectory:TrainingConfig",
        presets={
            "quick": Preset(
                "40 s, 1 core",
                "scaled down",
                DIGITS | {"learning_rates": [0.1, 0.02, 0.004], "estimators": ["SG-B"], "seeds": FIVE},
            ),
            "paper": Preset(
                "about 1 h per rate and seed, 1 core",
                "paper",
                {"learning_rates": [0.1, 0.02, 0.004], "estimators": ["SG-B"]},
            ),
            "smoke": Preset("2 s", "smoke", SMOKE | {"learning_rates": [0.1, 0.02], "estimators": ["SG-B"]}),
        },
        in_default=False,
    ),
    Figure(
        id="clusters_2d",
        source="beyond the paper; its two-dimensional gallery",
        shows="Clusters of gradients follow label and margin, not position; flipped labels stand apart.",
        module="variance.paper.experiments.clusters_2d",
        config="variance.paper.experiments.clusters_2d:PlaneConfig",
        presets={
            "quick": Preset("5 s, 1 core", "scaled down"),
            "smoke": Preset("1 s", "smoke", {"num_steps": 20, "points_per_blob": 20, "seeds": [0, 1]}),
        },
    ),
    Figure(
        id="gallery",
        source="beyond the paper; the cluster galleries and t-SNE maps of its notebooks",
        shows="Gradient clusters of digits group labels, and gather examples whose label is random.",
        module="variance.paper.experiments.gallery",
        config="variance.paper.experiments.gallery:GalleryConfig",
        presets={
            "quick": Preset("2 min, 1 core", "scaled down"),
            "smoke": Preset("5 s", "smoke", {"max_size": 120, "num_steps": 20, "clusters": 4, "seeds": [0]}),
        },
        in_default=False,
    ),
    Figure(
        id="ad_hoc",
        source="beyond the paper; the zero gradients and ad-hoc sampling of its code's README",
        shows="What sampling by loss or norm, by strata and by clusters is worth at equal budget.",
        module="variance.paper.experiments.ad_hoc",
        config="variance.paper.experiments.ad_hoc:AdHocConfig",
        presets={
            "quick": Preset("50 s, 1 core", "scaled down"),
            "smoke": Preset(
                "5 s", "smoke", {"max_size": 150, "num_steps": 12, "snapshot_every": 6, "seeds": [0, 1]}
            ),
        },
    ),
    Figure(
        id="non_interference",
        source="beyond the paper; the abstraction of its code",
        shows="Weights are bit-identical with and without measuring, for every estimator.",
        module="variance.paper.experiments.non_interference",
        config="variance.paper.experiments.non_interference:NonInterferenceConfig",
        presets={
            "quick": Preset("25 s, 1 core", "scaled down"),
            "smoke": Preset("3 s", "smoke", {"num_steps": 30, "seeds": [0]}),
        },
    ),
    Figure(
        id="noise_floor",
        source="beyond the paper; what its definition reads on pure noise",
        shows="The reference definition of normalised variance reads 1 + 1/(m - 2) on pure noise.",
        module="variance.paper.experiments.noise_floor",
        config="variance.paper.experiments.noise_floor:NoiseFloorConfig",
        presets={
            "quick": Preset("5 s, 1 core", "paper"),
            "smoke": Preset("1 s", "smoke", {"coordinates": 500, "draws": [5, 10]}),
        },
    ),
)
