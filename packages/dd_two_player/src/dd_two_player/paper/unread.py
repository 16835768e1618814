"""Refuses options of the commands that were given and that nothing reads beside the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dd_two_player.paper.config import EvalConfig, TrainConfig
from dd_two_player.paper.figures import NETS
from dd_two_player.paper.published import EXPERIMENTS
from dd_two_player.paper.toy_config import ToyConfig
from gdyn_reproduce import keys, unread
from gdyn_reproduce.runs import RunOptions
from gdyn_reproduce.unread import Unread

__all__ = ["check_read"]


def _cancels(config: TrainConfig) -> bool:
    drift = config.grad_regularizes.dd_coeffs_multiplier
    return any(any(vars(player).values()) for player in (drift.disc, drift.gen))


def _of_player(player: str) -> list[Unread]:
    def name(config: TrainConfig) -> Any:
        return getattr(config.optimizers, player).name

    key = f"optimizers.{player}"
    return [
        Unread((f"{key}.momentum",), f"unless {key}.name=sgd", lambda c: name(c) == "sgd"),
        Unread((f"{key}.b1", f"{key}.b2"), f"unless {key}.name=adam", lambda c: name(c) == "adam"),
    ]


_READ: dict[type, list[Unread]] = {
    TrainConfig: [
        *_of_player("disc"),
        *_of_player("gen"),
        *NETS,
        Unread(
            ("updates.first",),
            "unless updates.scheme=alternating",
            lambda c: c.updates.scheme == "alternating",
        ),
        Unread(
            ("updates.rk_order",),
            "unless updates.scheme=runge_kutta",
            lambda c: c.updates.scheme == "runge_kutta",
        ),
        Unread(
            ("updates.rk_fresh_stages", "updates.rk_shared_rate"),
            "unless updates.scheme=runge_kutta has several stages",
            lambda c: c.updates.scheme == "runge_kutta" and c.updates.rk_order > 1,
        ),
        Unread(
            ("updates.shared_batch",),
            "with updates.scheme=alternating",
            lambda c: c.updates.scheme != "alternating",
        ),
        Unread(("updates.convention",), "without grad_regularizes.dd_coeffs_multiplier", _cancels),
        Unread(
            ("classifier",),
            "with eval_every=0, which makes no scores",
            lambda c: c.eval_every or c.classifier == "none",
        ),
        Unread(
            ("eval_samples",),
            "with eval_every=0 or classifier=none, which make no scores",
            lambda c: c.eval_every and c.classifier != "none",
        ),
    ],
    EvalConfig: [
        Unread(("experiment",), "with restore_path", lambda c: not c.restore_path),
        Unread(
            ("which",),
            "with restore_path=FILE",
            lambda c: not c.restore_path or Path(c.restore_path).is_dir(),
        ),
    ],
    ToyConfig: [
        Unread(("first",), "unless scheme=alt", lambda c: c.scheme == "alt"),
        Unread(("damping",), "unless game=linear", lambda c: c.game == "linear"),
        Unread(
            ("start",),
            "on mixtures, whose networks start at random",
            lambda c: c.game in ("linear", "dirac"),
        ),
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
    unread.check_read(config, default, _READ[type(config)])
