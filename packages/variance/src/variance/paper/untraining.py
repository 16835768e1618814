"""Away from a trained point: gradient ascent with noise, and noise on the weights."""

import math

import torch

from gdyn_common.seeding import named_seed
from variance.errors import ConfigError
from variance.objective import Objective, Point
from variance.stream import DataStream


def weight_noise(
    point: Point, deviation: float, generator: torch.Generator, *, relative: bool = False
) -> Point:
    """Return the point with Gaussian noise on every parameter.

    Args:
        point: Where to start; left as it is.
        deviation: Standard deviation of the noise.
        generator: Random source.
        relative: Measure the deviation in root mean squares of each tensor.

    Raises:
        ConfigError: Negative deviation.

    Example:
        >>> point = Point({"w": torch.ones(3)}, {})
        >>> weight_noise(point, 0.0, torch.Generator()).flat()
        tensor([1., 1., 1.])
    """
    if deviation < 0:
        raise ConfigError(f"deviation is {deviation}; it must not be negative.")
    moved = {}
    for name, value in point.parameters.items():
        scale = value.detach().square().mean().sqrt() if relative else 1.0
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        moved[name] = value.detach() + deviation * scale * noise.to(value.device)
    return Point(moved, point.buffers)


def untrain(
    objective: Objective,
    point: Point,
    stream: DataStream,
    *,
    learning_rate: float,
    num_steps: int,
    noise: float = 0.0,
    seed: int = 0,
) -> list[Point]:
    """Climb the loss from a trained point: theta <- theta + eta g + sqrt(eta) noise xi.

    Args:
        objective: The function that is ascended.
        point: A trained point; left as it is.
        stream: Batches of g.
        learning_rate: eta.
        num_steps: Steps.
        noise: Standard deviation of xi per unit of sqrt(eta), as in Langevin dynamics.
        seed: Seed of noise and dropout.

    Returns:
        The points visited, the start first.

    Raises:
        ConfigError: Impossible options.
    """
    if learning_rate <= 0 or num_steps < 1 or noise < 0:
        raise ConfigError(
            f"learning_rate {learning_rate} must be positive, num_steps {num_steps} at least 1, noise "
            f"{noise} not negative."
        )
    generator = torch.Generator().manual_seed(named_seed(seed, "untraining"))
    points = [point.copy()]
    for _ in range(num_steps):
        gradient, _ = objective.gradient(points[-1], stream.next(), generator)
        ahead = points[-1].moved(learning_rate * gradient)
        points.append(weight_noise(ahead, math.sqrt(learning_rate) * noise, generator) if noise else ahead)
    return points
