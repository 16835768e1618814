"""Refuses options of ``train`` that were given and that nothing reads beside the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from chaos.paper.train.config import TrainConfig

_PRUNING = ("k", "prune_set", "prune_k", "prune_start", "prune_global", "prune_global_checkpoint")

#: Options, when they are read, and what they have no effect with otherwise.
_READ: list[tuple[tuple[str, ...], Callable[[TrainConfig], Any], str]] = [
    (
        tuple(f"optim.{name}" for name in (*_PRUNING, "noise", "noise_fac")),
        lambda c: c.optim.name == "cgd",
        "with optim.name=sgd",
    ),
    (("optim.prune_k",), lambda c: c.optim.k is not None, "without optim.k"),
    (("optim.prune_global_checkpoint",), lambda c: c.optim.prune_global, "without optim.prune_global"),
    (("optim.noise_fac",), lambda c: c.optim.noise, "without optim.noise"),
    (
        (
            *("perturb_strat", "perturb_eps", "logging.plot_trajectories", "logging.save_trajectories"),
            *(f"logging.lyapunov_perturb_{name}" for name in ("eigs", "vecs", "vals")),
        ),
        lambda c: c.parallel > 1,
        "without parallel models (parallel=6 perturb_strat=all)",
    ),
    (
        tuple(f"logging.lyapunov_perturb_{name}" for name in ("eigs", "vecs", "vals")),
        lambda c: not c.optim.prune_global,
        "with optim.prune_global, whose directions are taken",
    ),
    (
        ("logging.lyapunov_perturb_eigs",),
        lambda c: c.logging.lyapunov_perturb_vecs is None,
        "with logging.lyapunov_perturb_vecs, which are taken",
    ),
    (
        ("eigenthings_path",),
        lambda c: not c.optim.prune_global_checkpoint if c.optim.prune_global else _perturbs_by_path(c),
        "here: neither perturbations nor optim.prune_global take their directions from it",
    ),
    (("model.base_channels", "model.block_cnt"), lambda c: c.model.name == "cnn", "with model.name=mlp"),
    (("model.inter_dim",), lambda c: c.model.name == "mlp", "with model.name=cnn"),
    (("logging.t_hessian_subsim",), lambda c: c.logging.log_subsim, "without logging.log_subsim"),
    (
        ("logging.t_lya_subsim",),
        lambda c: c.logging.log_lyapunov_subsim or c.logging.log_subsim,
        "without logging.log_lyapunov_subsim",
    ),
    (
        ("logging.lyapunov_freq",),
        lambda c: c.logging.log_lyapunov or c.logging.log_lyapunov_subsim,
        "without logging.log_lyapunov",
    ),
    (("max_epochs",), lambda c: c.num_steps is None, "with num_steps"),
]


def check_read(config: TrainConfig) -> None:
    """Refuse what differs from its default and is not read in this combination.

    Raises:
        ValueError: If there is such an option.

    Example:
        >>> from chaos.paper.train.config import ModelConfig
        >>> check_read(TrainConfig(model=ModelConfig(base_channels=7)))
        Traceback (most recent call last):
        ValueError: model.base_channels=7 has no effect with model.name=mlp; leave it out.
    """
    default = TrainConfig()
    for keys, is_read, otherwise in _READ:
        for key in keys:
            value = _value(config, key)
            if value != _value(default, key) and not is_read(config):
                raise ValueError(f"{key}={value} has no effect {otherwise}; leave it out.")


def _value(config: TrainConfig, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def _perturbs_by_path(c: TrainConfig) -> bool:
    return (
        c.parallel > 1 and c.logging.lyapunov_perturb_eigs is None and c.logging.lyapunov_perturb_vecs is None
    )
