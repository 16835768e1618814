"""The published configurations, as overrides of `TrainConfig`; chosen with ``experiment=NAME``.

Each restates the values of the released file of that name. Numbers of steps and learning rates are the
paper's; on a CPU give ``num_steps=`` as well.
"""

from __future__ import annotations

from typing import Any

__all__ = ["EXPERIMENTS"]

CIFAR_NETS = {"disc": "CifarDiscriminator", "gen": "CifarGenerator", "num_latents": 128}
CANCEL = {"other_dot_prod": -1.0}


def _sgd(disc: float, gen: float) -> dict[str, Any]:
    return {"disc": {"name": "sgd", "lr": disc}, "gen": {"name": "sgd", "lr": gen}}


_CIFAR = {
    "dataset": "cifar10",
    "batch_size": 128,
    "num_steps": 300_000,
    "log_every": 100,
    "checkpoint_every": 1000,
    "sample_every": 5000,
    "eval_every": 10_000,
    "eval_samples": 10_000,
}

_PUBLISHED: dict[str, dict[str, Any]] = {
    "digits": {},
    "mog16": {
        "dataset": "mog16",
        "nets": {"gen": "PointMLP", "num_latents": 16},
        "classifier": "modes",
    },
    "sgd_cifar_config": _CIFAR
    | {
        "optimizers": _sgd(1e-2, 5e-3),
        "nets": CIFAR_NETS | {"spectral_norm": "apply"},
        "grad_regularizes": {"dd_coeffs_multiplier": {"disc": CANCEL, "gen": CANCEL}},
    },
    "ode_gan_cifar_config": _CIFAR
    | {
        "optimizers": _sgd(1e-2, 1e-2),
        "nets": CIFAR_NETS | {"spectral_norm": "apply"},
        "updates": {"scheme": "runge_kutta", "rk_order": 4},
    },
    "cifar_config": _CIFAR
    | {
        "num_steps": 600_000,
        "optimizers": {"disc": {"name": "adam", "lr": 1e-4}, "gen": {"name": "adam", "lr": 1e-4}},
        "nets": CIFAR_NETS | {"spectral_norm": "no_op"},
        "updates": {"scheme": "alternating", "first": "disc"},
    },
    "config": {  # MNIST, the published repository's config.py
        "dataset": "mnist",
        "batch_size": 64,
        "num_steps": 100_000,
        "optimizers": _sgd(1e-2, 1e-2),
        "nets": {
            "disc": "MnistDiscriminator",
            "gen": "MnistGenerator",
            "num_latents": 128,
            "spectral_norm": "no_op",
        },
        "updates": {"estimator": "biased_estimate_general_grad_fn"},
        "eval_every": 5000,
    },
}

EXPERIMENTS = {name: {"experiment": name} | values for name, values in _PUBLISHED.items()}
