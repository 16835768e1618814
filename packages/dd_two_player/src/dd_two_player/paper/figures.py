"""What can be run: every figure of the papers and every study, with its sizes."""

from __future__ import annotations

from functools import partial
from typing import Any

from gdyn_reproduce.registry import figure
from gdyn_reproduce.unread import OF_FILES, Unread

GAMES = "Rosca et al. 2021"
FLOW = "Rosca et al. 2023"
CONFIG = "dd_two_player.paper.experiment_config"

_SMOKE_GAN = {
    "num_steps": 8,
    "chunk": 4,
    "seeds": list(range(2)),
    "batch_size": 8,
    "nets": {"hidden": [8], "num_latents": 4},
    "eval_samples": 100,
    "classifier_steps": 20,
}
_CIFAR = {
    "dataset": "cifar10",
    "vmapped": False,
    "num_steps": 300_000,
    "chunk": 1000,
    "batch_size": 128,
    "estimator": "unbiased_estimate_fn_lowest_variance",
    "convention": "paper",
    "eval_samples": 10_000,
    "nets": {
        "disc": "CifarDiscriminator",
        "gen": "CifarGenerator",
        "num_latents": 128,
        "spectral_norm": "apply",
    },
}
_RATIO: dict[str, object] = {"arms": ["alternating", "alternating_cancel", "alternating_double"]}
_RATIO_QUICK = {
    "disc_rates": [0.05, 0.2],
    "gen_rates": [0.1, 0.1],
    "seeds": list(range(8)),
    "num_steps": 400,
    "batch_size": 32,
    "nets": {"hidden": [32, 32]},
}
_RATIO_LONG = {
    "arms": ["alternating", "alternating_cancel", "alternating_double", "plain"],
    "disc_rates": [0.025, 0.05, 0.1, 0.2],
    "gen_rates": [0.1, 0.1, 0.1, 0.1],
    "seeds": list(range(20)),
    "num_steps": 2000,
}


def _for_arms(key: str, *arms: str) -> Unread:
    return Unread((key,), f"without {' or '.join(arms)} among arms", lambda config: {*arms} & {*config.arms})


def _for_networks(key: str, otherwise: str, *names: str) -> Unread:
    return Unread((key,), otherwise, lambda config: {*names} & {config.nets.disc, config.nets.gen})


NETS = (
    _for_networks("nets.hidden", "on networks that are no MLP", "MLP", "PointMLP"),
    _for_networks(
        "nets.convolution",
        "on networks without the convolutions of this package",
        *("CifarDiscriminator", "CifarGenerator", "MnistDiscriminator", "MnistGenerator"),
    ),
)
STUDY = (
    *NETS,
    OF_FILES,
    _for_arms("adam_rate", "adam"),
    _for_arms("strength", "sga", "consensus"),
    _for_arms("convention", "cancel", "strengthen", "double", "alternating_cancel", "alternating_double"),
    Unread(
        ("disc_rates", "gen_rates"),
        "on arms=[adam], which learns at adam_rate",
        lambda config: {*config.arms} != {"adam"},
    ),
)


def _theory(cost: str, **smoke: object) -> dict[str, Any]:
    """Presets of a figure whose quick run is the full one: no smaller version makes sense."""
    return {
        "scales": {"quick": "paper size"},
        "quick": (cost, {}),
        "paper": (cost, {}),
        "smoke": ("seconds", smoke),
    }


def _study(cost: str, quick: dict[str, object], paper: dict[str, object]) -> dict[str, Any]:
    smoke = {key: value for key, value in quick.items() if key == "arms"} | _SMOKE_GAN
    return {
        "quick": (cost, quick),
        "paper": ("days on one GPU per run", _CIFAR | paper),
        "smoke": ("seconds", smoke),
        "not_run": "needs an accelerator: 300 000 steps of the CIFAR networks at batch 128",
    }


_figure = partial(figure, "dd_two_player.paper.experiments")

