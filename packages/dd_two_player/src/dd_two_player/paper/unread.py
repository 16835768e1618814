"""Refuses options of the commands that were given and that nothing reads beside the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

from dd_two_player.gans.networks import DISCRIMINATORS, GENERATORS
from dd_two_player.paper.config import EvalConfig, TrainConfig
from dd_two_player.paper.published import EXPERIMENTS
from dd_two_player.paper.toy_config import ToyConfig
from gdyn_reproduce import keys
from gdyn_reproduce.runs import RunOptions

__all__ = ["check_read"]

Rule = tuple[tuple[str, ...], Callable[[Any], Any], str]
_MLPS = {"MLP", "PointMLP"}


def _networks(config: TrainConfig) -> set[str]:
    return {config.nets.disc, config.nets.gen}


def _cancels(config: TrainConfig) -> bool:
    drift = config.grad_regularizes.dd_coeffs_multiplier
    return any(any(vars(player).values()) for player in (drift.disc, drift.gen))


def _of_player(player: str) -> list[Rule]:
    def name(config: TrainConfig) -> Any:
        return getattr(config.optimizers, player).name

    key = f"optimizers.{player}"
    return [
        ((f"{key}.momentum",), lambda c: name(c) == "sgd", f"unless {key}.name=sgd"),
        ((f"{key}.b1", f"{key}.b2"), lambda c: name(c) == "adam", f"unless {key}.name=adam"),
    ]


#: Options of each command, when they are read, and why they have no effect otherwise.
_READ: dict[type, list[Rule]] = {
    TrainConfig: [
        *_of_player("disc"),
        *_of_player("gen"),
        (("nets.hidden",), lambda c: _networks(c) & _MLPS, "on networks that are no MLP"),
        (
            ("nets.convolution",),
            lambda c: _networks(c) & (DISCRIMINATORS.keys() | GENERATORS.keys()) - _MLPS,
            "on networks without the convolutions of this package",
        ),
        (
            ("updates.first",),
            lambda c: c.updates.scheme == "alternating",
            "unless updates.scheme=alternating",
        ),
        (
            ("updates.rk_order",),
            lambda c: c.updates.scheme == "runge_kutta",
            "unless updates.scheme=runge_kutta",
        ),
        (
            ("updates.rk_fresh_stages", "updates.rk_shared_rate"),
            lambda c: c.updates.scheme == "runge_kutta" and c.updates.rk_order > 1,
            "unless updates.scheme=runge_kutta has several stages",
        ),
        (
            ("updates.shared_batch",),
            lambda c: c.updates.scheme != "alternating",
            "with updates.scheme=alternating",
        ),
        (("updates.convention",), _cancels, "without grad_regularizes.dd_coeffs_multiplier"),
        (
            ("classifier",),
            lambda c: c.eval_every or c.classifier == "none",
            "with eval_every=0, which makes no scores",
        ),
        (
            ("eval_samples",),
            lambda c: c.eval_every and c.classifier != "none",
            "with eval_every=0 or classifier=none, which make no scores",
        ),
    ],
    EvalConfig: [
        (("experiment",), lambda c: not c.restore_path, "with restore_path"),
        (
            ("which",),
            lambda c: not c.restore_path or Path(c.restore_path).is_dir(),
            "with restore_path=FILE",
        ),
    ],
    ToyConfig: [
        (("first",), lambda c: c.scheme == "alt", "unless scheme=alt"),
        (("damping",), lambda c: c.game == "linear", "unless game=linear"),
        (("start",), lambda c: c.game in ("linear", "dirac"), "on mixtures, whose networks start at random"),
    ],
}


def check_read(config: RunOptions) -> None:
    """Refuse what differs from its default and is not read in this combination.

    Raises:
        ValueError: If there is such an option.

    Example:
        >>> check_read(TrainConfig(eval_every=0, eval_samples=50))
        Traceback (most recent call last):
        ValueError: eval_samples=50 has no effect with eval_every=0 or classifier=none, which make no \
scores; leave it out.
    """
    published = EXPERIMENTS.get(config.experiment, {}) if isinstance(config, TrainConfig) else {}
    default = keys.build(type(config), published)
    for names, is_read, otherwise in _READ[type(config)]:
        for name in names:
            value, usual = (reduce(getattr, name.split("."), c) for c in (config, default))
            if value != usual and not is_read(config):
                raise ValueError(f"{name}={value} has no effect {otherwise}; leave it out.")
