"""The naive formulations: what the formulas say, entry by entry, for tests and benchmarks only.

Each builds the patches of the image in Python loops in every step and computes the gradient with respect to
the input that nobody uses, as a textbook layer does.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

__all__ = ["heat_profile", "linear_step", "nonlinear_step", "patches"]


def patches(image: Float[np.ndarray, "height width"], k: int) -> Float[np.ndarray, "positions taps"]:
    """Return the im2col matrix: one row per position, taps in row-major order.

    >>> patches(np.arange(6.0).reshape(2, 3), 2).tolist()
    [[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0]]
    """
    rows, columns = image.shape[0] - k + 1, image.shape[1] - k + 1
    return np.array([image[r : r + k, c : c + k].reshape(-1) for r in range(rows) for c in range(columns)])


def nonlinear_step(
    image: Float[np.ndarray, "height width"], kernel: Float[np.ndarray, "k k"], lr: float, weight_decay: float
) -> tuple[float, Float[np.ndarray, "k k"]]:
    """Return the loss at ``kernel`` and the kernel after one step of Eq. (8), label 1, beta 1."""
    matrix = patches(image, len(kernel))
    z = matrix @ kernel.reshape(-1)
    s = 1 / (1 + np.exp(-z))
    p = np.mean(z * s)
    yhat = 1 / (1 + np.exp(-p))
    upstream = (yhat - 1) / len(z) * (s + z * s * (1 - s))
    gradient = matrix.T @ upstream + weight_decay * kernel.reshape(-1)
    _spread_to_input(image.shape, kernel, upstream)
    loss = -np.log(yhat) + weight_decay / 2 * np.sum(kernel**2)
    return float(loss), kernel - lr * gradient.reshape(kernel.shape)


def linear_step(
    image: Float[np.ndarray, "height width"], kernel: Float[np.ndarray, "k k"], lr: float, weight_decay: float
) -> tuple[float, Float[np.ndarray, "k k"]]:
    """Return the loss at ``kernel`` and the kernel after one step of Eq. (9), residual -1/2, beta 1."""
    matrix = patches(image, len(kernel))
    z = matrix @ kernel.reshape(-1)
    p = np.mean(z / (1 + np.exp(-z)))
    gradient = -0.25 * (np.mean(image) + matrix.T @ z) + weight_decay * kernel.reshape(-1)
    _spread_to_input(image.shape, kernel, z)
    loss = np.log1p(np.exp(-p)) + weight_decay / 2 * np.sum(kernel**2)
    return float(loss), kernel - lr * gradient.reshape(kernel.shape)


def heat_profile(time_step: float, num_points: int, num_steps: int) -> Float[np.ndarray, "point"]:
    """Return the heat profile from the tent after ``num_steps`` steps, point by point."""
    half = (num_points - 1) / 2
    u = [x / 10 if x < half else (num_points - 1 - x) / 10 for x in range(num_points)]
    for _ in range(num_steps):
        inner = [u[i] + time_step * (u[i + 1] - 2 * u[i] + u[i - 1]) for i in range(1, num_points - 1)]
        u = [0.0, *inner, 0.0]
    return np.array(u)


def _spread_to_input(shape: tuple[int, ...], kernel: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    """The gradient with respect to the image: all patches' gradients, then added one at a time."""
    k = len(kernel)
    columns = shape[1] - k + 1
    gradient = np.zeros(shape)
    for position, patch in enumerate(np.outer(upstream, kernel.reshape(-1))):
        r, c = divmod(position, columns)
        gradient[r : r + k, c : c + k] += patch.reshape(k, k)
    return gradient