FIGURES = (
    _figure(
        "linear-game",
        source=f"{GAMES}, linear game",
        shows="Simultaneous descent diverges although the flow converges; the modified flow says so.",
        experiment="linear_game",
        config=f"{CONFIG}:LinearGameConfig",
        **_theory("5 s", num_steps=20),
    ),
    _figure(
        "dirac-gan",
        source=f"{GAMES}, DiracGAN",
        shows="Descent spirals out as its modified flow does; explicit regularisation converges.",
        experiment="dirac_gan",
        config=f"{CONFIG}:DiracGanConfig",
        **_theory("10 s", num_steps=20, horizon=1.0),
    ),
    _figure(
        "tracking",
        source=f"{GAMES}, order of the tracking error",
        shows="The modified flow tracks to second order; over several steps only in joint time.",
        experiment="tracking",
        config=f"{CONFIG}:TrackingConfig",
        **_theory("15 s", seeds=[0], small_rates=[0.2, 0.1]),
    ),
    _figure(
        "local-error",
        source=f"{GAMES}, theorems on the modified flows",
        shows="One step differs from the modified flow by the third power of the rate.",
        experiment="local_error",
        config=f"{CONFIG}:LocalErrorConfig",
        **_theory("20 s", seeds=[0]),
    ),
    _figure(
        "network-theorem",
        source=f"{GAMES}, theorems on the modified flows",
        shows="Descent on three GANs follows its modified flow, and its flow where the drift is cancelled.",
        experiment="network_theorem",
        config="NetworkTheoremConfig",
        quick=("60 s", {}),
        smoke=("seconds", {"games": ["square"], "seeds": [0], "width": 4, "learning_rates": [0.4, 0.2]}),
    ),
    _figure(
        "gan-simultaneous",
        source=f"{GAMES}, CIFAR-10 with simultaneous updates",
        shows="Cancelling the interaction drift brings samples closer to the data; doubling drives them off.",
        experiment="gan_study",
        config=f"{CONFIG}:GanStudyConfig",
        unread=STUDY,
        **_study(
            "40 s",
            {"arms": ["plain", "cancel", "double", "sga"], "seeds": list(range(5))},
            {
                "arms": ["plain", "cancel", "strengthen", "sga", "consensus"],
                "disc_rates": [0.01, 0.01, 0.005],
                "gen_rates": [0.005, 0.01, 0.01],
                "seeds": list(range(5)),
            },
        ),
    ),
    _figure(
        "gan-alternating",
        source=f"{GAMES}, CIFAR-10 with alternating updates, ratios of rates",
        shows="Alternating updates come closer to the data than simultaneous ones, at four ratios of rates.",
        experiment="gan_study",
        config=f"{CONFIG}:GanStudyConfig",
        unread=STUDY,
        **_study(
            "50 s",
            {
                "arms": ["plain", "alternating", "double"],
                "disc_rates": [0.02, 0.05, 0.1, 0.2],
                "gen_rates": [0.1, 0.1, 0.1, 0.1],
                "num_steps": 300,
            },
            {
                "arms": ["plain", "alternating", "alternating_cancel"],
                "disc_rates": [0.001, 0.0025, 0.005, 0.01],
                "gen_rates": [0.005, 0.005, 0.005, 0.005],
            },
        ),
    ),
    _figure(
        "ode-gan-adam",
        source=f"{GAMES}, comparison with Runge-Kutta (ODE-GAN) and Adam",
        shows="At equal numbers of gradients Adam ends nearer to the data than descent, and RK4 farther.",
        experiment="gan_study",
        config=f"{CONFIG}:GanStudyConfig",
        unread=STUDY,
        in_default=False,
        **_study(
            "40 s",
            {"arms": ["plain", "rk4", "adam"], "num_steps": 400},
            {"arms": ["plain", "rk4", "adam"], "adam_rate": 1e-4, "disc_rates": [0.01], "gen_rates": [0.01]},
        ),
    ),
    _figure(
        "ratio-law",
        source=f"{GAMES}, interaction terms of alternating updates and the ratio of rates",
        shows="Cancelling the interaction helps alternating updates at low ratios of rates, harms at high.",
        experiment="gan_study",
        config=f"{CONFIG}:GanStudyConfig",
        unread=STUDY,
        in_default=False,
        quick=("60 s", _RATIO | _RATIO_QUICK),
        long=("18 min, 1 core", _RATIO | _RATIO_LONG),
        smoke=("seconds", _RATIO | _SMOKE_GAN | {"disc_rates": [0.1], "gen_rates": [0.1]}),
    ),
    _figure(
        "gan-grid",
        source=f"{GAMES}, CIFAR-10 over a grid of learning rates",
        shows="At three ratios of rates cancelling the interaction brings samples closer to the data.",
        experiment="gan_study",
        config=f"{CONFIG}:GanStudyConfig",
        unread=STUDY,
        in_default=False,
        quick=(
            "25 min, 1 core",
            {
                "arms": [
                    "plain",
                    "cancel",
                    "strengthen",
                    "sga",
                    "consensus",
                    "alternating",
                    "alternating_cancel",
                ],
                "disc_rates": [0.05, 0.1, 0.2],
                "gen_rates": [0.1, 0.1, 0.1],
                "seeds": list(range(20)),
                "num_steps": 2000,
            },
        ),
        smoke=("seconds", {"arms": ["plain", "cancel", "strengthen"]} | _SMOKE_GAN),
    ),
    _figure(
        "mnist",
        source=f"{GAMES}, released MNIST configuration",
        shows="After 2 000 steps on MNIST samples are worse than before training, cancelled or not.",
        experiment="gan_study",
        config=f"{CONFIG}:GanStudyConfig",
        unread=STUDY,
        in_default=False,
        quick=(
            "about 75 min, 1 core; needs MNIST in GDYN_DATA_DIR",
            {
                "dataset": "mnist",
                "arms": ["plain", "cancel"],
                "disc_rates": [0.01],
                "gen_rates": [0.01],
                "num_steps": 2000,
                "chunk": 50,
                "vmapped": False,
                "convention": "paper",
                "eval_samples": 5000,
                "nets": {
                    "disc": "MnistDiscriminator",
                    "gen": "MnistGenerator",
                    "num_latents": 128,
                    "spectral_norm": "no_op",
                },
            },
        ),
        smoke=("seconds", {"arms": ["plain", "cancel"]} | _SMOKE_GAN),
    ),
    _figure(
        "principal-flow",
        source=f"{FLOW}, quadratic losses",
        shows="The principal flow passes through every iterate of descent, diverging ones included.",
        experiment="principal_flow_quadratic",
        config=f"{CONFIG}:QuadraticConfig",
        **_theory("3 s"),
    ),
    _figure(
        "flow-orders",
        source=f"{FLOW}, continuous models and their orders",
        shows="Local errors have order 2 (gradient flow), 3 (IGR, principal flow) and 4 (third-order flow).",
        experiment="flow_orders",
        config=f"{CONFIG}:FlowOrdersConfig",
        **_theory("20 s", seeds=[0]),
    ),
    _figure(
        "dal",
        source=f"{FLOW}, drift adjusted learning",
        shows="A fixed rate above the edge of stability jumps; the drift adjusted one descends.",
        experiment="dal",
        config=f"{CONFIG}:DalStudyConfig",
        **_theory("20 s", seeds=[0], network_steps=20) | {"scales": {}},
    ),
    _figure(
        "dal-sweep",
        source=f"{FLOW}, drift adjusted learning",
        shows="The drift adjusted rate needs no sweep; its smaller power is better, and less stable.",
        experiment="dal_sweep",
        config="dd_two_player.paper.flow_config:DalSweepConfig",
        in_default=False,
        quick=("60 s", {}),
        smoke=("seconds", {"num_steps": 20, "seeds": [0, 1], "learning_rates": [0.1, 1.0]}),
    ),
    _figure(
        "continuous-models",
        source=f"{FLOW}, continuous models of a network's training",
        shows="A step of the principal flow ends nearer to descent than other flows, below and at the edge.",
        experiment="continuous_models",
        config="dd_two_player.paper.flow_config:ContinuousModelsConfig",
        in_default=False,
        quick=("3 min", {}),
        smoke=("seconds", {"num_steps": 6, "num_points": 2, "seeds": [0, 1]}),
    ),
)
