"""Every figure and table of the paper, with its presets."""

from __future__ import annotations

from functools import partial

from gdyn_reproduce.registry import figure
from gdyn_reproduce.unread import OF_FILES, Unread

# A quarter of the paper's size in both directions. Learning rates of the non-linear PDE times 16 and weight
# decay over 16 keep lr * K and alpha / K, so the same regimes; the linear PDE's constants scale with N K (12
# 960 000 to 51 984).
SMALL = {"image_size": 64, "kernel_size": 8}
SMALL_LINEAR = SMALL | {
    "learning_rate": 2.5e-6,
    "weight_decays": [4.4e4, 4.8e4, 5.22e4, 7.6e5, 7.99e5, 8.4e5, 8.8e5],
    "num_steps": 400,
}
SMALL_RATES = [0.16, 0.48, 0.8, 1.12, 1.44, 1.6, 1.76, 2.08]
SMALL_COPIES = SMALL | {
    "learning_rates": [0.16, 0.48, 0.64, 0.8, 0.96, 1.12, 1.44],
    "weight_decay": 1.25,
    "seeds": [7, 8, 9],
    "perturbations": [1, 3, 5],
    "num_steps": 500,
}
SMOKE_DIGITS = {
    "dataset": "digits",
    "train_size": 96,
    "model": "tiny",
    "tiny_blocks": 1,
    "tiny_width": 4,
    "batch_size": 32,
    "seeds": [0, 1],
}
DIGITS = {"dataset": "digits", "train_size": 1200, "model": "tiny", "batch_size": 32, "seeds": [0, 1, 2]}
TABLE1_DIGITS = DIGITS | {
    "activations": ["swish"],
    "perturbations": [1, 3, 5],
    "num_epochs": 9,
    "milestones": [7],
    "last": 2,
}
FIG2_LEFT = DIGITS | {
    "learning_rate": 1.0,
    "random_labels": 0.5,
    "divisors": [1, 16],
    "scaled_iterations": 42,
    "seeds": list(range(5)),
}
FIVE_SEEDS = {"seeds": [7, 8, 9, 10, 11]}  # fewer than five agreeing seeds decide no truth value
NETWORK = (
    OF_FILES,
    Unread(("depth",), "unless model=resnet", lambda config: config.model == "resnet"),
    Unread(("tiny_blocks", "tiny_width"), "unless model=tiny", lambda config: config.model == "tiny"),
)
TABLE1 = (*NETWORK, Unread(("activation",), "beside activations, all of which are trained"))

_figure = partial(figure, "instability.paper.experiments")

