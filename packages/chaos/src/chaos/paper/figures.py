"""Every figure of the paper, with its presets."""

from __future__ import annotations

from functools import partial
from typing import Any

from gdyn_reproduce.registry import figure

USPS = {
    "dataset": "usps",
    "inter_dim": 20,
    "learning_rate": 0.001,
    "num_steps": 18240,  # 20 epochs, as far as the published curves are read off
    "evaluate_every": 100,
}
UNIT = USPS | {"normalize": "unit"}  # which scaling the published runs used is not certain
STARTS = {"starts": [2000, 5000, 10000]}
SMOKE = {"num_steps": 12, "seeds": [0, 1, 2], "evaluate_every": 4}
PERTURBED: dict[str, Any] = {
    # Rounding alone, of another processor, moves two verdicts of ten seeds over the edges of their bands.
    "quick": ("5 min, 1 core", {"seeds": [*range(20)]}),
    "paper": (
        "about 1 h on 1 core per seed (tangent matrix of 1000 steps at n = 5350), 2 GB",
        USPS | {"tangent_steps": 1000, "seeds": [42], "measure_every": 100},
    ),
    "smoke": ("2 s", SMOKE | {"tangent_steps": 6, "measure_every": 2}),
}

_figure = partial(figure, "chaos.paper.experiments")

FIGURES = (
    _figure(
        "fig1",
        source="Figure 1",
        shows="Training without chaotic directions stays at chance; without positive ones it is only slower.",
        experiment="fig1_pruned_training",
        config="chaos.paper.config:Fig1Config",
        quick=("3 min, 1 core", {}),
        paper=("about 2 h on 1 core (3 seeds, 20 epochs, 4 pruned arms), 1 GB", USPS),
        paper_unit=("about 2 h on 1 core, as paper with inputs in [0, 1]", UNIT),
        smoke=("2 s", SMOKE),
    ),
    _figure(
        "fig2a",
        source="Figure 2a",
        shows="The later the pruning of chaotic directions starts, the higher the plateau it freezes.",
        experiment="fig2a_late_pruning",
        config="chaos.paper.config:Fig2aConfig",
        in_default=False,
        quick=("3 min, 1 core", {}),
        paper=("about 50 min on 1 core (3 seeds, 20 epochs), 1 GB", USPS | STARTS),
        paper_unit=("about 50 min on 1 core, as paper with inputs in [0, 1]", UNIT | STARTS),
        smoke=("2 s", SMOKE | {"starts": [2, 4, 8]}),
    ),
    _figure(
        "fig2b",
        source="Figure 2b (our reading of which panel it is)",
        shows="The largest exponent falls during training while the number of expanding directions stays.",
        experiment="fig2b_exponents",
        config="chaos.paper.config:Fig2bConfig",
        quick=("2 min, 1 core", {}),
        paper=(
            "about 1 h on 1 core (one seed, five decompositions of 5350 x 5350), 2 GB",
            USPS | {"num_steps": 2000, "at": [100, 500, 1000, 2000], "seeds": [0]},
        ),
        smoke=("2 s", SMOKE | {"at": [4, 12]}),
    ),
    _figure(
        "fig3a",
        source="Figure 3a",
        shows="Perturbed trainings keep drifting away slowly; chaotic perturbations drift fastest.",
        experiment="fig3a_distances",
        config="chaos.paper.config:Fig3Config",
        in_default=False,
        **PERTURBED,
    ),
    _figure(
        "fig3b",
        source="Figure 3b",
        shows="Squared distances follow a t + b t^2 + d_0^2, not the exponential of the largest exponent.",
        experiment="fig3b_divergence_fit",
        config="chaos.paper.config:Fig3Config",
        in_default=False,  # the runs of fig3a and more
        **PERTURBED,
    ),
)
