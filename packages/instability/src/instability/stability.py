"""Stability limits of gradient descent: exact for the linear PDE, and by sharpness for any quadratic.

Source: Secs. 5.2 and 5.3 of Sun et al. 2022; the momentum limits are those of heavy-ball and Nesterov
descent on a quadratic (e.g. Cohen et al. 2021, App. B).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from gdyn_common.seeding import generator
from gdyn_common.spectral import lanczos
from instability.metrics import real_array
from instability.pde.convolution import ValidCorrelation
from instability.pde.one_layer import LINEAR_RESIDUAL, Normalization

__all__ = [
    "LinearThresholds",
    "exact_bound",
    "linear_thresholds",
    "max_stable_sharpness",
    "periodic_bound",
    "signal_eigenvalues",
    "stability_ratio",
]


@dataclass(frozen=True)
class LinearThresholds:
    """Weight decays between which the linear PDE is stable at one learning rate.

    Attributes:
        alpha_min: smallest stable weight decay; 0 when the residual is positive and nothing needs taming.
        alpha_max: largest stable weight decay.
        periodic_bound: upper bound of ``alpha_min`` from the Fourier transform of the whole image.
        learning_rate: the step size the limits belong to.
    """

    alpha_min: float
    alpha_max: float
    periodic_bound: float
    learning_rate: float

    def is_stable(self, weight_decay: float) -> bool:
        """Tell whether no mode grows at this weight decay."""
        return self.alpha_min <= weight_decay <= self.alpha_max


def signal_eigenvalues(
    image: Float[np.ndarray, "height width"], kernel_size: int, *, normalize: Normalization = "sum"
) -> tuple[float, float]:
    """Return the smallest and largest eigenvalue of ``M^T M`` (per position for ``"mean"``).

    By Lanczos iteration, to about 1e-14 of the largest; ``M^T M`` is never formed.

    >>> from instability.pde.convolution import checkerboard
    >>> [round(mu, 6) for mu in signal_eigenvalues(checkerboard(16), 4)]  # rank one: positions times taps
    [0.0, 2704.0]
    """
    correlation = ValidCorrelation(image, kernel_size)

    def product(vector: Float[np.ndarray, "taps"]) -> Float[np.ndarray, "taps"]:
        kernel = torch.from_numpy(vector).reshape(kernel_size, kernel_size)
        return correlation.transpose(correlation.apply(kernel)).reshape(-1).numpy()

    smallest, largest = (
        float(
            lanczos(product, kernel_size**2, 1, generator=generator(0, "signal"), which=end, tol=1e-8).values[
                0
            ]
        )
        for end in ("SA", "LA")
    )
    scale = _scale(correlation, normalize)
    return max(0.0, smallest) / scale, largest / scale


def exact_bound(
    image: Float[np.ndarray, "height width"],
    kernel_size: int,
    *,
    residual: float = LINEAR_RESIDUAL,
    beta: float = 1.0,
    normalize: Normalization = "sum",
) -> float:
    """Return the exact ``alpha_min`` for ``a < 0``: ``|a| beta / 2`` times ``M^T M``'s largest eigenvalue.

    >>> from instability.pde.convolution import checkerboard
    >>> round(exact_bound(checkerboard(16), 4), 6)
    676.0
    """
    return abs(residual) * beta / 2 * signal_eigenvalues(image, kernel_size, normalize=normalize)[1]


def periodic_bound(
    image: Float[np.ndarray, "height width"],
    *,
    residual: float = LINEAR_RESIDUAL,
    beta: float = 1.0,
) -> float:
    """Return ``|a| beta / 2 * max |FFT(image)|^2``: the bound for a periodic image and kernel.

    An upper bound of ``exact_bound``, far above it for small kernels. The original prints it under the
    bound's name.

    >>> from instability.pde.convolution import checkerboard
    >>> periodic_bound(checkerboard(256)) == 0.25 * 65536**2
    True
    """
    return abs(residual) * beta / 2 * float(np.max(np.abs(np.fft.fft2(real_array(image, "image"))) ** 2))


def linear_thresholds(
    image: Float[np.ndarray, "height width"],
    kernel_size: int,
    learning_rate: float,
    *,
    residual: float = LINEAR_RESIDUAL,
    beta: float = 1.0,
    normalize: Normalization = "sum",
) -> LinearThresholds:
    """Return the exact stability interval of the weight decay in the linear PDE.

    A mode of eigenvalue ``mu`` of ``|a| beta / 2 M^T M`` is multiplied by ``1 - lr (alpha -+ mu)`` (minus for
    a < 0), which stays within [-1, 1] for all modes iff ``alpha_min <= alpha <= alpha_max``.

    Args:
        image: single-channel input.
        kernel_size: side of the kernel.
        learning_rate: step size.
        residual: the frozen prediction minus label; ``-1/2`` for label 1 at the start.
        beta: slope of the Swish.
        normalize: convention of the linear field, see ``OneLayerNetwork.evaluate_linear``.

    Raises:
        ValueError: the learning rate or ``beta`` is not positive and finite, or the residual not finite.

    >>> from instability.pde.convolution import checkerboard
    >>> thresholds = linear_thresholds(checkerboard(16), kernel_size=4, learning_rate=1e-3)
    >>> round(thresholds.alpha_min, 6), round(thresholds.alpha_max, 6)
    (676.0, 2000.0)
    """
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}.")
    if not (math.isfinite(residual) and 0 < beta < math.inf):
        raise ValueError(f"residual={residual}, beta={beta}: both must be finite, and beta positive.")
    smallest, largest = signal_eigenvalues(image, kernel_size, normalize=normalize)
    factor = abs(residual) * beta / 2
    positions = _scale(ValidCorrelation(image, kernel_size), normalize)
    if residual < 0:
        alpha_min, alpha_max = factor * largest, 2 / learning_rate + factor * smallest
    else:
        alpha_min, alpha_max = 0.0, 2 / learning_rate - factor * largest
    periodic = periodic_bound(image, residual=residual, beta=beta) / positions
    return LinearThresholds(alpha_min, alpha_max, periodic, learning_rate)


def max_stable_sharpness(learning_rate: float, *, momentum: float = 0.0, nesterov: bool = False) -> float:
    """Return the curvature above which descent on a quadratic diverges.

    ``2 / lr`` for plain descent, ``2 (1 + m) / lr`` for heavy ball, ``2 (1 + m) / ((1 + 2 m) lr)`` for
    Nesterov.

    Raises:
        ValueError: the learning rate is not positive and finite, or the momentum not in [0, 1).

    >>> max_stable_sharpness(0.1), max_stable_sharpness(0.1, momentum=0.5)
    (20.0, 30.0)
    """
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate={learning_rate} must be positive and finite.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum} must be at least 0 and below 1.")
    limit = 2 * (1 + momentum) / learning_rate
    return limit / (1 + 2 * momentum) if nesterov else limit


def stability_ratio(
    sharpness: float, learning_rate: float, *, momentum: float = 0.0, nesterov: bool = False
) -> float:
    """Return sharpness over its stable maximum: ``lr * sharpness / 2`` for plain descent; unstable above 1.

    >>> stability_ratio(62.0, 0.1)
    3.1
    """
    return sharpness / max_stable_sharpness(learning_rate, momentum=momentum, nesterov=nesterov)


def _scale(correlation: ValidCorrelation, normalize: Normalization) -> int:
    if normalize not in ("sum", "mean"):
        raise ValueError(f"Unknown normalize {normalize!r}. Allowed: 'sum', 'mean'.")
    return correlation.num_positions if normalize == "mean" else 1