FIGURES = (
    _figure(
        "fig1",
        source="Figure 1",
        shows="Heat flow flattens the tent at time step 0.4 and turns it into a growing zig-zag at 0.8.",
        experiment="fig1_heat",
        config="Fig1Config",
        scales={"quick": "paper size"},
        quick=("1 s, 1 core", {}),
        paper=("1 s, 1 core", {}),
        smoke=("1 s", {"stable_times": [0.8], "unstable_times": [0.8]}),
    ),
    _figure(
        "table1",
        source="Table 1",
        shows="Final accuracies differ over rounding perturbations about as much as over seeds.",
        experiment="table1_accuracy_spread",
        config="Table1Config",
        unread=TABLE1,
        not_run="72 trainings of ResNet56 for 200 epochs on CIFAR-10; runnable, resumable",
        in_default=False,
        quick=("2 min, 1 core", TABLE1_DIGITS),
        paper=("about 3500 core hours (14 core minutes an epoch and copy)", {}),
        smoke=(
            "2 s",
            SMOKE_DIGITS
            | {
                "activations": ["swish"],
                "perturbations": [1, 3],
                "num_epochs": 2,
                "milestones": [1],
                "last": 1,
            },
        ),
    ),
    _figure(
        "table1-fashion-mnist",
        source="Table 1 (Fashion-MNIST, reduced)",
        shows="On the real Fashion-MNIST accuracies differ over perturbations about as much as over seeds.",
        experiment="table1_accuracy_spread",
        config="Table1Config",
        unread=TABLE1,
        not_run="no record yet; run it with GDYN_DATA_DIR set",
        in_default=False,
        quick=(
            "20 min to 1 h, 1 core, needs Fashion-MNIST",
            {
                "dataset": "fashion_mnist",
                "train_size": 10000,
                "depth": 8,
                "activations": ["relu"],
                "perturbations": [1, 3, 5],
                "seeds": [1, 2, 3],
                "num_epochs": 8,
                "milestones": [4, 6],
                "last": 2,
            },
        ),
        smoke=(
            "2 s",
            SMOKE_DIGITS
            | {
                "activations": ["relu"],
                "perturbations": [1, 3],
                "num_epochs": 1,
                "milestones": [],
                "last": 1,
            },
        ),
    ),
    _figure(
        "fig2-left",
        source="Figure 2, left",
        shows="Copies that differ by rounding separate in 100 scaled iterations at large rates only.",
        experiment="fig2_divergence",
        config="Fig2Config",
        unread=NETWORK,
        in_default=False,
        not_run="3.56 million updates of two ResNet56 on CIFAR-10; runnable and resumable with preset=paper",
        quick=("3 min, 1 core", FIG2_LEFT),
        long=("9 min, 1 core", FIG2_LEFT | {"seeds": list(range(16))}),
        paper=("about 4200 core hours; 15 minutes for divisors=[2]", {}),
        smoke=("2 s", SMOKE_DIGITS | {"divisors": [1, 2], "scaled_iterations": 4}),
    ),
    _figure(
        "fig2-right",
        source="Figure 2, right",
        shows="In a single layer in the middle of the network copies separate, too.",
        experiment="fig2_divergence",
        config="Fig2Config",
        unread=NETWORK,
        not_run="3.56 million updates of two ResNet56 on CIFAR-10; runnable and resumable with preset=paper",
        quick=(
            "15 s, 1 core",
            DIGITS
            | {
                "learning_rate": 1.0,
                "random_labels": 0.5,
                "divisors": [1],
                "scaled_iterations": 60,
                "layer": "layer1.2.conv1.weight",
            },
        ),
        paper=("about 4200 core hours; 15 minutes for divisors=[2]", {"layer": "layer2.5.conv1.weight"}),
        smoke=(
            "2 s",
            SMOKE_DIGITS | {"divisors": [1], "scaled_iterations": 4, "layer": "layer1.0.conv1.weight"},
        ),
    ),
    _figure(
        "fig3",
        source="Figure 3",
        shows="Losses of the linear PDE fall between alpha_min and alpha_max and blow up on either side.",
        experiment="fig3_linear_losses",
        config="instability.paper.linear_runs:LinearConfig",
        quick=("5 s, 1 core", SMALL_LINEAR),
        paper=("1 min, 1 core", {}),
        smoke=("2 s", {"image_size": 16, "kernel_size": 4, "num_steps": 20}),
    ),
    _figure(
        "table2",
        source="Table 2",
        shows="The growth per step that the spectrum predicts for each weight decay is the measured one.",
        experiment="table2_thresholds",
        config="instability.paper.linear_runs:LinearConfig",
        quick=("5 s, 1 core", SMALL_LINEAR),
        paper=("1 min, 1 core", {}),
        smoke=("2 s", {"image_size": 16, "kernel_size": 4, "num_steps": 20}),
    ),
    _figure(
        "fig4-left",
        source="Figure 4, left",
        shows="Losses of the non-linear PDE settle, oscillate without blowing up, or diverge.",
        experiment="fig4_left_losses",
        config="Fig4LeftConfig",
        quick=(
            "10 s, 1 core",
            SMALL | {"learning_rates": SMALL_RATES, "weight_decay": 1.25, "num_steps": 600},
        ),
        paper=("2 min, 1 core", {}),
        smoke=("2 s", SMALL | {"learning_rates": SMALL_RATES[:2], "weight_decay": 1.25, "num_steps": 60}),
    ),
    _figure(
        "fig4-right",
        source="Figure 4, right",
        shows="Copies rise from rounding level at the predicted rate and saturate, or stay together.",
        experiment="fig4_right_divergence",
        config="Fig4RightConfig",
        quick=("70 s, 1 core", SMALL_COPIES | FIVE_SEEDS),
        paper=("15 min, 1 core", FIVE_SEEDS),
        smoke=("2 s", SMALL_COPIES | {"learning_rates": [0.96, 1.12], "seeds": [7], "num_steps": 120}),
    ),
    _figure(
        "reduced-map",
        source="ours, beside Figure 4",
        shows="Beyond 2 / sharpness the one-dimensional map ends in a cycle or in chaos, by learning rate.",
        experiment="reduced_map_regimes",
        config="ReducedMapConfig",
        scales={"quick": "paper size"},
        quick=("5 s, 1 core", {}),
        smoke=("1 s", {"num_steps": 200, "resolution": 20}),
    ),
    _figure(
        "beyond-rank-one",
        source="ours, beside Figure 4",
        shows="Just beyond 2 / sharpness the one-layer network still forgets rounding, on noise and digits.",
        experiment="beyond_rank_one",
        config="BeyondRankOneConfig",
        quick=("30 s, 1 core", {}),
        smoke=("2 s", {"rates": [1.25, 2.5], "descent_steps": 200, "num_steps": 10, "seeds": [0]}),
    ),
    _figure(
        "precision",
        source="ours, beside Figure 2",
        shows="The same copies in float64, float32 and bfloat16 start at different levels and grow alike.",
        experiment="precision",
        config="PrecisionConfig",
        unread=(*NETWORK, Unread(("dtype",), "beside dtypes, all of which are trained")),
        in_default=False,
        quick=("12 min, 1 core", DIGITS | {"seeds": list(range(5)), "momentum": 0.9, "nesterov": True}),
        smoke=("3 s", SMOKE_DIGITS | {"num_steps": 10}),
    ),
    _figure(
        "sharpness",
        source="ours, beside Section 5.3",
        shows="Training sharpness rises to 2 / learning rate and hovers there.",
        experiment="sharpness_in_training",
        config="SharpnessConfig",
        unread=(*NETWORK, Unread(("learning_rate",), "beside learning_rates, all of which are trained")),
        in_default=False,
        quick=("90 min, 1 core", DIGITS | {"dtype": "float64", "train_size": 256, "seeds": list(range(8))}),
        smoke=("3 s", SMOKE_DIGITS | {"num_steps": 4, "measure_every": 2}),
    ),
)
