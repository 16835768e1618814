"""Games small enough for theory: the linear game, DiracGAN with its closed forms, a random game.

The same arguments give the same object, so that its fields and steps are compiled once.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from dd_two_player.drift import Coefficients, PlayerTerms, check_two
from dd_two_player.game import Game

__all__ = [
    "dirac_gan",
    "dirac_gan_regularizers",
    "linear_game",
    "linear_game_thresholds",
    "random_smooth_game",
]


def linear_game(damping: tuple[float, float] = (0.09, 0.09)) -> Game:
    """Return the rotational linear game ``phi' = -e1 phi + theta``, ``theta' = -e2 theta - phi``.

    Source: the linear game of Rosca et al. 2021.

    >>> from dd_two_player.flows import modified_field
    >>> [round(float(v), 3) for v in modified_field(linear_game((0.5, 0.5)))((1.0, 2.0))]
    [1.5, -2.0]
    """
    check_two("damping", damping)
    return _linear_game(float(damping[0]), float(damping[1]))


@cache
def _linear_game(e1: float, e2: float) -> Game:
    return Game(
        lambda phi, theta, _: e1 / 2 * phi**2 - phi * theta,
        lambda phi, theta, _: e2 / 2 * theta**2 + phi * theta,
    )


class Thresholds(NamedTuple):
    """Learning rates above which simultaneous updates of the linear game diverge."""

    modified: float
    discrete: float


def linear_game_thresholds(damping: float) -> Thresholds:
    """Return the stability thresholds of the linear game with eigenvalues ``-e +- i``.

    The modified flow has eigenvalues ``l - (h/2) l^2`` and is unstable iff ``h > 2 e / (1 - e^2)`` (for ``e
    < 1``); the map ``1 + h l`` iff ``h > 2 e / (1 + e^2)``.

    >>> [round(v, 5) for v in linear_game_thresholds(0.09)]
    [0.18147, 0.17855]
    """
    if not 0 < damping < 1:
        raise ValueError(f"damping is {damping}; the thresholds need 0 < damping < 1.")
    return Thresholds(2 * damping / (1 - damping**2), 2 * damping / (1 + damping**2))


@cache
def dirac_gan() -> Game:
    """Return DiracGAN: ``L_D = softplus(phi theta) + softplus(0) = -L_G``, data at 0, generator at ``theta``.

    Source: Mescheder et al. 2018, used by Rosca et al. 2021.

    >>> game = dirac_gan()
    >>> [float(g) for g in game.gradients((0.0, 2.0), None)]
    [1.0, -0.0]
    """
    return Game(
        lambda phi, theta, _: jax.nn.softplus(phi * theta) + jnp.log(2.0),
        lambda phi, theta, _: -jax.nn.softplus(phi * theta) - jnp.log(2.0),
    )


def dirac_gan_regularizers(phi: float, theta: float) -> Coefficients:
    """Return the gradients of all six regularisers of DiracGAN in closed form (NumPy, no autodiff).

    With ``l' = sigmoid(u)``, ``l'' = l'(1 - l')`` at ``u = phi theta``:
    ``L_D,phi = l' theta``, ``L_D,theta = l' phi``, ``L_G = -L_D``.

    >>> [round(v, 3) for v in dirac_gan_regularizers(0.0, 2.0).disc]
    [1.0, 0.0, -0.0]
    """
    slope = float(expit(phi * theta))
    bend = slope * float(expit(-phi * theta))

    def terms(own: float, other: float) -> PlayerTerms:
        mixed = bend * phi * theta + slope  # d^2 l / dphi dtheta
        return PlayerTerms(
            self_norm=bend * other**2 * slope * other,
            other_norm=mixed * slope * own,
            other_dot_prod=-mixed * slope * own,
        )

    return Coefficients(disc=terms(phi, theta), gen=terms(theta, phi))


@cache
def random_smooth_game(seed: int = 0, dim: int = 2) -> Game:
    """Return a random nonlinear game on ``dim + dim`` parameters that has no special structure."""
    rng = np.random.default_rng(seed)
    matrices = rng.standard_normal((2, 3, 2 * dim, 2 * dim)) / np.sqrt(2 * dim)
    vectors = rng.standard_normal((2, 2 * dim))

    def make(player: int) -> object:
        mix, inner, quadratic = matrices[player]

        def loss(phi: jax.Array, theta: jax.Array, _: object) -> jax.Array:
            x = jnp.concatenate([phi, theta])
            smooth = jnp.sin(mix @ x + vectors[player]) @ jnp.tanh(inner @ x)
            value: jax.Array = smooth + 0.5 * x @ (quadratic @ x)
            return value

        return loss

    return Game(make(0), make(1))  # type: ignore[arg-type]
