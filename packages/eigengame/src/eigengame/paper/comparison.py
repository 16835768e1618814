"""Follow one algorithm on one data set and measure it against the truth at regular steps."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from eigengame.core.learning_rate import nesterov, with_learning_rate
from eigengame.core.solver import Config, init, sample_steps
from eigengame.metrics import angles, streak_of_angles, subspace_distance

__all__ = ["METHODS", "as_device", "best_rate", "config_of", "follow", "measure"]

METHODS = ("mu", "alpha", "gha", "oja", "mu projected")


def config_of(method: str, momentum: float = 0.9) -> Config:
    """Return the step configuration of a method by its name in the figures.

    Raises:
        ValueError: For an unknown method.

    Example:
        >>> config_of("mu projected").project
        True
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}. Allowed: {', '.join(METHODS)}.")
    name = method.split()[0]
    return Config(nesterov(momentum), algorithm=name, project=method.endswith("projected"))  # type: ignore[arg-type]


def measure(V: Float[Array, "k d"], truth: NDArray) -> dict[str, float]:
    """Return streak, subspace distance and mean angle of vectors against the true ones."""
    theta = angles(V, truth)
    return {
        "streak": float(streak_of_angles(theta)),
        "distance": subspace_distance(V, truth),
        "angle": float(theta.mean()),
    }


def follow(
    config: Config,
    learning_rate: float,
    data: Float[Array, "n d"],
    truth: NDArray,
    *,
    batch_size: int,
    num_steps: int,
    num_points: int,
    seed: int,
) -> dict[str, NDArray]:
    """Return curves of streak, distance and angle over `num_steps` steps on random minibatches.

    Args:
        config: What a step does, with the optimiser `learning_rate.nesterov`.
        learning_rate: Step size.
        data: Centred samples on rows.
        truth: True vectors on rows; their number is k.
        batch_size: Rows drawn with replacement per step.
        num_steps: Steps.
        num_points: Points of the curves after the start.
        seed: Seed of the initial vectors and of the draws.
    """
    every = max(num_steps // num_points, 1)
    key = jax.random.key(seed)
    state = init(key, truth.shape[0], data.shape[1], config.optimizer, dtype=data.dtype)
    state = with_learning_rate(state, learning_rate)
    points = [measure(state.V, truth)]
    for _ in range(num_points):
        state, metrics = sample_steps(state, data, every, batch_size, config)
        if not bool(metrics["finite"].all()):
            points.extend(
                [{"streak": 0.0, "distance": 1.0, "angle": np.pi / 2}] * (num_points + 1 - len(points))
            )
            break
        points.append(measure(state.V, truth))
    curves = {name: np.array([point[name] for point in points]) for name in points[0]}
    return curves | {"steps": every * np.arange(num_points + 1)}


def best_rate(
    rates: Sequence[float], score: Callable[[float], float], *, extensions: int = 6, slack: float = 0.01
) -> float:
    """Return the rate with the highest score, from a grid that is extended until the best lies inside it.

    A comparison of methods whose rate sits at the edge of its grid says how far the grid reached, not which
    method is better. Scores come from held-out seeds.

    Args:
        rates: At least two rates; the grid is continued by the ratio of its first or last pair.
        score: Score of a rate.
        extensions: Largest number of rates added.
        slack: A rate inside the grid is taken if it falls short of the best by no more than this share.

    Raises:
        ValueError: If the best rate still sits at the edge.

    Example:
        >>> best_rate([0.1, 1.0, 10.0], lambda rate: -abs(rate - 1))
        1.0
        >>> best_rate([0.1, 1.0], lambda rate: -abs(rate - 100))
        100.0
    """
    grid = sorted(rates)
    scores = [score(rate) for rate in grid]
    for added in range(extensions + 1):
        best = max(scores)
        inside = [index for index in range(1, len(grid) - 1) if scores[index] >= best - slack * abs(best)]
        if inside:
            return grid[max(inside, key=scores.__getitem__)]
        if added < extensions and scores[-1] == best:
            grid.append(grid[-1] ** 2 / grid[-2])
            scores.append(score(grid[-1]))
        elif added < extensions:
            grid.insert(0, grid[0] ** 2 / grid[1])
            scores.insert(0, score(grid[0]))
    edge = grid[scores.index(best)]
    raise ValueError(
        f"The best learning rate {edge:g} sits at the edge of its grid {grid[0]:g} to {grid[-1]:g}: no "
        "verdict can rest on it. Widen the grid."
    )


def as_device(data: NDArray, dtype: str) -> Float[Array, "n d"]:
    """Return centred rows on the device, in the given type."""
    rows = np.asarray(data, np.float64).reshape(len(data), -1)
    return jnp.asarray(rows - rows.mean(axis=0), dtype)
