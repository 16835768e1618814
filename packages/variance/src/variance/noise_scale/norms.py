"""Noise in the l1 and the nuclear norm, and the interval of a noise scale."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from variance.statistics import inverse_interval


def l1_norm(values: Tensor) -> Tensor:
    """Return the sum of absolute values."""
    total: Tensor = torch.linalg.vector_norm(values, 1, dtype=torch.float64)
    return total


def nuclear_norm(values: Tensor) -> Tensor:
    """Return the sum of singular values of a tensor as matrix of its first axis by all others.

    Example:
        >>> float(nuclear_norm(torch.eye(3))), float(nuclear_norm(torch.tensor([3.0, 4.0])))  # of a vector
        (3.0, 5.0)
    """
    matrix = values.flatten(1) if values.ndim > 1 else values.reshape(1, -1)
    kind = torch.promote_types(matrix.dtype, torch.float32)
    singular: Tensor = torch.linalg.svdvals(matrix.to(kind))
    return singular.sum(dtype=torch.float64)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {"l1": l1_norm, "nuclear": nuclear_norm}
"""Norms beside the Euclidean one; that of a model is the sum of those of its parameters."""


@dataclass(frozen=True)
class NormNoise:
    """Noise in a norm that has no inner product, see `variance.noise_scale`.

    Attributes:
        noise_scale: Batch size at which noise and mean have equal norm (NaN where `mean_norm` is zero).
        low: Lower end of its 95 % interval, of the statistical error alone.
        high: Upper end.
        noise_norm: n, of one example: sqrt(b) E|g - g'| / sqrt(2) of two micro-batches of b.
        mean_norm: m, of the mean gradient, extrapolated; 0 where the extrapolation is negative.
        batch_norm: E|g| of the whole step, an upper bound of the norm of the mean.
        by_parameter: Noise scale by parameter name.
        num_steps: Steps behind it.
    """

    noise_scale: float
    low: float
    high: float
    noise_norm: float
    mean_norm: float
    batch_norm: float
    by_parameter: Mapping[str, float]
    num_steps: int


def norm_noise(steps: Sequence[Tensor], parameters: Iterable[str]) -> dict[str, NormNoise]:
    """Return the noise in each norm over some steps; nothing for fewer than three.

    Args:
        steps: For each step the noise norm, the norm of its mean and the share of noise left in that mean, by
            norm and parameter: `(3, norms, parameters)`.
        parameters: Their names.
    """
    parameters = list(parameters)
    if len(steps) < 3:
        return {}
    columns = torch.stack(list(steps))  # steps, (noise, batch, factor), norms, parameters
    found = {}
    for row, name in enumerate(NORMS):
        noise, batch, factor = columns[:, :, row].unbind(1)
        shared = float(factor.mean())
        n, whole = noise.sum(1), batch.sum(1)

        def inverse(n: Tensor, whole: Tensor, shared: float = shared) -> Tensor:
            return (whole / n).square() - shared

        count = len(steps)
        point = float(inverse(n.mean(), whole.mean()))
        left = inverse((n.sum() - n) / (count - 1), (whole.sum() - whole) / (count - 1))
        low, high = interval_of_inverse(point, left)
        each = inverse(noise.mean(0), batch.mean(0)).tolist()
        found[name] = NormNoise(
            noise_scale=1 / point if point > 0 else math.nan,
            low=low,
            high=high,
            noise_norm=float(n.mean()),
            mean_norm=float(n.mean()) * math.sqrt(max(point, 0.0)),
            batch_norm=float(whole.mean()),
            by_parameter={
                name: 1 / value if value > 0 else math.nan
                for name, value in zip(parameters, each, strict=True)
            },
            num_steps=count,
        )
    return found


def interval_of_inverse(inverse: float, left_out: Tensor) -> tuple[float, float]:
    """Return the interval of the noise scale from the jackknife values of its inverse."""
    n = len(left_out)
    return inverse_interval(inverse, math.sqrt((n - 1) * float(left_out.var(correction=0))), n)
